"""The process `cart work`."""

from __future__ import annotations

import threading

from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.cart.send.outbox import Outbox
from deepcovid_edge.cart.store.opening import open_store
from deepcovid_edge.cart.work.drift import DriftWatch
from deepcovid_edge.cart.work.housekeeping import Housekeeping
from deepcovid_edge.cart.work.worker import Worker
from deepcovid_edge.device.service import log, notify
from deepcovid_edge.files import locked

_STOP_SECONDS = 10.0


def work(config: CartConfig, stop: threading.Event) -> None:
    """Assess and send until the stop. One process does so for a spool; a second one waits.

    Raises:
        OutputError: The spool cannot be written, or another process works on it.
        NewerLedgerError: The ledger is of a newer version of this program.
    """
    ledger, spool = open_store(config.cart)
    waits = locked(spool.folder, "work", lambda text: log("waiting", why=text), stop)
    with ledger, waits as is_held:
        if not is_held:
            return
        outbox = Outbox(config, ledger, spool)
        drift = DriftWatch(ledger)
        house = Housekeeping(config, ledger, spool, stop, drift.look)
        worker = Worker(config, ledger, spool, stop, outbox.wake)
        outbox.start()
        house.start()
        log("work started", destinations=[one.name for one in config.destinations])
        try:
            with worker:
                worker.run()
        finally:
            stop.set()
            notify("STOPPING=1")
            outbox.stop()
            house.join(_STOP_SECONDS)
            log("work stopped")
