"""Commands that are measured while they run: when images are done, processor time, memory."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import RUNS_THROUGH
from benchmarks.measure.programs import COMMAND, links
from deepcovid_edge.datasets.dataset import walk_files
from deepcovid_edge.device.process_tree import process_tree

_LOOK_SECONDS = 0.1
_LIMIT_SECONDS = 1800.0


@dataclass(frozen=True)
class Look:
    """A look at a command.

    Attributes:
        seconds: Since its start.
        images: Images that are done.
        cpu_seconds: Processor time of it and of all below it that run now.
        rss_mib: Memory of the process that reads images, MiB; 0 where there is none.
    """

    seconds: float
    images: int
    cpu_seconds: float
    rss_mib: float


def linked_images(data: Path, count: int, place: Path) -> Path:
    """A new folder in a place, with links to the images of `test`; see `links`."""
    return links(list(walk_files((data / "test").resolve())), count, place)


def watched(arguments: Sequence[object], images: Callable[[], int], log: Path) -> list[Look]:
    """Run a command of deepcovid-edge and look at it as it goes.

    Raises:
        RuntimeError: It failed.
    """
    started = time.monotonic()
    looks: list[Look] = []
    with log.open("wb") as stream:
        process = subprocess.Popen([*COMMAND, *map(str, arguments)], stderr=stream)
        try:
            while process.poll() is None:
                if time.monotonic() - started > _LIMIT_SECONDS:
                    raise RuntimeError(f"{arguments}: longer than {_LIMIT_SECONDS:g} s")
                cpu, rss = use(process.pid)
                looks.append(Look(time.monotonic() - started, images(), cpu, rss))
                time.sleep(_LOOK_SECONDS)
        finally:
            process.kill()
            process.wait(20)
    if process.returncode not in RUNS_THROUGH:
        raise RuntimeError(log.read_text("utf-8", "replace")[-2000:])
    looks.append(Look(time.monotonic() - started, images(), looks[-1].cpu_seconds, 0.0))
    return looks


def use(process: int) -> tuple[float, float]:
    """Processor seconds of a process and all below it, and MiB of those that read images."""
    tree = process_tree(process)
    rss = sum(one.rss_mib for one in tree if _reads_images(one.pid))
    return sum(one.cpu_seconds for one in tree), rss


def _reads_images(process: int) -> bool:
    with suppress(OSError):
        return b"archive.worker.child" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False
