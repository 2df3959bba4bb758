"""What `info` tells of the shipped models."""

from __future__ import annotations

import json

import pytest

from deepcovid_edge.cli.main import run
from deepcovid_edge.device.processor import INT8_SWITCH
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import DEFAULT_MODEL, shipped_models
from deepcovid_edge.validation import diagnostics

pytestmark = pytest.mark.int8


def test_the_default_model_stands_first_and_each_with_its_own_facts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["info", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in models] == [*shipped_models()]
    assert models[0]["name"] == DEFAULT_MODEL
    for model, path in zip(models, shipped_models().values(), strict=True):
        assert model["sha256"] == file_sha256(path)
        assert model["precision"] == read_manifest(path).precision


def test_a_model_with_an_indeterminate_range_shows_no_threshold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    span = read_manifest(shipped_models()[DEFAULT_MODEL]).indeterminate_range
    assert span
    assert run(["info"]) == 0
    text = capsys.readouterr().out
    assert f"indeterminate from {span.low:.4f} to {span.high:.4f}," in text
    assert "threshold" not in text


def test_a_model_without_an_indeterminate_range_shows_its_threshold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [{**facts, "limits": {"threshold": 0.25}} for facts in diagnostics.model_facts()]
    monkeypatch.setattr(diagnostics, "model_facts", lambda: plain)
    assert run(["info"]) == 0
    assert "threshold 0.2500," in capsys.readouterr().out


@pytest.mark.parametrize(("value", "told"), [("off", {INT8_SWITCH: "off"}), ("auto", {})])
def test_int8_that_is_switched_off_is_told(
    value: str,
    told: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(INT8_SWITCH, value)
    assert run(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == told
    assert run(["info"]) == 0
    assert ("setting   DEEPCOVID_EDGE_INT8=off: " in capsys.readouterr().out) is bool(told)


def test_what_a_model_reads_when_the_lungs_are_hidden_is_told_to_people(
    capsys: pytest.CaptureFixture[str],
) -> None:
    verdict = read_manifest(shipped_models()[DEFAULT_MODEL]).training["shortcuts"]["verdict"]
    assert "with the lungs hidden the AUC is" in verdict
    assert run(["info"]) == 0
    assert f"on 803 images of `val`:\n          {verdict}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("pydicom", "DICOM images cannot be read: pydicom is not installed"),
        ("imagecodecs", "compressed DICOM images may not be readable"),
    ],
)
def test_without_the_extra_dicom_a_cart_is_told(
    missing: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = diagnostics._version
    present = {"pydicom": "3.0", "imagecodecs": "2026"}
    monkeypatch.setattr(
        diagnostics,
        "_version",
        lambda name: None if name == missing else present.get(name, real(name)),
    )
    assert run(["info"]) == 0
    told = capsys.readouterr().out
    assert said in told
    assert "pip install 'deepcovid-edge[dicom]'" in told
