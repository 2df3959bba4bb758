"""The whole cart in processes of its own, and images as a console sends them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cart_peers import HOST, Server, free_port, wait_until
from dicom_files import dataset, written

from deepcovid_edge.imaging.synthetic.phantom import draw_phantom

KANARI = "Kanarienvogel^Anna"
"""The patient of every image: the name must appear nowhere but in spool and table `who`."""


def phantom_image(
    number: int, syntax: str, *, opacities: int = 0, bits: int = 12, **elements: Any
) -> bytes:
    """A drawn image as a console sends it, of a study of its own."""
    grey = draw_phantom(number, opacities=opacities)
    pixels = grey if bits == 8 else grey.astype(np.uint16) << (bits - 8)
    image = dataset(
        pixels,
        stored=bits,
        SOPInstanceUID=f"2.25.{7000 + number}",
        StudyInstanceUID=f"2.25.{8000 + number}",
        SeriesInstanceUID=f"2.25.{9000 + number}",
        PatientName=KANARI,
        PatientID="KANARI-17",
        AccessionNumber=f"A{number}",
        **elements,
    )
    return written(image, syntax)


class WholeCart(Server):
    """`cart run` on a free port of 127.0.0.1.

    Args:
        folder: For configuration, spool and log.
        destinations: Keys of each `[[destination]]`.
        cart: Keys of the table `[cart]`.
        receive: Keys of the table `[receive]`.
        page: Keys of the table `[page]`; None for no page.
        command: Words before the command, such as of `faketime`.
        port: Its DICOM port; None for a free one.
    """

    def __init__(
        self,
        folder: Path,
        destinations: list[Mapping[str, object]],
        *,
        cart: Mapping[str, object] | None = None,
        receive: Mapping[str, object] | None = None,
        page: Mapping[str, object] | None = None,
        command: tuple[str, ...] = (),
        port: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, port or free_port()
        self.spool, self.config = folder / "spool", folder / "cart.toml"
        roomy = {"floor_mib": 1, "floor_share": 0.0, "ballast_mib": 0}
        lines = [
            *_table("[cart]", {"spool": "spool", **roomy, **(cart or {})}),
            *_table("[receive]", {"port": self.port, **(receive or {})}),
            *_table("[[peer]]", {"ae_title": "CONSOLE", "address": HOST}),
        ]
        for keys in destinations:
            lines += _table("[[destination]]", keys)
        if page is not None:
            lines += _table("[page]", page)
        self.config.write_text("\n".join(lines) + "\n")
        words = [sys.executable, "-m", "deepcovid_edge", "cart", "run", str(self.config)]
        super().__init__([*command, *words], folder / "cart.log", self._is_up)

    def wait_ready(self) -> None:
        """Wait until it listens and its model is loaded and tested."""
        wait_until(lambda: self._is_up() or self.process.poll() is not None, 180.0, what="a cart")
        super().wait_ready()

    def _is_up(self) -> bool:
        said = self.said()
        return '"listening"' in said and '"assessor started"' in said

    def status(self) -> dict[str, Any]:
        """What `cart status --json` says."""
        command = [sys.executable, "-m", "deepcovid_edge", "cart", "status", "--json"]
        done = subprocess.run(
            [*command, str(self.config)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def rows(self, query: str) -> list[sqlite3.Row]:
        """Rows of its ledger."""
        connection = sqlite3.connect(f"file:{self.spool / 'ledger.db'}?mode=ro", uri=True)
        connection.row_factory = sqlite3.Row
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def sent(self) -> int:
        """Objects that their destinations have."""
        return int(self.rows("SELECT count(*) FROM outbox WHERE state = 'sent'")[0][0])


def _table(head: str, keys: Mapping[str, object]) -> list[str]:
    return [head, *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
