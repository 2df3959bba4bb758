"""What the shards of a run say together: counts, duplicates, scores, and how they drift.

DuckDB reads the shards as one table, in bounded memory; larger groups go to a temporary folder.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.archive.shards import (
    Counts,
    DamagedShardError,
    read_shard,
    shard_files,
)
from deepcovid_edge.archive.stamp import RunStamp, read_stamp
from deepcovid_edge.decision.record_table import EXTRA
from deepcovid_edge.decision.results import PlainResult
from deepcovid_edge.device.progress import number_of
from deepcovid_edge.errors import DataError, NotThereError, OutputError, one_line, require
from deepcovid_edge.reasons import NOTICE, Reason, warning_sentence

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BINS = 20
"""Of the histogram of scores."""
_FINE_BINS = 100
_MEDIAN_STEPS = 10_000
_LEAST_IMAGES = 50
"""Fewer scores prove no change of their distribution."""
MOST_DEVICES = 50
"""That the text and the page name; JSON has them all."""
_MOST_NAMES = 5
_MEMORY = "1GB"
_COLUMNS = ("name", "images", "not_assessed", "positive", "indeterminate")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Reasoned(PlainResult):
    """How many images have a reason or a warning."""

    code: str
    sentence: str
    images: int


@dataclass(frozen=True)
class Duplicated(PlainResult):
    """Images that come more than once.

    Attributes:
        groups: Groups of images with the same bytes.
        images: Images beyond the first of each group.
        uid_groups: SOP instance UIDs that come with different bytes.
        uid_images: Images with such a UID.
    """

    groups: int
    images: int
    uid_groups: int
    uid_images: int


@dataclass(frozen=True)
class Group(PlainResult):
    """The images of a month or of a device.

    Attributes:
        name: The month or the device; `unknown` where nothing states it.
        images: How many.
        not_assessed: Without a result.
        positive: Positive.
        indeterminate: Too close to the threshold.
        median: Median probability of the positive class, of values that are rounded to four
            decimals; None without results.
        distance: Greatest distance between the distribution of its probabilities and that of all
            others, 0 to 1, on hundredths; None with fewer than 50 on either side.
    """

    name: str
    images: int
    not_assessed: int
    positive: int
    indeterminate: int
    median: float | None
    distance: float | None

    @property
    def negative(self) -> int:
        """Negative."""
        return self.images - self.positive - self.indeterminate - self.not_assessed


@dataclass(frozen=True)
class Summary(PlainResult):
    """The summary of a folder of results.

    Attributes:
        folder: The folder.
        stamp: Its run.
        shards: Shards that are there.
        others: Names of files that only look like shards; they are not counted.
        counts: Images by what came of them.
        reasons: Not assessed, by reason, the commonest first.
        warnings: Warnings of assessed images, likewise.
        duplicates: Images that come more than once.
        histogram: Assessed images in twentieths of the probability.
        months: By month of the examination.
        devices: By device, the commonest first.
    """

    folder: str
    stamp: RunStamp
    shards: int
    others: tuple[str, ...]
    counts: Counts
    reasons: tuple[Reasoned, ...]
    warnings: tuple[Reasoned, ...]
    duplicates: Duplicated
    histogram: tuple[int, ...]
    months: tuple[Group, ...]
    devices: tuple[Group, ...]

    def as_json(self) -> str:
        """All this as JSON."""
        return json.dumps({**self.as_dict(), "notice": NOTICE}, indent=1)

    @property
    def is_whole(self) -> bool:
        """Whether every shard is there."""
        return self.shards == self.stamp.shards

    @property
    def further_devices(self) -> str:
        """How many devices are not named one by one, in words; empty where all are."""
        rest = self.devices[MOST_DEVICES:]
        images = number_of(sum(one.images for one in rest), "image")
        return f"and {number_of(len(rest), 'more device')} with {images}" if rest else ""

    def text(self) -> str:
        """For a terminal: the counts, and where the rest is."""
        counts, same = self.counts, self.duplicates
        lines = [
            f"{self.shards} of {number_of(self.stamp.shards, 'shard')}, {counts.images} of "
            f"{number_of(self.stamp.images, 'image')}",
            *([_others_line(self.others)] if self.others else []),
            f"{counts.positive} positive, {counts.negative} negative, {counts.indeterminate} "
            f"indeterminate, {counts.not_assessed} not assessed",
            *(f"  {one.images} {one.code}: {one.sentence}" for one in self.reasons),
            f"{number_of(same.images, 'image repeats', 'images repeat')} the bytes of another; "
            f"{_same_uid(same)}",
            "By month and by device, with the median score, and the distance of the scores from "
            f"those of all other images (-: fewer than {_LEAST_IMAGES} scores on one side):",
            *(_group_line("month", one) for one in self.months),
            *(_group_line("device", one) for one in self.devices[:MOST_DEVICES]),
            *([f"  {self.further_devices}"] if self.further_devices else []),
            NOTICE,
        ]
        return "\n".join(lines)


def _same_uid(same: Duplicated) -> str:
    if not same.uid_groups:
        return "no two different files have the same UID"
    shared = "have the same UID" if same.uid_groups == 1 else f"share {same.uid_groups} UIDs"
    return f"{same.uid_images} different files {shared}"


def _others_line(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"Not counted, no shards of this run: {', '.join(map(repr, names[:_MOST_NAMES]))}{more}"


def _group_line(column: str, group: Group) -> str:
    median = "-" if group.median is None else f"{group.median:.3f}"
    distance = "-" if group.distance is None else f"{group.distance:.2f}"
    return (
        f"  {column} {group.name}: {number_of(group.images, 'image')}, {group.positive} positive, "
        f"{group.negative} negative, {group.indeterminate} indeterminate, {group.not_assessed} not "
        f"assessed, median {median}, distance {distance}"
    )


def summarise(folder: Path) -> Summary:
    """Summarise a folder of results.

    Raises:
        NotThereError: It has no run, or no shard.
        DataError: A shard is damaged, or of another run.
        OutputError: There is too little memory, or too little room in the temporary folder.
    """
    stamp = read_stamp(folder)
    shards, others = shard_files(folder, stamp.shards if stamp else 0)
    if stamp is None or not shards:
        raise NotThereError(f"{folder}: no results of `screen`")
    counts = _checked(shards, stamp)
    with _opened(shards.values()) as table:
        return Summary(
            folder=str(folder),
            stamp=stamp,
            shards=len(shards),
            others=tuple(others),
            counts=counts,
            reasons=_reasons(table),
            warnings=_warnings(table),
            duplicates=_duplicates(table),
            histogram=_histogram(table),
            months=_groups(table, "month"),
            devices=_groups(table, "device"),
        )


def _checked(shards: Mapping[int, Path], stamp: RunStamp) -> Counts:
    counts, digest = Counts(), stamp.digest
    for number, path in shards.items():
        try:
            stated, _ = read_shard(path)
        except DamagedShardError as error:
            raise DataError(f"{error}: run the same `screen` again, which writes it") from error
        if stated["run"] != digest or stated["shard"] != number:
            raise DataError(f"{path}: is a shard of another run: move it away")
        counts += Counts(**stated["counts"])
    return counts


@contextmanager
def _opened(shards: Iterable[Path]) -> Iterator[DuckDBPyConnection]:
    """The shards as the table `record`."""
    duckdb = require("duckdb", extra=EXTRA)
    with TemporaryDirectory(prefix="deepcovid-edge-") as place:
        settings = {
            "memory_limit": _MEMORY,
            "temp_directory": place,
            "autoinstall_known_extensions": "false",  # nobody is called
        }
        with duckdb.connect(config=settings) as table:
            files = [glob.escape(str(path.absolute())) for path in shards]
            try:
                table.from_parquet(files).create_view("record")
                yield table
            except duckdb.Error as error:
                raise OutputError(
                    f"summary: DuckDB cannot go on ({one_line(error)}): name a folder with more "
                    "room in TMPDIR, or use a machine with more memory"
                ) from error


def _rows(table: DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    return table.execute(query).fetchall()


def _reasons(table: DuckDBPyConnection) -> tuple[Reasoned, ...]:
    found = _rows(
        table,
        "SELECT reason, count(*) AS n FROM record WHERE reason IS NOT NULL GROUP BY 1 "
        "ORDER BY n DESC, reason",
    )
    return tuple(Reasoned(code, Reason.of(code).sentence, n) for code, n in found)


def _warnings(table: DuckDBPyConnection) -> tuple[Reasoned, ...]:
    found = _rows(
        table,
        "SELECT code, count(*) AS n FROM (SELECT unnest(warnings) AS code FROM record) GROUP BY 1 "
        "ORDER BY n DESC, code",
    )
    return tuple(Reasoned(code, warning_sentence(code), n) for code, n in found)


def _duplicates(table: DuckDBPyConnection) -> Duplicated:
    content = "('0x' || sha256[1:16])::UBIGINT"  # 64 bits tell images apart, and are small
    ((groups, images),) = _rows(
        table,
        "SELECT count(*), coalesce(sum(n - 1), 0) FROM (SELECT count(*) AS n FROM record "
        f"WHERE sha256 IS NOT NULL GROUP BY {content} HAVING n > 1)",
    )
    ((uid_groups, uid_images),) = _rows(
        table,
        "SELECT count(*), coalesce(sum(n), 0) FROM (SELECT count(*) AS n FROM record WHERE "
        "uid_hash IS NOT NULL AND sha256 IS NOT NULL GROUP BY uid_hash "
        f"HAVING min({content}) <> max({content}))",
    )
    return Duplicated(groups, int(images), uid_groups, int(uid_images))


def _histogram(table: DuckDBPyConnection) -> tuple[int, ...]:
    found = dict(_rows(table, f"SELECT {_bin(BINS)}, count(*) FROM record {_SCORED} GROUP BY 1"))
    return tuple(found.get(number, 0) for number in range(BINS))


_SCORED = "WHERE probability IS NOT NULL"


def _bin(bins: int) -> str:
    return f"least(floor(probability * {bins}), {bins - 1})::INTEGER"


def _groups(table: DuckDBPyConnection, column: str) -> tuple[Group, ...]:
    """The images by a column: months in their order, else the commonest first."""
    name = f"coalesce(nullif({column}, ''), '{UNKNOWN}')"
    order = "name" if column == "month" else "n DESC, name"
    found = _rows(
        table,
        f"SELECT {name} AS name, count(*) AS n, count(reason), "
        "count(*) FILTER (decision = 'positive'), count(*) FILTER (decision = 'indeterminate') "
        f"FROM record GROUP BY 1 ORDER BY {order}",
    )
    medians = _medians(table, name)
    scores = _rows(
        table,
        f"SELECT {name}, {_bin(_FINE_BINS)}, count(*) FROM record {_SCORED} GROUP BY 1, 2",
    )
    spread: dict[str, NDArray[np.int64]] = {}
    for group, number, images in scores:
        spread.setdefault(group, np.zeros(_FINE_BINS, np.int64))[number] = images
    total = sum(spread.values(), np.zeros(_FINE_BINS, np.int64))
    return tuple(
        Group(
            **dict(zip(_COLUMNS, row, strict=True)),
            median=medians.get(row[0]),
            distance=_distance(spread.get(row[0]), total),
        )
        for row in found
    )


def _medians(table: DuckDBPyConnection, name: str) -> dict[str, float]:
    """Medians of the probabilities, rounded to four decimals: `median` would keep each of them.

    Where their number is even, the median is the mean of the two in the middle.
    """
    found = _rows(
        table,
        f"WITH score AS (SELECT {name} AS name, round(probability * {_MEDIAN_STEPS})::INTEGER AS "
        f"step, count(*) AS n FROM record {_SCORED} GROUP BY 1, 2), "
        "place AS (SELECT name, step, sum(n) OVER (PARTITION BY name ORDER BY step) AS upto, "
        "sum(n) OVER (PARTITION BY name) AS total FROM score) "
        "SELECT name, min(step) FILTER (2 * upto >= total) + min(step) FILTER (2 * upto > total) "
        "FROM place GROUP BY 1",
    )
    return {group: both / (2 * _MEDIAN_STEPS) for group, both in found}


def _distance(own: NDArray[np.int64] | None, total: NDArray[np.int64]) -> float | None:
    """Distance of Smirnov between a group and all others, on the bins."""
    if own is None or min(own.sum(), (total - own).sum()) < _LEAST_IMAGES:
        return None
    others = total - own
    apart = np.abs(np.cumsum(own) / own.sum() - np.cumsum(others) / others.sum())
    return round(float(apart.max()), 4)
