"""Which way up a picture is, as its file states.

EXIF (CIPA DC-008, tag 0x0112) and TIFF (6.0, tag 274) have a number for it. A file without that
number may state it in XMP (`tiff:Orientation`, XMP Specification part 2): so do PNG files that were
turned on a Mac. Pillow reads it too, in fewer of its spellings. Of a TIFF that only OpenCV opens
XMP is not read.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.imaging.formats.tiff.directory import OpenCvTiff

TURNS = {
    2: (True, 0),
    3: (False, 2),
    4: (True, 2),
    5: (True, 1),
    6: (False, 3),
    7: (True, 3),
    8: (False, 1),
}
"""Orientation -> (mirror first, quarter turns counter-clockwise)."""
SIDEWAYS = {5, 6, 7, 8}
"""Orientations that make columns of the rows."""
_EXIF_KEYS = {"exif", "Raw profile type exif"}
"""Where Pillow keeps EXIF; the second is ImageMagick's way in PNG."""
_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")
_XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>\s*)([1-8])""")
"""An attribute or an element (XML 1.0, productions 10, 25 and 40)."""


def stated_orientation(picture: Any) -> int:
    """The orientation that a picture states, 1 where it states none."""
    try:
        found = exif_tag(picture, 274)
        return _orientation_of_xmp(picture) if found is None else int(found)
    except (TypeError, ValueError):
        return 1


def _orientation_of_xmp(picture: Any) -> int:
    for text in map(getattr(picture, "info", {}).get, _XMP_KEYS):
        data = text.encode() if isinstance(text, str) else text
        if isinstance(data, bytes) and (found := _XMP.search(data)):
            return int(found[1])
    return 1


def exif_tag(picture: Any, number: int) -> Any:
    """A tag of EXIF or of TIFF, which share their numbers; None where it is not stated.

    Args:
        picture: A `pictures.Picture`.
        number: Of the tag.
    """
    if isinstance(picture, OpenCvTiff):
        return picture.tag_v2.get(number)
    if not hasattr(picture, "getexif"):  # a plain JPEG
        return None
    if picture.format != "TIFF" and not _EXIF_KEYS & picture.info.keys():
        return None
    try:  # the method of a PNG decodes the pixels
        return _base_class().getexif(picture).get(number)
    except Exception:  # a damaged EXIF block says nothing
        return None


@cache
def _base_class() -> Any:
    return import_module("PIL.Image").Image


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels of shape (H, W) or (H, W, C) the right way up."""
    flip, quarter_turns = TURNS[orientation]
    return np.ascontiguousarray(np.rot90(np.fliplr(pixels) if flip else pixels, quarter_turns))
