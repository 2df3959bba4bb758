"""Reads a picture by OpenCV, by Pillow and by GraphicsMagick, each to grey levels of 0 to 255.

The readers give the pixels as they stand in the file. Ours is what is left to a caller: turned as
EXIF says, alpha laid on black, and colours to grey (ITU-R BT.601).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from witnesses.readers import Grey, Reading
from witnesses.tools import run


def by_opencv(data: bytes) -> Reading:
    """OpenCV's picture: turned by OpenCV itself, except where it has an alpha."""
    buffer = np.frombuffer(data, np.uint8)
    try:
        raw = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
        if raw is None:
            return Reading(None, "OpenCV found no picture")
        if raw.ndim == 3 and raw.shape[2] == 4:
            return Reading(grey_of(_turned(_rgb(np.asarray(raw)), _orientation(data))))
        shown = cv2.imdecode(buffer, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
        if shown is None:
            return Reading(None, "OpenCV found no picture")
    except cv2.error as error:
        return Reading(None, str(error))
    return Reading(grey_of(_rgb(np.asarray(shown))))


def by_pillow(data: bytes) -> Reading:
    """Pillow's picture, turned by `ImageOps.exif_transpose`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            opened: Image.Image = Image.open(io.BytesIO(data))
            opened.load()
            # Pillow turns a TIFF while it loads it, and takes the tag away.
            turned = ImageOps.exif_transpose(opened)
        except Exception as error:  # Pillow's plug-ins raise nearly anything
            return Reading(None, f"{type(error).__name__}: {error}")
    if turned.mode in ("P", "PA") or "transparency" in turned.info:
        turned = turned.convert("RGBA") if not turned.mode.startswith("I") else turned
    return Reading(grey_of(np.asarray(turned)))


def by_magick(files: Sequence[bytes], place: Path) -> list[Reading]:
    """GraphicsMagick's pictures of files, by one process; turned by `-auto-orient`."""
    lines = []
    for number, data in enumerate(files):
        (place / f"{number}.picture").write_bytes(data)
        source, target = place / f"{number}.picture", place / f"{number}.png"
        lines.append(f"convert {source} -auto-orient -depth 16 {target}\n")
    script = place / "script"
    script.write_text("".join(lines))
    run(["gm", "batch", "-stop-on-error", "off", script])
    return [_of_png(place / f"{number}.png") for number in range(len(files))]


def _of_png(path: Path) -> Reading:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.exists() else None
    if pixels is None:
        return Reading(None, "no picture")
    return Reading(grey_of(_rgb(np.asarray(pixels))))


def _rgb(pixels: NDArray[Any]) -> NDArray[Any]:
    """OpenCV's pixels with red first, and alpha last where there is one."""
    if pixels.ndim == 2:
        return pixels
    return pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]


def grey_of(pixels: NDArray[Any]) -> Grey:
    """Grey levels of grey, grey and alpha, RGB or RGBA pixels."""
    full = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind in "ui" else 1.0
    levels = pixels * (255.0 / full)
    if levels.ndim == 2:
        return np.asarray(levels)
    has_alpha = levels.shape[2] in (2, 4)
    colours = levels[..., :-1] if has_alpha else levels
    weights = np.array([0.299, 0.587, 0.114]) if colours.shape[2] == 3 else np.ones(1)
    grey = colours @ weights
    return np.asarray(grey * levels[..., -1] / 255.0 if has_alpha else grey)


def _orientation(data: bytes) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = Image.open(io.BytesIO(data))
        return 1 if opened.format == "TIFF" else int(opened.getexif().get(0x0112, 1))


def _turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turned as CIPA DC-008 says of tag 0x0112."""
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
        orientation = {5: 1, 6: 2, 7: 3, 8: 4}[orientation]
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
    }[orientation]
