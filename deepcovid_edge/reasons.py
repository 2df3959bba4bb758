"""The closed lists of reasons (a file was not assessed) and warnings (it was, but note this).

A code is for programs, a sentence for the radiographer, a cause for whoever looks after the cart.
An error never looks like a result: a record with a `Reason` carries no probability.
`jetson/REASONS.md` is written from these lists.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

_Member = TypeVar("_Member", bound="Coded")
NOTICE = "Research use only. Not a medical device."


class Coded(Enum):
    """A closed list whose members have a stable code each."""

    code: str

    @classmethod
    def of(cls: type[_Member], code: str) -> _Member:
        """The member with a code.

        Raises:
            ValueError: No member has it.
        """
        for member in cls:
            if member.code == code:
                return member
        known = ", ".join(member.code for member in cls)
        raise ValueError(f"{cls.__name__}: got {code!r}, expected one of {known}")


class _Explained(Coded):
    """A closed list whose members are a code, a sentence and a cause."""

    def __init__(self, code: str, sentence: str, cause: str) -> None:
        self.code = code
        """The stable code, as records have it."""
        self.sentence = sentence
        """One sentence for the person at the cart."""
        self.cause = cause
        """When it is given."""


class Reason(_Explained):
    """Why a file was not assessed."""

    UNREADABLE = (
        "E_UNREADABLE",
        "File could not be opened or read.",
        "missing, no permission, a broken disk, not a regular file, or on a share that does "
        "not answer",
    )
    NOT_IMAGE = (
        "E_NOT_IMAGE",
        "Not recognised as an image.",
        "empty, a text file, an unknown type or a DICOMDIR",
    )
    INCOMPLETE = (
        "E_INCOMPLETE",
        "File did not arrive completely.",
        "the file grows while it is read, or its name ends in `.part`, `.tmp`, ...",
    )
    TRUNCATED = (
        "E_TRUNCATED",
        "The image, or a part of it, is missing; send it again.",
        "the data end too early, in zeros or in bytes FF, or have a gap of them; the codestream "
        "has no end; there are no pixels",
    )
    DICOM = (
        "E_DICOM",
        "DICOM files cannot be read; the extra `dicom` is not installed, or broken.",
        "a DICOM file, and pydicom cannot be imported",
    )
    SYNTAX = (
        "E_SYNTAX",
        "DICOM encoding not supported, or not stated; send it uncompressed.",
        "a transfer syntax that is not read (private, video) or missing, or whose decoder is not "
        "installed",
    )
    MODALITY = (
        "E_MODALITY",
        "Not a plain chest X-ray of a person, according to its header.",
        "SOP class or modality of CT, MR, ultrasound, a report, ...; an image type such as "
        "tomosynthesis; an animal; quality control",
    )
    RAW = (
        "E_RAW",
        "Raw detector image; send the processed one.",
        "an image for processing, by SOP class or presentation intent",
    )
    BODY = (
        "E_BODY",
        "Header names a body part that is not known as the chest.",
        "the body part examined, or the code of an anatomic region or structure, names another "
        "part or is not understood",
    )
    VIEW = (
        "E_VIEW",
        "Lateral, oblique, decubitus or other special view; only plain frontal views are read.",
        "view position, view code with its modifiers, how the patient lies, or a patient "
        "orientation from front to back",
    )
    AGE = (
        "E_AGE",
        "Patient is, or may be, a child; not tested on children.",
        "younger than 18 years, by age or by dates of birth and examination; the younger counts; "
        "body part or view names a child; "
        "or the picture looks like that of a child",
    )
    BITS = (
        "E_BITS",
        "Header contradicts itself, or the pixels, about the bits per pixel.",
        "more than 0.1 % of the pixels have bits beside the stored ones that are no overlay's, or "
        "a high bit that cannot be",
    )
    LENGTH = (
        "E_LENGTH",
        "Header and pixels disagree about the image size or the compression.",
        "fewer bytes than rows, columns and bits need, or more behind them than padding; a "
        "codestream of another size",
    )
    FORMAT = (
        "E_FORMAT",
        "Image format not supported; send DICOM, JPEG, PNG, WebP, TIFF or BMP.",
        "PDF, GIF, HEIF, JPEG XL, ...",
    )
    FRAMES = (
        "E_FRAMES",
        "More than one image in the file.",
        "several frames, pages or animation steps",
    )
    TOO_BIG = (
        "E_TOO_BIG",
        "Image or file too large.",
        "more than 100 megapixels or 1 GiB, found before decoding",
    )
    SHAPE = (
        "E_SHAPE",
        "Too small or wrong shape for a chest radiograph.",
        "a side below 100 pixels, or width / height outside 0.5 to 2",
    )
    MODE = (
        "E_MODE",
        "Pixel type not supported; send 8 or 16 bit grey.",
        "1 or 32 bits, floating point, CMYK, Lab, a DICOM palette; in TIFF also signed integers, "
        "16-bit grey with alpha, and alpha in separate planes",
    )
    COLOUR = ("E_COLOUR", "Colour picture; not an X-ray.", "more colour than a slight tint")
    BLANK = (
        "E_BLANK",
        "Blank or badly exposed image.",
        "nearly constant, or more than 60 % of the pixels fully black or white",
    )
    DECODE = (
        "E_DECODE",
        "Image could not be decoded.",
        "the file is damaged, its header does not determine the grey levels, or the decoder "
        "crashed, took longer than 20 s or needed too much memory",
    )
    MODEL = (
        "E_MODEL",
        "Model and site file cannot be used together.",
        "the site file is damaged, of another model or says `not usable`; the command ends with "
        "this error and writes no record",
    )
    DISK = (
        "E_DISK",
        "Disk is nearly full; free some space, then classify the image again.",
        "less than `--min-free` is left where records or heat maps are written",
    )
    OOD = (
        "E_OOD",
        "Does not look like the X-rays this model learned from.",
        "not a chest radiograph, or of a kind that was not among the training images",
    )
    TURNED = (
        "E_ORIENT",
        "Image may be turned or inverted.",
        "out of distribution, and most like turned or inverted images",
    )
    RESULT = (
        "E_RESULT",
        "The network gave no usable number; have the model checked.",
        "the network's output is not finite",
    )


class WarningCode(_Explained):
    """What to know about an image that was assessed."""

    SUFFIX = (
        "W_SUFFIX",
        "File name and content disagree about the format.",
        "the content decides",
    )
    EXIF = (
        "W_EXIF",
        "Turned or mirrored as the file states.",
        "orientation of EXIF or TIFF, or else of XMP",
    )
    ALPHA = ("W_ALPHA", "Transparent parts were placed on black.", "the alpha channel is used")
    PALETTE = (
        "W_PALETTE",
        "Palette image; grey levels come from its colour table.",
        "a PNG, TIFF or BMP with palette indices",
    )
    DEPTH = (
        "W_DEPTH",
        "File uses fewer bits than its format has; grey levels are scaled by the bits it uses.",
        "a PNG or TIFF of 16, 4 or 2 bits; a BMP of 16 bits a pixel; a DICOM image without a "
        "window that uses no more than half of its range, or is signed without a negative value; "
        "a LUT whose entries do not use the bits it states",
    )
    GAMMA = (
        "W_GAMMA",
        "File states unusual grey levels (its gamma); they were taken as stored.",
        "a PNG whose `gAMA` chunk is for a display gamma outside 1.7 to 2.6, without a colour "
        "profile",
    )
    ASPECT = (
        "W_ASPECT",
        "Pixels are not square; the image was stretched as the file states.",
        "pixel spacing or aspect ratio, resolution, density; differences below 1 % are ignored",
    )
    SPACING = (
        "W_SPACING",
        "File does not state clearly how high and wide its pixels are; check the image's shape.",
        "a side of zero or no number, a ratio above 4, or statements that contradict each other",
    )
    SHUTTER = (
        "W_SHUTTER",
        "Display shutter cannot be used; what it would hide is shown.",
        "a bitmap or an unknown shape; edges that are missing, cross or leave too little of the "
        "image",
    )
    EMPTY_END = (
        "W_EMPTY_END",
        "Last part of the image is empty; it may be cut off.",
        "the last rows of the file are zeros, and hardly any other pixel is",
    )
    COLOUR = ("W_COLOUR", "Coloured marks were converted to grey.", "a few coloured pixels")
    LOSSY = ("W_LOSSY", "Heavily compressed.", "more than 20 to 1, by the header or the file size")
    NO_VIEW = (
        "W_NO_VIEW",
        "View or body part not stated; taken as a frontal chest radiograph.",
        "a DICOM header that lacks one of them",
    )
    NOT_UNDERSTOOD = (
        "W_NOT_UNDERSTOOD",
        "View or body part stated in words or codes that are not understood; taken as a frontal "
        "chest radiograph.",
        "view position, view code, or something beside the chest in the body part",
    )
    AP = ("W_AP", "AP view: less well tested.", "view position or view code")
    AGE = (
        "W_AGE",
        "Age not stated, or not understood; not tested on children.",
        "a DICOM header without a usable age, and without dates of birth and examination",
    )
    SECONDARY = (
        "W_SC",
        "Screen copy, or an image with text; may hold text or marks.",
        "secondary capture, or a header that states burned-in text",
    )
    WINDOW = (
        "W_WINDOW",
        "The first window is not usable; another one, or all stored grey levels are used.",
        "a window without a width, of an unknown kind, or that leaves the image black or white "
        "while another one shows it",
    )
    ORIENTATION = (
        "W_ORIENT",
        "Image may be turned or mirrored.",
        "a patient orientation other than left and feet; turned back if the header says how",
    )
    UNVERIFIED = (
        "W_UNVERIFIED",
        "This variant was not verified against its model.",
        "an engine, or a file of `quantize`, without the verdict `unchanged`",
    )
    SITE = (
        "W_SITE",
        "Site check had too few images to tell how well the model works here.",
        "`--site` with a file whose verdict is `not enough images`",
    )
    DUPLICATE_UID = (
        "W_DUP_UID",
        "Image was sent twice with different content.",
        "a DICOM file has the SOP instance UID of an earlier image of the run, but different "
        "bytes; images that were done before `--resume` are not compared",
    )
    NO_HEATMAP = (
        "W_NO_HEATMAP",
        "No heat map: the time budget is too short, or the network gave no usable numbers.",
        "the first, coarse pass takes longer than `--budget`; or an overflow in FP16",
    )
    OOD = (
        "W_OOD",
        "Does not look like the X-rays this model learned from; the result may mean nothing.",
        "`E_OOD` or `E_ORIENT`, but `--ood warn` is set or the image is synthetic",
    )
    SYNTHETIC = (
        "W_SYNTHETIC",
        "Synthetic phantom, not a patient's image.",
        "written by `deepcovid-edge sample`",
    )


def warning_sentence(code: str) -> str:
    """The sentence of a warning's code; a code that is not known stays as it is."""
    return next((one.sentence for one in WarningCode if one.code == code), code)
