"""Pictures for the page: of every image that was decoded, and a map of those that have a result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("highdicom", reason="the cart needs extra cart")

from browser import Picture
from cart_page import write_config
from dicom_files import EXPLICIT, dataset, written
from whole_cart import phantom_image

from deepcovid_edge.cart.pictures import MAP, PICTURE, THUMBNAIL, write_pictures
from deepcovid_edge.cart.work.assessment import AssessmentRequest, Assessor
from deepcovid_edge.cart.work.assessor_child import loaded_assessor
from deepcovid_edge.imaging.radiograph import Radiograph

ALL = {PICTURE, THUMBNAIL, MAP}


@pytest.fixture(scope="module")
def assessor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assessor]:
    config = write_config(tmp_path_factory.mktemp("cart"), 8080)
    with loaded_assessor(config.cart, config.cart.model, None) as loaded:
        yield loaded


def read(path: Path) -> Picture:
    picture = cv2.imread(str(path))
    assert picture is not None
    return np.asarray(picture, np.uint8)


def assessed(assessor: Assessor, folder: Path, data: bytes) -> tuple[str | None, Path]:
    """The reason why an image was not assessed, and the folder of its results."""
    path = folder / "image.dcm"
    path.write_bytes(data)
    digest = f"{abs(hash(data)):064x}"
    answer = assessor.assess(AssessmentRequest(path, digest, is_dicom=True))
    return answer["record"]["reason"], assessor.spool.results(digest)


def test_an_assessed_image_has_three_pictures_of_one_shape(
    assessor: Assessor, tmp_path: Path
) -> None:
    reason, folder = assessed(assessor, tmp_path, phantom_image(1, EXPLICIT, opacities=9))
    assert reason is None
    shapes = {name: read(folder / name).shape[:2] for name in ALL}
    assert max(shapes[PICTURE]) <= 1024
    assert max(shapes[THUMBNAIL]) == 144
    for rows, columns in shapes.values():
        whole = shapes[PICTURE]
        assert rows / columns == pytest.approx(whole[0] / whole[1], rel=0.02)
    image, under = (read(folder / name) for name in (PICTURE, MAP))
    assert image.std(axis=2).max() < 3  # grey
    assert under.std(axis=2).max() > 20  # coloured


def test_an_image_that_its_header_refuses_is_not_decoded(
    assessor: Assessor, tmp_path: Path
) -> None:
    reason, folder = assessed(assessor, tmp_path, phantom_image(2, EXPLICIT, ViewPosition="LL"))
    assert reason == "E_VIEW"
    assert not ALL & {path.name for path in folder.iterdir()}


def test_an_image_that_the_network_does_not_know_has_a_picture_and_no_map(
    assessor: Assessor, tmp_path: Path
) -> None:
    noise = np.random.default_rng(1).integers(0, 4096, (500, 400)).astype(np.uint16)
    image = dataset(noise, stored=12, SOPInstanceUID="2.25.77", StudyInstanceUID="2.25.78")
    reason, folder = assessed(assessor, tmp_path, written(image))
    assert reason in ("E_OOD", "E_ORIENT")
    assert ALL & {path.name for path in folder.iterdir()} == {PICTURE, THUMBNAIL}


def test_pixels_that_are_not_square_keep_the_shape_of_the_image(tmp_path: Path) -> None:
    pixels = np.full((400, 200), 4095, np.uint16)
    image = Radiograph(pixels, 4095, "0" * 64, "DICOM", file_shape=(400, 400))
    write_pictures(tmp_path / "made", image)
    picture = read(tmp_path / "made" / PICTURE)
    assert picture.shape[:2] == image.whole_shape
    assert picture.min() > 250
