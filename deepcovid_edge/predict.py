"""Paths in, one record per film out: decoding runs beside inference, in order, in flat memory.

    paths -> decode and prepare (worker threads) -> batches -> infer -> records

Every arrow holds a bounded number of items, so memory does not grow with the number of films.
OpenCV, Pillow's decoders and the runtimes release Python's lock, so threads use every core. On a
CPU the worker threads do both, whichever is next, so that there is one busy thread a core and no
two fight over one; a GPU is fed by threads of its own.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends import Backend
from deepcovid_edge.errors import ImageRefusedError, UsageError
from deepcovid_edge.familiarity import CHOICES, REFUSE, FamiliarityGate
from deepcovid_edge.images import Radiograph, decode_radiograph, read_bytes
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.preprocess import prepare
from deepcovid_edge.reasons import Caution, Reason
from deepcovid_edge.records import Prediction, RunFacts
from deepcovid_edge.repeats import Repeats

if TYPE_CHECKING:
    from deepcovid_edge.disk import DiskGuard
    from deepcovid_edge.explain import Explainer
    from deepcovid_edge.site import Site

Item = TypeVar("Item")
Result = TypeVar("Result")
DECIMALS = 6
"""Probabilities are rounded before they are compared, so that a record proves its decision."""
_CPU_BATCH, _GPU_BATCH = 2, 8
"""Films an inference. A core gains nothing from more, and then waits for the last batch to fill."""
GPU_LANES = 2
"""Calls to a GPU at once: while one computes, the other copies."""
_READY = 2
"""Groups of films that wait for a thread of a CPU."""
_MOST_ITEMS = 4
"""A batch is sent off with this many times its size of items, refused ones included."""


@dataclass(frozen=True)
class PredictSettings:
    """How a run over films is done.

    Attributes:
        batch_size: Most films in one inference; None for what suits the backend.
        workers: Threads that decode (and, on a CPU, infer); None for one a core.
        threshold: Probability from which a film is positive; None for the model's own. One that
            is given has no band: nobody chose one for it.
        band: Films too close to the threshold are indeterminate, where the model (or the site) says
            which these are.
        site: Site file whose threshold decides; None for none.
        ood: `refuse` or `warn`: what becomes of films unlike those that the model learned from.
    """

    batch_size: int | None = None
    workers: int | None = None
    threshold: float | None = None
    band: bool = True
    site: Site | None = None
    ood: str = REFUSE

    def __post_init__(self) -> None:
        if self.batch_size is not None and not 1 <= self.batch_size <= 1024:
            raise UsageError(f"--batch-size: got {self.batch_size}, expected 1 to 1024")
        if self.workers is not None and not 1 <= self.workers <= 256:
            raise UsageError(f"--workers: got {self.workers}, expected 1 to 256")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold: got {self.threshold}, expected 0 to 1")
        if self.threshold is not None and self.site is not None:
            raise UsageError(
                f"--threshold: got {self.threshold} with --site, which has its own "
                f"({self.site.threshold}): leave one of them out"
            )
        if self.ood not in CHOICES:
            raise UsageError(f"--ood: got {self.ood!r}, expected {' or '.join(CHOICES)}")


def default_batch_size(backend: Backend) -> int:
    """Films an inference where nothing else is asked for."""
    return _CPU_BATCH if backend.on_cpu else _GPU_BATCH


def run_facts(backend: Backend, settings: PredictSettings) -> RunFacts:
    """What the records of a run with this model have in common.

    Raises:
        SettingsMismatchError: The site file is of another model, or found it not usable.
    """
    manifest, site = backend.manifest, settings.site
    cautions = backend.cautions
    threshold, band = manifest.threshold, manifest.band
    if settings.threshold is not None:
        threshold, band = settings.threshold, None
    if site:
        site.check(manifest.name, backend.sha256)
        threshold, band = site.threshold, site.band
        cautions += (Caution.SITE,) if site.is_unproved else ()
    return RunFacts(
        model=manifest.name,
        model_sha256=backend.sha256,
        backend=backend.name,
        precision=manifest.precision,
        classes=manifest.classes,
        positive_class=manifest.positive_class,
        threshold=threshold,
        cautions=tuple(caution.code for caution in cautions),
        band=band if settings.band else None,
        site=site.name if site else None,
    )


def predict(
    paths: Iterable[Path],
    backend: Backend,
    run: RunFacts,
    settings: PredictSettings,
    *,
    change: Callable[[Radiograph], Radiograph] | None = None,
    explainer: Explainer | None = None,
    disk: DiskGuard | None = None,
    repeats: Repeats | None = None,
) -> Iterator[Prediction]:
    """Judge films in order.

    Args:
        paths: Files; each becomes one record, whatever it holds.
        backend: The loaded model.
        run: From `run_facts`.
        settings: Batch size and threads.
        change: What is done to every film between reading and preparing it, such as hiding a part
            of it to see what the network goes by; called from several threads.
        explainer: Makes the heat maps; called from several threads.
        disk: Refuses films when there is too little room for their results.
        repeats: Knows the films of this run; None for a new one.

    Yields:
        One record per path, in the order of the paths, as soon as it and those before it are
        ready. Closing the generator ends the threads.
    """
    workers = settings.workers or len(os.sched_getaffinity(0))
    batch_size = settings.batch_size or default_batch_size(backend)
    repeats = repeats or Repeats()
    door = _Doorkeeper(FamiliarityGate.of(backend.manifest), settings.ood == REFUSE)

    def read(path: Path) -> _Film:
        film = _read(path, run, backend.manifest.input, change, disk)
        return film if explainer else replace(film, radiograph=None)

    def judge(films: list[_Film]) -> list[tuple[Prediction, str]]:
        records = _judge(films, backend, explainer, door, disk)
        return [(record, film.uid) for record, film in zip(records, films, strict=True)]

    with ExitStack() as opened:
        decoders = opened.enter_context(_threads(workers, "decode"))
        if backend.on_cpu:
            groups = _grouped(paths, batch_size)
            done = _in_order(
                decoders, lambda group: judge([*map(read, group)]), groups, workers + _READY
            )
        else:
            lanes = opened.enter_context(_threads(GPU_LANES, "infer"))
            ahead = batch_size * (GPU_LANES + 1) + workers
            films = _in_order(decoders, read, paths, ahead)
            done = _in_order(lanes, judge, _batches(films, batch_size), GPU_LANES + 1)
        for records in done:
            for record, uid in records:
                yield repeats.settled(repeats.warned(record, uid))


@contextmanager
def _threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that end with the block: what has not begun then is dropped."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while group := list(islice(remaining, size)):
        yield group


@dataclass(frozen=True)
class _Film:
    """A film on its way: prepared pixels, or None where it was refused.

    The film as it was read is kept for those who draw on it alone: it may be large.
    """

    record: Prediction
    pixels: NDArray[np.uint8] | None
    started: float
    radiograph: Radiograph | None = None
    uid: str = ""


def _read(
    path: Path,
    run: RunFacts,
    spec: InputSpec,
    change: Callable[[Radiograph], Radiograph] | None,
    disk: DiskGuard | None,
) -> _Film:
    started = time.perf_counter()
    record = Prediction(path=str(path), run=run)
    try:
        if disk:
            disk.check()
        file = read_bytes(path)
        record = replace(record, sha256=file.sha256)
        radiograph = decode_radiograph(file)
        decoded = time.perf_counter()
        pixels = prepare(change(radiograph) if change else radiograph, spec)
    except ImageRefusedError as error:
        return _refused(record, error, started)
    except Exception as error:  # whatever one file does, the run goes on and the record says so
        detail = f"{type(error).__name__}: {error}"
        return _refused(record, ImageRefusedError(Reason.DECODE, detail), started)
    prepared = time.perf_counter()
    timings = {"read": _ms(started, decoded), "preprocess": _ms(decoded, prepared)}
    warnings = (*(caution.code for caution in radiograph.cautions), *run.cautions)
    record = replace(record, warnings=warnings, timings_ms=timings)
    uid = radiograph.dicom.sop_instance_uid if radiograph.dicom else ""
    return _Film(record, pixels, started, radiograph, uid)


def _refused(record: Prediction, error: ImageRefusedError, started: float) -> _Film:
    spent = _ms(started, time.perf_counter())
    timings = {"read": spent, "total": spent}
    refused = replace(record, reason=error.reason.code, message=str(error), timings_ms=timings)
    return _Film(refused, None, started)


def _batches(films: Iterable[_Film], size: int) -> Iterator[list[_Film]]:
    """Group films so that each group but the last holds `size` prepared ones."""
    group: list[_Film] = []
    prepared = 0
    for film in films:
        group.append(film)
        prepared += film.pixels is not None
        if prepared == size or len(group) >= _MOST_ITEMS * size:
            yield group
            group, prepared = [], 0
    if group:
        yield group


@dataclass(frozen=True)
class _Doorkeeper:
    """What becomes of films unlike those that the model learned from.

    Attributes:
        gate: The model's, or None where it has none.
        refuses: Whether a film beyond the limit is refused; else it gets a warning.
    """

    gate: FamiliarityGate | None
    refuses: bool

    def admit(self, record: Prediction, unlikeness: NDArray[np.float32] | None) -> Prediction:
        """The film's record, with a warning where it is unlike and let through.

        Raises:
            ImageRefusedError: The film is not judged.
        """
        if self.gate is None or unlikeness is None:
            return record
        reason = self.gate.reason(unlikeness, record.warnings)
        if reason is None:
            return record
        shown = not self.refuses or Caution.SYNTHETIC.code in record.warnings
        if reason is Reason.RESULT or not shown:
            raise ImageRefusedError(reason)
        return replace(record, warnings=(*record.warnings, Caution.OOD.code))


def _judge(
    films: list[_Film],
    backend: Backend,
    explainer: Explainer | None,
    door: _Doorkeeper,
    disk: DiskGuard | None,
) -> list[Prediction]:
    prepared = [film.pixels for film in films if film.pixels is not None]
    if not prepared:
        return [film.record for film in films]
    with_maps = explainer is not None and explainer.reads_activation_maps
    started = time.perf_counter()
    found = backend.infer(np.stack(prepared), activation_maps=with_maps)
    ended = time.perf_counter()
    share = _ms(started, ended) / len(prepared)
    unlike = repeat(None) if found.unlikeness is None else iter(found.unlikeness)
    rows = zip(probabilities(found.logits), unlike, strict=False)
    records = [
        film.record if film.pixels is None else _judged(film, *next(rows), door, (share, ended))
        for film in films
    ]
    if explainer is None:
        return records
    try:
        if disk:
            disk.check()
    except ImageRefusedError as error:  # a result without its heat map would never get one
        return [
            record if film.pixels is None else _refused(film.record, error, film.started).record
            for film, record in zip(films, records, strict=True)
        ]
    return _explained(records, films, found.activation_maps, explainer)


def _explained(
    records: list[Prediction],
    films: list[_Film],
    activation_maps: NDArray[np.float32] | None,
    explainer: Explainer,
) -> list[Prediction]:
    """The records with heat maps, where there is a result to explain."""
    from deepcovid_edge.explain import Explained

    maps = repeat(None) if activation_maps is None else iter(activation_maps)
    wanted: dict[int, Explained] = {}
    for place, (film, record) in enumerate(zip(films, records, strict=True)):
        if film.pixels is None or film.radiograph is None:
            continue
        own = next(maps)
        if record.probabilities is not None:
            wanted[place] = Explained(record, film.radiograph, film.pixels, own)
    made = explainer.explain([*wanted.values()])
    for place, record in zip(wanted, made, strict=True):
        total = {"total": _ms(films[place].started, time.perf_counter())}
        records[place] = replace(record, timings_ms={**(record.timings_ms or {}), **total})
    return records


def _judged(
    film: _Film,
    row: NDArray[np.float64],
    unlikeness: NDArray[np.float32] | None,
    door: _Doorkeeper,
    times: tuple[float, float],
) -> Prediction:
    share, ended = times
    try:
        if not np.isfinite(row).all():  # an overflow in FP16 or INT8, or a broken model
            raise ImageRefusedError(Reason.RESULT)
        record = door.admit(film.record, unlikeness)
    except ImageRefusedError as error:
        return _refused(film.record, error, film.started).record
    timings = {**(record.timings_ms or {}), "infer": round(share, 3)}
    timings["total"] = _ms(film.started, ended)
    values = {
        name: round(float(value), DECIMALS)
        for name, value in zip(record.run.classes, row, strict=True)
    }
    return replace(record, probabilities=values, timings_ms=timings)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax over classes; logits and result are of shape (N, classes)."""
    with np.errstate(invalid="ignore"):  # what is not finite stays so, and is refused later
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        weights = np.exp(shifted)
    share: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return share


def _in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
) -> Iterator[Result]:
    """Results in the order of the items, with at most `ahead` of them under way."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1000.0, 3)
