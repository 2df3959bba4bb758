"""How many workers a Ray cluster gets, of how many threads, and what each of them reserves.

Ray starts nothing where no CPU is free, and says nothing of it: a plan whose actors reserve every
CPU waits for ever (ray-project/ray, 44687). So an actor reserves less than it uses, a part of the
cluster stays free, and a plan that would fill it is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepcovid_edge.device.progress import number_of
from deepcovid_edge.errors import UsageError

LEAST_FREE_CPUS = 0.5
"""CPUs that stay free for tasks of Ray's own."""
_USUAL_THREADS = 4
"""Threads of an actor: fewer need a model each, more wait for one another."""
_LEAST_RESERVED = 0.5


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        cpus: Its CPUs, as Ray counts them.
        gpus: Its GPUs.
    """

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class ActorPlan:
    """The actors of a run.

    Attributes:
        actors: How many; each has one loaded model.
        threads: Of each.
        cpus: That each reserves.
        gpus: That each reserves.
    """

    actors: int
    threads: int
    cpus: float
    gpus: float = 0.0

    def words(self) -> str:
        """One sentence."""
        actors = number_of(self.actors, "worker")
        threads = number_of(self.threads, "thread")
        return f"Ray runs {actors} of {threads}{' and a GPU' if self.gpus else ''}."


def plan_actors(
    nodes: Sequence[Node],
    free_cpus: float,
    *,
    actors: int | None = None,
    threads: int | None = None,
    on_gpu: bool = False,
) -> ActorPlan:
    """Plan the actors of a run.

    Args:
        nodes: The machines of the cluster.
        free_cpus: CPUs that no other job has reserved.
        actors: As asked for; None for as many as fit.
        threads: As asked for; None for what suits the machines.
        on_gpu: Whether each actor needs a GPU.

    Raises:
        UsageError: The actors would fill the cluster, or do not fit into it.
    """
    usable = [node for node in nodes if node.gpus >= 1] if on_gpu else list(nodes)
    if not usable:
        what = "GPU" if on_gpu else "machine"
        raise UsageError(f"on: the cluster has no {what}")
    threads = threads or _threads(usable, on_gpu=on_gpu)
    reserved = max(_LEAST_RESERVED, threads - 1.0)
    most = sum(_most(node, threads, on_gpu=on_gpu) for node in usable)
    most = min(most, int((free_cpus - LEAST_FREE_CPUS) / reserved))
    if most < 1:
        raise UsageError(
            f"workers: got {threads} threads, which would fill the cluster ({free_cpus:g} CPUs are "
            "free): take fewer, or wait for other jobs"
        )
    if actors is not None and not 1 <= actors <= most:
        raise UsageError(
            f"actors: got {actors} of {threads} threads, which would fill the cluster of "
            f"{sum(node.cpus for node in nodes):g} CPUs ({free_cpus:g} are free): expected 1 to "
            f"{most}"
        )
    return ActorPlan(actors or most, threads, reserved, 1.0 if on_gpu else 0.0)


def _threads(nodes: Sequence[Node], *, on_gpu: bool) -> int:
    if on_gpu:  # the GPU waits for what decodes
        return max(1, int(min(node.cpus / node.gpus for node in nodes)))
    return max(1, int(min(_USUAL_THREADS, *(node.cpus for node in nodes))))


def _most(node: Node, threads: int, *, on_gpu: bool) -> int:
    by_cpus = int(node.cpus // threads)
    return min(by_cpus, int(node.gpus)) if on_gpu else by_cpus
