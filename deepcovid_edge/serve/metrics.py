"""What Prometheus reads: counts by status, decision and reason; no name, no hash."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from deepcovid_edge.serve.admission import Admission
from deepcovid_edge.serve.assessors.pool import Assessors
from deepcovid_edge.serve.assessors.readiness import Readiness
from deepcovid_edge.serve.listener import ConnectionCounts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The metrics of a server."""

    def __init__(
        self,
        admission: Admission,
        assessors: Assessors,
        readiness: Readiness,
        connections: ConnectionCounts,
    ) -> None:
        self._admission, self._assessors = admission, assessors
        self._readiness, self._connections = readiness, connections
        self._registry = CollectorRegistry(auto_describe=False)
        self._answers = Counter(
            "serve_answers",
            "Requests for a record, by status.",
            ["status"],
            registry=self._registry,
        )
        self._records = Counter(
            "serve_records",
            "Records, by decision, or by the reason why there is none.",
            ["result"],
            registry=self._registry,
        )
        self._bytes = Counter("serve_image_bytes", "Bytes of images.", registry=self._registry)
        self._seconds = Histogram(
            "serve_answer_seconds",
            "From a whole request to its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        # To find a counter by its label takes as long as to count.
        self._answer = functools.cache(self._answers.labels)
        self._record = functools.cache(self._records.labels)
        self._registry.register(self)

    def answered(self, status: int) -> None:
        """Count an answer."""
        self._answer(str(status)).inc()

    def assessed(self, result: str, size: int, seconds: float) -> None:
        """Count a record.

        Args:
            result: Its decision, or its reason.
            size: Bytes of the image.
            seconds: From the whole request to the record.
        """
        self._record(result).inc()
        self._bytes.inc(size)
        self._seconds.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """What is read when it is asked for."""
        for name, words, value in (
            ("waiting", "Images that wait or are assessed.", self._admission.waiting),
            ("body_bytes", "Bytes of requests in memory.", self._admission.memory),
            (
                "ready",
                "Whether the last synthetic image was right.",
                self._readiness.is_ready,
            ),
            ("assessors", "Processes that assess.", self._assessors.count),
        ):
            yield GaugeMetricFamily(f"serve_{name}", words, value=float(value))
        counts: Any = self._connections
        for name, words, value in (
            ("assessor_restarts", "Processes that were started again.", self._assessors.restarts),
            ("connections_too_slow", "Connections that sent no request in time.", counts.too_slow),
            ("connections_pushed_out", "Connections that made room.", counts.pushed_out),
        ):
            yield CounterMetricFamily(f"serve_{name}", words, value=float(value))

    def text(self) -> bytes:
        """All of it in the text format of Prometheus."""
        return generate_latest(self._registry)
