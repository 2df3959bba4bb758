"""The watch for changed images: it stays silent by chance, and says what changed where."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from cart_store import RUN, Store, record_of

from deepcovid_edge.cart.page.statistics import read_statistics
from deepcovid_edge.cart.store.ledger import LedgerBusyError
from deepcovid_edge.cart.work.drift import ALERT_KEY, DriftWatch, Sample, compare, significant

NOW = datetime.now(timezone.utc)
OLD, NEW = NOW - timedelta(days=60), NOW - timedelta(days=2)


class Images:
    """Writes results straight into the ledger."""

    def __init__(self, store: Store) -> None:
        self.store, self.number = store, 0
        self.random = np.random.default_rng(5)

    def add(
        self,
        count: int,
        *,
        at: datetime,
        shift: float = 0.0,
        refused: float = 0.0,
        device: str = "",
        model: str = "m",
    ) -> None:
        with self.store.ledger.transaction():
            for _ in range(count):
                self._add_one(at, shift, refused, device, model)

    def _add_one(self, at: datetime, shift: float, refused: float, device: str, model: str) -> None:
        self.number += 1
        when = (at + timedelta(seconds=self.number)).isoformat(timespec="milliseconds")
        image = {
            "content_sha256": f"{self.number:064}",
            "suffix": ".dcm",
            "device": device,
            "bytes": 1,
            "source": "ae",
            "received_utc": when,
            "boot_id": "",
            "clock_ok": 1,
            "state": "assessed",
        }
        is_refused = self.random.uniform() < refused
        score = None if is_refused else float(self.random.beta(2, 8) + shift)
        result = {
            "image_id": self.store.ledger.insert("image", image),
            "model_sha256": model,
            "record": json.dumps(record_of(score, replace(RUN, model_sha256=model))),
            "made_utc": when,
        }
        self.store.ledger.insert("result", result)


def told(store: Store) -> list[str]:
    DriftWatch(store.ledger).look()
    row = store.ledger.row("SELECT * FROM alert WHERE key = ?", ALERT_KEY)
    if row is None:
        return []
    assert row["code"] == "images_changed"
    detail = json.loads(row["detail"])
    assert "first 200 results" in detail["reference"]
    return list(detail["words"])


def test_the_same_images_tell_nothing(store: Store) -> None:
    images = Images(store)
    images.add(200, at=OLD, refused=0.05, device="A")
    images.add(150, at=NEW, refused=0.05, device="A")
    assert told(store) == []


def test_other_scores_are_told_and_over_when_they_are(store: Store) -> None:
    images = Images(store)
    images.add(200, at=OLD)
    images.add(100, at=NEW, shift=0.15)
    (words,) = told(store)
    assert words.startswith("The score of images is distributed in another way: distance 0.")
    store.ledger.rows("UPDATE result SET made_utc = ? WHERE id > 200", OLD.isoformat())
    assert told(store) == [words]  # no image of this week: nothing proves that it is over
    images.add(100, at=NEW)
    assert told(store) == []


def test_the_outcome_of_the_last_look_stays_when_the_alert_is_acknowledged(store: Store) -> None:
    images = Images(store)
    images.add(200, at=OLD)
    images.add(100, at=NEW, shift=0.15)
    words = told(store)
    store.ledger.clear_alert(ALERT_KEY)
    shown = read_statistics(store.ledger).drift
    assert (shown.state, [*shown.words]) == ("changed", words)
    store.ledger.rows("UPDATE result SET made_utc = ? WHERE id > 200", OLD.isoformat())
    images.add(100, at=NEW)
    assert told(store) == []
    assert read_statistics(store.ledger).drift.state == "unchanged"


def test_more_images_not_assessed_are_told_in_numbers(store: Store) -> None:
    images = Images(store)
    images.add(200, at=OLD, refused=0.02)
    images.add(120, at=NEW, refused=0.3)
    (words,) = told(store)
    assert words.startswith("More images are not assessed: ")
    assert "instead of" in words


def test_one_changed_device_of_two_is_named(store: Store) -> None:
    images = Images(store)
    for device in ("Maker A", "Maker B"):
        images.add(100, at=OLD, device=device)
    images.add(120, at=OLD, device="Maker A")
    images.add(120, at=OLD, device="Maker B")
    images.add(80, at=NEW, device="Maker A")
    images.add(80, at=NEW, device="Maker B", shift=0.2)
    words = told(store)
    assert any("of the device `Maker B`" in line for line in words)
    assert "Of 2 devices `Maker B` alone has changed." in words
    assert not any("`Maker A`" in line for line in words)


def test_devices_that_all_change_and_a_new_one_are_told(store: Store) -> None:
    images = Images(store)
    for device in ("Maker A", "Maker B"):
        images.add(220, at=OLD, device=device)
    for device in ("Maker A", "Maker B"):
        images.add(60, at=NEW, device=device, shift=0.25)
    images.add(5, at=NEW, device="Maker C", shift=0.25)
    words = told(store)
    assert "Every device has changed: it may be the patients, or the processing." in words
    assert "The device `Maker C` took no image of the reference." in words


@pytest.mark.parametrize(("before", "week"), [(200, 49), (49, 0)])
def test_few_images_prove_nothing(store: Store, before: int, week: int) -> None:
    images = Images(store)
    images.add(before, at=OLD)
    images.add(week, at=NEW, shift=0.5)
    assert told(store) == []


def test_another_model_has_a_reference_of_its_own(store: Store) -> None:
    images = Images(store)
    images.add(200, at=OLD)
    images.add(120, at=NEW, shift=0.4, model="other")
    assert told(store) == []


def test_it_looks_once_a_day(store: Store) -> None:
    images, watch = Images(store), DriftWatch(store.ledger)
    images.add(200, at=OLD)
    watch.look()
    images.add(100, at=NEW, shift=0.3)
    watch.look()
    assert not store.ledger.rows("SELECT * FROM alert")


def test_a_ledger_that_another_role_holds_skips_no_day(store: Store) -> None:
    images, watch = Images(store), DriftWatch(store.ledger)
    images.add(200, at=OLD)
    images.add(100, at=NEW, shift=0.3)
    store.ledger._connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(store.ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerBusyError):
        watch.look()
    other.close()
    watch.look()
    assert store.ledger.row("SELECT 1 FROM alert WHERE key = ?", ALERT_KEY)


def test_false_alarms_are_rare_and_small_changes_of_many_images_are_none() -> None:
    random = np.random.default_rng(11)

    def sample(count: int, centre: float) -> Sample:
        made = Sample()
        for score in random.normal(centre, size=count):
            made.add(record_of(None if random.uniform() < 0.05 else score), "")
        return made

    alarms = sum(bool(significant(compare(sample(200, 0), sample(70, 0)))) for _ in range(100))
    assert alarms <= 4
    tested = compare(sample(200, 0.0), sample(5000, 0.3))
    assert min(one.p for one in tested) < 0.001
    assert significant(tested) == []


def test_results_of_a_clock_that_was_ahead_are_not_of_this_week(store: Store) -> None:
    """They would be of every week until that year."""
    images = Images(store)
    images.add(200, at=OLD)
    images.add(400, at=NOW + timedelta(days=3650))
    images.add(60, at=NEW, shift=0.4)
    assert len(told(store)) == 1
    store.ledger.rows("UPDATE result SET made_utc = ? WHERE id > 600", OLD.isoformat())
    store.ledger.clear_alert(ALERT_KEY)
    images.add(30, at=NEW, shift=0.4)
    assert told(store) == [], "too few of this week"
