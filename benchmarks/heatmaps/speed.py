"""Speed of occlusion heat maps beside captum's `Occlusion`: window 32, stride 8, 625 windows.

    python -m benchmarks.heatmaps.speed --data DATA --model squeezenet1_1 \
        --model benchmarks/models/resnet18.onnx

All sides take turns in one process, on all cores, one image a round. Ratios are taken round by
round and their median is quoted.

- `captum_1`, `captum_32`: peers/captum_occlusion.py, with that many windows in an evaluation. The
  faster of the two, in rounds before, is the peer.
- `plain_*`: our occlusion that runs the whole network for every window; `incremental_*`: what
  `heatmap` does, which computes what a window changes. Both in FP32 and in INT8 for CPUs.
- `budget_*`: `--budget` of one forty-fifth of what captum took in the same round. `budget` in the
  result has the rank correlation with the whole map of the same variant, and with that of the FP32
  variant, on more images. A variant for which the budget is too small, even once, is named and has
  no ratio.

With `--activation TURNS` only `infer --heatmap activation` is measured: it and `infer` take turns
over the images of test.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.heatmaps.activation import Side
from benchmarks.measure import Pixels, Seconds
from benchmarks.measure.options import parser_of
from benchmarks.peers import captum_occlusion
from benchmarks.peers.infer_command import infer
from benchmarks.variants import pairs
from deepcovid_edge.backends import load_backend
from deepcovid_edge.files import file_sha256
from deepcovid_edge.heatmaps.agreement import rank_correlation
from deepcovid_edge.heatmaps.occlusion import BudgetError, Occluder, of_occlusion
from deepcovid_edge.heatmaps.windows import OcclusionSettings, WindowGrid
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import DEFAULT_MODEL, find_model

SETTINGS = OcclusionSettings()
CAPTUM = {f"captum_{windows}": windows for windows in (1, 32)}
BEFORE = 1
"""Rounds of captum alone, by which the peer is chosen."""
DISKS = {"disk": Path.cwd(), "memory": Path("/dev/shm")}
"""A disk in memory shows what is left of the cost where making a file takes no time."""
FILES = 500
"""Made on each disk to see what a file costs."""
TIMES = 45
"""The budget is what captum took divided by this."""


def main() -> None:
    """Measure each model, or what activation maps cost `infer`, and store the results."""
    parser = parser_of(__doc__, data="images with train and val", model="several", rounds=9)
    parser.add_argument("--images", type=int, default=20, help="of val, for the budget's agreement")
    parser.add_argument("--activation", type=int, help="turns of infer --heatmap activation alone")
    options = parser.parse_args()
    if options.activation:
        images, model = options.data / "test", find_model(DEFAULT_MODEL)
        measure.store("activation-cost", activation_cost(images, model, options.activation))
        return
    for variants in pairs(options.model, options.data):
        figures = compare(variants, options)
        measure.print_medians(f"{figures['model']}, times as fast as captum:", figures["ratios"])
        measure.store(f"heatmap-speed-{figures['model']}", figures)


def compare(variants: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, ratios and agreement of all sides."""
    manifest = read_manifest(variants["fp32"])
    _, pixels = measure.prepared_val(options.data, manifest, options.images)
    rounds = list(islice(cycle(pixels), options.rounds + 1))
    with ExitStack() as opened:
        captum, last = captum_sides(variants["fp32"], pixels), dict[str, float]()
        ours = {
            f"{way}_{variant}": our_side(opened, path, replace(SETTINGS, incremental=incremental))
            for way, incremental in (("plain", False), ("incremental", True))
            for variant, path in variants.items()
        }
        first, _ = time_sides(captum, rounds[: BEFORE + 1], last)
        peer = min(first, key=lambda name: float(np.median(first[name])))
        peer_seconds = partial(last.__getitem__, peer)
        budget = {
            f"budget_{variant}": our_side(opened, path, SETTINGS, peer_seconds)
            for variant, path in variants.items()
        }
        seconds, too_small = time_sides({peer: captum[peer], **ours, **budget}, rounds, last)
        return {
            "model": manifest.name,
            "variants": {variant: file_sha256(path) for variant, path in variants.items()},
            "windows": len(
                WindowGrid.over(manifest.input.height, manifest.input.width, SETTINGS).boxes
            ),
            "seconds": measure.summaries(seconds),
            "peer": peer,
            "seconds_before": measure.summaries(first),
            "ratios": {
                name: measure.ratio(seconds[peer], values)
                for name, values in seconds.items()
                if name != peer
            },
            "agreement_with_captum": agreement(captum[peer], ours["incremental_fp32"], pixels[0]),
            "budget": {
                "milliseconds": measure.summary([own / TIMES * 1000 for own in seconds[peer]]),
                "too_small_for": too_small,
                **{
                    variant: reached(budget[f"budget_{variant}"], ours, variant, pixels)
                    for variant in variants
                    if f"budget_{variant}" not in too_small
                },
            },
        }


