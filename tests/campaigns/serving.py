"""The server on real images: the same records, how fast, and many requests beside hostile ones."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cart_peers import HOST
from serving import INFER, MODEL, RAW, RunningServer, essence, record_in
from triton_server import PYTHON, Triton

from benchmarks.measure import ratio, summary
from campaigns.paths import environment
from deepcovid_edge.model import Model

ROOT = Path(__file__).parents[2]
XRAY = Path(os.environ.get("DEEPCOVID_XRAY", ROOT.parent / "shared" / "xray"))
CALLERS = 8
_HEADER_SECONDS = 2
"""Of the server that slow callers call."""
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_SIDE = """
import sys, time
from deepcovid_edge.device.process import set_up
from deepcovid_edge.model import Model
set_up()
paths = sys.argv[1:]
with Model(workers=len(__import__("os").sched_getaffinity(0))) as model:
    for _ in model.predict(paths[:16]):
        pass
    started, worked = time.perf_counter(), time.process_time()
    with open("/dev/null", "w") as records:
        for record in model.predict(paths):
            records.write(record.as_json() + "\\n")
    print(time.perf_counter() - started, time.process_time() - worked)
"""
"""What `infer` runs, without its start: its records are lines of JSON, as the server's are."""


def why_no_images() -> str:
    """Why nothing can be measured here, or nothing."""
    if not (XRAY / "manifest.csv").is_file():
        return "no real X-rays: ../shared/xray is missing (DEEPCOVID_XRAY overrides)"
    return ""


