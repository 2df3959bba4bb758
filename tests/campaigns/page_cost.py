"""What the page costs: memory, the home page's answer, and what it takes from the assessor.

A ledger of 10,000 images, ten browsers' worth of clients that listen for changes and load the home
page at each, as the page's script does. The assessor works on drawn images in short turns with and
without them, each pair in the other order than the one before, so that what else the machine does
falls on both alike.

Seconds by the clock scatter with the load of the machine. Seconds of the processor hardly do, so
what assessing loses is told by them:

- `slower`: those of worker and assessor for an image, with clients over without. It sees what the
  page takes from caches and from the memory.
- `demand`: the same with those of the page added. Where every core is busy, work is done slower by
  this much and no more, since processes share the cores and none stands idle.

Of both the median ratio of the pairs is given, with its 95 % interval by bootstrap.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from cart_page import put, result
from cart_peers import HOST, free_port, wait_until
from cart_store import Store, open_store
from whole_cart import WholeCart, phantom_image

from benchmarks.measure import summary
from deepcovid_edge.cart.store.intake import Arrival
from deepcovid_edge.imaging.dicom.syntaxes import EXPLICIT

IMAGES = 10_000
CLIENTS = 10
_A_ROUND = 4
_RESAMPLES = 2000
_IDLE_SECONDS = 10.0
_KINDS = ("negative", "negative", "positive", None, "indeterminate")


def page_cost(folder: Path, rounds: int, seed: int, *, images: int = IMAGES) -> dict[str, Any]:
    """Measure; the figures.

    Args:
        folder: For the cart.
        rounds: Pairs of turns of the assessor, with clients and without.
        seed: Of the drawn images.
        images: In the ledger before.
    """
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    with open_store(folder / "spool") as store:
        fill(store, images)
    with WholeCart(folder, [], page={"port": port}, cart={"floor_mib": 0}) as cart:
        wait_until(lambda: _answers(port), 60, what="the page")
        process = role_process(cart, "page")
        time.sleep(_IDLE_SECONDS)
        idle = memory(process)
        home: list[float] = []
        turns = _Turns(cart, process, seed)
        for number in range(rounds):
            if number % 2 == 0:
                turns.alone()
            with _clients(port), _asking(port, home):
                turns.with_page()
            if number % 2:
                turns.alone()
        if not rounds:
            with _clients(port), _asking(port, home):
                time.sleep(3)
        busy = memory(process)
    return {
        "images": images,
        "clients": CLIENTS,
        "idle": idle,
        "busy": busy,
        "home_ms": {**summary(home), "p95": sorted(home)[-(-95 * len(home) // 100) - 1]},
        **turns.figures(),
        "load": os.getloadavg()[0],
        "seed": seed,
    }


def fill(store: Store, images: int) -> None:
    """Fill a ledger with images of the last weeks; the newest have pictures."""
    records = {kind: json.dumps(result(kind)) for kind in _KINDS}
    begin = datetime.now(timezone.utc) - timedelta(days=20)
    with store.ledger.transaction() as now:
        for number in range(1, images + 1):
            kind = _KINDS[number % len(_KINDS)]
            at = (begin + timedelta(seconds=number * 150)).isoformat(timespec="milliseconds")
            now.execute(
                "INSERT INTO image (content_sha256, suffix, sop_uid, bytes, source, received_utc,"
                " boot_id, clock_ok, state, reason, settled_utc)"
                " VALUES (?, '.dcm', ?, 15000000, 'ae', ?, '', 1, ?, ?, ?)",
                (
                    *(f"{number:064x}", f"2.25.{number}", at),
                    *("assessed" if kind else "not_assessed", None if kind else "E_VIEW", at),
                ),
            )
            now.execute(
                "INSERT INTO arrival (image_id, at_utc, source, peer, same_bytes)"
                " VALUES (?, ?, 'ae', '', 1)",
                (number, at),
            )
            now.execute(
                "INSERT INTO who (image_id, patient_id, acquired) VALUES (?, ?, '20260101 120000')",
                (number, f"P-{number}"),
            )
            now.execute(
                "INSERT INTO result (image_id, model_sha256, decision, record, made_utc)"
                " VALUES (?, ?, ?, ?, ?)",
                (number, "a" * 64, kind, records[kind], at),
            )
            for part in range(2):
                object_id = 2 * number + part
                now.execute(
                    "INSERT INTO object (id, result_id, kind, sop_class, sop_uid, path, sha256)"
                    " VALUES (?, ?, ?, '', ?, '', '')",
                    (object_id, number, ("sr", "sc")[part], f"2.25.{number}.{part}"),
                )
                now.execute(
                    "INSERT INTO outbox (object_id, destination, state, changed_utc)"
                    " VALUES (?, 'pacs', 'sent', ?)",
                    (object_id, at),
                )
            if number % 50 == 0:
                store.ledger.event("assessed", number)
    for number in range(20):
        put(store, 100_000 + number, _KINDS[number % len(_KINDS)])


@dataclass(frozen=True)
class _Turn:
    """Seconds for an image, in one turn.

    Attributes:
        clock: By the clock.
        assessing: Of the processor, of worker and assessor.
        page: Of the processor, of the page.
    """

    clock: float
    assessing: float
    page: float


class _Turns:
    """The assessor's work in turns.

    Args:
        cart: The running cart.
        page: Process of its page.
        seed: Of the images.
    """

    def __init__(self, cart: WholeCart, page: int, seed: int) -> None:
        self._cart, self._page, self._next = cart, page, 1000 * seed
        self._seed = seed
        self._work = role_process(cart, "work")
        self._alone: list[_Turn] = []
        self._with_page: list[_Turn] = []

    def alone(self) -> None:
        """A turn without clients."""
        self._alone.append(self._turn())

    def with_page(self) -> None:
        """A turn with clients."""
        self._with_page.append(self._turn())

    def _turn(self) -> _Turn:
        images = [
            phantom_image(self._next + at, EXPLICIT, opacities=9 * (at % 2))
            for at in range(_A_ROUND)
        ]
        self._next += _A_ROUND
        with open_store(self._cart.spool) as store:
            began, before = time.monotonic(), self._worked()
            for data in images:
                store.intake.take_file(data, name="f.dcm", arrival=Arrival("ae", HOST))
            wait_until(lambda: not store.images.waiting(), 300, what="images assessed", step=0.05)
            spent, after = time.monotonic() - began, self._worked()
        assessing, page = (one - other for one, other in zip(after, before, strict=True))
        return _Turn(spent / _A_ROUND, assessing / _A_ROUND, page / _A_ROUND)

    def _worked(self) -> tuple[float, float]:
        """Seconds of the processor so far: of worker and assessor, and of the page."""
        children = Path(f"/proc/{self._work}/task/{self._work}/children").read_text().split()
        roles = (self._work, *map(int, children))
        return sum(map(_processor_seconds, roles)), _processor_seconds(self._page)

    def figures(self) -> dict[str, Any]:
        """What came of the turns."""
        if not self._alone:
            return {}
        pairs = list(zip(self._with_page, self._alone, strict=True))
        demand = [(one.assessing + one.page) / other.assessing for one, other in pairs]
        slower = [one.assessing / other.assessing for one, other in pairs]
        return {
            "images_a_turn": _A_ROUND,
            "assessor_alone_s": summary([one.clock for one in self._alone]),
            "assessor_with_page_s": summary([one.clock for one in self._with_page]),
            "processor_alone_s": summary([one.assessing for one in self._alone]),
            "processor_with_page_s": summary([one.assessing for one in self._with_page]),
            "page_processor_s": summary([one.page for one in self._with_page]),
            "slower_by_the_clock": self._ratio([one.clock / other.clock for one, other in pairs]),
            "slower": self._ratio(slower),
            "demand": self._ratio(demand),
        }

    def _ratio(self, samples: list[float]) -> dict[str, Any]:
        low, high = median_interval(samples, self._seed)
        return {**summary(samples), "low": low, "high": high}


def median_interval(samples: Sequence[float], seed: int) -> tuple[float, float]:
    """95 % interval of a median: percentile bootstrap (Efron and Tibshirani 1993, chapter 13).

    Args:
        samples: Independent samples.
        seed: Of the draws.
    """
    draw = np.random.default_rng(seed)
    drawn = draw.choice(np.asarray(samples), (_RESAMPLES, len(samples)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)


@contextmanager
def _clients(port: int) -> Iterator[None]:
    """Clients that listen, and load the page at each change."""
    stop = threading.Event()
    threads = [threading.Thread(target=_listen, args=(port, stop)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1)
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _listen(port: int, stop: threading.Event) -> None:
    with socket.create_connection((HOST, port)) as stream:
        stream.sendall(f"GET /changes HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        while not stop.is_set():
            if select.select([stream], [], [], 0.2)[0] and b"data: changed" in stream.recv(4096):
                _home(port)
                stop.wait(0.5)  # as the script does


@contextmanager
def _asking(port: int, home: list[float]) -> Iterator[None]:
    """Ask for the home page all the while, four times a second."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.25):
            home.append(_home(port))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _home(port: int) -> float:
    """Milliseconds until the whole home page is there."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request("GET", "/")
    answer = connection.getresponse()
    data = answer.read()
    spent = (time.perf_counter() - began) * 1000.0
    connection.close()
    assert answer.status == 200
    assert data.count(b'<li id="image-') == 50
    return spent


def _answers(port: int) -> bool:
    try:
        return _home(port) > 0
    except OSError:
        return False


def role_process(cart: WholeCart, role: str) -> int:
    """The process of a role, as the cart's log names it."""
    for line in cart.said().splitlines():
        with suppress(ValueError):
            said = json.loads(line)
            if said.get("event") == "role started" and said["role"] == role:
                return int(said["pid"])
    raise RuntimeError(f"no {role} was started")


def memory(process: int) -> dict[str, float]:
    """Resident and proportional memory of a process, MiB (proc(5), smaps_rollup)."""
    values = {}
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        values[name.rstrip(":")] = round(int(size) / 1024, 1)
    return {"rss_mib": values["Rss"], "pss_mib": values["Pss"]}


def _processor_seconds(process: int) -> float:
    """Processor time of a process so far (proc(5), stat: utime and stime)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
