"""Signs of life: who runs, who does not, and since when."""

from __future__ import annotations

import json
import time

import pytest
from cart_store import Store

from deepcovid_edge.cart import heartbeat
from deepcovid_edge.cart.heartbeat import RECEIVER, WORKER, Heartbeat, runs, silent_since
from deepcovid_edge.cart.store.clock import boot_id


def test_before_the_cart_ran_first_nobody_is_missed(store: Store) -> None:
    assert not runs(store.ledger, RECEIVER)
    assert silent_since(store.ledger) == {}


def test_a_role_that_never_ran_is_missed_once_the_other_one_did(store: Store) -> None:
    Heartbeat(store.ledger, WORKER).beat()
    assert runs(store.ledger, WORKER)
    assert set(silent_since(store.ledger)) == {RECEIVER}
    Heartbeat(store.ledger, RECEIVER).beat()
    assert silent_since(store.ledger) == {}


def test_a_role_is_missed_a_minute_after_it_last_said_that_it_runs(store: Store) -> None:
    for key, seconds in ((RECEIVER, 61.0), (WORKER, 59.0)):
        said = [time.time() - seconds, boot_id(), time.monotonic() - seconds]
        store.ledger.set_meta(key, json.dumps(said))
    (since,) = silent_since(store.ledger).values()
    assert not runs(store.ledger, RECEIVER)
    assert runs(store.ledger, WORKER)
    assert since.endswith("+00:00")


def test_the_ledger_is_written_every_five_seconds_at_most(store: Store) -> None:
    heart = Heartbeat(store.ledger, WORKER)
    assert [heart.beat() for _ in range(3)] == [True, False, False]
    heart._next -= heartbeat._BEAT_SECONDS
    assert heart.beat()


@pytest.mark.parametrize("step", [-86_400.0, 86_400.0])
def test_a_step_of_the_clock_ends_no_role(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    for key in (RECEIVER, WORKER):
        Heartbeat(store.ledger, key).beat()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step)
    assert silent_since(store.ledger) == {}


def test_a_role_of_an_earlier_start_of_the_machine_does_not_run(store: Store) -> None:
    """Its sign may be of a moment ago: the monotonic clock began anew."""
    Heartbeat(store.ledger, RECEIVER).beat()
    store.ledger.set_meta(WORKER, json.dumps([time.time(), "another", time.monotonic()]))
    assert set(silent_since(store.ledger)) == {WORKER}
