"""Forms and odd requests: nothing is read that is not wanted, and what was taken is said."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from cart_page import PIN, RunningPage, drawn_image, filled, served
from cart_peers import HOST, wait_until
from cart_store import open_store

from deepcovid_edge.cart.page.access import Pin
from deepcovid_edge.cart.store.spool import Spool, SpoolFullError

URL_ENCODED = "application/x-www-form-urlencoded"
LONG = "9" * 5000


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPage]:
    """A page without a PIN."""
    with served(filled(tmp_path_factory.mktemp("open"))) as found:
        yield found


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "text/plain", "", None])
def test_before_the_pin_a_form_of_another_kind_is_refused_unread(
    tmp_path: Path, kind: str | None
) -> None:
    """Its sender has sent the head alone, and promised 40 MB."""
    Pin.of(PIN).write(tmp_path / "pin")
    with served(filled(tmp_path), pin_file="pin") as found:
        port = found.reader.port
        lines = ["POST /log-in HTTP/1.1", f"Host: {HOST}:{port}", f"Origin: {found.reader.origin}"]
        lines += [f"Content-Type: {kind}"] if kind is not None else []
        with socket.create_connection((HOST, port), timeout=10) as sender:
            sender.sendall("\r\n".join([*lines, "Content-Length: 40000000", "", ""]).encode())
            assert sender.recv(4096).startswith(b"HTTP/1.1 415 ")


@pytest.mark.parametrize("kind", [f"{URL_ENCODED}; charset=utf-8", URL_ENCODED.upper()])
def test_the_kind_of_a_form_may_be_written_in_any_way(running: RunningPage, kind: str) -> None:
    fields = {"token": running.reader.get("/alerts").token(), "key": "none"}
    assert running.reader.post("/alerts/acknowledge", fields, Content_Type=kind).status == 303


@pytest.mark.parametrize("twice", ["token", "key"])
def test_a_form_with_a_field_twice_is_refused(running: RunningPage, twice: str) -> None:
    fields = {"token": running.reader.get("/alerts").token(), "key": "silent:pacs"}
    body = urlencode([*fields.items(), (twice, fields[twice])]).encode()
    origin = running.reader.origin
    answer = running.reader.ask(
        "POST", "/alerts/acknowledge", body, Origin=origin, Content_Type=URL_ENCODED
    )
    assert answer.status == 400


def test_a_head_of_the_events_ends_at_once(running: RunningPage) -> None:
    started = time.monotonic()
    answer = running.reader.ask("HEAD", "/changes")
    assert (answer.status, answer.data) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("image", [LONG, "-1", "1.0", "\N{ARABIC-INDIC DIGIT ONE}", "x"])
def test_an_image_of_no_number_is_not_there(running: RunningPage, image: str) -> None:
    name = image if image.isascii() else "%D9%A1"
    for path in (f"/image/{name}", f"/image/{name}/picture"):
        assert running.reader.get(path).status == 404
    token = running.reader.get("/alerts").token()
    assert running.reader.post(f"/image/{name}/resend", {"token": token}).status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        *(
            f"/?before={LONG}",
            "/?before=1&before=x",
            "/?before",
            "/?" + "a=b&" * 10_000,
            "/?%ff%00",
        ),
        *("/audit?before=-1", "/image/1?map=1&map=2", "/?language=en&language=xx", "/metrics?a"),
    ],
)
def test_odd_queries_are_no_faults(running: RunningPage, method: str, path: str) -> None:
    assert running.reader.ask(method, path).status in (200, 303)


def test_of_several_files_those_that_were_not_taken_are_named(tmp_path: Path) -> None:
    with served(filled(tmp_path)) as found:
        token = found.reader.get("/").token()
        files = {"1.dcm": drawn_image(7), "<b>.txt": b"no image", "3.dcm": drawn_image(8)}
        answer = found.reader.upload(token, {**files, "empty.dcm": b""})
        assert answer.status == 422
        assert "Not taken: &lt;b&gt;.txt, empty.dcm. Other files taken: 2." in answer.text
        alone = found.reader.upload(token, {"empty.dcm": b""})
        assert alone.status == 422
        assert "Not taken" not in alone.text
        assert found.reader.upload(token, {"": b""}).status == 400  # none was chosen
    with open_store(tmp_path / "spool") as store:
        assert len(store.states()) == 4


def test_files_for_which_there_is_no_room_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([True])

    def check_room(_self: Spool, size: int) -> None:
        if size < 1 << 20 and not next(left, False):  # an image; the lights ask for more
            raise SpoolFullError("full")

    with served(filled(tmp_path)) as found:
        token = found.reader.get("/").token()
        monkeypatch.setattr(Spool, "check_room", check_room)
        answer = found.reader.upload(token, {"1.dcm": drawn_image(7), "2.dcm": drawn_image(8)})
        assert answer.status == 507
        assert "Not taken: 2.dcm. Other files taken: 1." in answer.text


def test_too_many_files_are_said_to_be_so(tmp_path: Path) -> None:
    with served(filled(tmp_path)) as found:
        home = found.reader.get("/")
        assert "At most 16 files and" in home.text
        files = dict.fromkeys(map(str, range(17)), b"no image")
        answer = found.reader.upload(home.token(), files)
        assert answer.status == 400
        assert "At most 16 files go together. None was taken." in answer.text
        del files["0"]
        assert "neither DICOM nor a picture" in found.reader.upload(home.token(), files).text


def test_a_sender_that_goes_away_is_no_fault(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = ""
    with served(filled(tmp_path)) as found:
        port, origin = found.reader.port, found.reader.origin
        head = f"POST /log-in HTTP/1.1\r\nHost: {HOST}:{port}\r\nOrigin: {origin}\r\n"
        begun = f"{head}Content-Type: {URL_ENCODED}\r\nContent-Length: 9\r\n\r\na".encode()

        def is_told() -> bool:
            """Begin a form and go away; before the page looked, it is no request yet."""
            nonlocal said
            with socket.create_connection((HOST, port)) as sender:
                sender.sendall(begun)
                time.sleep(0.1)
            said += capfd.readouterr().out
            return "page form refused" in said or "request failed" in said

        wait_until(is_told)
    assert "request failed" not in said
