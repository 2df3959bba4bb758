"""Lets the account of the cart read the configuration and the files that it names, nobody else.

Only files in the configuration's own folder are given to it: others may be those of other programs,
such as a machine's certificates. No link is followed, so nothing elsewhere is changed.
"""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator
from pathlib import Path

from deepcovid_edge.cart.config import CartConfig

_ROOT = 0
_FOLDER_MODE, _FILE_MODE = 0o750, 0o640
_NAMES = ("certificate", "key", "authority", "pin_file", "site")
_OF_THE_SYSTEM = ("bin", "boot", "dev", "lib", "lib32", "lib64", "proc", "run", "sbin", "sys")
_OF_ALL = tuple(("etc", name) for name in ("default", "pki", "ssh", "ssl", "systemd"))


def named_files(config: CartConfig) -> list[Path]:
    """Files that a configuration names: certificates, keys, the PIN's, the site file."""
    tables = (config.cart, config.receive, *config.destinations, config.page)
    named = (getattr(table, name, None) for table in tables for name in _NAMES)
    return [*filter(None, named)]


def is_shared(folder: Path, root: Path) -> bool:
    """Whether a folder is one of the system, in which other programs have their files.

    Filesystem Hierarchy Standard 3.0: `/etc`, `/opt` and `/var/lib` hold a folder of each program.

    Args:
        folder: The folder; links are followed.
        root: The system's root folder.
    """
    real = Path(os.path.realpath(folder))
    base = Path(os.path.realpath(root))
    parts = real.relative_to(base).parts if real.is_relative_to(base) else real.parts[1:]
    if len(parts) < 2 or parts[0] in _OF_THE_SYSTEM or parts[:2] in _OF_ALL:
        return True
    if parts[0] == "usr":
        return parts[1] != "local" or len(parts) < 4
    return parts[0] == "var" and len(parts) < 3


def let_account_read(config: CartConfig, account: str) -> None:
    """Let an account read a configuration and what it names beside it; nobody else but root.

    A folder that is not root's, a link, the spool and the copies of the ledger are left alone.

    Args:
        config: The configuration, of which `path` is absolute.
        account: Name of the account's group.
    """
    group = grp.getgrnam(account).gr_gid
    folder = Path(os.path.realpath(config.path.parent))
    files = [*_files(config, folder)]
    for place in {folder, *(step for file in files for step in file.parents)}:
        if place.is_relative_to(folder) and place.stat().st_uid == _ROOT:
            _give(place, group, _FOLDER_MODE)
    for place in files:
        _give(place, group, _FILE_MODE)


def _files(config: CartConfig, folder: Path) -> Iterator[Path]:
    """The named files below a folder; no links, and nothing in the spool or its backup."""
    kept = [Path(os.path.realpath(one)) for one in (config.cart.spool, config.cart.backup) if one]
    for path in (config.path, Path(config.cart.model), *named_files(config)):
        if path.is_absolute() and path.is_file():
            place = Path(os.path.realpath(path.parent)) / path.name
            is_own = place.is_relative_to(folder) and not place.is_symlink()
            if is_own and not any(place.is_relative_to(one) for one in kept):
                yield place


def _give(place: Path, group: int, mode: int) -> None:
    handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(handle, _ROOT, group)
        os.fchmod(handle, mode)
    finally:
        os.close(handle)
