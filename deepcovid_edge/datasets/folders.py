"""Folders on the way to images: each is walked once, and those of a system are passed over.

| in a folder | becomes |
| --- | --- |
| a folder of `SYSTEM_FOLDERS`, by its exact name | passed over and counted |
| any other folder, whatever it is called | walked |
| a link to a folder | walked once the folders without a link are, if it is new then |
| a file of `COMPANIONS`, or `._*` | no image |
| another file whose name begins with a dot | passed over and counted |
| any other file, or a link to one | an image, under this name |

A folder that is named to the run is walked whatever it is called. Two folders are the same if they
have one device and one inode, as with links, bind mounts and arguments that overlap. Two names of
one file (links to it, hard links) are two images: somebody may look for either.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from deepcovid_edge.device import shares
from deepcovid_edge.device.progress import number_of

COMPANIONS = frozenset(
    {"manifest.csv", "dicomdir", "thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store"}
)
"""Files that accompany images; in lower case, as systems spell them differently."""
_APPLE_DOUBLE = "._"
"""How the name of what macOS writes beside each file on a foreign disk begins (RFC 1740)."""
SYSTEM_FOLDERS = {
    "Synology": ("@eaDir", "#recycle", "#snapshot"),
    "QNAP": ("@Recycle", "@Recently-Snapshot", ".@__thumb", "@__thumb"),
    "WD My Cloud": (".wdmc",),
    "Unraid": (".Recycle.Bin",),
    "Samba": (".recycle",),
    "NetApp": (".snapshot", "~snapshot"),
    "ZFS, Btrfs": (".zfs", ".snapshots"),
    "Windows": ("$RECYCLE.BIN", "$Recycle.Bin", "RECYCLER", "System Volume Information"),
    "macOS": ("__MACOSX", ".Trashes", ".Spotlight-V100", ".TemporaryItems", ".fseventsd"),
    "AFP": (".AppleDouble", ".AppleDB", ".AppleDesktop", "Network Trash Folder", "Temporary Items"),
    "Linux": ("lost+found", ".Trash", ".Trash-*", ".thumbnails"),
    "synchronisation": (".stversions", ".sync", ".dropbox.cache", ".rsync-partial", ".~tmp~"),
    "version control": (".git", ".hg", ".svn", ".dvc"),
}
"""Who makes them -> folders with thumbnails, deleted files or earlier states of images. `*` stands
for a user's number."""
_SYSTEM = re.compile(
    "|".join(re.escape(name).replace(r"\*", "[0-9]+") for name in chain(*SYSTEM_FOLDERS.values()))
)
_Identity: TypeAlias = "tuple[int, int] | str"


def is_system_folder(name: str) -> bool:
    """Whether a folder of this name is passed over."""
    return _SYSTEM.fullmatch(name) is not None


class FolderWalk:
    """The folders of one run, each walked once.

    Attributes:
        passed_over: Name of a system folder -> how many were passed over so far.
        hidden: Hidden files that were passed over so far.
        heat_maps: Files of heat maps that whoever takes the images passed over so far.
    """

    def __init__(self) -> None:
        self.passed_over: Counter[str] = Counter()
        self.hidden = self.heat_maps = 0
        self._walked: set[_Identity] = set()
        self._links: deque[Path] = deque()
        self._named: set[tuple[_Identity, str]] = set()

    def images(self, paths: Iterable[Path]) -> Iterator[Path]:
        """The images that files and folders mean, each once."""
        for path in paths:
            if is_folder(path):
                yield from self.under(path)
            elif self._is_new(path):
                yield path
        yield from self.linked()

    def under(self, folder: Path) -> Iterator[Path]:
        """Images below a folder in a stable order (folders and names sorted together).

        Linked folders are left for `linked`. A folder that cannot be listed is itself yielded, so
        that it is not lost.
        """
        levels = [self._level(folder)]  # no recursion: folders may lie deeper than Python's stack
        while levels:
            for path, is_folder in levels[-1]:
                if is_folder:
                    levels.append(self._level(path))
                    break
                yield path
            else:
                levels.pop()

    def linked(self) -> Iterator[Path]:
        """Images below the folders that only links lead to."""
        while self._links:
            yield from self.under(self._links.popleft())

    def pass_over(self, folder: Path) -> None:
        """Never walk a folder: it holds files of the run itself."""
        self._walked.add(_identity(folder))

    def notes(self) -> Iterator[str]:
        """What was passed over, in a sentence each."""
        if self.passed_over:
            names = ", ".join(sorted(self.passed_over))
            count = self.passed_over.total()
            folders = number_of(count, "system folder was", "system folders were")
            yield f"{folders} passed over: {names}."
        if self.hidden:
            files = number_of(self.hidden, "hidden file was", "hidden files were")
            yield f"{files} passed over."
        if self.heat_maps:
            files = number_of(self.heat_maps, "file of heat maps was", "files of heat maps were")
            yield f"{files} passed over."

    def is_image(self, name: str) -> bool:
        """Whether a file counts as an image until it is read; counts those that are hidden."""
        if _is_companion(name):
            return False
        self.hidden += name.startswith(".")
        return not name.startswith(".")

    def is_walked(self, name: str) -> bool:
        """Whether a folder is walked that no argument names; counts those that are not."""
        if not is_system_folder(name):
            return True
        self.passed_over[name] += 1
        return False

    def _level(self, folder: Path) -> Iterator[tuple[Path, bool]]:
        """What is in a folder: paths, and whether each is a folder to walk."""
        here = _identity(folder)
        if here in self._walked:
            return
        self._walked.add(here)
        found = _Listing()
        found.read(folder)
        for name in sorted(found.names):
            if name not in found.folders:
                if (here, name) not in self._named and self.is_image(name):
                    yield folder / name, False
            elif not self.is_walked(name):
                continue
            elif found.folders[name]:
                self._links.append(folder / name)
            else:
                yield folder / name, True
        if not found.is_whole:
            yield folder, False

    def _is_new(self, path: Path) -> bool:
        """Whether a file that is named to the run has not come yet, under whatever path."""
        folder = _identity(path.parent)
        place = folder, path.name
        is_walked = folder in self._walked and not (
            path.name.startswith(".") or _is_companion(path.name)
        )
        is_new = not (is_walked or place in self._named)
        self._named.add(place)
        return is_new


@dataclass
class _Listing:
    """What a folder holds. Nothing more is kept of a name: a folder may have many images.

    Attributes:
        names: All names.
        folders: Those of folders, and whether each is a link.
        is_whole: Whether the listing came to its end.
    """

    names: list[str] = field(default_factory=list)
    folders: dict[str, bool] = field(default_factory=dict)
    is_whole: bool = False

    def read(self, folder: Path) -> None:
        """List a folder as far as the system does."""
        with suppress(OSError):
            shares.call(folder, partial(self._read, folder))

    def _read(self, folder: Path, progress: shares.Progress) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                self.names.append(entry.name)
                if _is_folder(entry):
                    self.folders[entry.name] = entry.is_symlink()
                progress()
        self.is_whole = True


def _is_companion(name: str) -> bool:
    return name.startswith(_APPLE_DOUBLE) or name.lower() in COMPANIONS


def _identity(folder: Path) -> _Identity:
    """Device and inode; the path where there are none, as on some network shares."""
    try:
        found = shares.call(folder, lambda _: folder.stat())
    except OSError:
        return os.path.abspath(folder)  # noqa: PTH100 - links stay as they are
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(folder)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; not if its network share does not answer."""
    try:
        return shares.call(path, lambda _: path.is_dir())
    except OSError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without permission: counts as a file
        return False
