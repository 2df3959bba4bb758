"""Which images a run is over: files, folders, open files and bytes, in a stable order."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from deepcovid_edge.datasets.folders import FolderWalk, is_folder
from deepcovid_edge.device import shares
from deepcovid_edge.errors import NotThereError
from deepcovid_edge.imaging.files import ImageBytes, ImageSource

MAP_HASH_DIGITS = 16
"""Digits of an image's SHA-256 in the name of its heat map: images of an export often share a name,
and 64 bits tell millions of them apart."""
PAGE = "index.html"
"""Name of a run's page in its folder."""
_MAP_NAME = re.compile(rf".*-[0-9a-f]{{{MAP_HASH_DIGITS}}}\.(npz|png)")
"""As heat maps and their pictures are named: the image's name and the start of its hash."""


def check_paths(paths: Iterable[Path]) -> None:
    """Check that files and folders are there, before a run begins.

    Raises:
        NotThereError: One is not.
    """
    for path in paths:
        if not _is_there(path):
            raise NotThereError(f"{path}: no such file or folder")


def _is_there(path: Path) -> bool:
    try:
        return shares.call(path, lambda _: os.path.lexists(path))
    except OSError:  # a network share that does not answer: its files have records that say so
        return True


def check_folders(
    paths: Iterable[Path],
    *,
    but: Path | None = None,
    html: Path | None = None,
    maps: Path | None = None,
) -> None:
    """Check that every folder holds an image, before a run begins: an unmounted share has none.

    Args:
        paths: Files and folders; no file is looked at.
        but: See `list_images`.
        html: See `list_images`.
        maps: See `list_images`.

    Raises:
        NotThereError: One holds none.
    """
    for folder in filter(is_folder, paths):
        walk = FolderWalk()
        if next(list_images([folder], but=but, html=html, maps=maps, walk=walk), None) is None:
            why = " ".join(walk.notes()) or "is its disk or share mounted?"
            raise NotThereError(f"no image found in {folder}: {why}")


def list_images(
    paths: Iterable[Path],
    *,
    but: Path | None = None,
    html: Path | None = None,
    maps: Path | None = None,
    walk: FolderWalk | None = None,
) -> Iterator[Path]:
    """Files in a stable order, each once; folders are walked.

    Args:
        paths: Files and folders.
        but: A file to pass over: the output may lie among the images.
        html: A folder whose page is passed over, unless the page itself is in `paths`.
        maps: A folder whose heat maps are passed over, unless they themselves are in `paths`.
        walk: Counts the heat maps and what else is passed over; None for a new one.
    """
    paths, walk = [*paths], walk or FolderWalk()
    names = {path.name for path in paths}
    output, page, maps = (
        place.resolve() if place else None for place in (but, html and html / PAGE, maps)
    )
    for image in walk.images(paths):
        if _is(image, output):
            continue
        is_map = maps is not None and _is_map(image, maps)
        if (is_map or _is(image, page)) and not (image.name in names and _is_named(image, paths)):
            walk.heat_maps += is_map
            continue
        yield image


def _is(image: Path, place: Path | None) -> bool:
    return place is not None and image.name == place.name and image.resolve() == place


def _is_map(image: Path, folder: Path) -> bool:
    """Whether a file is a heat map in a folder, or its picture, which lies beside the map."""
    if not _MAP_NAME.fullmatch(image.name):
        return False
    place = image.resolve()
    return place.parent == folder and place.with_suffix(".npz").is_file()


def _is_named(image: Path, paths: Iterable[Path]) -> bool:
    place = image.resolve()
    return any(path.name == image.name and path.resolve() == place for path in paths)


def image_sources(sources: ImageSource | Iterable[ImageSource]) -> Iterator[ImageSource]:
    """The images of one source or of several, lazily; folders are walked.

    Raises:
        NotThereError: A file or folder that is the only source is not there.
    """
    if isinstance(sources, str | os.PathLike):
        check_paths([Path(sources)])
        return list_images([Path(sources)])
    if isinstance(sources, ImageBytes | bytes | bytearray):  # bytes without a name are refused
        return iter([cast("ImageSource", sources)])
    if hasattr(sources, "read"):  # an open file is iterable too
        return iter([cast("BinaryIO", sources)])
    return _walked(sources)


def _walked(sources: Iterable[ImageSource]) -> Iterator[ImageSource]:
    walk = FolderWalk()
    for source in sources:
        if isinstance(source, str | os.PathLike) and is_folder(Path(source)):
            yield from walk.under(Path(source))
        else:
            yield source
    yield from walk.linked()
