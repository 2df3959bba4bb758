"""The pipeline around a backend: order, batches, bounds, and that one bad image stops nothing.

A fake backend stands in here because only what is around a backend is tested; real models run in
tests/integration.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_once import phantom_files

from deepcovid_edge.backends.base import Inference, softmax
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.errors import UsageError
from deepcovid_edge.imaging.reading import decode_radiograph
from deepcovid_edge.manifest import IndeterminateRange, InputSpec, ModelManifest
from deepcovid_edge.model import Model
from deepcovid_edge.pipeline import reader as module
from deepcovid_edge.pipeline.pipeline import (
    _GROUPS_A_THREAD,
    _MOST_IN_GROUP,
    Groups,
    PredictSettings,
)
from deepcovid_edge.reasons import WarningCode

MANIFEST = ModelManifest(
    name="fake",
    architecture="fake",
    classes=("non", "covid"),
    positive_class="covid",
    threshold=0.5,
    input=InputSpec(32, 32),
)


class MeanBackend:
    """The logit of `covid` is the image's mean grey level; remembers the sizes of its batches."""

    name = "fake-cpu"
    sha256 = "0" * 64
    warnings: tuple[WarningCode, ...] = ()
    manifest = MANIFEST

    def __init__(self, *, on_cpu: bool = True) -> None:
        self.on_cpu = on_cpu
        self.batches: list[int] = []
        self._lock = threading.Lock()

    def infer(self, batch: np.ndarray, *, activation_maps: bool = False) -> Inference:
        with self._lock:
            self.batches.append(len(batch))
        means = batch.mean(axis=(1, 2)) / 255
        return Inference(np.stack([-means, means], axis=1).astype(np.float32))

    def close(self) -> None: ...

    def __enter__(self) -> MeanBackend:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return phantom_files(tmp_path_factory.mktemp("images"), count=5)


def classify(paths: Any, backend: MeanBackend, **settings: Any) -> list[Prediction]:
    chosen = PredictSettings(**settings)
    return list(Model.of(backend, chosen).predict(paths))


def without_timings(records: list[Prediction]) -> list[dict[str, Any]]:
    return [{**record.as_dict(), "timings_ms": None} for record in records]


def test_records_come_in_the_order_of_the_paths(images: list[Path]) -> None:
    paths = [images[number % 5] for number in range(37)]
    records = classify(paths, MeanBackend(), batch_size=4, workers=3)
    assert [record.path for record in records] == [str(path) for path in paths]


def test_batch_size_device_and_workers_change_no_record(images: list[Path]) -> None:
    paths = images * 3
    one = without_timings(classify(paths, MeanBackend(), batch_size=1, workers=1))
    for batch_size, on_cpu, workers in ((4, True, 2), (7, False, 5), (64, True, 1), (3, False, 1)):
        other = classify(paths, MeanBackend(on_cpu=on_cpu), batch_size=batch_size, workers=workers)
        assert without_timings(other) == one


