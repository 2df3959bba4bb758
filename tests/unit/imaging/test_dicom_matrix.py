"""Every syntax, depth, photometric interpretation and window: the same image, the same decision."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_once import drawn_phantom
from numpy.typing import NDArray
from PIL import Image

from deepcovid_edge.imaging.radiograph import Radiograph

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
import dicom_files
from dicom_files import DCMTK, MOST_BITS, WRITABLE, by_dcmtk, dataset, stored_image, written

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES
from deepcovid_edge.model import Model
from deepcovid_edge.models import find_model
from deepcovid_edge.pipeline.pipeline import PredictSettings

Decode = Callable[..., Radiograph]

XRAY = Path(os.environ.get("DEEPCOVID_XRAY", str(Path(__file__).parents[4] / "shared" / "xray")))
CELLS = [
    (syntax, bits, photometric, window)
    for syntax in WRITABLE
    for bits in (8, 12, 16)
    for photometric in ("MONOCHROME1", "MONOCHROME2")
    for window in (True, False)
    if bits <= MOST_BITS.get(syntax, 16)
]
FEW = [
    (syntax, bits, photometric, window)
    for number, syntax in enumerate(WRITABLE)
    for deeper, bits in enumerate((8, 12, 16))
    for other, photometric in enumerate(("MONOCHROME1", "MONOCHROME2"))
    for window in (True, False)
    if (number + deeper + other + window) % 3 == 0 and bits <= MOST_BITS.get(syntax, 16)
]
"""A third of them: each syntax, depth, interpretation and window, with others from one to the next.

The others are for `make nightly`: reading a cell takes 30 ms, and there are 300.
"""
LOSSLESS_TOLERANCE = 1.0
"""Grey levels of 255, largest difference; 8 bits in a window of 0.7 of them lose half a level."""
LOSSY_TOLERANCE = 1.5
"""The same on average, at the encoders' high quality."""
PROBABILITY_TOLERANCE = 0.05
"""Of lossless files: one grey level here and there moves a probability of 0.9 by 0.02."""


def name(cell: tuple[str, int, str, bool]) -> str:
    syntax, bits, photometric, window = cell
    parts = (SYNTAXES[syntax].name, f"{bits} bit", photometric[-1], "window" if window else "none")
    return "-".join(parts).replace(" ", "_")


def few_by_default(cells: list[tuple[str, int, str, bool]]) -> list[Any]:
    return [
        pytest.param(cell, id=name(cell), marks=[] if cell in FEW else pytest.mark.slow)
        for cell in cells
    ]


def file_of(image: NDArray[np.uint8], cell: tuple[str, int, str, bool]) -> bytes:
    syntax, bits, photometric, window = cell
    pixels, elements = stored_image(image, bits, photometric, window=window)
    return written(dataset(pixels, **elements), syntax)


