"""A spool and its ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deepcovid_edge.cart.store import clock

if TYPE_CHECKING:  # what follows needs extra cart
    from cart_store import Store


@pytest.fixture(autouse=True)
def _any_clock_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests pass on a machine whose clock lies before the day of the program, too."""
    monkeypatch.setattr(clock, "_BUILT", datetime(2020, 1, 1, tzinfo=timezone.utc))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    from cart_store import open_store

    with open_store(tmp_path / "spool") as opened:
        yield opened
