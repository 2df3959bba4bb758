"""What runs on the machines of a Ray cluster: an actor with one worker, and a count of images."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcovid_edge.archive.screening import Screener, ScreenSettings
from deepcovid_edge.archive.shards import Counts, DamagedShardError
from deepcovid_edge.decision.record_table import EXTRA
from deepcovid_edge.errors import DeepCovidEdgeError, require

if TYPE_CHECKING:
    import pyarrow

CHECK_ONLY = -1
"""In place of a shard's number: the run is checked, and nothing is assessed."""
_PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class Finished:
    """What an actor answers for a shard.

    Attributes:
        shard: Its number.
        counts: Its images.
        error: Type and text of what went wrong; empty where nothing did.
    """

    shard: int
    counts: Counts = field(default_factory=Counts)
    error: tuple[str, str] = ("", "")

    def as_json(self) -> str:
        """All this as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Finished:
        """The answer that JSON states."""
        values = json.loads(text)
        return cls(values["shard"], Counts(**values["counts"]), tuple(values["error"]))


class ImageCount:
    """Counts images that were assessed, as an actor of its own."""

    def __init__(self) -> None:
        self._images = 0

    def add(self, images: int) -> None:
        """Add images."""
        self._images += images

    def total(self) -> int:
        """All images so far."""
        return self._images


class ShardActor:
    """Assesses shards on one machine; Ray makes one of each actor and gives it shards.

    An error is an answer: Ray would try again what can never work.

    Args:
        settings: What is assessed.
        threads: Of the worker.
        marker: A file of the results folder that the driver has written.
        count: Handle of an `ImageCount`.
    """

    def __init__(self, settings: ScreenSettings, threads: int, marker: str, count: Any) -> None:
        self._progress = _Progress(count)
        self._screener: Screener | None = None
        self._error = ("", "")
        if not Path(marker).exists():
            self._error = (
                "OutputError",
                f"{settings.output}: another folder on a machine of the cluster: expected one that "
                "all of them share",
            )
            return
        try:
            self._screener = Screener(settings, threads)
        except DeepCovidEdgeError as error:
            self._error = (type(error).__name__, str(error))

    def __call__(self, shards: pyarrow.Table) -> pyarrow.Table:
        """Assess the shards of a block."""
        pa = require("pyarrow", extra=EXTRA)
        answers = [self._finished(shard).as_json() for shard in shards["shard"].to_pylist()]
        return pa.table({"answer": answers})

    def _finished(self, shard: int) -> Finished:
        if self._screener is None:
            return Finished(shard, error=self._error)
        if shard == CHECK_ONLY:
            return Finished(shard)
        try:
            return Finished(shard, self._counts(self._screener, shard))
        except DeepCovidEdgeError as error:
            return Finished(shard, error=(type(error).__name__, str(error)))

    def _counts(self, screener: Screener, shard: int) -> Counts:
        """The shard's counts; it is there already where Ray asks again after a loss.

        One whose files could not be read is assessed again in any case.
        """
        with suppress(DamagedShardError):
            found = screener.folder.done(shard)
            if found and not found.lacks_files:
                return found
        ((_, counts),) = screener.screen_each([shard], self._progress)
        self._progress.send()
        return counts


class _Progress:
    """Tells an `ImageCount` of images, seldom enough to cost no core its time."""

    def __init__(self, count: Any) -> None:
        self._add, self._images, self._sent = count.add.remote, 0, 0.0

    def __call__(self, images: int) -> None:
        self._images += images
        if time.monotonic() - self._sent >= _PROGRESS_SECONDS:
            self.send()

    def send(self) -> None:
        """Tell of all that it was not told of."""
        self._add(self._images)
        self._images, self._sent = 0, time.monotonic()
