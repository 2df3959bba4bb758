"""Films in two splits that belong in one: of one patient, of equal bytes, or of one exposure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from deepcovid_edge.datasets.dataset import LabelledFilm
from deepcovid_edge.errors import OutputError
from deepcovid_export.data.near_duplicates import Fingerprint, find_copies


@dataclass(frozen=True)
class Leak:
    """Two films in two splits that should be in one.

    Attributes:
        first: Path of a film.
        first_split: Its split.
        second: Path of the other film.
        second_split: Its split.
        why: `same patient`, `same bytes`, `near-duplicate` or `mirrored near-duplicate`.
        patient: The patient of both, where that is why.
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
            f"are one film ({self.why}{figures})"
        )


def find_leaks(films: Sequence[LabelledFilm], prints: Sequence[Fingerprint]) -> list[Leak]:
    """Find what splits have in common: patients, files and exposures.

    Args:
        films: Films; those without a split are in none and are passed over.
        prints: Their fingerprints.

    Returns:
        Patients first, then equal files, one pair for any two splits; then every pair of copies.
    """
    leaks = []
    placed = [index for index, film in enumerate(films) if film.split]
    films, prints = [films[index] for index in placed], [prints[index] for index in placed]
    for patient, one, other in _shared(films, [film.patient for film in films]):
        leaks.append(_leak(one, other, "same patient", patient=patient))
    for _, one, other in _shared(films, [one.sha256 for one in prints]):
        leaks.append(_leak(one, other, "same bytes"))
    for copy in find_copies(prints, [film.split for film in films]):
        why = "mirrored near-duplicate" if copy.mirrored else "near-duplicate"
        one, other = films[copy.first], films[copy.second]
        leaks.append(_leak(one, other, why, distance=copy.distance, likeness=copy.likeness))
    return leaks


def _leak(one: LabelledFilm, other: LabelledFilm, why: str, **known: Any) -> Leak:
    return Leak(str(one.path), one.split, str(other.path), other.split, why, **known)


def _shared(
    films: Sequence[LabelledFilm], keys: Iterable[str]
) -> Iterator[tuple[str, LabelledFilm, LabelledFilm]]:
    """The first film of each split for keys that several splits have."""
    holders: dict[str, dict[str, LabelledFilm]] = {}
    for film, key in zip(films, keys, strict=True):
        if key:
            holders.setdefault(key, {}).setdefault(film.split, film)
    for key, by_split in holders.items():
        for one, other in combinations(by_split.values(), 2):
            yield key, one, other


def write_leaks(leaks: Sequence[Leak], path: Path) -> None:
    """Write all leaks, as CSV where the name says so, else as JSON.

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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise OutputError(f"{path}: a film's name is not UTF-8: rename it ({error})") from error
