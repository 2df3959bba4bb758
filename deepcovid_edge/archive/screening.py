"""Assess the images of a manifest in shards: what every way of running it has in common."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from deepcovid_edge.archive.images.addresses import check_local
from deepcovid_edge.archive.images.image_list import ImageList, ListedImage
from deepcovid_edge.archive.shards import (
    Counts,
    DamagedShardError,
    ShardFolder,
    remove_unfinished,
)
from deepcovid_edge.archive.stamp import SHARD_IMAGES, RunStamp, begin_run
from deepcovid_edge.archive.worker.process import IMAGE_SECONDS, ImageWorker, WorkerSettings
from deepcovid_edge.backends import AUTO, choose_file
from deepcovid_edge.backends.settings import is_address
from deepcovid_edge.backends.tensorrt.files import SUFFIX
from deepcovid_edge.decision.site_file import read_site
from deepcovid_edge.device.progress import number_of
from deepcovid_edge.errors import DeepCovidEdgeError, NotThereError, UsageError
from deepcovid_edge.files import Closing
from deepcovid_edge.models import DEFAULT_MODEL
from deepcovid_edge.pipeline.disk_guard import LEAST_FREE_MIB
from deepcovid_edge.pipeline.pipeline import PredictSettings, default_workers

GPU_PROVIDERS = ("cuda", "tensorrt", "rtx")
_FIRST_IMAGES = 1000
"""If none of so many can be read, the cause is not in them: share or folder is wrong."""


@dataclass(frozen=True)
class Share:
    """A part of the shards, for one of several commands that run at once.

    Attributes:
        number: Which part, from 1 on.
        of: How many parts there are.
    """

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UsageError(f"shard: got {self}, expected 1/{self.of} to {self.of}/{self.of}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Share:
        """The share that text such as `17/400` means.

        Raises:
            UsageError: It is none.
        """
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal()):
            raise UsageError(f"shard: got {text!r}, expected a part such as 17/400")
        return cls(int(number), int(of))

    def of_shards(self, count: int) -> range:
        """The shards of this part."""
        return range(self.number - 1, count, self.of)


@dataclass(frozen=True)
class ScreenSettings:
    """What is assessed, how, and where its records go.

    Attributes:
        manifest: The manifest.
        output: Folder of the results.
        model: Keywords of `Model`, without `workers`.
        workers: Threads of a worker; None for one a core.
        shard_images: Images of a shard.
        min_free: A shard is not written with less free on the disk, MiB.
        image_seconds: As of `WorkerSettings`.
        folder: Folder in which relative paths of images begin.
    """

    manifest: Path
    output: Path
    model: Mapping[str, Any] = field(default_factory=dict)
    workers: int | None = None
    shard_images: int = SHARD_IMAGES
    min_free: int = LEAST_FREE_MIB
    image_seconds: float = IMAGE_SECONDS
    folder: str = "."

    def __post_init__(self) -> None:
        check_local("manifest", self.manifest)
        check_local("output", self.output)
        PredictSettings(workers=self.workers)  # it knows the range
        if not 1 <= self.shard_images <= 1_000_000:
            raise UsageError(f"shard_size: got {self.shard_images}, expected 1 to 1000000")
        if self.output.exists() and not self.output.is_dir():
            raise UsageError(f"output: {self.output} is a file, expected a folder")

    @cached_property
    def on_gpu(self) -> bool:
        """Whether the model runs on a GPU: that was asked for, or `auto` takes an engine here.

        Raises:
            NotThereError: The model is not there.
        """
        backend, provider = str(self.model.get("backend", AUTO)), self.model.get("provider")
        if is_address(backend):
            return False
        site = self.model.get("site")
        file = choose_file(
            self.model.get("model", DEFAULT_MODEL),
            variant=self.model.get("variant", AUTO),
            named=backend != AUTO or provider is not None,
            site_model_sha256=read_site(Path(site)).model_sha256 if site else None,
        )
        return provider in GPU_PROVIDERS or file.suffix == SUFFIX

    def worker(self, threads: int | None = None) -> WorkerSettings:
        """The settings of a worker.

        Args:
            threads: Of the worker; None for what was asked for, or one a core.
        """
        count = threads or self.workers or default_workers()
        return WorkerSettings(
            self.model,
            count,
            is_limited=not self.on_gpu,
            folder=self.folder,
            image_seconds=self.image_seconds,
        )


class Screener(Closing):
    """A worker with the images and the folder of a run. The thread that makes it must stay.

    Args:
        settings: What is assessed.
        threads: Of the worker; None for what was asked for.

    Raises:
        UsageError: The folder is another run's.
        DeepCovidEdgeError: The model cannot be loaded, see `Model`.
    """

    def __init__(self, settings: ScreenSettings, threads: int | None = None) -> None:
        self._images = ImageList(settings.manifest)
        with ExitStack() as opened:
            self._worker = opened.enter_context(ImageWorker(settings.worker(threads)))
            self.stamp = RunStamp.of(
                self._worker.facts, self._worker.ood, self._images, settings.shard_images
            )
            begin_run(settings.output, self.stamp)
            self.folder = ShardFolder(settings.output, self.stamp, settings.min_free)
            self._opened = opened.pop_all()

    @property
    def deaths(self) -> int:
        """How often the worker's process ended before its time."""
        return self._worker.deaths

    def screen_each(
        self, shards: Sequence[int], progress: Callable[[int], object] = lambda _: None
    ) -> Generator[tuple[int, Counts]]:
        """Assess the images of shards and write them; the next one is in work meanwhile.

        Args:
            shards: Numbers of the shards.
            progress: Called with the number of images since the last call.

        Yields:
            The number of each shard that is written, and its counts.

        Raises:
            OutputError: The disk is full, or the worker cannot go on.
            DataError: The manifest is damaged; what comes before that is written.
        """
        broken: list[DeepCovidEdgeError] = []

        def requests() -> Iterator[Sequence[ListedImage]]:
            for shard in shards:
                try:
                    self.folder.check_room()
                    images = self._images.rows(*self.stamp.rows(shard))
                except DeepCovidEdgeError as error:
                    broken.append(error)
                    return
                yield images

        with closing(self._worker.assess_each(requests(), progress)) as assessed:
            # The shards come second: so `assessed` is run to its end, and the child stays.
            for images, shard in zip(assessed, shards, strict=False):
                yield shard, self.folder.write(shard, images)
        if broken:
            raise broken[0]

    def close(self) -> None:
        """End the worker."""
        self._opened.close()


