"""Did a model learn the disease, or the source of an image? The shortcut report.

Images of one class often come from other places than images of another: then borders, letters,
tone and shape predict the class as well as the lungs do (DeGrave, Janizek and Lee 2021, Nature
Machine Intelligence 3:610). What is measured:

- **lungs hidden**: a central rectangle is set to the mean grey of what stays visible around it.
  A model that still ranks the images by class reads the source.
- **lungs only**: everything but that rectangle is set to the mean grey inside it: frame, corners
  and markers are gone. A model of the disease loses little.
- the area under the curve by shape of the image, and within each source that has both classes.

The rectangle's sides are 80 % of the field that the network sees. On frontal chest radiographs of
six collections the lungs end 5 % to 12 % from the field's edge, and letters and markers lie in the
outer 10 %. A larger rectangle hides the markers too, a smaller one leaves lung visible; both are
measured as well. The grey is the mean of what stays visible, because the image's own mean would
tell how white the hidden lungs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Backend
from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.imaging.prepare import visible_field
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import InputSpec
from deepcovid_export.evaluation.bootstrap import FEWEST_PATIENTS, bootstrap, has_few_patients
from deepcovid_export.evaluation.metrics import area
from deepcovid_export.evaluation.predictions import Predictions, classify
from deepcovid_export.evaluation.results import Area, AreaOfPatients, Shortcuts

SIDE, OTHER_SIDES = 0.8, (0.7, 0.9)
"""Sides of the hidden rectangle as shares of the field's; the area is measured for all of them."""
LIMIT = 0.70
"""Area under the curve, with the lungs hidden, above which a model reads the source."""
_SQUARE = 1.05
"""An image is square if its longer side is at most this times the shorter."""
_Rectangle = tuple[slice, slice]


def hide_lungs(image: Radiograph, spec: InputSpec, side: float) -> Radiograph:
    """Set the centre of what the network sees to the mean grey of what lies around it.

    Args:
        image: The image, of any shape.
        spec: The network's input, which decides which part of the image is seen.
        side: Sides of the hidden rectangle as a share of the seen field's.
    """
    field = visible_field(image.pixels.shape, spec)
    inner = _centre(field, side)
    seen, hidden = image.pixels[field], image.pixels[inner]
    around = float(seen.sum(dtype=np.int64) - hidden.sum(dtype=np.int64))
    pixels = image.pixels.copy()
    pixels[inner] = round(around / (seen.size - hidden.size))
    return replace(image, pixels=pixels)


def keep_lungs(image: Radiograph, spec: InputSpec, side: float) -> Radiograph:
    """Set everything but that centre to its mean grey; arguments as for `hide_lungs`."""
    inner = _centre(visible_field(image.pixels.shape, spec), side)
    kept = image.pixels[inner]
    pixels = np.full_like(image.pixels, round(float(kept.mean())))
    pixels[inner] = kept
    return replace(image, pixels=pixels)


def _centre(field: _Rectangle, side: float) -> _Rectangle:
    rows, columns = (_middle(part, side) for part in field)
    return rows, columns


def _middle(part: slice, side: float) -> slice:
    """The middle of a stretch; at least one pixel is left at both ends."""
    length = part.stop - part.start
    margin = max(1, round(length * (1 - side) / 2))
    return slice(part.start + margin, part.stop - margin)


def measure_shortcuts(
    backend: Backend,
    images: Sequence[LabelledImage],
    whole: Predictions | None = None,
) -> Shortcuts:
    """Classify the images with the lungs hidden and with the lungs only, and within groups.

    `whole` are the predictions for the unchanged images, if there are any yet.

    Raises:
        DataError: No image was assessed, or a label belongs to no class.
    """
    spec = backend.manifest.input
    whole = whole or classify(backend, images)

    def hidden(side: float) -> AreaOfPatients:
        return _area(classify(backend, images, change=lambda image: hide_lungs(image, spec, side)))

    only = classify(backend, images, change=lambda image: keep_lungs(image, spec, SIDE))
    areas = {side: hidden(side) for side in sorted({SIDE, *OTHER_SIDES})}
    few = has_few_patients(whole.positive, whole.patients)
    reads, sentence = verdict(areas[SIDE], LIMIT, few_patients=few)
    return Shortcuts(
        side=SIDE,
        limit=LIMIT,
        whole=_area(whole),
        lungs_only=_area(only),
        lungs_hidden=areas[SIDE],
        lungs_hidden_by_side={str(side): value for side, value in areas.items()},
        by_shape=_by_shape(whole),
        within_source=within_source(whole),
        reads_the_source=reads,
        verdict=sentence,
    )


