"""The cart as services of a real systemd: roles that hang, and power cuts.

A role hangs as SIGSTOP has it: it does nothing at all. The watchdog must end it, and start another.
After a power cut the machine boots, and nobody starts anything by hand.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cart_peers import HOST, free_port, is_listening, wait_until
from own_systemd import OwnSystemd, environment, why_no_systemd

from campaigns.audit import Audit, Counts, left_in
from campaigns.clinic import READY_SECONDS, SETTLE_SECONDS
from campaigns.console import Console
from campaigns.disks import LoopDisk, why_no_disks
from campaigns.images import DrawnImages
from campaigns.pacs import Pacs
from deepcovid_edge.cart.install.site import ROLES

FAULTS = ("receive", "work", "page", "assessor", "power")
_MIB, _MIB_A_CYCLE = 256, 80
_WATCHDOG_SECONDS = 10
"""The shipped units wait longer; here every hang would."""
_LONGEST_PAUSE = 2.0
_REPLACED_SECONDS = 300.0
_NAME = "Rontgen"
"""Of the patient of every image (`dicom_files.dataset`)."""
_STATE = "var/lib/deepcovid-edge"
_UNIT = "[Service]\nEnvironment={environment}\nWatchdogSec={seconds}\n"
_CONFIG = """
[cart]
spool = "/var/lib/deepcovid-edge/spool"
floor_mib = 1
floor_share = 0.0
ballast_mib = 0
[receive]
port = {port}
[[peer]]
ae_title = "CONSOLE"
address = "{host}"
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "{host}"
port = {pacs}
[page]
port = {page}
"""


def why_no_services() -> str:
    """Why the campaign cannot run here; empty where it can."""
    return why_no_disks() or why_no_systemd()


class Services:
    """The cart, installed by `cart install` on a machine with a systemd of its own.

    Args:
        disk: The machine's disk.
        pacs: Port of the PACS.
    """

    def __init__(self, disk: LoopDisk, pacs: int) -> None:
        self._disk = disk
        self.port, self.page = free_port(), free_port()
        self.machine = OwnSystemd(disk.place)
        etc = disk.place / "etc"
        for role in ROLES:
            folder = etc / f"systemd/system/deepcovid-edge-{role}.service.d"
            folder.mkdir(parents=True)
            words = " ".join(f"{name}={value}" for name, value in environment().items())
            text = _UNIT.format(environment=words, seconds=_WATCHDOG_SECONDS)
            (folder / "30-test.conf").write_text(text)
        (etc / "deepcovid-edge").mkdir()
        config = _CONFIG.format(host=HOST, port=self.port, page=self.page, pacs=pacs)
        (etc / "deepcovid-edge/cart.toml").write_text(config)
        os.sync()  # a power cut later does not lose what an installation wrote before
        self.machine.boot()
        self.machine.cart("install")
        self.wait_ready()

    @property
    def spool(self) -> Path:
        """The spool, as this side sees it."""
        return self._disk.place / _STATE / "spool"

    def wait_ready(self) -> None:
        """Wait until images are taken and assessed."""
        wait_until(lambda: is_listening(self.port), READY_SECONDS, what="a receiver")
        wait_until(lambda: self.pid("assessor"), READY_SECONDS, what="an assessor", step=0.2)

    def pid(self, role: str) -> int:
        """Process of a role, or of the `assessor`; 0 where there is none."""
        if role != "assessor":
            return self.machine.pid(f"deepcovid-edge-{role}.service")
        worker = self.pid("work")
        try:
            found = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
        except OSError:
            return 0
        return int(found[0]) if found else 0

    def fail(self, fault: str) -> None:
        """Have one of `FAULTS` happen."""
        if fault == "power":
            self.cut_power()
        else:
            self.hang(fault)

    def hang(self, role: str) -> None:
        """Have a role hang, and wait until there is another process."""
        wait_until(lambda: self.pid(role), READY_SECONDS, what=role)
        process = self.pid(role)
        os.kill(process, signal.SIGSTOP)
        ends = time.monotonic() + _REPLACED_SECONDS
        while self.pid(role) in (0, process):
            if time.monotonic() > ends:
                said = self.machine.journal()[-2000:]
                raise TimeoutError(f"no other {role} in {_REPLACED_SECONDS:g} s: {said}")
            time.sleep(0.2)

    def cut_power(self) -> None:
        """Lose what is not on the disk and all that runs; then boot, and touch nothing else."""
        self._disk.cut()
        self.machine.switch_off()
        self._disk.unmount()
        self._disk.mount()
        self.machine.boot()


def services(folder: Path, cycles: int, seed: int) -> Counts:
    """Run the campaign."""
    draw = random.Random(seed)
    done: Counter[str] = Counter()
    started = time.monotonic()
    with (
        LoopDisk(folder, _MIB + cycles * _MIB_A_CYCLE) as disk,
        Pacs(folder / "pacs") as pacs,
    ):
        cart = Services(disk, pacs.port)
        with cart.machine:
            console = Console(DrawnImages(seed), cart.port, seed=seed, pause=0.5)
            console.start()
            order: list[str] = []
            for _ in range(cycles):
                order = order or draw.sample(FAULTS, len(FAULTS))
                time.sleep(draw.uniform(0.0, _LONGEST_PAUSE))
                fault = order.pop()
                cart.fail(fault)
                done[fault] += 1
            console.finish(READY_SECONDS)
            is_settled = _is_so(lambda: not left_in(cart.spool), SETTLE_SECONDS)
            said = cart.machine.journal()
            audit = Audit(cart.spool, console.acknowledged, pacs.arrived())
            return Counts(
                cycles=cycles,
                seed=seed,
                sent=console.sent,
                answers=dict(console.answers),
                tracebacks=said.count("Traceback"),
                seconds=round(time.monotonic() - started, 1),
                detail={
                    "faults": dict(done),
                    "settled": is_settled,
                    "names_in_journal": said.count(_NAME),
                },
                **audit.counts(),
            )


def _is_so(is_so: Callable[[], bool], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > ends:
            return False
        time.sleep(0.2)
    return True
