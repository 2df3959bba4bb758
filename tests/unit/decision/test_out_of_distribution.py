"""Images unlike the training images are not assessed: limits, reasons, and what is let through.

A fake backend says how unlike images are; the out-of-distribution limits of a real network is
tested beside its graph.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_once import drawn_phantom, phantom_files

from deepcovid_edge.backends.base import Inference
from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.decision.out_of_distribution import OodLimits, check_output
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.errors import DataError, ModelFileError, UsageError
from deepcovid_edge.manifest import InputSpec, ModelManifest
from deepcovid_edge.model import Model
from deepcovid_edge.pipeline.pipeline import PredictSettings
from deepcovid_edge.reasons import WarningCode
from deepcovid_edge.validation.equivalence import EquivalenceRules
from deepcovid_edge.validation.site_check import site_check
from deepcovid_edge.validation.verify import verify

LIMITS = {"parts": ["turned", "unrecognisable"], "limit": 1.5, "strict_limit": 1.0}
MANIFEST = ModelManifest(
    name="limited",
    architecture="none",
    classes=("non", "covid"),
    positive_class="covid",
    threshold=0.5,
    input=InputSpec(32, 32),
    ood=LIMITS,
)
WITHOUT = replace(MANIFEST, name="open", ood={})


class Unlike:
    """Says of every image that it is so unlike, in both parts."""

    name, sha256, on_cpu = "fake-cpu", "0" * 64, True
    warnings: tuple[WarningCode, ...] = ()

    def __init__(self, *ood_scores: float, manifest: ModelManifest = MANIFEST) -> None:
        self.manifest, self._unlikeness = manifest, ood_scores

    def infer(self, batch: np.ndarray, *, activation_maps: bool = False) -> Inference:
        rows = np.array([self._unlikeness] * len(batch), np.float32)
        logits = np.tile(np.array([0, 1], np.float32), (len(batch), 1))
        return Inference(logits, None, rows if self._unlikeness else None)

    def close(self) -> None: ...

    def __enter__(self) -> Unlike:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that does not say that it is synthetic."""
    path = tmp_path_factory.mktemp("image") / "image.png"
    cv2.imwrite(str(path), cv2.resize(drawn_phantom(0), (200, 200)))
    return path


def classify(path: Path, backend: Any, **settings: Any) -> Prediction:
    chosen = PredictSettings(**settings)
    (record,) = Model.of(backend, chosen).predict([path])
    return record


@pytest.mark.parametrize(
    ("ood_scores", "reason"),
    [
        ((-1.0, 1.5), None),
        ((0.0, 1.51), "E_OOD"),
        ((1.51, 0.0), "E_ORIENT"),
        ((1.6, 9.0), "E_OOD"),
        ((9.0, 1.6), "E_ORIENT"),
        ((float("nan"), 0.0), "E_RESULT"),
        ((0.0, float("inf")), "E_RESULT"),
    ],
)
def test_an_image_beyond_the_limit_gets_the_reason_of_its_highest_part(
    image: Path, ood_scores: tuple[float, float], reason: str | None
) -> None:
    assert classify(image, Unlike(*ood_scores)).reason == reason


def test_a_refusal_carries_no_number(image: Path) -> None:
    values = classify(image, Unlike(0, 7)).as_dict()
    assert (values["status"], values["reason"]) == ("not_assessed", "E_OOD")
    assert values["message"] == "Does not look like the X-rays this model learned from."
    for name in ("probability", "probabilities", "decision", "heatmap", "regions"):
        assert values[name] is None


def test_images_are_let_through_with_a_warning_where_that_is_asked_for(image: Path) -> None:
    record = classify(image, Unlike(0, 7), ood="warn")
    assert record.decision == "positive"
    assert record.warnings == ("W_OOD",)
    assert classify(image, Unlike(0, 1), ood="warn").warnings == ()


def test_what_is_no_number_is_never_let_through(image: Path) -> None:
    assert classify(image, Unlike(0, float("nan")), ood="warn").reason == "E_RESULT"


def test_synthetic_images_are_let_through_with_both_warnings(tmp_path: Path) -> None:
    (sample,) = phantom_files(tmp_path, count=1)
    record = classify(sample, Unlike(0, 7))
    assert record.decision == "positive"
    assert record.warnings == ("W_SYNTHETIC", "W_OOD")


def test_the_limit_is_stricter_for_an_image_whose_view_is_not_stated() -> None:
    ood = OodLimits.of(MANIFEST)
    assert ood is not None
    between = [1.2, 0.0]
    assert ood.reason(between) is None
    assert ood.reason(between, ("W_LOSSY",)) is None
    found = ood.reason(between, ("W_LOSSY", "W_NO_VIEW"))
    assert found is not None
    assert found.code == "E_ORIENT"


