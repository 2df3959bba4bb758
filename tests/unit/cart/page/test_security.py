"""Nobody gets in who should not: each attack of its own, on a page that is really served."""

from __future__ import annotations

import json
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cart_page import (
    PIN,
    Reader,
    RunningPage,
    drawn_image,
    filled,
    served,
    write_config,
)
from cart_peers import HOST, wait_until
from cart_store import open_store

from deepcovid_edge.cart.page.access import Pin
from deepcovid_edge.cart.page.guard import POLICY
from deepcovid_edge.cart.page.images import detail_pairs, named_values
from deepcovid_edge.cart.page.role import page
from deepcovid_edge.errors import NotThereError

PAGES = ("/", "/image/1", "/alerts", "/statistics", "/audit")
PICTURES = ("/image/1/picture", "/image/1/thumbnail", "/image/1/map")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPage]:
    """A page without a PIN, as a new cart has it."""
    with served(filled(tmp_path_factory.mktemp("open"))) as found:
        yield found


@pytest.fixture(scope="module")
def shut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPage]:
    """A page whose PIN nobody gives."""
    folder = tmp_path_factory.mktemp("shut")
    Pin.of(PIN).write(folder / "pin")
    with served(filled(folder), pin_file="pin") as found:
        yield found


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[RunningPage]:
    """A page with a PIN."""
    Pin.of(PIN).write(tmp_path / "pin")
    with served(filled(tmp_path), pin_file="pin") as found:
        yield found


@pytest.mark.parametrize("path", [*PAGES, "/nothing", "/log-in", "/healthz", "/static/x/no.js"])
def test_every_answer_has_the_headers(running: RunningPage, path: str) -> None:
    answer = running.reader.get(path)
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers


def test_a_refused_host_has_the_headers_too(running: RunningPage) -> None:
    answer = running.reader.get("/", Host="attacker.example")
    assert answer.status == 400
    assert answer.headers["content-security-policy"] == POLICY


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    assert POLICY.startswith("default-src 'none'")
    assert "unsafe" not in POLICY
    assert "http" not in POLICY


@pytest.mark.parametrize("path", PAGES)
def test_no_page_has_inline_script_or_style_or_an_address_elsewhere(
    running: RunningPage, path: str
) -> None:
    text = running.reader.get(path).text
    assert "<script>" not in text
    assert " style=" not in text
    assert " onclick" not in text
    assert "http://" not in text
    assert "https://" not in text


@pytest.mark.parametrize(
    "host",
    ["attacker.example", "127.0.0.1.attacker.example", "", "127.0.0.1@attacker.example", "a b"],
)
def test_another_host_header_is_refused(running: RunningPage, host: str) -> None:
    assert running.reader.get("/", Host=host).status == 400


@pytest.mark.parametrize("host", ["127.0.0.1/log-in?", "127.0.0.1:80/static/"])
def test_a_host_header_with_a_path_opens_nothing(shut: RunningPage, host: str) -> None:
    """The hole of another cart: an exemption by a URL that holds the `Host` header."""
    answer = shut.reader.get("/", Host=host)
    assert answer.status in (303, 400)
    assert "FLAG" not in answer.text


