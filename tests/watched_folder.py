"""A watched folder with its ledger: scans are made one by one, with a clock of the test's own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from dicom_files import EXPLICIT, dataset, written

from deepcovid_edge.cart.config import ReceiveSettings
from deepcovid_edge.cart.receive.folder import FolderWatch
from deepcovid_edge.cart.store.intake import Intake
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.spool import Spool, SpoolSettings


class WatchedFolder:
    """A watched folder with its ledger; scans are made one by one."""

    def __init__(self, place: Path, ledger: Ledger, after: Any = "keep") -> None:
        self.folder, self.ledger = place / "incoming", ledger
        self.folder.mkdir(exist_ok=True)
        self.after = after
        self.now = 0.0
        self.stop = threading.Event()
        spool = Spool(place / "spool", SpoolSettings(floor_mib=0, floor_share=0, ballast_mib=0))
        self.intake = Intake(ledger, spool)
        self.start()

    def start(self, max_image_mib: int = 1) -> None:
        """Begin again, as after a restart."""
        settings = ReceiveSettings(
            folders=(self.folder,), after=self.after, max_image_mib=max_image_mib
        )
        self.watch = FolderWatch(
            self.folder, settings, self.intake, self.stop, clock=lambda: self.now
        )

    def scan(self, times: int = 1, seconds: float = 2.0) -> int:
        taken = 0
        for _ in range(times):
            self.now += seconds
            taken += self.watch.scan()
        return taken

    def images(self) -> int:
        return len(self.ledger.rows("SELECT id FROM image"))

    def arrivals(self) -> int:
        return len(self.ledger.rows("SELECT id FROM arrival"))

    def events(self, kind: str) -> list[str]:
        return [
            row["detail"] for row in self.ledger.rows("SELECT * FROM event") if row["kind"] == kind
        ]

    def alerts(self) -> list[str]:
        return [row["code"] for row in self.ledger.rows("SELECT code FROM alert")]


def make_image(number: int = 0, syntax: str = EXPLICIT) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 4096, (40, 30)).astype(np.uint16)
    return written(dataset(pixels, stored=12, SOPInstanceUID=f"1.2.3.{number}"), syntax)
