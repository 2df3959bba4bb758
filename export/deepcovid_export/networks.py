"""The networks: grey films in, logits and class activation maps out.

Every network ends in a 1 x 1 convolution to class activation maps whose spatial mean is the logit
(Zhou et al. 2016, Learning Deep Features for Discriminative Localization), so the maps cost
nothing and the two cannot disagree.

Films are grey, so the first convolution has one input channel: ImageNet weights are folded over
their three. Normalisation is part of the graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcovid_edge.errors import DataError, MissingDependencyError, UsageError

# torchvision.transforms.Normalize for ImageNet weights, RGB in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY_MEAN = sum(IMAGENET_MEAN) / 3
GREY_STD = sum(IMAGENET_STD) / 3


class Classifier(nn.Module):
    """A network from uint8 films of shape (N, H, W) to logits and class activation maps."""

    def __init__(self, features: nn.Module, maps: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.maps = maps

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Judge films.

        Args:
            images: Grey films of shape (N, H, W), uint8.

        Returns:
            Logits of shape (N, classes) and activation maps of shape (N, classes, h, w), float32.
        """
        grey = images.to(torch.float32).unsqueeze(1)  # TensorRT takes uint8 into a cast alone
        normalised = grey * (1 / (255 * GREY_STD)) - GREY_MEAN / GREY_STD
        activation_maps = self.maps(self.features(normalised)).float()
        return activation_maps.mean(dim=(2, 3)), activation_maps


def build_network(architecture: str, classes: int) -> Classifier:
    """A network with random weights.

    Raises:
        UsageError: There is no such architecture.
    """
    if architecture not in _BUILDERS:
        known = ", ".join(sorted(_BUILDERS))
        raise UsageError(f"architecture: got {architecture!r}, expected one of {known}")
    return _BUILDERS[architecture](classes)


def load_imagenet(network: Classifier, architecture: str, weights: Path | None) -> str:
    """Start a network from ImageNet weights, its class maps excepted.

    Args:
        network: The network from `build_network`.
        architecture: Its name.
        weights: A `.safetensors` or `.pth` file with torchvision's names, or None for
            torchvision's own weights (downloaded once by torch.hub).

    Returns:
        Where the weights came from, for the manifest.

    Raises:
        DataError: The weights cannot be had or do not fit.
    """
    state = _torchvision_state(architecture) if weights is None else _state_file(weights)
    wanted = network.features.state_dict()
    renamed = {_FEATURE_NAMES[architecture](name): value.float() for name, value in state.items()}
    missing = sorted(set(wanted) - set(renamed))
    if missing:
        raise DataError(f"{weights}: no weights for {missing[0]}; expected {architecture} weights")
    first = next(name for name in wanted if wanted[name].ndim == 4)
    _fold_to_grey(renamed, first)
    try:
        network.features.load_state_dict({name: renamed[name] for name in wanted})
    except RuntimeError as error:
        raise DataError(f"{weights}: does not fit {architecture}: {error}") from error
    return weights.name if weights else f"torchvision {architecture} IMAGENET1K_V1"


def _fold_to_grey(state: dict[str, Tensor], first: str) -> None:
    """Fold a first convolution over normalised RGB into one over normalised grey.

    With R = G = B = g and z = (g - m) / s, channel c's input is (s z + m - mean_c) / std_c. The
    constant part goes into the bias, exactly; a network without one keeps it for its batch
    normalisation to learn.
    """
    kernel = state[first]
    std = kernel.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
    offset = (GREY_MEAN - kernel.new_tensor(IMAGENET_MEAN)).view(1, 3, 1, 1) / std
    bias = first.removesuffix("weight") + "bias"
    if bias in state:
        state[bias] = state[bias] + (kernel * offset).sum(dim=(1, 2, 3))
    state[first] = (kernel * (GREY_STD / std)).sum(dim=1, keepdim=True)


def _state_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a weights file is foreign input; both readers raise many types
        raise DataError(f"{path}: not a weights file ({error})") from error
    return state


def _torchvision_state(architecture: str) -> dict[str, Tensor]:
    models = torchvision_models()
    try:
        weights = models.get_model_weights(architecture)["IMAGENET1K_V1"]
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise DataError(
            f"ImageNet weights of {architecture} cannot be downloaded ({error}): give a file with "
            "--weights, or start --from-scratch"
        ) from error


def torchvision_models() -> Any:
    """torchvision.models, also where torchvision's compiled operators do not load.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its operators are missing,
    and `import torchvision` fails where it registers shapes for two of them
    (torchvision/_meta_registrations.py). No network here uses an operator, so the two are
    declared, without a body.
    """
    if "torchvision" not in sys.modules and not _operators_load():
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _KEPT_LIBRARIES.append(library)  # declarations end with the object
    from torchvision import models

    return models


def _operators_load() -> bool:
    package = find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        raise MissingDependencyError(
            "torchvision is not installed: pip install 'deepcovid-edge[export]'"
        )
    folder = Path(package.submodule_search_locations[0])
    try:
        for compiled in folder.glob("_C*.so"):
            torch.ops.load_library(compiled)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


_KEPT_LIBRARIES: list[torch.library.Library] = []


def _squeezenet1_1(classes: int) -> Classifier:
    features: nn.Sequential = torchvision_models().squeezenet1_1().features
    features[0] = _on_grey(features[0])
    # Without torchvision's final ReLU, which ties the logits at zero.
    head = nn.Sequential(nn.Dropout(0.5), _class_maps(512, classes))
    return Classifier(features, head)


def _resnet18(classes: int) -> Classifier:
    network = torchvision_models().resnet18()
    network.conv1 = _on_grey(network.conv1)
    stages = [(name, child) for name, child in network.named_children()]
    features = nn.Sequential()
    for name, child in stages[:-2]:  # all but the average pool and the last layer
        features.add_module(name, child)
    # A linear layer on the mean equals the mean of a 1 x 1 convolution.
    head = nn.Sequential(_class_maps(512, classes))
    return Classifier(features, head)


def _class_maps(channels: int, classes: int) -> nn.Conv2d:
    maps = nn.Conv2d(channels, classes, kernel_size=1)
    nn.init.normal_(maps.weight, std=0.01)
    return maps


def _on_grey(convolution: nn.Module) -> nn.Conv2d:
    assert isinstance(convolution, nn.Conv2d)
    grey = nn.Conv2d(
        1,
        convolution.out_channels,
        kernel_size=convolution.kernel_size,  # type: ignore[arg-type]
        stride=convolution.stride,  # type: ignore[arg-type]
        padding=convolution.padding,  # type: ignore[arg-type]
        bias=convolution.bias is not None,
    )
    nn.init.kaiming_normal_(grey.weight, mode="fan_out", nonlinearity="relu")
    if grey.bias is not None:
        nn.init.zeros_(grey.bias)
    return grey


_BUILDERS: dict[str, Callable[[int], Classifier]] = {
    "squeezenet1_1": _squeezenet1_1,
    "resnet18": _resnet18,
}
_FEATURE_NAMES: dict[str, Callable[[str], str]] = {
    "squeezenet1_1": lambda name: name.removeprefix("features."),
    "resnet18": lambda name: name,
}
