"""Objects over STOW-RS: Orthanc's service, and one that answers as a test says."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cart_outbox import SHORT, WAITS, alerts, all_states, config_for, fill, outbox_rows
from cart_peers import Orthanc, free_port, needs_orthanc, wait_until
from cart_store import Store
from tcp_proxy import Fault, TcpProxy

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send.outbox import Outbox
from deepcovid_edge.cart.send.stow import StowSender
from deepcovid_edge.cart.store.deliveries import Deliveries, Delivery
from deepcovid_edge.errors import NotThereError

DICOM_WEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
needs_dicom_web = pytest.mark.skipif(
    not DICOM_WEB.exists(), reason="Orthanc's DICOMweb is missing: apt-get install orthanc-dicomweb"
)
REFERENCED, FAILED = "00081199", "00081198"


@pytest.fixture
def delivery(store: Store) -> Delivery:
    fill(store, kinds=["sr"])
    (found,) = Deliveries(store.ledger, store.spool).due("pacs")
    return found


def item(uid: str, reason: int | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
    if reason is not None:
        made["00081197"] = {"vr": "US", "Value": [reason]}
    return made


def answer(**sequences: list[dict[str, Any]]) -> bytes:
    tags = {"stored": REFERENCED, "failed": FAILED}
    return json.dumps({tags[k]: {"vr": "SQ", "Value": v} for k, v in sequences.items()}).encode()


class Service:
    """What a service answers, and what it got."""

    def __init__(self) -> None:
        self.status, self.body, self.port = 200, b"{}", 0
        self.parts: list[bytes] = []
        self.kinds: list[str] = []
        self.location = ""
        self.seconds = 0.0


@contextmanager
def service() -> Iterator[Service]:
    found = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.path == "/dicom-web/studies"
            if not int(self.headers["Content-Length"]):
                self._answer()
                return
            kind = str(self.headers["Content-Type"])
            found.kinds.append(kind)
            mark = re.search(r"boundary=(\w+)", kind)
            assert mark is not None
            body = self.rfile.read(int(self.headers["Content-Length"]))
            head = f"--{mark[1]}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            end = f"\r\n--{mark[1]}--\r\n".encode()
            assert body.startswith(head)
            assert body.endswith(end)
            found.parts.append(body[len(head) : -len(end)])
            self._answer()

        def _answer(self) -> None:
            time.sleep(found.seconds)
            self.send_response(found.status)
            self.send_header("Content-Length", str(len(found.body)))
            if found.location:
                self.send_header("Location", found.location)
            self.end_headers()
            self.wfile.write(found.body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.daemon_threads = True
    found.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


def sender_to(port: int) -> StowSender:
    goal = Destination("pacs", url=f"http://127.0.0.1:{port}/dicom-web/")
    return StowSender(goal, "CART", SHORT)


CASES: list[tuple[int, dict[str, list[tuple[str, int | None]]], str, str]] = [
    (200, {"stored": [("own", None)]}, "sent", ""),
    (200, {"stored": [("own", None)], "failed": []}, "sent", ""),  # as Orthanc answers
    (202, {"stored": [("own", None)]}, "sent", ""),
    (200, {"stored": [], "failed": []}, "uncertain", ""),
    (200, {"stored": [("2.25.1", None)]}, "uncertain", ""),
    (200, {"stored": [("2.25.1", None)], "failed": [("own", 0xA700)]}, "transient", "0xA700"),
    (409, {"failed": [("own", 0xA700)]}, "transient", "0xA700"),
    (409, {"failed": [("own", 0x0122)]}, "permanent", "0x0122"),
    (409, {"failed": [("own", 0xC000)]}, "permanent", "0xC000"),
    (409, {"failed": [("own", 0x0111)]}, "sent", "0x0111"),
    (409, {"failed": [("own", None)]}, "transient", "without a reason"),
    (409, {}, "transient", "409"),
    (301, {}, "transient", "redirect, which is not followed: correct url"),
    (400, {}, "transient", "bad request"),
    (401, {}, "transient", "not authorised"),
    (413, {}, "permanent", "too large"),
    (415, {}, "permanent", "media type"),
    (500, {}, "transient", "500"),
    (503, {}, "transient", "503"),
    (507, {}, "transient", "507"),
]


def test_what_each_answer_means(delivery: Delivery) -> None:
    with service() as web:
        sender = sender_to(web.port)
        for status, sequences, kind, words in CASES:
            web.status = status
            web.body = answer(
                **{
                    name: [
                        item(delivery.sop_uid if uid == "own" else uid, reason)
                        for uid, reason in items
                    ]
                    for name, items in sequences.items()
                }
            )
            found = sender.send(delivery)
            assert (found.kind, words in found.status) == (kind, True), (status, sequences, found)
        sender.close()
        assert set(web.parts) == {delivery.path.read_bytes()}


def send_until(store: Store, web: Service, expected: dict[str, str]) -> None:
    """Send to a service until these are the alerts."""
    goal = Destination("pacs", url=f"http://127.0.0.1:{web.port}/dicom-web")
    config = config_for(store, goal)
    outbox = Outbox(config, store.ledger, store.spool, timeouts=SHORT, waits=WAITS)
    outbox.start()
    try:
        wait_until(lambda: alerts(store) == expected, 10)
    finally:
        outbox.stop()


@pytest.mark.parametrize("status", [409, 500, 503])
def test_a_service_that_answers_and_stores_nothing_is_not_said_to_be_silent(
    store: Store, status: int
) -> None:
    fill(store, kinds=["sr"])
    with service() as web:
        web.status = status
        send_until(store, web, {"waits:pacs": "destination_fails"})


@pytest.mark.parametrize(
    ("status", "location", "words"),
    [
        (200, "", None),
        (400, "", None),
        (409, "", None),
        (404, "", "HTTP 404 no such service"),
        (
            308,
            "https://u:p@pacs.example/web/studies?key=1",
            " to https://pacs.example/web/studies,",
        ),
        (302, "/login\u00e9", "HTTP 302 redirect to /login, which is not followed: correct url"),
        (301, "", "HTTP 301 redirect, which is not followed: correct url"),
        (302, "http://[", "HTTP 302 redirect, which is not followed: correct url"),
        (500, "", "HTTP 500 server error"),
        (502, "", "HTTP 502 bad gateway"),
        (504, "", "HTTP 504 gateway timeout"),
    ],
)
def test_a_service_that_takes_nothing_is_not_said_to_be_right(
    status: int, location: str, words: str | None
) -> None:
    with service() as web:
        web.status, web.location = status, location
        if words is None:
            assert "it answers" in sender_to(web.port).echo()
            return
        with pytest.raises(NotThereError) as caught:
            sender_to(web.port).echo()
    assert words in str(caught.value)
    assert not {"u:p", "key"} & set(re.split(r"[/?=@]", str(caught.value)))


def test_a_redirect_is_said_to_be_a_rejection(store: Store) -> None:
    fill(store, kinds=["sr"])
    with service() as web:
        web.status, web.location = 301, "https://127.0.0.1/dicom-web/studies"
        send_until(store, web, {"rejects cart:pacs": "destination_rejects"})
        (alert,) = store.ledger.rows("SELECT detail FROM alert")
    status = json.loads(alert["detail"])["status"]
    assert status == "HTTP 301 redirect, which is not followed: correct url"


@pytest.mark.parametrize("body", [b"", b"[]", b"no json", b"[1]", b'{"00081199": 5}', b"[" * 9999])
def test_an_answer_that_says_nothing_is_uncertain(delivery: Delivery, body: bytes) -> None:
    with service() as web:
        web.body = body
        sender = sender_to(web.port)
        assert sender.send(delivery).kind == "uncertain"
        sender.close()


def test_a_service_that_is_slow_or_away_is_tried_again(delivery: Delivery) -> None:
    closed = sender_to(free_port())
    for found in (closed.send(delivery), closed.check()):
        assert (found.kind, found.is_silent) == ("transient", True)
    with service() as web:
        web.seconds = 30.0
        sender = sender_to(web.port)
        begun = time.monotonic()
        found = sender.send(delivery)
        assert (found.kind, found.cause) == ("uncertain", "destination")
        assert found.is_silent
        assert time.monotonic() - begun < SHORT.reply + 2


def test_a_changed_file_never_leaves(delivery: Delivery) -> None:
    delivery.path.write_bytes(delivery.path.read_bytes() + b"\0\0")
    with service() as web:
        found = sender_to(web.port).send(delivery)
        assert (found.kind, found.cause, web.parts) == ("permanent", "file", [])


def test_stop_ends_a_request_that_hangs(delivery: Delivery) -> None:
    with service() as web:
        web.seconds = 30.0
        sender = sender_to(web.port)
        threading.Timer(0.3, sender.stop).start()
        begun = time.monotonic()
        assert sender.send(delivery).kind == "uncertain"
        assert time.monotonic() - begun < 1.4
        assert sender.send(delivery).status == "stopped"


@needs_orthanc
@needs_dicom_web
def test_the_outbox_fills_orthanc_over_http_through_a_network_that_breaks(
    store: Store, tmp_path: Path
) -> None:
    made = fill(store, 3, side=300)
    options: dict[str, Any] = {"Plugins": [str(DICOM_WEB)], "DicomWeb": {"Enable": True}}
    with Orthanc(tmp_path / "orthanc", **options) as orthanc, TcpProxy(orthanc.http_port) as proxy:
        proxy.fault = Fault("cut", 50_000)
        goal = Destination("pacs", url=f"http://127.0.0.1:{proxy.port}/dicom-web")
        assert StowSender(goal, "CART", SHORT).check().kind == "sent"
        other = Destination("pacs", url=f"http://127.0.0.1:{proxy.port}/dicom")
        assert "no such service" in StowSender(other, "CART", SHORT).check().status
        config = config_for(store, goal)
        outbox = Outbox(config, store.ledger, store.spool, timeouts=SHORT, waits=WAITS)
        outbox.start()
        try:
            wait_until(lambda: "uncertain" in store.events(), 10)
            proxy.fault = None
            wait_until(lambda: all_states(store) == {"sent"}, 20)
        finally:
            outbox.stop()
        assert {status for _, _, status in outbox_rows(store)} == {"HTTP 200 stored"}
        assert alerts(store) == {}
        there = {
            one["MainDicomTags"]["SOPInstanceUID"]: orthanc.get(f"/instances/{one['ID']}/file")
            for one in orthanc.find(Modality="*")
        }
        assert there == made
