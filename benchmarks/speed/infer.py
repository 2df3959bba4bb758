"""Speed of `deepcovid-edge infer` beside the published loop and beside the machine's roof.

Each side is a process of its own; they run in turn, several rounds, after a pause in which the
threads of the one before fall asleep; ratios are taken round by round and their median is quoted.

- `infer`: the command itself, from listing the folder to the written file of records, model
  loading included; Python's own start is not (see footprint.py). As a user types it, so the fastest
  verified variant of the model runs (`variant` names it); `infer_fp32` runs the model's own file.
- `published_loop`: peers/published_loop.py over the same files, as published, and without the
  gradients that it records for nothing.
- `roof`: the least work there is, see roof.py, with the same variant of the network.
  `roof_of_libraries` resizes with OpenCV, whose INTER_AREA takes longer.
  `roof_arithmetic` is cores over the sum of the two times that one thread takes for an image alone
  on the machine.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack, closing
from itertools import repeat
from pathlib import Path

import numpy as np

from benchmarks.measure.measurement import PAUSE, in_turn, ratio, store, summary
from benchmarks.measure.programs import Program
from benchmarks.speed import roof
from deepcovid_edge.backends import fastest_verified
from deepcovid_edge.datasets.dataset import walk_files
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import DEFAULT_MODEL, find_model

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
    images = list(walk_files(folder))
    variant = fastest_verified(model)
    architecture = read_manifest(model).architecture
    command, loop = (
        "benchmarks.peers.infer_command:make",
        ("benchmarks.peers:over", images, "published_loop"),
    )
    with ExitStack() as opened:

        def program(make: str, *given: object, **named: object) -> Program:
            return opened.enter_context(closing(Program(make, *given, **named)))

        sides = {
            "infer": program(command, folder, model),
            "infer_fp32": program(command, folder, model, "--backend", "onnxruntime"),
            "published_loop": program(*loop, architecture),
            "published_loop_without_gradients": program(*loop, architecture, gradients=False),
            "roof": program("benchmarks.speed.roof:make", variant, images),
            "roof_of_libraries": program(
                "benchmarks.speed.roof:make", variant, images, libraries=True
            ),
            "roof_fp32": program("benchmarks.speed.roof:make", model, images),
        }
        seconds = in_turn(sides, repeat((), options.rounds + 1), pause=PAUSE)
    decode, network = roof.parts(variant, images)
    cores = len(os.sched_getaffinity(0))
    arithmetic = cores / (decode + network)
    ours = [len(images) / value for value in seconds["infer"]]
    figures = {
        "model": read_manifest(model).name,
        "variant": read_manifest(variant).name,
        "images": len(images),
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "images_per_second": {
            name: len(images) / float(np.median(values)) for name, values in seconds.items()
        },
        "one_thread_ms": {"decode_and_resize": decode * 1e3, "network": network * 1e3},
        "roof_arithmetic_images_per_second": arithmetic,
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


if __name__ == "__main__":
    main()
