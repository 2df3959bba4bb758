"""What the heat maps' benchmarks stored: the runtime quotes it, and it shows what is claimed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepcovid_edge.heatmaps.coarse_to_fine import EXPECTED, expected_agreement
from deepcovid_edge.heatmaps.heatmap import METHODS
from deepcovid_edge.heatmaps.windows import BASELINES, OcclusionSettings

STORED = Path(__file__).parents[3] / "benchmarks/results/heatmap"


def stored(name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((STORED / f"{name}.json").read_text("utf-8"))
    return figures


@pytest.mark.parametrize("baseline", BASELINES)
def test_expected_agreement_is_what_was_measured(baseline: str) -> None:
    rows = {row["share"]: row for row in stored("budget-squeezenet1_1")["baselines"][baseline]}
    assert EXPECTED[baseline][0][0] == min(rows)
    for share, median, tenth in EXPECTED[baseline]:
        assert 0 <= rows[share]["median"] - median < 0.001
        assert 0 <= rows[share]["quantile_10"] - tenth < 0.001


def test_expected_agreement_is_that_of_the_largest_share_reached() -> None:
    settings = OcclusionSettings()
    first, second, *_ = EXPECTED["black"]
    assert expected_agreement(49 / 625, settings) == first[1:]
    assert expected_agreement(second[0] - 0.01, settings) == first[1:]
    assert expected_agreement(second[0], settings) == second[1:]


def test_nothing_is_expected_of_windows_that_were_not_measured() -> None:
    assert expected_agreement(0.5, OcclusionSettings(window=64)) is None
    assert expected_agreement(0.5, OcclusionSettings(stride=16)) is None
    assert expected_agreement(0.01, OcclusionSettings()) is None


def test_int8_maps_show_what_fp32_maps_show() -> None:
    figures = stored("precision-squeezenet1_1-int8-cpu")
    assert figures["heatmap"]["images"] == 50
    assert figures["heatmap"]["rank_correlation"]["median"] >= 0.95
    assert figures["failed"] == []


@pytest.mark.parametrize("region", ["image", "lungs"])
@pytest.mark.parametrize("method", METHODS)
def test_what_a_map_scores_highest_matters_more_than_chance(region: str, method: str) -> None:
    """The whole interval of the paired difference lies on the right side of zero."""
    found = stored("sense-squeezenet1_1")["deletion_and_insertion"][region][method]
    assert found["deletion"]["area"]["interval_95"][1] < 0
    assert found["insertion"]["area"]["interval_95"][0] > 0


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_random_weights_are_unlike_those_of_the_trained_network(method: str) -> None:
    """Network by network: medians of opposite signs would cancel."""
    redrawn = stored("sense-squeezenet1_1")["random_weights"]["all_layers"][method]
    assert max(map(abs, redrawn["median_by_network"])) < 0.5
