"""The closed lists of why a file was not assessed, and of what to know about one that was.

A code is for programs, a sentence for the radiographer. An error never looks like a result:
a record with a `Reason` carries no probability.
"""

from __future__ import annotations

from enum import Enum


class _Coded(Enum):
    """An enumeration whose members are pairs of a code and a sentence."""

    @property
    def code(self) -> str:
        """The stable code that stands in records."""
        code: str = self.value[0]
        return code

    @property
    def sentence(self) -> str:
        """One sentence for the person at the cart."""
        sentence: str = self.value[1]
        return sentence


class Reason(_Coded):
    """Why a file was not assessed."""

    UNREADABLE = ("E_UNREADABLE", "File could not be opened.")
    NOT_IMAGE = ("E_NOT_IMAGE", "Not an image or DICOM file.")
    INCOMPLETE = ("E_INCOMPLETE", "File did not finish arriving.")
    TRUNCATED = ("E_TRUNCATED", "Image is cut off; send it again.")
    DICOM = ("E_DICOM", "DICOM files are not read yet; export the film as PNG.")
    FORMAT = ("E_FORMAT", "Picture format not supported; send JPEG, PNG, WebP, TIFF or BMP.")
    FRAMES = ("E_FRAMES", "More than one picture in the file.")
    TOO_BIG = ("E_TOO_BIG", "Image too large.")
    SHAPE = ("E_SHAPE", "Too small or wrong shape for a chest film.")
    MODE = ("E_MODE", "Pixel type not supported; send 8 or 16 bit grey.")
    COLOUR = ("E_COLOUR", "Colour picture; not an X-ray.")
    BLANK = ("E_BLANK", "Blank or badly exposed image.")
    DECODE = ("E_DECODE", "Could not be decoded.")
    RESULT = ("E_RESULT", "The network gave no usable number; have the model checked.")


class Caution(_Coded):
    """What to know about a film that was assessed all the same."""

    SUFFIX = ("W_SUFFIX", "File name and content disagree about the format.")
    EXIF = ("W_EXIF", "Rotated as the camera said.")
    ALPHA = ("W_ALPHA", "Transparent parts were laid on black.")
    PALETTE = ("W_PALETTE", "Palette picture; grey levels come from its colour table.")
    DEPTH = ("W_DEPTH", "16-bit file that uses fewer bits; scaled by the bits it uses.")
    COLOUR = ("W_COLOUR", "Coloured marks were turned to grey.")
    LOSSY = ("W_LOSSY", "Heavily compressed.")
    UNVERIFIED = (
        "W_UNVERIFIED",
        "Not verified against the model that this form of it was made of.",
    )
    NO_HEATMAP = ("W_NO_HEATMAP", "No heat map: its time budget does not hold one pass.")
    SYNTHETIC = ("W_SYNTHETIC", "Synthetic phantom, not a patient's film.")
