"""Make the golden images of jetson/selftest and what the shipped model says of them.

    python tests/golden/make_selftest.py

Run it again when the shipped model changes. Each image is a drawn phantom, cropped and blurred so
far that the network is not certain: a saturated probability would hide a wrong logit. Which crop
and blur is searched anew, so the images stay golden for any model.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend, softmax
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import SYNTHETIC_MARK, Radiograph
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom
from deepcovid_edge.manifest import VERSION
from deepcovid_edge.model import Model
from deepcovid_edge.models import DEFAULT_MODEL, find_model

PLACE = Path(__file__).parents[2] / "jetson" / "golden"
MAX_BYTES = 40_000
TOLERANCES = {"onnxruntime-cpu": 0.02, "default": 0.1}
WHY = (
    "of the logit margin, ln(p / (1 - p)) of the positive class. onnxruntime-cpu: FP32 sums in "
    "another order differ by about 0.0001; records keep 6 decimals of p, worth 0.0001 here. "
    "default, for GPUs: TF32 and FP16 keep 10 bits of a factor (FP16 on a CPU: 0.002). No image "
    "leaves room for another resize: sides are the network's or twice it, so that the shrink is "
    "the exact mean of 2 x 2 pixels, and one grey level in one pixel of twenty moves it by 0.1."
)


@dataclass(frozen=True)
class Wanted:
    """An image to be found.

    Attributes:
        name: File name.
        seed: The phantom's.
        shape: Rows and columns; the smaller is 224 or 448, see `WHY`.
        margin: Logit margin that comes closest, relative to the threshold's.
    """

    name: str
    seed: int
    shape: tuple[int, int]
    margin: float


IMAGES = (
    Wanted("below.png", seed=3, shape=(224, 224), margin=-1.0),
    Wanted("above.png", seed=4, shape=(532, 448), margin=1.0),
    Wanted("well_above.png", seed=5, shape=(448, 538), margin=2.0),
)


def main() -> None:
    """Find the images, write them, and write what the model says of what was written."""
    PLACE.mkdir(parents=True, exist_ok=True)
    with load_backend(find_model(DEFAULT_MODEL), backend="onnxruntime") as backend:
        images = [golden_image(wanted, backend) for wanted in IMAGES]
        manifest = backend.manifest
        golden = {
            "schema_version": 1,
            "notice": "Synthetic phantoms. Research use only. Not a medical device.",
            "made_by": "python tests/golden/make_selftest.py",
            "made_with": {"deepcovid-edge": VERSION, "opencv": cv2.__version__},
            "model": {
                "name": DEFAULT_MODEL,
                "sha256": backend.sha256,
                "precision": manifest.precision,
            },
            "classes": list(manifest.classes),
            "positive_class": manifest.positive_class,
            "threshold": manifest.threshold,
            "tolerances": {**TOLERANCES, "why": WHY},
            "images": images,
        }
    text = json.dumps(golden, indent=2) + "\n"
    (PLACE / "golden.json").write_text(text, encoding="utf-8")
    with (PLACE / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["path", "label", "source"])
        rows.writerows([image["file"], image["label"], "phantom"] for image in images)


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    """The file's bytes, with the mark of a synthetic image."""
    facts = PngInfo()
    facts.add_text("Description", f"{SYNTHETIC_MARK.decode()}, not a patient's image")
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=facts, optimize=True)
    return stream.getvalue()


def is_small(pixels: NDArray[np.uint8]) -> bool:
    """Whether the image is small enough to lie in the repository."""
    return len(as_png(pixels)) <= MAX_BYTES


def golden_image(wanted: Wanted, backend: Backend) -> dict[str, Any]:
    """Search, write and classify one image."""
    aim = margin_of(backend.manifest.threshold) + wanted.margin
    nearest = sorted(
        candidates(wanted), key=lambda item: abs(margin_of(classify(item[1], backend)) - aim)
    )
    recipe, pixels = next(item for item in nearest if is_small(item[1]))
    path = PLACE / wanted.name
    path.write_bytes(as_png(pixels))
    batch = prepare(read_radiograph(path), backend.manifest.input)[None]
    logits = backend.infer(batch).logits
    shares = dict(zip(backend.manifest.classes, softmax(logits)[0].tolist(), strict=True))
    probability = shares[backend.manifest.positive_class]
    positive = probability >= backend.manifest.threshold
    return {
        "file": wanted.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "label": max(
            shares, key=lambda name: (name == backend.manifest.positive_class) == positive
        ),
        "decision": Prediction(wanted.name, Model.of(backend).facts, probabilities=shares).decision,
        "logits": [round(float(value), 5) for value in logits[0]],
        "probabilities": {name: round(share, 6) for name, share in shares.items()},
        "logit_margin": round(margin_of(probability), 5),
        "made_from": {"seed": wanted.seed, "shape": list(wanted.shape), **recipe},
    }


def candidates(wanted: Wanted) -> Iterator[tuple[dict[str, float], NDArray[np.uint8]]]:
    """The phantom in rising crops and blurs, labelled as synthetic."""
    phantom = draw_phantom(wanted.seed)
    rows, columns = wanted.shape
    for crop in (1.0, 0.9, 0.8, 0.65, 0.5, 0.4):
        part = centre(phantom, crop)
        small = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
        for blur in (0.001, 0.002, 0.004, 0.006, 0.009, 0.013, 0.02, 0.03):
            soft: NDArray[Any] = cv2.GaussianBlur(small, (0, 0), blur * columns)
            yield {"crop": crop, "blur": blur}, label(soft)


def centre(image: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """The middle of an image."""
    height, width = round(image.shape[0] * share), round(image.shape[1] * share)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def label(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write SYNTHETIC into the lower part, where the centre crop keeps it."""
    height, width = pixels.shape
    at = (round(width * 0.2), round(height * 0.9))
    scale = min(height, width) / 500
    cv2.putText(pixels, "SYNTHETIC", at, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
    return pixels


def classify(pixels: NDArray[np.uint8], backend: Backend) -> float:
    """Probability of the positive class, of pixels that were not written yet."""
    image = prepare(Radiograph(pixels, 255, "", "PNG"), backend.manifest.input)
    logits = backend.infer(image[None]).logits
    return float(softmax(logits)[0, backend.manifest.positive_index])


def margin_of(probability: float) -> float:
    """Logit margin: ln(p / (1 - p)), which for two classes is the difference of the logits."""
    return math.log(probability / (1 - probability))


if __name__ == "__main__":
    main()