def difference(read: Radiograph, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    assert read.pixels.shape == image.shape
    apart: NDArray[np.float64] = np.abs(read.pixels * (255.0 / read.white) - image)
    return apart


def check(read: Radiograph, image: NDArray[np.uint8], syntax: str) -> None:
    found = difference(read, image)
    if SYNTAXES[syntax].lossy:
        assert found.mean() <= LOSSY_TOLERANCE
    else:
        assert found.max() <= LOSSLESS_TOLERANCE
    assert read.format == "DICOM"
    assert read.warnings == ()


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    """From black to white: dcmcjpeg stretches what is not."""
    drawn = drawn_phantom(2, opacities=5)[:900:3, :1080:3].astype(np.float64)
    low, high = drawn.min(), drawn.max()
    stretched: NDArray[np.uint8] = np.rint((drawn - low) * (255 / (high - low))).astype(np.uint8)
    return stretched


@pytest.mark.parametrize("cell", few_by_default(CELLS))
def test_file_reads_to_the_grey_levels_of_its_image(
    cell: tuple[str, int, str, bool], image: NDArray[np.uint8], decode: Decode
) -> None:
    check(decode(file_of(image, cell)), image, cell[0])


@pytest.mark.skipif(bool(dicom_files.dcmtk()), reason=str(dicom_files.dcmtk()))
@pytest.mark.parametrize("cell", few_by_default([cell for cell in CELLS if cell[0] in DCMTK]))
def test_file_that_dcmtk_wrote_reads_to_the_grey_levels_of_its_image(
    cell: tuple[str, int, str, bool], image: NDArray[np.uint8], decode: Decode
) -> None:
    syntax, bits, photometric, window = cell
    plain = file_of(image, (dicom_files.EXPLICIT, bits, photometric, window))
    check(decode(by_dcmtk(plain, syntax)), image, syntax)


@pytest.fixture(scope="module")
def network() -> Iterator[Backend]:
    pytest.importorskip("onnxruntime", reason="needs extra cpu")
    with load_backend(find_model("squeezenet1_1")) as loaded:
        yield loaded


def classified(folder: Path, network: Backend) -> list[Prediction]:
    settings = PredictSettings(workers=2)
    return list(Model.of(network, settings).predict(sorted(folder.iterdir())))


def same_decision(
    image: NDArray[np.uint8], cells: list[tuple[str, int, str, bool]], place: Path, network: Backend
) -> None:
    Image.fromarray(image).save(place / "image.png")
    for number, cell in enumerate(cells):
        (place / f"{number:03d}").write_bytes(file_of(image, cell))
    *files, picture = classified(place, network)
    assert picture.path.endswith("image.png")
    for cell, record in zip(cells, files, strict=True):
        assert record.decision == picture.decision, name(cell)
        if not SYNTAXES[cell[0]].lossy:
            exact = cell[1] == 8 and not cell[3]
            tolerance = 0 if exact else PROBABILITY_TOLERANCE
            assert record.probability == pytest.approx(picture.probability, abs=tolerance)


@pytest.mark.parametrize(
    "cells", [pytest.param(FEW, id="few"), pytest.param(CELLS, id="all", marks=pytest.mark.slow)]
)
def test_every_file_of_a_phantom_gets_the_decision_of_its_png(
    cells: list[tuple[str, int, str, bool]],
    image: NDArray[np.uint8],
    tmp_path: Path,
    network: Backend,
) -> None:
    same_decision(image, cells, tmp_path, network)


def test_few_cells_have_every_value_of_all() -> None:
    for axis in range(4):
        assert {cell[axis] for cell in FEW} == {cell[axis] for cell in CELLS}


@pytest.mark.skipif(not XRAY.is_dir(), reason=f"no X-rays at {XRAY}")
@pytest.mark.parametrize(
    ("label", "every"),
    [
        *(("covid", 5), ("normal", 11), ("pneumonia", 11)),
        pytest.param("covid", 1, marks=pytest.mark.slow),
    ],
)
def test_every_file_of_a_real_image_gets_the_decision_of_its_png(
    label: str, every: int, tmp_path: Path, network: Backend
) -> None:
    path = sorted((XRAY / "test" / label).iterdir())[0]
    image = np.asarray(Image.open(path).convert("L").reduce(2))
    same_decision(image, CELLS[::every], tmp_path, network)


@pytest.mark.parametrize("seed", range(3))
def test_grey_levels_are_those_of_pydicoms_own_functions(seed: int, decode: Any) -> None:
    """Rescale, then window, by pydicom, on the whole image in floats."""
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing

    draw = np.random.default_rng(seed)
    words = draw.integers(0, 1 << 12, (200, 180), np.uint16)
    function = ("LINEAR", "LINEAR_EXACT", "SIGMOID")[seed]
    data = dataset(
        words,
        stored=12,
        RescaleSlope=0.5,
        RescaleIntercept=float(draw.integers(-1000, 1000)),
        RescaleType="US",
        WindowWidth=float(draw.integers(1000, 2500)),
        VOILUTFunction=function,
    )
    data.WindowCenter = 1024 + data.RescaleIntercept
    read = decode(written(data))
    floats = apply_windowing(apply_modality_lut(words, data), data)
    ends = np.array([0, 4095]) * float(data.RescaleSlope) + float(data.RescaleIntercept)
    shares = (floats - ends[0]) / (ends[1] - ends[0])
    assert np.abs(read.pixels / read.white - shares).max() < 1e-3
