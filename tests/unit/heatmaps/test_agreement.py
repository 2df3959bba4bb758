"""Whether two models look at the same places: figures, choice of images, verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_once import drawn_phantom
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deepcovid_edge.backends.base import Backend, Inference
from deepcovid_edge.cli.main import run
from deepcovid_edge.cli.verify import summary
from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.errors import UsageError
from deepcovid_edge.heatmaps.agreement import (
    MapComparison,
    choose_images,
    compare_maps,
    rank_correlation,
    spread_evenly,
    summarise,
    top_overlap,
)
from deepcovid_edge.heatmaps.windows import OcclusionSettings
from deepcovid_edge.imaging.synthetic.phantom import save_phantom
from deepcovid_edge.manifest import InputSpec, ModelManifest
from deepcovid_edge.models import find_model
from deepcovid_edge.reasons import WarningCode
from deepcovid_edge.validation.equivalence import EquivalenceRules
from deepcovid_edge.validation.verify import verify

FEW_VALUES = arrays.arrays(np.float32, (2, 40), elements=st.integers(-3, 3).map(float))
MANY_VALUES = arrays.arrays(
    np.float64, (2, 25), elements=st.floats(-1e6, 1e6, allow_subnormal=False)
)
WINDOWS = OcclusionSettings(window=8, stride=4)


@given(st.one_of(FEW_VALUES, MANY_VALUES))
def test_rank_correlation_is_scipys_with_ties_and_without(pair: np.ndarray) -> None:
    stats = pytest.importorskip("scipy.stats", reason="SciPy (extra export) is the reference")
    if any(np.ptp(values) == 0 for values in pair):
        return  # SciPy has no answer; the next test has
    expected = stats.spearmanr(pair[0], pair[1]).statistic
    assert rank_correlation(*pair) == pytest.approx(expected, abs=1e-9)


def test_a_map_that_ranks_nothing_agrees_with_its_like_alone() -> None:
    flat, steep = np.zeros((4, 4)), np.arange(16.0).reshape(4, 4)
    assert rank_correlation(flat, flat + 3) == 1.0
    assert rank_correlation(flat, steep) == rank_correlation(steep, flat) == 0.0


def test_what_lowers_no_order_lowers_no_correlation() -> None:
    values = np.random.default_rng(0).normal(size=(9, 7))
    assert rank_correlation(values, np.exp(values)) == pytest.approx(1.0)
    assert rank_correlation(values, -values) == pytest.approx(-1.0)


def test_overlap_counts_shared_pixels_of_the_top_tenths() -> None:
    first = np.arange(100.0).reshape(10, 10)
    assert top_overlap(first, first) == 1.0
    assert top_overlap(first, first[::-1]) == 0.0
    five_moved = first.copy()
    five_moved[9, :5], five_moved[0, :5] = first[0, :5], first[9, :5]
    assert top_overlap(first, five_moved) == pytest.approx(5 / 15)


def test_pixels_as_high_as_the_lowest_of_the_top_belong_to_it() -> None:
    level = np.zeros((10, 10))
    level[0] = level[1] = 1.0
    one_row = np.zeros((10, 10))
    one_row[0] = 1.0
    assert top_overlap(level, one_row) == pytest.approx(10 / 20)


def test_a_shift_is_measured_in_pixels_and_in_shares_of_the_longer_side() -> None:
    first, second = np.zeros((20, 50)), np.zeros((20, 50))
    first[2, 3] = second[5, 7] = 1.0
    found = compare_maps(first, second)
    assert found.peak_shift == 5.0
    assert found.peak_shift_share == 0.1


def test_the_summary_has_medians_and_the_worse_end() -> None:
    maps = [np.random.default_rng(seed).normal(size=(12, 12)) for seed in range(11)]
    found = [compare_maps(maps[0], values) for values in maps]
    figures = summarise(found)
    ranks = sorted(image.rank_correlation for image in found)
    shifts = sorted(image.peak_shift for image in found)
    assert figures["rank_correlation"] == {"median": ranks[5], "quantile_10": ranks[1]}
    assert figures["peak_shift"] == {"median": shifts[5], "quantile_90": shifts[9]}


@given(st.lists(st.booleans(), min_size=1), st.integers(1, 60))
def test_images_are_chosen_of_both_classes_alike(labels: list[bool], most: int) -> None:
    positive = np.array(labels)
    chosen = choose_images(positive, most)
    assert chosen == sorted(set(chosen)) == choose_images(positive, most)
    assert len(chosen) == min(most, len(labels))
    counts = [int(group[chosen].sum()) for group in (positive, ~positive)]
    if abs(counts[0] - counts[1]) > 1:
        fewer = int(np.argmin(counts))
        assert counts[fewer] == (positive, ~positive)[fewer].sum()


def test_images_are_spread_over_their_order() -> None:
    assert choose_images(np.repeat([True, False], 50), 10) == [*range(0, 100, 10)]


@pytest.mark.parametrize(
    ("length", "count", "chosen"), [(21, 20, 20), (296, 100, 100), (3, 5, 3), (7, 1, 1), (5, 0, 0)]
)
def test_as_many_positions_are_spread_as_are_asked_for(
    length: int, count: int, chosen: int
) -> None:
    found = spread_evenly(length, count)
    assert len(set(found)) == len(found) == chosen
    assert found[:1] == [0][:chosen]
    assert max(found, default=0) < length
    gaps = np.diff([*found, length])
    assert not found or max(gaps) - min(gaps) <= 1


def test_settings_that_compare_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="images: got 0"):
        MapComparison(images=0)
    with pytest.raises(UsageError, match="budget_ms: got 5"):
        MapComparison(occlusion=OcclusionSettings(budget_ms=5))


class Weighing:
    """Weighs the pixels of an image: its map is known beforehand."""

    name, sha256, on_cpu = "weighing", "00", True
    warnings: tuple[WarningCode, ...] = ()
    manifest = ModelManifest(
        name="weighing",
        architecture="none",
        classes=("non", "covid"),
        positive_class="covid",
        threshold=0.5,
        input=InputSpec(32, 32),
        training={"recipe": {"classes": {"non": ["normal"], "covid": ["covid"]}}},
    )

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def infer(self, batch: np.ndarray, *, activation_maps: bool = False) -> Inference:
        logit = np.tensordot(batch.astype(np.float64), self.weights, 2).astype(np.float32)
        return Inference(np.stack([np.zeros_like(logit), logit], axis=1))

    def close(self) -> None: ...

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, pictures: Any) -> list[LabelledImage]:
    folder = tmp_path_factory.mktemp("images")
    found = []
    for number in range(6):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), pictures.image(seed=number))
        found.append(LabelledImage(path, ("covid", "normal")[number % 2]))
    return found


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    draw = np.random.default_rng(0).normal(size=(32, 32))
    return cv2.GaussianBlur(draw, (0, 0), 2) / 1e6  # too little to turn a decision


def test_maps_alike_pass_and_their_figures_stand_in_the_report(
    images: list[LabelledImage], weights: np.ndarray
) -> None:
    sides = Weighing(weights), Weighing(weights)
    rules = EquivalenceRules(smallest_change=0.4, margin=1)
    found = verify(*sides, images, rules=rules, heatmaps=MapComparison(4, WINDOWS))
    report = found.as_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["verdict"] == "unchanged"
    maps = report["heatmap"]
    assert (maps["images"], maps["window"], maps["stride"]) == (4, 8, 4)
    assert [image["label"] for image in maps["by_image"]].count("covid") == 2
    assert maps["rank_correlation"]["median"] == pytest.approx(1.0)
    assert maps["peak_shift"]["quantile_90"] == 0.0
    assert "median rank correlation 1.000" in summary(found)


def test_a_candidate_that_looks_elsewhere_fails_only_when_maps_are_compared(
    images: list[LabelledImage], weights: np.ndarray
) -> None:
    sides = Weighing(weights), Weighing(weights[::-1].copy())
    rules = EquivalenceRules(
        max_flips=1, max_auc_change=1, smallest_change=0.4, paired_interval=False, margin=1
    )
    unasked = verify(*sides, images, rules=rules).as_dict()
    assert unasked["heatmap"] is None
    assert unasked["verdict"] == "unchanged"
    report = verify(*sides, images, rules=rules, heatmaps=MapComparison(6, WINDOWS)).as_dict()
    assert report["verdict"] == "changed"
    assert "expected at least 0.95" in report["failed"][-1]
    assert report["heatmap"]["rank_correlation"]["median"] < 0.5


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    for label, opacities in (("normal", 0), ("covid", 5)):
        (folder / label).mkdir()
        image = cv2.resize(drawn_phantom(0, opacities=opacities), (300, 300)).astype(np.uint8)
        save_phantom(image, folder / label / "image.png")
    return folder


def test_the_command_compares_maps_of_the_shipped_forms(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    int8 = find_model("squeezenet1_1-int8-cpu")
    output = tmp_path / "report.json"
    options = ["--heatmap", "--heatmap-images", "1", "--smallest-change", "1", "--margin", "1"]
    asked = ["verify", "squeezenet1_1", str(int8), str(phantoms), *options, "-o", str(output)]
    code = run(asked)
    report = json.loads(output.read_text("utf-8"))
    assert report["heatmap"]["images"] == 1
    assert report["heatmap"]["rank_correlation"]["median"] > 0.8
    assert code == (0 if report["verdict"] == "unchanged" else 3)
    assert "heat maps   of 1 images" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--heatmap-images", "--min-heatmap-correlation"])
def test_options_of_maps_without_maps_are_a_usage_error(
    option: str, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", "squeezenet1_1", "squeezenet1_1", str(phantoms), option, "1"]) == 2
    assert f"{option}: got 1" in capsys.readouterr().err
