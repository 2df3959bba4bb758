"""Do decisions stay when JPEG 2000 and HTJ2K are decoded no larger than the model input needs?

Images of a split are enlarged to a detector's size, get its noise, and are written twice as DICOM:
uncompressed and compressed. Both are read as `infer` reads them. The differences are measured
in grey levels of the model input, in probabilities and in decisions of each variant.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import measure
from benchmarks.measure.options import parser_of
from benchmarks.speed.dicom import ENCODERS, write
from deepcovid_edge import Model
from deepcovid_edge.backends.base import softmax
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import InputSpec

NOISE = 1.5
"""Standard deviation of the noise, grey levels of 255."""
KEYS = ("grey_mean", "grey_999", "halvings")


def main() -> None:
    """Compare, and store the result."""
    parser = parser_of(__doc__, data="folder with val/ and test/", model="one")
    parser.add_argument("--split", default="test")
    parser.add_argument("--side", type=int, default=3000, help="longer side, pixels")
    parser.add_argument("--syntax", choices=ENCODERS, default="1.2.840.10008.1.2.4.201")
    parser.add_argument("--every", type=int, default=1, help="use every Nth image")
    options = parser.parse_args()
    paths = [image.path for image in load_dataset(options.data, split=options.split)]
    paths = paths[:: options.every]
    with TemporaryDirectory() as place, ThreadPoolExecutor(measure.CORES) as pool:
        pairs = list(
            pool.map(
                lambda item: both(item[1], Path(place, str(item[0])), options.side, options.syntax),
                enumerate(paths),
            )
        )
    wholes, halves, found = zip(*pairs, strict=True)
    name = SYNTAXES[options.syntax].name
    figures: dict[str, Any] = {
        "split": options.split,
        "images": len(paths),
        "side": options.side,
        "syntax": name,
        "halvings": sum(one["halvings"] for one in found),
        "grey_levels": {key: measure.summary([one[key] for one in found]) for key in KEYS[:2]},
        "variants": {
            variant: of_variant(options.model, variant, np.stack(wholes), np.stack(halves))
            for variant in ("fp32", "int8-cpu")
        },
    }
    kind = f"{options.split}-{options.side}-{options.syntax.rsplit('.', 1)[1]}"
    measure.store(kind, figures, "halved")


def both(path: Path, place: Path, side: int, syntax: str) -> tuple[Any, Any, dict[str, float]]:
    """The model inputs of an image, by all pixels and as `infer` reads it, and how they differ."""
    spec = InputSpec()
    pixels = enlarged(path, side)
    write(place, pixels)
    whole = measure.prepared(place, spec)
    write(place, pixels, syntax)
    halved = measure.prepared(place, spec)
    radiograph = read_radiograph(place, spec)
    place.unlink()
    apart = np.abs(whole.astype(np.int64) - halved)
    facts = (float(apart.mean()), float(np.percentile(apart, 99.9)), radiograph.halvings)
    return whole, halved, dict(zip(KEYS, facts, strict=True))


def enlarged(path: Path, side: int) -> NDArray[np.uint16]:
    """An image as a detector's console would store it for a MONOCHROME1 window of `write`."""
    image = read_radiograph(path)
    levels = image.pixels.astype(np.float32) / image.white
    scale = side / max(levels.shape)
    large = cv2.resize(levels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    # Bright is few: the window from 7768 to 57767 is shown from white to black.
    words = 57767 - 49999 * large
    noise = np.random.default_rng(0).normal(0, NOISE / 255 * 49999, words.shape)
    return np.asarray(np.clip(words + noise, 0, 65535), np.uint16)


def of_variant(
    name: str, variant: str, wholes: NDArray[np.uint8], halves: NDArray[np.uint8]
) -> dict[str, Any]:
    """Probabilities and decisions of one variant of a model."""
    with Model(name, variant=variant) as model:
        facts = model.facts
        place = facts.classes.index(facts.positive_class)
        first, second = (
            np.concatenate(
                [
                    softmax(model.infer(images[at : at + 8]))[:, place]
                    for at in range(0, len(images), 8)
                ]
            )
            for images in (wholes, halves)
        )
    limits = [facts.threshold]
    if facts.indeterminate_range:
        limits = [facts.indeterminate_range.low, facts.indeterminate_range.high]
    moved = np.abs(first - second)
    turned = np.digitize(first, limits) != np.digitize(second, limits)
    return {
        "probability_max": float(moved.max()),
        "probability_mean": float(moved.mean()),
        "turned": int(turned.sum()),
        "across_threshold": int(((first >= facts.threshold) != (second >= facts.threshold)).sum()),
    }


if __name__ == "__main__":
    main()
