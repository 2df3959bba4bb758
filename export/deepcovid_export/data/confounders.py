"""How well properties of the file alone tell the classes apart, before anything is trained.

Source, shape, resolution and JPEG quantisation say nothing of a lung. Where they tell the classes,
a network can learn them in place of the disease (DeGrave et al. 2021, Nature Machine Intelligence
3:610; Zech et al. 2018, PLOS Medicine 15:e1002683).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.decision.results import PlainResult
from deepcovid_edge.decision.statistics import auc
from deepcovid_edge.files import write_text

CONFOUNDERS_NAME = "confounders.json"
LIMIT = 0.7
"""Area under the curve from which a property is named in a warning."""
_NO_JPEG = -1.0
_LUMINANCE = 0


@dataclass(frozen=True)
class ImageFacts:
    """What a file tells without its content.

    Attributes:
        rows: Rows of the image.
        columns: Columns of the image.
        quantisation: Mean of the luminance quantisation table (ITU-T T.81, annex B.2.4.1); -1 for
            a file that is no JPEG.
    """

    rows: int
    columns: int
    quantisation: float


@dataclass(frozen=True)
class Confounder(PlainResult):
    """How well one property tells the positive class.

    Attributes:
        among: Images that were compared: `all`, or a source that has both classes.
        property: `source`, `aspect`, `resolution` or `quantisation`.
        images: Number of images.
        auc: Area under the ROC curve, 0.5 to 1, whichever way the property points. The source
            points one way only.
    """

    among: str
    property: str
    images: int
    auc: float


def facts_of(path: Path, shape: tuple[int, ...]) -> ImageFacts:
    """The facts of a file whose image has that shape."""
    return ImageFacts(shape[0], shape[1], _quantisation(path))


def _quantisation(path: Path) -> float:
    try:
        with Image.open(path) as image:
            tables: Mapping[int, Sequence[int]] = getattr(image, "quantization", None) or {}
    except OSError:  # a DICOM file, for example
        return _NO_JPEG
    return float(np.mean(tables[_LUMINANCE])) if _LUMINANCE in tables else _NO_JPEG


def find_confounders(
    images: Sequence[LabelledImage], facts: Mapping[Path, ImageFacts], truth: Sequence[bool]
) -> list[Confounder]:
    """Measure the properties over all images, and within each source that has both classes.

    Args:
        images: Images to fit on, each with a class.
        facts: Facts of the images by path.
        truth: Whether each image is positive.
    """
    positive = np.array(truth, bool)
    sources = np.array([image.source for image in images])
    known = [facts[image.path] for image in images]
    values = {
        "aspect": np.array([it.columns / it.rows for it in known]),
        "resolution": np.array([float(min(it.rows, it.columns)) for it in known]),
        "quantisation": np.array([it.quantisation for it in known]),
    }
    share = _share_of_source(sources, positive)
    found = [_confounder("all", "source", share, positive, both_ways=False)]
    for among in ("all", *sorted({*sources.tolist()} - {""})):
        chosen = np.ones(len(sources), bool) if among == "all" else sources == among
        for name, value in values.items():
            found.append(_confounder(among, name, value[chosen], positive[chosen]))
    return [it for it in found if it is not None]


def _confounder(
    among: str,
    name: str,
    values: NDArray[np.float64],
    positive: NDArray[np.bool_],
    *,
    both_ways: bool = True,
) -> Confounder | None:
    if positive.all() or not positive.any():
        return None
    area = auc(values, positive)
    least = 1 - area if both_ways else 0.5
    return Confounder(among, name, len(values), round(max(area, least), 4))


def _share_of_source(sources: NDArray[Any], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For each image the share of positives among the others of its source.

    It points towards the positive class alone. In a source with as many of both classes a positive
    has fewer positives beside it than a negative has, which tells nothing.
    """
    _, owner, counts = np.unique(sources, return_inverse=True, return_counts=True)
    positives = np.bincount(owner, weights=positive)[owner] - positive
    others = counts[owner] - 1
    share: NDArray[np.float64] = np.where(others > 0, positives / np.maximum(others, 1), 0.5)
    return share


def write_confounders(found: Sequence[Confounder], path: Path) -> None:
    """Write the table as JSON.

    Raises:
        OutputError: The file cannot be written.
    """
    content = {"schema_version": 1, "limit": LIMIT, "confounders": [it.as_dict() for it in found]}
    write_text(path, json.dumps(content, indent=1) + "\n")


def warnings_of(found: Sequence[Confounder]) -> list[str]:
    """A sentence for each property that tells the classes better than `LIMIT`."""
    return [
        f"{it.property} alone tells the classes with AUC {it.auc:.2f} "
        f"({'all images' if it.among == 'all' else it.among}, {it.images} images): the network can "
        "learn it in place of the disease"
        for it in found
        if it.auc >= LIMIT
    ]
