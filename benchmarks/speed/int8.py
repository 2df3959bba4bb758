"""Speed of INT8 for CPUs beside FP32: the network alone, through our own backend.

An INT8 file that is not there is made first (variants.py); the verdict of its equivalence check is
stored beside the speed. Both networks then take turns in one process, round after round, on the
same prepared images, with a pause before each. Ratios are taken round by round and their median is
quoted. `threads_1` is one `infer` call on one core, `threads_all` one call on all of them;
`cores_busy` is what `deepcovid-edge infer` does: one call on each core at once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure import Pixels
from benchmarks.measure.options import parser_of
from benchmarks.variants import pairs
from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import read_manifest

MODES = {"threads_1": (1, 1), "threads_all": (measure.CORES, 1), "cores_busy": (1, measure.CORES)}
"""Mode -> threads inside a call, and calls at once."""
BATCHES = (1, 8)
IMAGES = 32


def main() -> None:
    """Measure each model, and store the results."""
    parser = parser_of(__doc__, data="images with train, val and test", model="several", rounds=15)
    options = parser.parse_args()
    for files in pairs(options.model, options.data):
        figures = compare(files, options.data, options.rounds)
        ratios = {run: found["ratio"] for run, found in figures["runs"].items()}
        measure.print_medians(figures["model"], ratios)
        measure.store(f"quantized-speed-{figures['model']}", figures)


def compare(files: dict[str, Path], data: Path, rounds: int) -> dict[str, Any]:
    """Both files in each mode, at each batch."""
    manifest = read_manifest(files["int8"])
    images = load_dataset(data, split="test")[:IMAGES]
    pixels = np.stack([measure.prepared(image.path, manifest.input) for image in images])
    runs = {
        f"{mode}_batch_{batch}": run(files, pixels, batch, *MODES[mode], rounds=rounds)
        for mode in MODES
        for batch in BATCHES
    }
    return {
        "model": read_manifest(files["fp32"]).name,
        "model_sha256": file_sha256(files["fp32"]),
        "excluded": manifest.quantization["excluded"],
        "equivalence": manifest.quantization["equivalence"],
        "images": IMAGES,
        "runs": runs,
    }


def run(
    files: dict[str, Path], pixels: Pixels, batch: int, threads: int, calls: int, *, rounds: int
) -> dict[str, Any]:
    """All images in batches, with some threads inside a call and some calls at once."""
    batches = [pixels[start : start + batch] for start in range(0, IMAGES, batch)]
    settings = BackendSettings(threads=threads)

    def classify(infer: Any) -> None:
        if calls == 1:
            for images in batches:
                infer(images)
            return
        with ThreadPoolExecutor(calls) as pool:
            list(pool.map(infer, batches))

    with ExitStack() as opened:
        sides = {}
        for name, path in files.items():
            loaded = load_backend(path, backend="onnxruntime", settings=settings)
            sides[name] = partial(classify, opened.enter_context(loaded).infer)
        seconds = measure.in_turn(sides, repeat((), rounds + 1), pause=measure.PAUSE)
    return {
        "seconds": measure.summaries(seconds),
        "images_per_second": {
            name: IMAGES / float(np.median(values)) for name, values in seconds.items()
        },
        "ratio": measure.ratio(seconds["fp32"], seconds["int8"]),
    }


if __name__ == "__main__":
    main()
