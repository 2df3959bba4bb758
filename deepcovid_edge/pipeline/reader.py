"""Images read, decoded and prepared as model input, before any network sees them.

Nothing here needs a loaded model, so the first images of a run are read while it loads.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.decision.record import milliseconds
from deepcovid_edge.errors import NotAssessedError, UsageError, lacks_memory, one_line
from deepcovid_edge.imaging.files import FileBytes, ImageSource, read_source, source_name
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import DicomFacts, Radiograph
from deepcovid_edge.imaging.reading import decode_radiograph, dicom_facts
from deepcovid_edge.imaging.signatures import is_dicom
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.reasons import Reason

if TYPE_CHECKING:
    from deepcovid_edge.pipeline.disk_guard import DiskGuard

_MOST_AHEAD = 64
"""Images read while a model loads: some 3 MiB, and more than two cores read in that time."""


@dataclass(frozen=True)
class PreparedImage:
    """An image as the pipeline carries it: model input, or the reason why there is none.

    Attributes:
        name: Its path, or the name of a source that has none.
        started: When it was opened, seconds of the performance counter.
        pixels: The model input, of shape (height, width), uint8; None where there is none.
        error: Why it cannot be assessed, or None.
        sha256: SHA-256 of the file, or None where it could not be read.
        warnings: Codes of what to know about the image.
        timings_ms: `read` and `preprocess`; without model input `read` alone, milliseconds.
        shape: Rows and columns of the whole picture; empty without model input.
        box_shape: Rows and columns that regions count, see `Radiograph.box_shape`.
        radiograph: Kept only to be drawn on: it may be large, and memory that is freed at once
            is still in the processor's cache.
        dicom: What is kept of a DICOM header; None for other formats, and without model input
            unless `ImageReader.keeps_facts`.
        data: The file, where it is sent to a server; else empty.
    """

    name: str
    started: float
    pixels: NDArray[np.uint8] | None = None
    error: NotAssessedError | None = None
    sha256: str | None = None
    warnings: tuple[str, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    box_shape: tuple[int, ...] = ()
    radiograph: Radiograph | None = None
    dicom: DicomFacts | None = None
    data: bytes = b""

    @property
    def uid(self) -> str:
        """SOP instance UID of a DICOM image with model input, else empty."""
        return self.dicom.sop_instance_uid if self.dicom and not self.error else ""


@dataclass(frozen=True)
class ImageReader:
    """Reads images for one run. Safe to use from several threads.

    Attributes:
        spec: The input that images are prepared for.
        change: What is done to every image between reading and preparing it, or None.
        disk: Stops the run when there is too little room for its results, or None.
        keeps_radiographs: Whether `PreparedImage.radiograph` is kept.
        sends: Whether a server decodes and prepares the images; here that is done for pictures
            alone.
        keeps_facts: Whether `PreparedImage.dicom` is kept of images that cannot be assessed too;
            their headers are read once more.
    """

    spec: InputSpec
    change: Callable[[Radiograph], Radiograph] | None = None
    disk: DiskGuard | None = None
    keeps_radiographs: bool = False
    keeps_facts: bool = False
    sends: bool = False

    def _as_it_is(self, file: FileBytes, source: ImageSource, started: float) -> PreparedImage:
        """An image to be sent; its radiograph is None where nobody here can decode it."""
        radiograph = None
        if self.keeps_radiographs:
            with suppress(Exception):  # the server says why
                radiograph = decode_radiograph(file, self.spec)
        return PreparedImage(
            source_name(source),
            started,
            sha256=file.sha256,
            timings_ms={"read": milliseconds(started, time.perf_counter())},
            radiograph=radiograph,
            dicom=_facts_of_eligible(file) or (dicom_facts(file) if self.keeps_facts else None),
            data=file.data,
        )

    def _changed(self, radiograph: Radiograph) -> Radiograph:
        if self.change is None:
            return radiograph
        try:
            return self.change(radiograph)
        except NotAssessedError:
            raise
        except Exception as error:
            raise UsageError(f"change: {type(error).__name__}: {one_line(error)}") from error

    def read(self, source: ImageSource) -> PreparedImage:
        """Read and prepare an image. No content of a file raises an error: the result states it.

        Raises:
            UsageError: The source is none, or what the caller changes images with fails.
        """
        started = time.perf_counter()
        file: FileBytes | None = None
        try:
            if self.disk:
                self.disk.check()
            file = read_source(source)
            if self.sends:
                return self._as_it_is(file, source, started)
            radiograph = decode_radiograph(file, None if self.change else self.spec)
            decoded = time.perf_counter()
            pixels = prepare(self._changed(radiograph), self.spec)
        except UsageError:
            raise
        except Exception as error:  # whatever one file does, the run goes on and the record says so
            dicom = dicom_facts(file) if file and self.keeps_facts else None
            return _not_assessed(source, started, error, file.sha256 if file else None, dicom)
        prepared = time.perf_counter()
        return PreparedImage(
            source_name(source),
            started,
            pixels,
            sha256=file.sha256,
            warnings=tuple([warning.code for warning in radiograph.warnings]),
            timings_ms={
                "read": milliseconds(started, decoded),
                "preprocess": milliseconds(decoded, prepared),
            },
            shape=radiograph.whole_shape,
            box_shape=radiograph.box_shape,
            radiograph=radiograph if self.keeps_radiographs else None,
            dicom=radiograph.dicom,
        )


def _facts_of_eligible(file: FileBytes) -> DicomFacts | None:
    """What is kept of the header of a DICOM image that may be assessed; None for all others."""
    if not is_dicom(file.data):
        return None
    from deepcovid_edge.imaging.dicom.header import read_header

    try:
        return read_header(file.data).facts
    except Exception:  # the server says what is wrong with it
        return None


def _not_assessed(
    source: ImageSource,
    started: float,
    error: Exception,
    sha256: str | None,
    dicom: DicomFacts | None,
) -> PreparedImage:
    return PreparedImage(
        source_name(source),
        started,
        error=_reason_of(error),
        sha256=sha256,
        timings_ms={"read": milliseconds(started, time.perf_counter())},
        dicom=dicom,
    )


def _reason_of(error: Exception) -> NotAssessedError:
    """The reason that a record states; memory comes first, whatever a decoder makes of its lack."""
    if lacks_memory(error):
        what = f"too little memory ({one_line(error)})"
        return NotAssessedError(Reason.DECODE, f"{what}: end other programs, or use fewer workers")
    if isinstance(error, NotAssessedError):
        return error
    return NotAssessedError(Reason.DECODE, f"{type(error).__name__}: {error}")


Read: TypeAlias = Callable[[], PreparedImage]
"""Gives an image: reads it, or has it."""


class Reading(Iterator[Read]):
    """The images of a run in their order, each as a call that gives it, once and from any thread.

    Args:
        sources: Each becomes one image, whatever it holds.
        reader: How they are read.
    """

    def __init__(self, sources: Iterable[ImageSource], reader: ImageReader) -> None:
        self.reader = reader
        self._sources = iter(sources)
        self._ahead: deque[Read] = deque()

    def __next__(self) -> Read:
        """The next image."""
        if self._ahead:
            return self._ahead.popleft()
        return partial(self.reader.read, next(self._sources))

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
        begun: list[tuple[ImageSource, Future[PreparedImage]]] = []
        try:
            for source in islice(self._sources, _MOST_AHEAD):
                begun.append((source, pool.submit(self.reader.read, source)))
            yield
        finally:
            # While what waits is cancelled, the threads go on: any of them may have begun by then.
            pool.shutdown(wait=False, cancel_futures=True)
            self._ahead.extend(
                partial(self.reader.read, source) if image.cancelled() else image.result
                for source, image in begun
            )
