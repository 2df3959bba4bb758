"""Assess an archive on a Ray cluster: Ray Data gives shards to a pool of actors.

Ray moves the numbers of shards alone. The actors read the images and write the shards themselves,
so records never pass through Ray's store, and a shard that Ray gives twice is written once.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from deepcovid_edge import errors
from deepcovid_edge.archive.cluster.actor import CHECK_ONLY, Finished, ImageCount
from deepcovid_edge.archive.cluster.answers import (
    EXTRA,
    PoolRequest,
    answers,
    answers_on_cluster,
)
from deepcovid_edge.archive.cluster.plan import ActorPlan, Node, plan_actors
from deepcovid_edge.archive.images.image_list import ImageList
from deepcovid_edge.archive.screening import Screening, ScreenSettings
from deepcovid_edge.archive.shards import ShardFolder
from deepcovid_edge.archive.stamp import RunStamp, check_same, read_stamp
from deepcovid_edge.errors import DeepCovidEdgeError, NotThereError, OutputError, one_line, require
from deepcovid_edge.files import Closing
from deepcovid_edge.manifest import VERSION
from deepcovid_edge.pipeline.pipeline import default_workers

_CLIENT = "ray://"
THIS_MACHINE = "ray"
"""In place of an address: Ray is started here, and ended with the run."""
_STORE_BYTES = 200 << 20
"""Ray's store holds numbers of shards; this is hardly more than the least that Ray takes."""
_ENVIRONMENT = {
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
"""A call after the end of a run must not start Ray again; nobody is called; and workers run as
`infer` would: by default Ray gives them the priority 15, and on a busy machine hardly any time."""
_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class ClusterSettings:
    """The cluster of a run.

    Attributes:
        address: `ray` for this machine; else where the cluster is.
        actors: Actors; None for as many as fit.
        patience: Longest time without an image, seconds.
    """

    address: str = THIS_MACHINE
    actors: int | None = None
    patience: float = 600.0


class RayRun(Closing):
    """A run on a cluster.

    Attributes:
        plan: Its actors.
        stamp: The run; without facts of a model before the first actor has begun.
        folder: Its results.

    Raises:
        MissingDependencyError: Ray is not installed.
        NotThereError: The cluster does not answer.
        UsageError: The plan would fill the cluster, or the folder is another run's.
        OutputError: The folder cannot be written.
    """

    def __init__(self, settings: ScreenSettings, cluster: ClusterSettings) -> None:
        self._settings, self._cluster = settings, cluster
        self.stamp = _stamp(settings)
        self.folder = ShardFolder(settings.output, self.stamp, settings.min_free)
        self._marker = settings.output / f".nodes-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            settings.output.mkdir(parents=True, exist_ok=True)
            self._marker.touch()
        except OSError as error:
            text = f"{settings.output}: cannot be written: {error.strerror or error}"
            raise OutputError(text) from error
        try:
            self._ray = _connected(cluster)
            self.plan = self._planned()
        except BaseException:
            self.close()
            raise

    def begin(self) -> Screening:
        """See which shards are there.

        Raises:
            DataError: One is of another run.
        """
        return Screening.begin(self.folder)

    def screen(
        self, screening: Screening, progress: Callable[[int], object] = lambda _: None
    ) -> None:
        """Assess the shards that are left.

        Args:
            screening: What is left; its counts grow.
            progress: Called with the number of images since the last call.

        Raises:
            DeepCovidEdgeError: An actor met an error, the cluster is gone, no image was assessed
                for too long, or not one of the first can be read.
        """
        count = self._ray.remote(num_cpus=0, max_restarts=-1)(ImageCount).remote()
        watch = _Watch(self._ray, count, self._cluster.patience, progress)
        shards = screening.left or [CHECK_ONLY]
        for finished in watch.passed(self._answers(shards, count)):
            if finished.error[0]:
                raise _failure(*finished.error)
            screening.add(finished.counts)
        stamp = read_stamp(self._settings.output) or self.stamp
        folder = ShardFolder(self._settings.output, stamp)
        lacking = [shard for shard in screening.left if not folder.path(shard).exists()]
        if lacking:
            raise OutputError(f"{folder.folder}: {len(lacking)} shards are missing: run it again")
        screening.left.clear()

    def close(self) -> None:
        """Leave the cluster; end it where this run has started it."""
        with suppress(OSError):
            self._marker.unlink()
        if ray := getattr(self, "_ray", None):
            # After a stop a thread still waits for answers: its failure is no news.
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            ray.shutdown()

    def _planned(self) -> ActorPlan:
        nodes = [
            Node(one["Resources"].get("CPU", 0.0), one["Resources"].get("GPU", 0.0))
            for one in self._ray.nodes()
            if one["Alive"]
        ]
        return plan_actors(
            nodes,
            float(self._ray.available_resources().get("CPU", 0.0)),
            actors=self._cluster.actors,
            threads=self._settings.workers,
            on_gpu=self._settings.on_gpu,
        )

    def _answers(self, shards: list[int], count: Any) -> Iterator[Finished]:
        request = PoolRequest(
            _absolute(self._settings),
            self.plan,
            tuple(shards),
            str(self._marker.absolute()),
            count,
        )
        if self._cluster.address.startswith(_CLIENT):
            return answers_on_cluster(self._ray, request)
        return answers(request)


class _Watch:
    """Passes answers on, shows progress, and ends a run that makes none.

    Args:
        ray: The module.
        count: Handle of an `ImageCount`.
        patience: Longest time without an image, seconds.
        progress: Called with the number of images since the last call.
    """

    def __init__(
        self, ray: ModuleType, count: Any, patience: float, progress: Callable[[int], object]
    ) -> None:
        self._ray, self._count, self._patience, self._progress = ray, count, patience, progress
        self._images = 0
        self._alive = time.monotonic()

    def passed(self, answers: Iterator[Finished]) -> Iterator[Finished]:
        """The answers, which a thread of its own waits for: Ray may give none for ever.

        Raises:
            OutputError: Ray failed, or no image was assessed for too long.
        """
        found: queue.SimpleQueue[Finished | BaseException | None] = queue.SimpleQueue()
        threading.Thread(target=_collect, args=(answers, found), daemon=True).start()
        while True:
            try:
                item = found.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                self._look()
                continue
            if isinstance(item, BaseException):
                raise OutputError(
                    f"on: Ray: {_last_line(item)}: the same command goes on"
                ) from item
            self._look()
            if item is None:
                return
            self._alive = time.monotonic()
            yield item

    def _look(self) -> None:
        with suppress(Exception):  # the count may be lost with its machine; it starts again at 0
            total = self._ray.get(self._count.total.remote(), timeout=_ANSWER_SECONDS)
            if total != self._images:
                self._progress(max(0, total - self._images))
                self._images, self._alive = total, time.monotonic()
        if time.monotonic() - self._alive > self._patience:
            raise OutputError(
                f"on: no image was assessed for {self._patience:g} s: look whether other jobs hold "
                "the cluster, or raise --patience; the same command goes on"
            )


def _collect(
    answers: Iterator[Finished], found: queue.SimpleQueue[Finished | BaseException | None]
) -> None:
    try:
        for answer in answers:
            found.put(answer)
        found.put(None)
    except BaseException as error:
        found.put(error)


def _connected(cluster: ClusterSettings) -> ModuleType:
    """Ray, connected to the cluster, or started here."""
    os.environ.update(_ENVIRONMENT)
    ray = require("ray", extra=EXTRA)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if cluster.address == THIS_MACHINE:
        quiet |= {
            "address": "local",
            "num_cpus": default_workers(),
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
        }
    else:
        quiet["address"] = cluster.address
    try:
        with _own_sigterm():
            ray.init(**quiet)
    except Exception as error:  # Ray raises nearly anything where it cannot connect
        raise NotThereError(f"on: {cluster.address}: {_last_line(error)}") from error
    except BaseException as stop:  # Ray makes a SystemExit of SIGTERM
        ray.shutdown()
        raise KeyboardInterrupt from stop
    return ray


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this program's handler of SIGTERM: Ray sets its own where it is started."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _stamp(settings: ScreenSettings) -> RunStamp:
    """The run of the folder if it has one, without facts if not; its images are checked here.

    Raises:
        UsageError: The folder has the records of other images.
    """
    images = ImageList(settings.manifest)
    found = read_stamp(settings.output) or RunStamp(VERSION, {}, "", 0, "", 0)
    asked = replace(
        found,
        version=VERSION,
        images=images.count,
        fingerprint=images.fingerprint,
        shard_images=settings.shard_images,
    )
    if found.facts:
        check_same(settings.output, found, asked)
    return asked


def _absolute(settings: ScreenSettings) -> ScreenSettings:
    """The settings as another process understands them, whatever folder it works in."""
    model = dict(settings.model)
    if (named := model.get("model")) and Path(named).exists():
        model["model"] = str(Path(named).absolute())
    return replace(
        settings,
        manifest=settings.manifest.absolute(),
        output=settings.output.absolute(),
        folder=str(Path(settings.folder).absolute()),
        model=model,
    )


def _failure(kind: str, text: str) -> DeepCovidEdgeError:
    """The error that an actor met, as one of its kind."""
    return errors.of_kind(kind, text) or OutputError(text)


def _last_line(error: BaseException) -> str:
    """What an error of Ray comes down to: it shows the cause below all that led to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else one_line(error)
