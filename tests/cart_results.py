"""Results as the cart makes objects of, and dicom3tools' and DCMTK's word on the objects."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import EXPLICIT, dataset, written
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from deepcovid_edge.cart.objects.facts import Facts
from deepcovid_edge.decision.record import Prediction, RunFacts, SiteName
from deepcovid_edge.heatmaps.overlay import encode_overlay
from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, IMPLICIT
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom
from deepcovid_edge.manifest import IndeterminateRange

_ROOT = Path(__file__).parents[1]
_FOLDERS = [folder / "shared" / "dicom" for folder in (_ROOT, _ROOT.parent)]
REAL_IMAGES = sorted(image for folder in _FOLDERS for image in folder.glob("*.dcm"))
"""Real radiographs, which are no part of the repository."""
needs_images = pytest.mark.skipif(not REAL_IMAGES, reason="no real images in shared/dicom")
needs_dciodvfy = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is missing: apt-get install dicom3tools"
)
needs_dcmtk = pytest.mark.skipif(
    shutil.which("dsrdump") is None, reason="DCMTK is not installed: apt-get install dcmtk"
)
POSITIVE, INDETERMINATE, NEGATIVE, NOT_ASSESSED = 0.331234, 0.03, 0.012, None
SCORES = {
    "positive": POSITIVE,
    "indeterminate": INDETERMINATE,
    "negative": NEGATIVE,
    "not_assessed": NOT_ASSESSED,
}
REGIONS: tuple[dict[str, Any], ...] = (
    {"x": 10, "y": 20, "width": 30, "height": 40, "peak": 0.5, "turns": True},
    {"x": 60, "y": 20, "width": 25, "height": 45, "peak": 0.25, "turns": None},
)
FACTS = Facts(
    made=datetime(2026, 3, 4, 5, 6, 7, 89, timezone(timedelta(hours=1))),
    content_sha256="11" * 32,
    serial="CART-0001",
    station="cart-1",
)


def prediction(score: float | None, **changes: Any) -> Prediction:
    """A record with a range, a site file and a warning; without a score, of a lateral view."""
    run = RunFacts(
        model="squeezenet1_1",
        model_sha256="ab" * 32,
        backend="onnxruntime-cpu",
        variant="int8-cpu",
        classes=("covid", "other"),
        positive_class="covid",
        threshold=0.03,
        indeterminate_range=IndeterminateRange(0.02, 0.05),
        site=SiteName("North clinic", "cd" * 32),
    )
    values: dict[str, Any] = {
        "path": "image.dcm",
        "run": run,
        "sha256": "ef" * 32,
        "reason": "E_VIEW" if score is None else None,
        "message": "Lateral." if score is None else None,
        "warnings": ("W_AP",),
        "probabilities": None if score is None else {"covid": score, "other": 1 - score},
        "regions": None if score is None else REGIONS,
    }
    return Prediction(**{**values, **changes})


@cache
def phantom(seed: int) -> NDArray[np.uint8]:
    """A drawn chest; drawing takes longer than the tests of it."""
    return draw_phantom(seed)


@cache
def overlay() -> NDArray[np.uint8]:
    """A coloured picture of the overlay's width."""
    grey = phantom(1)[:600, :960].astype(np.uint16)
    wide = np.concatenate([grey, grey[:, :444]], axis=1)
    colours = [wide, (wide * 7) % 256, 255 - wide]
    return np.stack(colours, axis=-1).astype(np.uint8)


@cache
def overlay_png() -> bytes:
    return encode_overlay(overlay())


def make_image(
    folder: Path,
    syntax: str = EXPLICIT,
    raw: dict[int, tuple[str, bytes]] | None = None,
    **elements: Any,
) -> Path:
    """An image of a phantom; `raw` puts bytes into elements, `elements` sets or leaves them out."""
    path = folder / "image.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom writes what it finds odd
        image = dataset(phantom(0)[::4, ::4], **elements)
        for tag, (kind, value) in (raw or {}).items():
            image[Tag(tag)] = RawDataElement(Tag(tag), kind, len(value), value, 0, False, True)
        # With the encoding that it is written in as its own, pydicom keeps raw values as they are.
        charset = image._character_set
        image.set_original_encoding(syntax == IMPLICIT, syntax != BIG_ENDIAN, charset)
        path.write_bytes(written(image, syntax))
    return path


def errors_of(path: Path) -> list[str]:
    """What dciodvfy finds wrong with an object."""
    done = subprocess.run(
        ["dciodvfy", "-new", str(path)], capture_output=True, timeout=60, check=False
    )
    said = (done.stdout + done.stderr).decode("latin-1")
    assert said, "dciodvfy says what an object is"
    return [line for line in said.splitlines() if line.startswith("Error")]
