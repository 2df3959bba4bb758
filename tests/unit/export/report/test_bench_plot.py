"""The plot of results is drawn from the samples, the same each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the workstation side needs extra export")

from deepcovid_edge.benchmarking.results import read_result
from deepcovid_edge.errors import DataError
from deepcovid_export.report.bench_plot import draw

GOLDEN = Path(__file__).parents[3] / "golden/bench-v2.json"


def test_each_common_run_has_its_panels_and_each_result_its_name(tmp_path: Path) -> None:
    result = read_result(GOLDEN)
    part = replace(result, runs=result.runs[:2])
    draw([("before", result), ("after", part)], tmp_path / "a.svg")
    draw([("before", result), ("after", part)], tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text("utf-8")
    assert text == (tmp_path / "b.svg").read_text("utf-8")
    for shown in ("network, single-stream", "end-to-end, multi-stream", "before", "after"):
        assert shown in text
    assert "offline" not in text


def test_results_without_a_common_run_are_an_error(tmp_path: Path) -> None:
    result = read_result(GOLDEN)
    first, second = (replace(result, runs=(run,)) for run in result.runs[:2])
    with pytest.raises(DataError, match="no run in common"):
        draw([("before", first), ("after", second)], tmp_path / "a.svg")
