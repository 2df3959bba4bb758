"""The process `cart receive`: the DICOM port, the watched folders, storage commitment."""

from __future__ import annotations

import contextlib
import gc
import threading
import time

from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.cart.heartbeat import RECEIVER, Heartbeat
from deepcovid_edge.cart.receive.commitment import Commitments
from deepcovid_edge.cart.receive.folder import FolderWatch, clear_alerts_of_removed
from deepcovid_edge.cart.receive.guards import set_up_pynetdicom
from deepcovid_edge.cart.receive.receiver import Receiver
from deepcovid_edge.cart.store.intake import Intake
from deepcovid_edge.cart.store.ledger import Ledger, LedgerBusyError
from deepcovid_edge.cart.store.opening import open_store
from deepcovid_edge.cart.store.rebuild import note_unknown
from deepcovid_edge.device.service import log, notify
from deepcovid_edge.errors import OutputError

_LOOP_SECONDS = 1.0
_JOIN_SECONDS = 1.0
_STALLED_SECONDS = 10.0
"""A turn of the receiver's loops takes milliseconds."""


def receive(config: CartConfig, stop: threading.Event) -> None:
    """Receive images until an event is set; then end within 5 seconds.

    Raises:
        OutputError: Spool or ledger cannot be opened.
        NotThereError: The port cannot be listened on, a certificate is not there, or pynetdicom is
            not installed.
    """
    ledger, spool = open_store(config.cart)
    with ledger:
        spool.empty_incoming()
        with contextlib.suppress(LedgerBusyError):  # the next start does
            clear_alerts_of_removed(ledger, config.receive.folders)
        if found := note_unknown(ledger, spool):
            log("noted", images=found)
        _serve(config, Intake(ledger, spool), stop)


def _is_alive(receiver: Receiver | None, ledger: Ledger) -> bool:
    """Whether connections are taken, ended in time, and could be written down.

    It waits as long as another thread holds the ledger: then nothing can be stored either.
    """
    ledger.row("SELECT 1")
    return receiver is None or (
        receiver.is_listening and receiver.stalled_seconds() < _STALLED_SECONDS
    )


def _serve(config: CartConfig, intake: Intake, stop: threading.Event) -> None:
    set_up_pynetdicom()
    commitments = Commitments(config, intake.ledger) if config.receive.commitment else None
    work = [
        FolderWatch(folder, config.receive, intake, stop).run for folder in config.receive.folders
    ]
    if commitments:
        work.append(lambda: commitments.run(stop))
    threads = [threading.Thread(target=one, daemon=True, name="receive") for one in work]
    with contextlib.ExitStack() as open_things:
        receiver = None
        if config.listens:
            receiver = Receiver(config, intake, commitment=commitments.ask if commitments else None)
            receiver.start()
            open_things.callback(receiver.close)
            log("listening", host=config.receive.host, port=receiver.port)
        for thread in threads:
            thread.start()
        gc.freeze()  # what is there now stays: pynetdicom collects garbage as it waits
        notify("READY=1")
        heart = Heartbeat(intake.ledger, RECEIVER)
        while not stop.wait(_LOOP_SECONDS):
            if intake.ledger.is_of_no_use():
                log("receive ends", why="the ledger is damaged, or was made again")
                break
            if _is_alive(receiver, intake.ledger):
                notify("WATCHDOG=1")
                with contextlib.suppress(OutputError):  # in five seconds
                    heart.beat()
        notify("STOPPING=1")
    end = time.monotonic() + _JOIN_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))  # a share may not answer
    log("stopped")
