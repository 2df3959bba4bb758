"""Weights to start from: ImageNet's or those of a file, folded from three channels to one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcovid_edge.errors import DataError, require
from deepcovid_export.networks.architectures import Architecture, find_architecture
from deepcovid_export.networks.classifier import (
    GREY_MEAN,
    GREY_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Classifier,
)
from deepcovid_export.networks.torchvision_models import torchvision_models

# torchvision/models/densenet.py, _load_state_dict: names in files older than torch 0.4.
_DOTTED = re.compile(
    r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$"
)
_COUNTER = "num_batches_tracked"
_HEADS = ("classifier.", "fc.", "maps.")
_WHOLE = "holds a whole module or other objects, expected weights alone: save its state_dict()"
_NO_WEIGHTS = "not a checkpoint: expected .pth, .safetensors or a checkpoint of an earlier run"


def load_imagenet(network: Classifier, architecture: str, weights: Path | None) -> str:
    """Start a network, except its class maps, from ImageNet weights or those of a file.

    Args:
        network: The network from `build_network`.
        architecture: Its name.
        weights: A `.safetensors` or `.pth` file with torchvision's names, or a checkpoint of
            `deepcovid-edge train`; None for torchvision's own ImageNet weights (downloaded once
            by torch.hub).

    Returns:
        Where the weights came from, for the manifest.

    Raises:
        DataError: The weights cannot be read or downloaded, or do not fit.
    """
    known = find_architecture(architecture)
    state = _torchvision_state(architecture, known) if weights is None else _state_file(weights)
    features = {
        name.removeprefix("features."): value.float()
        for name, value in state.items()
        if not name.startswith(_HEADS)
    }
    wanted = network.features.state_dict()
    features |= {name: wanted[name] for name in wanted if name.endswith(_COUNTER)}
    for name in sorted(set(wanted) ^ set(features)):
        reason = "no weights for" if name in wanted else "unknown weights"
        raise DataError(f"{weights}: {reason} {name}; expected {architecture} weights")
    fold_to_grey(features, known)
    try:
        network.features.load_state_dict(features)
    except RuntimeError as error:
        raise DataError(f"{weights}: does not fit {architecture}: {error}") from error
    return weights.name if weights else f"torchvision {architecture} IMAGENET1K_V1"


def fold_to_grey(state: dict[str, Tensor], architecture: Architecture) -> None:
    """Fold the first convolution to one channel.

    The constant part goes into the bias, or is taken from the mean of the following batch
    normalisation. This is exact except at the border of a padded convolution.
    """
    kernel = state[f"{architecture.first}.weight"]
    if kernel.ndim != 4 or kernel.shape[1] != 3:  # grey already, or an error of load_state_dict
        return
    grey, ones = fold_kernel(kernel)
    constant = ones.sum(dim=(1, 2, 3))
    state[f"{architecture.first}.weight"] = grey
    if architecture.first_norm:
        mean = f"{architecture.first_norm}.running_mean"
        state[mean] = state[mean] - constant
    else:
        bias = f"{architecture.first}.bias"
        state[bias] = state[bias] + constant


def fold_kernel(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Split a convolution over normalised RGB into one over normalised grey and one over ones.

    With R = G = B = g and z = (g - m) / s, channel c's input is (s z + m - mean_c) / std_c.

    Args:
        kernel: Of shape (out, 3, h, w).

    Returns:
        Two kernels of shape (out, 1, h, w): over z, and over 1 inside the image and 0 outside.
    """
    std = kernel.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
    offset = (GREY_MEAN - kernel.new_tensor(IMAGENET_MEAN)).view(1, 3, 1, 1) / std
    grey = (kernel * (GREY_STD / std)).sum(dim=1, keepdim=True)
    return grey, (kernel * offset).sum(dim=1, keepdim=True)


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under today's names, without those of wrappers and of old versions."""
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    return {_DOTTED.sub(r"\1\2", name): value for name, value in bare.items()}


def state_of(content: Any) -> dict[str, Tensor] | None:
    """The state dict in the content of a file, bare or under a name; None if there is none."""
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content:
        return None
    if not all(isinstance(key, str) and isinstance(content[key], Tensor) for key in content):
        return None
    return plain_names(content)


def _state_file(path: Path) -> dict[str, Tensor]:
    if is_safetensors := path.suffix == ".safetensors":
        require("safetensors", extra="export")
    try:
        if is_safetensors:
            from safetensors.torch import load_file

            return plain_names(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # both readers raise many types
        holds_objects = "Unsupported global" in str(error)  # torch's unpickler, of a class
        raise DataError(f"{path}: {_WHOLE if holds_objects else _NO_WEIGHTS}") from error
    state = state_of(content)
    if state is None:
        raise DataError(f"{path}: {_NO_WEIGHTS}")
    return state


def _torchvision_state(name: str, architecture: Architecture) -> dict[str, Tensor]:
    if not architecture.head:
        raise DataError(f"{name} has no ImageNet weights: start --from-scratch, or give --weights")
    models = torchvision_models()
    try:
        weights = models.get_model_weights(name)["IMAGENET1K_V1"]
        return plain_names(weights.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise DataError(
            f"ImageNet weights of {name} cannot be downloaded ({error}): give a file with "
            "--weights, or start --from-scratch"
        ) from error
