"""The application: the addresses of the v2 protocol, and what stands before them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from deepcovid_edge.backends.remote.client import HEADER_LENGTH
from deepcovid_edge.device.service import log
from deepcovid_edge.manifest import VERSION
from deepcovid_edge.serve import protocol
from deepcovid_edge.serve.admission import Admission, Body
from deepcovid_edge.serve.assessors.pool import Assessors, end_tasks
from deepcovid_edge.serve.assessors.readiness import Readiness
from deepcovid_edge.serve.keys import Callers
from deepcovid_edge.serve.listener import ConnectionCounts
from deepcovid_edge.serve.metrics import CONTENT_TYPE, Metrics
from deepcovid_edge.serve.protocol import RequestError
from deepcovid_edge.serve.settings import BASE64_COST, ServeSettings

_STOP_RETRY = 5
"""Seconds: a server that is started again loads its model first."""


@dataclass
class Service:
    """What the handlers share.

    Attributes:
        settings: Of the server.
        assessors: The processes, started.
        callers: Who may call.
        connections: Those that were ended.
    """

    settings: ServeSettings
    assessors: Assessors
    callers: Callers
    connections: ConnectionCounts = field(default_factory=ConnectionCounts)

    def __post_init__(self) -> None:
        self.admission = Admission(self.settings)
        self.readiness = Readiness(self.assessors, self.settings.check_seconds)
        self.metrics = Metrics(self.admission, self.assessors, self.readiness, self.connections)

    @functools.cached_property
    def model(self) -> str:
        """Name of the model, whichever of its variants is the fastest here."""
        known = self.assessors.known.template
        return str(known["model"]).removesuffix(f"-{known['variant']}")

    @functools.cached_property
    def address(self) -> str:
        """Where records are asked for."""
        return f"/v2/models/{self.model}/infer"

    def caller(self, request: Request) -> str:
        """Who calls: the name of the key, or the address where nobody needs one.

        Raises:
            RequestError: The caller may not.
        """
        if "origin" in request.headers:  # a page in somebody's browser, which reaches this machine
            raise RequestError(403, "origin: this server answers programs, not pages of a browser")
        if not self.callers.are_known:
            return request.client.host if request.client else ""
        name = self.callers.name_of(request.headers.get("authorization", ""))
        if name is None:
            raise RequestError(401, "key: expected the header `Authorization: Bearer KEY`")
        return name


def build_app(service: Service) -> ASGIApp:
    """The application of a server (ASGI 3)."""

    @contextlib.asynccontextmanager
    async def watching(_app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(service.readiness.watch())
        try:
            yield
        finally:
            await end_tasks([task])

    handlers = Handlers(service)
    model = "/v2/models/{model}"
    routes = []
    for place in (model, f"{model}/versions/{{version}}"):
        routes += [
            Route(f"{place}/infer", handlers.infer, methods=["POST"]),
            Route(place, handlers.model),
            Route(f"{place}/config", handlers.config),
            Route(f"{place}/ready", handlers.model_ready),
        ]
    routed = Starlette(
        routes=[
            *routes,
            Route("/v2", handlers.server),
            Route("/v2/health/live", handlers.live),
            Route("/v2/health/ready", handlers.ready),
            Route("/metrics", handlers.metrics),
        ],
        exception_handlers={
            RequestError: _refusal,
            HTTPException: _http_error,
            Exception: _failed,
        },
        lifespan=watching,
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; nearly every request is for a record, and goes past routing and its layers."""
        if scope.get("path") != service.address or scope["method"] != "POST":
            await routed(scope, receive, send)
            return
        request = Request({**scope, "path_params": {"model": service.model}}, receive, send)
        try:
            response = await handlers.infer(request)
        except Exception as error:  # as Starlette does: it is answered here, and logged outside
            await (await _failed(request, error))(scope, receive, send)
            raise
        await response(scope, receive, send)

    return app


