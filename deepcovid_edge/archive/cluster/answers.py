"""Ray Data gives shards to a pool of actors; their answers, as soon as each shard is written."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deepcovid_edge.archive.cluster.actor import Finished, ShardActor
from deepcovid_edge.archive.cluster.plan import ActorPlan
from deepcovid_edge.archive.screening import ScreenSettings
from deepcovid_edge.errors import require

EXTRA = "ray"
_RESTARTS = 3
"""How often an actor is started again."""
_RETRIES = 120
"""How often a shard is given again. Ray tries every second until it knows that a machine is lost,
and a shard that is there already costs nothing."""


@dataclass(frozen=True)
class PoolRequest:
    """What a pool of actors does.

    Attributes:
        settings: What is assessed; its paths are absolute.
        plan: The actors.
        shards: Numbers of the shards.
        marker: A file of the results folder that this command has written.
        count: Handle of an `ImageCount`.
    """

    settings: ScreenSettings
    plan: ActorPlan
    shards: tuple[int, ...]
    marker: str
    count: Any


def answers(request: PoolRequest) -> Iterator[Finished]:
    """What the actors answer, in the order in which they end."""
    data = require("ray.data", extra=EXTRA)
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"shard": shard} for shard in request.shards]
    blocks = data.from_items(rows, override_num_blocks=len(rows))
    with warnings.catch_warnings():
        # Restarts have no parameter with a name of its own yet (Ray 2.60).
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        found = blocks.map_batches(
            ShardActor,
            batch_size=None,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=min(request.plan.actors, len(rows))),
            fn_constructor_kwargs={
                "settings": request.settings,
                "threads": request.plan.threads,
                "marker": request.marker,
                "count": request.count,
            },
            num_cpus=request.plan.cpus,
            num_gpus=request.plan.gpus or None,
            max_restarts=_RESTARTS,
            max_task_retries=_RETRIES,
        )
    for batch in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from map(Finished.from_json, batch["answer"].to_pylist())


class RemoteAnswers:
    """The answers, collected on the cluster: Ray Data does not run in a client (`ray://`)."""

    def __init__(self, request: PoolRequest) -> None:
        self._answers = answers(request)

    def next(self) -> str | None:
        """The next answer as JSON; None behind the last."""
        found = next(self._answers, None)
        return None if found is None else found.as_json()


def answers_on_cluster(ray: Any, request: PoolRequest) -> Iterator[Finished]:
    """What the actors answer, asked for by a client."""
    collector = ray.remote(num_cpus=0)(RemoteAnswers).remote(request)
    while (answer := ray.get(collector.next.remote())) is not None:
        yield Finished.from_json(answer)