@dataclass
class Screening:
    """How far a command is.

    Attributes:
        before: Images of shards that were there.
        now: Images of shards that were written by this command.
        damaged: Sentences on shards that were damaged, and are written again.
        again: Images of shards that were there, and are assessed again: some could not be read.
        left: Shards that are not there yet, then those that are assessed again.
        unread: Images that another run of the command tries again.
    """

    before: Counts = field(default_factory=Counts)
    now: Counts = field(default_factory=Counts)
    damaged: list[str] = field(default_factory=list)
    again: Counts = field(default_factory=Counts)
    left: list[int] = field(default_factory=list)
    unread: int = 0

    @classmethod
    def begin(cls, folder: ShardFolder, share: Share = Share()) -> Screening:
        """See which shards of a part are there.

        Raises:
            DataError: One is of another run.
        """
        remove_unfinished(folder.folder)
        found, again = cls(), list[int]()
        for shard in share.of_shards(folder.stamp.shards):
            try:
                counts = folder.done(shard)
            except DamagedShardError as error:
                found.damaged.append(f"{error}: it is written again.")
                counts = None
            if counts is None:
                found.left.append(shard)
            elif counts.lacks_files:
                again.append(shard)
                found.again += counts
            else:
                found.before += counts
        found.left += again
        return found

    def add(self, counts: Counts) -> None:
        """Count the images of a shard that was written.

        Raises:
            NotThereError: A run begins, and not one image of its first shards can be read. It is
                raised once: the same command goes on.
        """
        self.now += counts
        self.unread += counts.unreadable if counts.lacks_files else 0
        begins = not (self.before.images or self.again.images)
        if begins and _FIRST_IMAGES <= self.now.images == self.now.unreadable:
            raise NotThereError(
                f"manifest: not one of the first {self.now.images} images can be read: mount their "
                "share, or work in the folder in which their paths begin; the same command goes on"
            )

    @property
    def not_assessed(self) -> int:
        """Images without a result."""
        return self.before.not_assessed + self.now.not_assessed

    def images_left(self, stamp: RunStamp) -> int:
        """Images of the shards that are left."""
        return sum(stop - start for start, stop in map(stamp.rows, self.left))

    def summary(self, how: str) -> str:
        """How many images came to which decision, in one sentence."""
        now = self.now
        unclear = f"{now.indeterminate} indeterminate, " if now.indeterminate else ""
        found = (
            f"{number_of(now.images, 'image')} {how}: {now.positive} positive, "
            f"{now.negative} negative, {unclear}{now.not_assessed} not assessed"
        )
        if not self.before.images:
            return found
        return f"{found}. {number_of(self.before.images, 'image was', 'images were')} done before"

    def first_notes(self) -> Iterator[str]:
        """What to know before the run goes on."""
        again = self.again
        if again.images:
            yield (
                f"{number_of(again.unreadable, 'image')} could not be read before: their shards, "
                f"{number_of(again.images, 'image')} in all, are assessed again."
            )

    def notes(self) -> Iterator[str]:
        """What to know of the run beside its records."""
        yield from self.damaged
        if self.unread:
            images = number_of(self.unread, "image")
            yield f"{images} could not be read: the same command tries again."


def screen_here(
    screener: Screener,
    screening: Screening,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Assess the shards that are left, in their order, on this machine.

    Args:
        screener: The worker and its folder.
        screening: What is left; its counts grow.
        progress: Called with the number of images since the last call.

    Raises:
        OutputError: The disk is full, or the worker cannot go on.
        NotThereError: Not one of the first images can be read.
    """
    with closing(screener.screen_each([*screening.left], progress)) as written:
        for shard, counts in written:
            screening.left.remove(shard)
            screening.add(counts)
