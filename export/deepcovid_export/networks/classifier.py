"""The parts of every network: normalisation, features, class activation maps and their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

# torchvision.transforms.Normalize for ImageNet weights, RGB in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY_MEAN = sum(IMAGENET_MEAN) / 3
GREY_STD = sum(IMAGENET_STD) / 3


class Classifier(nn.Module):
    """A network from uint8 images of shape (N, H, W) to logits and class activation maps.

    Args:
        features: Normalised images of shape (N, 1, H, W) to features of shape (N, channels, h, w).
        maps: Features to class activation maps of shape (N, classes, h, w).
        last_stage: Names of the children of `features` that `train_only` calls the last stage.
    """

    def __init__(
        self, features: nn.Module, maps: nn.Module, last_stage: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.features = features
        self.maps = maps
        self.last_stage = last_stage

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify images.

        Args:
            images: Grey images of shape (N, H, W), uint8, from 32 pixels a side.

        Returns:
            Logits of shape (N, classes) and activation maps of shape (N, classes, h, w), float32.
        """
        grey = images.to(torch.float32).unsqueeze(1)  # TensorRT takes uint8 into a cast alone
        activation_maps = self.maps(self.features(self.normalise(grey))).float()
        return activation_maps.mean(dim=(2, 3)), activation_maps

    def normalise(self, grey: Tensor) -> Tensor:
        """ImageNet's normalisation of grey images, 0 to 255, of shape (N, 1, H, W)."""
        return grey * (1 / (255 * GREY_STD)) - GREY_MEAN / GREY_STD

    def train(self, mode: bool = True) -> Self:
        """Switch to training, except modules whose parameters are all frozen.

        A frozen batch normalisation in training mode would still change its running statistics
        and normalise by the batch, so it stays in evaluation mode.
        """
        super().train(mode)
        for module in self.modules():
            own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
            if own and not any(own):
                module.training = False
        return self


class PaddedClassifier(Classifier):
    """A network with three-channel weights and a padded first convolution, folded without error.

    The published networks normalise red, green and blue each by its own mean, then pad with zeros:
    outside the image each channel holds another grey, which one channel cannot express. So
    `features` take two channels: the normalised image, and ones where the image is.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, features: nn.Module, maps: nn.Module) -> None:
        super().__init__(features, maps)
        scale = torch.tensor([1 / (255 * GREY_STD), 0.0]).view(1, 2, 1, 1)
        shift = torch.tensor([-GREY_MEAN / GREY_STD, 1.0]).view(1, 2, 1, 1)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def normalise(self, grey: Tensor) -> Tensor:
        """The image under ImageNet's normalisation, and ones, of shape (N, 2, H, W)."""
        return grey * self.scale + self.shift