def test_forwarded_headers_are_nobody_s_address(locked: RunningPage) -> None:
    for number in range(2):
        token = locked.reader.get("/log-in").token()
        answer = locked.reader.post(
            "/log-in",
            {"token": token, "pin": "000000"},
            X_Forwarded_For=f"10.0.0.{number}",
            Forwarded=f"for=10.0.0.{number}",
        )
        assert answer.status == 429
    assert float(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", [*PAGES, *PICTURES, "/changes", "/nothing", "/upload"])
def test_before_the_pin_nothing_is_shown(shut: RunningPage, path: str) -> None:
    answer = shut.reader.get(path)
    assert (answer.status, answer.headers.get("location")) == (303, "/log-in")
    assert not answer.data


@pytest.mark.parametrize(
    "path",
    ["//", "/.", "/%2e/", "/log-in/../image/1", "/static/../", "/log-in/", "/LOG-IN", "/image/1/"],
)
def test_before_the_pin_no_spelling_of_an_address_opens_it(shut: RunningPage, path: str) -> None:
    answer = shut.reader.get(path)
    assert answer.status in (303, 307, 404)
    assert "FLAG FOR REVIEW" not in answer.text


@pytest.mark.parametrize("path", ["/image/1/resend", "/alerts/acknowledge", "/upload", "/log-out"])
def test_before_the_pin_no_form_is_taken(shut: RunningPage, path: str) -> None:
    token = shut.reader.get("/log-in").token()
    assert shut.reader.post(path, {"token": token, "key": "silent:pacs"}).status == 403


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_programs_of_this_machine_need_no_pin(shut: RunningPage, path: str) -> None:
    assert shut.reader.get(path).status == 200


def test_after_the_pin_the_page_is_shown_with_names(locked: RunningPage) -> None:
    assert locked.reader.log_in().status == 303
    text = locked.reader.get("/").text
    assert "FLAG FOR REVIEW" in text
    assert "P-1" in text
    assert "Born" in locked.reader.get("/image/2").text


def test_without_a_pin_no_name_is_shown(running: RunningPage) -> None:
    text = running.reader.get("/image/2").text + running.reader.get("/").text
    assert "P-1" not in text
    assert "Muster" not in text
    assert "19570402" not in text


def test_names_can_be_shown_never_or_always_at_this_machine(tmp_path: Path) -> None:
    filled(tmp_path)
    Pin.of(PIN).write(tmp_path / "pin")
    with served(tmp_path, names="always") as found:
        assert "P-1" in found.reader.get("/").text
    with served(tmp_path, names="never", pin_file="pin") as found:
        assert found.reader.log_in().status == 303
        assert "P-1" not in found.reader.get("/").text
        assert "Muster" not in found.reader.get("/image/2").text


def test_the_session_cookie_is_out_of_reach_of_scripts_and_other_sites(
    locked: RunningPage,
) -> None:
    before = dict(locked.reader.cookies)
    answer = locked.reader.log_in()
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Max-Age=43200" in cookie
    assert locked.reader.cookies["cart"] not in before.values()  # none that was there before


def test_a_cookie_that_somebody_made_up_opens_nothing(shut: RunningPage) -> None:
    shut.reader.cookies["cart"] = "a" * 43
    assert shut.reader.get("/").status == 303


def test_locked_again_the_old_cookie_opens_nothing(locked: RunningPage) -> None:
    locked.reader.log_in()
    token = locked.reader.get("/").token()
    assert locked.reader.post("/log-out", {"token": token}).status == 303
    assert locked.reader.get("/").status == 303


def test_wrong_pins_are_slowed_and_the_right_one_must_wait_too(locked: RunningPage) -> None:
    waits = []
    for _ in range(4):
        answer = locked.reader.log_in("111111")
        assert answer.status == 429
        waits.append(int(answer.headers["retry-after"]))
    assert waits[0] >= 1
    assert locked.reader.log_in(PIN).status == 429
    assert "location" not in locked.reader.log_in(PIN).headers
    wait_until(lambda: locked.reader.log_in(PIN).status == 303, 20, step=0.3)


@pytest.mark.parametrize(
    "origin",
    ["http://attacker.example", "null", "", None, "https://127.0.0.1", "http://127.0.0.1:1"],
)
def test_a_form_from_elsewhere_is_refused(running: RunningPage, origin: str | None) -> None:
    token = running.reader.get("/").token()
    fields = {"token": token, "key": "silent:pacs"}
    answer = running.reader.post("/alerts/acknowledge", fields, Origin=origin)
    assert answer.status == 403
    assert "A destination does not answer" in running.reader.get("/alerts").text


@pytest.mark.parametrize("token", ["", "0" * 64, "é"])
def test_a_form_without_its_token_is_refused(running: RunningPage, token: str) -> None:
    running.reader.get("/")
    fields = {"token": token, "key": "silent:pacs"}
    assert running.reader.post("/alerts/acknowledge", fields).status == 403


def test_the_token_of_another_browser_is_refused(running: RunningPage) -> None:
    other = Reader(running.reader.port)
    token = other.get("/").token()
    running.reader.get("/")
    answer = running.reader.post("/alerts/acknowledge", {"token": token, "key": "silent:pacs"})
    assert answer.status == 403


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"])
def test_other_methods_do_nothing(running: RunningPage, method: str) -> None:
    assert running.reader.ask(method, "/image/1").status == 405


@pytest.mark.parametrize("path", ["/image/1/resend", "/alerts/acknowledge", "/upload", "/log-out"])
def test_an_action_by_address_alone_is_not_there(running: RunningPage, path: str) -> None:
    assert running.reader.get(path).status in (404, 405)


@pytest.mark.parametrize(
    "path",
    [
        "/image/1/../../ledger.db",
        "/image/1/%2e%2e%2f%2e%2e%2fledger.db",
        "/image/1/record.json",
        "/image/-1/picture",
        "/image/99999999999999999999/picture",
        "/static/x/..%2fapp.py",
        "/static/x/%2e%2e/app.py",
        "/static/../app.py",
        "/image/1/picture%00",
    ],
)
def test_no_file_is_served_by_its_path(running: RunningPage, path: str) -> None:
    assert running.reader.get(path).status == 404


def test_an_image_that_was_not_assessed_has_no_number_and_no_map(running: RunningPage) -> None:
    text = running.reader.get("/image/2").text
    assert "NOT ASSESSED" in text
    assert 'class="bar"' not in text
    assert 'id="toggle"' not in text
    assert "score" not in text.lower()
    assert running.reader.get("/image/2/map").status == 404


def test_what_an_image_says_is_text(tmp_path: Path) -> None:
    Pin.of(PIN).write(tmp_path / "pin")
    with served(filled(tmp_path), pin_file="pin") as found:
        found.reader.log_in()
        for path in PAGES:
            assert "<script>" not in found.reader.get(path).text, path
        assert "&lt;script&gt;document.title" in found.reader.get("/image/1").text
        assert "&lt;script&gt;" in found.reader.get("/alerts").text


def test_a_language_may_be_chosen_before_the_pin(locked: RunningPage) -> None:
    answer = locked.reader.get("/?language=fa")
    assert (answer.status, answer.headers["location"]) == (303, "/log-in")
    for path in ("/log-in", "/?language=klingon", "/log-in"):
        answer = locked.reader.get(path)
        assert answer.status == 303 or '<html lang="fa" dir="rtl">' in answer.text


def test_details_of_events_are_read_by_people() -> None:
    digest = "43ba6f42" * 8
    text = json.dumps({"model_sha256": digest, "reason": None, "words": ["a", "b"], "tries": 0})
    pairs = [("model sha256", "43ba6f4243ba"), ("words", "a, b"), ("tries", "0")]
    assert detail_pairs(text) == pairs


def test_times_in_details_stand_on_the_clock_that_all_others_stand_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Asia/Seoul")
    time.tzset()
    try:
        detail = {"since": "2026-11-30T01:00:00.000+00:00", "status": "20261130"}
        assert named_values(detail) == [("since", "2026-11-30 10:00:00"), ("status", "20261130")]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_no_name_and_no_uid_is_in_metrics_or_audit(running: RunningPage) -> None:
    for path in ("/metrics", "/audit"):
        text = running.reader.get(path).text
        assert "Muster" not in text
        assert "script>document" not in text
        assert "2.25." not in text


def test_a_large_form_is_refused_before_it_is_read(running: RunningPage) -> None:
    running.reader.get("/")
    body = b"token=" + b"a" * 100_000
    kind = "application/x-www-form-urlencoded"
    answer = running.reader.ask(
        "POST", "/alerts/acknowledge", body, Origin=running.reader.origin, Content_Type=kind
    )
    assert answer.status == 413


def test_an_upload_beyond_the_cap_is_refused_and_none_of_it_is_kept(tmp_path: Path) -> None:
    filled(tmp_path)
    with served(tmp_path) as found:
        token = found.reader.get("/").token()
        assert found.config.receive.max_image_mib == 64
        try:
            status = found.reader.upload(token, {"big.dcm": bytes(65 << 20)}).status
        except (BrokenPipeError, ConnectionResetError):  # refused while it was being sent
            status = 413
        assert status == 413
    with open_store(tmp_path / "spool") as store:
        assert len(store.states()) == 2


def test_an_image_comes_by_a_form_and_what_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = tmp_path / "passing"
    passing.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(passing))
    with served(filled(tmp_path)) as found:
        token = found.reader.get("/").token()
        answer = found.reader.upload(token, {"../../<b>.dcm": drawn_image(7)})
        assert (answer.status, answer.headers["location"]) == (303, "/image/3")
        again = found.reader.upload(token, {"x.dcm": drawn_image(7)})
        assert again.headers["location"] == "/image/3"
        two = found.reader.upload(token, {"a": drawn_image(8), "b": drawn_image(9)})
        assert two.headers["location"] == "/"
        assert found.reader.upload(token, {"a.txt": b"no image at all"}).status == 422
        assert found.reader.upload(token, {}).status == 400
        assert found.reader.upload("0" * 64, {"a": drawn_image(10)}).status == 403
        assert found.reader.upload(token, {"a": drawn_image(10)}, Origin="null").status == 403
        broken = found.reader.upload(token, {"a": b""}, Content_Type="multipart/form-data")
        assert broken.status == 400
    with open_store(tmp_path / "spool") as store:
        sources = [row["source"] for row in store.ledger.rows("SELECT source FROM arrival")]
        assert sources == ["ae", "ae", "page", "page", "page", "page"]
        names = [row["file_name"] for row in store.ledger.rows("SELECT file_name FROM who")]
        assert names[2] == "<b>.dcm"
    assert not [*passing.iterdir()]


