"""Speed of `deepcovid-edge infer` beside the published loop and beside the machine's roof.

All sides run in one process, in turn, several rounds; ratios are taken round by round and their
median is quoted.

- `infer`: the command itself, from listing the folder to the written file of records, model
  loading included; Python's own start is not (see footprint.py). As a user types it, so the fastest
  verified form of the model runs (`form` names it); `infer_fp32` runs the model's own file.
- `published_loop`: peers/published_loop.py over the same files, as published, and without the
  gradients that it records for nothing.
- `roof`: the least work there is: read, decode with simplejpeg, resize as `infer` does, run the
  same form of the network; one thread a core, each with its own share of the films, nothing else.
  `roof_of_libraries` resizes with OpenCV, whose INTER_AREA takes longer.
  `roof_arithmetic` is cores over the sum of the two times that one thread takes for a film alone
  on the machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import simplejpeg
from measuring import in_turn, ratio, store, summary
from peers import onnxruntime_loop, published_loop

from deepcovid_edge.backends import fastest_verified
from deepcovid_edge.cli.main import run
from deepcovid_edge.dataset import walk_files
from deepcovid_edge.images import Radiograph
from deepcovid_edge.manifest import InputSpec, read_manifest
from deepcovid_edge.models import DEFAULT_MODEL, find_model
from deepcovid_edge.preprocess import prepare

LOOPS = ("published_loop", "published_loop_without_gradients")
COMPARED = {
    "infer": (*LOOPS, "roof", "roof_of_libraries", "infer_fp32"),
    "infer_fp32": (*LOOPS, "roof_fp32"),
}
"""What each side is set against."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds test/")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    folder, model = options.data / "test", find_model(options.model)
    films = list(walk_files(folder))
    form = fastest_verified(model)
    architecture = read_manifest(model).architecture
    sides = {
        "infer": lambda: infer(folder, model),
        "infer_fp32": lambda: infer(folder, model, "--backend", "onnxruntime"),
        "published_loop": partial(published_loop.make(architecture), films),
        "published_loop_without_gradients": partial(
            published_loop.make(architecture, gradients=False), films
        ),
        "roof": Roof(form, films),
        "roof_of_libraries": Roof(form, films, onnxruntime_loop.prepared),
        "roof_fp32": Roof(model, films),
    }
    seconds = in_turn(sides, repeat((), options.rounds + 1))
    decode, network = Roof(form, films).parts()
    cores = len(os.sched_getaffinity(0))
    arithmetic = cores / (decode + network)
    ours = [len(films) / value for value in seconds["infer"]]
    figures = {
        "model": read_manifest(model).name,
        "form": read_manifest(form).name,
        "films": len(films),
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "films_per_second": {
            name: len(films) / float(np.median(values)) for name, values in seconds.items()
        },
        "one_thread_ms": {"decode_and_resize": decode * 1e3, "network": network * 1e3},
        "roof_arithmetic_films_per_second": arithmetic,
        "ratios": {
            f"{side}_to_{other}": ratio(seconds[other], seconds[side])
            for side, others in COMPARED.items()
            for other in others
        }
        | {"infer_to_roof_arithmetic": summary([value / arithmetic for value in ours])},
    }
    for name, value in figures["ratios"].items():
        print(f"{name}: {value['median']:.2f}")
    store(f"infer-speed-{figures['model']}", figures)


def infer(folder: Path, model: Path, *options: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        output = ["-o", f"{place}/out.jsonl"]
        code = run(["infer", str(folder), "--model", str(model), *output, *options])
        if code:
            raise SystemExit(f"infer exited with {code}")


def prepared(film: Path) -> np.ndarray:
    """A film as `infer` decodes and resizes it, unchecked."""
    pixels = simplejpeg.decode_jpeg(film.read_bytes(), "GRAY")[..., 0]
    return prepare(Radiograph(pixels, 255, "", "JPEG"), InputSpec())


class Roof:
    """Decode and network, one thread a core, nothing else."""

    def __init__(
        self, model: Path, films: list[Path], decode: Callable[[Path], np.ndarray] | None = None
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self.films = films
        self.decode = decode or prepared

    def __call__(self) -> None:
        cores = len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(self.share, (self.films[core::cores] for core in range(cores))))

    def share(self, films: list[Path]) -> None:
        for film in films:
            self.network(self.decode(film))

    def network(self, pixels: np.ndarray) -> None:
        self.session.run(["logits"], {"images": pixels[None]})

    def parts(self) -> tuple[float, float]:
        """Seconds a film for decoding and for the network, one thread alone."""
        cv2.setNumThreads(1)
        started = time.perf_counter()
        pixels = [self.decode(film) for film in self.films]
        decoded = time.perf_counter()
        for film in pixels:
            self.network(film)
        ended = time.perf_counter()
        return (decoded - started) / len(pixels), (ended - decoded) / len(pixels)


if __name__ == "__main__":
    main()
