"""The page of a cart for tests: a spool with drawn images, and the page that shows it."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from cart_peers import HOST, free_port, wait_until
from cart_store import Store, open_store
from dicom_files import dataset, written

from deepcovid_edge.cart.config import CartConfig, read_config
from deepcovid_edge.cart.heartbeat import RECEIVER, WORKER, Heartbeat
from deepcovid_edge.cart.page.role import page
from deepcovid_edge.cart.pictures import MAP, write_pictures
from deepcovid_edge.cart.store.images import Settled
from deepcovid_edge.cart.store.intake import Arrival
from deepcovid_edge.files import write_atomically
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom
from deepcovid_edge.reasons import Reason

CONSOLE = Arrival("ae", HOST, "CONSOLE")
LIMITS = {"low": 0.2, "high": 0.6}
SCORES = {"positive": 0.83, "indeterminate": 0.41, "negative": 0.07}
PIN = "274951"
HOSTILE = '<script>document.title="taken"</script>'


def result(decision: str | None, *, reason: str = "E_VIEW", **values: Any) -> dict[str, Any]:
    """A record as `infer` writes it, with made-up numbers."""
    score = SCORES.get(decision or "")
    return {
        "schema_version": 1,
        "reason": None if decision else reason,
        "message": None if decision else Reason.of(reason).sentence,
        "warnings": ["W_AP", "W_NO_VIEW"] if decision == "indeterminate" else [],
        "model": "squeezenet1_1",
        "model_sha256": "a" * 64,
        "backend": "onnxruntime-cpu",
        "variant": "fp32",
        "probability": score,
        "limits": LIMITS,
        "site": None,
        "decision": decision,
        "timings_ms": {"read": 31.0, "preprocess": 12.0, "infer": 40.0, "total": 90.0},
        **values,
    }


def drawn_image(number: int, **elements: Any) -> bytes:
    """A small drawn image of a study of its own."""
    return written(
        dataset(
            np.full((4, 4), number % 4096, np.uint16),
            SOPInstanceUID=f"2.25.{6000 + number}",
            StudyInstanceUID=f"2.25.{5000 + number}",
            PatientName=elements.pop("PatientName", "Muster^Eva"),
            PatientID=elements.pop("PatientID", f"P-{number}"),
            AcquisitionDate="20260131",
            AcquisitionTime="140509.12",
            **elements,
        )
    )


def put(
    store: Store, number: int, decision: str | None, *, picture: bool = True, **elements: Any
) -> int:
    """Have an image come and be assessed; its row."""
    record = result(decision, **elements.pop("record", {}))
    data = drawn_image(number, **elements)
    taken = store.intake.take_file(data, name=f"{number}.dcm", arrival=CONSOLE)
    claimed = store.images.claim()
    assert claimed is not None
    objects = [store.built(claimed, kind) for kind in (("sr", "sc") if decision else ("sr",))]
    if picture:
        pixels = draw_phantom(number, opacities=9 if decision == "positive" else 0)
        folder = store.spool.results(claimed.content_sha256)
        write_pictures(folder, Radiograph(pixels, 255, "0" * 64, "PNG"))
        write_atomically(folder / MAP, (folder / "picture.jpg").read_bytes())
    store.images.settle(claimed, Settled(record, objects, {"pacs": ("sr", "sc")}))
    for key in (RECEIVER, WORKER):
        Heartbeat(store.ledger, key).beat()
    return taken.image_id


@dataclass
class Answer:
    """What a page answered."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def text(self) -> str:
        """The body."""
        return self.data.decode()

    def token(self) -> str:
        """The token of the page's forms."""
        found = re.search(r'name="token" value="([0-9a-f]{64})"', self.text)
        assert found, self.text
        return found[1]


