"""`serve` as its callers see it: records, limits, and what hostile ones get."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the server needs extra serve")

from cart_peers import HOST, wait_until
from own_certificate import make_certificate
from serving import INFER, MODEL, RAW, RunningServer, as_json, essence, record_in

from deepcovid_edge import Model
from deepcovid_edge.errors import BackendUnavailableError
from deepcovid_edge.imaging.synthetic.clinic_folder import write_clinic_folder
from deepcovid_edge.manifest import VERSION
from deepcovid_edge.reasons import Reason

LIMITS = {
    **{"--max-image": 4, "--memory": 24, "--connections": 8, "--waiting": 64},
    **{"--header-seconds": 1, "--body-seconds": 2, "--check-seconds": 1},
}


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clinic")
    write_clinic_folder(folder, 2)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = [word for pair in LIMITS.items() for word in pair]
    with RunningServer(tmp_path_factory.mktemp("serve"), *options) as running:
        yield running


@pytest.fixture(scope="module")
def good(clinic: list[Path]) -> bytes:
    return next(path for path in clinic if path.name.startswith("phantom")).read_bytes()


def assert_serves(server: RunningServer, image: bytes) -> None:
    assert server.record(image)["status"] == "assessed"


def test_records_are_those_of_infer(server: RunningServer, clinic: list[Path]) -> None:
    """By curl, as an image and as JSON; the hash is that of the file."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed: apt-get install curl")
    with Model() as model:
        expected = [found.as_dict() for found in model.predict(clinic)]
    url = f"http://{HOST}:{server.port}{INFER}"
    for path, local in zip(clinic, expected, strict=True):
        whole = as_json(path.read_bytes(), id=path.name)
        for options, data in (
            (["-H", f"Inference-Header-Content-Length: {RAW.popitem()[1]}"], path.read_bytes()),
            (["-H", "Content-Type: application/json"], whole),
        ):
            RAW["Inference-Header-Content-Length"] = "0"
            command = [curl, "-s", *options, "--data-binary", "@-", url]
            done = subprocess.run(command, input=data, capture_output=True, timeout=60, check=True)
            record = record_in(done.stdout)
            assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
            if data is whole:
                assert record["path"] == path.name
                assert essence(record) == essence(local)
            elif not path.name.endswith(".dcm"):  # its suffix is nowhere
                assert essence(record) == essence(local)


def test_the_page_says_how_to_take_the_record_out(
    server: RunningServer, good: bytes, tmp_path: Path
) -> None:
    if shutil.which("curl") is None or shutil.which("jq") is None:
        pytest.skip("curl or jq is not installed: apt-get install curl jq")
    page = (Path(__file__).parents[2] / "docs/serve.md").read_text("utf-8")
    (command,) = re.findall(r"^    (curl -s (?:.*\\\n)*.*\| jq .*)$", page, re.MULTILINE)
    (tmp_path / "chest.dcm").write_bytes(good)
    done = subprocess.run(
        ["sh", "-c", command.replace("https://server:8000", f"http://{HOST}:{server.port}")],
        cwd=tmp_path,
        env={**os.environ, "KEY": ""},
        timeout=60,
        capture_output=True,
        text=True,
        check=True,
    )
    record = json.loads(done.stdout)
    assert record["sha256"] == hashlib.sha256(good).hexdigest()
    assert record["status"] == "assessed"


