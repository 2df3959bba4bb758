"""The architectures by name: how each is built, and the names of its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from deepcovid_edge.errors import UsageError
from deepcovid_export.networks.classifier import Classifier
from deepcovid_export.networks.torchvision_models import torchvision_models


@dataclass(frozen=True)
class Architecture:
    """A network by name.

    Attributes:
        build: Makes it by name with random weights, for a number of classes.
        first: Name of the first convolution in the features.
        first_norm: Name of the batch normalisation behind it; empty where it has a bias instead.
        head: Name of the last layer in torchvision; empty where torchvision has no such network.
    """

    build: Callable[[str, int], Classifier]
    first: str
    first_norm: str = ""
    head: str = ""


def build_network(architecture: str, classes: int) -> Classifier:
    """A network with random weights.

    Raises:
        UsageError: There is no such architecture.
    """
    return find_architecture(architecture).build(architecture, classes)


def find_architecture(name: str) -> Architecture:
    """Look an architecture up.

    Raises:
        UsageError: There is no such architecture.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UsageError(f"architecture: got {name!r}, expected one of {known}")
    return ARCHITECTURES[name]


def _squeezenet(name: str, classes: int) -> Classifier:
    features: nn.Sequential = torchvision_models().get_model(name).features
    features[0] = on_grey(features[0])
    # Without torchvision's final ReLU, which ties the logits at zero.
    head = nn.Sequential(nn.Dropout(0.5), class_maps(512, classes))
    return Classifier(features, head, last_stage=("12",))  # fire9


def _resnet(name: str, classes: int) -> Classifier:
    network = torchvision_models().get_model(name)
    network.conv1 = on_grey(network.conv1)
    features = nn.Sequential()
    for part, child in [*network.named_children()][:-2]:  # without average pool and last layer
        features.add_module(part, child)
    # A linear layer on the mean equals the mean of a 1 x 1 convolution.
    head = nn.Sequential(class_maps(network.fc.in_features, classes))
    return Classifier(features, head, last_stage=("layer4",))


def _densenet(name: str, classes: int) -> Classifier:
    features: nn.Sequential = torchvision_models().get_model(name).features
    features.conv0 = on_grey(features.get_submodule("conv0"))
    features.add_module("relu5", nn.ReLU(inplace=True))  # torchvision has it in `forward`
    head = nn.Sequential(class_maps(1024, classes))
    return Classifier(features, head, last_stage=("denseblock4", "norm5"))


def _small_cnn(_: str, classes: int) -> Classifier:
    """The small reference network: two convolutions and three dense layers.

    The original is convolution 3 -> 6 of 5 x 5, max-pool 8, convolution 6 -> 16 of 5 x 5,
    max-pool 8, dense 16 -> 100 -> 50 -> classes. At 128 x 128 the second pool leaves one position,
    as the 16 inputs of the first dense layer need. What is different here:

    - Images are grey: the first convolution is 1 -> 6, of the same variance.
    - A single position has no map. So the second pool slides by 1 instead of 8, the dense
      layers (1 x 1 convolutions, ReLU between them) classify every position, and the logit is the
      mean of their outputs. Away from the border each equals the original's for its window.
    - Convolutions and the second pool are padded, so that any size from 32 pixels works.
    """
    features = nn.Sequential()
    for name, layer in (
        ("conv1", nn.Conv2d(1, 6, 5, padding=2)),
        ("relu1", nn.ReLU(inplace=True)),
        ("pool1", nn.MaxPool2d(8)),
        ("conv2", nn.Conv2d(6, 16, 5, padding=2)),
        ("relu2", nn.ReLU(inplace=True)),
        ("pool2", nn.MaxPool2d(8, stride=1, padding=4)),
        ("dense1", nn.Conv2d(16, 100, 1)),
        ("relu3", nn.ReLU(inplace=True)),
        ("dense2", nn.Conv2d(100, 50, 1)),
        ("relu4", nn.ReLU(inplace=True)),
    ):
        features.add_module(name, layer)
    head = nn.Sequential(nn.Conv2d(50, classes, 1))
    return Classifier(features, head, last_stage=("dense1", "dense2"))


def class_maps(channels: int, classes: int) -> nn.Conv2d:
    """A 1 x 1 convolution from features to class activation maps, near zero at first."""
    maps = nn.Conv2d(channels, classes, kernel_size=1)
    nn.init.normal_(maps.weight, std=0.01)
    return maps


def on_grey(convolution: nn.Module, channels: int = 1) -> nn.Conv2d:
    """A first convolution like this one, on another number of channels, with random weights."""
    assert isinstance(convolution, nn.Conv2d)
    grey = nn.Conv2d(
        channels,
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


ARCHITECTURES = {
    "squeezenet1_0": Architecture(_squeezenet, first="0", head="classifier.1"),
    "squeezenet1_1": Architecture(_squeezenet, first="0", head="classifier.1"),
    "resnet18": Architecture(_resnet, first="conv1", first_norm="bn1", head="fc"),
    "resnet50": Architecture(_resnet, first="conv1", first_norm="bn1", head="fc"),
    "densenet121": Architecture(_densenet, first="conv0", first_norm="norm0", head="classifier"),
    "small_cnn": Architecture(_small_cnn, first="conv1"),
}
