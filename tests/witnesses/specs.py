"""Draws what a DICOM image is to be: one seed and number give one `ImageSpec`, the same always."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from dicom_files import (
    EXPLICIT,
    HTJ2K,
    HTJ2K_LOSSY,
    HTJ2K_RPCL,
    J2K,
    J2K_LOSSY,
    JPEG,
    JPEG_12,
    JPEG_LS,
    LOSSLESS,
    LOSSLESS_SV1,
    NATIVE,
    NEAR_LOSSLESS,
    RLE,
    WRITABLE,
)

from deepcovid_edge.imaging.dicom.syntaxes import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    SYNTAXES,
    Family,
)

Draw = np.random.Generator
Choice = TypeVar("Choice")

OURS, DCMTK, GDCM, OPENJPEG, OPENJPH, TURBO, BY_HAND = (
    *("pydicom", "DCMTK", "GDCM", "OpenJPEG", "OpenJPH", "libjpeg-turbo", "by hand"),
)
_WRITERS: dict[str, tuple[str, ...]] = {
    IMPLICIT: (OURS, DCMTK, GDCM),
    EXPLICIT: (OURS, DCMTK, GDCM),
    BIG_ENDIAN: (OURS, DCMTK),
    DEFLATED: (OURS, DCMTK),
    RLE: (OURS, DCMTK, GDCM),
    JPEG: (OURS, DCMTK, GDCM, TURBO),
    JPEG_12: (OURS, DCMTK),
    LOSSLESS: (OURS, DCMTK, DCMTK, BY_HAND),
    LOSSLESS_SV1: (OURS, DCMTK, GDCM, BY_HAND),
    JPEG_LS: (OURS, DCMTK, GDCM),
    NEAR_LOSSLESS: (OURS, DCMTK, GDCM),
    J2K: (OURS, GDCM, OPENJPEG, OPENJPEG),
    J2K_LOSSY: (OURS, GDCM, OPENJPEG, OPENJPEG),
    HTJ2K: (OURS, OPENJPH),
    HTJ2K_RPCL: (OURS, OPENJPH),
    HTJ2K_LOSSY: (OURS, OPENJPH),
}
DRAWN = [syntax for syntax in WRITABLE if syntax in _WRITERS]
"""Neither DCMTK nor pydicom decodes the other one, uncompressed pixels in fragments."""


@dataclass(frozen=True)
class Layout:
    """How pixels are stored.

    Attributes:
        rows: Height, pixels.
        columns: Width, pixels.
        allocated: Bits a sample takes.
        stored: Bits of it that mean something.
        signed: Whether samples are in two's complement.
        photometric: Photometric interpretation.
        planar: Whether colours stand in planes.
        aspect: Vertical and horizontal size of a pixel.
        aspect_by: Keyword of the element that states it, or empty.
    """

    rows: int
    columns: int
    allocated: int
    stored: int
    signed: bool
    photometric: str
    planar: bool
    aspect: tuple[int, int]
    aspect_by: str

    @property
    def ends(self) -> tuple[int, int]:
        """Lowest and highest value that can be stored."""
        half = 1 << (self.stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    @property
    def is_grey(self) -> bool:
        """Whether there is one channel."""
        return self.photometric.startswith("MONO")


@dataclass(frozen=True)
class Greys:
    """From stored values to grey levels.

    Attributes:
        black: Stored value of the phantom's black.
        white: Stored value of the phantom's white.
        modality: `none`, `rescale` or `lut`.
        slope: Rescale slope.
        intercept: Rescale intercept.
        modality_bits: Bits of an entry of the modality LUT.
        voi: `none`, `window`, `windows`, `lut` or `lut and window`.
        function: VOI LUT function, or empty.
        window: Where the window's ends lie, as shares of the way from black to white.
        voi_bits: Bits of an entry of the VOI LUT by its descriptor.
        used_bits: Bits that its entries use.
        presentation: Presentation LUT shape, or empty.
        padding: `none`, `value` or `range`.
        shutter: Shutter shapes, or empty.
        overlay: `none`, `plane` or `high bits`; `moved up` where there is none, but the stored
            bits are the highest ones.
    """

    black: int
    white: int
    modality: str
    slope: float
    intercept: float
    modality_bits: int
    voi: str
    function: str
    window: tuple[float, float]
    voi_bits: int
    used_bits: int
    presentation: str
    padding: str
    shutter: tuple[str, ...]
    overlay: str


@dataclass(frozen=True)
class Packing:
    """How the pixels stand in the file.

    Attributes:
        syntax: Transfer syntax UID.
        writer: Whose encoder writes them.
        options: What the encoder is asked for: of its command line; by hand it is predictor,
            point transform and rows of a restart interval.
        fragments: Fragments of a codestream.
        offsets: `none`, `basic` or `extended`.
        surplus: Bytes behind the pixels that belong to nothing.
        meta: `plain`, `contradicting` or `none`.
    """

    syntax: str
    writer: str
    options: tuple[str, ...]
    fragments: int
    offsets: str
    surplus: int
    meta: str

    @property
    def family(self) -> Family:
        """What decodes it."""
        return SYNTAXES[self.syntax].family


@dataclass(frozen=True)
class ImageSpec:
    """A DICOM file to be: what is drawn from a seed.

    Attributes:
        seed: Seed and number.
        phantom: Which phantom it shows.
        layout: How pixels are stored.
        greys: How they become grey levels.
        packing: How they stand in the file.
    """

    seed: tuple[int, int]
    phantom: int
    layout: Layout
    greys: Greys
    packing: Packing


def drawn(seed: int, number: int) -> ImageSpec:
    """The image of that number."""
    draw = np.random.default_rng((seed, number))
    syntax = DRAWN[number % len(DRAWN)]
    writer = one(draw, *_WRITERS[syntax])
    layout = _layout(draw, syntax, writer)
    greys = _greys(draw, layout, syntax)
    return ImageSpec(
        seed=(seed, number),
        phantom=int(draw.integers(6)),
        layout=layout,
        greys=greys,
        packing=_packing(draw, layout, syntax, writer, exact=greys.padding != "none"),
    )


def one(draw: Draw, *choices: Choice) -> Choice:
    """One of some choices, each as likely."""
    return choices[int(draw.integers(len(choices)))]


def seldom(draw: Draw, share: float, choice: Choice, otherwise: Choice) -> Choice:
    """A choice in a share of all cases."""
    return choice if draw.random() < share else otherwise


def _layout(draw: Draw, syntax: str, writer: str) -> Layout:
    family = SYNTAXES[syntax].family
    colour = draw.random() < 0.12 and syntax != JPEG_12 and writer not in (OPENJPH, GDCM)
    stored = 8 if colour else one(draw, 8, 8, 10, 12, 12, 14, 15, 16)
    if syntax == JPEG_12:
        stored = 12 if writer == OURS else one(draw, 10, 12)
    if syntax == JPEG:
        stored = 8
    allocated = 8 if stored == 8 and (colour or draw.random() < 0.8 or syntax == JPEG) else 16
    if writer == OPENJPEG and stored == 15:  # which its command line does not take
        stored = 14
    unsigned = (
        family is Family.JPEG
        or writer == OPENJPH
        or (writer in (DCMTK, OURS) and syntax == NEAR_LOSSLESS)
    )
    signed = not colour and not unsigned and draw.random() < 0.25
    aspect = seldom(draw, 0.08, one(draw, (3, 2), (2, 3), (5, 4), (20, 19)), (1, 1))
    if writer == GDCM and SYNTAXES[syntax].lossy:
        aspect = (1, 1)  # faults of single pixels are explained one by one, not between two
    keywords = ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing")
    stated = aspect != (1, 1) or draw.random() < 0.2
    return Layout(
        rows=int(draw.integers(101, 190)),
        columns=int(draw.integers(101, 190)),
        allocated=allocated,
        stored=stored,
        signed=signed,
        photometric=_photometric(draw, syntax, writer)
        if colour
        else seldom(draw, 0.4, "MONOCHROME1", "MONOCHROME2"),
        planar=colour and family in (Family.NATIVE, Family.RLE) and draw.random() < 0.4,
        aspect=aspect,
        aspect_by=one(draw, *keywords) if stated else "",
    )


def _photometric(draw: Draw, syntax: str, writer: str) -> str:
    """Of a grey screen copy in colour."""
    family = SYNTAXES[syntax].family
    if writer == DCMTK or family in (Family.JPEG_LOSSLESS, Family.JPEG_LS):
        return "RGB"
    if family is Family.JPEG:
        return one(draw, "YBR_FULL_422", "YBR_FULL_422", "RGB", "YBR_FULL")
    if family in (Family.JPEG_2000, Family.HTJ2K):
        return "YBR_ICT" if SYNTAXES[syntax].lossy else "YBR_RCT"
    return one(draw, "RGB", "RGB", "YBR_FULL")


def _greys(draw: Draw, layout: Layout, syntax: str) -> Greys:
    low, high = layout.ends
    voi = one(draw, "none", "none", "window", "window", "windows", "lut", "lut and window")
    if not layout.is_grey:
        voi = "none"
    occupied = one(draw, 1.0, 1.0, draw.uniform(0.6, 0.95), draw.uniform(0.08, 0.5))
    span = (high - low) * occupied
    black = round(low + draw.uniform(0, 1) * (high - low - span))
    modality = seldom(draw, 0.4, one(draw, "rescale", "rescale", "lut"), "none")
    square = layout.aspect == (1, 1)  # faults of single pixels are explained one by one
    exact = "lut" in voi or not square  # and a LUT has no entry between two values
    voi_bits = one(draw, 8, 10, 12, 16)
    padding = seldom(draw, 0.12, one(draw, "value", "range"), "none")
    if SYNTAXES[syntax].lossy or not layout.is_grey or not square:
        padding = "none"
    shutter = _shutter(draw, layout)
    return Greys(
        black=black,
        white=round(black + span),
        modality=modality if layout.is_grey else "none",
        slope=one(draw, 1.0, 2.0) if exact else one(draw, 1.0, 1.0, 0.5, 0.25, 4.0, 1.37),
        intercept=float(one(draw, 0, -1024, low, -low, 100))
        + (0.0 if exact else one(draw, 0, 0.5)),
        modality_bits=one(draw, 8, 12, 16),
        voi=voi,
        function=one(draw, "", "LINEAR", "LINEAR_EXACT", "SIGMOID") if voi != "none" else "",
        window=(draw.uniform(-0.2, 0.2), draw.uniform(0.75, 1.3)),
        voi_bits=voi_bits,
        used_bits=voi_bits - seldom(draw, 0.1, 2, 0),
        presentation=_presentation(draw, layout, may_contradict=padding == "none" and not shutter),
        padding=padding,
        shutter=shutter,
        overlay=_overlay(draw, layout, syntax, padded=padding != "none"),
    )


def _presentation(draw: Draw, layout: Layout, *, may_contradict: bool) -> str:
    """The shape that belongs to the photometric interpretation, seldom the other one."""
    shapes = ("INVERSE", "IDENTITY")
    if draw.random() < 0.5 or not layout.is_grey:
        return ""
    agreeing = shapes[layout.photometric == "MONOCHROME2"]
    return seldom(draw, 0.1 * may_contradict, one(draw, *shapes), agreeing)


def _shutter(draw: Draw, layout: Layout) -> tuple[str, ...]:
    shapes = ("RECTANGULAR", "CIRCULAR", "POLYGONAL")
    if draw.random() > 0.08 or not layout.is_grey or layout.aspect != (1, 1):
        return ()
    return seldom(draw, 0.2, ("RECTANGULAR", "CIRCULAR"), (one(draw, *shapes),))


def _overlay(draw: Draw, layout: Layout, syntax: str, *, padded: bool) -> str:
    spare = layout.allocated - layout.stored
    if spare and not layout.signed and syntax in NATIVE and draw.random() < 0.1:
        found = one(draw, "high bits", "moved up")
        return "none" if padded and found == "moved up" else found  # pydicom loses what is padding
    return seldom(draw, 0.06, "plane", "none")


def _packing(draw: Draw, layout: Layout, syntax: str, writer: str, *, exact: bool) -> Packing:
    encapsulated = syntax not in NATIVE
    meta = seldom(draw, 0.12, one(draw, "contradicting", "none"), "plain")
    if writer != OURS or syntax not in (IMPLICIT, EXPLICIT):
        meta = "plain"
    return Packing(
        syntax=syntax,
        writer=writer,
        options=_options(draw, layout, syntax, writer, exact=exact),
        fragments=one(draw, 1, 1, 1, 2, 5) if encapsulated else 1,
        offsets=one(draw, "none", "basic", "basic", "extended") if encapsulated else "none",
        surplus=seldom(draw, 0.1, one(draw, 2, 6, 512), 0) if writer == OURS else 0,
        meta=meta,
    )


def _options(
    draw: Draw, layout: Layout, syntax: str, writer: str, *, exact: bool
) -> tuple[str, ...]:
    """What the encoder is asked for."""
    if writer == DCMTK:
        return _dcmtk_options(draw, layout, syntax, exact=exact)
    makers = {
        GDCM: _gdcm_options,
        OPENJPEG: _openjpeg_options,
        OPENJPH: _openjph_options,
        TURBO: _turbo_options,
    }
    if writer in makers:
        return makers[writer](draw, syntax)
    if writer == BY_HAND:
        predictor = 1 if syntax == LOSSLESS_SV1 else int(draw.integers(1, 8))
        point = 0 if exact else seldom(draw, 0.4, int(draw.integers(1, 4)), 0)
        return str(predictor), str(point), one(draw, "0", "1", "7", "32")
    return ()


def _gdcm_options(draw: Draw, syntax: str) -> tuple[str, ...]:
    quality = ("-q", one(draw, "80", "92", "98"))
    return _GDCM[syntax] + (quality if SYNTAXES[syntax].family is Family.JPEG else ())


def _turbo_options(draw: Draw, _syntax: str) -> tuple[str, ...]:
    return (
        *("-quality", one(draw, "75", "90", "98"), "-sample", one(draw, "1x1", "2x1", "2x2")),
        *(("-restart", one(draw, "1", "4", "3B")) if draw.random() < 0.5 else ()),
        *(("-optimize",) if draw.random() < 0.5 else ()),
    )


_GDCM = {
    IMPLICIT: ("--implicit",),
    EXPLICIT: ("--explicit",),
    RLE: ("--rle",),
    JPEG: ("--jpeg", "--lossy"),
    LOSSLESS_SV1: ("--jpeg",),
    JPEG_LS: ("--jpegls",),
    NEAR_LOSSLESS: ("--jpegls", "--lossy", "-e", "2"),
    J2K: ("--j2k",),
    J2K_LOSSY: ("--j2k", "--lossy", "-r", "6"),
}


def _dcmtk_options(draw: Draw, layout: Layout, syntax: str, *, exact: bool) -> tuple[str, ...]:
    tool: dict[str, tuple[str, ...]] = {
        IMPLICIT: ("dcmconv", "+ti"),
        EXPLICIT: ("dcmconv", "+te"),
        BIG_ENDIAN: ("dcmconv", "+tb"),
        DEFLATED: ("dcmconv", "+td"),
        RLE: ("dcmcrle",),
        JPEG: ("dcmcjpeg", "+eb", "+q", str(one(draw, 75, 90, 98))),
        JPEG_12: ("dcmcjpeg", "+ee", "+q", str(one(draw, 75, 90, 98))),
        LOSSLESS: ("dcmcjpeg", "+el", "+sv", str(draw.integers(1, 8))),
        LOSSLESS_SV1: ("dcmcjpeg", "+e1"),
        JPEG_LS: ("dcmcjpls", "+el"),
        NEAR_LOSSLESS: ("dcmcjpls", "+en", "+md", str(draw.integers(1, 6))),
    }
    more: list[str] = []
    family = SYNTAXES[syntax].family
    if family is Family.JPEG_LOSSLESS and not exact and draw.random() < 0.3:
        more += ["+pt", str(draw.integers(1, 4))]
    if syntax in (JPEG, JPEG_12) and not layout.is_grey:
        more += [one(draw, "+s2", "+s4")]
    if family is Family.JPEG_LS:
        more += [one(draw, "+il", "+is", "+in"), one(draw, "+ps", "+pz")]
        if syntax == JPEG_LS and draw.random() < 0.4:  # near-lossless it corrupts its heap
            more += ["+t1", "5", "+t2", "11", "+t3", "29", "+rs", str(one(draw, 32, 64, 200))]
    if family is not Family.NATIVE:
        more += [one(draw, "+ot", "-ot")]
        more += seldom(draw, 0.3, ["+fs", "2"], [])
    more += one(draw, ["+e"], ["-e"], ["+g"], ["+e", "+p", "512", "64"])
    return (*tool[syntax], *more)


def _openjpeg_options(draw: Draw, syntax: str) -> tuple[str, ...]:
    progression = one(draw, "LRCP", "RLCP", "RPCL", "PCRL", "CPRL")
    options: list[Any] = ["-n", one(draw, "1", "3", "5", "6"), "-p", progression]
    options += seldom(draw, 0.3, ["-t", one(draw, "64,64", "100,75")], [])
    options += seldom(draw, 0.3, ["-c", "[128,128],[64,64]"], [])
    options += seldom(draw, 0.3, ["-b", one(draw, "32,32", "16,64", "4,64")], [])
    options += [flag for flag in ("-SOP", "-EPH", "-PLT", "-TLM") if draw.random() < 0.2]
    options += seldom(draw, 0.3, ["-M", str(one(draw, 1, 2, 4, 8, 16, 32, 63))], [])
    options += seldom(draw, 0.2, ["-TP", one(draw, "R", "L")], [])
    options += seldom(draw, 0.15, ["-ROI", "c=0,U=5"], [])
    if syntax == J2K_LOSSY:
        options += one(draw, ["-r", "8"], ["-I", "-r", "10,5"], ["-I", "-q", "45,55"])
    return tuple(options)


def _openjph_options(draw: Draw, syntax: str) -> tuple[str, ...]:
    options = [
        "-num_decomps",
        one(draw, "0", "3", "5"),
        "-block_size",
        one(draw, "{64,64}", "{32,128}"),
    ]
    options += ["-prog_order"]
    options += ["RPCL" if syntax == HTJ2K_RPCL else one(draw, "LRCP", "RLCP", "PCRL", "CPRL")]
    options += ["-precincts", "{128,128},{256,256}"] if draw.random() < 0.3 else []
    if syntax == HTJ2K_LOSSY:
        return (*options, "-reversible", "false", "-qstep", one(draw, "0.0005", "0.002"))
    return (*options, "-reversible", "true")
