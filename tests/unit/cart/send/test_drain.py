"""`cart drain` says that nothing waits only where every image is assessed and every answer sent."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")

from cart_page import write_config
from cart_store import RUN, Store, open_store
from click.testing import CliRunner

from deepcovid_edge.cart.commands import command
from deepcovid_edge.cart.heartbeat import WORKER, Heartbeat
from deepcovid_edge.cart.store.images import Settled
from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.reasons import Reason


def drained(
    folder: Path, seconds: float = 300.0, *, has_destinations: bool = True
) -> tuple[str, ExitCode]:
    """What the command says of the spool in a folder, and its exit code."""
    config = write_config(folder, 8080)
    if not has_destinations:
        head, _, rest = config.path.read_text().partition("[[destination]]")
        config.path.write_text(f"{head}[page]{rest.partition('[page]')[2]}")
    arguments = ["drain", str(config.path), "--seconds", str(seconds)]
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert done.exception is None
    return done.output, done.return_value


def test_images_that_are_not_assessed_are_named_at_once_where_no_worker_runs(
    tmp_path: Path,
) -> None:
    with open_store(tmp_path / "spool") as store:
        for number in range(3):
            store.take(number)
        store.images.claim()
    said = "3 images wait to be assessed: let the cart run until it is done.\n"
    assert drained(tmp_path) == (said, ExitCode.ERROR)


def test_images_are_waited_for_while_a_worker_runs(tmp_path: Path) -> None:
    def assess(store: Store) -> None:
        time.sleep(0.3)
        store.assess(kinds=("sr",))
        with store.ledger.transaction() as now:
            now.execute("UPDATE outbox SET state = 'sent'")

    with open_store(tmp_path / "spool") as store:
        store.take()
        Heartbeat(store.ledger, WORKER).beat()
        worker = threading.Thread(target=assess, args=[store])
        worker.start()
        said = drained(tmp_path)
        worker.join()
    assert said == ("Nothing waits.\n", ExitCode.DONE)


def test_what_was_rejected_is_named(tmp_path: Path) -> None:
    with open_store(tmp_path / "spool") as store:
        store.take()
        store.assess()
        with store.ledger.transaction() as now:
            now.execute("UPDATE outbox SET state = 'parked' WHERE object_id = 1")
    output, code = drained(tmp_path, 0.1)
    assert output == (
        "1 object waits to be sent.\n"
        "1 object was rejected: correct that at the destination, then run `cart resend`.\n"
    )
    assert code == ExitCode.ERROR


def test_what_is_damaged_on_the_cart_is_not_called_rejected(tmp_path: Path) -> None:
    with open_store(tmp_path / "spool") as store:
        store.take()
        store.assess(kinds=("sr",))
        with store.ledger.transaction() as now:
            now.execute("UPDATE outbox SET state = 'parked', last_status = 'file: changed'")
    said = "1 object is damaged on the cart: see `cart status`.\n"
    assert drained(tmp_path) == (said, ExitCode.ERROR)


def test_images_without_an_answer_to_send_are_named(tmp_path: Path) -> None:
    """One that could not be read, and one whose report could not be built."""
    unread = Reason.UNREADABLE
    with open_store(tmp_path / "spool") as store:
        store.take(1)
        store.assess(decision="positive", kinds=())
        said = "1 image has no answer to send: look at it by eye.\n"
        assert drained(tmp_path) == (said, ExitCode.ERROR)
        assert drained(tmp_path, has_destinations=False) == ("Nothing waits.\n", ExitCode.DONE)
        store.take(2)
        claimed = store.images.claim()
        assert claimed is not None
        record = Prediction("f.dcm", RUN, reason=unread.code, message=unread.sentence).as_dict()
        store.images.settle(claimed, Settled(record))
    said = "2 images have no answer to send: look at them by eye.\n"
    assert drained(tmp_path) == (said, ExitCode.ERROR)
