"""Images that come twice: equal bytes keep their result, other bytes under a UID are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from drawn_once import drawn_phantom, phantom_files

from deepcovid_edge.backends import load_backend
from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.model import Model
from deepcovid_edge.models import find_model
from deepcovid_edge.pipeline.duplicates import Duplicates
from deepcovid_edge.pipeline.pipeline import PredictSettings
from deepcovid_edge.pipeline.reader import ImageReader, Reading

RUN = RunFacts("m", "ab" * 32, "onnxruntime-cpu", "fp32", ("non", "covid"), "covid", 0.5)


def classified(paths: Sequence[Path], duplicates: Duplicates) -> list[Prediction]:
    settings = PredictSettings(batch_size=2, workers=2)
    with load_backend(find_model("squeezenet1_1"), backend="onnxruntime") as backend:
        model = Model.of(backend, settings)
        reading = Reading(paths, ImageReader(backend.manifest.input))
        return [*chain.from_iterable(model.predict_groups(reading, duplicates=duplicates))]


def image(sha256: str, chance: float = 0.5) -> Prediction:
    chances = {"non": 1 - chance, "covid": chance}
    return Prediction("a.dcm", RUN, sha256 * 16, probabilities=chances)


def test_the_same_bytes_keep_their_first_result(tmp_path: Path) -> None:
    paths = phantom_files(tmp_path, count=3)
    again = [tmp_path / f"again{number}.png" for number in range(3)]
    for path, copy in zip(paths, again, strict=True):
        copy.write_bytes(path.read_bytes())
    duplicates = Duplicates()
    records = classified([*paths, *again], duplicates)
    assert duplicates.same == 3
    for first, second in zip(records[:3], records[3:], strict=True):
        assert second.path != first.path
        assert second.probabilities is first.probabilities
        assert second.warnings == first.warnings == ("W_SYNTHETIC",)


def test_another_image_under_a_known_uid_is_judged_and_told(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="needs extra dicom")
    pytest.importorskip("imagecodecs", reason="needs extra dicom")
    from dicom_files import dataset, written

    images = [np.ascontiguousarray(drawn_phantom(seed)[::4, ::4]) for seed in (0, 1)]
    for name, pixels, uid in (
        ("1", images[0], "1.2.3"),
        ("2-other-uid", images[1], "1.2.4"),
        ("3-same-bytes", images[0], "1.2.3"),
        ("4-other-bytes", images[1], "1.2.3"),
    ):
        (tmp_path / f"{name}.dcm").write_bytes(written(dataset(pixels, SOPInstanceUID=uid)))
    records = classified(sorted(tmp_path.iterdir()), Duplicates())
    told = ["W_DUP_UID" in record.warnings for record in records]
    assert told == [False, False, False, True]
    assert all(record.probabilities for record in records)
    assert records[2].sha256 == records[0].sha256
    assert records[3].probabilities == records[1].probabilities


def test_images_without_a_uid_are_never_taken_for_each_other() -> None:
    duplicates = Duplicates()
    for sha256 in ("0123", "4567"):
        assert duplicates.warned(image(sha256), "").warnings == ()


def test_an_image_that_was_refused_has_no_result_to_keep() -> None:
    duplicates = Duplicates()
    refused = replace(image("0123"), probabilities=None, reason="E_BLANK")
    assert duplicates.settled(refused) is refused
    assert duplicates.settled(image("0123", 0.7)).probability == 0.7
    assert duplicates.settled(image("0123", 0.6)).probability == 0.7


def test_memory_is_bounded_and_the_newest_are_remembered() -> None:
    duplicates = Duplicates(most=2)
    for sha256 in ("aaaa", "bbbb", "cccc"):
        duplicates.settled(image(sha256, 0.1))
    assert [duplicates.settled(image(name, 0.9)).probability for name in ("bbbb", "cccc")] == [
        0.1,
        0.1,
    ]
    assert duplicates.settled(image("aaaa", 0.9)).probability == 0.9
