"""A spool and its ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # what follows needs extra cart
    from cart_store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    from cart_store import open_store

    with open_store(tmp_path / "spool") as opened:
        yield opened
