"""Networks of the published Deep-COVID project as models of this one.

github.com/shervinmin/DeepCovid saves whole modules of torchvision with a changed last layer, whose
classes are `covid` and `non` (folders in alphabetical order, as torchvision.datasets.ImageFolder
numbers them), for images of 224 pixels under ImageNet's normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deepcovid_edge.errors import ModelFileError, UsageError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import VERSION, ModelManifest
from deepcovid_export.networks import (
    ARCHITECTURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Classifier,
    build_network,
    torchvision_models,
)
from deepcovid_export.networks.architectures import on_grey
from deepcovid_export.networks.classifier import PaddedClassifier
from deepcovid_export.networks.published.pickles import Pickle, check_layers, read_pickle
from deepcovid_export.networks.weights import fold_kernel, fold_to_grey

DEFAULT_THRESHOLD = 0.5
TOLERANCE = 1e-4
"""Largest difference of a logit between torchvision's network and the folded one."""
_IMAGES = 2
_COUNTER = "num_batches_tracked"
_HEAD = ("weight", "bias")


@dataclass(frozen=True)
class PublishedTerms:
    """What the file of a published network does not contain.

    Attributes:
        classes: Names of the classes, in the order of the logits.
        positive: The class that is looked for.
        threshold: Probability from which an image is called positive; None if none was chosen.
    """

    classes: tuple[str, ...] = ("covid", "non")
    positive: str = "covid"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len({*self.classes, ""}) != len(self.classes) + 1:
            raise UsageError(
                f"--classes: got {','.join(self.classes)!r}, expected two or more different names"
            )
        if self.positive not in self.classes:
            raise UsageError(
                f"--positive: got {self.positive!r}, expected one of {', '.join(self.classes)}"
            )
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold: got {self.threshold}, expected 0 to 1")


def load_published(path: Path, terms: PublishedTerms) -> tuple[Classifier, ModelManifest]:
    """Rebuild a published network as one on grey images.

    The architecture is recognised by names and shapes of the weights. A SqueezeNet keeps the ReLU
    behind its last convolution: the published network was trained with it, and its logits are means
    of maps without negative values. ResNet and DenseNet, whose first convolution is padded, get a
    second channel that marks the image, so that folding is exact up to the border.

    Args:
        path: A whole-module pickle or a state dict.
        terms: What the file does not contain.

    Returns:
        The network in evaluation mode, and its manifest.

    Raises:
        NotThereError: There is no such file.
        ModelFileError: The file is not such a network, or names other classes.
        UsageError: The network has another number of classes.
    """
    found = read_pickle(path)
    name = _recognise(path, found.state)
    outputs = len(found.state[f"{ARCHITECTURES[name].head}.weight"])
    if outputs != len(terms.classes):
        raise UsageError(
            f"--classes: got {','.join(terms.classes)}, but the network has {outputs} outputs: "
            "name each, in the order of training"
        )
    reference = torchvision_models().get_model(name, num_classes=outputs)
    if found.module is not None:
        check_layers(path, found.module, reference)
    missing, _ = reference.load_state_dict(found.state, strict=False)
    if rest := [item for item in missing if not item.endswith(_COUNTER)]:
        raise ModelFileError(f"{path}: no weights for {rest[0]}; expected those of {name}")
    network = _fold(name, reference.eval(), outputs).eval()
    difference = _largest_difference(network, reference)
    if not difference <= TOLERANCE:
        raise ModelFileError(
            f"{path}: on grey images logits are off by {difference:.2g} from the published "
            f"network's, expected at most {TOLERANCE:.0e}: not used"
        )
    return network, _manifest(path, name, terms, found, difference)


def _recognise(path: Path, state: dict[str, Tensor]) -> str:
    """The architecture that has weights of these names and shapes.

    Raises:
        ModelFileError: There is none.
    """
    unlike: dict[str, list[str]] = {}
    for name, architecture in ARCHITECTURES.items():
        if architecture.head:
            wanted = _shapes(_torchvision_weights(name), architecture.head)
            differing = {item for item, _ in wanted ^ _shapes(state, architecture.head)}
            if not differing:
                return name
            unlike[name] = sorted(differing)
    nearest = min(unlike, key=lambda name: len(unlike[name]))
    raise ModelFileError(
        f"{path}: weights of none of {', '.join(unlike)}; nearest is {nearest}, except for "
        f"{unlike[nearest][0]} and {len(unlike[nearest]) - 1} more"
    )


def _shapes(state: dict[str, Tensor], head: str) -> set[tuple[str, tuple[int, ...]]]:
    """Names and shapes without the number of classes and without what old files lack."""
    return {
        (name, tuple(value.shape[1:] if name.startswith(f"{head}.") else value.shape))
        for name, value in state.items()
        if not name.endswith(_COUNTER)
    }


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        state: dict[str, Tensor] = torchvision_models().get_model(name).state_dict()
    return state


def _fold(name: str, reference: nn.Module, classes: int) -> Classifier:
    """The network of torchvision as a classifier of grey images with activation maps."""
    architecture = ARCHITECTURES[name]
    network = build_network(name, classes)
    head = {part: reference.state_dict()[f"{architecture.head}.{part}"] for part in _HEAD}
    state = {
        item.removeprefix("features."): value
        for item, value in reference.state_dict().items()
        if not item.startswith(architecture.head.partition(".")[0])
    }
    maps = nn.Sequential(*network.maps.children())
    if not architecture.first_norm:  # SqueezeNet: no padding, a bias, and a ReLU behind the maps
        fold_to_grey(state, architecture)
        network = Classifier(network.features, maps.append(nn.ReLU()))
    else:
        first = network.features.get_submodule(architecture.first)
        setattr(network.features, architecture.first, on_grey(first, channels=2))
        kernel = f"{architecture.first}.weight"
        state[kernel] = torch.cat(fold_kernel(state[kernel]), dim=1)
        network = PaddedClassifier(network.features, maps)
    network.features.load_state_dict(state)
    (last,) = (layer for layer in maps if isinstance(layer, nn.Conv2d))
    last.load_state_dict({"weight": head["weight"].view_as(last.weight), "bias": head["bias"]})
    return network


def _largest_difference(network: Classifier, reference: nn.Module) -> float:
    """Largest difference of a logit on random images, fed the published way: as RGB."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_IMAGES, 224, 224), generator=generator, dtype=torch.uint8)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    rgb = images.unsqueeze(1).expand(-1, 3, -1, -1) / 255
    with torch.inference_mode():
        return float((network(images)[0] - reference((rgb - mean) / std)).abs().max())


def _manifest(
    path: Path, name: str, terms: PublishedTerms, found: Pickle, difference: float
) -> ModelManifest:
    chosen = terms.threshold is not None
    kind = "whole-module pickle" if found.module is not None else "state dict"
    return ModelManifest(
        name=path.stem,
        architecture=name,
        classes=terms.classes,
        positive_class=terms.positive,
        threshold=terms.threshold if terms.threshold is not None else DEFAULT_THRESHOLD,
        threshold_origin={
            "rule": "given with --threshold; not chosen on data by deepcovid-edge"
            if chosen
            else "none: 0.5 because no --threshold was given; not chosen on data"
        },
        training={
            "start": f"{kind} {path.name}, trained elsewhere",
            "published": {"images": _IMAGES, "max_logit_difference": difference},
        },
        license="unknown: as the source of the weights says",
        parent_sha256=file_sha256(path),
        created_with={"deepcovid-edge": VERSION, "torch": torch.__version__},
    )