def test_a_picture_like_that_of_a_child_is_not_assessed_by_the_same_limit_in_every_view() -> None:
    ood = OodLimits(("turned", "unrecognisable", "child"), 1.5, 1.0)
    for warnings in ((), ("W_NO_VIEW",)):
        assert ood.reason([0.0, 0.9, 1.4], warnings) is None
        found = ood.reason([0.0, 0.9, 1.6], warnings)
        assert found is not None
        assert found.code == "E_AGE"
    found = ood.reason([0.0, 1.2, 1.4], ("W_NO_VIEW",))  # the child's limit is not the strict one
    assert found is not None
    assert found.code == "E_OOD"


def test_a_model_without_a_gate_judges_any_image(image: Path) -> None:
    assert OodLimits.of(WITHOUT) is None
    assert classify(image, Unlike(manifest=WITHOUT)).decision == "positive"


def test_a_wrong_choice_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"ood: got 'off', expected reject or warn"):
        PredictSettings(ood="off")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limit": 0.5}, "0 < strict <= limit"),
        ({"strict_limit": 0}, "0 < strict <= limit"),
        ({"limit": float("inf")}, "0 < strict <= limit"),
        ({"parts": []}, "expected some of"),
        ({"parts": ["sideways"]}, "expected some of"),
        ({"limit": "high"}, "expected int or float"),
    ],
)
def test_limits_that_are_none_stop_the_run(image: Path, changes: dict[str, Any], said: str) -> None:
    wrong = replace(MANIFEST, ood={**LIMITS, **changes})
    with pytest.raises(ModelFileError, match=said):
        classify(image, Unlike(0, 0, manifest=wrong))


def test_a_file_whose_manifest_states_a_gate_must_have_its_output() -> None:
    check_output(MANIFEST, ["logits", "ood_scores"], "a.onnx")
    check_output(WITHOUT, ["logits"], "a.onnx")
    with pytest.raises(ModelFileError, match=r"a\.onnx: no output ood_scores"):
        check_output(MANIFEST, ["logits"], "a.onnx")


def test_a_manifest_keeps_its_limits() -> None:
    assert ModelManifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert ModelManifest.from_json(WITHOUT.to_json()).ood == {}


def two_images(image: Path) -> list[LabelledImage]:
    """One of each class, which differ in a pixel: a content counts once."""
    other = image.with_name("other.png")
    pixels = cv2.resize(drawn_phantom(0), (200, 200))
    pixels[0, 0] ^= 1
    cv2.imwrite(str(other), pixels)
    return [LabelledImage(image, "covid"), LabelledImage(other, "non")]


def test_verify_counts_where_the_gates_differ_and_judges_all_images(image: Path) -> None:
    images = two_images(image)
    report = verify(Unlike(0, 7), Unlike(0, 1), images).as_dict()
    assert report["ood"] == {"reference": 2, "candidate": 0, "differ": 2}
    assert report["images"] == 2
    assert report["verdict"] == "changed"
    sentence = "out of distribution: 100.00% of the images for one model alone, allowed 1.00%"
    assert sentence in report["failed"]
    rules = EquivalenceRules(max_flips=1.0)
    assert verify(Unlike(0, 7), Unlike(0, 1), images, rules=rules).failed == ()


@pytest.mark.parametrize(
    "change", [{"limit": 1.6}, {"strict_limit": 0.2}, {"parts": ["unrecognisable", "turned"]}]
)
def test_verify_finds_other_limits_changed_whatever_the_images_are(
    image: Path, change: dict[str, Any]
) -> None:
    other = replace(MANIFEST, ood={**LIMITS, **change})
    report = verify(Unlike(0, 0), Unlike(0, 0, manifest=other), two_images(image)).as_dict()
    assert report["ood"]["differ"] == 0
    assert report["verdict"] == "changed"
    assert report["failed"][0].startswith("out-of-distribution limits: candidate has (")


def test_verify_finds_a_form_changed_that_lost_its_ood(image: Path) -> None:
    images = two_images(image)
    report = verify(Unlike(0, 0), Unlike(manifest=WITHOUT), images).as_dict()
    assert report["verdict"] == "changed"
    assert report["failed"][0].startswith("out-of-distribution limits: candidate has none, ref")
    assert report["ood"] is None


def test_site_check_treats_them_as_the_model_does(image: Path) -> None:
    """And measures the model's own threshold, 0.5, whatever the given model decides by."""
    images, unlike = two_images(image), Unlike(0, 7)
    with pytest.raises(DataError, match="no image without covid could be assessed"):
        site_check(Model.of(unlike), images, name="here")
    given = Model.of(unlike, PredictSettings(threshold=0.9, ood="warn"))
    report = site_check(given, images, name="here")
    assert (report.data.images, report.data.warnings) == (2, {"W_OOD": 2})
    assert report.threshold == 0.5
    assert [counts["positive"] for counts in report.decisions.values()] == [1, 1]