def real_images(count: int) -> list[Path]:
    """Real X-rays in a stable order, of several sources."""
    found = sorted(path for path in XRAY.rglob("*") if path.suffix.lower() in _SUFFIXES)
    return found[:: max(1, len(found) // count)][:count]


def equality(folder: Path, images: int, seed: int) -> dict[str, Any]:
    """How many records of each client equal those of this machine.

    Args:
        folder: For logs.
        images: How many.
        seed: Not used: the images are the same each time.
    """
    del seed
    paths = real_images(images)
    here = _here(paths)
    found: dict[str, Any] = {"images": len(paths)}
    with RunningServer(folder) as server:
        there = {"curl": _by_curl(server.port, paths)}
        if PYTHON.is_file():
            there["tritonclient"] = _by_tritonclient(server.port, paths)
        with Model(backend=f"kserve://{HOST}:{server.port}") as model:
            there["infer_backend"] = [one.as_dict() for one in model.predict(paths)]
        statuses = server.metric('serve_answers_total{status="500"}')
    found["equal"] = {name: _equal(records, here) for name, records in there.items()}
    if PYTHON.is_file():  # its repository has the file that is named, whatever this machine takes
        here = _here(paths, variant="fp32")
        of_triton = _of_triton(folder, paths)
        found["equal"] |= {name: _equal(records, here) for name, records in of_triton.items()}
    found["answers_500"] = statuses
    found["is_kept"] = all(count == len(paths) for count in found["equal"].values())
    return found


def _here(paths: Sequence[Path], **model: Any) -> list[dict[str, Any]]:
    with Model(**model) as loaded:
        return [essence(found.as_dict()) for found in loaded.predict(paths)]


def _equal(records: Sequence[dict[str, Any]], here: Sequence[dict[str, Any]]) -> int:
    return sum(essence(one) == other for one, other in zip(records, here, strict=True))


def _by_curl(port: int, paths: Sequence[Path]) -> list[dict[str, Any]]:
    command = ["curl", "-s", "-H", "Inference-Header-Content-Length: 0"]
    records = []
    for path in paths:
        words = [*command, "--data-binary", f"@{path}", f"http://{HOST}:{port}{INFER}"]
        done = subprocess.run(words, capture_output=True, check=True, timeout=120)
        records.append(record_in(done.stdout))
    return records


def _by_tritonclient(port: int, paths: Sequence[Path]) -> list[dict[str, Any]]:
    words = [PYTHON, ROOT / "tests/triton_client.py", f"{HOST}:{port}", MODEL, *paths]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=1200)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


def _of_triton(folder: Path, paths: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """Of a real Triton with a repository of `export --triton`."""
    repository = folder / "repository"
    command = [sys.executable, "-m", "deepcovid_edge", "export", MODEL, "--triton", repository]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    with Triton(repository, folder) as triton:
        with Model(backend=f"triton://{HOST}:{triton.port}", workers=2) as model:
            through = [one.as_dict() for one in model.predict(paths)]
        return {
            "triton_infer_backend": through,
            "triton_tritonclient": _by_tritonclient(triton.port, paths),
        }


@dataclass
class Callers:
    """Callers at once, each with one connection, one request after the other.

    Attributes:
        port: Of the server.
        images: Sent in turn.
        count: How many callers.
        milliseconds: Of each request.
        statuses: Of the answers.
    """

    port: int
    images: Sequence[bytes]
    count: int = CALLERS
    milliseconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def send(self, requests: int) -> float:
        """Send so many requests; seconds until all are answered."""
        numbers = iter(range(requests))
        lock = threading.Lock()

        def call() -> None:
            connection = http.client.HTTPConnection(HOST, self.port, timeout=120)
            while (number := _next(numbers, lock)) is not None:
                image = self.images[number % len(self.images)]
                began = time.perf_counter()
                connection.request("POST", INFER, image, RAW)
                answer = connection.getresponse()
                answer.read()
                spent = 1000 * (time.perf_counter() - began)
                with lock:
                    self.milliseconds.append(spent)
                    self.statuses[answer.status] += 1
                if answer.status == 429:
                    time.sleep(0.2)
            connection.close()

        threads = [threading.Thread(target=call) for _ in range(self.count)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began


def _next(numbers: Iterator[int], lock: threading.Lock) -> int | None:
    with lock:
        return next(numbers, None)


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Keep this process, and those that it starts meanwhile, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def throughput(folder: Path, rounds: int, seed: int, *, images: int = 480) -> dict[str, Any]:
    """Images a second of `infer` and of the server, in turn on the same core, with 8 callers.

    The callers are on another core, where there is one: what a caller costs is not the server's.
    Seconds of the processor count beside those of the clock: what else runs on the machine falls on
    a turn, but hardly on what its processes use.

    Args:
        folder: For logs.
        rounds: Turns that count.
        seed: Not used.
        images: Of each turn.
    """
    del seed
    paths = real_images(images)
    data = [path.read_bytes() for path in paths]
    *others, own = sorted(os.sched_getaffinity(0))
    callers_on = {others[0]} if others else {own}
    seconds: dict[str, list[float]] = {"infer": []}
    worked: dict[str, list[float]] = {"infer": []}
    latencies: dict[str, list[float]] = {}
    with ExitStack() as opened:
        servers = {}
        for group in (1, 8):
            name = f"serve_group_{group}"
            with on_cores({own}):
                options = ("--assessors", 1, "--group", group)
                servers[name] = opened.enter_context(RunningServer(folder, *options, name=name))
            seconds[name], worked[name], latencies[name] = [], [], []
        for number in range(rounds + 1):
            spent = {"infer": _infer_seconds(paths, own)}
            for server in servers.values():
                server.record(data[0])
            for name, server in servers.items():
                callers, before = Callers(server.port, data), _processor_seconds(server)
                with on_cores(callers_on):
                    clock = callers.send(len(data))
                spent[name] = clock, _processor_seconds(server) - before
                assert callers.statuses == {200: len(data)}, callers.statuses
                if number:
                    latencies[name] += callers.milliseconds
            for name, (clock, processor) in spent.items():
                if number:
                    seconds[name].append(clock)
                    worked[name].append(processor)
    rates = {name: [len(paths) / one for one in values] for name, values in seconds.items()}
    return {
        "images": len(paths),
        "mean_bytes": round(sum(map(len, data)) / len(data)),
        "callers": CALLERS,
        "images_a_second": {name: summary(values) for name, values in rates.items()},
        "to_infer": {name: ratio(rates[name], rates["infer"]) for name in servers},
        "processor_ms_an_image": {
            name: summary([1000 * one / len(paths) for one in values])
            for name, values in worked.items()
        },
        "to_infer_by_processor": {name: ratio(worked["infer"], worked[name]) for name in servers},
        "milliseconds": {name: _percentiles(values) for name, values in latencies.items()},
        "load": os.getloadavg()[0],
    }


def _infer_seconds(paths: Sequence[Path], core: int) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    with on_cores({core}):
        words = [sys.executable, "-c", _SIDE, *map(str, paths)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=True)
    clock, processor = map(float, done.stdout.split())
    return clock, processor


def _processor_seconds(server: RunningServer) -> float:
    """Seconds that the server and its processes have used."""
    ticks = 0
    for pid in (server.process.pid, *server.assessors()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    found = np.percentile(values, [50, 99, 100])
    return dict(zip(("p50", "p99", "max"), (round(float(one), 1) for one in found), strict=True))


def requests(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Many requests, good images and poisoned ones, beside callers that never end a request.

    Args:
        folder: For logs.
        count: Requests.
        seed: Of the poisoned images.
    """
    good = [path.read_bytes() for path in real_images(64)]
    draw = np.random.default_rng(seed)
    poisoned = [_poisoned(image, draw) for image in good[:16]]
    images = [*good, *poisoned]
    callers_ms: list[float] = []
    statuses: Counter[int] = Counter()
    looks: list[tuple[int, float]] = []
    options = ("--header-seconds", _HEADER_SECONDS, "--connections", 64)
    with RunningServer(folder, *options) as server:
        warm_up = Callers(server.port, images)
        warm_up.send(max(200, count // 20))
        processes = [server.process.pid, *server.assessors()]
        with _slow_callers(server.port) as slow:
            done = poisoned_sent = 0
            step = max(1, count // 40)
            while done < count:
                looks.append((done, float(sum(map(_rss_kib, processes)))))
                callers = Callers(server.port, images)
                callers.send(step)
                done += step
                poisoned_sent += sum(at % len(images) >= len(good) for at in range(step))
                callers_ms += callers.milliseconds
                statuses.update(callers.statuses)
            looks.append((done, float(sum(map(_rss_kib, processes)))))
            ended = _ended(server)
        same = [server.process.pid, *server.assessors()] == processes
        files = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        is_ready = server.metric("serve_ready")
    slope = _slope(looks)
    return {
        "requests": done,
        "poisoned": poisoned_sent,
        "statuses": {str(status): many for status, many in sorted(statuses.items())},
        "milliseconds": _percentiles(callers_ms),
        "slope_kb_a_request": slope,
        "rss_mib": {"first": round(looks[0][1] / 1024, 1), "last": round(looks[-1][1] / 1024, 1)},
        "looks": looks,
        "files_open_at_the_end": files,
        "slow_connections": {"begun": slow.begun, "ended_by_the_server": ended},
        "is_ready": bool(is_ready),
        "load": os.getloadavg()[0],
        "seed": seed,
        "is_kept": set(statuses) == {200} and same and bool(is_ready) and slope < 1.0,
    }


def _ended(server: RunningServer) -> float:
    """Slow connections that the server has ended; the first is waited for on a fast machine."""
    ends = time.monotonic() + 3 * _HEADER_SECONDS
    while True:
        ended = server.metric("serve_connections_too_slow_total")
        ended += server.metric("serve_connections_pushed_out_total")
        if ended or time.monotonic() > ends:
            return ended
        time.sleep(0.1)


def _poisoned(image: bytes, draw: np.random.Generator) -> bytes:
    """An image that is cut off, or has other bytes in some places."""
    if draw.random() < 0.5:
        return image[: int(draw.integers(20, len(image)))]
    other = bytearray(image)
    for place in draw.integers(0, len(image), 40):
        other[place] ^= int(draw.integers(1, 256))
    return bytes(other)


@dataclass
class _Slow:
    begun: int = 0


@contextmanager
def _slow_callers(port: int) -> Iterator[_Slow]:
    """Connections whose header drips for ever; one that is ended is begun again."""
    stop, counted = threading.Event(), _Slow()

    def drip() -> None:
        while not stop.is_set():
            with suppress(OSError), socket.create_connection((HOST, port), 5) as peer:
                counted.begun += 1
                peer.sendall(b"POST / HTTP/1.1\r\n")
                for letter in itertools.cycle(b"X-Slow: yes\r\n"):
                    if stop.wait(0.5):
                        return
                    peer.sendall(bytes([letter]))

    threads = [threading.Thread(target=drip, daemon=True) for _ in range(40)]
    for thread in threads:
        thread.start()
    try:
        yield counted
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)


def _rss_kib(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def _slope(looks: Sequence[tuple[int, float]]) -> float:
    """By how much memory grows with each request, kB: median of all slopes (Theil-Sen)."""
    slopes = [
        (b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(looks, 2) if b[0] > a[0]
    ]
    return round(float(np.median(slopes)), 4)
