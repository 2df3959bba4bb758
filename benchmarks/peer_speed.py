"""`deepcovid-edge infer` beside each program that a user would write or pick instead.

All in one process, in turn, several rounds; ratios are taken round by round and their median is
quoted. Each peer reads, prepares and judges the same files; `infer` also checks each file, hashes
it and writes a record. A peer whose package or compiler is missing is stored with the reason.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
from footprint import links
from infer_speed import infer, measure, ratio
from measuring import store, summary

from deepcovid_edge.backends import fastest_verified
from deepcovid_edge.dataset import walk_files
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import DEFAULT_MODEL, find_model

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
}
"""Side -> the peer's module and its settings."""
OF_TORCH = ("published_loop", "compiled_loop")
"""Peers that take an architecture; the others take a file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds test/")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--films", type=int, help="only so many of them")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    model = find_model(options.model)
    found = list(walk_files((options.data / "test").resolve()))[: options.films]
    with tempfile.TemporaryDirectory() as place:
        folder = links(found, len(found), Path(place))
        figures = compare(model, folder, options.rounds)
    for name, value in figures["ratios"].items():
        print(f"{name}: {value['median']:.2f}")
    store(f"peer-speed-{figures['model']}", figures)


def compare(model: Path, folder: Path, rounds: int) -> dict[str, Any]:
    form, films = fastest_verified(model), list(walk_files(folder))
    sides: dict[str, Callable[[], object]] = {
        "infer": partial(infer, folder, model),
        "infer_fp32": partial(infer, folder, model, "--backend", "onnxruntime"),
    }
    missing: dict[str, str] = {}
    for name, file in named(model, form):
        try:
            sides[name] = made(name, file, films)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            print(f"{name}: {missing[name]}")
    seconds = measure(sides, rounds)
    return {
        "model": read_manifest(model).name,
        "form": read_manifest(form).name,
        "films": len(films),
        "missing": missing,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "ratios": {
            f"{side}_to_{other}": ratio(seconds[other], seconds[side])
            for side in ("infer", "infer_fp32")
            for other in seconds
            if other != side
        },
    }


def named(model: Path, form: Path) -> list[tuple[str, Path]]:
    """Sides with their files: peers of a file run both forms, the faster one as `..._form`."""
    both = [(name, model) for name in PEERS]
    if form != model:
        both += [(f"{name}_form", form) for name in PEERS if PEERS[name][0] not in OF_TORCH]
    return both


def made(name: str, file: Path, films: list[Path]) -> Callable[[], object]:
    """The peer, tried on one film: what it lacks shows before the rounds begin."""
    module, settings = PEERS[name.removesuffix("_form")]
    what = read_manifest(file).architecture if module in OF_TORCH else file
    judge = import_module(f"peers.{module}").make(what, **settings)
    judge(films[:1])
    return partial(judge, films)


if __name__ == "__main__":
    main()
