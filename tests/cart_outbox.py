"""Objects in an outbox, and a destination that answers as a test says."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cart_store import Store, record
from dicom_files import EXPLICIT, dataset, written
from pynetdicom import AE, evt

from deepcovid_edge.cart.config import (
    CartConfig,
    Destination,
    JudgeSettings,
    Peer,
    ReceiveSettings,
)
from deepcovid_edge.cart.store.films import BuiltObject, Settled
from deepcovid_edge.cart.send.association import Timeouts
from deepcovid_edge.imaging.dicom.syntaxes import file_meta_end

CAPTURE, REPORT = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.33"
CLASSES = {"sr": REPORT, "sc": CAPTURE}
FIND, COMMITMENT = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.1.20.1"
IMPLICIT = "1.2.840.10008.1.2"
SHORT = Timeouts(connect=1.0, associate=1.5, stall=1.5, reply=2.0)
WAITS = (0.2, 0.3, 0.4)


def object_file(kind: str, uid: str, *, side: int = 8, syntax: str = EXPLICIT) -> bytes:
    """The file of an object; `side` squared pixels in a picture."""
    pixels = np.full((side, side), int(uid[-3:]) % 251, np.uint8)
    image = dataset(
        pixels,
        SOPClassUID=CLASSES[kind],
        SOPInstanceUID=uid,
        Modality="SR" if kind == "sr" else "OT",
        SeriesInstanceUID=f"1.2.3.{9001 if kind == 'sr' else 9002}",
    )
    if kind == "sr":
        del image.PixelData
    image.ReferencedStudySequence = [dataset(pixels[:2, :2], PixelData=None)]
    return written(image, syntax)


def fill(
    store: Store,
    films: int = 1,
    *,
    kinds: Sequence[str] = ("sr", "sc"),
    destinations: Sequence[str] = ("pacs",),
    decision: str = "negative",
    side: int = 8,
    syntax: str = EXPLICIT,
) -> dict[str, bytes]:
    """Put films with their objects into the outbox; UID -> file of each object."""
    made: dict[str, bytes] = {}
    with store.ledger.transaction():  # one fsync for all
        for number in range(len(store.states()), len(store.states()) + films):
            store.take(number)
            claimed = store.films.claim()
            assert claimed is not None
            objects = []
            for kind in kinds:
                uid = f"2.25.{7000 + 10 * number + (kind == 'sc')}"
                made[uid] = object_file(kind, uid, side=side, syntax=syntax)
                place = store.spool.results(claimed.content_sha256) / f"{uid}.dcm"
                store.spool.store([made[uid]], place)
                digest = hashlib.sha256(made[uid]).hexdigest()
                objects.append(BuiltObject(kind, CLASSES[kind], uid, place, digest))
            goals = {name: tuple(kinds) for name in destinations}
            store.films.settle(claimed, Settled(record(decision), objects, goals))
    return made


def sent_part(file: bytes) -> bytes:
    """What of a file goes out: its data set."""
    return file[file_meta_end(file) :]


def config_for(store: Store, *destinations: Destination) -> CartConfig:
    """A configuration with destinations."""
    return CartConfig(
        Path("cart.toml"),
        JudgeSettings(store.spool.folder),
        ReceiveSettings(),
        (Peer("CONSOLE", "127.0.0.1"),),
        destinations,
    )


def outbox_rows(store: Store) -> list[tuple[str, int, str | None]]:
    """State, tries and last status of each row."""
    return [
        (row["state"], row["tries"], row["last_status"])
        for row in store.ledger.rows("SELECT * FROM outbox ORDER BY destination, object_id")
    ]


def all_states(store: Store) -> set[str]:
    """The states that rows of the outbox have."""
    return {state for state, _, _ in outbox_rows(store)}


def alerts(store: Store) -> dict[str, str]:
    """Key -> code of each alert."""
    return {row["key"]: row["code"] for row in store.ledger.rows("SELECT * FROM alert")}


@dataclass
class Scripted:
    """A destination whose answers a test chooses.

    Attributes:
        port: Its port.
        status: What to answer, or what to call with the UID for it.
        arrived: UID and data set of each object that came, in its order.
        asked: UIDs that were asked for by C-FIND.
        has: What C-FIND finds; None for a failure.
        events: What it was asked to commit.
    """

    port: int = 0
    status: int | Callable[[str], int] = 0x0000
    arrived: list[tuple[str, bytes]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    has: set[str] | None = field(default_factory=set)
    associations: int = 0
    at_once: int = 0
    most_at_once: int = 0
    release: threading.Event = field(default_factory=threading.Event)

    def store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.arrived.append((uid, event.request.DataSet.getvalue()))
        answer = self.status(uid) if callable(self.status) else self.status
        self.at_once -= 1
        return answer

    def find(self, event: Any) -> Iterator[tuple[int, Any]]:
        query = event.identifier
        assert query.QueryRetrieveLevel == "IMAGE"
        assert query.StudyInstanceUID
        assert query.SeriesInstanceUID
        self.asked.append(str(query.SOPInstanceUID))
        if self.has is None:
            yield 0xC001, None
        elif query.SOPInstanceUID in self.has:
            yield 0xFF00, query

    def opened(self, _event: Any) -> None:
        self.associations += 1

    @property
    def uids(self) -> list[str]:
        """UIDs of what came, in its order."""
        return [uid for uid, _ in self.arrived]


@contextmanager
def scripted(
    *,
    port: int = 0,
    classes: Sequence[str] = (CAPTURE, REPORT),
    syntaxes: Sequence[str] = (EXPLICIT, IMPLICIT),
    finds: bool = True,
    title: str = "PACS",
    require_called: bool = False,
    handlers: Sequence[Any] = (),
    more: Sequence[str] = (),
    context: Any = None,
    into: Scripted | None = None,
) -> Iterator[Scripted]:
    """A destination of pynetdicom on 127.0.0.1."""
    found = into or Scripted()
    entity = AE(title)
    entity.require_called_aet = require_called
    for name in classes:
        entity.add_supported_context(name, list(syntaxes))
    entity.add_supported_context("1.2.840.10008.1.1")
    for name in (*more, *([FIND] if finds else [])):
        entity.add_supported_context(name)
    server = entity.start_server(
        ("127.0.0.1", port),
        block=False,
        ssl_context=context,
        evt_handlers=[
            (evt.EVT_C_STORE, found.store),
            (evt.EVT_C_FIND, found.find),
            (evt.EVT_ESTABLISHED, found.opened),
            *handlers,
        ],
    )
    assert server is not None
    assert server.socket is not None
    found.port = server.socket.getsockname()[1]
    try:
        yield found
    finally:
        found.release.set()
        with suppress(Exception):
            server.shutdown()
