"""The equivalence check: what it counts, when it fails, and when it says that the images are too
few.

Backends with known answers stand in: the equivalence check is what is tested. Real models are
compared in tests/integration.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deepcovid_edge.backends.base import Backend, Inference
from deepcovid_edge.cli.verify import summary
from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.errors import DataError, ModelFileError, UsageError
from deepcovid_edge.heatmaps.agreement import MapComparison
from deepcovid_edge.heatmaps.windows import OcclusionSettings
from deepcovid_edge.manifest import IndeterminateRange, InputSpec, ModelManifest
from deepcovid_edge.reasons import WarningCode
from deepcovid_edge.validation import verify as verify_module
from deepcovid_edge.validation.equivalence import EquivalenceRules
from deepcovid_edge.validation.verify import Verification, verify

MANIFEST = ModelManifest(
    name="parent",
    architecture="none",
    classes=("non", "covid"),
    positive_class="covid",
    threshold=0.5,
    input=InputSpec(32, 32),
    training={"recipe": {"classes": {"non": ["normal"], "covid": ["covid", "covid-19"]}}},
)

NO_NUMBERS = {f"g{grey}": float("nan") for grey in range(256)}


class Answering:
    """Answers each image by the grey level of its middle, after `change`."""

    on_cpu = True
    sha256 = "00"
    warnings: tuple[WarningCode, ...] = ()

    def __init__(self, name: str, manifest: ModelManifest = MANIFEST, **turned: float) -> None:
        self.name, self.manifest, self.turned = name, manifest, turned

    def infer(self, batch: np.ndarray, *, activation_maps: bool = False) -> Inference:
        level = batch[:, 16, 16].astype(np.float32)
        logit = (level - 127.5) / 20
        for grey, new in self.turned.items():
            logit[level == int(grey.removeprefix("g"))] = new
        return Inference(np.stack([np.zeros_like(logit), logit], axis=1))

    def close(self) -> None: ...

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None: ...


def image_of(path: Path, grey: int, number: int = 0) -> Path:
    """An image of one grey level in its middle; the number makes its content its own."""
    pixels = np.full((128, 128), grey, np.uint8)
    pixels[:32] = np.linspace(20, 230, 128).astype(np.uint8)  # contrast, away from the middle
    pixels[-32:] = np.linspace(230, 20, 128).astype(np.uint8)
    pixels[0, 0] = number
    cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledImage]:
    """110 positives (grey 135 to 189) and 110 negatives (66 to 120), two images a grey level."""
    folder = tmp_path_factory.mktemp("images")
    found = []
    for number in range(110):
        for label, first, source in (("covid-19", 135, "here"), ("normal", 66, "there")):
            path = image_of(folder / f"{label}{number}.png", first + number // 2, number)
            found.append(LabelledImage(path, label, source=source))
    return found


def verified(images: list[LabelledImage], candidate: Answering, **rules: Any) -> Verification:
    chosen = EquivalenceRules(**rules) if rules else None
    found = verify(Answering("reference"), candidate, images, rules=chosen)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False)) == found.as_dict()
    return found


def report_of(images: list[LabelledImage], candidate: Answering, **rules: Any) -> dict[str, Any]:
    return verified(images, candidate, **rules).as_dict()


def test_an_equal_candidate_is_unchanged(images: list[LabelledImage]) -> None:
    found = verified(images, Answering("same"))
    report = found.as_dict()
    assert report["verdict"] == "unchanged"
    assert report["flips"]["count"] == 0
    assert report["sensitivity"]["reference"]["value"] == 1.0
    assert report["auc"] == {
        "reference": 1.0,
        "candidate": 1.0,
        "change": 0.0,
        "interval_95": None,  # of equal ranks
    }
    assert "AUC         1.0000 -> 1.0000, change +0.0000 [-]" in summary(found)
    assert "verdict: unchanged" in summary(found)


def test_flips_are_counted_listed_and_named_in_the_verdict(images: list[LabelledImage]) -> None:
    found = verified(images, Answering("worse", g140=-1.0, g150=-1.0))
    report = found.as_dict()
    assert report["verdict"] == "changed"
    assert report["flips"]["count"] == 4
    assert report["mcnemar"]["lost"] == 4
    assert report["sensitivity"]["change"] == pytest.approx(-4 / 110)
    assert sorted(Path(image["path"]).name for image in report["flipped"]) == [
        "covid-1910.png",
        "covid-1911.png",
        "covid-1930.png",
        "covid-1931.png",
    ]
    assert "1.82% of the decisions turned, allowed 1.00%" in report["failed"][0]
    assert report["by_source"]["here"]["flips"] == 4
    assert report["by_source"]["there"]["flips"] == 0
    assert report["by_label"]["covid-19"]["called_positive"] == {"reference": 110, "candidate": 106}
    assert "turned: " in summary(found)


def ranged(low: float, high: float) -> ModelManifest:
    return replace(MANIFEST, indeterminate_range=IndeterminateRange(low, high, {}))


def test_decisions_of_infer_are_counted_with_the_indeterminate_range(
    images: list[LabelledImage],
) -> None:
    """Grey levels 120 and 135 are in the range; 150 leaves for it, 135 crosses the threshold."""
    candidate = Answering("candidate", ranged(0.4, 0.6), g150=0.1, g135=-0.1)
    found = verify(Answering("reference", ranged(0.4, 0.6)), candidate, images)
    assert found.verdict == "insufficient"
    assert found.flips.count == 2
    assert found.as_dict()["decisions"] == {
        "differ": 2,
        "reference": {"positive": 108, "negative": 108, "indeterminate": 4},
        "candidate": {"positive": 106, "negative": 108, "indeterminate": 6},
    }
    assert "as `infer`  2 differ with the indeterminate range: 108 positive," in summary(found)
    assert verify(Answering("reference"), Answering("same"), images).decisions is None


@pytest.mark.parametrize(
    ("before", "now", "said", "counts"),
    [
        (ranged(0.4, 0.6), ranged(0.01, 0.99), "0.01 to 0.99, reference 0.4 to 0.6", (4, 220)),
        (ranged(0.4, 0.6), MANIFEST, "none, reference 0.4 to 0.6", (4, 0)),
    ],
    ids=["wider", "lost"],
)
def test_another_indeterminate_range_is_a_change_and_each_model_decides_by_its_own(
    images: list[LabelledImage],
    before: ModelManifest,
    now: ModelManifest,
    said: str,
    counts: tuple[int, int],
) -> None:
    found = verify(Answering("reference", before), Answering("same", now), images)
    assert (found.verdict, found.flips.count) == ("changed", 0)
    assert found.failed == (f"indeterminate range: candidate has {said}",)
    assert found.decisions
    sides = (found.decisions.reference, found.decisions.candidate)
    assert tuple(side["indeterminate"] for side in sides) == counts
    assert found.decisions.differ == abs(counts[1] - counts[0])


def test_a_checkpoint_has_no_limits_yet(images: list[LabelledImage]) -> None:
    found = verify(Answering("reference"), Answering("same", ranged(0.4, 0.6)), images)
    assert found.verdict == "unchanged"
    assert found.decisions
    assert found.decisions.candidate["indeterminate"] == found.decisions.differ == 4


def test_how_a_range_was_chosen_decides_nothing(images: list[LabelledImage]) -> None:
    chosen = replace(MANIFEST, indeterminate_range=IndeterminateRange(0.4, 0.6, {"rule": "x"}))
    found = verify(Answering("reference", ranged(0.4, 0.6)), Answering("same", chosen), images)
    assert found.verdict == "unchanged"


def test_small_differences_that_turn_nothing_pass(images: list[LabelledImage]) -> None:
    report = report_of(images, Answering("near", g140=0.6))
    assert report["verdict"] == "unchanged"
    assert report["probability"]["max"] > 0


def test_a_shift_of_the_ranking_fails_by_the_auc_alone(images: list[LabelledImage]) -> None:
    moved: dict[str, Any] = {f"g{grey}": 0.01 for grey in range(135, 190)} | {
        "g120": -0.01,
        "g119": 0.0099999,
    }
    report = report_of(images, Answering("flat", **{**moved, "g118": -0.001}))
    assert report["flips"]["count"] == 2
    lenient = report_of(
        images, Answering("odd", **{**moved, "g119": 0.5}), max_flips=0.05, max_auc_change=0.001
    )
    assert lenient["verdict"] == "changed"
    assert any(sentence.startswith("AUC") for sentence in lenient["failed"])


def test_too_few_images_cannot_be_unchanged(images: list[LabelledImage]) -> None:
    found = verified(images[:40], Answering("same"))
    report = found.as_dict()
    assert report["verdict"] == "insufficient"
    assert report["missing"] == {
        "positive": {"images": 20, "needed": 100},
        "negative": {"images": 20, "needed": 100},
    }
    assert "100 are needed, so that one is at most 1% of them" in summary(found)
    rules = {"smallest_change": 0.05, "margin": 0.2}
    assert report_of(images[:40], Answering("same"), **rules)["verdict"] == "unchanged"


def test_a_loss_that_the_images_do_not_rule_out_leaves_the_verdict_open(
    images: list[LabelledImage],
) -> None:
    """Two of 110 positive images are lost: 0.9 % turned, and the AUC is the same."""
    worse = Answering("worse", g135=-0.1)
    found = verified(images, worse)
    assert (found.verdict, found.failed, found.missing) == ("insufficient", (), {})
    (sentence,) = found.unproved
    assert sentence == (
        "sensitivity: may be 6.4 points lower [-6.39%, +1.80%], allowed 5: more positive images "
        "are needed"
    )
    assert f"not proved: {sentence}" in summary(found)
    assert verified(images, worse, margin=0.07).verdict == "unchanged"
    lost_negatives = verified(images, Answering("worse", g120=0.1))
    assert lost_negatives.unproved[0].startswith("specificity: may be 6.4 points lower")


def test_a_significant_loss_alone_is_a_change(images: list[LabelledImage]) -> None:
    """Ten of 110 positive images are lost, which no other rule is about here."""
    turned: dict[str, Any] = {f"g{grey}": -0.1 for grey in range(135, 140)}
    worse = Answering("worse", **turned)
    lenient = {"max_flips": 0.5, "max_auc_change": 0.5, "margin": 0.5}
    found = verified(images, worse, **lenient)
    assert (found.verdict, found.unproved) == ("changed", ())
    (sentence,) = found.failed
    assert sentence.startswith("sensitivity: changed by -9.09% [-")
    assert verified(images, worse, **lenient, paired_interval=False).verdict == "unchanged"


def test_maps_whose_likeness_is_no_number_are_a_change(
    images: list[LabelledImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    likeness = {"rank_correlation": {"median": float("nan")}}
    monkeypatch.setattr(verify_module, "summarise", lambda _: likeness)
    maps = MapComparison(2, OcclusionSettings(16, 16))
    found = verify(Answering("reference"), Answering("same"), images, heatmaps=maps)
    assert found.verdict == "changed"
    assert found.failed == ("heat maps: median rank correlation nan, expected at least 0.95",)


def test_too_few_images_do_not_hide_a_change(images: list[LabelledImage]) -> None:
    worse = Answering("worse", g140=-1.0)
    assert report_of(images[:40], worse)["verdict"] == "changed"


def test_another_threshold_is_a_change(images: list[LabelledImage]) -> None:
    moved = Answering("moved", replace(MANIFEST, threshold=0.4))
    assert "threshold: candidate has 0.4" in report_of(images, moved)["failed"][0]


def test_rules_come_from_the_manifest_and_can_be_given(images: list[LabelledImage]) -> None:
    strict = replace(MANIFEST, equivalence={"max_flips": 0.0, "unknown": 1})
    assert EquivalenceRules.of(strict).max_flips == 0.0
    assert EquivalenceRules.of(strict, max_flips=0.5, max_auc_change=None) == EquivalenceRules(
        max_flips=0.5
    )
    with pytest.raises(UsageError, match=r"equivalence\.max_flips: got 7"):
        EquivalenceRules(max_flips=7)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ("covid", "non")},
        {"input": InputSpec(64, 64)},
        {"positive_class": "non"},
    ],
)
def test_models_of_another_task_are_not_compared(
    images: list[LabelledImage], change: dict[str, Any]
) -> None:
    with pytest.raises(ModelFileError, match=next(iter(change))):
        report_of(images, Answering("other", replace(MANIFEST, **change)))


def test_images_that_cannot_be_read_are_left_out_and_named(
    images: list[LabelledImage], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    report = report_of([*images, LabelledImage(broken, "normal")], Answering("same"))
    assert report["images"] == 220
    assert report["not_assessed"] == {str(broken): "E_NOT_IMAGE"}
    with pytest.raises(DataError, match="none of 1 images"):
        report_of([LabelledImage(broken, "normal")], Answering("same"))


def test_copies_of_an_image_are_no_further_evidence(
    images: list[LabelledImage], tmp_path: Path
) -> None:
    copies = [
        replace(image, path=Path(shutil.copy(image.path, tmp_path / f"{image.label}{number}.png")))
        for image in images[:2]
        for number in range(110)
    ]
    report = report_of([*copies, copies[0]], Answering("same"))
    assert (report["images"], report["repeated"]) == (2, 219)
    assert report["verdict"] == "insufficient"
    assert (
        report["data_sha256"] == report_of([copies[0], copies[110]], Answering("s"))["data_sha256"]
    )
    with pytest.raises(DataError, match="the same image is labelled covid-19 and normal"):
        report_of([*images, replace(copies[0], label="normal")], Answering("same"))


def test_a_smallest_change_of_zero_would_ask_for_no_image_and_is_refused() -> None:
    with pytest.raises(UsageError, match="smallest_change: got 0, expected more than 0"):
        EquivalenceRules(smallest_change=0.0)


def test_one_class_alone_gives_no_auc_and_no_verdict(images: list[LabelledImage]) -> None:
    report = report_of([image for image in images if image.label == "normal"], Answering("same"))
    assert report["auc"] is report["sensitivity"] is None
    assert report["verdict"] == "insufficient"


@pytest.mark.parametrize("no_number", [float("nan"), float("inf"), float("-inf")])
def test_a_result_that_is_no_number_turns_the_decision(
    images: list[LabelledImage], no_number: float
) -> None:
    found = verified(images, Answering("overflows", g70=no_number))
    assert found.verdict == "changed"
    assert "results: 2 of 220 of the candidate are no numbers" in found.failed[0]
    assert "E_RESULT" in found.failed[0]
    assert (found.flips.count, found.mcnemar.lost) == (2, 2)
    assert [image.candidate for image in found.flipped] == [None, None]
    assert found.by_label["normal"].max_probability_difference == 1
    assert found.specificity
    assert found.specificity.candidate.successes == 108
    assert found.logits
    assert found.logits.max == 0


def test_a_candidate_without_any_number_is_changed_and_compared_in_nothing(
    images: list[LabelledImage],
) -> None:
    found = verified(images, Answering("broken", MANIFEST, **NO_NUMBERS))
    assert (found.verdict, found.flips.count) == ("changed", 220)
    assert (found.logits, found.probability, found.auc) == (None, None, None)
    assert "no number" in summary(found)


def test_an_image_without_a_result_of_the_reference_is_not_compared(
    images: list[LabelledImage],
) -> None:
    found = verify(Answering("reference", g70=float("nan")), Answering("candidate"), images)
    assert found.images == 218
    assert set(found.not_assessed.values()) == {"E_RESULT"}
    with pytest.raises(DataError, match="no result of the reference is a number"):
        verify(Answering("reference", MANIFEST, **NO_NUMBERS), Answering("candidate"), images)


def test_soft_labels_are_not_compared_and_said(images: list[LabelledImage]) -> None:
    """A reader's `atypical` says neither yes nor no: `site-check` takes such a folder too."""
    training = {"recipe": {**MANIFEST.training["recipe"], "soft_labels": {"atypical": 0.2}}}
    manifest = replace(MANIFEST, training=training)
    before, now = Answering("a", manifest), Answering("b", manifest, g135=-5.0)
    soft = [replace(images[0], label="atypical"), replace(images[2], label="atypical")]
    seen: list[int] = []
    found = verify(before, now, [*soft, *images], progress=seen.append)
    alone = verify(before, now, images)
    assert found.uncounted == {"atypical": 2}
    assert replace(found, uncounted={}) == replace(alone, uncounted={})
    assert sum(seen) == len(images) + 2
    assert "not compared: 2 images (atypical)" in summary(found)
    assert "not compared" not in summary(alone)
    with pytest.raises(DataError, match="none of 0 images"):
        verify(before, now, soft)
