"""Console, cart and PACS of a campaign; the cart can be ended, and started again on its spool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cart_peers import HOST, wait_until
from whole_cart import WholeCart

from campaigns.audit import Audit, Counts, left_in
from campaigns.console import Console
from campaigns.images import DrawnImages
from campaigns.pacs import Pacs
from campaigns.paths import python_path

READY_SECONDS = 180.0
SETTLE_SECONDS = 420.0
_GONE_SECONDS = 20.0


class CampaignCart(WholeCart):
    """`cart run` that may have run before in its folder.

    Args:
        folder: For configuration and log.
        destinations: Keys of each `[[destination]]`.
        cart: Keys of the table `[cart]`.
        page: Keys of the table `[page]`; None for no page.
        command: Words before the command.
    """

    def __init__(
        self,
        folder: Path,
        destinations: list[Mapping[str, object]],
        *,
        cart: Mapping[str, object],
        page: Mapping[str, object] | None = None,
        command: tuple[str, ...] = (),
    ) -> None:
        log = folder / "cart.log"
        self._said_before = log.stat().st_size if log.exists() else 0
        super().__init__(folder, destinations, cart=cart, page=page, command=command)
        self.spool = folder / str(cart.get("spool", "spool"))

    def said(self) -> str:
        """Its output since this start."""
        with self.log.open("rb") as stream:
            stream.seek(self._said_before)
            return stream.read().decode(errors="replace")

    def times(self, event: str) -> int:
        """How often it has said something since this start."""
        return self.said().count(f'"event": "{event}"')

    def pid(self, role: str) -> int | None:
        """Process of a role, or of the `assessor`; None where there is none now."""
        if role == "assessor":
            found = _children(self.pid("work"))
            return found[0] if found else None
        begun = f'"event": "role started", "role": "{role}", "pid": '
        ids = [
            line.split(begun)[1].rstrip("}") for line in self.said().split("\n") if begun in line
        ]
        return int(ids[-1]) if ids and _is_alive(int(ids[-1])) else None

    def processes(self) -> list[int]:
        """All its processes."""
        found = [self.process.pid]
        for process in found:
            found += _children(process)
        return found

    def kill_all(self) -> None:
        """SIGKILL for `cart run`; its roles and the assessor end with it."""
        processes = self.processes()
        self.kill()
        wait_until(lambda: not any(map(_is_alive, processes)), _GONE_SECONDS, what="roles end")


def _children(process: int | None) -> list[int]:
    if process is None:
        return []
    command = ["ps", "-o", "pid=", "--ppid", str(process)]
    found = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return [int(one) for one in found]


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@dataclass
class Clinic:
    """Console, cart and PACS.

    Attributes:
        folder: For everything but the spool.
        seed: Of images and console.
        cart_keys: Keys of the table `[cart]`.
        objects: What the PACS gets.
        spool: Where the spool lies; None for in the folder.
        pause: Seconds between two images.
        command: Words before the cart's command.
        images: What is sent.
        pacs_port: The port that the cart sends to; None for the PACS's own.
        page_port: Where the page is served; None for no page.
    """

    folder: Path
    seed: int
    cart_keys: Mapping[str, object] = field(default_factory=dict)
    objects: Sequence[str] = ("sr",)
    spool: Path | None = None
    pause: float = 0.3
    command: tuple[str, ...] = ()
    images: DrawnImages | None = None
    pacs_port: int | None = None
    page_port: int | None = None

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self._started = time.monotonic()
        self._tracebacks = 0
        self.pacs = Pacs(self.folder / "pacs")
        self._stack.callback(self._close_pacs)

    def __enter__(self) -> Clinic:
        try:
            self.pacs.wait_ready()
            self.start()
            self.cart.wait_ready()
        except BaseException:
            self._stack.close()
            raise
        images = self.images or DrawnImages(self.seed)
        self.console = Console(images, self.cart.port, seed=self.seed, pause=self.pause)
        return self

    def __exit__(self, *_: object) -> None:
        self.cart.close()
        self._stack.close()

    def _close_pacs(self) -> None:
        self.pacs.close()  # the one that runs now

    def start(self) -> None:
        """Start the cart on what its spool has; it is not waited for."""
        keys: dict[str, object] = {"heatmap": "none", **self.cart_keys}
        if self.spool is not None:
            keys["spool"] = str(self.spool)
        port = self.pacs_port or self.pacs.port
        destination = {"name": "pacs", "ae_title": "PACS", "host": HOST, "port": port}
        self.cart = CampaignCart(
            self.folder / "cart",
            [{**destination, "objects": [*self.objects]}],
            cart=keys,
            page={"port": self.page_port} if self.page_port else None,
            command=self.command,
        )
        if hasattr(self, "console"):
            self.console.port = self.cart.port

    def end_cart(self) -> None:
        """End the cart by SIGKILL."""
        self._tracebacks += self.cart.said().count("Traceback")
        self.cart.kill_all()

    def restart_pacs(self) -> None:
        """Start the PACS again on its port, with what it has."""
        self.pacs.close()
        self.pacs = Pacs(self.folder / "pacs", self.pacs.port)
        self.pacs.wait_ready()

    def command_line(
        self, *words: str, more: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """A command of the cart, such as `drain`.

        Args:
            words: The command.
            more: What follows the configuration.
        """
        command = [sys.executable, "-m", "deepcovid_edge", "cart", *words, str(self.cart.config)]
        return subprocess.run([*command, *more], capture_output=True, text=True, timeout=240)

    def left(self) -> int:
        """Images without a verdict, and objects that are not sent."""
        return left_in(self.cart.spool)

    def settle(self, seconds: float = SETTLE_SECONDS) -> bool:
        """Wait until every image of the ledger has its verdict at the PACS; whether that came."""
        ends = time.monotonic() + seconds
        while left := self.left():
            if time.monotonic() > ends:
                print(f"not settled: {left} left", flush=True)
                return False
            time.sleep(0.2)
        return True

    def audited(self, cycles: int, **detail: Any) -> Counts:
        """End the console, wait for what is under way, and count."""
        self.console.finish()
        is_settled = self.settle()
        audit = Audit(self.cart.spool, self.console.acknowledged, self.pacs.arrived())
        for why in (*audit.lost()[:5], *audit.assessed_twice()[:5], *audit.other_bytes()[:5]):
            print(f"  {why}", flush=True)
        return Counts(
            cycles=cycles,
            seed=self.seed,
            sent=self.console.sent,
            answers=dict(self.console.answers),
            tracebacks=self._tracebacks + self.cart.said().count("Traceback"),
            seconds=round(time.monotonic() - self._started, 1),
            detail={**detail, "settled": is_settled},
            **audit.counts(),
        )


def customised(folder: Path, code: str) -> tuple[str, ...]:
    """Words before a command that have its Python processes run some code first.

    Args:
        folder: For the code.
        code: Of a module `sitecustomize`.
    """
    place = folder / "customised"
    place.mkdir(parents=True)
    (place / "sitecustomize.py").write_text(code)
    return ("env", f"PYTHONPATH={python_path(place)}")


def strike(process: int | None) -> bool:
    """SIGKILL for a process; whether it was there."""
    if process is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
        return True
    return False
