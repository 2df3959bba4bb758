"""A watched folder and its ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # what follows needs extra cart
    from watched_folder import WatchedFolder

    from deepcovid_edge.cart.store.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    from deepcovid_edge.cart.store.ledger import Ledger

    (tmp_path / "spool").mkdir()
    with Ledger(tmp_path / "spool") as opened:
        yield opened


@pytest.fixture
def place(tmp_path: Path, ledger: Ledger) -> WatchedFolder:
    from watched_folder import WatchedFolder

    return WatchedFolder(tmp_path, ledger)
