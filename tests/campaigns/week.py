"""A week of a cart in minutes: seven days of images, with what goes wrong in a week.

Each of the first five days something is killed, the PACS is away until a person is told, the disk
fills to its floor, and another model is used. It begins with ResNet18, so the last two days, which
are quiet, have the shipped model: memory is measured then.
All the while a browser reads the page. Nothing may be lost, and every alert must be over in the
end. Heat maps are left out: with their pictures 5,000 images would take 20 GB.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cart_peers import HOST, free_port, wait_until

from campaigns.audit import Counts
from campaigns.clinic import READY_SECONDS, Clinic, strike
from campaigns.disks import LoopDisk
from campaigns.model_switch import RESNET, base_name
from campaigns.soak import Look, look, slope_kb
from deepcovid_edge.cart.store.ledger import Ledger

DAYS, QUIET = 7, 2
ROLES = ("receive", "work", "assessor", "page")
MUST_BE_TOLD = ("destination_silent", "disk_floor")
_VICTIMS = ("receive", "work", "assessor", "page", "all")
_BACK = {"receive": "listening", "work": "assessor started", "assessor": "assessor started"}
_BACK |= {"page": "page"}
"""What the log says when a process is there again."""
_MIB, _KIB_AN_IMAGE = 512, 400
_FLOOR_MIB = 48
_LOADED_MIB = 200
"""Less than an assessor with its model has."""
_LOOK_SECONDS = 1.0
_TOLD_SECONDS = 240.0
_PAGES = ("/", "/image/1", "/alerts", "/statistics", "/audit", "/metrics", "/readyz")
_EXPECTED = (200, 404, 503)
"""What the page may answer: an image may not be there yet, the cart may not be ready."""


def week(folder: Path, images: int, seed: int) -> dict[str, Any]:
    """Run the week; the figures.

    Args:
        folder: For everything.
        images: How many are sent in all.
        seed: Of images and faults.
    """
    port = free_port()
    with (
        LoopDisk(folder, _MIB + images * _KIB_AN_IMAGE // 1024) as disk,
        Clinic(
            folder,
            seed,
            cart_keys={"floor_mib": _FLOOR_MIB},
            spool=disk.place / "spool",
            pause=0.0,
            page_port=port,
        ) as clinic,
        _browsing(port) as answers,
    ):
        clinic.console.send(images)
        clinic.console.most_now = 0
        clinic.console.start()
        _model_switched(clinic)
        faults = _days(clinic, disk.place, images, random.Random(seed))
        quiet = _measured(clinic)
        counts = clinic.audited(sum(faults.values()))
        wait_until(
            lambda: not _alerts(clinic), _TOLD_SECONDS, what="the end of every alert", step=0.5
        )
        told = _told(clinic)
        more = {"faults": dict(faults), "models": _models(clinic), "page_failed": _failed(clinic)}
    return _figures(counts, quiet, told, answers, more)


def _figures(
    counts: Counts,
    quiet: list[Look],
    told: dict[str, int],
    answers: Counter[str],
    more: dict[str, Any],
) -> dict[str, Any]:
    is_kept = counts.is_kept and counts.detail["settled"] and {*MUST_BE_TOLD} <= {*told}
    figures = counts.as_dict() | {
        **more,
        "images": counts.sent,
        "alerts_raised_and_cleared": told,
        "page_answers": dict(answers),
        "slope_kb_an_image": {role: slope_kb(quiet, role) for role in ROLES},
        "rss_mib": {
            role: {
                "first": round(quiet[0].rss_kib[role] / 1024, 1),
                "last": round(quiet[-1].rss_kib[role] / 1024, 1),
            }
            for role in ROLES
        },
        "quiet_images": quiet[-1].settled - quiet[0].settled,
        "restarted": [role for role in ROLES if quiet[-1].rss_kib[role] == 0],
    }
    return {**figures, "is_kept": is_kept and not figures["restarted"]}


def _days(clinic: Clinic, disk: Path, images: int, draw: random.Random) -> Counter[str]:
    """What goes wrong on the days that are not quiet, each fault at a moment of its day."""
    done: Counter[str] = Counter()
    for day in range(DAYS - QUIET):
        faults: list[tuple[str, Callable[[], None]]] = [
            (f"killed: {_VICTIMS[day]}", lambda day=day: _kill(clinic, _VICTIMS[day])),  # type: ignore[misc]
            ("PACS away", lambda: _pacs_away(clinic)),
            ("disk filled", lambda: _disk_filled(clinic, disk)),
            ("model switched", lambda: _model_switched(clinic)),
        ]
        draw.shuffle(faults)
        for at, (name, fault) in enumerate(faults, 1):
            images_by_then = (day * len(faults) + at) * images // (DAYS * len(faults))
            clinic.console.most_now = images_by_then  # they come while it goes wrong
            fault()
            done[name] += 1
            _until_sent(clinic, images_by_then)
    clinic.console.most_now = None
    return done


def _until_sent(clinic: Clinic, images: int) -> None:
    """Wait until the console has had so many images acknowledged."""
    wait_until(
        lambda: len(clinic.console.acknowledged) >= images or not clinic.console.is_alive(),
        3600.0,
        what=f"{images} images",
        step=0.1,
    )


def _kill(clinic: Clinic, victim: str) -> None:
    if victim == "all":
        clinic.end_cart()
        clinic.start()
        return clinic.cart.wait_ready()
    said = _BACK[victim]
    before = clinic.cart.times(said)
    wait_until(lambda: strike(clinic.cart.pid(victim)), READY_SECONDS, what=victim)
    wait_until(lambda: clinic.cart.times(said) > before, READY_SECONDS, what=said)
    return None


def _pacs_away(clinic: Clinic) -> None:
    """The PACS is off until a person is told; then it comes back."""
    clinic.pacs.kill()
    ends = time.monotonic() + _TOLD_SECONDS
    while "destination_silent" not in _alerts(clinic):
        if time.monotonic() > ends:
            raise TimeoutError("nobody is told that the PACS is away")
        clinic.command_line("drain", more=["--seconds", "0.5"])  # a try at once
    clinic.restart_pacs()
    clinic.command_line("drain", more=["--seconds", "1"])


def _disk_filled(clinic: Clinic, disk: Path) -> None:
    """Something else takes the disk until images are refused and a person is told."""
    before = clinic.console.answers["0xA700"]
    other = disk / "other"
    with other.open("wb") as stream:
        free = shutil.disk_usage(disk).free
        os.posix_fallocate(stream.fileno(), 0, max(1, free - (_FLOOR_MIB << 20) // 2))
    wait_until(
        lambda: clinic.console.answers["0xA700"] > before and "disk_floor" in _alerts(clinic),
        _TOLD_SECONDS,
        what="a refusal and an alert",
        step=0.2,
    )
    other.unlink()


def _model_switched(clinic: Clinic) -> None:
    """The other model is used; the one before on the next day."""
    with Ledger(clinic.cart.spool, read_only=True) as ledger:
        current = json.loads(ledger.get_meta("model") or "{}").get("model", "squeezenet1_1")
    other = str(RESNET) if base_name(current) == "squeezenet1_1" else "squeezenet1_1"
    done = clinic.command_line("model", "use", more=[other])
    if done.returncode:
        raise RuntimeError(f"model use: {done.stderr}")


def _models(clinic: Clinic) -> dict[str, int]:
    """Results by the model that their record names."""
    with Ledger(clinic.cart.spool, read_only=True) as ledger:
        rows = ledger.rows("SELECT record FROM result")
    return dict(Counter(base_name(json.loads(row["record"])["model"]) for row in rows))


def _failed(clinic: Clinic) -> dict[str, int]:
    """Faults of the page since the cart's last start, by their kind."""
    told = clinic.cart.said().splitlines()
    lines = [line for line in told if '"event": "request failed"' in line]
    return dict(Counter(json.loads(line)["kind"] for line in lines))


