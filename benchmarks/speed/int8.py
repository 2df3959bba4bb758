"""Speed of INT8 for CPUs beside FP32: the network alone, through our own backend.

An INT8 file that is not there is made first (variants.py); the equivalence check's verdict is
stored beside the speed. Both networks then take turns in one process, round after round, on the
same prepared images, with a pause before each; ratios are taken round by round and their median is
quoted. `threads_1` is one `infer` call on one core, `threads_all` one call on all of them;
`cores_busy` is what `deepcovid-edge infer` does: one call on each core at once.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.measurement import PAUSE, in_turn, ratio, store, summary
from benchmarks.variants import named, variant_of
from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend, BackendSettings
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.files import file_sha256
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import InputSpec, read_manifest
from deepcovid_edge.models import DEFAULT_MODEL

CORES = len(os.sched_getaffinity(0))
BATCHES = (1, 8)
IMAGES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="images with train, val and test")
    parser.add_argument("--model", action="append", help="shipped name or FP32 .onnx; repeatable")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for name in options.model or [DEFAULT_MODEL]:
        model = named(name)
        compare(model, variant_of(model, "int8-cpu", options.data), options)


def compare(model: Path, int8: Path, options: argparse.Namespace) -> None:
    manifest = read_manifest(int8)
    images = prepared(options.data, manifest.input)
    figures: dict[str, Any] = {
        "model": read_manifest(model).name,
        "model_sha256": file_sha256(model),
        "excluded": manifest.quantization["excluded"],
        "equivalence": manifest.quantization["equivalence"],
        "images": IMAGES,
        "runs": {},
    }
    for mode, threads in (("threads_1", 1), ("threads_all", CORES), ("cores_busy", 1)):
        settings = BackendSettings(threads=threads)
        for batch in BATCHES:
            with ExitStack() as loaded:
                sides = {
                    name: loaded.enter_context(
                        load_backend(path, backend="onnxruntime", settings=settings)
                    )
                    for name, path in (("fp32", model), ("int8", int8))
                }
                run = busy if mode == "cores_busy" else one_after_another
                batches = [images[start : start + batch] for start in range(0, IMAGES, batch)]
                timed = {name: partial(run, backend) for name, backend in sides.items()}
                seconds = in_turn(timed, repeat((batches,), options.rounds + 1), pause=PAUSE)
            name = f"{mode}_batch_{batch}"
            figures["runs"][name] = result(seconds)
            print(f"{figures['model']} {name}: {figures['runs'][name]['ratio']['median']:.2f}")
    store(f"quantized-speed-{figures['model']}", figures)


def prepared(data: Path, spec: InputSpec) -> np.ndarray:
    images = load_dataset(data, split="test")[:IMAGES]
    return np.stack([prepare(read_radiograph(image.path), spec) for image in images])


def one_after_another(backend: Backend, batches: list[np.ndarray]) -> None:
    for batch in batches:
        backend.infer(batch)


def busy(backend: Backend, batches: list[np.ndarray]) -> None:
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(backend.infer, batches))


def result(seconds: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "images_per_second": {
            name: IMAGES / float(np.median(values)) for name, values in seconds.items()
        },
        "ratio": ratio(seconds["fp32"], seconds["int8"]),
    }


if __name__ == "__main__":
    main()
