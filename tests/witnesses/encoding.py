"""Writes a drawn image: its words, its header, and its pixels by the encoder that was drawn."""

from __future__ import annotations

import io
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
from codestreams import LosslessJpeg
from dicom_files import (
    EXPLICIT,
    SECONDARY_CAPTURE,
    compressed,
    dataset,
    written,
)
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.processing import convert_color_space

from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, IMPLICIT, SYNTAXES, Family
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom
from witnesses.specs import BY_HAND, DCMTK, GDCM, OPENJPEG, OPENJPH, OURS, TURBO, ImageSpec, Layout
from witnesses.tools import run

Words = NDArray[Any]


def image_file(spec: ImageSpec, place: Path) -> bytes:
    """The bytes of an image's file.

    Args:
        spec: What was drawn.
        place: An empty folder for what programs read and write.
    """
    image = dataset_of(spec)
    packing = spec.packing
    if packing.writer in (DCMTK, GDCM):
        data = _converted(written(image), spec, place)
    else:
        data = _packed(image, spec, place)
    return _with_meta(data, packing.meta)


# ---------------------------------------------------------------- pixels


@cache
def _phantom(seed: int) -> NDArray[np.uint8]:
    return draw_phantom(seed, opacities=3 * (seed % 2))


def words_of(spec: ImageSpec) -> Words:
    """Stored values, of shape (rows, columns) or (rows, columns, 3)."""
    layout, greys = spec.layout, spec.greys
    shape = (layout.columns, layout.rows)
    picture: Words = cv2.resize(_phantom(spec.phantom), shape, interpolation=cv2.INTER_AREA)
    if layout.photometric == "MONOCHROME1":
        picture = 255 - picture
    kind = np.dtype(f"{'i' if layout.signed else 'u'}{layout.allocated // 8}")
    if not layout.is_grey:
        return _colours(picture, layout)
    share = picture / 255.0
    words = np.rint(greys.black + share * (greys.white - greys.black)).astype(kind)
    if greys.padding != "none":
        words[:, : layout.columns // 9] = _padding(spec)[0]
    if greys.shutter:
        words[: layout.rows // 10] = greys.white
    return words


def _colours(picture: Words, layout: Layout) -> Words:
    """A grey screen copy, in the colours that are stored before they are compressed."""
    rgb = np.dstack([picture] * 3)
    if layout.photometric != "YBR_FULL":
        return rgb
    return np.asarray(convert_color_space(rgb, "RGB", "YBR_FULL"))


def _padding(spec: ImageSpec) -> tuple[int, int]:
    """A value that the picture seldom has, and the limit of a range that begins there."""
    low, high = spec.layout.ends
    at = low if spec.phantom % 2 else high
    return at, at + (3 if at == low else -3)


# ---------------------------------------------------------------- header


def dataset_of(spec: ImageSpec) -> Dataset:
    """The header with the words, uncompressed."""
    layout, greys = spec.layout, spec.greys
    words = words_of(spec)
    image = dataset(words, stored=layout.stored, PhotometricInterpretation=layout.photometric)
    if greys.overlay == "high bits":
        _hide_overlay(image, words, layout)
    if greys.overlay == "moved up":  # as PS3.5, 8.1.1 allowed until 2014
        image.PixelData = (words << (layout.allocated - layout.stored)).tobytes()
        image.HighBit = layout.allocated - 1
    if not layout.is_grey:
        _make_screen_copy(image, words, layout)
    if len(image.PixelData) % 2:
        image.PixelData += b"\0"
    _state_aspect(image, layout)
    if layout.is_grey:
        _state_modality(image, spec)
        _state_voi(image, spec)
    if greys.presentation:
        image.PresentationLUTShape = greys.presentation
    _state_padding(image, spec)
    _state_shutter(image, spec)
    if spec.packing.syntax == BIG_ENDIAN and spec.packing.writer == OURS:
        _swap_luts(image)
    if greys.overlay == "plane":
        _add_overlay(image, layout)
    return image


def _make_screen_copy(image: Dataset, words: Words, layout: Layout) -> None:
    image.SOPClassUID, image.Modality = SECONDARY_CAPTURE, "OT"
    del image.PresentationIntentType
    if layout.planar:
        image.PlanarConfiguration = 1
        image.PixelData = np.moveaxis(words, -1, 0).tobytes()


def _state_padding(image: Dataset, spec: ImageSpec) -> None:
    if spec.greys.padding != "none":
        kind = "SS" if spec.layout.signed else "US"
        value, limit = _padding(spec)
        image.add_new(0x00280120, kind, value)
        if spec.greys.padding == "range":
            image.add_new(0x00280121, kind, limit)


def _state_aspect(image: Dataset, layout: Layout) -> None:
    if layout.aspect_by == "PixelAspectRatio":
        image.PixelAspectRatio = list(layout.aspect)
    elif layout.aspect_by:
        setattr(image, layout.aspect_by, [f"{0.01 * side:g}" for side in layout.aspect])


def modality(spec: ImageSpec, values: Words) -> Words:
    """Values behind the modality LUT or rescale, by the image's parameters."""
    greys = spec.greys
    if greys.modality == "rescale":
        return values * greys.slope + greys.intercept
    if greys.modality == "lut":
        low, high = spec.layout.ends
        share = (values - low) / (high - low)
        return np.rint(share**0.8 * ((1 << greys.modality_bits) - 1))
    return values


def _state_modality(image: Dataset, spec: ImageSpec) -> None:
    greys, (low, high) = spec.greys, spec.layout.ends
    if greys.modality == "rescale":
        image.RescaleSlope, image.RescaleIntercept = f"{greys.slope:g}", f"{greys.intercept:g}"
        image.RescaleType = "US"
    elif greys.modality == "lut":
        entries = modality(spec, np.arange(low, high + 1))
        image.ModalityLUTSequence = [
            _lut(low, entries, greys.modality_bits, signed=spec.layout.signed)
        ]
        image.ModalityLUTSequence[0].ModalityLUTType = "US"


def _state_voi(image: Dataset, spec: ImageSpec) -> None:
    greys = spec.greys
    if greys.voi == "none":
        return
    black, white = (float(modality(spec, np.float64(end))) for end in (greys.black, greys.white))
    first, last = (black + share * (white - black) for share in greys.window)
    if "window" in greys.voi:
        centres, widths = [(first + last) / 2], [max(last - first, 2.0)]
        if greys.voi == "windows":
            centres, widths = [*centres, black], [*widths, 2 * widths[0]]
        image.WindowCenter = [f"{centre:.8g}" for centre in centres]
        image.WindowWidth = [f"{width:.8g}" for width in widths]
        if greys.function:
            image.VOILUTFunction = greys.function
    if "lut" in greys.voi:
        lowest = float(modality(spec, np.float64(spec.layout.ends[0])))
        most = 32767 if lowest < 0 else 65535
        start, end = min(max(round(first), round(lowest), -32768), most), round(last)
        count = min(max(end - start, 2), 1 << 16)
        share = np.linspace(0, 1, count) ** 1.2
        entries = np.rint(share * ((1 << greys.used_bits) - 1))
        signed = lowest < 0  # PS3.3, C.11.2.1.1
        image.VOILUTSequence = [_lut(start, entries, greys.voi_bits, signed=signed)]


def _lut(first: int, entries: Words, bits: int, *, signed: bool) -> Dataset:
    """An item with a LUT (PS3.3, C.11.1.1 and C.11.2.1.1); 0 entries stand for 65,536."""
    item = Dataset()
    item.add_new(0x00283002, "SS" if signed else "US", [len(entries) & 0xFFFF, first, bits])
    item.add_new(0x00283006, "OW", entries.astype("<u2").tobytes())
    return item


def _swap_luts(image: Dataset) -> None:
    """Big-endian words: pydicom writes the bytes of an OW as they are."""
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        for item in image.get(keyword, []):
            item.LUTData = np.frombuffer(item.LUTData, "<u2").astype(">u2").tobytes()


def _state_shutter(image: Dataset, spec: ImageSpec) -> None:
    """Shutters that hide the white strip at the top, and no more than edges (PS3.3, C.7.6.11)."""
    shapes, (rows, columns) = spec.greys.shutter, (spec.layout.rows, spec.layout.columns)
    if not shapes:
        return
    image.ShutterShape = list(shapes)
    image.ShutterPresentationValue = 0
    top = rows // 10
    if "RECTANGULAR" in shapes:
        image.ShutterLeftVerticalEdge, image.ShutterRightVerticalEdge = 4, columns - 3
        image.ShutterUpperHorizontalEdge, image.ShutterLowerHorizontalEdge = top, rows + 1
    if "CIRCULAR" in shapes:
        image.CenterOfCircularShutter = [rows // 2, columns // 2]
        image.RadiusOfCircularShutter = max(rows, columns) // 2
    if "POLYGONAL" in shapes:
        corners = ((top, 5), (top, columns - 5), (rows, columns), (rows, 1))
        image.VerticesOfThePolygonalShutter = [*chain.from_iterable(corners)]


def _marks(layout: Layout) -> NDArray[np.bool_]:
    marks = np.zeros((layout.rows, layout.columns), bool)
    marks[5:20, 5:30] = True
    return marks


def _hide_overlay(image: Dataset, words: Words, layout: Layout) -> None:
    """An overlay in the first bit above the stored ones (PS3.3, C.9.2, retired in 2004)."""
    marked = words | (_marks(layout).astype(words.dtype) << layout.stored)
    image.PixelData = marked.astype(words.dtype).tobytes()
    _state_overlay(image, layout, allocated=layout.allocated, position=layout.stored)


def _add_overlay(image: Dataset, layout: Layout) -> None:
    _state_overlay(image, layout, allocated=1, position=0)
    bits = np.packbits(_marks(layout), bitorder="little").tobytes()
    image.add_new(0x60003000, "OW", bits + b"\0" * (len(bits) % 2))


def _state_overlay(image: Dataset, layout: Layout, *, allocated: int, position: int) -> None:
    image.add_new(0x60000010, "US", layout.rows)
    image.add_new(0x60000011, "US", layout.columns)
    image.add_new(0x60000040, "CS", "G")
    image.add_new(0x60000050, "SS", [1, 1])
    image.add_new(0x60000100, "US", allocated)
    image.add_new(0x60000102, "US", position)


# ---------------------------------------------------------------- encoders


def _converted(plain: bytes, spec: ImageSpec, place: Path) -> bytes:
    """The file as DCMTK or GDCM writes it."""
    before, after = place / "plain.dcm", place / "written.dcm"
    before.write_bytes(plain)
    options = spec.packing.options
    if spec.packing.writer == DCMTK:
        run([*options, before, after])
    else:
        run(["gdcmconv", *options, before, after])
    return after.read_bytes()


def _packed(image: Dataset, spec: ImageSpec, place: Path) -> bytes:
    packing = spec.packing
    if packing.family is Family.NATIVE:
        if packing.surplus:
            image.PixelData += b"\0" * packing.surplus
        return written(image, packing.syntax)
    codestream = _codestream(spec, place) + b"\0" * packing.surplus
    count = min(packing.fragments, max(1, len(codestream) // 100))
    if packing.offsets == "extended":
        frame, offsets, lengths = encapsulate_extended([codestream])
        image.ExtendedOffsetTable, image.ExtendedOffsetTableLengths = offsets, lengths
    else:
        frame = encapsulate(
            [codestream], fragments_per_frame=count, has_bot=packing.offsets == "basic"
        )
    image.add_new(0x7FE00010, "OB", frame)
    image["PixelData"].is_undefined_length = True
    if image.SamplesPerPixel == 3:
        image.PlanarConfiguration = 0
    return written(image, packing.syntax)


def _codestream(spec: ImageSpec, place: Path) -> bytes:
    words, packing = words_of(spec), spec.packing
    if packing.writer in (OPENJPEG, OPENJPH, TURBO):
        return _by_program(spec, np.ascontiguousarray(words), place)
    if packing.writer == BY_HAND:
        predictor, point, rows = map(int, packing.options)
        writer = LosslessJpeg(spec.layout.stored, predictor, point, restart_rows=rows)
        return writer.encode(_unsigned(words, spec.layout))
    if not spec.layout.is_grey:
        return _colour_codestream(words, spec)
    if packing.family in (Family.JPEG_2000, Family.HTJ2K):
        if spec.layout.stored == 8:
            words = words.astype(f"{words.dtype.kind}1")
        return compressed(words, spec.layout.stored, packing.syntax)
    unsigned = _unsigned(words, spec.layout)
    if packing.family is Family.JPEG_LOSSLESS and spec.layout.stored == 8:
        unsigned = unsigned.astype(np.uint8)
    return compressed(unsigned, spec.layout.stored, packing.syntax)


def _unsigned(words: Words, layout: Layout) -> Words:
    """The stored bits alone; codecs without a sign take them so."""
    kind = np.dtype(f"u{layout.allocated // 8}")
    if layout.signed:
        stored: Words = words.view(kind) & kind.type((1 << layout.stored) - 1)
        return stored
    return words


def _colour_codestream(words: Words, spec: ImageSpec) -> bytes:
    family, photometric = spec.packing.family, spec.layout.photometric
    if family is Family.JPEG:
        colours = "RGB" if photometric == "RGB" else "YCBCR"
        rgb = _rgb(words, spec)
        sampling = "422" if photometric == "YBR_FULL_422" else "444"
        return bytes(
            imagecodecs.jpeg8_encode(
                rgb, level=95, colorspace="RGB", outcolorspace=colours, subsampling=sampling
            )
        )
    if family is Family.JPEG_2000:
        exact = not SYNTAXES[spec.packing.syntax].lossy
        return bytes(
            imagecodecs.jpeg2k_encode(
                words, codecformat="j2k", mct=True, reversible=exact, level=0 if exact else 60
            )
        )
    return compressed(words, 8, spec.packing.syntax)


def _by_program(spec: ImageSpec, words: Words, place: Path) -> bytes:
    layout, packing = spec.layout, spec.packing
    rows, columns = words.shape[:2]
    samples = 1 if layout.is_grey else 3
    raw, out = place / "raw.raw", place / "out.j2k"
    if packing.writer == OPENJPEG:
        raw.write_bytes(np.moveaxis(words, -1, 0).tobytes() if samples == 3 else _big(words))
        sign = "s" if layout.signed else "u"
        size = f"{columns},{rows},{samples},{layout.stored},{sign}"
        run(["opj_compress", "-i", raw, "-o", out, "-F", size, *packing.options])
    elif packing.writer == OPENJPH:
        raw = place / "raw.yuv"
        raw.write_bytes(words.tobytes())
        signed = "true" if layout.signed else "false"
        out = place / "out.j2c"
        run(
            [
                *("ojph_compress", "-i", raw, "-o", out, "-dims", f"{{{columns},{rows}}}"),
                *("-num_comps", "1", "-signed", signed, "-bit_depth", str(layout.stored)),
                *("-downsamp", "{1,1}", *packing.options),
            ]
        )
    else:
        header = b"P5" if samples == 1 else b"P6"
        raw.write_bytes(header + f" {columns} {rows} 255\n".encode() + _rgb(words, spec).tobytes())
        colours = [] if samples == 1 or layout.photometric != "RGB" else ["-rgb"]
        run(["cjpeg", *packing.options, *colours, "-outfile", out, raw])
    return out.read_bytes()


def _rgb(words: Words, spec: ImageSpec) -> Words:
    return np.dstack([words[..., 0]] * 3) if spec.layout.photometric == "YBR_FULL" else words


def _big(words: Words) -> bytes:
    return words.astype(words.dtype.newbyteorder(">")).tobytes()


# ---------------------------------------------------------------- file meta


def _with_meta(data: bytes, meta: str) -> bytes:
    """The file, with what its file meta information is to be like."""
    start = 144 + int.from_bytes(data[140:144], "little")
    if meta == "none":
        return data[start:]
    if meta == "contradicting":
        # An element of 4 header words: the UID is 17 or 19 letters long, padded to even length.
        other = {EXPLICIT: IMPLICIT, IMPLICIT: EXPLICIT}
        image = dcmread(io.BytesIO(data))
        again = written(image, other[str(image.file_meta.TransferSyntaxUID)])
        return again[: 144 + int.from_bytes(again[140:144], "little")] + data[start:]
    return data
