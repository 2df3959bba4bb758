"""Pickles of other people's networks, read without running what they name.

`torch.save(model)` writes a program that rebuilds the module from its classes. torch's restricted
unpickler (`weights_only=True`) runs it with an allow-list: the classes of the networks that this
project knows. The result is then read as data: weights by name, and settings of layers to compare.
This project calls none of the module's methods. torch's unpickler calls the constructors and
`__setstate__` of the allowed classes, so a hostile file can ask for much memory but nothing else.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcovid_edge.errors import ModelFileError, NotThereError
from deepcovid_export.networks import torchvision_models
from deepcovid_export.networks.published.legacy_pickles import without_sources
from deepcovid_export.networks.weights import plain_names, state_of

_DEEPEST = 16
"""Levels of modules within modules; the networks here have five."""
_NAMED = re.compile(r"GLOBAL ([\w.<>]+)")
_UNPICKLER = re.compile(r"WeightsUnpickler error:\s*(.+)")
# The settings of a layer that change what it computes from the same weights.
_SETTINGS = (
    *("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    *("ceil_mode", "output_size", "eps"),
)
# Heads of torchvision before 0.3: a fixed window, which at 224 pixels is the whole map.
_WHOLE_MAP = {7, 13}


@dataclass(frozen=True)
class Pickle:
    """The content of a file.

    Attributes:
        state: Weights by name, on the CPU.
        module: The whole network, to be read and never called; None for a bare state dict.
    """

    state: dict[str, Tensor]
    module: nn.Module | None


def read_pickle(path: Path) -> Pickle:
    """Read a whole-module pickle or a state dict of torchvision's networks.

    Raises:
        NotThereError: There is no such file.
        ModelFileError: The file names a class outside the allow-list, or holds something else.
    """
    if not path.is_file():
        raise NotThereError(f"{path}: no such checkpoint: make one with `deepcovid-edge train`")
    try:
        with warnings.catch_warnings():
            # torch's reader of old files uses functions that torch deprecates.
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(_allowed()):
                file = io.BytesIO(without_sources(path.read_bytes()))
                content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler passes on errors of any type
        raise ModelFileError(f"{path}: {_explain(str(error))}") from error
    if isinstance(content, nn.Module):
        return Pickle(plain_names(dict(_weights(path, content))), content)
    state = state_of(content)
    if state is None:
        raise ModelFileError(
            f"{path}: holds a {type(content).__name__}, expected a network or its weights by name"
        )
    return Pickle(state, None)


def check_layers(path: Path, module: nn.Module, reference: nn.Module) -> None:
    """Compare a module's layers with those of the recognised network.

    Weights do not show the stride of a convolution, or whether a ReLU follows it.

    Raises:
        ModelFileError: A layer has another class or other settings.
    """
    got, expected = dict(_layers(path, module)), dict(_layers(path, reference))
    for name in [*expected, *(set(got) - set(expected))]:
        seen, wanted = _description(got.get(name)), _description(expected.get(name))
        shared = [key for key in wanted if key in seen]  # old pickles lack what came later
        if not shared or any(seen[key] != wanted[key] for key in shared):
            raise ModelFileError(
                f"{path}: layer {name or '(the network)'}: got {_text(seen)}, expected "
                f"{_text(wanted)}: a network that was changed cannot be taken over by its weights"
            )


def _allowed() -> list[Any]:
    """The classes that these networks are made of."""
    models = torchvision_models()
    squeezenet, resnet, densenet = (
        getattr(models, name) for name in ("squeezenet", "resnet", "densenet")
    )
    return [
        *(squeezenet.SqueezeNet, squeezenet.Fire),
        *(resnet.ResNet, resnet.BasicBlock, resnet.Bottleneck),
        *(densenet.DenseNet, densenet._DenseBlock, densenet._DenseLayer, densenet._Transition),
        *(nn.Sequential, nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.Dropout),
        *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
        # Modules of torch before 1.3 name their function backend; nothing here asks for it.
        (_no_backend, "torch.nn.backends.thnn._get_thnn_function_backend"),
    ]


def _no_backend() -> None:
    """Stands in for the function backend of old modules."""


def _explain(message: str) -> str:
    named = _NAMED.search(message)
    if named is None:
        reason = _UNPICKLER.search(message) or re.search(r"\S.*", message)
        brief = f" ({reason[reason.re.groups][:120]})" if reason else ""
        return f"not a checkpoint of deepcovid-edge, nor a pickle of a network{brief}"
    return (
        f"a pickle that names {named[1]}, expected the classes of torchvision's SqueezeNet, ResNet "
        "and DenseNet alone: it was not run; ask its author for the state dict"
    )


def _weights(path: Path, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, layer in _layers(path, module):
        for kind in ("_parameters", "_buffers"):
            for name, value in _dictionary(path, layer, kind).items():
                if isinstance(value, Tensor):
                    yield f"{prefix}.{name}".lstrip("."), value.detach()


def _layers(
    path: Path,
    module: nn.Module,
    prefix: str = "",
    depth: int = 0,
    seen: set[int] | None = None,
) -> Iterator[tuple[str, nn.Module]]:
    """Every module by its dotted name, read from the dictionaries of its parents."""
    seen = set() if seen is None else seen
    if depth > _DEEPEST:
        raise ModelFileError(f"{path}: layer {prefix}: more than {_DEEPEST} levels of layers")
    if id(module) in seen:
        raise ModelFileError(f"{path}: layer {prefix}: stands in two places, expected in one")
    seen.add(id(module))
    yield prefix, module
    for name, child in _dictionary(path, module, "_modules").items():
        if isinstance(child, nn.Module):
            yield from _layers(path, child, f"{prefix}.{name}".lstrip("."), depth + 1, seen)


def _dictionary(path: Path, module: nn.Module, name: str) -> dict[str, Any]:
    values = vars(module).get(name)
    if not isinstance(values, dict):
        raise ModelFileError(f"{path}: a {type(module).__name__} without {name}: a damaged pickle")
    return values


def _description(layer: nn.Module | None) -> dict[str, object]:
    """A layer's class and those settings that change what it computes."""
    if layer is None:
        return {"class": "nothing"}
    values = vars(layer)
    if isinstance(layer, nn.AvgPool2d) and values.get("kernel_size") in _WHOLE_MAP:
        return {"class": "AdaptiveAvgPool2d"}
    settings = {} if values.get("_modules") else {name: values.get(name) for name in _SETTINGS}
    known = {name: _pair(value) for name, value in settings.items() if value is not None}
    return {"class": type(layer).__name__, **known}


def _text(description: dict[str, object]) -> str:
    name, *settings = (f"{key}={value}" for key, value in description.items())
    return f"{name.removeprefix('class=')}({', '.join(settings)})" if settings else name[6:]


def _pair(value: object) -> object:
    return (value, value) if type(value) is int else value
