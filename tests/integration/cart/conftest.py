"""What several tests of sending share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cart_outbox import WAITS
from cart_store import Store, open_store

from deepcovid_edge.cart.store import deliveries


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A cart's store whose failed deliveries are tried again soon."""
    monkeypatch.setattr(deliveries, "BACKOFF_SECONDS", WAITS)
    with open_store(tmp_path / "spool") as opened:
        yield opened
