"""Speed of occlusion heat maps beside captum's `Occlusion`: window 32, stride 8, 625 windows.

    python -m benchmarks.heatmaps.speed --data DATA --model squeezenet1_1 \
        --model benchmarks/models/resnet18.onnx

All sides take turns in one process, on all cores, one image a round; ratios are taken round by
round and their median is quoted.

- `captum_1`, `captum_32`: peers/captum_occlusion.py, with so many windows in an evaluation. The
  faster of the two, in rounds before, is the peer.
- `plain_*`: our occlusion that runs the whole network for every window; `incremental_*`: what
  `heatmap` does, which computes what a window changes. Both in FP32 and in INT8 for CPUs.
- `budget_*`: `--budget` of one forty-fifth of what captum took in the same round. `budget` in the
  result has the rank correlation with the whole map of the same variant, and with that of the FP32
  variant, on more images; a variant for which it is too small, even once, is named and left out.

With `--activation TURNS` only `infer --heatmap activation` is measured: it and `infer` take turns
over the images of test.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.measurement import (
    images_of_both_classes,
    in_turn,
    prepared,
    ratio,
    store,
    summary,
)
from benchmarks.peers import captum_occlusion
from benchmarks.variants import named, variant_of
from deepcovid_edge.backends import load_backend
from deepcovid_edge.cli.main import run
from deepcovid_edge.files import file_sha256
from deepcovid_edge.heatmaps.agreement import rank_correlation
from deepcovid_edge.heatmaps.occlusion import BudgetError, Occluder, of_occlusion
from deepcovid_edge.heatmaps.windows import OcclusionSettings, WindowGrid
from deepcovid_edge.manifest import InputSpec, read_manifest
from deepcovid_edge.models import DEFAULT_MODEL, find_model

CORES = len(os.sched_getaffinity(0))
SETTINGS = OcclusionSettings()
CAPTUM = {f"captum_{windows}": windows for windows in (1, 32)}
BEFORE = 1
"""Rounds of captum alone, by which the peer is chosen."""
_MEMORY = Path("/dev/shm")
"""A disk in memory: what is left of the cost where files are made at once."""
TIMES = 45
"""The budget is what captum took divided by this."""

Side = Callable[[np.ndarray], np.ndarray]
"""Image -> heat map, both of the network's input shape."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="images with train and val")
    parser.add_argument("--model", action="append", help="shipped name or FP32 .onnx; repeatable")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=20, help="of val, for the budget's agreement")
    parser.add_argument(
        "--activation", type=int, help="infer --heatmap activation alone, so many turns"
    )
    options = parser.parse_args()
    if options.activation:
        images, model = options.data / "test", find_model(DEFAULT_MODEL)
        store("activation-cost", activation_cost(images, model, options.activation))
        return
    for name in options.model or [DEFAULT_MODEL]:
        model = named(name)
        variants = {"fp32": model, "int8": variant_of(model, "int8-cpu", options.data)}
        figures = compare(variants, options)
        store(f"heatmap-speed-{figures['model']}", figures)


