"""Images as they come from their files: read, decoded and prepared, before any network sees them.

Nothing here needs a loaded model, so the first images of a run are read while it loads.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.decision.record import milliseconds
from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.files import read_bytes
from deepcovid_edge.imaging.pictures import Radiograph, decode_radiograph
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.reasons import Reason

if TYPE_CHECKING:
    from deepcovid_edge.pipeline.disk_guard import DiskGuard

_MOST_AHEAD = 64
"""Images read while a model loads: some 3 MiB, and more than two cores read in that time."""


@dataclass(frozen=True)
class PreparedImage:
    """An image on its way.

    Attributes:
        path: Its file.
        started: When it was opened, seconds of the performance counter.
        pixels: As `preprocess.prepare` makes them; None where the image was refused.
        refusal: Why it was refused, or None.
        sha256: SHA-256 of the file, or None where it could not be read.
        warnings: Codes of what to know about the image.
        timings_ms: `read` and `preprocess`, of a refused image `read` alone, milliseconds.
        shape: Rows and columns of the file's picture; empty where the image was refused.
        radiograph: The image as it was read, kept for those who draw on it alone: it may be large,
            and a place in memory that is free again at once is still in the processor's cache.
        uid: SOP instance UID of a DICOM image, else empty.
    """

    path: Path
    started: float
    pixels: NDArray[np.uint8] | None = None
    refusal: NotAssessedError | None = None
    sha256: str | None = None
    warnings: tuple[str, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    radiograph: Radiograph | None = None
    uid: str = ""


@dataclass(frozen=True)
class ImageReader:
    """Reads images for one run. Safe to use from several threads.

    Attributes:
        spec: The input that images are prepared for.
        change: What is done to every image between reading and preparing it, or None.
        disk: Refuses images when there is too little room for their results, or None.
        keeps_radiographs: Whether images are kept as they were read, to be drawn on.
    """

    spec: InputSpec
    change: Callable[[Radiograph], Radiograph] | None = None
    disk: DiskGuard | None = None
    keeps_radiographs: bool = False

    def read(self, path: Path) -> PreparedImage:
        """Read and prepare an image, or refuse it; raises nothing, whatever the file holds."""
        started = time.perf_counter()
        sha256: str | None = None
        try:
            if self.disk:
                self.disk.check()
            file = read_bytes(path)
            sha256 = file.sha256
            radiograph = decode_radiograph(file)
            decoded = time.perf_counter()
            shown = self.change(radiograph) if self.change else radiograph
            pixels = prepare(shown, self.spec)
        except NotAssessedError as error:
            return _refused(path, started, error, sha256)
        except Exception as error:  # whatever one file does, the run goes on and the record says so
            refusal = NotAssessedError(Reason.DECODE, f"{type(error).__name__}: {error}")
            return _refused(path, started, refusal, sha256)
        prepared = time.perf_counter()
        return PreparedImage(
            path,
            started,
            pixels,
            sha256=sha256,
            warnings=tuple([warning.code for warning in radiograph.warnings]),
            timings_ms={
                "read": milliseconds(started, decoded),
                "preprocess": milliseconds(decoded, prepared),
            },
            shape=radiograph.pixels.shape,
            radiograph=radiograph if self.keeps_radiographs else None,
            uid=radiograph.dicom.sop_instance_uid if radiograph.dicom else "",
        )


def _refused(
    path: Path, started: float, refusal: NotAssessedError, sha256: str | None
) -> PreparedImage:
    timings = {"read": milliseconds(started, time.perf_counter())}
    return PreparedImage(path, started, refusal=refusal, sha256=sha256, timings_ms=timings)


Read: TypeAlias = Callable[[], PreparedImage]
"""Gives an image: reads it, or has it."""


class Reading(Iterator[Read]):
    """The images of a run in their order, each as a call that gives it, once and from any thread.

    Args:
        paths: Files; each becomes one image, whatever it holds.
        reader: How they are read.
    """

    def __init__(self, paths: Iterable[Path], reader: ImageReader) -> None:
        self.reader = reader
        self._paths = iter(paths)
        self._ahead: deque[Read] = deque()

    def __next__(self) -> Read:
        """The next image."""
        if self._ahead:
            return self._ahead.popleft()
        return partial(self.reader.read, next(self._paths))

    @contextmanager
    def ahead(self, threads: int) -> Iterator[None]:
        """Have the first images read while the block runs, such as a model that loads.

        An image whose reading has begun when the block ends is read to its end, and its call waits;
        those after it are read by their calls.

        Args:
            threads: That read; with 0 nothing is read ahead.
        """
        if threads < 1:
            yield
            return
        pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
        begun: list[tuple[Path, Future[PreparedImage]]] = []
        try:
            for path in islice(self._paths, _MOST_AHEAD):
                begun.append((path, pool.submit(self.reader.read, path)))
            yield
        finally:
            # While what waits is cancelled, the threads go on: any of them may have begun by then.
            pool.shutdown(wait=False, cancel_futures=True)
            self._ahead.extend(
                partial(self.reader.read, path) if image.cancelled() else image.result
                for path, image in begun
            )