class Reader:
    """A browser without a screen: it keeps cookies and follows nothing."""

    def __init__(self, port: int) -> None:
        self.port, self.cookies = port, dict[str, str]()

    @property
    def origin(self) -> str:
        """Where its forms come from."""
        return f"http://{HOST}:{self.port}"

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str | None) -> Answer:
        """Send a request as it is; a header of None is left out."""
        sent: dict[str, str | None] = {
            "Host": f"{HOST}:{self.port}",
            "Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()) or None,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            if method == "POST":
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            for name, value in response.getheaders():
                if name == "set-cookie":
                    cookie = value.partition(";")[0].partition("=")
                    self.cookies[cookie[0]] = cookie[2]
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str | None) -> Answer:
        """Ask for a page."""
        return self.ask("GET", path, b"", **headers)

    def post(self, path: str, fields: Mapping[str, str], **headers: str | None) -> Answer:
        """Send a form of this page."""
        named = {
            "Origin": self.origin,
            "Content_Type": "application/x-www-form-urlencoded",
            **headers,
        }
        return self.ask("POST", path, urlencode(fields).encode(), **named)

    def upload(self, token: str, files: Mapping[str, bytes], **headers: str | None) -> Answer:
        """Put files onto the page, as a form does without a script."""
        edge = "an-edge-that-is-in-no-image"
        parts = [_part(edge, 'name="token"', token.encode())]
        parts += [
            _part(edge, f'name="image"; filename="{name}"', data) for name, data in files.items()
        ]
        body = b"".join([*parts, f"--{edge}--\r\n".encode()])
        kind = f"multipart/form-data; boundary={edge}"
        return self.ask(
            "POST", "/upload", body, **{"Origin": self.origin, "Content_Type": kind, **headers}
        )

    def log_in(self, pin: str = PIN) -> Answer:
        """Give a PIN."""
        token = self.get("/log-in").token()
        return self.post("/log-in", {"token": token, "pin": pin})


def _part(edge: str, words: str, data: bytes) -> bytes:
    head = f"--{edge}\r\nContent-Disposition: form-data; {words}\r\n\r\n"
    return head.encode() + data + b"\r\n"


@dataclass
class RunningPage:
    """A page that is served in a thread of this process.

    Attributes:
        config: Its configuration.
        reader: Asks it.
        stop: Ends it.
        thread: In which it runs.
    """

    config: CartConfig
    reader: Reader
    stop: threading.Event
    thread: threading.Thread

    @property
    def address(self) -> str:
        """Of its home page."""
        return f"{self.reader.origin}/"


def write_config(folder: Path, port: int, **keys: object) -> CartConfig:
    """A configuration with a page on a port of 127.0.0.1."""
    tables: dict[str, dict[str, object]] = {
        "[cart]": {"spool": "spool", "floor_mib": 0, "floor_share": 0.0, "ballast_mib": 0},
        "[[peer]]": {"ae_title": "CONSOLE", "address": HOST},
        "[[destination]]": {"name": "pacs", "ae_title": "PACS", "host": HOST, "port": 4242},
        "[page]": {"port": port, **keys},
    }
    lines = []
    for head, values in tables.items():
        lines += [head, *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
    path = folder / "cart.toml"
    path.write_text("\n".join(lines) + "\n")
    return read_config(path)


@contextmanager
def served(folder: Path, **keys: object) -> Iterator[RunningPage]:
    """Serve the page of the spool in a folder; `keys` are those of `[page]`."""
    config = write_config(folder, free_port(), **keys)
    assert config.page
    stop, failed = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            page(config, stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="page")
    running = RunningPage(config, Reader(config.page.port), stop, thread)
    thread.start()
    try:
        wait_until(lambda: failed or _answers(running.reader), what="the page")
        assert not failed, failed
        yield running
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def _answers(reader: Reader) -> bool:
    try:
        return reader.get("/healthz").status == 200
    except OSError:
        return False


def filled(folder: Path) -> Path:
    """A spool with an image of each kind, the first of a patient with a hostile name; alerts."""
    with open_store(folder / "spool") as store:
        put(
            store,
            0,
            "positive",
            PatientName=HOSTILE,
            PatientID=HOSTILE,
            AccessionNumber=HOSTILE[:16],
            StationName=HOSTILE[:16],
        )
        put(store, 1, None)
        store.ledger.raise_alert("silent:pacs", "destination_silent", why=HOSTILE)
    return folder
