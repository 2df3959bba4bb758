"""How the cost of `infer` grows: with images, their size, the batch, the workers and the windows.

Whole processes, timed from outside, peak memory as the kernel counted it; the start of the process
(one image) is taken off the time an image. Windows are those of occlusion, of the command `heatmap`
with one stride or another. One file, cost.json, and one plot for each growth beside it, drawn from
that file.

    python -m benchmarks.speed.cost --data DATA           measure, store, draw
    python -m benchmarks.speed.cost --draw RESULT.json    draw again
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measure import store
from benchmarks.measure.options import parser_of
from benchmarks.measure.programs import links, run_command, run_repeatedly
from deepcovid_edge.datasets.dataset import walk_files
from deepcovid_edge.heatmaps.windows import OcclusionSettings, WindowGrid
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import InputSpec

IMAGES = (100, 1000, 10_000)
MEGAPIXELS = (0.5, 1, 2, 4, 8, 12)
BATCHES = (1, 2, 4, 8, 16, 32)
WORKERS = (1, 2, 3, 4, 8)
STRIDES = (32, 16, 8, 4)
"""From one occlusion window to the next, pixels."""
SHARE = 200
"""Images of a run in which something else than their number grows."""
EXPLAINED = 8
"""Images of a run in which the windows grow."""
GROWTHS = {
    "images": ("images", "log"),
    "megapixels": ("size of an image, megapixels", "linear"),
    "batch": ("images an inference", "log"),
    "workers": ("threads that work", "linear"),
    "windows": ("occlusion windows an image", "log"),
}
"""Growth -> what grows, and the scale on which it is drawn."""
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "deepcovid-edge", "font.size": 9}


Step = tuple[str, float, int, list[str]]
"""What grows, its value, the number of images, and the command."""


def main() -> None:
    """Measure or take a stored result, and draw it."""
    parser = parser_of(__doc__, rounds=3)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--data", type=Path, help="folder that holds test/")
    given.add_argument("--draw", type=Path, help="stored cost.json")
    parser.add_argument("--most-images", type=int, default=IMAGES[-1])
    options = parser.parse_args()
    path = options.draw or measure(options)
    draw(json.loads(path.read_text(encoding="utf-8")), path.parent)


def measure(options: argparse.Namespace) -> Path:
    """Run all commands and store their times and peaks."""
    images = list(walk_files((options.data / "test").resolve()))
    with tempfile.TemporaryDirectory() as place:
        warmed = Path(place, "warmed")
        warmed.mkdir()
        run_command(infer(links(images, len(images), warmed)))  # the page cache
        start = repeated(infer(images[0]), 1, options.rounds, 0.0)
        figures: dict[str, Any] = {"start": start, "share": SHARE}
        for growth, value, count, command in steps(images, options.most_images, Path(place)):
            run = repeated(command, count, options.rounds, start["seconds"]["median"])
            figures.setdefault(growth, {})[f"{value:g}"] = run
            print(f"{growth} {value:g}: {run['ms_an_image']:.2f} ms an image", flush=True)
    for growth in GROWTHS:
        peaks = [run["peak_mib"]["median"] for run in figures[growth].values()]
        figures[f"memory_ratio_{growth}"] = max(peaks) / min(peaks)
    return store("cost", figures)


def steps(images: list[Path], most: int, place: Path) -> Iterator[Step]:
    """All commands, one thing grown at a time."""
    for count in IMAGES:
        if count <= most:
            yield "images", count, count, infer(links(images, count, place))
    for size in MEGAPIXELS:
        folder = place / f"size-{size:g}"
        folder.mkdir()
        large = links([resize(images[0], size, folder)], SHARE, folder)
        yield "megapixels", size, SHARE, infer(large)
    common, explained = (place / name for name in ("common", "explained"))
    common.mkdir()
    explained.mkdir()
    common, explained = links(images, SHARE, common), links(images, EXPLAINED, explained)
    for batch in BATCHES:
        yield "batch", batch, SHARE, infer(common, "--batch-size", str(batch))
    for workers in WORKERS:
        yield "workers", workers, SHARE, infer(common, "--workers", str(workers))
    for stride in STRIDES:
        command = ["heatmap", str(explained), "--stride", str(stride), "-o", str(place / "maps")]
        yield "windows", windows(stride), EXPLAINED, command


def infer(folder: Path, *options: str) -> list[str]:
    """Arguments of `infer` over a folder."""
    return ["infer", str(folder), *options, "-o", os.devnull]


def windows(stride: int) -> int:
    """Occlusion windows of an image."""
    spec = InputSpec()
    settings = OcclusionSettings(stride=stride)
    return len(WindowGrid.over(spec.height, spec.width, settings).boxes)


def resize(image: Path, megapixels: float, folder: Path) -> Path:
    """An image of that many pixels, as JPEG of quality 90."""
    pixels = read_radiograph(image).pixels
    scale = (megapixels * 1e6 / pixels.size) ** 0.5
    rows, columns = (round(side * scale) for side in pixels.shape)
    larger = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_CUBIC)
    path = folder / f"image-{megapixels:g}.jpg"
    cv2.imwrite(str(path), larger, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return path


def repeated(arguments: list[str], count: int, rounds: int, start: float) -> dict[str, Any]:
    """Seconds and peak memory of a command, and milliseconds an image after the start."""
    found = run_repeatedly(arguments, rounds)
    spent = (found["seconds"]["median"] - start) * 1000 / count
    return {"images": count, **found, "ms_an_image": spent}


def draw(figures: dict[str, Any], folder: Path) -> None:
    """Draw one plot for each growth."""
    for growth, (label, scale) in GROWTHS.items():
        values = [float(value) for value in figures[growth]]
        runs = list(figures[growth].values())
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=(8.0, 2.8), layout="constrained")
            time, memory = figure.subplots(1, 2)
            scatter(time, values, runs, "seconds", start=figures["start"]["seconds"]["median"])
            scatter(memory, values, runs, "peak_mib", start=None)
            time.set(ylabel="milliseconds an image", xlabel=label, xscale=scale)
            memory.set(ylabel="peak memory, MiB", xlabel=label, xscale=scale)
            for axes in (time, memory):
                axes.set_ylim(bottom=0)
                axes.set_xticks(values, [f"{value:g}" for value in values])
                axes.minorticks_off()
            path = folder / f"cost-{growth}.svg"
            figure.savefig(path, metadata={"Date": None})
        print(path.name)


def scatter(
    axes: Axes,
    values: Sequence[float],
    runs: Sequence[dict[str, Any]],
    figure: str,
    *,
    start: float | None,
) -> None:
    """Every sample as a point, medians joined."""

    def scaled(sample: float, run: dict[str, Any]) -> float:
        return sample if start is None else (sample - start) * 1000 / run["images"]

    medians = [scaled(run[figure]["median"], run) for run in runs]
    axes.plot(values, medians, "-", color="C0")
    for value, run in zip(values, runs, strict=True):
        samples = run[figure]["samples"]
        axes.plot([value] * len(samples), [scaled(one, run) for one in samples], ".", color="C0")


if __name__ == "__main__":
    main()