def compare(variants: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    manifest = read_manifest(variants["fp32"])
    images = images_of_both_classes(options.data, manifest, options.images)
    pixels = [prepared(image, manifest.input) for image in images]
    rounds = list(islice(cycle(pixels), options.rounds + 1))
    with ExitStack() as opened:
        peers = captum_sides(variants["fp32"], pixels)
        ours = {
            f"{way}_{variant}": our_side(opened, path, replace(SETTINGS, incremental=incremental))
            for way, incremental in (("plain", False), ("incremental", True))
            for variant, path in variants.items()
        }
        clock = Clock()
        first, _ = measure(peers, rounds[: BEFORE + 1], clock)
        peer = min(first, key=lambda name: float(np.median(first[name])))
        budget = {
            f"budget_{variant}": budget_side(opened, path, partial(clock.last.__getitem__, peer))
            for variant, path in variants.items()
        }
        seconds, refused = measure({peer: peers[peer], **ours, **budget}, rounds, clock)
        compared = [name for name in (*ours, *budget) if name not in refused]
        figures = {
            "model": manifest.name,
            "variants": {variant: file_sha256(path) for variant, path in variants.items()},
            "windows": windows(manifest.input),
            "seconds": {name: summary(values) for name, values in seconds.items()},
            "peer": peer,
            "seconds_before": {name: summary(values) for name, values in first.items()},
            "ratios": {name: ratio(seconds[peer], seconds[name]) for name in compared},
            "agreement_with_captum": agreement(peers[peer], ours["incremental_fp32"], pixels[0]),
            "budget": {
                "milliseconds": summary([own / TIMES * 1000 for own in seconds[peer]]),
                "too_small_for": refused,
                **{
                    variant: reached(budget[f"budget_{variant}"], ours, variant, pixels)
                    for variant in variants
                    if f"budget_{variant}" not in refused
                },
            },
        }
    for name, value in figures["ratios"].items():
        print(f"{manifest.name} {name}: {value['median']:.1f} times captum")
    return figures


def windows(spec: InputSpec) -> int:
    return len(WindowGrid.over(spec.height, spec.width, SETTINGS).boxes)


def captum_sides(model: Path, images: Sequence[np.ndarray]) -> dict[str, Side]:
    network = captum_occlusion.torch_network(model, np.stack(images))
    positive = read_manifest(model).positive_index
    return {
        name: captum_occlusion.make(network, positive, SETTINGS, windows=windows, threads=CORES)
        for name, windows in CAPTUM.items()
    }


def our_side(opened: ExitStack, model: Path, settings: OcclusionSettings) -> Side:
    backend = opened.enter_context(load_backend(model, backend="onnxruntime"))
    occluder = opened.enter_context(Occluder(backend, settings))
    return lambda image: of_occlusion(occluder.explain(image), {}).values


class Clock:
    """Times sides and remembers what each took last, seconds."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def run(self, name: str, side: Side, image: np.ndarray) -> float:
        started = time.perf_counter()
        side(image)
        self.last[name] = time.perf_counter() - started
        return self.last[name]


def budget_side(opened: ExitStack, model: Path, peer_seconds: Callable[[], float]) -> Side:
    """Heat maps within a budget: what the peer took last, divided."""
    backend = opened.enter_context(load_backend(model, backend="onnxruntime"))
    occluder = opened.enter_context(Occluder(backend, SETTINGS))

    def side(image: np.ndarray) -> np.ndarray:
        occluder.settings = replace(SETTINGS, budget_ms=peer_seconds() / TIMES * 1000)
        return of_occlusion(occluder.explain(image), {}).values

    return side


def measure(
    sides: dict[str, Side], images: Sequence[np.ndarray], clock: Clock
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each side, and the sides whose budget was too small, with what they need, ms."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    refused: dict[str, float] = {}
    for number, image in enumerate(images):  # the first round warms up
        for name in list(seconds):
            try:
                taken = clock.run(name, sides[name], image)
            except BudgetError as error:
                refused[name] = error.needed_ms
                del seconds[name]
            else:
                if number:
                    seconds[name].append(taken)
    return seconds, refused


def agreement(peer: Side, ours: Side, image: np.ndarray) -> dict[str, float]:
    """Whether both sides computed the same."""
    expected, got = peer(image), ours(image)
    return {
        "rank_correlation": rank_correlation(expected, got),
        "max_difference_of_range": float(np.abs(got - expected).max() / np.ptp(expected)),
    }


def reached(
    within: Side, ours: dict[str, Side], variant: str, images: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Rank correlation of a variant's budgeted maps with its own whole maps and with FP32's."""
    found = []
    for image in images:
        with contextlib.suppress(BudgetError):  # counted: a busy moment may take the first pass
            found.append((image, within(image)))
    figures: dict[str, Any] = {"images": len(found), "not_assessed": len(images) - len(found)}
    for other in sorted({variant, "fp32"}) if found else ():
        whole = ours[f"incremental_{other}"]
        figures[f"with_whole_{other}"] = spread(
            [rank_correlation(whole(image), part) for image, part in found]
        )
    return figures


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": float(np.median(values)),
        "quantile_10": float(np.quantile(values, 0.1)),
        "min": min(values),
    }


def activation_cost(folder: Path, model: Path, rounds: int) -> dict[str, Any]:
    """What activation maps cost: `infer --heatmap activation` over `infer`, the command itself.

    Each run writes into a new folder of this disk, and of a disk in memory where there is one: a
    map is a file, and what a file costs is the disk's affair (`file_us`). All are deleted at the
    end, as a disk that is busy deleting makes files slowly.
    """
    figures: dict[str, Any] = {"images": sum(path.is_file() for path in folder.rglob("*"))}
    for disk, parent in (("disk", Path.cwd()), ("memory", _MEMORY)):
        if not os.access(parent, os.W_OK):
            continue
        with tempfile.TemporaryDirectory(dir=parent) as place:
            sides = _with_and_without(folder, model, Path(place))
            seconds = in_turn(sides, ((number,) for number in range(rounds + 1)))
            figures[disk] = {
                "seconds": {name: summary(values) for name, values in seconds.items()},
                "cost": ratio(seconds["with_activation"], seconds["infer"]),
                "file_us": _file_us(Path(place)),
            }
    return figures


def _with_and_without(folder: Path, model: Path, place: Path) -> dict[str, Callable[[int], None]]:
    def infer(number: int, *more: str) -> None:
        own = ["-o", f"{place}/{number}-{len(more)}.jsonl", *more]
        if code := run(["infer", str(folder), "--model", str(model), *own]):
            raise SystemExit(f"infer exited with {code}")

    def with_activation(number: int) -> None:
        infer(number, "--heatmap", "activation", "--heatmap-dir", f"{place}/{number}")

    return {"infer": infer, "with_activation": with_activation}


def _file_us(place: Path, files: int = 500) -> float:
    """Microseconds in which one thread makes a file of a map's size."""
    folder = place / "files"
    folder.mkdir()
    content = os.urandom(2048)
    started = time.perf_counter()
    for number in range(files):
        (folder / f"{number}.npz").write_bytes(content)
    return (time.perf_counter() - started) / files * 1e6


if __name__ == "__main__":
    main()
