"""`screen --summary`: counts of every shard, held against counting in Python."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import astuple, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from commands import command

from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.reasons import NOTICE, Reason

pytest.importorskip("duckdb", reason="summaries need extra archive")

from deepcovid_edge.archive import summary as summary_module
from deepcovid_edge.archive.shards import Counts, ScreenedImage, ShardFolder
from deepcovid_edge.archive.stamp import RunStamp, begin_run, plain_facts
from deepcovid_edge.archive.summary import Duplicated, Group, Summary, summarise
from deepcovid_edge.archive.summary_page import page

FACTS = RunFacts("m", "ab" * 32, "onnxruntime-cpu", "fp32", ("normal", "covid"), "covid", 0.5)
IMAGES, SHARD = 1000, 150
STAMP = RunStamp("0.1", plain_facts(FACTS), "reject", IMAGES, "ef" * 32, SHARD)
DEVICES = ("Maker A", "Maker <b>B", "")


def drawn() -> list[ScreenedImage]:
    """Images whose scores rise in the last month, with repeats across shards."""
    dice = np.random.default_rng(7)
    images = []
    for number in range(IMAGES):
        month = f"2020-0{1 + number * 3 // IMAGES}"
        score = float(np.round(dice.beta(2, 5) if month != "2020-03" else dice.beta(5, 2), 6))
        sha256 = f"{number % 900:016x}" + "0" * 48
        reason = Reason.VIEW if number % 11 == 0 else None
        record = Prediction(
            f"{number}.dcm",
            FACTS,
            sha256,
            reason and reason.code,
            reason and reason.sentence,
            () if reason else ("W_AP",) * (number % 2),
            None if reason else {"normal": 1 - score, "covid": score},
        )
        uid = None if number % 5 else (number % 450)
        images.append(ScreenedImage(record, number, uid, month, DEVICES[number % 3]))
    return images


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ScreenedImage]]:
    folder, images = tmp_path_factory.mktemp("results"), drawn()
    begin_run(folder, STAMP)
    for shard in range(STAMP.shards):
        start, stop = STAMP.rows(shard)
        ShardFolder(folder, STAMP).write(shard, images[start:stop])
    return folder, images


def test_counts_are_those_of_the_records(results: tuple[Path, list[ScreenedImage]]) -> None:
    folder, images = results
    found = summarise(folder)
    records = [image.record for image in images]
    decisions = Counter(record.decision for record in records)
    assert found.counts == Counts(
        positive=decisions["positive"],
        negative=decisions["negative"],
        not_assessed=decisions[None],
    )
    assert [(one.code, one.images) for one in found.reasons] == [("E_VIEW", decisions[None])]
    warned = sum("W_AP" in record.warnings for record in records)
    assert [(one.code, one.images) for one in found.warnings] == [("W_AP", warned)]
    assert found.is_whole
    scores = [record.probability for record in records if record.probability is not None]
    assert list(found.histogram) == np.histogram(scores, 20, (0, 1))[0].tolist()


def test_duplicates_are_found_across_shards(results: tuple[Path, list[ScreenedImage]]) -> None:
    folder, images = results
    found = summarise(folder).duplicates
    contents = Counter(image.record.sha256 for image in images)
    assert found.groups == sum(n > 1 for n in contents.values()) == 100
    assert found.images == sum(n - 1 for n in contents.values())
    by_uid: dict[int, set[str]] = {}
    for image in images:
        if image.uid_hash is not None:
            by_uid.setdefault(image.uid_hash, set()).add(str(image.record.sha256))
    mixed = {uid for uid, hashes in by_uid.items() if len(hashes) > 1}
    assert found.uid_groups == len(mixed) > 0
    assert found.uid_images == sum(image.uid_hash in mixed for image in images)


def test_a_month_with_other_scores_stands_out(results: tuple[Path, list[ScreenedImage]]) -> None:
    folder, images = results
    found = summarise(folder)
    assert [one.name for one in found.months] == ["2020-01", "2020-02", "2020-03"]
    assert [one.images for one in found.months] == [334, 333, 333]
    distances = [one.distance or 0.0 for one in found.months]
    assert distances[2] > 0.5
    assert distances[2] > max(distances[:2])
    own = [
        image.record.probability
        for image in images
        if image.month == "2020-01" and image.record.probability is not None
    ]
    assert found.months[0].median == pytest.approx(np.median(own), abs=5e-5)
    assert {one.name for one in found.devices} == {"Maker A", "Maker <b>B", "unknown"}
    assert all((one.distance or 0) < 0.15 for one in found.devices)


def test_few_images_have_no_distance(tmp_path: Path) -> None:
    stamp = RunStamp("0.1", plain_facts(FACTS), "reject", 40, "ef" * 32, 40)
    begin_run(tmp_path, stamp)
    ShardFolder(tmp_path, stamp).write(0, drawn()[:40])
    (month,) = summarise(tmp_path).months
    assert isinstance(month, Group)
    assert month.distance is None


def summary_of(folder: Path, images: list[ScreenedImage]) -> Summary:
    """The summary of a run of one shard."""
    stamp = RunStamp("0.1", plain_facts(FACTS), "reject", len(images), "ef" * 32, len(images))
    begin_run(folder, stamp)
    ShardFolder(folder, stamp).write(0, images)
    return summarise(folder)


def scored(number: int, score: float, *, content: int = 0, month: str = "") -> ScreenedImage:
    """An image with a score, one UID, and the content of that number."""
    probabilities = {"normal": 1 - score, "covid": score}
    record = Prediction(f"{number}.dcm", FACTS, f"{content:064x}", probabilities=probabilities)
    return ScreenedImage(record, number, 7, month)


@pytest.mark.parametrize(("contents", "expected"), [([1, 1, 1], (0, 0)), ([1, 1, 2], (1, 3))])
def test_a_uid_that_comes_again_with_the_same_bytes_is_no_clash(
    tmp_path: Path, contents: list[int], expected: tuple[int, int]
) -> None:
    images = [scored(number, 0.5, content=one << 192) for number, one in enumerate(contents)]
    found = summary_of(tmp_path, images).duplicates
    assert (found.uid_groups, found.uid_images) == expected
    assert found.images == contents.count(1) - 1


def test_scores_at_either_end_stand_in_the_outer_bins(tmp_path: Path) -> None:
    found = summary_of(tmp_path, [scored(0, 0.0), scored(1, 0.05), scored(2, 1.0), scored(3, 1.0)])
    assert found.histogram == (1, 1, *[0] * 17, 2)


@pytest.mark.parametrize(
    ("sizes", "expected"), [((50, 50), 1.0), ((49, 51), None), ((51, 49), None)]
)
def test_a_distance_needs_fifty_images_on_either_side(
    tmp_path: Path, sizes: tuple[int, int], expected: float | None
) -> None:
    before, after = sizes
    images = [
        scored(number, float(number >= before), month=f"2020-0{1 + (number >= before)}")
        for number in range(before + after)
    ]
    found = summary_of(tmp_path, images).months
    assert [one.images for one in found] == [before, after]
    assert [one.distance for one in found] == [expected] * 2


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_the_page_shows_the_same_and_lets_nothing_in(
    results: tuple[Path, list[ScreenedImage]],
) -> None:
    summary = summarise(results[0])
    text = page(summary)
    parsed = Parsed(text)
    assert not parsed.tags.keys() & {"script", "img", "link", "b"}
    assert "default-src 'none'" in text
    assert NOTICE in text
    assert "Maker <b>B" in parsed.cells
    for number in (*astuple(summary.counts)[:-1], summary.duplicates.images, *summary.histogram):
        assert str(number) in parsed.cells
    assert not re.search(r"https?://", text)


def test_the_command_prints_text_json_and_a_page(
    results: tuple[Path, list[ScreenedImage]], tmp_path: Path
) -> None:
    folder, _ = results
    done = command("screen", "--summary", folder, "--html", tmp_path / "s.html")
    assert done.returncode == 0
    assert "7 of 7 shards, 1000 of 1000 images" in done.stdout
    assert "Not assessed" in (tmp_path / "s.html").read_text()
    values = json.loads(command("screen", "--summary", folder, "--json").stdout)
    assert values["counts"]["not_assessed"] == 91
    assert values["notice"] == NOTICE


def test_the_text_names_every_decision_and_what_a_row_is_of(
    results: tuple[Path, list[ScreenedImage]],
) -> None:
    summary = summarise(results[0])
    rows = {line.split(":")[0]: line for line in summary.text().splitlines()}
    for column, groups in (("month", summary.months), ("device", summary.devices)):
        for group in groups:
            counts = [
                int(n) for n in re.findall(r"(\d+) [a-z ]+", rows[f"  {column} {group.name}"])
            ]
            kinds = [group.positive, group.negative, group.indeterminate, group.not_assessed]
            assert counts[-4:] == kinds
            assert sum(kinds) == group.images == counts[-5]
    few = replace(summary, devices=(Group("A", 1, 0, 0, 1, 0.4, None),)).text()
    assert (
        "  device A: 1 image, 0 positive, 0 negative, 1 indeterminate, 0 not assessed, "
        "median 0.400, distance -\n" in few
    )
    assert "(-: fewer than 50 scores on one side)" in few


def test_devices_beyond_those_that_are_named_are_counted(tmp_path: Path) -> None:
    images = [replace(image, device=f"Room {at % 53:02}") for at, image in enumerate(drawn()[:150])]
    stamp = RunStamp("0.1", plain_facts(FACTS), "reject", len(images), "ef" * 32, SHARD)
    begin_run(tmp_path, stamp)
    ShardFolder(tmp_path, stamp).write(0, images)
    found = summarise(tmp_path)
    assert len(json.loads(found.as_json())["devices"]) == 53
    assert found.text().count("  device Room") == page(found).count("<td>Room") == 50
    assert "\n  and 3 more devices with 6 images\n" in found.text()
    assert "<p>and 3 more devices with 6 images; JSON has each of them.</p>" in page(found)
    few = replace(found, devices=found.devices[:51])
    assert few.further_devices == "and 1 more device with 2 images"
    assert "more device" not in replace(found, devices=found.devices[:50]).text()


@pytest.mark.parametrize(
    ("same", "said"),
    [
        (Duplicated(0, 0, 0, 0), "0 images repeat the bytes of another; no two different files"),
        (Duplicated(1, 1, 1, 2), "1 image repeats the bytes of another; 2 different files have"),
        (Duplicated(2, 3, 2, 5), "3 images repeat the bytes of another; 5 different files share 2"),
    ],
)
def test_duplicates_are_counted_in_words(
    same: Duplicated, said: str, results: tuple[Path, list[ScreenedImage]]
) -> None:
    assert said in replace(summarise(results[0]), duplicates=same).text()


def test_files_that_only_look_like_shards_are_named_and_not_counted(
    results: tuple[Path, list[ScreenedImage]], tmp_path: Path
) -> None:
    copied = tmp_path / "r"
    shutil.copytree(results[0], copied)
    shard = copied / "shard-000003.parquet"
    for name in ("shard-000003 (copy).parquet", "shard-3.parquet", "shard-000007.parquet"):
        shutil.copy(shard, copied / name)
    done = command("screen", "--summary", copied)
    assert "7 of 7 shards, 1000 of 1000 images" in done.stdout
    named = "'shard-000003 (copy).parquet', 'shard-000007.parquet', 'shard-3.parquet'"
    assert f"Not counted, no shards of this run: {named}\n" in done.stdout
    found, whole = summarise(copied), summarise(results[0])
    assert (found.histogram, found.duplicates) == (whole.histogram, whole.duplicates)
    shutil.copy(shard, copied / "shard-000004.parquet")
    assert command("screen", "--summary", copied).returncode == 1, "one shard under two names"


def test_a_folder_s_name_is_no_pattern(
    results: tuple[Path, list[ScreenedImage]], tmp_path: Path
) -> None:
    folder, _ = results
    for name in ("run?", "run1", "results [2026]"):
        shutil.copytree(folder, tmp_path / name)
    for name in ("run?", "results [2026]"):
        values = json.loads(command("screen", "--summary", tmp_path / name, "--json").stdout)
        assert sum(values["histogram"]) == sum(summarise(folder).histogram)


def test_a_damaged_shard_and_one_of_another_run_are_errors(tmp_path: Path) -> None:
    stamp = RunStamp("0.1", plain_facts(FACTS), "reject", 80, "ef" * 32, 40)
    begin_run(tmp_path, stamp)
    folder = ShardFolder(tmp_path, stamp)
    folder.write(0, drawn()[:40])
    other = RunStamp("0.1", plain_facts(FACTS), "warn", 80, "ef" * 32, 40)
    ShardFolder(tmp_path, other).write(1, drawn()[40:80])
    done = command("screen", "--summary", tmp_path)
    assert done.returncode == 1
    assert "another run" in done.stderr
    folder.path(1).write_bytes(b"PAR1")
    done = command("screen", "--summary", tmp_path)
    assert done.returncode == 1
    assert "run the same `screen` again" in done.stderr
    folder.path(1).unlink()
    done = command("screen", "--summary", tmp_path)
    assert "1 of 2 shards, 40 of 80 images" in done.stdout


@pytest.mark.parametrize(
    ("scores", "median"),
    [
        ((0.2, 0.9, 0.4), 0.4),
        ((0.2, 0.9, 0.4, 0.5), 0.45),
        ((0.3, 0.3, 0.3, 1.0), 0.3),
        ((0.0, 1.0), 0.5),
        ((0.123456,), 0.1235),
    ],
)
def test_medians_are_those_of_rounded_scores(
    tmp_path: Path, scores: tuple[float, ...], median: float
) -> None:
    images = [
        scored(number, score, content=number, month="2020-01")
        for number, score in enumerate(scores)
    ]
    (month,) = summary_of(tmp_path, images).months
    assert month.median == pytest.approx(median, abs=1e-9)


def test_medians_take_no_more_memory_with_more_images() -> None:
    """`median` of DuckDB keeps every value: 48 MB of these."""
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(config={"memory_limit": "40MB", "threads": 1}) as table:
        table.execute(
            "CREATE VIEW record AS SELECT NULL AS reason, 'positive' AS decision, "
            "'2020-01' AS month, number % 1000 / 999 AS probability "
            "FROM range(6_000_000) AS numbers(number)"
        )
        (month,) = summary_module._groups(table, "month")
    assert month.images == 6_000_000
    assert month.median == pytest.approx(0.5, abs=1e-9)


def test_too_little_memory_is_said_in_a_sentence(
    results: tuple[Path, list[ScreenedImage]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary_module, "_MEMORY", "100KB")
    done = command("screen", "--summary", results[0])
    assert done.returncode == 1
    assert "DuckDB cannot go on" in done.stderr
    assert "Traceback" not in done.stderr
