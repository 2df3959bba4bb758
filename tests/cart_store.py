"""A spool with a ledger for tests, and images and results to put into it."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from dicom_files import dataset, written

from deepcovid_edge.cart.store.images import BuiltObject, ClaimedImage, Images, Settled
from deepcovid_edge.cart.store.intake import Arrival, Intake, Taken
from deepcovid_edge.cart.store.ledger import LEDGER_NAME, Ledger
from deepcovid_edge.cart.store.rebuild import RECORD_NAME, settled_text
from deepcovid_edge.cart.store.spool import Spool, SpoolSettings
from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.reasons import Reason

ROOMY = SpoolSettings(floor_mib=0, floor_share=0.0, ballast_mib=0)
FOLDER = Arrival("folder", "incoming")
KINDS = ("sr", "sc")
DESTINATIONS = {"pacs": KINDS}
RUN = RunFacts(
    model="squeezenet1_1-int8-cpu",
    model_sha256="0" * 64,
    backend="onnxruntime-cpu",
    variant="int8-cpu",
    classes=("normal", "covid"),
    positive_class="covid",
    threshold=0.5,
)
SCORES = {"positive": 0.9, "negative": 0.1}


def make_image(number: int = 0, **elements: Any) -> bytes:
    """A small DICOM image of its own content."""
    pixels = np.full((4, 4), number % 4096, np.uint16)
    named = {"SOPInstanceUID": f"2.25.{1000 + number}", "StudyInstanceUID": "2.25.7", **elements}
    return written(dataset(pixels, **named))


class Store:
    """A spool and its ledger with what works on them."""

    def __init__(self, folder: Path, settings: SpoolSettings = ROOMY) -> None:
        self.spool = Spool(folder, settings)
        self.ledger = Ledger(folder)
        self.intake = Intake(self.ledger, self.spool)
        self.images = Images(self.ledger, self.spool)

    def take(self, number: int = 0, **elements: Any) -> Taken:
        """Take an image as from a watched folder."""
        return self.intake.take_file(make_image(number, **elements), name="f.dcm", arrival=FOLDER)

    def assess(
        self, *, decision: str | None = "negative", kinds: Sequence[str] = KINDS
    ) -> ClaimedImage:
        """Settle the image that has waited longest with a made-up result."""
        claimed = self.images.claim()
        assert claimed is not None
        objects = [self.built(claimed, kind) for kind in kinds]
        self.images.settle(claimed, Settled(record(decision), objects, DESTINATIONS))
        return claimed

    def built(self, claimed: ClaimedImage, kind: str) -> BuiltObject:
        """A made-up object of an image, on the disk."""
        digest = hashlib.sha256(f"{claimed.image_id} {kind}".encode()).hexdigest()
        uid = f"2.25.{int(digest[:16], 16)}"
        data = make_image(0, SOPInstanceUID=uid)
        place = self.spool.results(claimed.content_sha256) / f"{uid}.dcm"
        self.spool.store([data], place)
        digest = hashlib.sha256(data).hexdigest()
        return BuiltObject(kind, "1.2.840.10008.5.1.4.1.1.7", uid, place, digest)

    def write_record(self, claimed: ClaimedImage, settled: Settled) -> Path:
        """Write a result beside its objects, as the worker does; the file."""
        place = self.spool.results(claimed.content_sha256) / RECORD_NAME
        self.spool.store([settled_text(settled).encode()], place)
        return place

    def states(self) -> list[str]:
        """The states of all images, in their order."""
        return [row["state"] for row in self.ledger.rows("SELECT state FROM image ORDER BY id")]

    def events(self) -> list[str]:
        """The kinds of all events, in their order."""
        return [row["kind"] for row in self.ledger.rows("SELECT kind FROM event ORDER BY id")]


@contextmanager
def open_store(folder: Path, settings: SpoolSettings = ROOMY) -> Iterator[Store]:
    """A store in a folder, closed at the end."""
    store = Store(folder, settings)
    with store.ledger:
        yield store


def record(decision: str | None) -> dict[str, Any]:
    """A record as `infer` writes it, with a made-up score."""
    return record_of(None if decision is None else SCORES[decision])


def record_of(score: float | None, run: RunFacts = RUN) -> dict[str, Any]:
    """A record with a score, or of a blank image."""
    if score is None:
        reason = Reason.BLANK
        return Prediction("f.dcm", run, reason=reason.code, message=reason.sentence).as_dict()
    return Prediction("f.dcm", run, probabilities={"normal": 1 - score, "covid": score}).as_dict()


def damage_table(spool: Path, table: str) -> None:
    """Overwrite the first page of a table; an open connection notices when it reads it."""
    with closing(sqlite3.connect(spool / LEDGER_NAME)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = other.execute(query, (table,)).fetchone()
        (size,) = other.execute("PRAGMA page_size").fetchone()
    with (spool / LEDGER_NAME).open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
