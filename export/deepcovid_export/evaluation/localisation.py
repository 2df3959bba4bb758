"""Do heat maps lie where radiologists saw opacities? Maps against boxes, for each method.

Three figures, all of positive images with boxes. None needs a threshold chosen elsewhere:

- the pointing game (Zhang et al. 2018, International Journal of Computer Vision 126:1084, here
  without their tolerance of 15 pixels): does the map's peak lie in a box?
- the share of the map's positive values that lies in the boxes;
- the intersection over union of the boxes and the map above one share of its peak.

A map that knows nothing points into a box as often as boxes cover the image: that is `chance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Backend
from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.device.progress import counted
from deepcovid_edge.errors import NotAssessedError, UsageError
from deepcovid_edge.heatmaps.agreement import spread_evenly
from deepcovid_edge.heatmaps.heatmap import ACTIVATION, OCCLUSION, of_activation
from deepcovid_edge.heatmaps.occlusion import Occluder, of_occlusion
from deepcovid_edge.heatmaps.windows import OcclusionSettings
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import InputSpec
from deepcovid_export.evaluation.boxes import mask_of
from deepcovid_export.evaluation.results import Localisation, Rate

PEAK_SHARES = tuple(round(0.1 * step, 1) for step in range(1, 10))
"""Shares of a map's peak that are tried as the edge of what it marks."""
Map = NDArray[np.float32]
Inside = NDArray[np.bool_]


@dataclass(frozen=True)
class LocalisationSettings:
    """Which maps are held against boxes.

    Attributes:
        occlusion_images: Images at most whose occlusion maps are made, evenly over all that have
            boxes; 0 for none. A map takes hundreds of inferences.
        occlusion: Which windows are hidden.
    """

    occlusion_images: int = 20
    occlusion: OcclusionSettings = field(default_factory=OcclusionSettings)

    def __post_init__(self) -> None:
        if self.occlusion_images < 0:
            raise UsageError(f"occlusion_images: got {self.occlusion_images}, expected 0 or more")


@dataclass(frozen=True)
class BoxedInput:
    """A model input and where the boxes lie on it.

    Attributes:
        pixels: Of shape (height, width), uint8.
        inside: Whether a pixel lies in a box, of the same shape.
    """

    pixels: NDArray[np.uint8]
    inside: Inside


def measure_localisation(
    backend: Backend,
    images: Sequence[LabelledImage],
    settings: LocalisationSettings | None = None,
) -> list[Localisation]:
    """Hold a model's maps against boxes.

    Args:
        backend: The loaded model, in any precision.
        images: Images; those of the positive class with boxes are measured.
        settings: Which maps.

    Returns:
        Figures for each method; none where no image has boxes that the model sees.
    """
    settings = settings or LocalisationSettings()
    labels, spec = backend.manifest.positive_labels, backend.manifest.input
    asked = [image for image in images if image.boxes and image.label in labels]
    boxed = list(_inputs(asked, spec))
    if not boxed:
        return []
    found = []
    if maps := _activation_maps(backend, boxed):
        found.append(localisation_of(ACTIVATION, maps, [it.inside for it in boxed]))
    if settings.occlusion_images:
        few = [boxed[at] for at in spread_evenly(len(boxed), settings.occlusion_images)]
        maps = _occlusion_maps(backend, few, settings.occlusion)
        found.append(localisation_of(OCCLUSION, maps, [it.inside for it in few]))
    return found


def localisation_of(method: str, maps: Sequence[Map], inside: Sequence[Inside]) -> Localisation:
    """The figures of maps that are already made.

    Args:
        method: How the maps were made.
        maps: Of one shape each, the positive class's.
        inside: Whether a pixel lies in a box; each has some pixel that does.
    """
    pairs = list(zip(maps, inside, strict=True))
    hits = sum(bool(box.flat[int(values.argmax())]) for values, box in pairs)
    overlaps = np.array([_overlaps(values, box) for values, box in pairs]).mean(axis=0)
    best = int(overlaps.argmax())
    return Localisation(
        method=method,
        images=len(pairs),
        chance=float(np.mean([box.mean() for box in inside])),
        pointing_game=Rate(hits, len(pairs)),
        inside=float(np.mean([_share_inside(values, box) for values, box in pairs])),
        overlap=float(overlaps[best]),
        overlap_peak_share=PEAK_SHARES[best],
    )


def _share_inside(values: Map, box: Inside) -> float:
    """Share of the positive values in the boxes; 0 for a map without one."""
    positive = np.maximum(values, 0)
    total = float(positive.sum())
    return float(positive[box].sum()) / total if total else 0.0


def _overlaps(values: Map, box: Inside) -> list[float]:
    """Intersection over union at each share of the peak; 0 for a map without positive values."""
    peak = float(values.max())
    if peak <= 0:
        return [0.0] * len(PEAK_SHARES)
    marked = [values >= share * peak for share in PEAK_SHARES]
    return [float((it & box).sum() / (it | box).sum()) for it in marked]


def _inputs(images: Sequence[LabelledImage], spec: InputSpec) -> Iterator[BoxedInput]:
    """Model inputs of the images that can be assessed and whose boxes the model sees."""
    for image in images:
        try:
            radiograph = read_radiograph(image.path)
        except NotAssessedError:
            continue
        inside = mask_of(image.boxes, radiograph.pixels.shape, spec) > 0
        if inside.any():
            yield BoxedInput(prepare(radiograph, spec), inside)


def _activation_maps(backend: Backend, boxed: Sequence[BoxedInput]) -> list[Map]:
    """The positive class's maps on the model input; none where the model gives no maps."""
    found: list[Map] = []
    for one in boxed:
        maps = backend.infer(one.pixels[np.newaxis], activation_maps=True).activation_maps
        if maps is None:
            return []
        own = np.asarray(maps[0, backend.manifest.positive_index], np.float32)
        found.append(of_activation(own, backend.manifest.input).values)
    return found


def _occlusion_maps(
    backend: Backend, boxed: Sequence[BoxedInput], settings: OcclusionSettings
) -> list[Map]:
    with Occluder(backend, settings) as occluder:
        return [
            of_occlusion(occluder.explain(one.pixels), {}).values
            for one in counted(boxed, len(boxed), "heat maps")
        ]
