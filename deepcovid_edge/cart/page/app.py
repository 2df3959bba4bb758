"""The application: addresses, and what stands before them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepcovid_edge.cart.page.context import Context
from deepcovid_edge.cart.page.guard import LOG_IN, Guard, Headers, hosts_of, origins_of
from deepcovid_edge.cart.page.handlers import Handlers
from deepcovid_edge.cart.page.posting import PostReader, PostRejectedError
from deepcovid_edge.errors import OutputError

_STOP_RETRY = "5"
"""Seconds until a page that is started again answers."""


def build_app(context: Context) -> ASGIApp:
    """The application of a page."""

    @contextlib.asynccontextmanager
    async def watching(_app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(context.changes.watch())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    guard = Guard(_nothing, context.settings, context.access)
    handlers = Handlers(context, guard.cookie)
    app = Starlette(
        routes=_routes(context, handlers),
        middleware=[
            Middleware(
                TrustedHostMiddleware,
                allowed_hosts=hosts_of(context.settings),
                www_redirect=False,
            ),
            Middleware(Guard, settings=context.settings, access=context.access),
        ],
        exception_handlers={
            PostRejectedError: handlers.post_rejected,
            HTTPException: handlers.http_error,
            OutputError: handlers.no_ledger,
            Exception: _failed,
        },
        lifespan=watching,
    )
    return Headers(_AnsweredAtAStop(app))


def _routes(context: Context, handlers: Handlers) -> list[Route]:
    posting = PostReader(origins_of(context.settings), context.config.receive.max_image_mib << 20)
    upload = Route("/upload", posting(handlers.upload, with_files=True), methods=["POST"])
    return [
        Route("/", handlers.home),
        Route("/image/{image}", handlers.image),
        Route("/image/{image}/resend", posting(handlers.resend), methods=["POST"]),
        Route("/image/{image}/{kind}", handlers.picture),
        Route("/alerts", handlers.alerts),
        Route("/alerts/acknowledge", posting(handlers.acknowledge), methods=["POST"]),
        Route("/statistics", handlers.statistics),
        Route("/audit", handlers.audit),
        *([upload] if context.settings.upload else []),
        Route(LOG_IN, handlers.log_in_page),
        Route(LOG_IN, posting(handlers.log_in), methods=["POST"]),
        Route("/log-out", posting(handlers.log_out), methods=["POST"]),
        Route("/changes", handlers.changes),
        Route("/healthz", handlers.healthz),
        Route("/readyz", handlers.readyz),
        Route("/metrics", handlers.metrics),
        Route("/static/{version}/{name}", handlers.static),
    ]


class _AnsweredAtAStop:
    """Answers what is still under way when the page stops with 503: nothing has failed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (ASGI 3)."""
        has_begun = False

        async def noticed(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noticed)
        except asyncio.CancelledError:  # by uvicorn alone, once its grace is over
            if has_begun or scope["type"] != "http":
                raise
            stops = PlainTextResponse(
                "The page stops. Reload it in a moment.", 503, {"retry-after": _STOP_RETRY}
            )
            await stops(scope, receive, send)


async def _nothing(*_: object) -> None:
    """The end of a guard that is asked for its cookie alone."""


async def _failed(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("The page failed. Reload it.", 500)
