"""The shortcut report: what is hidden is gone, and who reads the frame is found out.

Stand-in networks of one line each are classified here, since what they go by must be known.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("sklearn", reason="scikit-learn (extra export) computes the figures")

from deepcovid_edge.backends.base import Inference
from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import InputSpec, ModelManifest, ResizeRule
from deepcovid_edge.reasons import WarningCode
from deepcovid_export.evaluation.predictions import classify
from deepcovid_export.evaluation.results import AreaOfPatients
from deepcovid_export.evaluation.shortcuts import (
    hide_lungs,
    keep_lungs,
    measure_shortcuts,
    shortcut_summary,
    verdict,
    within_source,
)

SHAPES = st.tuples(st.integers(100, 300), st.integers(100, 300))
RULES = st.sampled_from(list(ResizeRule))
SIDES = st.floats(0.5, 0.95)


def image_of(pixels: NDArray[np.generic]) -> Radiograph:
    white = 255 if pixels.dtype == np.uint8 else 65535
    return Radiograph(pixels, white, "", "PNG")  # type: ignore[arg-type]


def noise(shape: tuple[int, int], seed: int, kind: type = np.uint8) -> NDArray[np.generic]:
    most = np.iinfo(kind).max
    return np.random.default_rng(seed).integers(0, most, shape, dtype=kind, endpoint=True)


def centre(spec: InputSpec, side: float, *, slack: int) -> NDArray[np.bool_]:
    """The rectangle on the network's input, larger (slack > 0) or smaller by some pixels."""
    inside = np.zeros((spec.height, spec.width), bool)
    rows, columns = (round(length * (1 - side) / 2) - slack for length in (spec.height, spec.width))
    inside[rows : spec.height - rows, columns : spec.width - columns] = True
    return inside


@given(SHAPES, RULES, SIDES, st.sampled_from([np.uint8, np.uint16]))
def test_nothing_of_the_lungs_is_left_when_they_are_hidden(
    shape: tuple[int, int], rule: ResizeRule, side: float, kind: type
) -> None:
    """Two images that differ in the rectangle alone become one and the same."""
    spec = InputSpec(64, 64, rule)
    first, other = noise(shape, 1, kind), noise(shape, 2, kind)
    hidden = hide_lungs(image_of(first), spec, side).pixels
    other[hidden == first] = first[hidden == first]
    assert np.array_equal(hidden, hide_lungs(image_of(other), spec, side).pixels)


@given(SHAPES, RULES, SIDES)
def test_nothing_of_the_frame_is_left_when_only_the_lungs_are_kept(
    shape: tuple[int, int], rule: ResizeRule, side: float
) -> None:
    spec = InputSpec(64, 64, rule)
    first, other = noise(shape, 1), noise(shape, 2)
    kept = keep_lungs(image_of(first), spec, side).pixels
    other[kept == first] = first[kept == first]
    assert np.array_equal(kept, keep_lungs(image_of(other), spec, side).pixels)


@given(SHAPES, st.sampled_from([ResizeRule.CENTRE_CROP, ResizeRule.SQUASH]), SIDES)
def test_the_rectangle_is_the_centre_of_what_the_network_sees(
    shape: tuple[int, int], rule: ResizeRule, side: float
) -> None:
    spec = InputSpec(64, 64, rule)
    image = image_of(noise(shape, 3))
    whole, hidden, only = (
        prepare(it, spec).astype(int)
        for it in (image, hide_lungs(image, spec, side), keep_lungs(image, spec, side))
    )
    inner, outer = centre(spec, side, slack=-1), ~centre(spec, side, slack=1)
    assert np.ptp(hidden[inner]) <= 1
    assert np.array_equal(hidden[outer], whole[outer])
    assert np.array_equal(only[inner], whole[inner])
    assert np.ptp(only[outer]) <= 1


def test_the_image_itself_is_not_changed() -> None:
    pixels = noise((120, 140), 5)
    image = image_of(pixels.copy())
    hide_lungs(image, InputSpec(64, 64), 0.8)
    keep_lungs(image, InputSpec(64, 64), 0.8)
    assert np.array_equal(image.pixels, pixels)


class MeanReader:
    """Its logit is the mean grey of a part of the image: of the frame, or of the lungs."""

    sha256 = "0" * 64
    name = "stand-in-cpu"
    warnings: tuple[WarningCode, ...] = ()
    on_cpu = True
    manifest = ModelManifest(
        "reader", "reader", ("non", "covid"), "covid", 0.5, input=InputSpec(64, 64)
    )

    def __init__(self, *, frame: bool) -> None:
        inside = centre(self.manifest.input, 0.8, slack=-2)
        self._seen = ~centre(self.manifest.input, 0.9, slack=0) if frame else inside

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        level = batch[:, self._seen].mean(axis=1) / 20 - 6
        return Inference(np.stack([-level, level], axis=1).astype(np.float32))

    def close(self) -> None: ...

    def __enter__(self) -> MeanReader:
        return self

    def __exit__(self, *_: object) -> None: ...


