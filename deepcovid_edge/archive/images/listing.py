"""List an archive into a manifest: parallel, in flat memory, and going on after a kill.

    names, in the order of `infer` -> size and time (threads) -> parts -> one Parquet file

Parts of 100,000 images are written as they are full. The same command reads the names again, asks
for no file of a finished part, and goes on behind the last one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from deepcovid_edge.archive.images.addresses import check_local, is_remote
from deepcovid_edge.archive.images.image_list import SUFFIX
from deepcovid_edge.archive.images.list_parts import ListParts, hash_of_paths
from deepcovid_edge.archive.images.remote_folders import ListedFile, remote_files
from deepcovid_edge.datasets.folders import FolderWalk
from deepcovid_edge.device import shares
from deepcovid_edge.device.progress import number_of
from deepcovid_edge.errors import NotThereError, UsageError
from deepcovid_edge.pipeline.pipeline import in_order
from deepcovid_edge.pipeline.sources import check_folders, check_paths, list_images

PART_ROWS = 100_000
_BATCH = 500
"""Files that a thread asks about at once."""
_THREADS = 16
"""They wait for the disk or for the store, not for a processor."""


@dataclass(frozen=True)
class ListSettings:
    """What is listed, and where.

    Attributes:
        folders: Folders and files: paths, or addresses of `pyarrow.fs`.
        output: The manifest, a Parquet file.
        threads: That ask for size and time.
        part_rows: Images of a part: what a kill loses at most.
    """

    folders: tuple[str, ...]
    output: Path
    threads: int = _THREADS
    part_rows: int = PART_ROWS

    def __post_init__(self) -> None:
        if self.output.suffix.lower() != SUFFIX:
            raise UsageError(f"output: got {self.output}, expected a name that ends in {SUFFIX}")
        check_local("output", self.output)
        if self.output.is_dir():
            raise UsageError(f"output: {self.output} is a folder, expected a file")
        if not 1 <= self.threads <= 256:
            raise UsageError(f"threads: got {self.threads}, expected 1 to 256")
        check_paths(self.local)
        check_folders(self.local, but=self.output)

    @property
    def local(self) -> list[Path]:
        """The folders and files that are paths."""
        return [Path(one) for one in self.folders if not is_remote(one)]


class Listing:
    """One listing, which may have begun earlier.

    Attributes:
        images: Images that have a row.
        before: Those of them that an earlier command has listed.
        unreadable_names: Files that have no row, since their names are not UTF-8.
        nameless_folders: Folders of a store that hold keys below an empty folder name, as in
            `a//b`, which have no row.

    Args:
        settings: What is listed.
        progress: Called with the number of images since the last call.
    """

    def __init__(
        self, settings: ListSettings, progress: Callable[[int], object] = lambda _: None
    ) -> None:
        self.settings, self._progress = settings, progress
        self.images = self.before = self.unreadable_names = self.nameless_folders = 0
        self._nameless = ""
        self._walk = FolderWalk()
        self._parts = ListParts(settings.output, settings.folders, settings.part_rows)

    def run(self) -> None:
        """List everything, and write the manifest.

        Raises:
            NotThereError: A store cannot be listed, or there is no image.
            OutputError: The disk is full, the folder cannot be written, or another process writes
                the manifest.
        """
        with self._parts.locked():
            self._list()

    def _list(self) -> None:
        known = self._parts.begin()
        self._walk.pass_over(self._parts.folder)
        with ThreadPoolExecutor(self.settings.threads, thread_name_prefix="list") as pool:
            found = self._behind(known, self._files(pool))
            while rows := list(islice(found, self.settings.part_rows)):
                asked = chain.from_iterable(
                    in_order(pool, _asked, _batches(rows), 2 * self.settings.threads)
                )
                self._parts.write(list(asked))
                self.images += len(rows)
        if not (self.images or self.unreadable_names):
            self._parts.remove()
            none = f"no image found in {', '.join(self.settings.folders)}"
            raise NotThereError(": ".join([none, *self._nameless_notes()]))
        self._parts.join()

    @property
    def is_partial(self) -> bool:
        """Whether something could not be listed."""
        return bool(self.unreadable_names or self.nameless_folders)

    def notes(self) -> Iterator[str]:
        """What to know of the listing, in a sentence each."""
        yield from self._walk.notes()
        if self.before:
            yield f"{number_of(self.before, 'image was', 'images were')} listed before."
        if self.unreadable_names:
            files = number_of(
                self.unreadable_names, "file has a name that is", "files have names that are"
            )
            yield f"{files} not UTF-8: rename, and list again."
        yield from self._nameless_notes()

    def _nameless_notes(self) -> Iterator[str]:
        if self.nameless_folders:
            folders = number_of(self.nameless_folders, "folder has", "folders have")
            yield (
                f"{folders} keys below an empty folder name, such as {self._nameless}//, which "
                "cannot be listed: rename them, and list again."
            )

    def _files(self, pool: ThreadPoolExecutor) -> Iterator[ListedFile]:
        for path in list_images(self.settings.local, but=self.settings.output, walk=self._walk):
            if self._is_unicode(str(path)):
                yield ListedFile(str(path))
        addresses = filter(is_remote, self.settings.folders)
        yield from remote_files(addresses, pool, self._walk, self._count_nameless)

    def _count_nameless(self, folder: str) -> None:
        self.nameless_folders += 1
        self._nameless = folder

    def _is_unicode(self, path: str) -> bool:
        try:
            path.encode()
        except UnicodeEncodeError:
            self.unreadable_names += 1
            return False
        return True

    def _behind(
        self, known: list[tuple[int, str]], found: Iterator[ListedFile]
    ) -> Iterator[ListedFile]:
        """The files behind those of finished parts; from the first part on that has changed."""
        for number, (size, digest) in enumerate(known):
            rows = list(islice(found, size))
            if len(rows) == size and hash_of_paths(one.path for one in rows) == digest:
                self.images += size
                self.before += size
                self._progress(size)
                continue
            self._parts.forget(number)
            found = chain(rows, found)
            break
        for one in found:
            self._progress(1)
            yield one


def _batches(rows: list[ListedFile]) -> Iterator[list[ListedFile]]:
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]


def _asked(files: list[ListedFile]) -> tuple[list[ListedFile], None]:
    """The files with size and time, where the listing did not give them; see `in_order`."""
    return [one if one.size is not None else _stated(one.path) for one in files], None


def _stated(path: str) -> ListedFile:
    place = Path(path)
    try:
        found = shares.call(place.parent, lambda _: os.stat(path))  # noqa: PTH116 - a Path costs
    except (OSError, ValueError):  # `screen` says why it cannot be read
        return ListedFile(path)
    return ListedFile(path, found.st_size, found.st_mtime)
