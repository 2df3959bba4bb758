"""The closed lists of why a file was not assessed, and of what to know about one that was.

A code is for programs, a sentence for the radiographer, a cause for whoever looks after the cart.
An error never looks like a result: a record with a `Reason` carries no probability.
`jetson/REASONS.md` is written from these lists.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

Coded = TypeVar("Coded", bound="_Coded")
NOTICE = "Research use only. Not a medical device."


class _Coded(Enum):
    """An enumeration whose members are a code, a sentence and a cause."""

    def __init__(self, code: str, sentence: str, cause: str) -> None:
        self.code = code
        """The stable code that stands in records."""
        self.sentence = sentence
        """One sentence for the person at the cart."""
        self.cause = cause
        """What brings it about."""

    @classmethod
    def of(cls: type[Coded], code: str) -> Coded:
        """The member with a code."""
        return next(member for member in cls if member.code == code)


class Reason(_Coded):
    """Why a file was not assessed."""

    UNREADABLE = (
        "E_UNREADABLE",
        "File could not be opened.",
        "not there, no permission, or no regular file",
    )
    NOT_IMAGE = (
        "E_NOT_IMAGE",
        "Not an image or DICOM file.",
        "empty, a text, an unknown type, a DICOMDIR",
    )
    INCOMPLETE = (
        "E_INCOMPLETE",
        "File did not finish arriving.",
        "grows while it is read, or its name ends in `.part`, `.tmp`, ...",
    )
    TRUNCATED = (
        "E_TRUNCATED",
        "Image is cut off; send it again.",
        "ends before its container says so, a codestream without its end, no pixels",
    )
    DICOM = (
        "E_DICOM",
        "DICOM files need an extra that is not installed.",
        "DICOM, and pydicom is not installed",
    )
    SYNTAX = (
        "E_SYNTAX",
        "Compression not supported; send it uncompressed.",
        "a transfer syntax that is not read (private, video), or whose decoder is not installed",
    )
    MODALITY = (
        "E_MODALITY",
        "Not a chest X-ray, by its header.",
        "SOP class or modality of CT, MR, ultrasound, a report, a document, ...",
    )
    RAW = (
        "E_RAW",
        "Raw detector image; send the processed one.",
        "an image for processing, by SOP class or presentation intent",
    )
    BODY = (
        "E_BODY",
        "Marked as another part of the body than the chest.",
        "body part examined",
    )
    VIEW = (
        "E_VIEW",
        "Lateral or oblique view; only frontal views are read.",
        "view position, view code, or a patient orientation from front to back",
    )
    AGE = ("E_AGE", "Not tested on children.", "younger than 18 years, by age or date of birth")
    BITS = (
        "E_BITS",
        "Header and pixels disagree about the bits of a pixel.",
        "bits above those stored in more than 0.1 % of the pixels, or a high bit that does not fit",
    )
    LENGTH = (
        "E_LENGTH",
        "Header and pixels disagree about the size of the image.",
        "rows x columns x bytes is not the length of the pixels",
    )
    FORMAT = (
        "E_FORMAT",
        "Picture format not supported; send DICOM, JPEG, PNG, WebP, TIFF or BMP.",
        "PDF, GIF, HEIF, JPEG XL, ...",
    )
    FRAMES = (
        "E_FRAMES",
        "More than one picture in the file.",
        "several frames, pages or animation steps",
    )
    TOO_BIG = ("E_TOO_BIG", "Image too large.", "above 100 megapixels or 1 GiB, before decoding")
    SHAPE = (
        "E_SHAPE",
        "Too small or wrong shape for a chest radiograph.",
        "a side below 100 pixels, or width to height outside 0.5 to 2",
    )
    MODE = (
        "E_MODE",
        "Pixel type not supported; send 8 or 16 bit grey.",
        "1 or 32 bits, floating point, CMYK, Lab, a DICOM palette",
    )
    COLOUR = ("E_COLOUR", "Colour picture; not an X-ray.", "coloured by more than a tint")
    BLANK = (
        "E_BLANK",
        "Blank or badly exposed image.",
        "nearly constant, or more than 60 % of it at full black or white",
    )
    DECODE = (
        "E_DECODE",
        "Could not be decoded.",
        "damaged; or its decoder died, took longer than 20 s or too much memory",
    )
    MODEL = (
        "E_MODEL",
        "Model and settings do not belong together.",
        "a site file damaged, of another model, or saying `not usable`; the run does not start",
    )
    DISK = (
        "E_DISK",
        "Too little room on the disk; free some, then classify the image again.",
        "less than `--min-free` where records or heat maps are written",
    )
    OOD = (
        "E_OOD",
        "Does not look like the X-rays this model learned from.",
        "no chest radiograph, or one of a kind that was not among the training images",
    )
    TURNED = (
        "E_ORIENT",
        "Image may be turned or inverted.",
        "unlike the training images, and most like turned or inverted ones",
    )
    RESULT = (
        "E_RESULT",
        "The network gave no usable number; have the model checked.",
        "the network's answer is not finite",
    )


class WarningCode(_Coded):
    """What to know about an image that was assessed all the same."""

    SUFFIX = (
        "W_SUFFIX",
        "File name and content disagree about the format.",
        "assessed by its content",
    )
    EXIF = ("W_EXIF", "Rotated as the camera said.", "EXIF or TIFF orientation")
    ALPHA = ("W_ALPHA", "Transparent parts were laid on black.", "an alpha channel that is used")
    PALETTE = (
        "W_PALETTE",
        "Palette picture; grey levels come from its colour table.",
        "a PNG, TIFF or BMP of indices",
    )
    DEPTH = (
        "W_DEPTH",
        "16-bit file that uses fewer bits; scaled by the bits it uses.",
        "16-bit PNG or TIFF; DICOM without a window that uses less than a quarter of its bits",
    )
    COLOUR = ("W_COLOUR", "Coloured marks were turned to grey.", "a few coloured pixels")
    LOSSY = ("W_LOSSY", "Heavily compressed.", "more than 20 to 1, by the header or by size")
    NO_VIEW = (
        "W_NO_VIEW",
        "View or body part not stated; taken as a frontal chest radiograph.",
        "DICOM whose header does not say both",
    )
    AP = ("W_AP", "AP view: less well tested.", "view position or view code")
    AGE = ("W_AGE", "Age not stated; not tested on children.", "DICOM without age or date of birth")
    SECONDARY = (
        "W_SC",
        "Screen copy; may hold text or marks.",
        "secondary capture, or text stated to be burned in",
    )
    WINDOW = (
        "W_WINDOW",
        "No usable window; all stored grey levels are shown.",
        "a window without a width, or of an unknown kind",
    )
    ORIENTATION = (
        "W_ORIENT",
        "Image may be turned or mirrored.",
        "a patient orientation other than left and feet; turned where it says how",
    )
    UNVERIFIED = (
        "W_UNVERIFIED",
        "Not verified against the model that this variant of it was made of.",
        "an engine or INT8 variant without a verdict of `verify`",
    )
    SITE = (
        "W_SITE",
        "Site check had too few images to say how well the model does here.",
        "`--site` with a file whose verdict is `not enough images`",
    )
    DUPLICATE_UID = (
        "W_DUP_UID",
        "Image was sent twice with different content.",
        "DICOM with the SOP instance UID of an earlier image of the run, and other bytes",
    )
    NO_HEATMAP = (
        "W_NO_HEATMAP",
        "No heat map: its time budget holds no pass, or the network gave no usable numbers.",
        "`--budget` below the time of the first, coarse pass; an overflow in FP16",
    )
    OOD = (
        "W_OOD",
        "Unlike the X-rays this model learned from; the result may mean nothing.",
        "would be `E_OOD` or `E_ORIENT`; let through by `--ood warn`, or as a synthetic image",
    )
    SYNTHETIC = (
        "W_SYNTHETIC",
        "Synthetic phantom, not a patient's image.",
        "written by `deepcovid-edge sample`",
    )
