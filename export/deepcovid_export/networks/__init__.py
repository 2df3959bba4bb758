"""The networks: grey images in, logits and class activation maps out.

Every network ends in a 1 x 1 convolution to class activation maps whose spatial mean is the logit
(Zhou et al. 2016, Learning Deep Features for Discriminative Localization), so the maps cost
nothing and the two cannot disagree.

Images are grey, so the first convolution has one input channel: ImageNet weights are folded over
their three. Normalisation is part of the graph.
"""

from deepcovid_export.networks.architectures import ARCHITECTURES, build_network
from deepcovid_export.networks.classifier import (
    GREY_MEAN,
    GREY_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Classifier,
)
from deepcovid_export.networks.fine_tuning import LAYERS, train_only
from deepcovid_export.networks.head import map_shape, scale_logits
from deepcovid_export.networks.torchvision_models import torchvision_models
from deepcovid_export.networks.weights import load_imagenet

__all__ = [
    "ARCHITECTURES",
    "GREY_MEAN",
    "GREY_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LAYERS",
    "Classifier",
    "build_network",
    "load_imagenet",
    "map_shape",
    "scale_logits",
    "torchvision_models",
    "train_only",
]
