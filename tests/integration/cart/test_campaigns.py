"""Faults against a whole cart: nothing is lost, judged twice or altered; without fsync it is.

Each test is a few cycles of what `make campaigns` runs hundreds of.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")

from campaigns.audit import Counts
from campaigns.clock import JUMPS, clock, why_no_clock
from campaigns.destination import FAULTS, destination
from campaigns.disks import why_no_disks
from campaigns.full import full
from campaigns.kill import kill
from campaigns.network import network
from campaigns.power import power, power_without_fsync
from campaigns.soak import ROLES, soak
from campaigns.throughput import throughput
from cart_peers import needs_dcmtk, needs_enclosure

SEED = 7
pytestmark = pytest.mark.timeout(600)
needs_disks = pytest.mark.skipif(bool(why_no_disks()), reason=why_no_disks() or "disks")
needs_clock = pytest.mark.skipif(bool(why_no_clock()), reason=why_no_clock() or "clock")


def assert_kept(counts: Counts) -> None:
    assert counts.acknowledged
    assert (counts.lost, counts.judged_twice, counts.other_bytes) == (0, 0, 0)
    assert counts.acknowledged == counts.sent
    assert counts.is_kept


def test_nothing_is_lost_by_sigkill(tmp_path: Path) -> None:
    counts = kill(tmp_path, 10, SEED)
    assert_kept(counts)
    assert sum(counts.detail["killed"].values()) == 10


@needs_disks
def test_nothing_is_lost_by_power_cuts(tmp_path: Path) -> None:
    counts = power(tmp_path, 4, SEED)
    assert_kept(counts)
    assert counts.quarantined == 0


@needs_disks
def test_without_fsync_power_cuts_lose_films(tmp_path: Path) -> None:
    counts = power_without_fsync(tmp_path, 1, SEED)
    assert counts.lost > 0


def test_nothing_is_lost_whatever_the_pacs_does(tmp_path: Path) -> None:
    counts = destination(tmp_path, len(FAULTS), SEED)
    assert_kept(counts)
    assert set(counts.detail["faults"]) == set(FAULTS)


@pytest.mark.slow
def test_nothing_is_lost_by_networks(tmp_path: Path) -> None:
    assert_kept(network(tmp_path, 10, SEED))


@needs_disks
def test_nothing_is_lost_on_a_full_disk_and_people_are_told(tmp_path: Path) -> None:
    counts = full(tmp_path, 4, SEED)
    assert_kept(counts)
    assert counts.quarantined == 0
    assert counts.detail["alerts"] >= 1
    assert counts.answers["0xA700"] >= 4


@needs_clock
def test_nothing_is_lost_by_a_clock_that_jumps(tmp_path: Path) -> None:
    assert_kept(clock(tmp_path, len(JUMPS), SEED))


@pytest.mark.slow
def test_memory_and_files_stay_flat(tmp_path: Path) -> None:
    figures = soak(tmp_path, 500, SEED)
    assert figures["is_kept"]
    assert figures["restarted"] == []
    for role in ROLES:
        assert figures["files"][role]["last"] <= figures["files"][role]["first"] + 4
        assert figures["slope_kb_a_film"][role] < 10


@pytest.mark.slow
@needs_dcmtk
@needs_enclosure
def test_the_receiver_is_a_third_as_fast_as_storescp_or_faster(tmp_path: Path) -> None:
    """The prototype received 4 films a second beside 10.4; four fifths of that are asked for."""
    figures = throughput(tmp_path, 3, SEED)
    assert figures["cart_to_storescp"]["median"] > 0.8 * 4 / 10.4
