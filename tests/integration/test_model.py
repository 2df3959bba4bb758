"""`Model` and the command line give the same records, for files of every kind and every source."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnxruntime", reason="needs extra cpu")
pytest.importorskip("pydicom", reason="needs extra dicom")

import public_api
from drawn_once import phantom_files
from image_kinds import ELSEWHERE, folder_of_costly_files, folder_of_every_kind

import deepcovid_edge
from deepcovid_edge import ImageBytes, Model, NotAssessedError, Prediction, Reason
from deepcovid_edge.backends.base import Backend, Inference
from deepcovid_edge.cli.main import run
from deepcovid_edge.errors import NotThereError, UsageError
from deepcovid_edge.files import Closing
from deepcovid_edge.heatmaps.files import read_map
from deepcovid_edge.imaging.files import ImageSource

TIMINGS = {"timings_ms"}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_every_kind(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model() as loaded:
        yield loaded


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom_files(tmp_path_factory.mktemp("phantom"), count=1)[0]


def without_timings(record: dict[str, Any]) -> str:
    """The record's bytes, timings aside."""
    return json.dumps({name: value for name, value in record.items() if name not in TIMINGS})


def by_command(folder: Path, output: Path, *options: str) -> list[str]:
    assert run(["infer", str(folder), "-o", str(output), *options]) in (0, 4)
    return [without_timings(json.loads(line)) for line in output.read_text().splitlines()]


def by_python(folder: Path, **settings: Any) -> list[str]:
    with Model(**settings) as model:
        return [without_timings(prediction.as_dict()) for prediction in model.predict(folder)]


