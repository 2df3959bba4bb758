"""What every benchmark here shares: medians, where results go, and what stands beside them."""

from __future__ import annotations

import datetime
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepcovid_edge import __version__
from deepcovid_edge.device import backend_facts, device_facts

RESULTS = Path(__file__).parent / "results"
SCHEMA_VERSION = 1


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Raw samples with their median and range."""
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "samples": list(samples),
    }


def device_name(facts: dict[str, Any]) -> str:
    """A folder name for a device: GPU, else cores and processor."""
    name = facts["gpus"][0] if facts["gpus"] else f"{facts['cores']}-core {facts['processor']}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def store(name: str, figures: dict[str, Any]) -> Path:
    """Write a result with the device and the versions that made it."""
    device = device_facts()
    content = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": name,
        "measured_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {"deepcovid-edge": __version__, "python": sys.version.split()[0]},
        "device": device,
        "backends": backend_facts(),
        **figures,
    }
    path = RESULTS / device_name(device) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(path.relative_to(Path(__file__).parent.parent))
    return path