def write_images(folder: Path, *, frame: int, lungs: int) -> list[LabelledImage]:
    """Sixty images of two shapes; with covid, frame and lungs are so many grey levels brighter."""
    draw = np.random.default_rng(0)
    written = []
    for number in range(60):
        positive = number % 2 == 0
        pixels = draw.normal(90, 25, (120, 120 if number % 3 else 150))
        pixels += draw.normal(frame * positive, 6)
        inside = (slice(15, -15), slice(15, -15))
        pixels[inside] = draw.normal(110 + lungs * positive, 25, pixels[inside].shape)
        path = folder / f"{number:02d}.png"
        cv2.imwrite(str(path), np.clip(pixels, 0, 255).astype(np.uint8))
        site = ("ieee8023 (a.org) via web", "ieee8023 (b.org) via web", "", "Hospital")[number % 4]
        label = "covid" if positive else "non"
        written.append(LabelledImage(path, label, patient=f"p{number // 2}", source=site))
    return written


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledImage]:
    """Images whose frame tells the class as well as their lungs do."""
    return write_images(tmp_path_factory.mktemp("images"), frame=25, lungs=25)


@pytest.fixture(scope="module")
def fair_images(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledImage]:
    """Images of one source: their lungs alone tell the class."""
    return write_images(tmp_path_factory.mktemp("fair"), frame=0, lungs=25)


def test_a_network_that_reads_the_frame_is_found_out(images: list[LabelledImage]) -> None:
    found = measure_shortcuts(MeanReader(frame=True), images)
    assert found.lungs_hidden.auc == found.whole.auc
    assert found.whole.auc is not None
    assert found.whole.auc > 0.95
    assert found.reads_the_source is True
    assert found.verdict.startswith("Reads the source")


def test_a_network_that_reads_the_lungs_is_not_accused(fair_images: list[LabelledImage]) -> None:
    found = measure_shortcuts(MeanReader(frame=False), fair_images)
    assert found.whole.auc == found.lungs_only.auc == 1
    assert found.lungs_hidden.auc is not None
    assert found.lungs_hidden.auc < 0.7
    assert found.reads_the_source is False


def test_areas_are_told_apart_by_shape_and_by_source(images: list[LabelledImage]) -> None:
    found = measure_shortcuts(MeanReader(frame=True), images)
    assert {name: group.images for name, group in found.by_shape.items()} == {
        "square": 40,
        "landscape": 20,
    }
    assert set(found.within_source) == {"ieee8023 (all sites)"}


def test_sites_of_a_collection_are_classified_together(images: list[LabelledImage]) -> None:
    """One site has covid alone, the other none: together they have both."""
    classified = classify(MeanReader(frame=True), images)
    groups = within_source(classified)
    assert set(groups) == {"ieee8023 (all sites)"}
    assert groups["ieee8023 (all sites)"].images == 30
    assert groups["ieee8023 (all sites)"].positives == 15


def areas(
    value: float | None,
    interval: tuple[float, float] | None,
    patients: tuple[float, float] | None = None,
) -> AreaOfPatients:
    return AreaOfPatients(60, 30, value, interval, patients)


def test_the_verdict_says_yes_no_or_too_few() -> None:
    assert verdict(areas(0.8, (0.72, 0.88)), 0.7)[0] is True
    assert verdict(areas(0.8, (0.6, 0.95)), 0.7)[0] is None
    assert verdict(areas(0.65, (0.55, 0.75)), 0.7)[0] is False
    assert verdict(areas(None, None), 0.7)[0] is None
    assert verdict(areas(0.8, (0.72, 0.88), (0.65, 0.9)), 0.7)[0] is None


def test_many_images_of_few_patients_prove_nothing(images: list[LabelledImage]) -> None:
    few = [replace(image, patient=f"{image.label}{n % 8}") for n, image in enumerate(images)]
    found = measure_shortcuts(MeanReader(frame=True), few)
    assert found.reads_the_source is None
    assert found.verdict.startswith("May read the source: with the lungs hidden the AUC is ")
    assert found.verdict.endswith(", all above 0.70, but a class has fewer than 10 patients.")
    value, interval = 0.65, (0.55, 0.69)
    assert verdict(areas(value, interval), 0.7)[0] is False
    reads, sentence = verdict(areas(value, interval), 0.7, few_patients=True)
    assert reads is None
    assert sentence.startswith("Cannot be told: with the lungs hidden the AUC is 0.650 ")
    assert sentence.endswith(", not above 0.70, but a class has fewer than 10 patients.")
    unknown = [replace(image, patient="") for image in images]
    assert measure_shortcuts(MeanReader(frame=True), unknown).reads_the_source is True


def test_the_summary_travels_in_a_manifest(images: list[LabelledImage]) -> None:
    found = measure_shortcuts(MeanReader(frame=True), images)
    summary = shortcut_summary(found, "val", "f" * 64)
    manifest = ModelManifest(
        "net", "net", ("non", "covid"), "covid", 0.5, training={"shortcuts": summary}
    )
    stored = ModelManifest.from_json(manifest.to_json()).training["shortcuts"]
    assert stored == summary
    assert stored["reads_the_source"] is True
    assert len(manifest.to_json()) < 2000
