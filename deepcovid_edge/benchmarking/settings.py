"""What is measured, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from deepcovid_edge.errors import UsageError

SINGLE, MULTI, OFFLINE, SERVER = "single-stream", "multi-stream", "offline", "server"
SCENARIOS = (SINGLE, MULTI, OFFLINE, SERVER)
"""After MLPerf Inference: one image at a time; several at a time; as fast as possible; arrivals at
random moments (Poisson) at a given rate."""
NETWORK, END_TO_END = "network", "end-to-end"
SCOPES = (NETWORK, END_TO_END)
"""From prepared batch to logits, in host memory; from file to record, as `infer` does it."""
_RANGES = {
    "seconds": (0, 86_400),
    "queries": (1, 10_000_000),
    "warm_up": (0, 3600),
    "streams": (1, 1024),
    "batch_size": (1, 1024),
    "workers": (1, 256),
    "threads": (1, 1024),
    "rate": (1e-3, 100_000),
    "deadline_ms": (1e-3, 3.6e6),
}


@dataclass(frozen=True)
class BenchSettings:
    """What is measured, and for how long.

    Attributes:
        scenarios: Some of `SCENARIOS`, in the order in which they run.
        scopes: Some of `SCOPES`.
        seconds: Minimum duration of each run.
        queries: Minimum number of samples of each run.
        warm_up: Seconds before the samples that count; warm-up samples are stored separately.
        streams: Images per query of `multi-stream` (MLPerf: 8).
        batch_size: Images per inference in `offline`; None for the choice of `infer`.
        workers: Threads in `offline` and `server`, and for the images of a query of `multi-stream`
            from file to record; None for the choice of `infer`.
        threads: Threads inside one inference.
        rate: Images per second that arrive in `server`.
        deadline_ms: Longest time from arrival to result in `server`, milliseconds.
        seed: Seed of the moments of arrival.
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
        for name, known in (("scenarios", SCENARIOS), ("scopes", SCOPES)):
            names = getattr(self, name)
            if not names or not set(names) <= set(known) or len(set(names)) != len(names):
                got, expected = ", ".join(names), ", ".join(known)
                raise UsageError(f"{name}: got {got!r}, expected some of {expected}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"{name}: got {value}, expected {low:g} to {high:g}")
        if (SERVER in self.scenarios) != (self.rate is not None):
            raise UsageError(
                f"rate: got {self.rate} with scenarios {', '.join(self.scenarios)}: the server "
                "scenario needs a rate, the others have none: give both or neither"
            )
