"""Speed of class activation maps beside pytorch-grad-cam and captum's LayerGradCam.

One prepared image to its judgement and its map on the network's input, all sides in turn in one
process on all cores, one image a round, with a pause before each side, as threads of the one before
spin for some milliseconds; ratios are taken round by round and their median is quoted.
Ours comes with the logits of the same call, in FP32 and in INT8 for CPUs. `agreement` is the rank
correlation of the maps: both peers cut off what speaks against the class before they lay the map on
the input, so ours is cut for it too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.measurement import (
    PAUSE,
    images_of_both_classes,
    in_turn,
    prepared,
    ratio,
    store,
    summary,
)
from benchmarks.peers import captum_grad_cam, grad_cam
from benchmarks.peers.captum_occlusion import torch_network
from benchmarks.variants import named, variant_of
from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import BackendSettings
from deepcovid_edge.heatmaps.agreement import rank_correlation
from deepcovid_edge.heatmaps.heatmap import of_activation
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import DEFAULT_MODEL

CORES = len(os.sched_getaffinity(0))
PEERS = {"pytorch_grad_cam": grad_cam, "captum_layer_grad_cam": captum_grad_cam}
IMAGES = 16

Side = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="images with train and val")
    parser.add_argument("--model", action="append", help="name or FP32 .onnx; repeatable")
    parser.add_argument("--rounds", type=int, default=101)
    options = parser.parse_args()
    for name in options.model or [DEFAULT_MODEL]:
        model = named(name)
        manifest = read_manifest(model)
        images = images_of_both_classes(options.data, manifest, IMAGES)
        pixels = [prepared(image, manifest.input) for image in images]
        figures = compare(
            model, variant_of(model, "int8-cpu", options.data), pixels, options.rounds
        )
        store(f"activation-speed-{manifest.name}", figures)


def compare(model: Path, int8: Path, images: Sequence[np.ndarray], rounds: int) -> dict[str, Any]:
    manifest = read_manifest(model)
    network = torch_network(model, np.stack(images))
    sides, missing = {}, {}
    for name, module in PEERS.items():
        try:
            sides[name] = module.make(network, manifest.positive_index, threads=CORES)
        except ImportError as error:
            missing[name] = str(error)
    with ExitStack() as opened:
        for variant, path in {"fp32": model, "int8": int8}.items():
            sides[f"activation_{variant}"] = ours(path, opened)
        given = ((image,) for image in islice(cycle(images), rounds + 1))
        seconds = in_turn(sides, given, pause=PAUSE)
        cut = ours(model, opened, cut=True)
        agreement = {name: agree(cut, sides[name], images) for name in PEERS if name in sides}
    ratios = {
        f"{side}_to_{peer}": ratio(seconds[peer], seconds[side])
        for side in ("activation_fp32", "activation_int8")
        for peer in PEERS
        if peer in seconds
    }
    for name, value in ratios.items():
        print(f"{manifest.name} {name}: {value['median']:.1f}")
    return {
        "model": manifest.name,
        "missing": missing,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "ratios": ratios,
        "agreement": agreement,
    }


def ours(path: Path, opened: ExitStack, *, cut: bool = False) -> Side:
    settings = BackendSettings(threads=CORES)
    backend = opened.enter_context(load_backend(path, backend="onnxruntime", settings=settings))
    manifest = backend.manifest

    def explain(image: np.ndarray) -> np.ndarray:
        found = backend.infer(image[None], activation_maps=True)
        assert found.activation_maps is not None
        own = found.activation_maps[0, manifest.positive_index]
        return of_activation(np.maximum(own, 0) if cut else own, manifest.input).values

    return explain


def agree(ours: Side, other: Side, images: Sequence[np.ndarray]) -> float:
    """Median rank correlation of the maps, of images on which anything speaks for the class."""
    pairs = [(ours(image), other(image)) for image in images]
    return float(np.median([rank_correlation(*pair) for pair in pairs if np.ptp(pair[0])]))


if __name__ == "__main__":
    main()
