"""Write bench-vN.json: a small result of `bench` in the schema version of today, N.

    python tests/golden/make_bench.py

Run once when the version is new; files of older versions stay as their own version wrote them.
Times are drawn, not measured, and the device is made up.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deepcovid_edge.benchmarking.results import EVENTS, HOST, SCHEMA_VERSION, Part, Result, Run
from deepcovid_edge.benchmarking.samples import Query, Samples

HEADER = {
    "measured_at": "2026-01-01T00:00:00+00:00",
    "device": {"processor": "Golden CPU", "cores": 2, "gpus": [], "memory_mib": 4096},
    "versions": {"deepcovid-edge": "0.1.0", "python": "3.10.0"},
    "environment": {},
    "model": {
        "name": "golden",
        "precision": "fp32",
        "backend": "onnxruntime-cpu",
        "sha256": "0" * 64,
        "input": {"height": 224, "width": 224, "resize": "centre_crop", "interpolation": "area"},
        "equivalence": "the reference itself",
    },
    "data": {"name": "golden", "images": 2, "sha256": "0" * 64},
    "settings": {"seconds": 0.1, "warm_up": 0.0},
    "start": {"load_ms": 40.0, "first_result_ms": 43.0},
    "memory": {"peak_rss_mib": 100.0, "gpu_before_mib": None, "gpu_peak_mib": None},
}
WATCHED = {
    "cpu_mhz": {"first": 3000.0, "last": 3000.0, "min": 3000.0, "max": 3000.0, "median": 3000.0},
    "slowed": [],
    "energy": {"joules": 1.5, "by": "power of VDD_IN over time"},
    "others_share": 0.01,
    "stolen_share": 0.0,
}


def samples(seed: int, count: int, images: int, *, waiting: bool) -> Samples:
    draw = np.random.default_rng(seed)
    queries, now = [], 0
    for number in range(count):
        waited = int(draw.integers(0, 500_000)) if waiting else 0
        ended = now + int(draw.integers(2_000_000, 2_100_000))
        queries.append(Query(now - waited, now, ended, number % 2, images))
        now = ended + 600_000
    return Samples.of(queries)


def result() -> Result:
    """One run of each scenario."""
    times = np.linspace(1.0, 1.01, 40)
    return Result(
        HEADER,
        tuple(
            Run(
                scope=scope,
                scenario=scenario,
                batch=images,
                lanes=1,
                samples=samples(number, 70, images, waiting=rate is not None),
                warm_up=samples(number + 10, 2, images, waiting=False),
                parts={part: Part(clock, times)},
                watched=WATCHED,
                rate=rate,
                deadline_ms=500.0 if rate else None,
                unserved=5 if rate else 0,
                invocations=(40, 30) if number == 0 else (),
            )
            for number, (scope, scenario, images, rate, part, clock) in enumerate(
                (
                    ("network", "single-stream", 1, None, "compute", EVENTS),
                    ("end-to-end", "multi-stream", 8, None, "read", HOST),
                    ("end-to-end", "offline", 2, None, "read", HOST),
                    ("network", "server", 1, 50.0, "compute", EVENTS),
                )
            )
        ),
    )


if __name__ == "__main__":
    path = Path(__file__).with_name(f"bench-v{SCHEMA_VERSION}.json")
    path.write_text(result().to_json(), encoding="utf-8")
    print(path.name)
