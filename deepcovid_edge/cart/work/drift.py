"""Watches whether the images have changed: a new detector, new processing, other patients.

Once a day the results of the last seven days are compared with the first 200 that the model gave
here: a site file holds no scores of single images, so these are the reference, and the alert says
so. Results of another model or site file are not compared.

| what | test |
| --- | --- |
| score | two-sample test of Smirnov, exact (`two_samples.smirnov_p`) |
| share of images that were not assessed | Fisher's exact test of two proportions |

The p-values of all tests of a day, of all images and of each device, are corrected together (Holm).
The alert names a change whose corrected p-value is below 0.01 *and* that is large: a distance of
0.2 between the distributions, or 5 images in 100 more or fewer not assessed. Of thousands of images
a week every difference would be significant. Fewer than 50 images a week, or in the reference,
prove nothing: an alert then stays as it is.

Nothing here reads who an image is of; a device is what the header says: manufacturer, model,
station.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.store.drift_window import (
    LEAST_RESULTS,
    OUTCOME_KEY,
    REFERENCE_RESULTS,
    week_until,
)
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.schema import LAST_FIRST
from deepcovid_edge.cart.work.two_samples import fisher_p, holm, smirnov_distance, smirnov_p
from deepcovid_edge.device.service import log

LEVEL = 0.01
"""Chance of a false alarm in one comparison, of all its tests together."""
LEAST_DISTANCE, LEAST_CHANGE = 0.2, 0.05
LOOK_SECONDS = 86400.0
ALERT_KEY = "images changed"
_SCORE, _REFUSED = "score", "not assessed"
_ALL = ""


@dataclass
class Sample:
    """Results in numbers.

    Attributes:
        scores: Probabilities of the images that were assessed.
        not_assessed: How many were not assessed.
        images: How many there are.
        devices: Device -> number of images.
    """

    scores: list[float] = field(default_factory=list)
    not_assessed: int = 0
    images: int = 0
    devices: Counter[str] = field(default_factory=Counter)

    def add(self, record: Mapping[str, Any], device: str) -> None:
        """Count a record."""
        self.images += 1
        self.devices[device] += 1
        if record["probability"] is None:
            self.not_assessed += 1
        else:
            self.scores.append(record["probability"])


@dataclass(frozen=True)
class Change:
    """How one figure of this week differs from the reference.

    Attributes:
        device: Of this device alone; empty for all images.
        what: `score` or `not assessed`.
        before: Share of the reference that was not assessed; None of a score.
        now: The same of this week.
        effect: Distance of the distributions, or of the shares; 0 to 1.
        p: Of the test; corrected once all are known.
    """

    device: str
    what: str
    before: float | None
    now: float | None
    effect: float
    p: float

    @property
    def is_large(self) -> bool:
        """Whether it is large enough to matter."""
        return self.effect >= (LEAST_CHANGE if self.what == _REFUSED else LEAST_DISTANCE)

    def words(self) -> str:
        """One sentence."""
        of = f"of the device `{self.device}` " if self.device else ""
        if self.before is not None and self.now is not None:
            more = "More" if self.now > self.before else "Fewer"
            found = f"{self.now:.0%} instead of {self.before:.0%}"
            return f"{more} images {of}are not assessed: {found} (p {_p_text(self.p)})."
        return (
            f"The score of images {of}is distributed in another way: distance {self.effect:.2f} "
            f"(p {_p_text(self.p)})."
        )


def compare(reference: Sample, week: Sample, device: str = _ALL) -> list[Change]:
    """Compare results; nothing where either has too few.

    Returns:
        Every comparison with its own p-value, large or not.
    """
    if min(reference.images, week.images) < LEAST_RESULTS:
        return []
    counts = (reference.not_assessed, reference.images), (week.not_assessed, week.images)
    shares = counts[0][0] / counts[0][1], counts[1][0] / counts[1][1]
    effect = abs(shares[1] - shares[0])
    found = [Change(device, _REFUSED, *shares, effect, fisher_p(*counts))]
    before, now = np.array(reference.scores), np.array(week.scores)
    if min(len(before), len(now)) >= LEAST_RESULTS:
        distance = smirnov_distance(before, now)
        p = smirnov_p(distance, len(before), len(now))
        found.append(Change(device, _SCORE, None, None, distance, p))
    return found


def significant(changes: Sequence[Change]) -> list[Change]:
    """The changes that are large, and no chance, of all that were tested together."""
    corrected = holm([one.p for one in changes])
    return [
        Change(one.device, one.what, one.before, one.now, one.effect, p)
        for one, p in zip(changes, corrected, strict=True)
        if p < LEVEL and one.is_large
    ]


class DriftWatch:
    """Raises and clears the alert `images_changed`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._next_look = 0.0

    def look(self) -> None:
        """Compare, if that was not done within a day.

        Raises:
            LedgerBusyError: The ledger cannot be read or written; the next call compares.
        """
        if time.monotonic() < self._next_look:
            return
        newest = self._ledger.row(
            f"SELECT model_sha256, site_sha256 FROM result ORDER BY {LAST_FIRST} LIMIT 1"
        )
        if newest is not None:
            self._compare(newest["model_sha256"], newest["site_sha256"])
        self._next_look = time.monotonic() + LOOK_SECONDS

    def _compare(self, model: str, site: str) -> None:
        reference, last = self._reference(model, site)
        week = self._week(model, site, last)
        tested = compare(reference, week)
        if not tested:
            return
        devices = sorted(name for name, n in week.devices.items() if n >= LEAST_RESULTS and name)
        for device in devices if len(week.devices) > 1 else ():
            own, last = self._reference(model, site, device)
            tested += compare(own, self._week(model, site, last, device), device)
        changes = significant(tested)
        log("drift", images=week.images, tests=len(tested), changes=len(changes))
        words = _words(changes, reference, week, {one.device for one in tested if one.device})
        outcome = {"model": model, "site": site, "words": words}
        with self._ledger.transaction():
            self._ledger.set_meta(OUTCOME_KEY, json.dumps(outcome))
            if words:
                self._tell(words, reference, week)
            else:
                self._ledger.clear_alert(ALERT_KEY)

    def _tell(self, words: list[str], reference: Sample, week: Sample) -> None:
        self._ledger.raise_alert(
            ALERT_KEY,
            AlertCode.IMAGES_CHANGED.code,
            words=words,
            images=week.images,
            reference=f"the first {reference.images} results of this model; "
            "a site file holds no scores of images",
        )

    def _reference(self, model: str, site: str, device: str = _ALL) -> tuple[Sample, int]:
        """The first results of a model, and the number of the last of them."""
        rows = self._rows(model, site, "", (), device, f" LIMIT {REFERENCE_RESULTS}")
        return _sample(rows), rows[-1]["id"] if rows else 0

    def _week(self, model: str, site: str, after: int, device: str = _ALL) -> Sample:
        """The results of the last seven days that are not in the reference."""
        within = week_until(datetime.now(timezone.utc))
        where = " AND result.id > ? AND made_utc BETWEEN ? AND ?"
        return _sample(self._rows(model, site, where, (after, *within), device))

    def _rows(
        self,
        model: str,
        site: str,
        where: str,
        values: tuple[object, ...],
        device: str,
        limit: str = "",
    ) -> list[Any]:
        if device:
            where, values = f"{where} AND device = ?", (*values, device)
        return self._ledger.rows(
            "SELECT result.id AS id, record, device FROM result JOIN image ON image.id = image_id"
            f" WHERE model_sha256 = ? AND site_sha256 = ?{where} ORDER BY result.id{limit}",
            *(model, site, *values),
        )


def _words(
    changes: Sequence[Change], reference: Sample, week: Sample, tested: set[str]
) -> list[str]:
    """What has changed, in sentences; nothing where nothing has."""
    if not changes:
        return []
    words = [one.words() for one in changes]
    changed = {one.device for one in changes if one.device}
    new = sorted(name for name in week.devices.keys() - reference.devices.keys() if name)
    if len(changed) == 1 and len(tested) > 1:
        words.append(f"Of {len(tested)} devices `{min(changed)}` alone has changed.")
    elif changed and changed == tested and len(tested) > 1:
        words.append("Every device has changed: it may be the patients, or the processing.")
    return [*words, *(f"The device `{name}` took no image of the reference." for name in new)]


def _sample(rows: Sequence[Any]) -> Sample:
    sample = Sample()
    for row in rows:
        sample.add(json.loads(row["record"]), row["device"])
    return sample


def _p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"
