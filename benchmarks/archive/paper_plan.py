"""What 100 million images would take: machines, time, storage and money, from measured costs.

    python -m benchmarks.archive.paper_plan

It prints the tables of docs/archive-plan.md, which `python -m benchmarks.tables.write` writes. What
was measured is read from the stored results; all else is an assumption that the page shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS
from benchmarks.tables.from_code import field_rows
from benchmarks.tables.table import Table

DEVICE = RESULTS / "2-core-amd-epyc"
"""The machine that costs were measured on."""
_HOUR, _DAY, _MS = 3600.0, 86_400.0, 1e-3
_MB, _GB, _TB = 1e6, 1e9, 1e12


@dataclass(frozen=True)
class Assumptions:
    """What was not measured here.

    Attributes:
        images: Images of the archive.
        image_mb: Mean size of an image file, MB.
        record_bytes: Bytes of a record in a shard.
        core_hour_dollars: Price of a core for an hour, dollars.
        thousand_reads_dollars: Price of 1,000 reads of an object store, dollars.
        thousand_lists_dollars: Price of 1,000 pages of a listing, dollars.
        page_keys: Keys of a page of a listing.
        page_seconds: Time of a page of a listing, seconds.
        gpu_images_a_second: Images that the network of a GPU node takes a second.
        gpu_node_cores: Cores of a node with a GPU.
        node_cores: Cores of a node without one.
        shard_images: Images of a shard.
    """

    images: int = 100_000_000
    image_mb: float = 8.0
    record_bytes: int = 200
    core_hour_dollars: float = 0.04
    thousand_reads_dollars: float = 0.0004
    thousand_lists_dollars: float = 0.005
    page_keys: int = 1000
    page_seconds: float = 0.1
    gpu_images_a_second: float = 10_000.0
    gpu_node_cores: int = 16
    node_cores: int = 64
    shard_images: int = 10_000


@dataclass(frozen=True)
class Costs:
    """What was measured, of one image.

    Attributes:
        small_ms: Core time of a small JPEG or PNG from file to record, ms.
        input_ms: Kind of DICOM file -> core time from file to model input, ms.
        network_ms: Core time of the network on a CPU, ms.
        list_seconds: Core time of listing a million files of a local disk, s.
        to_infer: Core time of `screen`, as a share of that of `infer`.
    """

    small_ms: float
    input_ms: Mapping[str, float]
    network_ms: float
    list_seconds: float
    to_infer: float

    def image_ms(self, kind: str) -> float:
        """Core time of a DICOM file from file to record, ms."""
        return (self.input_ms[kind] + self.network_ms) * self.to_infer


def read_costs() -> Costs:
    """The costs that are stored."""
    speed = _read(DEVICE / "infer-speed-squeezenet1_1.json")
    measured = _read(RESULTS / "archive/archive-costs.json")
    archive = _read(RESULTS / "archive/archive-speed.json")
    small = speed["device"]["cores"] / speed["images_per_second"]["infer_fp32"] / _MS
    return Costs(
        small_ms=small,
        input_ms={name: found["median"] for name, found in measured["input_ms"].items()},
        network_ms=small - speed["one_thread_ms"]["decode_and_resize"],
        list_seconds=measured["listing"]["core_seconds_a_million"],
        to_infer=archive["cpu_to_infer"]["screen"]["median"] if archive else 1.0,
    )


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def costs_table(costs: Costs) -> Table:
    """Core time of an image of each kind, and of the whole archive."""
    it = Assumptions()
    rows = [_cost_row("small JPEG or PNG", costs.small_ms * costs.to_infer, it)]
    rows += [
        _cost_row(f"DICOM, 3000 x 2500, {kind}", costs.image_ms(kind), it)
        for kind in costs.input_ms
    ]
    columns = ("image", "core ms", "core-hours in all", "days of a node", "dollars")
    return Table(columns, rows)


def _cost_row(name: str, ms: float, it: Assumptions) -> tuple[str, ...]:
    hours = it.images * ms * _MS / _HOUR
    days = hours / it.node_cores / 24
    return (
        name,
        f"{ms:.1f}",
        f"{hours:,.0f}",
        f"{days:.1f}",
        f"{hours * it.core_hour_dollars:,.0f}",
    )


def slowest(costs: Costs) -> str:
    """The kind of DICOM file that takes longest."""
    return max(costs.input_ms, key=lambda kind: costs.input_ms[kind])


def nodes_table(costs: Costs) -> Table:
    """What nodes of each kind do with the slowest kind of file, and what holds them up."""
    it = Assumptions()
    ms = costs.image_ms(slowest(costs))
    cpu, gpu = (cores / ms / _MS for cores in (it.node_cores, it.gpu_node_cores))
    feeding = it.gpu_images_a_second * ms * _MS
    rows = [
        _node_row(f"{it.node_cores} cores", cpu, "its cores", it),
        _node_row(f"GPU and {it.gpu_node_cores} cores", gpu, "its cores: the GPU waits", it),
        _node_row(f"GPU and {feeding:,.0f} cores", it.gpu_images_a_second, "the GPU", it),
    ]
    return Table(("node", "images/s", "MB/s read", "days", "what limits it"), rows)


def _node_row(name: str, rate: float, limit: str, it: Assumptions) -> tuple[str, ...]:
    days = it.images / rate / _DAY
    return name, f"{rate:,.0f}", f"{rate * it.image_mb:,.0f}", f"{days:.1f}", limit


def storage_table(costs: Costs) -> Table:
    """How long the archive takes to be read once, and the images a second that this allows."""
    it = Assumptions()
    size = it.images * it.image_mb * _MB
    rows = []
    for name, rate in (
        ("file server, 500 MB/s", 500 * _MB),
        ("10 Gbit/s", 1.25 * _GB),
        ("40 Gbit/s", 5.0 * _GB),
        ("100 Gbit/s", 12.5 * _GB),
    ):
        images = rate / (it.image_mb * _MB)
        cores = images * costs.image_ms(slowest(costs)) * _MS
        rows.append((name, f"{size / rate / _DAY:.1f}", f"{images:,.0f}", f"{cores:,.0f}"))
    return Table(("reads at", "days", "images/s", "cores that this keeps busy"), rows)


def sizes_table(costs: Costs) -> Table:
    """Sizes and counts that grow with the archive."""
    it = Assumptions()
    pages = it.images / it.page_keys
    rows = [
        ("images", f"{it.images * it.image_mb * _MB / _TB:,.0f} TB"),
        ("records", f"{it.images * it.record_bytes / _GB:,.0f} GB"),
        ("shards", f"{it.images / it.shard_images:,.0f} files"),
        ("pages of a listing", f"{pages:,.0f}"),
        ("listing, one page after another", f"{pages * it.page_seconds / _HOUR:.1f} h"),
        ("listing a local disk", f"{it.images / 1e6 * costs.list_seconds / _HOUR:.1f} core-hours"),
        ("price of the listing", f"{pages / 1000 * it.thousand_lists_dollars:.2f} dollars"),
        ("price of the reads", f"{it.images / 1000 * it.thousand_reads_dollars:,.0f} dollars"),
        ("64-bit numbers of all images", f"{it.images * 8 / _GB:.1f} GB"),
        (
            "chance that two of them are equal",
            f"{it.images**2 / 2**65:.2%}",
        ),
    ]
    return Table(("what", "how much"), rows)


def assumptions_table() -> Table:
    """What was assumed."""
    return Table(("assumption", "value", "meaning"), field_rows(Assumptions, ""))


_OF_COSTS: dict[str, Callable[[Costs], Table]] = {
    "plan-costs": costs_table,
    "plan-nodes": nodes_table,
    "plan-storage": storage_table,
    "plan-sizes": sizes_table,
}
TABLES: dict[str, Callable[[], Table]] = {
    **{
        name: lambda make=make: make(read_costs())  # type: ignore[misc]
        for name, make in _OF_COSTS.items()
    },
    "plan-assumptions": assumptions_table,
}


def main() -> None:
    """Print all tables."""
    for name, make in TABLES.items():
        print(f"{name}\n{make().markdown()}\n")


if __name__ == "__main__":
    main()
