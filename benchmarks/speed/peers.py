"""`deepcovid-edge infer` beside each program that a user would write or pick instead.

Each in a process of its own, in turn, several rounds, after a pause in which the threads of the one
before fall asleep; ratios are taken round by round and their median is quoted. Each peer reads,
prepares and classifies the same files; `infer` also checks each file, hashes it and writes a
record. A peer whose package, compiler or device is missing is stored with the reason. Without
--model, the models, peers, rounds and images are those of a suite (suites/*.toml).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks.measure.measurement import PAUSE, in_turn, ratio, store, summary
from benchmarks.measure.programs import Program
from benchmarks.speed.footprint import links
from benchmarks.suites.run import Peers, read_suite
from benchmarks.variants import named as file_of
from deepcovid_edge.backends import fastest_verified
from deepcovid_edge.datasets.dataset import walk_files
from deepcovid_edge.manifest import read_manifest

CORES = len(os.sched_getaffinity(0))
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "published_loop": ("published_loop", {}),
    "published_loop_without_gradients": ("published_loop", {"gradients": False}),
    "torch_compile": ("compiled_loop", {}),
    "torchvision_onnxruntime": ("torchvision_loop", {}),
    "onnxruntime": ("onnxruntime_loop", {}),
    "onnxruntime_a_call_a_core": ("onnxruntime_loop", {"threads": CORES}),
    "openvino": ("openvino_loop", {}),
    "openvino_any_precision": ("openvino_loop", {"precision": None}),
    "published_loop_cuda": ("published_loop", {"gradients": False, "device": "cuda"}),
    "torch_compile_cuda": ("compiled_loop", {"device": "cuda"}),
    "polygraphy": ("polygraphy_loop", {}),
}
"""Side -> the peer's module and its settings."""
OF_TORCH = ("published_loop", "compiled_loop")
"""Peers that take an architecture; the others take a file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds test/")
    parser.add_argument("--suite", default="default", help="name in suites/, or a .toml file")
    parser.add_argument("--model", help="name or file; then no suite is read")
    parser.add_argument("--peer", action="append", choices=PEERS, help="repeatable  [default: all]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, help="only so many of them")
    options = parser.parse_args()
    own = Peers(options.model or "", tuple(options.peer or ()), options.rounds, options.images)
    for asked in (own,) if options.model else read_suite(options.suite).peers:
        measured(asked, options.data)


def measured(asked: Peers, data: Path) -> None:
    """Run the peers of a model and store what came of it."""
    if unknown := set(asked.programs) - set(PEERS):
        raise ValueError(f"programs: got {sorted(unknown)}, expected some of {', '.join(PEERS)}")
    found = list(walk_files((data / "test").resolve()))[: asked.images]
    with tempfile.TemporaryDirectory() as place:
        folder = links(found, len(found), Path(place))
        figures = compare(file_of(asked.model), folder, asked.rounds, asked.programs or (*PEERS,))
    for name, value in figures["ratios"].items():
        print(f"{figures['model']} {name}: {value['median']:.2f}")
    store(f"peer-speed-{figures['model']}", figures)


def compare(model: Path, folder: Path, rounds: int, programs: Sequence[str]) -> dict[str, Any]:
    variant, images = fastest_verified(model), list(walk_files(folder))
    command = ("benchmarks.peers.infer_command:make", folder, model)
    missing: dict[str, str] = {}
    with ExitStack() as opened:
        sides = {
            "infer": opened.enter_context(closing(Program(*command))),
            "infer_fp32": opened.enter_context(
                closing(Program(*command, "--backend", "onnxruntime"))
            ),
        }
        for name, file in named(model, variant, programs):
            try:
                sides[name] = opened.enter_context(closing(peer(name, file, images)))
            except RuntimeError as error:
                missing[name] = str(error)
                print(f"{name}: {error}")
        seconds = in_turn(sides, repeat((), rounds + 1), pause=PAUSE)
    return {
        "model": read_manifest(model).name,
        "variant": read_manifest(variant).name,
        "images": len(images),
        "missing": missing,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "ratios": {
            f"{side}_to_{other}": ratio(seconds[other], seconds[side])
            for side in ("infer", "infer_fp32")
            for other in seconds
            if other != side
        },
    }


def named(model: Path, variant: Path, programs: Sequence[str]) -> list[tuple[str, Path]]:
    """Sides with their files: peers of a file run both variants, the faster as `..._variant`."""
    both = [(name, model) for name in programs]
    if variant != model:
        both += [
            (f"{name}_variant", variant) for name in programs if PEERS[name][0] not in OF_TORCH
        ]
    return both


def peer(name: str, file: Path, images: list[Path]) -> Program:
    """A peer, tried on one image: what it lacks shows before the rounds begin."""
    module, settings = PEERS[name.removesuffix("_variant")]
    what = read_manifest(file).architecture if module in OF_TORCH else file
    return Program("benchmarks.peers:over", images, module, what, **settings)


if __name__ == "__main__":
    main()