def test_batches_are_filled_across_refused_images(images: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    paths = [image for good in images * 2 for image in (good, broken)]
    backend = MeanBackend(on_cpu=False)
    records = classify(paths, backend, batch_size=4, workers=2)
    assert sorted(backend.batches) == [2, 4, 4]
    assert [record.status for record in records] == ["assessed", "not_assessed"] * 10


def test_refused_images_carry_a_reason_and_no_number(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (record,) = classify([tmp_path / "a.png"], MeanBackend())
    values = record.as_dict()
    assert (values["status"], values["reason"]) == ("not_assessed", "E_NOT_IMAGE")
    assert values["probability"] is values["probabilities"] is values["decision"] is None


MOST_UNDER_WAY = 2 * _GROUPS_A_THREAD * _MOST_IN_GROUP
"""Images in the hands of two threads; as many paths are taken ahead of them."""


def test_many_refused_images_do_not_pile_up(tmp_path: Path) -> None:
    """Records of refused images come out although no batch ever fills."""
    (tmp_path / "a.png").write_bytes(b"")
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield tmp_path / "a.png"

    backend = MeanBackend()
    settings = PredictSettings(batch_size=2, workers=2)
    records = Model.of(backend, settings).predict(endless())
    for _ in range(50):
        next(records)
    records.close()  # type: ignore[attr-defined]
    assert taken <= 2 * MOST_UNDER_WAY + 50


def test_no_more_images_are_read_than_the_queues_hold(
    images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count()
    real = decode_radiograph

    def counted(file: Any, spec: Any) -> Any:
        next(read)
        return real(file, spec)

    monkeypatch.setattr(module, "decode_radiograph", counted)
    backend = MeanBackend()
    settings = PredictSettings(batch_size=4, workers=2)
    records = Model.of(backend, settings).predict(images * 200)
    next(records)
    time.sleep(0.5)
    in_hand = next(read)
    records.close()  # type: ignore[attr-defined]
    assert in_hand <= MOST_UNDER_WAY


def test_a_few_images_are_shared_by_all_threads(images: list[Path]) -> None:
    groups = Groups(images[:4], 1, 2, paced=True)
    assert [len(group) for group in groups] == [2, 1, 1]


def test_groups_grow_with_the_pace_and_shrink_towards_the_end() -> None:
    groups = Groups([Path("image")] * 200, 1, 2, paced=True)
    sizes = []
    for group in groups:
        sizes.append(len(group))
        groups.took(len(group), 1e-6)  # next to no time: as many as may be
    assert sizes[:3] == [4, 32, 32]
    assert sum(sizes) == 200
    assert sizes[3:] == sorted(sizes[3:], reverse=True)
    assert sizes[-1] == 1


@pytest.mark.parametrize(
    ("batch_size", "paced", "seconds", "expected"),
    [(1, True, 1.0, 4), (8, True, 1.0, 8), (1, False, 1e-6, 4)],
    ids=["slow images", "slow images in batches", "images kept for pictures"],
)
def test_groups_stay_small_for(batch_size: int, paced: bool, seconds: float, expected: int) -> None:
    groups = Groups([Path("image")] * 200, batch_size, 2, paced=paced)
    for _ in range(3):
        group = next(groups)
        assert len(group) == expected
        groups.took(len(group), seconds)


def test_a_group_that_turns_out_to_be_slow_is_judged_in_parts(
    images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = images * 4
    expected = without_timings(classify(paths, MeanBackend()))
    monkeypatch.setattr("deepcovid_edge.pipeline.pipeline._PATIENCE_SECONDS", 0.0)
    backend = MeanBackend()
    records = classify(paths, backend, batch_size=8, workers=2)
    assert backend.batches == [1] * len(paths)
    assert without_timings(records) == expected


def test_closing_the_generator_ends_its_threads(images: list[Path]) -> None:
    backend = MeanBackend()
    settings = PredictSettings()
    records = Model.of(backend, settings).predict(images * 100)
    next(records)
    records.close()  # type: ignore[attr-defined]
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("decode", "infer"))]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ZeroDivisionError("a scale of zero"), "ZeroDivisionError: a scale of zero"),
        (MemoryError("half a terabyte"), "too little memory (half a terabyte)"),
        (cv2.error("Insufficient memory"), "too little memory (Insufficient memory)"),
    ],
    ids=["own", "memory", "opencv"],
)
def test_whatever_one_file_does_the_run_goes_on(
    error: Exception, expected: str, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = decode_radiograph

    def poisoned(file: Any, spec: Any) -> Any:
        if file.path == images[1]:
            raise error
        return real(file, spec)

    monkeypatch.setattr(module, "decode_radiograph", poisoned)
    records = classify(images, MeanBackend(), batch_size=2)
    assert [record.reason for record in records] == [None, "E_DECODE", None, None, None]
    assert expected in (records[1].message or "")


def test_a_network_that_gives_no_number_is_a_reason_and_not_negative(images: list[Path]) -> None:
    class Broken(MeanBackend):
        def infer(self, batch: np.ndarray, *, activation_maps: bool = False) -> Inference:
            logits = super().infer(batch).logits
            logits[::2] = [np.nan, np.inf]
            return Inference(logits)

    records = classify(images, Broken(), batch_size=8)
    assert [record.reason for record in records] == ["E_RESULT", None] * 2 + ["E_RESULT"]
    assert records[0].decision is None
    assert records[0].probability is None
    assert "NaN" not in records[0].as_json()


def test_an_error_of_the_backend_ends_the_run(images: list[Path]) -> None:
    class Broken(MeanBackend):
        def infer(self, batch: np.ndarray, *, activation_maps: bool = False) -> Inference:
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        classify(images, Broken())


def test_threshold_decides_on_the_rounded_probability(images: list[Path]) -> None:
    (record,) = classify(images[:1], MeanBackend())
    assert record.probability is not None
    at = classify(images[:1], MeanBackend(), threshold=record.probability)[0]
    above = classify(images[:1], MeanBackend(), threshold=record.probability + 1e-6)[0]
    assert (at.decision, above.decision) == ("positive", "negative")


def test_an_image_in_the_indeterminate_range_is_indeterminate_and_keeps_its_probability(
    images: list[Path],
) -> None:
    (plain,) = classify(images[:1], MeanBackend())
    assert plain.probability is not None
    backend = MeanBackend()
    indeterminate_range = IndeterminateRange(plain.probability, plain.probability + 1e-6)
    backend.manifest = replace(
        MANIFEST, threshold=plain.probability, indeterminate_range=indeterminate_range
    )
    (record,) = classify(images[:1], backend)
    assert (record.decision, record.probability) == ("indeterminate", plain.probability)
    assert record.as_dict()["limits"] == {
        "low": indeterminate_range.low,
        "high": indeterminate_range.high,
    }
    assert record.as_row()["limits.low"] == indeterminate_range.low
    assert record.as_row()["limits.threshold"] is None
    for settings in ({"indeterminate": False}, {"threshold": plain.probability}):
        (decided,) = classify(images[:1], backend, **settings)
        assert decided.decision == "positive"
        assert decided.as_dict()["limits"] == {"threshold": plain.probability}


def test_just_outside_the_indeterminate_range_an_image_is_called(images: list[Path]) -> None:
    (plain,) = classify(images[:1], MeanBackend())
    assert plain.probability is not None
    for low, high, decision in ((1e-6, 2e-6, "negative"), (-2e-6, 0.0, "positive")):
        backend = MeanBackend()
        indeterminate_range = IndeterminateRange(plain.probability + low, plain.probability + high)
        backend.manifest = replace(
            MANIFEST, threshold=indeterminate_range.high, indeterminate_range=indeterminate_range
        )
        assert classify(images[:1], backend)[0].decision == decision


def test_what_is_to_know_of_a_backend_stands_in_every_assessed_record(
    images: list[Path], tmp_path: Path
) -> None:
    backend = MeanBackend()
    backend.warnings = (WarningCode.UNVERIFIED,)
    (tmp_path / "broken.png").write_text("no image")
    records = classify([images[0], tmp_path / "broken.png"], backend)
    assert [record.warnings for record in records] == [("W_SYNTHETIC", "W_UNVERIFIED"), ()]


def test_record_says_how_long_each_part_took(images: list[Path]) -> None:
    (record,) = classify(images[:1], MeanBackend())
    timings = record.as_dict()["timings_ms"]
    assert set(timings) == {"read", "preprocess", "infer", "heatmap", "total"}
    assert timings["heatmap"] is None
    assert timings["total"] >= timings["read"] + timings["preprocess"]


def test_probabilities_are_the_softmax_also_of_large_logits() -> None:
    logits = np.array([[0, np.log(3)], [1000, 1000], [-1000, 1000]], np.float32)
    expected = [[0.25, 0.75], [0.5, 0.5], [0.0, 1.0]]
    np.testing.assert_allclose(softmax(logits), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batch_size": 5000}, "batch_size: got 5000"),
        ({"workers": 0}, "workers: got 0"),
        ({"threshold": 1.2}, "threshold: got 1.2"),
        ({"threshold": float("nan")}, "threshold: got nan"),
    ],
)
def test_wrong_settings_name_the_flag(settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        PredictSettings(**settings)