def test_upload_can_be_switched_off(tmp_path: Path) -> None:
    with served(filled(tmp_path), upload=False) as found:
        assert 'id="upload"' not in found.reader.get("/").text
        token = found.reader.get("/alerts").token()
        assert found.reader.upload(token, {"a": drawn_image(7)}).status == 404


def test_the_three_writes_are_written_and_noted(tmp_path: Path) -> None:
    with served(filled(tmp_path)) as found:
        token = found.reader.get("/alerts").token()
        gone = {"token": token, "key": "silent:pacs"}
        assert found.reader.post("/alerts/acknowledge", gone).status == 303
        assert "No alert." in found.reader.get("/alerts").text
        assert found.reader.post("/image/1/resend", {"token": token}).status == 303
    with open_store(tmp_path / "spool") as store:
        assert {"acknowledged", "alert over", "send again"} <= set(store.events())


def test_a_half_sent_head_and_a_trickled_body_hold_nobody_up(running: RunningPage) -> None:
    stuck = []
    for _ in range(10):
        one = socket.create_connection((HOST, running.reader.port))
        one.sendall(b"POST /upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le")
        stuck.append(one)
    started = time.monotonic()
    assert running.reader.get("/").status == 200
    assert time.monotonic() - started < 5
    for one in stuck:
        one.close()


