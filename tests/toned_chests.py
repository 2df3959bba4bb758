"""Drawn chests as files hold them, in three splits; they do not say that they are synthetic."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from plain_chest import draw_chest

from deepcovid_edge.backends import load_backend
from deepcovid_edge.model import Model
from deepcovid_edge.pipeline.pipeline import PredictSettings

SIZE = (250, 240)
COUNTS = {"train": 24, "val": 16, "test": 8}


@cache
def phantom(seed: int) -> np.ndarray:
    drawn = draw_chest(seed, opacities=seed % 3)
    reduced: np.ndarray = cv2.resize(drawn, SIZE[::-1], interpolation=cv2.INTER_AREA)
    return reduced


def drawn(seed: int) -> np.ndarray:
    """An image as files hold it: no two alike in tone and frame."""
    draw = np.random.default_rng(seed)
    top, left = draw.integers(0, 16, size=2)
    image = phantom(seed % 6)[top : top + SIZE[0] - 16, left : left + SIZE[1] - 16]
    grain = draw.normal(0, 2, image.shape)
    toned = image * draw.uniform(0.8, 1.1) + draw.uniform(0, 20) + grain
    return np.clip(toned, 0, 255).astype(np.uint8)


def write_splits(folder: Path) -> Path:
    """Write the splits of `COUNTS`; the folder."""
    seed = 0
    for split, count in COUNTS.items():
        for number in range(count):
            path = folder / split / ("covid" if number % 2 else "non") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), drawn(seed := seed + 1))
    return folder


def reasons(model: Path, images: dict[str, np.ndarray], folder: Path) -> dict[str, str | None]:
    """What becomes of pictures, written as files and classified as on a cart."""
    paths = [folder / f"{name}.png" for name in images]
    for path, pixels in zip(paths, images.values(), strict=True):
        cv2.imwrite(str(path), pixels)
    with load_backend(model) as backend:
        settings = PredictSettings()
        records = list(Model.of(backend, settings).predict(paths))
    assert all((record.probability is None) == (record.reason is not None) for record in records)
    return {path.stem: record.reason for path, record in zip(paths, records, strict=True)}
