"""The manifest: what it refuses, and that it is read from ONNX bytes without the onnx package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deepcovid_edge.errors import ModelFileError, NotThereError
from deepcovid_edge.manifest import (
    METADATA_KEY,
    IndeterminateRange,
    InputSpec,
    ModelManifest,
    ResizeRule,
    read_manifest,
)

onnx = pytest.importorskip("onnx", reason="onnx writes the files that are read here")

MANIFEST = ModelManifest(
    name="tiny",
    architecture="tiny",
    classes=("non", "covid"),
    positive_class="covid",
    threshold=0.25,
    input=InputSpec(96, 128, ResizeRule.LETTERBOX),
    indeterminate_range=IndeterminateRange(0.2, 0.25, {"rule": "by hand"}),
    training={"note": "größer"},
)


def model_file(path: Path, metadata: dict[str, str]) -> Path:
    graph = onnx.helper.make_graph([], "g", [], [])
    model = onnx.helper.make_model(graph, producer_name="x" * 300)
    model.metadata_props.add(key="other", value="before")
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def test_json_round_trip_keeps_every_field() -> None:
    assert ModelManifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_manifest_is_read_from_the_wire_format(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.onnx", {METADATA_KEY: MANIFEST.to_json()})
    assert read_manifest(path) == MANIFEST


def test_fields_of_a_newer_minor_version_are_ignored() -> None:
    values = json.loads(MANIFEST.to_json()) | {"added_later": 1}
    assert ModelManifest.from_json(json.dumps(values)) == MANIFEST


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.5}, "threshold: got 1.5"),
        ({"positive_class": "flu"}, "positive_class: got 'flu'"),
        ({"classes": ["covid"]}, "two or more"),
        ({"classes": ["covid", "covid"]}, "two or more"),
        ({"schema_version": 99}, "install the deepcovid-edge that wrote"),
        ({"indeterminate_range": {"low": 0.3, "high": 0.2}}, "indeterminate_range: got 0.3 to 0.2"),
        ({"indeterminate_range": {"low": 0.1, "high": 0.2}}, "expected to hold the threshold 0.25"),
        ({"indeterminate_range": {"low": "a", "high": 0.2}}, "manifest: "),
        ({"input": {"height": 4, "width": 224}}, "expected 32 to 4096"),
        ({"input": {"resize": "stretch"}}, "stretch"),
        ({"input": {"interpolation": "cubic"}}, "expected 'area'"),
    ],
)
def test_wrong_values_are_refused_by_name(change: dict[str, object], message: str) -> None:
    values = json.loads(MANIFEST.to_json()) | change
    with pytest.raises(ModelFileError, match=message):
        ModelManifest.from_json(json.dumps(values))


@pytest.mark.parametrize("name", ["indeterminate_range", "threshold", "input", "ood", "classes"])
def test_what_decides_has_no_default(name: str) -> None:
    values = json.loads(MANIFEST.to_json())
    del values[name]
    with pytest.raises(ModelFileError, match=f"manifest: no '?{name}"):
        ModelManifest.from_json(json.dumps(values))


OF_ANOTHER_KIND: dict[str, list[object]] = {
    "indeterminate_range": [[], {}, "", False, 0],
    "threshold": [True, "0.25", None, [0.25]],
    "classes": ["ab", [1, "covid"], {"covid": 1, "non": 2}],
    "input": [{"height": 96}, {"height": True, "width": 128}, []],
    **{name: [1] for name in ("name", "ood", "quantization", "training", "parent_sha256")},
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, one) for name, found in OF_ANOTHER_KIND.items() for one in found]
)
def test_value_of_another_kind_is_not_taken_for_one(name: str, value: object) -> None:
    values = json.loads(MANIFEST.to_json()) | {name: value}
    with pytest.raises(ModelFileError, match="manifest: "):
        ModelManifest.from_json(json.dumps(values))


def test_indeterminate_range_can_be_none() -> None:
    values = json.loads(MANIFEST.to_json()) | {"indeterminate_range": None}
    assert ModelManifest.from_json(json.dumps(values)).indeterminate_range is None


def test_missing_field_and_foreign_json_are_refused() -> None:
    for text in ("{}", "[]", "nonsense", "null"):
        with pytest.raises(ModelFileError, match="manifest"):
            ModelManifest.from_json(text)


def test_model_without_manifest_is_refused_with_the_mend(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.onnx", {})
    with pytest.raises(ModelFileError, match="deepcovid-edge export"):
        read_manifest(path)


@pytest.mark.parametrize("cut", [1, 10, 100, 300])
def test_cut_off_model_is_refused(tmp_path: Path, cut: int) -> None:
    path = model_file(tmp_path / "m.onnx", {METADATA_KEY: MANIFEST.to_json()})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ModelFileError):
        read_manifest(path)


@pytest.mark.parametrize("content", [b"plain text, no model\n", b"\xff" * 40, b""])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="deepcovid-edge export"):
        read_manifest(path)


def test_missing_file_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match=r"no\.onnx"):
        read_manifest(tmp_path / "no.onnx")


def test_positive_index_follows_the_classes() -> None:
    turned = replace(MANIFEST, classes=("covid", "non"))
    assert (MANIFEST.positive_index, turned.positive_index) == (1, 0)
