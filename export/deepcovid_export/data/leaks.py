"""Leaks: images in different splits with the same patient, bytes or exposure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.files import write_text
from deepcovid_export.data.near_duplicates import Fingerprint, find_near_duplicates


@dataclass(frozen=True)
class Leak:
    """Two images in different splits that belong in one.

    Attributes:
        first: Path of an image.
        first_split: Its split.
        second: Path of the other image.
        second_split: Its split.
        why: `same patient`, `same bytes`, `near-duplicate` or `mirrored near-duplicate`.
        patient: The patient of both; of `same patient`.
        distance: Bits in which the nearer of pHash and dHash differs, of 64.
        likeness: Correlation of the high-passed thumbnails.
    """

    first: str
    first_split: str
    second: str
    second_split: str
    why: str
    patient: str = ""
    distance: int | None = None
    likeness: float | None = None

    def __str__(self) -> str:
        if self.patient:
            return (
                f"patient {self.patient} is in {self.first_split} and in {self.second_split} "
                f"({self.first}, {self.second})"
            )
        figures = f", {self.distance} bits apart" if self.distance is not None else ""
        return (
            f"{self.first} in {self.first_split} and {self.second} in {self.second_split} "
            f"are one image ({self.why}{figures})"
        )


def find_leaks(images: Sequence[LabelledImage], prints: Sequence[Fingerprint]) -> list[Leak]:
    """Find patients, files and exposures that are in several splits.

    Args:
        images: Images; those without a split are ignored.
        prints: Their fingerprints.

    Returns:
        Patients, then equal files, each with one pair for any two splits; then every pair of
        near-duplicates.
    """
    leaks = []
    placed = [index for index, image in enumerate(images) if image.split]
    images, prints = [images[index] for index in placed], [prints[index] for index in placed]
    for patient, one, other in _shared(images, [image.patient for image in images]):
        leaks.append(_leak(one, other, "same patient", patient=patient))
    for _, one, other in _shared(images, [one.sha256 for one in prints]):
        leaks.append(_leak(one, other, "same bytes"))
    for pair in find_near_duplicates(prints, [image.split for image in images]):
        why = "mirrored near-duplicate" if pair.mirrored else "near-duplicate"
        one, other = images[pair.first], images[pair.second]
        leaks.append(_leak(one, other, why, distance=pair.distance, likeness=pair.likeness))
    return leaks


def _leak(one: LabelledImage, other: LabelledImage, why: str, **known: Any) -> Leak:
    return Leak(str(one.path), one.split, str(other.path), other.split, why, **known)


def _shared(
    images: Sequence[LabelledImage], keys: Iterable[str]
) -> Iterator[tuple[str, LabelledImage, LabelledImage]]:
    """For keys in several splits: the key and the first images of any two splits."""
    holders: dict[str, dict[str, LabelledImage]] = {}
    for image, key in zip(images, keys, strict=True):
        if key:
            holders.setdefault(key, {}).setdefault(image.split, image)
    for key, by_split in holders.items():
        for one, other in combinations(by_split.values(), 2):
            yield key, one, other


def shared_images(images: Sequence[LabelledImage], leaks: Iterable[Leak]) -> set[int]:
    """Positions of the images that a run can do without, so that leaks end.

    Of two splits, `train` gives way to `val`, and both give way to any other.
    """
    paths: set[str] = set()
    patients: set[tuple[str, str]] = set()
    for leak in leaks:
        ends = ((leak.first_split, leak.first), (leak.second_split, leak.second))
        split, path = min(ends, key=lambda end: _rank(end[0]))
        if _rank(split) == len(_YIELDING):
            continue
        paths.add(path)
        if leak.patient:
            patients.add((split, leak.patient))
    return {
        place
        for place, image in enumerate(images)
        if str(image.path) in paths or (image.split, image.patient) in patients
    }


_YIELDING = ("train", "val")


def _rank(split: str) -> int:
    return _YIELDING.index(split) if split in _YIELDING else len(_YIELDING)


def write_leaks(leaks: Sequence[Leak], path: Path) -> None:
    """Write all leaks, as CSV if the name ends with `.csv`, else as JSON.

    Raises:
        OutputError: The file cannot be written.
    """
    rows = [asdict(leak) for leak in leaks]
    text = json.dumps({"schema_version": 1, "leaks": rows}, indent=1) + "\n"
    if path.suffix.lower() == ".csv":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, [*Leak.__dataclass_fields__], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = stream.getvalue()
    write_text(path, text)