def verdict(
    hidden: AreaOfPatients, limit: float, *, few_patients: bool = False
) -> tuple[bool | None, str]:
    """Whether a model reads the source, by its area under the curve with the lungs hidden.

    Yes where the whole 95 % interval (the wider of the one over images and the one over patients)
    lies above the limit. No where the area itself does not. Between them there are too few images
    to tell, and where a class is missing nothing can be told. If patients are known and a class has
    too few for their interval (`few_patients`), their images tell neither.

    Returns:
        The verdict (None: cannot be told) and a sentence.
    """
    value, known = hidden.auc, [hidden.auc_interval_95, hidden.auc_interval_95_patients]
    if value is None:
        return None, "Cannot be told: these images are all of one class."
    low = min(interval[0] for interval in known if interval)
    high = max(interval[1] for interval in known if interval)
    found = f"with the lungs hidden the AUC is {value:.3f} [{low:.3f}, {high:.3f}]"
    least = f"a class has fewer than {FEWEST_PATIENTS} patients"
    if value <= limit and few_patients:
        return None, f"Cannot be told: {found}, not above {limit:.2f}, but {least}."
    if low > limit and few_patients:
        return None, f"May read the source: {found}, all above {limit:.2f}, but {least}."
    if low > limit:
        return True, f"Reads the source: {found}, all above {limit:.2f}."
    if value > limit:
        return None, f"May read the source: {found}, above {limit:.2f}, but the images are too few."
    return False, f"Not shown to read the source: {found}, not above {limit:.2f}."


def within_source(classified: Predictions) -> dict[str, Area]:
    """Areas within each source, and each collection of sources, that has both classes.

    A source `COLLECTION (site) ...` is a site of a collection; all its sites also make one group.
    """
    sources = np.array([image.source for image in classified.images])
    groups: dict[str, NDArray[np.bool_]] = {}
    for source in sorted(set(sources.tolist()) - {""}):
        groups[source] = sources == source
        collection = source.partition(" (")[0]
        together = np.char.startswith(sources, f"{collection} (")
        if (together > groups[source]).any():
            groups[f"{collection} (all sites)"] = together
    found = {name: _area_among(classified, chosen) for name, chosen in groups.items()}
    return {name: group for name, group in found.items() if group.auc is not None}


def shortcut_summary(shortcuts: Shortcuts, data: str, sha256: str) -> dict[str, Any]:
    """The figures that a model's manifest may carry, in `training["shortcuts"]`."""

    def short(group: Area) -> dict[str, Any]:
        interval = group.auc_interval_95
        return {"auc": group.auc, "auc_interval_95": interval and list(interval)}

    return {
        "data": data,
        "data_sha256": sha256,
        "images": shortcuts.whole.images,
        "side": shortcuts.side,
        "limit": shortcuts.limit,
        "whole": short(shortcuts.whole),
        "lungs_only": short(shortcuts.lungs_only),
        "lungs_hidden": short(shortcuts.lungs_hidden),
        "within_source": {name: short(group) for name, group in shortcuts.within_source.items()},
        "reads_the_source": shortcuts.reads_the_source,
        "verdict": shortcuts.verdict,
    }


def _area_among(classified: Predictions, among: NDArray[np.bool_]) -> Area:
    return area(classified.scores[among], classified.positive[among])


def _area(classified: Predictions) -> AreaOfPatients:
    """The area over all images, with the interval over patients where they are known."""
    scores, positive = classified.scores, classified.positive
    drawn = bootstrap(scores, positive, classified.patients, classified.manifest.threshold)
    return AreaOfPatients(
        **vars(area(scores, positive)), auc_interval_95_patients=drawn.auc if drawn else None
    )


def _by_shape(classified: Predictions) -> dict[str, Area]:
    rows, columns = classified.shapes.T
    wide = columns / rows
    groups = {
        "square": (wide <= _SQUARE) & (wide >= 1 / _SQUARE),
        "landscape": wide > _SQUARE,
        "portrait": wide < 1 / _SQUARE,
    }
    return {name: _area_among(classified, it) for name, it in groups.items() if it.any()}
