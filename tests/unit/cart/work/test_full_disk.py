"""A full disk is no fault of an image: it costs no try, and nothing is left half done."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from cart_store import DESTINATIONS, ROOMY, open_store, record

from deepcovid_edge.cart.config import CartConfig, CartSettings, ReceiveSettings
from deepcovid_edge.cart.store.images import Settled
from deepcovid_edge.cart.store.ledger import LedgerBusyError, LedgerFullError
from deepcovid_edge.cart.store.spool import SpoolFullError
from deepcovid_edge.cart.work import assessor_child
from deepcovid_edge.cart.work.assessment import AssessmentRequest, Assessor
from deepcovid_edge.cart.work.worker import Worker
from deepcovid_edge.errors import OutputError

REQUEST = AssessmentRequest(Path("image.dcm"), "0" * 64, True)


class Failing:
    """An assessor whose disk fails, seen in `assessment` or in what it calls."""

    def __init__(self, number: int, *, is_raw: bool) -> None:
        self.number, self.is_raw = number, is_raw

    def assess(self, _request: AssessmentRequest) -> dict[str, Any]:
        cause = OSError(self.number, os.strerror(self.number))
        if self.is_raw:
            raise cause
        raise OutputError("map.npz: cannot be written") from cause


@pytest.mark.parametrize("is_raw", [True, False])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_assessor_says_that_the_disk_is_full_and_goes_on(number: int, is_raw: bool) -> None:
    assessor = cast(Assessor, Failing(number, is_raw=is_raw))
    assert assessor_child._assessed(assessor, REQUEST) == {"full": os.strerror(number)}


def test_a_result_that_cannot_be_written_is_told_and_does_not_end_the_assessor() -> None:
    assessor = cast(Assessor, Failing(errno.EIO, is_raw=False))
    assert assessor_child._assessed(assessor, REQUEST) == {
        "not_written": "map.npz: cannot be written"
    }


def test_a_file_that_cannot_be_read_ends_the_assessor() -> None:
    with pytest.raises(OSError, match="Input/output"):
        assessor_child._assessed(cast(Assessor, Failing(errno.EIO, is_raw=True)), REQUEST)


def test_an_image_that_the_full_ledger_did_not_give_back_is_assessed_later(
    tmp_path: Path,
) -> None:
    with open_store(tmp_path / "spool") as store:
        store.take()
        settings = CartSettings(store.spool.folder)
        config = CartConfig(Path("c"), settings, ReceiveSettings(folders=(tmp_path / "in",)))
        stop = threading.Event()
        worker = Worker(config, store.ledger, store.spool, stop)
        states: list[tuple[str, int]] = []

        def assess_next() -> bool:
            row = store.ledger.row("SELECT state, tries FROM image")
            assert row is not None
            states.append((row["state"], row["tries"]))
            if len(states) == 3:
                stop.set()
                return True
            worker.images.claim()
            kind = SpoolFullError if len(states) == 1 else LedgerBusyError
            raise kind("full")

        worker.assess_next = assess_next  # type: ignore[method-assign]
        worker._ready = object  # type: ignore[method-assign, assignment]
        worker.run()
    assert states == [("received", 0)] * 3


@pytest.mark.parametrize(
    ("kind", "stays"), [(LedgerBusyError, True), (LedgerFullError, False), (SpoolFullError, False)]
)
def test_the_ballast_is_given_up_only_where_the_disk_is_full(
    tmp_path: Path, kind: type[OutputError], stays: bool
) -> None:
    with open_store(tmp_path / "spool", replace(ROOMY, ballast_mib=1)) as store:
        store.spool.fill_ballast()
        settings = CartSettings(store.spool.folder)
        config = CartConfig(Path("c"), settings, ReceiveSettings(folders=(tmp_path / "in",)))
        stop = threading.Event()
        worker = Worker(config, store.ledger, store.spool, stop)

        def assess_next() -> bool:
            stop.set()
            raise kind("why")

        worker.assess_next = assess_next  # type: ignore[method-assign]
        worker._ready = object  # type: ignore[method-assign, assignment]
        worker.run()
        assert (store.spool.folder / "ballast").exists() == stays


def test_objects_of_tries_that_were_ended_do_not_stay_on_the_disk(tmp_path: Path) -> None:
    """Those of earlier results do, which were sent."""
    with open_store(tmp_path / "spool") as store:
        store.take()
        settings = CartSettings(store.spool.folder)
        config = CartConfig(Path("c"), settings, ReceiveSettings(folders=(tmp_path / "in",)))
        worker = Worker(config, store.ledger, store.spool, threading.Event())
        claimed = store.images.claim()
        assert claimed is not None
        earlier = store.built(claimed, "sr")
        worker._settle(claimed, Settled(record("negative"), [earlier], DESTINATIONS))
        left, now = (store.built(claimed, kind) for kind in ("sr3d", "sc"))
        worker._settle(claimed, Settled(record("negative"), [now], DESTINATIONS))
        assert [one.path.exists() for one in (earlier, left, now)] == [True, False, True]
        row = store.ledger.row("SELECT result_bytes FROM image")
        assert row is not None
        assert row["result_bytes"] == store.spool.results_size(claimed.content_sha256)
