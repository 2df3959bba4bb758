"""What is measured, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from deepcovid_edge.errors import UsageError

SINGLE, MULTI, OFFLINE, SERVER = "single-stream", "multi-stream", "offline", "server"
SCENARIOS = (SINGLE, MULTI, OFFLINE, SERVER)
"""After MLPerf Inference: one image at a time; several at a time; as fast as it goes; arrivals at
random moments (Poisson) at a rate."""
NETWORK, END_TO_END = "network", "end-to-end"
SCOPES = (NETWORK, END_TO_END)
"""Prepared batch to logits, in host memory; file to record, as `infer` does it."""
_MOST_IMAGES = 1024
_HIGHEST_RATE = 100_000.0


@dataclass(frozen=True)
class BenchSettings:
    """What is measured, and for how long.

    Attributes:
        scenarios: Of `SCENARIOS`, in the order in which they run.
        scopes: Of `SCOPES`.
        seconds: A run lasts at least so long.
        queries: And has at least so many samples.
        warm_up: Seconds before the samples that count; they are kept apart.
        streams: Images that come at once in `multi-stream` (MLPerf: 8).
        batch_size: Images an inference in `offline`; None for what `infer` takes.
        workers: Threads that work in `offline` and `server`; None for what `infer` takes.
        threads: Threads inside one inference.
        rate: Images that arrive a second in `server`.
        deadline_ms: Until when an image of `server` must have its result, milliseconds.
        seed: Of the moments of arrival.
    """

    scenarios: tuple[str, ...] = (SINGLE, MULTI, OFFLINE)
    scopes: tuple[str, ...] = SCOPES
    seconds: float = 5.0
    queries: int = 64
    warm_up: float = 1.0
    streams: int = 8
    batch_size: int | None = None
    workers: int | None = None
    threads: int = 1
    rate: float | None = None
    deadline_ms: float = 500.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_names("--scenario", self.scenarios, SCENARIOS)
        _check_names("--scope", self.scopes, SCOPES)
        _check("--seconds", self.seconds, 0, 86_400)
        _check("--queries", self.queries, 1, 10_000_000)
        _check("--warm-up", self.warm_up, 0, 3600)
        _check("--streams", self.streams, 1, _MOST_IMAGES)
        _check("--batch-size", self.batch_size, 1, _MOST_IMAGES)
        _check("--workers", self.workers, 1, 256)
        _check("--threads", self.threads, 1, 1024)
        _check("--rate", self.rate, 1e-3, _HIGHEST_RATE)
        _check("--deadline", self.deadline_ms, 1e-3, 3.6e6)
        if (SERVER in self.scenarios) != (self.rate is not None):
            raise UsageError(
                "--rate: the server scenario needs the images that arrive a second, and no other "
                "scenario has them: give both --scenario server and --rate 20, or neither"
            )


def _check_names(flag: str, got: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not got or not set(got) <= set(known) or len(set(got)) != len(got):
        raise UsageError(f"{flag}: got {', '.join(got)!r}, expected some of {', '.join(known)}")


def _check(flag: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise UsageError(f"{flag}: got {value}, expected {low:g} to {high:g}")