def _alerts(clinic: Clinic) -> set[str]:
    with Ledger(clinic.cart.spool, read_only=True) as ledger:
        return {row["code"] for row in ledger.rows("SELECT code FROM alert")}


def _told(clinic: Clinic) -> dict[str, int]:
    """How often each alert was raised, by the events."""
    with Ledger(clinic.cart.spool, read_only=True) as ledger:
        rows = ledger.rows("SELECT detail FROM event WHERE kind = 'alert'")
    return dict(Counter(json.loads(row["detail"])["code"] for row in rows))


def _measured(clinic: Clinic) -> list[Look]:
    """Memory on the quiet days, until every image that was sent has its answer."""
    for role in ROLES:
        wait_until(lambda role=role: clinic.cart.pid(role), READY_SECONDS, what=role)  # type: ignore[misc]
    pids: dict[str, int] = {}

    def are_at_work() -> bool:
        """Whether the assessor is the one that it was, and has loaded its model."""
        pids.update({role: clinic.cart.pid(role) or 0 for role in ROLES})
        return _has_loaded(clinic, pids) and clinic.cart.pid("assessor") == pids["assessor"]

    wait_until(are_at_work, READY_SECONDS, what="the assessor's model")
    looks = [look(clinic, pids)]
    while clinic.console.is_alive() or clinic.left():
        time.sleep(_LOOK_SECONDS)
        looks.append(look(clinic, pids))
    return looks


def _has_loaded(clinic: Clinic, pids: dict[str, int]) -> bool:
    """Whether the assessor has its model: an early one still grows."""
    before = look(clinic, pids).rss_kib["assessor"]
    time.sleep(2 * _LOOK_SECONDS)
    now = look(clinic, pids).rss_kib["assessor"]
    return _LOADED_MIB << 10 < now < 1.02 * before


@contextlib.contextmanager
def _browsing(port: int) -> Iterator[Counter[str]]:
    """A browser that reads one page after another; what it was answered."""
    answers: Counter[str] = Counter()
    over = threading.Event()

    def read() -> None:
        number = 0
        while not over.wait(0.2):
            answers[_answer(port, _PAGES[number % len(_PAGES)])] += 1
            number += 1

    thread = threading.Thread(target=read, name="browser", daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()


def _answer(port: int, path: str) -> str:
    """What the page answers: `as expected`, another status, or `nobody` while it is not there."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return "nobody"
    finally:
        connection.close()
    return "as expected" if answer.status in _EXPECTED else str(answer.status)
