"""Speed of class activation maps beside pytorch-grad-cam and captum's LayerGradCam.

    python -m benchmarks.heatmaps.activation --data DATA

One prepared image to its decision and its map on the network's input. All sides take turns in one
process on all cores, one image a round, with a pause before each side, as threads of the one before
spin for some milliseconds. Ratios are taken round by round and their median is quoted. Ours comes
with the logits of the same call, in FP32 and in INT8 for CPUs. `agreement` is the rank correlation
of the maps: both peers cut off what speaks against the class, and lay the map on the input by
bilinear interpolation. So this is done to ours for it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import measure
from benchmarks.measure import Pixels
from benchmarks.measure.options import parser_of
from benchmarks.peers.captum_occlusion import torch_network
from benchmarks.peers.grad_cam import PEERS
from benchmarks.variants import pairs
from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.heatmaps.agreement import rank_correlation
from deepcovid_edge.heatmaps.heatmap import of_activation
from deepcovid_edge.manifest import read_manifest

IMAGES = 16

Side = Callable[[Pixels], Pixels]
"""Image -> heat map, both of the network's input shape."""


def main() -> None:
    """Measure each model, and store the results."""
    parser = parser_of(__doc__, data="images with train and val", model="several", rounds=101)
    options = parser.parse_args()
    for files in pairs(options.model, options.data):
        _, images = measure.prepared_val(options.data, read_manifest(files["fp32"]), IMAGES)
        figures = compare(files, images, options.rounds)
        measure.print_medians(figures["model"], figures["ratios"])
        measure.store(f"activation-speed-{figures['model']}", figures)


def compare(files: dict[str, Path], images: Sequence[Pixels], rounds: int) -> dict[str, Any]:
    """Seconds, ratios and agreement of all sides; why a peer is missing."""
    manifest = read_manifest(files["fp32"])
    network = torch_network(files["fp32"], np.stack(images))
    sides: dict[str, Side] = {}
    missing = {}
    for name, make in PEERS.items():
        try:
            sides[name] = make(network, manifest.positive_index, threads=measure.CORES)
        except ImportError as error:
            missing[name] = str(error)
    peers = list(sides)
    with ExitStack() as opened:
        sides |= {f"activation_{variant}": ours(path, opened) for variant, path in files.items()}
        given = ((image,) for image in islice(cycle(images), rounds + 1))
        seconds = measure.in_turn(sides, given, pause=measure.PAUSE)
        alike = ours(files["fp32"], opened, as_peers=True)
        agreement = {name: agree(alike, sides[name], images) for name in peers}
    return {
        "model": manifest.name,
        "missing": missing,
        "seconds": measure.summaries(seconds),
        "ratios": measure.ratios_to(seconds, [f"activation_{variant}" for variant in files], peers),
        "agreement": agreement,
    }


def ours(path: Path, opened: ExitStack, *, as_peers: bool = False) -> Side:
    """Our maps; with `as_peers` cut and interpolated as theirs."""
    settings = BackendSettings(threads=measure.CORES)
    backend = opened.enter_context(load_backend(path, backend="onnxruntime", settings=settings))
    manifest = backend.manifest

    def explain(image: Pixels) -> Pixels:
        found = backend.infer(image[None], activation_maps=True)
        assert found.activation_maps is not None
        own = found.activation_maps[0, manifest.positive_index]
        if as_peers:
            resized: Pixels = cv2.resize(np.maximum(own, 0), image.shape[::-1])
            return resized
        return of_activation(own, manifest.input).values

    return explain


def agree(ours: Side, other: Side, images: Sequence[Pixels]) -> float:
    """Median rank correlation of the maps, over images where anything speaks for the class."""
    pairs = [(ours(image), other(image)) for image in images]
    return float(np.median([rank_correlation(*pair) for pair in pairs if np.ptp(pair[0])]))


if __name__ == "__main__":
    main()
