"""The watch for changed films: it stays silent by chance, and says what changed where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cart_outbox import config_for
from cart_store import Store, open_store

from deepcovid_edge.cart.work.drift import ALERT_KEY, DriftWatch, Sample, compare, significant

NOW = datetime.now(timezone.utc)
OLD, NEW = NOW - timedelta(days=60), NOW - timedelta(days=2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "spool") as opened:
        yield opened


class Films:
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
        ood: float | None = None,
    ) -> None:
        with self.store.ledger.transaction():
            for _ in range(count):
                self._add_one(at, shift, refused, device, model, ood)

    def _add_one(
        self, at: datetime, shift: float, refused: float, device: str, model: str, ood: float | None
    ) -> None:
        self.number += 1
        when = (at + timedelta(seconds=self.number)).isoformat(timespec="milliseconds")
        film = {
            "content_sha256": f"{self.number:064}",
            "suffix": ".dcm",
            "device": device,
            "bytes": 1,
            "source": "ae",
            "received_utc": when,
            "boot_id": "",
            "clock_ok": 1,
            "state": "judged",
        }
        is_refused = self.random.uniform() < refused
        record: dict[str, Any] = {
            "reason": "E_BLANK" if is_refused else None,
            "probability": None if is_refused else float(self.random.beta(2, 8) + shift),
        }
        if ood is not None and not is_refused:
            record["ood_scores"] = {"features": float(self.random.normal(ood))}
        result = {
            "film_id": self.store.ledger.insert("film", film),
            "model_sha256": model,
            "record": json.dumps(record),
            "made_utc": when,
        }
        self.store.ledger.insert("result", result)


def told(store: Store) -> list[str]:
    DriftWatch(config_for(store), store.ledger).look()
    row = store.ledger.row("SELECT * FROM alert WHERE key = ?", ALERT_KEY)
    if row is None:
        return []
    assert row["code"] == "films_changed"
    detail = json.loads(row["detail"])
    assert "first 200 results" in detail["reference"]
    return list(detail["words"])


def test_the_same_films_tell_nothing(store: Store) -> None:
    films = Films(store)
    films.add(200, at=OLD, refused=0.05, device="A", ood=0.0)
    films.add(150, at=NEW, refused=0.05, device="A", ood=0.0)
    assert told(store) == []


def test_other_scores_are_told_and_over_when_they_are(store: Store) -> None:
    films = Films(store)
    films.add(200, at=OLD)
    films.add(100, at=NEW, shift=0.15)
    (words,) = told(store)
    assert words.startswith("The score of films is distributed in another way: distance 0.")
    store.ledger.rows("UPDATE result SET made_utc = ? WHERE id > 200", OLD.isoformat())
    assert told(store) == [words]  # no film of this week: nothing proves that it is over
    films.add(100, at=NEW)
    assert told(store) == []


def test_more_films_not_assessed_are_told_in_numbers(store: Store) -> None:
    films = Films(store)
    films.add(200, at=OLD, refused=0.02)
    films.add(120, at=NEW, refused=0.3)
    (words,) = told(store)
    assert words.startswith("More films are not assessed: ")
    assert "instead of" in words


def test_an_out_of_distribution_score_is_watched_where_the_record_has_one(store: Store) -> None:
    films = Films(store)
    films.add(200, at=OLD, ood=0.0)
    films.add(100, at=NEW, ood=1.5)
    (words,) = told(store)
    assert "out-of-distribution score `features`" in words


def test_one_changed_device_of_two_is_named(store: Store) -> None:
    films = Films(store)
    for device in ("Maker A", "Maker B"):
        films.add(100, at=OLD, device=device)
    films.add(120, at=OLD, device="Maker A")
    films.add(120, at=OLD, device="Maker B")
    films.add(80, at=NEW, device="Maker A")
    films.add(80, at=NEW, device="Maker B", shift=0.2)
    words = told(store)
    assert any("of the device `Maker B`" in line for line in words)
    assert "Of 2 devices `Maker B` alone has changed." in words
    assert not any("`Maker A`" in line for line in words)


def test_devices_that_all_change_and_a_new_one_are_told(store: Store) -> None:
    films = Films(store)
    for device in ("Maker A", "Maker B"):
        films.add(220, at=OLD, device=device)
    for device in ("Maker A", "Maker B"):
        films.add(60, at=NEW, device=device, shift=0.25)
    films.add(5, at=NEW, device="Maker C", shift=0.25)
    words = told(store)
    assert "Every device has changed: it may be the patients, or the processing." in words
    assert "The device `Maker C` took no film of the reference." in words


@pytest.mark.parametrize(("before", "week"), [(200, 49), (49, 0)])
def test_few_films_prove_nothing(store: Store, before: int, week: int) -> None:
    films = Films(store)
    films.add(before, at=OLD)
    films.add(week, at=NEW, shift=0.5)
    assert told(store) == []


def test_another_model_has_a_reference_of_its_own(store: Store) -> None:
    films = Films(store)
    films.add(200, at=OLD)
    films.add(120, at=NEW, shift=0.4, model="other")
    assert told(store) == []


def test_it_looks_once_a_day(store: Store) -> None:
    films, watch = Films(store), DriftWatch(config_for(store), store.ledger)
    films.add(200, at=OLD)
    watch.look()
    films.add(100, at=NEW, shift=0.3)
    watch.look()
    assert not store.ledger.rows("SELECT * FROM alert")


def test_false_alarms_are_rare_and_small_changes_of_many_films_are_none() -> None:
    random = np.random.default_rng(11)

    def sample(count: int, centre: float) -> Sample:
        made = Sample()
        for value, other in random.normal(centre, size=(count, 2)):
            reason = "E_BLANK" if random.uniform() < 0.05 else None
            scores = {"probability": value, "ood_scores": {"x": other}}
            made.add({"reason": reason, **({} if reason else scores)}, "")
        return made

    alarms = sum(bool(significant(compare(sample(200, 0), sample(70, 0)))) for _ in range(100))
    assert alarms <= 4
    tested = compare(sample(200, 0.0), sample(5000, 0.35))
    assert min(one.p for one in tested) < 0.001
    assert significant(tested) == []
