"""What Prometheus reads: counts by state, code and destination; no name, no UID.

Everything is read from the ledger when it is asked for, so three processes need no shared counters.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.cart.heartbeat import RECEIVER, runs
from deepcovid_edge.cart.page.health import assessor_works, free_bytes, roles_are_mute
from deepcovid_edge.cart.status import read_status
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.spool import Spool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class CartCollector:
    """Reads the ledger at each scrape."""

    def __init__(self, config: CartConfig, ledger: Ledger, spool: Spool) -> None:
        self._config, self._ledger, self._spool = config, ledger, spool

    def collect(self) -> Iterable[Metric]:
        """The metrics now."""
        status = read_status(self._config, self._ledger)
        yield _by("images", "Images by state.", "state", status.images)
        yield _by("results", "Results by decision.", "decision", status.decisions)
        yield _by(
            "not_assessed", "Images that were not assessed, by reason.", "reason", self._reasons()
        )
        queue = GaugeMetricFamily(
            "cart_outbox", "Objects by destination and state.", labels=["destination", "state"]
        )
        for name, states in status.queues.items():
            for state, count in states.items():
                queue.add_metric([name, state], count)
        yield queue
        alerts: dict[str, int] = {}
        for alert in status.alerts:
            alerts[alert.code.code] = alerts.get(alert.code.code, 0) + 1
        yield _by("alerts", "Alerts that are not over, by code.", "code", alerts)
        yield _one("disk_free_bytes", "Room on the disk of the spool.", free_bytes(self._spool))
        yield from self._alive()
        yield _one("scrape_seconds", "Time of this scrape, since 1970.", time.time())

    def _alive(self) -> Iterable[Metric]:
        """What works; nothing while the disk keeps every role from saying so."""
        if not roles_are_mute(self._ledger, self._spool):
            ledger = self._ledger
            yield _one("receiver_alive", "Whether the receiver runs.", runs(ledger, RECEIVER))
            yield _one("assessor_alive", "Whether the assessor works.", assessor_works(ledger))

    def _reasons(self) -> dict[str, int]:
        rows = self._ledger.rows(
            "SELECT reason, count(*) AS n FROM image WHERE reason IS NOT NULL GROUP BY reason"
        )
        return {row["reason"]: row["n"] for row in rows}


def _by(name: str, words: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"cart_{name}", words, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _one(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"cart_{name}", words, value=value)


def metrics(config: CartConfig, ledger: Ledger, spool: Spool) -> bytes:
    """The metrics in the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(CartCollector(config, ledger, spool))
    return generate_latest(registry)
