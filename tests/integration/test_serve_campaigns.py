"""Small forms of the server's campaigns, on real X-rays; `make campaigns` runs them whole."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server needs extra serve")

from campaigns.serving import equality, requests, throughput, why_no_images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(why_no_images()), reason=why_no_images() or "images"),
]


def test_every_client_gets_the_records_of_infer(tmp_path: Path) -> None:
    figures = equality(tmp_path, 24, 1)
    assert figures["is_kept"], figures["equal"]
    assert {"curl", "infer_backend"} <= figures["equal"].keys()


def test_memory_stays_flat_beside_hostile_callers(tmp_path: Path) -> None:
    figures = requests(tmp_path, 600, 7)
    assert figures["statuses"] == {"200": figures["requests"]}
    assert figures["is_ready"]
    assert figures["slow_connections"]["ended_by_the_server"] > 0
    assert figures["slope_kb_a_request"] < 20


def test_a_core_serves_nearly_as_many_images_as_infer_classifies(tmp_path: Path) -> None:
    """By processor time, which other work on the machine hardly changes."""
    figures = throughput(tmp_path, 3, 1, images=60)
    assert figures["to_infer_by_processor"]["serve_group_8"]["median"] > 0.8