@pytest.mark.parametrize(
    ("options", "settings", "decisions"),
    [
        ((), {}, {"positive", "negative", "indeterminate"}),
        pytest.param(
            ("--ood", "warn", "--no-indeterminate"),
            {"ood": "warn", "indeterminate": False},
            {"positive"},
            marks=pytest.mark.slow,
        ),
        (
            ("--variant", "int8-cpu", "--threshold", "0.3"),
            {"variant": "int8-cpu", "threshold": 0.3},
            {"positive", "negative"},
        ),
        pytest.param(
            ("--variant", "fp32", "--batch-size", "3", "--workers", "1"),
            {"variant": "fp32", "batch_size": 3, "workers": 1},
            {"indeterminate"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_python_and_the_command_line_give_equal_records(
    options: tuple[str, ...],
    settings: dict[str, Any],
    decisions: set[str],
    kinds: Path,
    tmp_path: Path,
) -> None:
    records = by_command(kinds, tmp_path / "records.jsonl", *options)
    assert records == by_python(kinds, **settings)
    found = {json.loads(record)["reason"] for record in records}
    absent = ELSEWHERE | ({Reason.OOD} if "warn" in options else set())
    assert found >= {reason.code for reason in Reason if reason not in absent} | {None}
    assert {json.loads(record)["decision"] for record in records} >= decisions


def test_a_source_without_a_path_gives_the_record_of_its_file(kinds: Path, model: Model) -> None:
    assert_every_source_gives_the_record(kinds, model)


@pytest.mark.slow  # half a minute for three files; their refusal is in test_dicom_refusals
def test_files_at_the_limits_of_what_is_read_give_equal_records(
    tmp_path: Path, model: Model
) -> None:
    costly = folder_of_costly_files(tmp_path / "costly")
    assert by_command(costly, tmp_path / "records.jsonl") == by_python(costly)
    assert_every_source_gives_the_record(costly, model)


def assert_every_source_gives_the_record(folder: Path, model: Model) -> None:
    """A path, its bytes, its opened file and a stream give one record."""
    for path in (path for path in sorted(folder.iterdir()) if path.is_file()):
        data = path.read_bytes()
        named = model.predict_one(ImageBytes(str(path), data))
        stream = io.BytesIO(data)
        stream.name = str(path)
        with path.open("rb") as opened:
            sources = (str(path), named, opened, stream)
            predictions = [
                one if isinstance(one, Prediction) else model.predict_one(one) for one in sources
            ]
        first, *others = (without_timings(one.as_dict()) for one in predictions)
        if json.loads(first)["reason"] != Reason.INCOMPLETE.code:  # only a path can still grow
            assert set(others) == {first}, path.name


def test_sources_of_several_kinds_come_in_their_order(
    phantom: Path, tmp_path: Path, model: Model
) -> None:
    phantom_files(tmp_path, count=2)
    with phantom.open("rb") as opened:
        data = ImageBytes("bytes.png", phantom.read_bytes())
        sources: list[ImageSource] = [data, tmp_path, opened, str(phantom)]
        names = [Path(one.path).name for one in model.predict(sources)]
    assert names == ["bytes.png", "phantom_000.png", "phantom_001.png", *[phantom.name] * 2]


def test_predict_is_lazy_and_ends_its_threads_when_it_is_closed(
    phantom: Path, model: Model
) -> None:
    def endless() -> Iterator[Path]:
        while True:
            yield phantom

    predictions = model.predict(endless())
    assert next(predictions).sha256 == next(predictions).sha256
    predictions.close()  # type: ignore[attr-defined]


def test_one_prediction_is_that_of_a_run(phantom: Path, model: Model) -> None:
    (of_run,) = model.predict(phantom)
    alone = model.predict_one(phantom)
    assert without_timings(alone.as_dict()) == without_timings(of_run.as_dict())
    assert repr(alone) == (
        f"Prediction({str(phantom)!r}, negative, covid {alone.probability:.3f}, W_SYNTHETIC)"
    )


def test_a_prediction_without_a_result_says_why_in_one_line(model: Model) -> None:
    prediction = model.predict_one(ImageBytes("notes.txt", b"no image"))
    assert (prediction.decision, prediction.probability) == (None, None)
    assert repr(prediction) == "Prediction('notes.txt', not assessed, E_NOT_IMAGE)"


@pytest.mark.parametrize("method", ["occlusion", "activation"])
def test_an_explanation_has_the_maps_that_infer_writes(
    method: str, phantom: Path, tmp_path: Path, model: Model
) -> None:
    folder = tmp_path / "maps"
    options = ["--heatmap", method, "--heatmap-dir", str(folder), "-o", str(tmp_path / "r.jsonl")]
    assert run(["infer", str(phantom), *options, "--overlay"]) == 0
    record = json.loads((tmp_path / "r.jsonl").read_text())
    found = model.explain(phantom, method=method)
    found.save(tmp_path / "own.npz")
    found.save(tmp_path / "own.png")
    stored, own = read_map(Path(record["heatmap"])), read_map(tmp_path / "own.npz")
    np.testing.assert_allclose(stored.heatmap.values, found.values, atol=1e-5)
    assert [region.as_dict() for region in found.regions] == record["regions"]
    assert own.facts == stored.facts
    assert (tmp_path / "own.png").read_bytes()[:4] == b"\x89PNG"
    places = f"{len(found.regions)} region{'s' * (len(found.regions) != 1)}"
    assert repr(found) == f"Explanation({found.prediction!r}, {method}, {places})"


def test_what_cannot_be_assessed_cannot_be_explained(phantom: Path, model: Model) -> None:
    with pytest.raises(NotAssessedError) as caught:
        model.explain(ImageBytes("notes.txt", b"no image"))
    assert caught.value.reason is Reason.NOT_IMAGE
    with pytest.raises(UsageError, match="budget: got -1 s, expected more than 0"):
        model.explain(phantom, budget=-1)
    with pytest.raises(UsageError, match=r"budget: got 1e-06 s, one pass takes about"):
        model.explain(phantom, budget=1e-6)
    with pytest.raises(UsageError, match=r"path: got map\.bmp, expected .* \.png or \.npz"):
        model.explain(phantom, method="activation").save("map.bmp")


class Overflowing(Closing):
    """A backend whose numbers overflow, as in FP16: in activation maps, and where windows hide."""

    name, on_cpu, warnings = "overflowing", True, ()

    def __init__(self, backend: Backend) -> None:
        self.manifest, self.sha256, self._backend = backend.manifest, backend.sha256, backend
        self._calls = 0

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        """See `Backend.infer`; the first call, with the whole image, gives logits."""
        found = self._backend.infer(batch)
        self._calls += 1
        logits = found.logits if self._calls == 1 else np.full_like(found.logits, np.nan)
        maps = np.full((len(batch), 2, 7, 7), np.nan, np.float32)
        return Inference(logits, maps if activation_maps else None, found.ood_scores)

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("method", ["occlusion", "activation"])
def test_a_map_that_is_no_number_is_no_explanation(
    method: str, phantom: Path, model: Model
) -> None:
    with (
        Model.of(Overflowing(model.backend)) as overflowing,
        pytest.raises(NotAssessedError, match=r"gave no usable number.*heat map") as caught,
    ):
        overflowing.explain(phantom, method=method)
    assert caught.value.reason is Reason.RESULT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 2}, "^threshold: got 2, expected 0 to 1"),
        ({"ood": "off"}, "^ood: got 'off', expected reject or warn"),
        ({"backend": "abacus"}, "^backend: got 'abacus', expected one of auto"),
        ({"provider": "abacus"}, "^provider: got 'abacus', expected one of cpu"),
        ({"workers": 0}, "^workers: got 0, expected 1 to 256"),
        ({"workers": 1.5}, "^workers: got 1.5, expected a whole number"),
        ({"batch_size": "4"}, "^batch_size: got '4', expected a whole number"),
        ({"threshold": "0.5"}, "^threshold: got '0.5', expected a number"),
        ({"indeterminate": "no"}, "^indeterminate: got 'no', expected True or False"),
    ],
)
def test_errors_speak_python(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Model(**settings)


def test_the_command_line_adds_the_dashes(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["infer", str(phantom), "--batch-size", "0"]) == 2
    assert capsys.readouterr().err == "Error: --batch-size: got 0, expected 1 to 1024\n"


def test_a_folder_that_is_called_like_an_option_gets_no_dashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    assert run(["site-check", "source/", "--model", "squeezenet1_1"]) == 1
    assert capsys.readouterr().err.startswith("Error: source: no labelled image found")


def test_a_variant_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(NotThereError, match=r"variant: got 'int4', .* has fp32, int8-cpu: make it"):
        Model(variant="int4")
    with pytest.raises(NotThereError, match="images: no such file or folder"):
        Model.predict(Model(), "images")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_closed_model_says_so(backend: str, phantom: Path) -> None:
    pytest.importorskip(backend, reason=f"needs {backend}")
    with Model(backend=backend) as model:
        batch = np.zeros((1, model.manifest.input.height, model.manifest.input.width), np.uint8)
    calls: tuple[Callable[[], object], ...] = (
        lambda: model.infer(batch),
        lambda: list(model.predict(phantom)),
        lambda: model.predict_one(phantom),
        lambda: model.explain(phantom),
        lambda: model.explain(phantom, method="activation"),
    )
    for call in calls:
        with pytest.raises(UsageError, match="the model is closed: load it again"):
            call()


def test_the_face_of_the_package_is_what_it_says() -> None:
    assert len(deepcovid_edge.__all__) <= 20
    for name in deepcovid_edge.__all__:
        assert getattr(deepcovid_edge, name) is not None
    assert dir(deepcovid_edge) == sorted(deepcovid_edge.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        deepcovid_edge.nothing  # noqa: B018


def test_the_examples_run(phantom: Path, tmp_path: Path) -> None:
    assert public_api.classify_one(phantom) == "negative"
    ((path, probability),) = public_api.classify_folder(phantom.parent)
    assert path == str(phantom)
    assert probability is not None
    assert public_api.classify_what_a_peer_sent("a.png", phantom.read_bytes()) is None
    assert len(public_api.logits_of(phantom)) == 2
    assert all(
        starmap(
            isinstance, ((r, dict) for r in public_api.where_it_looked(phantom, tmp_path / "a.png"))
        )
    )
