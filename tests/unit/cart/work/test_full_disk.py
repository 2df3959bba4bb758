"""A full disk is no fault of a film: it costs no try, and nothing is left half done."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from cart_store import open_store

from deepcovid_edge.cart.config import CartConfig, JudgeSettings, ReceiveSettings
from deepcovid_edge.cart.store.ledger import LedgerBusyError
from deepcovid_edge.cart.store.spool import SpoolFullError
from deepcovid_edge.cart.work import judge_child
from deepcovid_edge.cart.work.film_judge import FilmJudge, FilmRequest
from deepcovid_edge.cart.work.worker import Worker
from deepcovid_edge.errors import OutputError

REQUEST = FilmRequest(Path("film.dcm"), "0" * 64, True)


class Failing:
    """A judge whose disk fails, seen in `film_judge` or in what it calls."""

    def __init__(self, number: int, *, is_raw: bool) -> None:
        self.number, self.is_raw = number, is_raw

    def judge(self, _request: FilmRequest) -> dict[str, Any]:
        cause = OSError(self.number, os.strerror(self.number))
        if self.is_raw:
            raise cause
        raise OutputError("map.npz: cannot be written") from cause


@pytest.mark.parametrize("is_raw", [True, False])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_judge_says_that_the_disk_is_full_and_goes_on(number: int, is_raw: bool) -> None:
    judge = cast(FilmJudge, Failing(number, is_raw=is_raw))
    assert judge_child._judged(judge, REQUEST) == {"full": os.strerror(number)}


@pytest.mark.parametrize(("is_raw", "error"), [(True, OSError), (False, OutputError)])
def test_another_fault_of_a_disk_ends_the_judge(is_raw: bool, error: type[Exception]) -> None:
    with pytest.raises(error):
        judge_child._judged(cast(FilmJudge, Failing(errno.EIO, is_raw=is_raw)), REQUEST)


def test_a_film_that_the_full_ledger_could_not_give_back_is_judged_later(tmp_path: Path) -> None:
    with open_store(tmp_path / "spool") as store:
        store.take()
        settings = JudgeSettings(store.spool.folder)
        config = CartConfig(Path("c"), settings, ReceiveSettings(folders=(tmp_path,)))
        stop = threading.Event()
        worker = Worker(config, store.ledger, store.spool, stop)
        states: list[tuple[str, int]] = []

        def judge_next() -> bool:
            row = store.ledger.row("SELECT state, tries FROM film")
            assert row is not None
            states.append((row["state"], row["tries"]))
            if len(states) == 3:
                stop.set()
                return True
            worker.films.claim()
            kind = SpoolFullError if len(states) == 1 else LedgerBusyError
            raise kind("full")

        worker.judge_next = judge_next  # type: ignore[method-assign]
        worker._ready = object  # type: ignore[method-assign, assignment]
        worker.run()
    assert states == [("received", 0)] * 3
