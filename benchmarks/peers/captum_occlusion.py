"""Occlusion as a user of torch would do it: captum's `Occlusion` (pytorch.org, 0.9).

The network is ours, eager, with the weights of the ONNX file, so that maps can be compared too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from captum.attr import Occlusion
from onnx import numpy_helper

from benchmarks.measure import Pixels
from deepcovid_edge.heatmaps.windows import OcclusionSettings
from deepcovid_edge.manifest import read_manifest
from deepcovid_export.networks import Classifier, build_network
from deepcovid_export.onnx_export.half_weights import restore_float
from deepcovid_export.onnx_export.to_onnx import compare

_FOLDED = "_bias"
"""What the exporter adds to a convolution's name for the bias of a folded normalisation."""


def make(
    network: Classifier, positive: int, settings: OcclusionSettings, *, windows: int, threads: int
) -> Callable[[Pixels], Pixels]:
    """The positive logit's map of an image, with that many windows in an evaluation."""
    occlusion = Occlusion(lambda images: network(images)[0])

    def explain(image: Pixels) -> Pixels:
        torch.set_num_threads(threads)
        values = occlusion.attribute(
            torch.from_numpy(image[None].astype(np.float32)),
            sliding_window_shapes=(settings.window, settings.window),
            strides=(settings.stride, settings.stride),
            baselines=0,
            target=positive,
            perturbations_per_eval=windows,
        )
        return np.asarray(values[0])

    return explain


def torch_network(path: Path, images: Pixels) -> Classifier:
    """The torch network of an FP32 file, proved equal to it on these prepared images."""
    manifest = read_manifest(path)
    network = build_network(manifest.architecture, len(manifest.classes)).eval()
    model = restore_float(onnx.load(path))
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    tensors = {name: torch.tensor(values) for name, values in stored.items()}
    parameters = network.state_dict()
    parameters.update({name: value for name, value in tensors.items() if name in parameters})
    for name, bias in tensors.items():
        if name.endswith(f".weight{_FOLDED}"):
            parameters |= _shift(network, name.removesuffix(f".weight{_FOLDED}"), bias)
    network.load_state_dict(parameters)
    compare(network, path, images, kind="real")
    return network


def _shift(network: Classifier, convolution: str, bias: torch.Tensor) -> dict[str, torch.Tensor]:
    """A normalisation that does nothing but add: what is left of one folded into its weights."""
    name = _normalisation(convolution)
    normalisation = network.get_submodule(name)
    assert isinstance(normalisation, torch.nn.BatchNorm2d)
    one = torch.ones_like(bias)
    return {
        f"{name}.weight": one * (1 + normalisation.eps) ** 0.5,
        f"{name}.bias": bias,
        f"{name}.running_mean": one * 0,
        f"{name}.running_var": one,
    }


def _normalisation(convolution: str) -> str:
    """As torchvision's ResNets name what follows a convolution."""
    parent, _, last = convolution.rpartition(".")
    return f"{parent}.1" if last == "0" else f"{parent}.{last.replace('conv', 'bn')}"
