"""From the answer to the console to the last object in Orthanc, with what it is made of.

Films of a detector's size are sent one at a time. The parts are

- `wait`: until the judge begins; it may begin before the answer has reached the console,
- `judge`: what the film's own record says of itself: reading, network, heat map,
- `build`: report and picture, on the disk and in the ledger,
- `send`: until Orthanc has answered for the last object.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from cart_peers import HOST, Orthanc, wait_until
from dicom_files import (
    EXPLICIT,
    HTJ2K,
    J2K,
    JPEG_LS,
    LOSSLESS_SV1,
    RLE,
    WRITABLE,
    dataset,
    written,
)
from pydicom import dcmread
from pynetdicom import AE
from whole_cart import WholeCart

from benchmarks.measure import summary
from deepcovid_edge.imaging.dicom.syntaxes import IMPLICIT
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom

_ROWS, _COLUMNS, _BITS = 2500, 2000, 12
SYNTAXES = {
    "uncompressed": EXPLICIT,
    "implicit VR": IMPLICIT,
    "JPEG Lossless": LOSSLESS_SV1,
    "JPEG-LS": JPEG_LS,
    "JPEG 2000": J2K,
    "RLE": RLE,
    "HTJ2K": HTJ2K,
}
PARTS = ("wait", "judge", "build", "send")
_PICTURES = 3
_WARM_UP = 2
"""Films at the beginning that are not counted."""
_DELIVERY_SECONDS = 60.0


def latency(folder: Path, films: int, seed: int) -> dict[str, Any]:
    """Send films, the syntaxes in turn; the figures, milliseconds."""
    syntaxes = [name for name, uid in SYNTAXES.items() if uid in WRITABLE]
    spent: dict[str, list[float]] = defaultdict(list)
    by_syntax: dict[str, list[float]] = defaultdict(list)
    with Orthanc(folder / "orthanc") as pacs:
        destination = {"name": "pacs", "ae_title": "ORTHANC", "host": HOST, "port": pacs.port}
        with WholeCart(folder / "cart", [destination]) as cart:
            for number in range(-_WARM_UP, films):
                syntax = syntaxes[number % len(syntaxes)]
                found = _one(cart, _film(number + _WARM_UP, seed, SYNTAXES[syntax]))
                if number >= 0:
                    by_syntax[syntax].append(found["total"])
                    for name, value in found.items():
                        spent[name].append(value)
            sent = cart.sent()
        objects = len(pacs.find())
    if objects != sent:
        raise RuntimeError(f"Orthanc has {objects} objects, the cart sent {sent}")
    return {
        "films": films,
        "rows": _ROWS,
        "columns": _COLUMNS,
        "bits": _BITS,
        "objects": objects,
        "ms": {name: _figures(values) for name, values in spent.items()},
        "by_syntax_ms": {name: _figures(values) for name, values in by_syntax.items()},
        "seed": seed,
    }


def _figures(samples: list[float]) -> dict[str, Any]:
    return {**summary(samples), "quantile_90": float(np.quantile(samples, 0.9))}


def _film(number: int, seed: int, syntax: str) -> Any:
    grey = draw_phantom(number % _PICTURES, opacities=9 * (number % 2))
    large = cv2.resize(grey, (_COLUMNS, _ROWS), interpolation=cv2.INTER_CUBIC)
    base = f"2.25.{(seed + 1) * 10**6 + number}"
    image = dataset(
        large.astype(np.uint16) << (_BITS - 8),
        stored=_BITS,
        SOPInstanceUID=f"{base}1",
        StudyInstanceUID=f"{base}2",
        SeriesInstanceUID=f"{base}3",
    )
    return dcmread(BytesIO(written(image, syntax)))


def _one(cart: WholeCart, film: Any) -> dict[str, float]:
    """Send a film and wait for its objects in the PACS; milliseconds."""
    entity = AE("CONSOLE")
    entity.add_requested_context(film.SOPClassUID, film.file_meta.TransferSyntaxUID)
    entity.maximum_pdu_size = 0
    association = entity.associate(HOST, cart.port, ae_title="CART")
    started = time.time()
    status = association.send_c_store(film).Status
    answered = time.time()
    association.release()
    if status:
        raise RuntimeError(f"the cart answered 0x{status:04X}")
    uid = str(film.SOPInstanceUID)
    wait_until(lambda: _is_delivered(cart, uid), _DELIVERY_SECONDS, what="objects in the PACS")
    (row,) = cart.rows(
        "SELECT film.id, record FROM film JOIN result ON film_id = film.id"
        f" WHERE film.sop_uid = '{uid}'"
    )
    number = row["id"]
    times = {
        event["kind"]: datetime.fromisoformat(event["at_utc"]).timestamp()
        for event in cart.rows(f"SELECT * FROM event WHERE film_id = {number} ORDER BY id")
    }
    took = 1e3 * _seconds_of_judge(cart, number)
    judge = float(json.loads(row["record"])["timings_ms"]["total"])
    judged = 1e3 * (times["judged"] - answered)
    return {
        "store": 1e3 * (answered - started),
        "total": 1e3 * (times["sent"] - answered),
        "wait": judged - took,
        "judge": judge,
        "build": took - judge,
        "send": 1e3 * (times["sent"] - times["judged"]),
    }


def _is_delivered(cart: WholeCart, uid: str) -> bool:
    rows = cart.rows(
        "SELECT outbox.state FROM outbox JOIN object ON object.id = object_id"
        " JOIN result ON result.id = result_id JOIN film ON film.id = film_id"
        f" WHERE film.sop_uid = '{uid}'"
    )
    return len(rows) == 2 and all(row["state"] == "sent" for row in rows)


def _seconds_of_judge(cart: WholeCart, film: int) -> float:
    """What the worker's log says of a film: from claim to ledger."""
    line = next(
        line for line in cart.said().splitlines() if f'"event": "judged", "film": {film},' in line
    )
    return float(json.loads(line)["seconds"])
