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

_MAP_NAME = re.compile(r".*-[0-9a-f]{8}\.(npz|png)")
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
    paths: Iterable[Path], *, but: Path | None = None, maps: Path | None = None
) -> None:
    """Check that every folder holds an image, before a run begins: an unmounted share has none.

    Args:
        paths: Files and folders; no file is looked at.
        but: See `list_images`.
        maps: See `list_images`.

    Raises:
        NotThereError: One holds none.
    """
    for folder in filter(is_folder, paths):
        walk = FolderWalk()
        if next(list_images([folder], but=but, maps=maps, walk=walk), None) is None:
            why = " ".join(walk.notes()) or "is its disk or share mounted?"
            raise NotThereError(f"no image found in {folder}: {why}")


def list_images(
    paths: Iterable[Path],
    *,
    but: Path | None = None,
    maps: Path | None = None,
    walk: FolderWalk | None = None,
) -> Iterator[Path]:
    """Files in a stable order, each once; folders are walked.

    Args:
        paths: Files and folders.
        but: A file to pass over: the output may lie among the images.
        maps: A folder whose heat maps are passed over: it may lie among the images too.
        walk: Counts what is passed over; None for a new one.
    """
    output, maps = (place.resolve() if place else None for place in (but, maps))
    for image in (walk or FolderWalk()).images(paths):
        if output and image.name == output.name and image.resolve() == output:
            continue
        if maps and _MAP_NAME.fullmatch(image.name) and image.resolve().parent == maps:
            continue
        yield image


def image_sources(sources: ImageSource | Iterable[ImageSource]) -> Iterator[ImageSource]:
    """The images of one source or of several, lazily; folders are walked.

    Raises:
        NotThereError: A file or folder that is the only source is not there.
    """
    if isinstance(sources, str | os.PathLike):
        check_paths([Path(sources)])
        return list_images([Path(sources)])
    if isinstance(sources, ImageBytes):
        return iter([sources])
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