def test_it_stops_within_five_seconds_with_pages_open(tmp_path: Path) -> None:
    with served(filled(tmp_path)) as found:
        streams = []
        for _ in range(5):
            one = socket.create_connection((HOST, found.reader.port))
            one.sendall(f"GET /changes HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert b"200 OK" in one.recv(4096)
            streams.append(one)
        started = time.monotonic()
        found.stop.set()
        found.thread.join(10)
        assert time.monotonic() - started < 5
        for one in streams:
            one.close()


def test_without_a_ledger_to_read_it_says_so_and_goes_on(tmp_path: Path) -> None:
    """The ledger is locked: reading goes on, an action is answered with 503."""
    with served(filled(tmp_path)) as found, open_store(tmp_path / "spool") as store:
        token = found.reader.get("/alerts").token()
        with store.ledger.transaction():
            assert found.reader.get("/").status == 200
            answer = found.reader.post("/image/1/resend", {"token": token})
            assert answer.status == 503
            assert json.loads(found.reader.get("/readyz").data)["obstacles"] == ["ledger"]
        assert found.reader.get("/readyz").status == 200


def test_a_port_that_is_taken_is_named(tmp_path: Path, running: RunningPage) -> None:
    config = write_config(tmp_path, running.reader.port)
    with pytest.raises(NotThereError, match=f"page.port: 127.0.0.1:{running.reader.port}"):
        page(config, threading.Event())


def test_the_page_leaves_nothing_that_others_may_read(tmp_path: Path) -> None:
    with served(filled(tmp_path)) as found:
        found.reader.upload(found.reader.get("/").token(), {"a": drawn_image(7)})
    loose = [
        path
        for path in (tmp_path / "spool" / "images").rglob("*")
        if stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    assert not loose
