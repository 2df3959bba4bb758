"""Near-duplicates in two splits are found however they were changed; other images are none."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("imagehash", reason="the workstation side needs extra export")

import imagehash
from drawn_once import drawn_phantom
from PIL import Image

from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.errors import OutputError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.reasons import WarningCode
from deepcovid_export.data.leaks import Leak, find_leaks, write_leaks
from deepcovid_export.data.near_duplicates import (
    Fingerprint,
    NearDuplicate,
    find_near_duplicates,
    fingerprint,
)

ROOT = Path(__file__).parents[4]
XRAY = Path(os.environ.get("DEEPCOVID_XRAY", ROOT.parent / "shared" / "xray"))
needs_images = pytest.mark.skipif(
    not (XRAY / "manifest.csv").is_file(),
    reason="no real X-rays: ../shared/xray is missing (DEEPCOVID_XRAY overrides)",
)
Pixels = NDArray[Any]


def turned(grey: Pixels, degrees: float) -> Pixels:
    height, width = grey.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(grey, turn, (width, height))


def cropped(grey: Pixels, share: float) -> Pixels:
    rows, columns = (round(side * share) for side in grey.shape)
    return grey[rows:-rows, columns:-columns]


def framed(grey: Pixels, share: float) -> Pixels:
    width = round(grey.shape[1] * share)
    return cv2.copyMakeBorder(grey, width, width, width, width, cv2.BORDER_CONSTANT)


def padded(grey: Pixels) -> Pixels:
    high, wide = ((max(grey.shape) - side) // 2 for side in grey.shape)
    return cv2.copyMakeBorder(grey, high, high, wide, wide, cv2.BORDER_CONSTANT)


def noisy(grey: Pixels) -> Pixels:
    grain = np.random.default_rng(0).normal(0, 12, grey.shape)
    return np.clip(grey + grain, 0, 255).astype(np.uint8)


def recoded(grey: Pixels, quality: int) -> Pixels:
    read = cv2.imdecode(cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0)
    assert read is not None
    return read


def toned(grey: Pixels, gamma: float) -> Pixels:
    return (255 * (grey / 255.0) ** gamma).astype(np.uint8)


CHANGES: dict[str, tuple[Callable[[Pixels], Pixels], float]] = {
    "jpeg": (lambda grey: recoded(grey, 30), 0.97),
    "square": (lambda grey: cv2.resize(grey, (224, 224), interpolation=cv2.INTER_AREA), 0.97),
    "small jpeg": (lambda grey: recoded(cv2.resize(grey, (224, 224)), 50), 0.97),
    "brighter": (lambda grey: toned(grey, 0.6), 0.97),
    "darker": (lambda grey: toned(grey, 1.6), 0.97),
    "clahe": (lambda grey: cv2.createCLAHE(2, (8, 8)).apply(grey), 0.97),
    "blurred": (lambda grey: cv2.GaussianBlur(grey, (0, 0), 3), 0.97),
    "mirrored": (lambda grey: grey[:, ::-1], 0.97),
    "crop of 1 %": (lambda grey: cropped(grey, 0.01), 0.97),
    "crop of 2 %": (lambda grey: cropped(grey, 0.02), 0.9),
    "black frame": (lambda grey: framed(grey, 0.05), 0.97),
    "padded to a square": (padded, 0.97),
    "noisy": (noisy, 0.97),
    "turned by 2 degrees": (lambda grey: turned(grey, 2), 0.95),
}
"""Changes with the least share of real images that are found after them."""


def print_of(grey: Pixels, name: str = "", *warnings: WarningCode) -> Fingerprint:
    grey = np.ascontiguousarray(grey)
    sha256 = name or hashlib.sha256(grey.tobytes()).hexdigest()
    return fingerprint(Radiograph(grey, 255, sha256, "PNG", warnings))


def texture(seed: int) -> Pixels:
    """A picture with structure of every size and its own for each seed."""
    draw = np.random.default_rng(seed)
    field = np.zeros((300, 260), np.float32)
    for size in (3, 8, 20, 50):
        layer = cv2.GaussianBlur(draw.normal(size=field.shape).astype(np.float32), (0, 0), size)
        field += layer / layer.std()
    return np.clip(128 + 28 * field, 0, 255).astype(np.uint8)


def read_real(step: int) -> tuple[list[LabelledImage], list[Radiograph]]:
    """One of so many real images."""
    images = load_dataset(XRAY)[::step]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return images, list(pool.map(lambda image: read_radiograph(image.path), images))


@pytest.fixture(scope="module", params=[40, pytest.param(20, marks=pytest.mark.slow)])
def real(request: pytest.FixtureRequest) -> list[Radiograph]:
    """One of 40 real images; one of 20 takes twice as long for each change."""
    return read_real(request.param)[1]


@needs_images
@pytest.mark.parametrize(
    "step",
    [4, pytest.param(1, marks=pytest.mark.slow)],  # reading all of them takes ten seconds
)
def test_real_splits_that_were_cleared_of_copies_have_none(step: int) -> None:
    """Of all of them 658 688 pairs of images in different splits, and not one false alarm."""
    images, radiographs = read_real(step)
    assert find_leaks(images, [fingerprint(one) for one in radiographs]) == []


@needs_images
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_of_a_real_image_is_found(real: list[Radiograph], change: str) -> None:
    function, least = CHANGES[change]
    prints = [print_of(one.pixels) for one in real]
    prints += [print_of(function(one.pixels), f"changed {at}") for at, one in enumerate(real)]
    count = len(real)
    near_duplicates = find_near_duplicates(prints, [0] * count + [1] * count)
    right = [copy for copy in near_duplicates if copy.second - copy.first == count]
    assert len(near_duplicates) == len(right)
    assert len(right) >= least * count
    mirrored = sum(copy.mirrored for copy in right)
    assert mirrored >= 0.97 * len(right) if change == "mirrored" else mirrored == 0


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_among_other_pictures(change: str) -> None:
    pictures = [texture(seed) for seed in range(12)]
    prints = [print_of(one) for one in (*pictures, CHANGES[change][0](pictures[5]))]
    (copy,) = find_near_duplicates(prints, range(13))
    assert (copy.first, copy.second) == (5, 12)


def test_images_of_one_part_are_not_compared() -> None:
    prints = [print_of(texture(1)), print_of(recoded(texture(1), 50))]
    assert len(find_near_duplicates(prints, ["train", "val"])) == 1
    assert find_near_duplicates(prints, ["train", "train"]) == []


def test_more_images_than_a_block_and_pairs_in_every_place() -> None:
    """The search goes in blocks of 512 rows: a pair may lie within one or across two."""
    draw = np.random.default_rng(0)
    noise = [cv2.resize(draw.integers(0, 256, (16, 16), np.uint8), (64, 64)) for _ in range(1030)]
    for first, second in ((0, 511), (3, 512), (600, 1029)):
        noise[second] = np.clip(noise[first] * 0.9 + 5, 0, 255).astype(np.uint8)
    found = find_near_duplicates([print_of(one) for one in noise], range(1030))
    assert [(copy.first, copy.second) for copy in found] == [(0, 511), (3, 512), (600, 1029)]


def test_hash_distance_is_that_of_imagehash() -> None:
    first, second = texture(2), toned(recoded(texture(2), 20), 1.4)
    (copy,) = find_near_duplicates([print_of(first), print_of(second)], range(2))
    small = [
        Image.fromarray(cv2.resize(one, (64, 64), interpolation=cv2.INTER_AREA))
        for one in (first, second)
    ]
    expected = min(kind(small[0]) - kind(small[1]) for kind in (imagehash.phash, imagehash.dhash))
    assert copy.distance == expected


def test_a_sixteen_bit_image_and_its_eight_bit_copy_are_one() -> None:
    grey = texture(3)
    deep = fingerprint(Radiograph(grey.astype(np.uint16) * 16, 4095, "deep", "TIFF"))
    (copy,) = find_near_duplicates([print_of(grey), deep], range(2))
    assert copy.likeness > 0.99


def test_phantoms_are_all_one_drawing_and_no_copies() -> None:
    images = [cv2.resize(drawn_phantom(seed), (160, 160)) for seed in range(4)]
    marked = [print_of(image, "", WarningCode.SYNTHETIC) for image in images]
    assert find_near_duplicates(marked, range(4)) == []
    assert len(find_near_duplicates([print_of(image) for image in images], range(4))) > 0


def image_in(split: str, name: str, patient: str = "") -> LabelledImage:
    return LabelledImage(Path(split, name), "covid", split, patient)


def test_patients_come_first_then_equal_files_then_copies() -> None:
    images = [
        image_in("train", "a.png", "p7"),
        image_in("train", "b.png"),
        image_in("train", "c.png"),
        image_in("val", "d.png", "p7"),
        image_in("test", "e.png"),
        image_in("test", "f.png"),
        image_in("", "g.png", "p7"),
    ]
    pictures = [texture(seed) for seed in (0, 1, 2, 3, 1, 9)] + [texture(0)]
    pictures[5] = recoded(texture(2), 60)
    leaks = find_leaks(images, [print_of(one) for one in pictures])
    assert [(leak.first, leak.second, leak.why) for leak in leaks] == [
        ("train/a.png", "val/d.png", "same patient"),
        ("train/b.png", "test/e.png", "same bytes"),
        ("train/c.png", "test/f.png", "near-duplicate"),
    ]
    assert str(leaks[0]) == "patient p7 is in train and in val (train/a.png, val/d.png)"
    assert str(leaks[1]).endswith("are one image (same bytes)")
    assert leaks[2].distance is not None
    assert leaks[2].distance <= 10


def test_a_patient_in_three_splits_is_named_for_each_two() -> None:
    images = [image_in(split, f"{n}.png", "p1") for split in ("train", "val", "test") for n in "ab"]
    leaks = find_leaks(images, [print_of(texture(seed)) for seed in range(6)])
    assert [(leak.first_split, leak.second_split) for leak in leaks] == [
        ("train", "val"),
        ("train", "test"),
        ("val", "test"),
    ]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_for_a_pair(count: int) -> None:
    assert find_near_duplicates([print_of(texture(0))] * count, range(count)) == []


LEAKS: Sequence[Leak] = (
    Leak("train/a.png", "train", "val/b.png", "val", "same patient", "p, 1"),
    Leak("train/c.png", "train", "test/d.png", "test", "near-duplicate", "", 4, 0.97),
)


def test_leaks_are_written_as_json_and_as_csv(tmp_path: Path) -> None:
    write_leaks(LEAKS, tmp_path / "new/leaks.json")
    stored = json.loads((tmp_path / "new/leaks.json").read_text())
    assert [Leak(**row) for row in stored["leaks"]] == [*LEAKS]
    write_leaks(LEAKS, tmp_path / "leaks.csv")
    with (tmp_path / "leaks.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["first"], row["patient"], row["distance"]) for row in rows] == [
        ("train/a.png", "p, 1", ""),
        ("train/c.png", "", "4"),
    ]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/leaks\.json: cannot be written"):
        write_leaks(LEAKS, tmp_path / "file/leaks.json")


def test_copies_say_how_alike_they_are() -> None:
    (copy,) = find_near_duplicates([print_of(texture(4)), print_of(texture(4)[:, ::-1])], range(2))
    assert copy.likeness == pytest.approx(1, abs=1e-3)
    assert copy == NearDuplicate(0, 1, distance=0, likeness=copy.likeness, mirrored=True)