def test_the_protocol_s_other_addresses_answer(server: RunningServer) -> None:
    answers = {}
    for path in ("", "/health/live", "/health/ready", f"/models/{MODEL}", f"/models/{MODEL}/ready"):
        status, _, body = server.ask("GET", f"/v2{path}")
        assert status == 200, path
        answers[path] = json.loads(body)
    assert answers[""]["version"] == VERSION
    assert answers[f"/models/{MODEL}"]["inputs"] == [
        {"name": "film", "datatype": "BYTES", "shape": [1]}
    ]
    status, _, body = server.ask("GET", f"/v2/models/{MODEL}/versions/1/config")
    facts = json.loads(json.loads(body)["parameters"]["deepcovid_edge"]["string_value"])
    assert facts["manifest"]["name"].startswith(MODEL)  # the fastest variant of it
    assert len(facts["model_sha256"]) == 64


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "why"),
    [
        ("POST", "/v2/models/other/infer", RAW, 404, "expected squeezenet1_1"),
        ("POST", f"/v2/models/{MODEL}/versions/2/infer", RAW, 404, "version 1"),
        ("GET", INFER, {}, 405, "Method"),
        ("POST", "/v3", RAW, 404, "Not Found"),
        ("POST", INFER, {}, 400, "not JSON"),
        ("POST", INFER, {**RAW, "Content-Encoding": "gzip"}, 415, "content-encoding"),
        ("POST", INFER, {**RAW, "Origin": "https://x.example"}, 403, "browser"),
    ],
)
def test_what_is_not_answered_has_a_reason(
    server: RunningServer, method: str, path: str, headers: dict[str, str], status: int, why: str
) -> None:
    found, _, body = server.ask(method, path, b"abc", dict(headers))
    assert found == status
    assert why in json.loads(body)["error"]


