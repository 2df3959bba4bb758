"""The process that sends is killed at any moment: everything arrives, always the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cart_outbox import all_states, fill, outbox_rows, scripted, sent_part
from cart_store import open_store

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
from pathlib import Path
from deepcovid_edge.cart.config import (
    CartConfig, Destination, JudgeSettings, Peer, ReceiveSettings
)
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.spool import Spool, SpoolSettings
from deepcovid_edge.cart.send.outbox import Outbox

folder, port = Path(sys.argv[1]), int(sys.argv[2])
goal = Destination("pacs", "PACS", "127.0.0.1", port, find=True)
peer = Peer("CONSOLE", "127.0.0.1")
config = CartConfig(Path("c"), JudgeSettings(folder), ReceiveSettings(), (peer,), (goal,))
spool = Spool(folder, SpoolSettings(0, 0.0, 0))
with Ledger(folder) as ledger:
    outbox = Outbox(config, ledger, spool)
    outbox.start()
    print("ready", flush=True)
    sys.exit(outbox.drain(60.0))
"""


@pytest.mark.parametrize("cycles", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path: Path, cycles: int) -> None:
    chance, found_again = random.Random(cycles), 0
    with open_store(tmp_path / "spool") as store, scripted() as pacs:
        made = fill(store, 4 * cycles, side=64)

        def answer(uid: str) -> int:
            assert pacs.has is not None
            pacs.has.add(uid)
            time.sleep(0.01)
            return 0

        pacs.status = answer
        command = [sys.executable, "-c", PROGRAM, str(store.spool.folder), str(pacs.port)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        for _ in range(cycles):
            worker = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
            assert worker.stdout is not None
            with worker.stdout:
                assert worker.stdout.readline() == b"ready\n"
                time.sleep(chance.uniform(0.0, 0.3))
                worker.send_signal(signal.SIGKILL)
                worker.wait(10)
        assert subprocess.run(command, env=env, capture_output=True, timeout=100).returncode == 0
        assert all_states(store) == {"sent"}
        assert set(pacs.uids) == set(made)
        assert all(data == sent_part(made[uid]) for uid, data in pacs.arrived)
        found_again = sum("C-FIND" in str(status) for _, _, status in outbox_rows(store))
        # What had arrived when the process was killed was found there, not sent a second time.
        assert len(pacs.uids) == len(made), found_again
