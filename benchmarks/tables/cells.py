"""What every table of the documents is made with: stored results, devices, links, rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"


def difference(found: dict[str, Any]) -> str:
    low, high = found["interval_95"]
    return f"{found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def load(path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures


def device(figures: dict[str, Any]) -> str:
    facts = figures["device"]
    return facts["gpus"][0] if facts["gpus"] else f"{facts['processor']}, {facts['cores']} cores"


def rate(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return "-"
    low, high = value["interval_95"]
    return f"{value['value']:.1%} [{low:.1%}, {high:.1%}]"


def link(path: Path, document: Path) -> str:
    up = "../" * (len(document.relative_to(ROOT).parts) - 1)
    return f"[JSON]({up}{path.relative_to(ROOT)})"