def bomb() -> bytes:
    """A small PNG of 60,000 by 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_poisoned_images_have_a_reason_and_no_probability(
    server: RunningServer, good: bytes
) -> None:
    poisons = [b"\0", b"MZ" * 500, good[: len(good) // 2], bomb(), b"\xff\xd8\xff" + bytes(10_000)]
    known = {reason.code for reason in Reason}
    for poison in poisons:
        record = server.record(poison)
        assert record["status"] == "not_assessed"
        assert record["reason"] in known
        assert record["probability"] is None
    assert_serves(server, good)


def test_an_image_that_is_too_large_is_not_read(server: RunningServer, good: bytes) -> None:
    """Its length says so, or what has come of it; 2 GB are never in memory."""
    with server.connect() as peer:
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\n"
        peer.sendall(f"{head}Content-Length: 2147483648\r\n\r\n".encode() + bytes(1000))
        answer = b"".join(iter(lambda: peer.recv(1000), b""))  # the server closes the connection
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"larger than 4 MiB" in answer
    sent = 0
    with server.connect() as peer:
        peer.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        block = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        try:
            for _ in range(32_768):
                peer.sendall(block)
                sent += len(block)
        except OSError:
            pass
    assert sent < 40 << 20  # what sockets hold, after the 4 MiB that were read
    assert_serves(server, good)


def up_to(peer: socket.socket, end: bytes) -> bytes:
    """What comes, up to these bytes or the end of the connection."""
    found = b""
    while end not in found and (part := peer.recv(1000)):
        found += part
    return found


def test_answers_that_are_early_keep_no_connection(server: RunningServer, good: bytes) -> None:
    """An answer before its body has come, as by 404, and then the body: nobody is kept out."""
    early = [server.connect() for _ in range(8)]
    for peer in early:
        peer.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        assert up_to(peer, b"}").startswith(b"HTTP/1.1 404")
        peer.sendall(b"12345")
    assert_serves(server, good)
    last = early[-1]
    last.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert up_to(last, b"}").startswith(b"HTTP/1.1 200")  # the oldest one made room
    for peer in early:
        peer.close()


def test_a_body_that_is_not_wanted_is_waited_for_a_while_alone(server: RunningServer) -> None:
    with server.connect() as peer:
        peer.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        answer = b"".join(iter(lambda: peer.recv(1000), b""))  # the server closes the connection
    assert answer.startswith(b"HTTP/1.1 404")


def test_slow_callers_are_ended_and_keep_nobody_out(server: RunningServer, good: bytes) -> None:
    """More of them than connections: headers that drip, and a body that does."""
    slow = [server.connect() for _ in range(12)]
    for peer in slow:
        peer.sendall(b"POST /v2 HTTP/1.1\r\nHost: x\r\n")
    for _ in range(3):
        assert_serves(server, good)
    body = server.connect()
    body.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
    began = time.monotonic()
    answer = body.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 30
    for peer in (*slow, body):
        with suppress(ConnectionError):  # ended by a reset, or properly
            while peer.recv(1000):
                pass
        peer.close()
    ended = server.metric("serve_connections_too_slow_total")
    assert ended + server.metric("serve_connections_pushed_out_total") >= 12


def ask_whether_it_lives(peer: socket.socket) -> None:
    peer.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        part = peer.recv(1000)
        assert part, answer
        answer += part


@pytest.mark.parametrize("begun", [b"\r\n", b"GET /v2/he", b"GET /v2/health/live HTTP/1.1\r\nHo"])
def test_the_next_request_of_a_connection_has_its_time_too(
    server: RunningServer, begun: bytes
) -> None:
    """One that has begun and does not come; a new connection has its time from the start."""
    before = server.metric("serve_connections_too_slow_total")
    with server.connect() as peer:
        ask_whether_it_lives(peer)
        peer.sendall(begun)
        began = time.monotonic()
        assert not peer.recv(1000)
        assert time.monotonic() - began < 10
    assert server.metric("serve_connections_too_slow_total") > before


@pytest.mark.parametrize("target", [b"/\xff", b"/%ff", b"http://[", b"*", b""])
def test_an_address_that_is_none_is_answered(server: RunningServer, target: bytes) -> None:
    with server.connect() as peer:
        peer.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"".join(iter(lambda: peer.recv(1000), b"")).startswith(b"HTTP/1.1 4")
    assert "Traceback" not in server.said()


def test_an_answer_is_one_packet(server: RunningServer) -> None:
    with server.connect() as peer:
        for _ in range(3):
            peer.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert peer.recv(1000).endswith(b"}")
        peer.sendall(
            b"POST /v2 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
        )
        assert peer.recv(1000).startswith(b"HTTP/1.1 405")
        peer.sendall(b"x" + b"no request\r\n\r\n")
        assert peer.recv(1000).startswith(b"HTTP/1.1 400")
        assert not peer.recv(1000)


def test_a_body_is_sent_once_it_may_come(server: RunningServer, good: bytes) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(good)}\r\n"
    with server.connect() as peer:
        peer.sendall(
            f"{head}Inference-Header-Content-Length: 0\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert peer.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(good)
        assert b"probabilities" in peer.recv(10_000)


def test_a_connection_that_rests_after_an_answer_is_kept(server: RunningServer) -> None:
    with server.connect() as peer:
        for _ in range(2):
            ask_whether_it_lives(peer)
            time.sleep(2 * float(LIMITS["--header-seconds"]))


def test_more_than_may_wait_is_answered_429(tmp_path: Path, good: bytes) -> None:
    """While the one process is stopped; what waits is answered once it goes on."""
    options = ("--assessors", 1, "--waiting", 4, "--waiting-a-caller", 4, "--check-seconds", 60)
    with RunningServer(tmp_path, *options) as server:
        (assessor,) = server.assessors()
        os.kill(assessor, signal.SIGSTOP)
        found: list[dict[str, Any]] = []
        callers = [
            threading.Thread(target=lambda: found.append(server.record(good))) for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        server.wait_for_metric("serve_waiting", 4)
        status, headers, body = server.ask("POST", INFER, good, RAW)
        assert (status, headers["retry-after"]) == (429, "1")
        assert "4 images wait" in json.loads(body)["error"]
        os.kill(assessor, signal.SIGCONT)
        for caller in callers:
            caller.join(60)
        assert [record["status"] for record in found] == ["assessed"] * 4
        assert server.stop() == 0
        assert server.events("serve stopped")


def test_a_process_that_ends_costs_its_image_nothing(server: RunningServer, good: bytes) -> None:
    restarts = server.metric("serve_assessor_restarts_total")
    server.kill_assessors()
    assert_serves(server, good)
    server.wait_for_metric("serve_assessor_restarts_total", restarts + 1)
    server.wait_for_metric("serve_ready", 1)


def test_the_log_and_the_metrics_name_no_image(server: RunningServer, good: bytes) -> None:
    server.ask("POST", INFER, as_json(good, id="DOE^JANE.png"), {})
    _, _, text = server.ask("GET", "/metrics")
    wait_until(lambda: server.events("infer"), what="a line for each request")
    for said in (server.said(), text.decode()):
        assert "DOE" not in said
        assert hashlib.sha256(good).hexdigest()[:16] not in said
    assert b'serve_answers_total{status="200"}' in text
    assert b"serve_records_total{result=" in text


def test_keys_and_tls_stand_before_everything(
    tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a certificate of our own, made by openssl; a client knows it, or does not call."""
    (certificate, private), keys = make_certificate(tmp_path), tmp_path / "keys"
    from commands import command as in_this_process

    added = in_this_process("serve", "--keys", keys, "--add-key", "cart-1")
    key = added.stdout.strip()
    image = tmp_path / "a.png"
    image.write_bytes(good)
    options = ("--certificate", certificate, "--key", private, "--keys", keys, "--assessors", 1)
    with RunningServer(tmp_path, *options) as server:
        address = f"kserve+https://{HOST}:{server.port}"
        with pytest.raises(BackendUnavailableError, match="TLS"):
            Model(backend=address)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(BackendUnavailableError, match="set DEEPCOVID_EDGE_API_KEY"):
            Model(backend=address)
        monkeypatch.setenv("DEEPCOVID_EDGE_API_KEY", key)
        with Model(backend=address) as model:
            assert model.predict_one(image).status == "assessed"
        assert {event["caller"] for event in server.events("infer")} == {"cart-1"}
        assert key not in server.said()


HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_header_has_a_largest_size(server: RunningServer) -> None:
    """In lines too: short ones cost far more memory than their bytes."""
    for lines in (b"a:b\r\n" * 250, b"a: " + b"x" * 70_000 + b"\r\n", b"a: " + b"x" * (2 << 20)):
        with server.connect() as peer:
            with suppress(ConnectionError):
                peer.sendall(HEALTH + lines + b"\r\n")
            assert peer.recv(1000).startswith(b"HTTP/1.1 400")
    with server.connect() as peer:
        peer.sendall(HEALTH + b"a:b\r\n" * 150 + b"\r\n")
        assert peer.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("piece", [b"a:b\r\n" * 13_000, b"x" * 65_536])
def test_lines_behind_a_body_take_no_memory(server: RunningServer, piece: bytes) -> None:
    """Of any number, and one of any length."""
    with server.connect() as peer:
        peer.sendall(CHUNKED.replace(b"/nothing", INFER.encode()) + b"5\r\nhello\r\n0\r\na:")
        sent = 0
        with suppress(OSError):
            while sent < 32 << 20:
                peer.sendall(piece)
                sent += len(piece)
    assert sent < 16 << 20, "the connection was ended, but for what sockets hold"


def test_lines_behind_a_body_are_dropped(server: RunningServer, good: bytes) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    for _ in range(2):
        with server.connect() as peer:
            peer.sendall(f"{head}Inference-Header-Content-Length: 0\r\n\r\n".encode())
            peer.sendall(b"%x\r\n%s\r\n0\r\nDigest: 1\r\n\r\n" % (len(good), good))
            assert b"probabilities" in peer.recv(10_000)
            ask_whether_it_lives(peer)


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_body_is_never_taken_for_the_next_request(server: RunningServer, method: str) -> None:
    """A proxy that passes `Upgrade` on would give the second answer to another caller."""
    inner = HEALTH + b"\r\n"
    head = f"{method} {INFER} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    with server.connect() as peer:
        peer.sendall(f"{head}Content-Length: {len(inner)}\r\n\r\n".encode())
        peer.sendall(inner)
        answer = b"".join(iter(lambda: peer.recv(1000), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1
    body = answer.partition(b"\r\n\r\n")[2]
    assert "Upgrade and CONNECT are not supported" in json.loads(body)["error"]
