"""Stored results read back, and comparisons: what is refused, what is a difference, what is not."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcovid_edge.benchmarking.compare import CompareRules, compare
from deepcovid_edge.benchmarking.invocations import join
from deepcovid_edge.benchmarking.results import (
    PARTS,
    SCHEMA_VERSION,
    Result,
    Run,
    read_result,
)
from deepcovid_edge.benchmarking.samples import Samples
from deepcovid_edge.cli.main import run
from deepcovid_edge.errors import DataError, IncomparableRunsError, NotThereError, UsageError

GOLDEN = Path(__file__).parents[2] / "golden"
NAMES = ("before.json", "after.json")


@pytest.fixture
def golden() -> Result:
    return read_result(GOLDEN / f"bench-v{SCHEMA_VERSION}.json")


def drawn(seed: int, count: int = 400, *, scale: float = 1.0, spread: float = 0.05) -> Samples:
    """Queries one after another, of log-normal times around 2 ms."""
    times = np.random.default_rng(seed).lognormal(np.log(2e6 * scale), spread, count)
    ended = np.cumsum(times).astype(np.int64)
    started = np.concatenate([[0], ended[:-1]])
    image, images = np.arange(count) % 3, np.ones(count, np.int64)
    return Samples(started, started, ended, image, images)


def changed_header(result: Result, part: str, **values: Any) -> Result:
    header = {**result.header, part: {**result.header[part], **values}}
    return replace(result, header=header)


def only(result: Result, samples: Samples, **values: Any) -> Result:
    """The golden result with one run of these samples."""
    kept = {"parts": {}, "invocations": (), **values}
    return replace(result, runs=(replace(result.runs[0], samples=samples, **kept),))


def written(result: Result, path: Path) -> str:
    path.write_text(result.to_json(), encoding="utf-8")
    return str(path)


def test_a_stored_result_still_reads() -> None:
    path = GOLDEN / f"bench-v{SCHEMA_VERSION}.json"
    result = read_result(path)
    assert [item.scenario for item in result.runs] == [
        *("single-stream", "multi-stream", "offline", "server")
    ]
    assert [len(item.samples) for item in result.runs] == [70] * 4
    assert [len(item.warm_up) for item in result.runs] == [2] * 4
    assert result.header["model"]["name"] == "golden"
    assert result.runs[0].invocations == (40, 30)
    stored = json.loads(path.read_text("utf-8"))
    for item, raw in zip(result.runs, stored["runs"], strict=True):
        assert item.figures()["images_per_second"] == raw["figures"]["images_per_second"]
    assert result.runs[3].figures()["deadline"]["arrived"] == 75


def test_a_result_reads_back_as_it_was_written(golden: Result, tmp_path: Path) -> None:
    path = tmp_path / "again.json"
    written(golden, path)
    assert read_result(path).to_json() == golden.to_json()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "not JSON"),
        ("[]", "not a result of"),
        (
            '{"kind": "deepcovid-edge bench", "schema_version": 99}',
            "version 99, expected 2",
        ),
        ('{"kind": "deepcovid-edge bench", "schema_version": 1}', "measure again"),
        ('{"kind": "deepcovid-edge bench", "schema_version": 2, "runs": [{}]}', "damaged"),
    ],
)
def test_what_is_no_result_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_result(path)


@pytest.mark.parametrize("name", PARTS)
def test_a_result_without_a_part_is_damaged(
    name: str, golden: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in (None, 3, "text"):
        path = tmp_path / "a.json"
        path.write_text(json.dumps({**golden.as_dict(), name: part}), encoding="utf-8")
        assert run(["compare", str(path), str(path)]) == 1
        assert f"{path}: damaged (no {name}): measure again" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"watched": None}, {"parts": None}, {"samples_ns": {}}])
def test_a_damaged_run_is_refused(change: dict[str, Any], golden: Result, tmp_path: Path) -> None:
    content = golden.as_dict()
    content["runs"][0] |= change
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="damaged"):
        read_result(path)


def test_a_missing_file_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotThereError):
        read_result(tmp_path / "missing.json")


def test_two_devices_are_refused_and_forced_they_are_named(golden: Result) -> None:
    other = changed_header(golden, "device", processor="Another CPU")
    with pytest.raises(
        IncomparableRunsError, match=r"processor Golden CPU and Another CPU.*`force`"
    ):
        compare(golden, other, NAMES)
    forced = compare(golden, other, NAMES, CompareRules(force=True))
    assert forced.not_comparable == ("device: processor Golden CPU and Another CPU",)


Change = Callable[[Run], Run]
CLOCK = {"first": 2000.0, "last": 2000.0, "min": 2000.0, "max": 2000.0, "median": 2000.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda item: replace(item, scope="end-to-end"), "no run in common"),
        (lambda item: replace(item, scenario="multi-stream"), "no run in common"),
        (lambda item: replace(item, batch=8), "no run in common"),
        (lambda item: replace(item, lanes=4), "no run in common"),
        (lambda item: replace(item, rate=9.0), "no run in common"),
        (lambda item: replace(item, watched={**item.watched, "cpu_mhz": CLOCK}), "clocks: .* 3000"),
        (lambda item: replace(item, watched={}), "only one has cpu_mhz"),
    ],
    ids=["scope", "scenario", "batch", "lanes", "rate", "clock", "untold clock"],
)
def test_unlike_runs_are_refused(change: Change, message: str, golden: Result) -> None:
    one = replace(golden, runs=golden.runs[:1])
    other = replace(one, runs=(change(one.runs[0]),))
    with pytest.raises(IncomparableRunsError, match=message):
        compare(one, other, NAMES)


@pytest.mark.parametrize(
    ("part", "values"),
    [("data", {"sha256": "f" * 64}), ("settings", {"seconds": 9.0}), ("model", {"input": {}})],
)
def test_other_images_durations_or_inputs_are_refused(
    part: str, values: dict[str, Any], golden: Result
) -> None:
    with pytest.raises(IncomparableRunsError, match="measure both alike"):
        compare(golden, changed_header(golden, part, **values), NAMES)


def test_another_model_or_version_is_what_one_compares_and_is_told(golden: Result) -> None:
    other = changed_header(golden, "model", precision="int8")
    assert compare(golden, other, NAMES).changed == ("model: precision fp32 -> int8",)


def test_a_result_against_itself_has_no_significant_difference(golden: Result) -> None:
    comparison = compare(golden, golden, NAMES)
    assert comparison.ratios
    assert all(ratio.ratio == 1 and not ratio.significant for ratio in comparison.ratios)


def test_a_tenth_slower_is_found_with_an_interval_that_holds_it(golden: Result) -> None:
    before, after = only(golden, drawn(0)), only(golden, drawn(1, scale=1.1))
    median = compare(before, after, NAMES).ratios[0]
    assert (median.figure, median.significant) == ("median", True)
    assert median.interval_95[0] < 1.1 < median.interval_95[1]
    assert median.interval_95[1] - median.interval_95[0] < 0.04


def test_a_change_below_the_smallest_is_none_however_narrow_its_interval(golden: Result) -> None:
    before = only(golden, drawn(0, spread=0.001))
    after = only(golden, drawn(1, scale=1.01, spread=0.001))
    assert not any(ratio.significant for ratio in compare(before, after, NAMES).ratios)
    strict = CompareRules(smallest_change=0.005)
    assert all(ratio.significant for ratio in compare(before, after, NAMES, strict).ratios)


def test_percentiles_are_compared_only_where_both_support_them(golden: Result) -> None:
    def figures(*counts: int) -> list[str]:
        one, two = (only(golden, drawn(seed, count)) for seed, count in enumerate(counts))
        return [ratio.figure for ratio in compare(one, two, NAMES).ratios]

    assert figures(400, 63) == ["median"]
    assert figures(661, 700) == ["median", "90th percentile"]
    assert figures(662, 700) == ["median", "90th percentile", "99th percentile"]


@pytest.mark.parametrize("resemblance", [0.0, 0.5])
def test_interval_holds_the_truth_about_as_often_as_it_says(
    resemblance: float, golden: Result
) -> None:
    """Also where samples resemble their neighbours, for which the blocks are."""
    held = 0
    for seed in range(100):
        sides = []
        for side in (0, 1):
            noise = np.random.default_rng([seed, side]).normal(0, 0.05, 300)
            for step in range(1, 300):
                noise[step] += resemblance * noise[step - 1]
            ended = np.cumsum(2e6 * np.exp(noise)).astype(np.int64)
            started = np.concatenate([[0], ended[:-1]])
            ones = np.ones(300, np.int64)
            sides.append(only(golden, Samples(started, started, ended, ones, ones)))
        rules = CompareRules(replicates=200, seed=seed)
        reference, candidate = sides
        low, high = compare(reference, candidate, NAMES, rules).ratios[0].interval_95
        held += low <= 1 <= high
    assert 86 <= held <= 100


def in_processes(golden: Result, seed: int, *, apart: float, scale: float = 1.0) -> Result:
    """Three processes of 200 samples each, whose levels differ by so much (standard deviation)."""
    levels = scale * np.exp(np.random.default_rng(seed).normal(0, apart, 3))
    parts = [
        drawn(10 * seed + number, 200, scale=level, spread=0.01)
        for number, level in enumerate(levels)
    ]
    return only(golden, Samples.joined(parts), invocations=(200, 200, 200))


def test_processes_that_differ_make_no_difference_between_two_measurements(golden: Result) -> None:
    """A bootstrap over samples calls a third of these pairs different."""
    held = called = 0
    for seed in range(100):
        one, other = (in_processes(golden, 2 * seed + side, apart=0.05) for side in (0, 1))
        median = compare(one, other, NAMES).ratios[0]
        held += median.interval_95[0] <= 1 <= median.interval_95[1]
        called += (
            compare(
                replace(one, runs=(replace(one.runs[0], invocations=()),)),
                replace(other, runs=(replace(other.runs[0], invocations=()),)),
                NAMES,
                CompareRules(replicates=200),
            )
            .ratios[0]
            .significant
        )
    assert 90 <= held <= 100
    assert called > 25


def test_a_difference_beyond_what_processes_differ_by_is_found(golden: Result) -> None:
    before = in_processes(golden, 1, apart=0.01)
    after = in_processes(golden, 2, apart=0.01, scale=1.2)
    median = compare(before, after, NAMES).ratios[0]
    assert median.significant
    assert median.interval_95[0] < 1.2 < median.interval_95[1]


def test_a_process_that_answered_nothing_tells_nothing(golden: Result) -> None:
    samples = drawn(0, 400)
    one = only(golden, samples, invocations=(200, 0, 200))
    (median,) = compare(one, one, NAMES).ratios[:1]
    assert median.interval_95[0] <= 1 <= median.interval_95[1]
    assert not median.significant


def test_more_confidence_calls_less_a_difference(golden: Result) -> None:
    before = in_processes(golden, 1, apart=0.02)
    after = in_processes(golden, 2, apart=0.02, scale=1.1)
    (found, *_), (doubted, *_) = (
        compare(before, after, NAMES, CompareRules(confidence=level)).ratios
        for level in (0.9, 0.99999)
    )
    assert found.interval_95 == doubted.interval_95
    assert found.significant
    assert not doubted.significant


def test_one_process_against_several_is_compared_by_samples(golden: Result) -> None:
    before, after = only(golden, drawn(0)), in_processes(golden, 2, apart=0.0)
    assert not compare(before, after, NAMES).ratios[0].significant


def test_samples_of_processes_are_joined_and_cut_again() -> None:
    parts = [drawn(seed, 5 + seed) for seed in range(3)]
    joined = Samples.joined(parts)
    assert joined.seconds == pytest.approx(sum(part.seconds for part in parts))
    for part, again in zip(parts, joined.cut([5, 6, 7]), strict=True):
        for name, column in part.as_dict().items():
            assert again.as_dict()[name] == column
    assert np.concatenate([part.gaps_ms for part in parts]) == pytest.approx(joined.gaps_ms)


def test_measurements_are_joined(golden: Result) -> None:
    watched = {
        **golden.runs[0].watched,
        "cpu_mhz": {
            "first": 2900.0,
            "last": 2800.0,
            "min": 2700.0,
            "max": 2900.0,
            "median": 2800.0,
        },
        "others_share": 0.04,
        "slowed": ["heat"],
    }
    other = replace(golden, runs=tuple(replace(one, watched=watched) for one in golden.runs))
    joined = join(golden, other)
    first = joined.runs[0]
    assert first.invocations == (40, 30, 40, 30)
    assert joined.runs[1].invocations == (70, 70)
    assert first.figures()["images"] == 2 * golden.runs[0].figures()["images"]
    assert len(first.parts["compute"].ms) == 80
    assert first.watched["cpu_mhz"] == {
        **{"first": 3000.0, "last": 3000.0, "min": 2700.0, "max": 3000.0, "median": 2900.0}
    }
    assert first.watched["others_share"] == pytest.approx(0.025)
    assert first.watched["energy"]["joules"] == 3.0
    assert first.watched["slowed"] == ["heat"]
    assert joined.runs[3].unserved == 10
    again = join(joined, golden).runs[0].watched
    assert again["others_share"] == pytest.approx((0.01 * 4 + 0.04 * 2) / 6)


def test_a_temperature_rises_within_a_process_and_not_between_two(golden: Result) -> None:
    def at(first: float, last: float) -> Result:
        celsius = {"first": first, "last": last, "min": first, "max": last, "median": first}
        watched = {**golden.runs[0].watched, "cpu_celsius": celsius}
        return replace(golden, runs=(replace(golden.runs[0], watched=watched),))

    cold, hot, rising = at(40.0, 45.0), at(70.0, 71.0), at(40.0, 60.0)
    assert not any("temperature" in reason for reason in join(cold, hot).unstable())
    for pair in ((rising, cold), (cold, rising)):
        (reason,) = join(*pair).unstable()
        assert "temperature of the CPU: 40 to 60 Celsius" in reason


@pytest.mark.parametrize("part", ["device", "versions", "model", "data", "settings"])
def test_measurements_that_differ_are_not_joined(part: str, golden: Result) -> None:
    with pytest.raises(IncomparableRunsError, match=f"other {part}.other"):
        join(golden, changed_header(golden, part, other=1))
    with pytest.raises(IncomparableRunsError, match="other runs"):
        join(golden, replace(golden, runs=golden.runs[:2]))


def test_offline_is_compared_by_the_time_between_results(golden: Result) -> None:
    before = only(golden, drawn(0), scenario="offline")
    after = only(golden, drawn(1, scale=1.5), scenario="offline")
    (ratio,) = compare(before, after, NAMES).ratios
    assert ratio.figure == "time per image"
    assert ratio.ratio == pytest.approx(1.5, rel=0.02)


def test_results_of_many_images_weigh_more_than_those_of_few(golden: Result) -> None:
    """Both sides take 2 ms per image; a mean over results would say 5.6 ms of the first."""

    def result(sizes: list[int]) -> Result:
        ended = np.arange(1, len(sizes) + 1) * 10_000_000
        zeros = np.zeros_like(ended)
        samples = Samples(zeros, zeros, ended, zeros, np.array(sizes))
        return only(golden, samples, scenario="offline")

    uneven, even = result([1, 9] * 100), result([5] * 200)
    (ratio,) = compare(uneven, even, NAMES).ratios
    assert (ratio.reference, ratio.candidate, ratio.ratio) == pytest.approx((2.0, 2.0, 1.0))
    assert ratio.interval_95 == pytest.approx((1.0, 1.0), abs=0.1)
    assert uneven.runs[0].figures()["images_per_second"] == pytest.approx(1000 / ratio.reference)


@pytest.fixture
def slower(golden: Result, tmp_path: Path) -> tuple[str, str]:
    before, after = only(golden, drawn(0)), only(golden, drawn(1, scale=1.1))
    return written(before, tmp_path / NAMES[0]), written(after, tmp_path / NAMES[1])


def test_max_slowdown_fails_with_3_only_what_is_slower_than_that(
    slower: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *slower]) == 0
    assert run(["compare", *slower, "--max-slowdown", "0.2"]) == 0
    assert run(["compare", *reversed(slower), "--max-slowdown", "0"]) == 0
    capsys.readouterr()
    assert run(["compare", *slower, "--max-slowdown", "0.05"]) == 3
    assert "slower: " in capsys.readouterr().err


def test_unstable_runs_neither_pass_nor_fail(
    golden: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = written(only(golden, drawn(0, count=20)), tmp_path / "few.json")
    assert run(["compare", few, few]) == 0
    assert "20 samples are too few" in capsys.readouterr().out
    assert run(["compare", few, few, "--max-slowdown", "0.05"]) == 7


def test_two_devices_exit_with_2_and_one_sentence(
    golden: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = written(golden, tmp_path / "a.json")
    two = written(changed_header(golden, "device", cores=64), tmp_path / "b.json")
    assert run(["compare", one, two]) == 2
    assert "device: cores 2 and 64" in capsys.readouterr().err
    assert run(["compare", one, two, "--force"]) == 0


def test_markdown_hides_what_is_no_difference_and_counts_it(
    slower: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", slower[0], slower[0], slower[1]]) == 0
    same, other = capsys.readouterr().out.split(f"\n{slower[1]} against {slower[0]}\n")
    assert "2 of 2 figures do not differ significantly" in same
    assert "| median |" not in same
    row = next(line for line in other.splitlines() if "| median |" in line)
    assert re.search(r"\| [12]\.\d+ \| 2\.\d+ \| 1\.\d{3} \[1\.\d{3}, 1\.\d{3}\] \| slower", row)
    assert run(["compare", slower[0], slower[0], "--all"]) == 0
    assert "1.000 [" in capsys.readouterr().out


def test_csv_and_json_hold_every_ratio(
    slower: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *slower, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert run(["compare", *slower, "--json"]) == 0
    (comparison,) = json.loads(capsys.readouterr().out)
    assert len(rows) == len(comparison["ratios"]) == 2
    assert float(rows[0]["ratio"]) == comparison["ratios"][0]["ratio"]
    assert float(rows[0]["low_95"]) == comparison["ratios"][0]["interval_95"][0]


def test_one_result_is_not_enough(slower: tuple[str, str]) -> None:
    assert run(["compare", slower[0]]) == 2


@pytest.mark.parametrize(
    "rules", [{"smallest_change": 1.0}, {"replicates": 5}, {"confidence": 1.0}]
)
def test_wrong_rules_name_the_flag(rules: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(rules))}: got"):
        CompareRules(**rules)