class Handlers:
    """What answers at each address."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def live(self, _request: Request) -> Response:
        """Whether the server runs."""
        return JSONResponse({"live": True})

    async def ready(self, _request: Request) -> Response:
        """Whether the synthetic image comes back right."""
        is_ready = self._service.readiness.is_ready
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def model_ready(self, request: Request) -> Response:
        """The same for the one model, which callers alone know."""
        self._service.caller(request)
        self._check_model(request)
        is_ready = self._service.readiness.is_ready
        answer = {"name": self._service.model, "ready": is_ready}
        return JSONResponse(answer, 200 if is_ready else 503)

    async def server(self, request: Request) -> Response:
        """What the server is."""
        self._service.caller(request)
        return JSONResponse(protocol.server_metadata(VERSION))

    async def model(self, request: Request) -> Response:
        """What the model takes and gives."""
        self._service.caller(request)
        self._check_model(request)
        return JSONResponse(protocol.model_metadata(self._service.model))

    async def config(self, request: Request) -> Response:
        """The model's configuration: hash, manifest, version."""
        self._service.caller(request)
        self._check_model(request)
        facts = {
            **self._service.assessors.known.facts,
            "template": self._service.assessors.known.template,
        }
        return JSONResponse(protocol.model_config(self._service.model, facts))

    async def metrics(self, request: Request) -> Response:
        """For Prometheus, which sends a key as other callers do."""
        self._service.caller(request)
        return Response(self._service.metrics.text(), media_type=CONTENT_TYPE)

    async def infer(self, request: Request) -> Response:
        """One image to its record. Whatever happens is counted and logged, without a name."""
        began = time.perf_counter()
        caller, size = "", 0
        try:
            caller = self._service.caller(request)
            self._check_model(request)
            self._service.admission.check(caller)
            with self._service.admission.body(caller) as memory:
                asked = await self._asked(request, memory)
                size = len(asked.image)
                record = await self._record(asked, caller)
            response = _answer(self._service.model, asked, record)
        except RequestError as error:
            response = _error(error)
        except ClientDisconnect:
            response = _error(RequestError(400, "the caller has gone"))
        except asyncio.CancelledError:  # by uvicorn alone, once its grace is over
            response = _error(RequestError(503, "the server stops; try again", retry=_STOP_RETRY))
        except Exception:
            self._note(500, caller, size, began)
            raise
        self._note(response.status_code, caller, size, began)
        return response

    def _note(self, status: int, caller: str, size: int, began: float) -> None:
        """Count and log an answer."""
        self._service.metrics.answered(status)
        spent = round(1000 * (time.perf_counter() - began), 1)
        log("infer", status=status, caller=caller, bytes=size, ms=spent)

    async def _asked(self, request: Request, memory: Body) -> protocol.InferRequest:
        """What is asked for, once its body is there."""
        length = request.headers.get(HEADER_LENGTH)
        most = _most_bytes(self._service.settings, length)
        body = await self._body(request, memory)
        if length is None and len(body) > protocol.MOST_HEADER:  # much to decode
            asked = await asyncio.to_thread(protocol.parse_request, body, length)
        else:
            asked = protocol.parse_request(body, length)
        if len(asked.image) > most:
            raise _too_large(most)
        memory.shrink(min(memory.size, len(asked.image) + protocol.MOST_HEADER))
        return asked

    async def _record(self, asked: protocol.InferRequest, caller: str) -> bytes:
        began = time.perf_counter()
        with self._service.admission.place(caller):
            try:
                answer = await self._service.assessors.assess(asked.identity, asked.image)
            except asyncio.TimeoutError:
                seconds = self._service.settings.answer_seconds
                raise RequestError(503, f"no record in {seconds:g} s; try again", retry=5) from None
        self._service.metrics.assessed(answer.result, len(asked.image), time.perf_counter() - began)
        return answer.record

    def _check_model(self, request: Request) -> None:
        params = request.path_params
        if params["model"] != self._service.model or params.get("version", "1") != "1":
            raise RequestError(404, f"model: expected {self._service.model}, version 1")

    async def _body(self, request: Request, memory: Body) -> bytearray:
        settings = self._service.settings
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RequestError(415, "content-encoding: expected none")
        with _Deadline(settings.body_seconds):
            return await _read(request, settings, memory)


class _Deadline:
    """Ends a block that takes too long; as `asyncio.wait_for`, without a task of its own.

    Raises:
        RequestError: It took longer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._is_over = seconds, False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._end)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if not self._is_over or kind is not asyncio.CancelledError:
            return
        if hasattr(self._task, "uncancel"):  # from Python 3.11 on
            self._task.uncancel()
        raise RequestError(408, f"body: not there in {self._seconds:g} s") from None

    def _end(self) -> None:
        self._is_over = True
        self._task.cancel()


async def _read(request: Request, settings: ServeSettings, memory: Body) -> bytearray:
    """The body of a request, no larger than it may be; an image in base64 takes four thirds."""
    length = request.headers.get(HEADER_LENGTH)
    image, cost = _most_bytes(settings, length), 1
    most = image + protocol.MOST_HEADER
    if length is None:
        most, cost = -(-image // 3) * 4 + protocol.MOST_HEADER, BASE64_COST
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > most:
        raise _too_large(image)
    body = bytearray()
    async for part in request.stream():
        if len(body) + len(part) > most:
            raise _too_large(image)
        memory.grow(cost * len(part))
        body += part
    return body


def _most_bytes(settings: ServeSettings, header_length: str | None) -> int:
    return settings.most_base64_bytes if header_length is None else settings.most_bytes


def _too_large(most: int) -> RequestError:
    return RequestError(413, f"film: larger than {most / (1 << 20):.3g} MiB")


def _answer(model: str, asked: protocol.InferRequest, record: bytes) -> Response:
    body, length = protocol.format_response(model, asked, record)
    if length is None:
        return Response(body, media_type="application/json")
    headers = {HEADER_LENGTH: str(length)}
    return Response(body, media_type="application/octet-stream", headers=headers)


def _error(error: RequestError) -> Response:
    """An answer that says why. The connection of a body that comes too slowly ends."""
    headers = {"connection": "close"} if error.status == 408 else {}
    if error.retry is not None:
        headers["retry-after"] = str(error.retry)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": str(error)}, error.status, headers=headers)


async def _refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(error)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _failed(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"the server failed: {type(error).__name__}"}, 500)
