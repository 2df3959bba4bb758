"""Images in, one record per image out: decoding runs beside inference, in order, in flat memory.

    sources -> decode and prepare (worker threads) -> batches -> infer -> records

Every arrow holds a bounded number of items, so memory does not grow with the number of images.
The decoders and the runtimes release Python's lock, so threads use every core. On a CPU each worker
thread takes a group of images all the way, so that there is one busy thread a core and nothing is
handed over. It prepares the whole group before it classifies it, because the code and the weights
of one step push those of the other out of a core's cache. A GPU is fed by threads of its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from numbers import Integral, Real
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from deepcovid_edge.backends.base import GPU_LANES, AssessesFiles, Backend
from deepcovid_edge.decision.out_of_distribution import CHOICES, REJECT
from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.device.memory import check_address_space
from deepcovid_edge.device.process import cores
from deepcovid_edge.errors import UsageError
from deepcovid_edge.pipeline.classifier import Explainer
from deepcovid_edge.pipeline.duplicates import Duplicates
from deepcovid_edge.pipeline.reader import PreparedImage, Read, Reading
from deepcovid_edge.pipeline.remote import make_classifier
from deepcovid_edge.reasons import WarningCode

if TYPE_CHECKING:
    from deepcovid_edge.decision.site_file import Site

Item = TypeVar("Item")
Result = TypeVar("Result")
_Classified: TypeAlias = list[tuple[Prediction, str]]
"""Records of images in their order, each with its SOP instance UID."""
_CPU_BATCH, _GPU_BATCH = 1, 8
"""Images per inference call. A core gains nothing from more: the activations of one image fit into
its cache, those of several do not."""
_LEAST_IN_GROUP, _MOST_IN_GROUP = 4, 32
_GROUP_SECONDS = 0.07
"""A thread of a CPU takes as many images at once as last about this long. More gain little and
keep their records waiting."""
_CALLS = 8
"""Images that a server has at once: one with a few cores is busy then."""
_PATIENCE_SECONDS = 0.5
"""A group that turns out to be slow is classified in parts: no image is read after so long."""
_GROUPS_A_THREAD = 2
"""Groups under way for each thread of a CPU: the one it has, and the next."""
_MOST_ITEMS = 4
"""A batch is sent off with this many times its size of items, those without pixels included."""


@dataclass(frozen=True)
class PredictSettings:
    """How a run over images is done.

    Attributes:
        batch_size: Most images in one inference call; None for what suits the backend.
        workers: Threads that decode (and, on a CPU, infer); None for `default_workers`.
        threshold: Probability from which an image is positive; None for the model's own. One that
            is given has no indeterminate range: nobody chose one for it.
        indeterminate: Whether images within the model's (or the site's) indeterminate range are
            indeterminate; else the threshold decides.
        site: Site file whose threshold decides; None for none.
        ood: `reject` or `warn`: what becomes of out-of-distribution images.
    """

    batch_size: int | None = None
    workers: int | None = None
    threshold: float | None = None
    indeterminate: bool = True
    site: Site | None = None
    ood: str = REJECT

    def __post_init__(self) -> None:
        _check_range("batch_size", self.batch_size, 1, 1024, whole=True)
        _check_range("workers", self.workers, 1, 256, whole=True)
        _check_range("threshold", self.threshold, 0, 1)
        if not isinstance(self.indeterminate, bool):
            raise UsageError(f"indeterminate: got {self.indeterminate!r}, expected True or False")
        if self.threshold is not None and self.site is not None:
            raise UsageError(
                f"threshold: got {self.threshold} with a site file, which has its own "
                f"({self.site.threshold}): leave one of them out"
            )
        if self.ood not in CHOICES:
            raise UsageError(f"ood: got {self.ood!r}, expected {' or '.join(CHOICES)}")


def _check_range(
    name: str, value: float | None, low: int, high: int, *, whole: bool = False
) -> None:
    if value is None:
        return
    kind, words = (Integral, "a whole number") if whole else (Real, "a number")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"{name}: got {value!r}, expected {words}")
    if not low <= value <= high:  # NaN is outside too
        raise UsageError(f"{name}: got {value}, expected {low} to {high}")


def default_batch_size(backend: Backend) -> int:
    """Images per inference call where nothing else is asked for."""
    return _CPU_BATCH if backend.on_cpu else _GPU_BATCH


def default_workers(backend: Backend | None = None) -> int:
    """Threads where nothing else is asked for: one a core, and more that wait for a server."""
    if isinstance(backend, AssessesFiles):
        return _CALLS
    return cores()


def run_facts(backend: Backend, settings: PredictSettings) -> RunFacts:
    """What the records of a run with this model have in common.

    Raises:
        SettingsMismatchError: The site file is of another model, or found it not usable.
    """
    manifest, site = backend.manifest, settings.site
    warnings = backend.warnings
    threshold, indeterminate_range = manifest.threshold, manifest.indeterminate_range
    if settings.threshold is not None:
        threshold, indeterminate_range = settings.threshold, None
    if site:
        site.check(manifest.name, backend.sha256)
        threshold, indeterminate_range = site.threshold, site.indeterminate_range
        warnings += (WarningCode.SITE,) if site.is_unproved else ()
    return RunFacts(
        model=manifest.name,
        model_sha256=backend.sha256,
        backend=backend.name,
        variant=manifest.variant,
        classes=manifest.classes,
        positive_class=manifest.positive_class,
        threshold=threshold,
        warnings=tuple(warning.code for warning in warnings),
        indeterminate_range=indeterminate_range if settings.indeterminate else None,
        site=site.name if site else None,
    )


def predict_groups(
    reading: Reading,
    backend: Backend,
    run: RunFacts,
    settings: PredictSettings,
    *,
    explainer: Explainer | None = None,
    duplicates: Duplicates | None = None,
) -> Generator[list[Prediction]]:
    """Classify images in order, in groups of records that are ready together.

    Args:
        reading: The images; each becomes one record, whatever it holds.
        backend: The loaded model.
        run: From `run_facts`.
        settings: Batch size and threads.
        explainer: Makes the heat maps; called from several threads.
        duplicates: Knows the images of this run; None for a new one.

    Yields:
        Records in the order of the images, as soon as they and those before them are ready.
        Closing the generator ends the threads.

    Raises:
        MemoryError: A limit of this process leaves too little room for the threads.
    """
    workers = settings.workers or default_workers(backend)
    check_address_space(workers)
    batch_size = settings.batch_size or default_batch_size(backend)
    duplicates = duplicates or Duplicates()
    reader = reading.reader
    classifier = make_classifier(backend, run, settings.ood, explainer, reader.disk)

    def classify(images: list[PreparedImage]) -> tuple[_Classified, None]:
        records = classifier.classify(images, batch_size)
        return [(record, image.uid) for record, image in zip(records, images, strict=True)], None

    with ExitStack() as opened:
        decoders = opened.enter_context(_threads(workers, "decode"))
        if backend.on_cpu:
            groups = Groups(reading, batch_size, workers, paced=not reader.keeps_radiographs)

            def classify_group(group: list[Read]) -> tuple[_Classified, list[Read] | None]:
                started = time.perf_counter()
                images = [read() for read in _in_time(group)]
                records, _ = classify(images)
                groups.took(len(images), time.perf_counter() - started)
                return records, group[len(images) :] or None

            done = in_order(decoders, classify_group, groups, workers * _GROUPS_A_THREAD)
        else:
            lanes = opened.enter_context(_threads(GPU_LANES, "infer"))
            ahead = batch_size * (GPU_LANES + 1) + workers
            images = in_order(decoders, lambda read: (read(), None), reading, ahead)
            done = in_order(lanes, classify, _batches(images, batch_size), GPU_LANES + 1)
        for records in done:
            yield [duplicates.settled(duplicates.warned(record, uid)) for record, uid in records]


@contextmanager
def _threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that end with the block; what has not begun by then is cancelled."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Groups(Iterator[list[Item]]):
    """Images in groups for the threads of a CPU, each as large as the pace so far allows.

    Towards the end each is a thread's share of what is left, so that no core is left with many
    images when the others have none; to see the end come, a group for each thread is taken ahead.

    Args:
        images: Whatever stands for each.
        batch_size: Images an inference; all groups hold whole batches, except the last.
        workers: Threads that take groups.
        paced: Groups grow with the pace; else they stay small, as images kept for pictures do not
            become many then.
    """

    def __init__(
        self, images: Iterable[Item], batch_size: int, workers: int, *, paced: bool
    ) -> None:
        self._images, self._coming = iter(images), deque[Item]()
        self._batch_size, self._workers = batch_size, workers
        self._paced, self._suiting = paced, _LEAST_IN_GROUP

    def __next__(self) -> list[Item]:
        """The next group."""
        ahead = self._workers * max(self._suiting, self._batch_size) - len(self._coming)
        self._coming.extend(islice(self._images, max(ahead, 0)))
        if not self._coming:
            raise StopIteration
        share = -(-len(self._coming) // self._workers)
        batches = min(self._suiting, share) // self._batch_size
        size = min(max(batches, 1) * self._batch_size, len(self._coming))
        return [self._coming.popleft() for _ in range(size)]

    def took(self, images: int, seconds: float) -> None:
        """Call after each group, from several threads."""
        if self._paced:
            suiting = int(_GROUP_SECONDS * images / seconds)
            self._suiting = min(max(suiting, _LEAST_IN_GROUP), _MOST_IN_GROUP)


def _batches(images: Iterable[PreparedImage], size: int) -> Iterator[list[PreparedImage]]:
    """Group images so that each group but the last holds `size` prepared ones."""
    group: list[PreparedImage] = []
    prepared = 0
    for image in images:
        group.append(image)
        prepared += image.pixels is not None
        if prepared == size or len(group) >= _MOST_ITEMS * size:
            yield group
            group, prepared = [], 0
    if group:
        yield group


def _in_time(items: Iterable[Item]) -> Iterator[Item]:
    """The items until `_PATIENCE_SECONDS` have passed; at least one."""
    ends = time.perf_counter() + _PATIENCE_SECONDS
    for item in items:
        yield item
        if time.perf_counter() > ends:
            return


def in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], tuple[Result, Item | None]],
    items: Iterable[Item],
    ahead: int,
) -> Iterator[Result]:
    """Results in the order of the items, with at most `ahead` of them under way.

    The function may leave the rest of an item, which then is the next item.
    """
    pending: deque[Future[tuple[Result, Item | None]]] = deque()
    coming = iter(items)
    while True:
        for item in islice(coming, ahead - len(pending)):
            pending.append(pool.submit(function, item))
        if not pending:
            return
        result, rest = pending.popleft().result()
        if rest is not None:
            pending.appendleft(pool.submit(function, rest))
        yield result