def captum_sides(model: Path, images: Sequence[Pixels]) -> dict[str, Side]:
    """Captum's occlusion with few and with many windows in an evaluation."""
    network = captum_occlusion.torch_network(model, np.stack(images))
    make = partial(captum_occlusion.make, network, read_manifest(model).positive_index, SETTINGS)
    return {name: make(windows=windows, threads=measure.CORES) for name, windows in CAPTUM.items()}


def our_side(
    opened: ExitStack,
    model: Path,
    settings: OcclusionSettings,
    peer_seconds: Callable[[], float] | None = None,
) -> Side:
    """Our occlusion; with the seconds of a peer, within a budget of a share of them."""
    backend = opened.enter_context(load_backend(model, backend="onnxruntime"))
    occluder = opened.enter_context(Occluder(backend, settings))

    def side(image: Pixels) -> Pixels:
        if peer_seconds:
            occluder.settings = replace(settings, budget_ms=peer_seconds() / TIMES * 1000)
        return of_occlusion(occluder.explain(image), {}).values

    return side


def time_sides(
    sides: dict[str, Side], images: Sequence[Pixels], last: dict[str, float]
) -> tuple[Seconds, dict[str, float]]:
    """Seconds of each side, and the sides whose budget was too small, with what they need, ms.

    Args:
        sides: Name -> what is timed.
        images: One for each round; the first round warms up.
        last: Gets the seconds that each side took last.
    """
    seconds: Seconds = {name: [] for name in sides}
    too_small: dict[str, float] = {}
    for number, image in enumerate(images):
        for name in list(seconds):
            try:
                last[name] = measure.seconds_of(sides[name], image)
            except BudgetError as error:
                too_small[name] = error.needed_ms
                del seconds[name]
            else:
                seconds[name] += [last[name]] if number else []
    return seconds, too_small


def agreement(peer: Side, ours: Side, image: Pixels) -> dict[str, float]:
    """Whether both sides computed the same."""
    expected, got = peer(image), ours(image)
    return {
        "rank_correlation": rank_correlation(expected, got),
        "max_difference_of_range": float(np.abs(got - expected).max() / np.ptp(expected)),
    }


def reached(
    within: Side, ours: dict[str, Side], variant: str, images: Sequence[Pixels]
) -> dict[str, Any]:
    """Rank correlation of a variant's budgeted maps with its own whole maps and with FP32's."""
    found = []
    for image in images:
        with contextlib.suppress(BudgetError):  # counted: a busy moment may take the first pass
            found.append((image, within(image)))
    figures: dict[str, Any] = {"images": len(found), "not_assessed": len(images) - len(found)}
    for other in sorted({variant, "fp32"}) if found else ():
        whole = ours[f"incremental_{other}"]
        alike = [rank_correlation(whole(image), part) for image, part in found]
        figures[f"with_whole_{other}"] = measure.quantiles(alike)
    return figures


def activation_cost(folder: Path, model: Path, rounds: int) -> dict[str, Any]:
    """What activation maps cost: `infer --heatmap activation` over `infer`, the command itself.

    Each run writes into a new folder of this disk, and of a disk in memory where there is one: a
    map is a file, and what a file costs depends on the disk (`file_us`). All are deleted at the
    end, because a disk that is busy deleting makes files slowly.
    """
    figures: dict[str, Any] = {"images": sum(path.is_file() for path in folder.rglob("*"))}
    for disk, parent in DISKS.items():
        if os.access(parent, os.W_OK):
            with tempfile.TemporaryDirectory(dir=parent) as name:
                figures[disk] = cost_on_disk(folder, model, Path(name), rounds)
    return figures


def cost_on_disk(folder: Path, model: Path, place: Path, rounds: int) -> dict[str, Any]:
    """Both commands in turn, each writing into new folders of a place."""

    def with_activation(number: int) -> None:
        maps = ("--heatmap", "activation", "--heatmap-dir", f"{place}/{number}")
        infer(folder, model, place / f"{number}-maps.jsonl", *maps)

    def plain(number: int) -> None:
        infer(folder, model, place / f"{number}.jsonl")

    sides = {"infer": plain, "with_activation": with_activation}
    seconds = measure.in_turn(sides, ((number,) for number in range(rounds + 1)))
    return {
        "seconds": measure.summaries(seconds),
        "cost": measure.ratio(seconds["with_activation"], seconds["infer"]),
        "file_us": measure.seconds_of(write_files, place) / FILES * 1e6,
    }


def write_files(place: Path) -> None:
    """One thread makes files of a map's size."""
    content = os.urandom(2048)
    for number in range(FILES):
        (place / f"file-{number}.npz").write_bytes(content)


if __name__ == "__main__":
    main()
