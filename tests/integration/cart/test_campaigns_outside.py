"""Faults around a cart, of its PACS, its network and its clock: nothing is lost or altered.

As in `test_campaigns`, each test is a few cycles of what `make campaigns` runs hundreds of.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")

from campaigns.audit import assert_kept
from campaigns.clock import JUMPS, clock, why_no_clock
from campaigns.destination import FAULTS, destination
from campaigns.network import network

SEED = 7
pytestmark = pytest.mark.timeout(600)
needs_clock = pytest.mark.skipif(bool(why_no_clock()), reason=why_no_clock() or "clock")


def test_nothing_is_lost_whatever_the_pacs_does(tmp_path: Path) -> None:
    counts = destination(tmp_path, len(FAULTS), SEED)
    assert_kept(counts)
    assert set(counts.detail["faults"]) == set(FAULTS)


def test_nothing_is_lost_by_networks(tmp_path: Path) -> None:
    assert_kept(network(tmp_path, 10, SEED))


@needs_clock
def test_nothing_is_lost_by_a_clock_that_jumps(tmp_path: Path) -> None:
    assert_kept(clock(tmp_path, 2 * len(JUMPS), SEED))
