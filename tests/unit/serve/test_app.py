"""The application of the server, called as a server of ASGI calls it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import MutableMapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import pytest

pytest.importorskip("starlette", reason="the server needs extra serve")

from deepcovid_edge.serve.app import Service, build_app
from deepcovid_edge.serve.assessors.pool import Answer, Assessors, Known
from deepcovid_edge.serve.keys import Callers
from deepcovid_edge.serve.protocol import MOST_HEADER, ImageData, RequestError
from deepcovid_edge.serve.settings import ServeSettings

MODEL = "squeezenet1_1"
INFER = f"/v2/models/{MODEL}/infer"
RAW = {"inference-header-content-length": "0"}
SETTINGS = ServeSettings(max_image_mib=2, memory_mib=4)


class Noting(Assessors):
    """Processes that give every image the same record, and note what their callers hold."""

    def __init__(self, settings: ServeSettings) -> None:
        super().__init__({}, settings)
        self._known = Known({}, {}, on_cpu=True, suits=8, image=b"", record={})
        self.service: Service | None = None
        self.images: list[bytes] = []
        self.memory: list[int] = []

    async def assess(self, name: str, image: ImageData, *, is_next: bool = False) -> Answer:
        """See `Assessors.assess`."""
        assert self.service
        self.images.append(bytes(image))
        self.memory.append(self.service.admission.memory)
        return Answer(b"{}", "negative")


class Locked(Service):
    """A service whose callers all lack a key."""

    def caller(self, request: Any) -> str:
        """See `Service`."""
        raise RequestError(401, "key: none")


class Broken(Service):
    """A service with a fault that nobody foresaw."""

    def caller(self, request: Any) -> str:
        """See `Service`."""
        raise RuntimeError("a value that nobody may read")


def service_of(kind: type[Service] = Service, settings: ServeSettings = SETTINGS) -> Service:
    """A service without processes."""
    assessors = Noting(settings)
    assessors.service = service = kind(settings, assessors, Callers(None))
    service.model = MODEL
    return service


def ask(
    service: Service,
    method: str,
    path: str,
    body: Sequence[bytes] = (b"",),
    headers: dict[str, str] | None = None,
    *,
    raises: type[Exception] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Status and content of an answer; the application may raise behind it."""
    sent: list[MutableMapping[str, Any]] = []
    parts = list(body)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": ("192.0.2.7", 5000),
    }
    with pytest.raises(raises) if raises else nullcontext():
        asyncio.run(cast(Any, build_app(service))(scope, receive, send))
    start, content = sent
    return start["status"], json.loads(content["body"])


def in_base64(image: bytes) -> list[bytes]:
    """The body of a request that is all JSON, in parts."""
    data = base64.b64encode(image).decode()
    tensor = {"name": "film", "datatype": "BYTES", "shape": [1], "data": [data]}
    whole = json.dumps({"inputs": [tensor]}).encode()
    return [whole[at : at + (1 << 16)] for at in range(0, len(whole), 1 << 16)]


@pytest.mark.parametrize("version", ["", "/versions/1"], ids=["direct", "routed"])
def test_a_fault_is_answered_without_its_text_and_counted(
    version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service = service_of(Broken)
    path = f"/v2/models/{MODEL}{version}/infer"
    status, content = ask(service, "POST", path, raises=RuntimeError)
    assert (status, content) == (500, {"error": "the server failed: RuntimeError"})
    assert b'serve_answers_total{status="500"} 1.0' in service.metrics.text()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "infer"
    assert json.loads(line)["status"] == 500


@pytest.mark.parametrize("model", [MODEL, "other"])
@pytest.mark.parametrize("path", ["/v2/models/{}", "/v2/models/{}/config", "/v2/models/{}/ready"])
def test_nobody_learns_the_model_s_name_without_a_key(path: str, model: str) -> None:
    status, content = ask(service_of(Locked), "GET", path.format(model))
    assert (status, content) == (401, {"error": "key: none"})


@pytest.mark.parametrize("path", ["/v2", "/metrics"])
def test_neither_the_server_nor_its_figures_are_shown_without_a_key(path: str) -> None:
    assert ask(service_of(Locked), "GET", path) == (401, {"error": "key: none"})


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health_needs_no_key(path: str) -> None:
    assert ask(service_of(Locked), "GET", path)[0] == 200


def test_a_page_of_a_browser_does_not_learn_the_model() -> None:
    path = f"/v2/models/{MODEL}/ready"
    assert ask(service_of(), "GET", path, headers={"origin": "https://x.example"})[0] == 403
    assert ask(service_of(), "GET", path) == (200, {"name": MODEL, "ready": True})


@pytest.mark.parametrize("size", [1000, 500_000])
def test_a_body_in_base64_counts_twice_until_its_image_is_there(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, image = service_of(), bytes(range(250)) * (size // 250)
    seen: list[int] = []
    take = service.admission.take

    def noted(caller: str, size: int) -> None:
        seen.append(size)
        take(caller, size)

    monkeypatch.setattr(service.admission, "take", noted)
    body = in_base64(image)
    assert ask(service, "POST", INFER, body)[0] == 200
    noting = cast(Noting, service.assessors)
    assert noting.images == [image]
    assert sum(seen) == 2 * sum(map(len, body))
    assert len(image) <= noting.memory[0] <= len(image) + MOST_HEADER
    assert service.admission.memory == 0


def test_an_image_that_no_caller_may_have_in_memory_is_too_large_and_not_busy() -> None:
    """With 4 MiB of memory a caller has 2, and an image in base64 less than 0.75 of one."""
    service = service_of()
    for body, headers, most in (
        ([bytes(1 << 20)] * 3, RAW, "1.94 MiB"),
        (in_base64(bytes(1 << 20)), {}, "0.703 MiB"),
        ([b""], {"content-length": "1200000"}, "0.703 MiB"),
    ):
        status, content = ask(service, "POST", INFER, body, headers)
        assert (status, content) == (413, {"error": f"film: larger than {most}"})
    fits = bytes(SETTINGS.most_base64_bytes)
    assert ask(service, "POST", INFER, in_base64(fits))[0] == 200
    fits = bytes(SETTINGS.most_bytes)
    assert ask(service, "POST", INFER, [fits[: 1 << 20], fits[1 << 20 :]], RAW)[0] == 200
    assert service.admission.memory == 0


def test_a_large_request_keeps_the_loop_free_while_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = service_of()
    threads: list[str] = []
    to_thread = asyncio.to_thread

    async def noted(call: Any, *arguments: Any) -> Any:
        threads.append(call.__name__)
        return await to_thread(call, *arguments)

    monkeypatch.setattr(asyncio, "to_thread", noted)
    assert ask(service, "POST", INFER, in_base64(bytes(1000)))[0] == 200
    assert not threads
    assert ask(service, "POST", INFER, in_base64(bytes(100_000)))[0] == 200
    assert threads == ["parse_request"]
