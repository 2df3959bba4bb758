"""Plans of a cluster: every CPU works, one is never lacking to Ray, and what would hang is told."""

from __future__ import annotations

import pytest

from deepcovid_edge.archive.cluster.plan import LEAST_FREE_CPUS, ActorPlan, Node, plan_actors
from deepcovid_edge.errors import UsageError

TWO_CORES = [Node(2)]
BIG = [Node(64), Node(64), Node(16)]


@pytest.mark.parametrize(
    ("nodes", "plan"),
    [
        (TWO_CORES, ActorPlan(1, 2, 1.0)),
        ([Node(1)], ActorPlan(1, 1, 0.5)),
        (BIG, ActorPlan(36, 4, 3.0)),
        ([Node(8), Node(2)], ActorPlan(5, 2, 1.0)),
    ],
)
def test_every_cpu_has_a_thread(nodes: list[Node], plan: ActorPlan) -> None:
    found = plan_actors(nodes, sum(node.cpus for node in nodes))
    assert found == plan
    assert found.actors * found.threads <= sum(node.cpus for node in nodes)


@pytest.mark.parametrize("nodes", [TWO_CORES, [Node(1)], BIG, [Node(3), Node(5)]])
@pytest.mark.parametrize("threads", [None, 1])
def test_a_plan_never_reserves_every_cpu(nodes: list[Node], threads: int | None) -> None:
    free = sum(node.cpus for node in nodes)
    plan = plan_actors(nodes, free, threads=threads)
    assert plan.actors * plan.cpus <= free - LEAST_FREE_CPUS


@pytest.mark.parametrize(("actors", "threads"), [(3, 1), (2, 2), (0, 1), (1, 3)])
def test_a_plan_that_would_fill_the_cluster_is_an_error(actors: int, threads: int) -> None:
    with pytest.raises(UsageError, match="fill the cluster"):
        plan_actors(TWO_CORES, 2.0, actors=actors, threads=threads)


def test_cpus_that_other_jobs_hold_are_not_planned_with() -> None:
    assert plan_actors(BIG, 10.0).actors == 3
    with pytest.raises(UsageError, match=r"0\.25 CPUs are free"):
        plan_actors(TWO_CORES, 0.25)


def test_a_gpu_has_an_actor_with_the_cpus_beside_it() -> None:
    plan = plan_actors([Node(16, 2), Node(8)], 24.0, on_gpu=True)
    assert plan == ActorPlan(2, 8, 7.0, 1.0)
    with pytest.raises(UsageError, match="no GPU"):
        plan_actors(TWO_CORES, 2.0, on_gpu=True)
