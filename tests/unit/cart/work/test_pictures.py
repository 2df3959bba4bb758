"""Pictures for the page: of every film that was decoded, and a map of those that have a result."""

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
from whole_cart import phantom_film

from deepcovid_edge.cart.pictures import MAP, PICTURE, THUMBNAIL, write_pictures
from deepcovid_edge.cart.work.film_judge import FilmJudge, FilmRequest
from deepcovid_edge.cart.work.judge_child import loaded_judge
from deepcovid_edge.imaging.radiograph import Radiograph

ALL = {PICTURE, THUMBNAIL, MAP}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FilmJudge]:
    config = write_config(tmp_path_factory.mktemp("cart"), 8080)
    with loaded_judge(config, config.cart.model, None) as loaded:
        yield loaded


def read(path: Path) -> Picture:
    picture = cv2.imread(str(path))
    assert picture is not None
    return np.asarray(picture, np.uint8)


def judged(judge: FilmJudge, folder: Path, data: bytes) -> tuple[str | None, Path]:
    """The reason why a film was not assessed, and the folder of its results."""
    path = folder / "film.dcm"
    path.write_bytes(data)
    digest = f"{abs(hash(data)):064x}"
    answer = judge.judge(FilmRequest(path, digest, is_dicom=True))
    return answer["record"]["reason"], judge.spool.results(digest)


def test_an_assessed_film_has_three_pictures_of_one_shape(judge: FilmJudge, tmp_path: Path) -> None:
    reason, folder = judged(judge, tmp_path, phantom_film(1, EXPLICIT, opacities=9))
    assert reason is None
    shapes = {name: read(folder / name).shape[:2] for name in ALL}
    assert max(shapes[PICTURE]) <= 1024
    assert max(shapes[THUMBNAIL]) == 144
    for rows, columns in shapes.values():
        whole = shapes[PICTURE]
        assert rows / columns == pytest.approx(whole[0] / whole[1], rel=0.02)
    film, under = (read(folder / name) for name in (PICTURE, MAP))
    assert film.std(axis=2).max() < 3  # grey
    assert under.std(axis=2).max() > 20  # coloured


def test_a_film_that_its_header_refuses_is_not_decoded(judge: FilmJudge, tmp_path: Path) -> None:
    reason, folder = judged(judge, tmp_path, phantom_film(2, EXPLICIT, ViewPosition="LL"))
    assert reason == "E_VIEW"
    assert not ALL & {path.name for path in folder.iterdir()}


def test_a_film_that_the_network_does_not_know_has_a_picture_and_no_map(
    judge: FilmJudge, tmp_path: Path
) -> None:
    noise = np.random.default_rng(1).integers(0, 4096, (500, 400)).astype(np.uint16)
    image = dataset(noise, stored=12, SOPInstanceUID="2.25.77", StudyInstanceUID="2.25.78")
    reason, folder = judged(judge, tmp_path, written(image))
    assert reason in ("E_OOD", "E_ORIENT")
    assert ALL & {path.name for path in folder.iterdir()} == {PICTURE, THUMBNAIL}


def test_pixels_that_are_not_square_keep_the_shape_of_the_film(tmp_path: Path) -> None:
    pixels = np.full((400, 200), 4095, np.uint16)
    image = Radiograph(pixels, 4095, "0" * 64, "DICOM", file_shape=(400, 400))
    write_pictures(tmp_path / "made", image)
    picture = read(tmp_path / "made" / PICTURE)
    assert picture.shape[:2] == image.whole_shape
    assert picture.min() > 250
