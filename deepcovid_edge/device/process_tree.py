"""A process and all below it, as the kernel counts them (proc_pid_stat(5))."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PARENT, _CPU, _PAGES = 1, slice(11, 15), 21
"""Counted from the third field, which follows the name."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@dataclass(frozen=True)
class ProcessUse:
    """What a process uses.

    Attributes:
        pid: Its id.
        cpu_seconds: Processor time of it and of the children that it has waited for.
        rss_mib: Its resident memory, MiB.
    """

    pid: int
    cpu_seconds: float
    rss_mib: float


def process_tree(root: int) -> list[ProcessUse]:
    """A process and all below it that have not been waited for; without those that end meanwhile.

    Args:
        root: Id of the process.
    """
    stats = all_stats()
    children: dict[int, list[int]] = {}
    for pid, fields in stats.items():
        children.setdefault(int(fields[_PARENT]), []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return [_use(pid, stats[pid]) for pid in found if pid in stats]


def all_stats() -> dict[int, list[bytes]]:
    """The fields of every process from the third on; without those that end meanwhile."""
    return {
        int(folder.name): fields
        for folder in _PROC.iterdir()
        if folder.name.isdigit() and (fields := _stat(folder))
    }


def _use(pid: int, fields: list[bytes]) -> ProcessUse:
    cpu = sum(map(int, fields[_CPU])) / _TICKS
    return ProcessUse(pid, cpu, int(fields[_PAGES]) * _PAGE_MIB)


def _stat(folder: Path) -> list[bytes]:
    """The fields from the third on; none where the process has ended."""
    try:
        return (folder / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
