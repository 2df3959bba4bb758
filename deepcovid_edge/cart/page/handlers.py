"""What each address answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.page import health, images
from deepcovid_edge.cart.page.changes import MOST_LISTENERS
from deepcovid_edge.cart.page.context import STATIC_TYPES, Context
from deepcovid_edge.cart.page.guard import LOG_IN, Visitor, asked_language, language_cookie
from deepcovid_edge.cart.page.posting import MOST_FILES, Posted, PostRejectedError, SentFile
from deepcovid_edge.cart.page.statistics import Statistics, read_statistics, steps_of
from deepcovid_edge.cart.status import raised_alerts
from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.spool import SpoolFullError
from deepcovid_edge.device.service import log
from deepcovid_edge.errors import OutputError

_EVENTS = "text/event-stream"
_AUDIT_ROWS = 100
_HIGHEST = 1 << 62
_MOST_DIGITS = 64


class Handlers:
    """The addresses of the page.

    Args:
        context: What they share.
        session_cookie: Makes the `Set-Cookie` header's value of a session.
    """

    def __init__(self, context: Context, session_cookie: Any) -> None:
        self._it, self._session_cookie = context, session_cookie
        self._statistics: tuple[Any, Statistics] | None = None
        self._uploading = asyncio.Lock()

    async def home(self, request: Request) -> Response:
        """The list of images."""
        if language := asked_language(request.scope):
            response = RedirectResponse("/", 303)
            secure = self._it.settings.certificate is not None
            response.headers.append("set-cookie", language_cookie(language, secure=secure))
            return response
        asked = request.query_params.get("before", "")
        before = _number(asked) or None
        rows = self._it.part(
            request.scope["visitor"],
            "rows",
            lambda: images.list_images(self._it.reading, self._it.spool, before),
            str(before),
        )
        uploads = self._it.settings.upload
        most = self._it.config.receive.max_image_mib
        return self._it.render(
            request,
            "home",
            rows=rows,
            before=before,
            uploads=uploads,
            most=most,
            files=MOST_FILES,
        )

    async def image(self, request: Request) -> Response:
        """One image."""
        found = images.find_image(self._it.reading, self._it.spool, _image(request))
        if found is None:
            raise HTTPException(404)
        with_map = found.has_map and request.query_params.get("map") == "1"
        return self._it.render(request, "image", found=found, with_map=with_map)

    async def picture(self, request: Request) -> Response:
        """A picture of an image."""
        number, kind = _image(request), request.path_params["kind"]
        if kind not in ("picture", "thumbnail", "map"):
            raise HTTPException(404)
        data = images.picture_of(self._it.reading, self._it.spool, number, kind)
        if data is None:
            raise HTTPException(404)
        return Response(data, media_type="image/jpeg")

    async def alerts(self, request: Request) -> Response:
        """The alerts that are not over, and the list of all that there are."""
        raised = raised_alerts(self._it.reading)
        return self._it.render(request, "alerts", raised=raised, codes=[*AlertCode])

    async def statistics(self, request: Request) -> Response:
        """Images a day, reasons, times, drift."""
        state = self._it.changes.state
        if self._statistics is None or self._statistics[0] != state:
            found = await run_in_threadpool(self._read_alone, read_statistics)
            self._statistics = (state, found)
        return self._it.render(
            request,
            "statistics",
            found=self._statistics[1],
            kinds=images.KINDS,
            steps_of=steps_of,
            decision_signs={kind: images.sign_of(kind) for kind in images.KINDS},
        )

    def _read_alone(self, read: Any) -> Any:
        """Read something long with a connection of its own: nobody waits for it."""
        with Ledger(self._it.spool.folder, read_only=True) as ledger:
            return read(ledger)

    async def audit(self, request: Request) -> Response:
        """The events, the newest first."""
        before = _number(request.query_params.get("before")) or _HIGHEST
        rows = self._it.reading.rows(
            "SELECT id, at_utc, kind, image_id, detail FROM event WHERE id < ? ORDER BY id DESC"
            " LIMIT ?",
            *(before, _AUDIT_ROWS),
        )
        chain: Mapping[str, Any] | None = None
        if request.query_params.get("check") == "1":
            chain = {"broken": await run_in_threadpool(self._read_alone, Ledger.broken_event)}
        older = rows[-1]["id"] if len(rows) == _AUDIT_ROWS else None
        return self._it.render(request, "audit", rows=rows, older=older, chain=chain)

    async def log_in_page(self, request: Request) -> Response:
        """The form that asks for the PIN."""
        visitor: Visitor = request.scope["visitor"]
        if visitor.is_in:
            return RedirectResponse("/", 303)
        wait = self._it.access.delays.left(visitor.address)
        return self._it.render(request, "log_in", wrong=False, wait=round(wait))

    async def log_in(self, request: Request, posted: Posted) -> Response:
        """A PIN that was given."""
        visitor: Visitor = request.scope["visitor"]
        digits = posted.fields.get("pin", "")[: _MOST_DIGITS + 1]
        cookie, wait = await run_in_threadpool(self._it.access.log_in, visitor.address, digits)
        log("page log-in", right=cookie is not None, address=visitor.address)
        if cookie is None:
            response: Response = self._it.render(
                request, "log_in", 429, wrong=True, wait=int(wait + 1)
            )
            response.headers["retry-after"] = str(int(wait + 1))
            return response
        response = RedirectResponse("/", 303)
        response.headers.append("set-cookie", self._session_cookie(cookie))
        return response

    async def log_out(self, request: Request, posted: Posted) -> Response:
        """Ask for the PIN again."""
        del posted
        self._it.access.sessions.close(request.scope["visitor"].cookie)
        return RedirectResponse(LOG_IN, 303)

    async def acknowledge(self, request: Request, posted: Posted) -> Response:
        """A person acknowledges an alert."""
        key, address = posted.fields.get("key", ""), request.scope["visitor"].address
        await run_in_threadpool(self._acknowledge, key, address)
        return RedirectResponse("/alerts", 303)

    def _acknowledge(self, key: str, address: str) -> None:
        ledger = self._it.writing
        if ledger.row("SELECT 1 FROM alert WHERE key = ?", key):
            with ledger.transaction():
                ledger.event("acknowledged", key=key, source="page", address=address)
                ledger.clear_alert(key)

    async def resend(self, request: Request, posted: Posted) -> Response:
        """Send an image's objects again."""
        del posted
        image = _image(request)
        deliveries = Deliveries(self._it.writing, self._it.spool)
        named = {one.name: one.objects for one in self._it.config.destinations}
        await run_in_threadpool(deliveries.resend, image, None, named)
        return RedirectResponse(f"/image/{image}", 303)

    async def upload(self, request: Request, posted: Posted) -> Response:
        """Images that were put onto the page: each is taken that can be, the others are named."""
        if not posted.files:
            raise PostRejectedError(400, "error.no_file")
        taken, refused = list[int](), list[tuple[str, PostRejectedError]]()
        async with self._uploading:  # an image is held in memory twice
            for one in posted.files:
                try:
                    address = request.scope["visitor"].address
                    taken.append(await run_in_threadpool(self._take, one, address))
                except PostRejectedError as error:
                    refused.append((one.name, error))
        if refused:
            first, names = refused[0][1], [name for name, _ in refused]
            is_one = len(posted.files) == 1
            raise PostRejectedError(
                first.status, first.word, names=() if is_one else names, taken=len(taken)
            )
        return RedirectResponse(f"/image/{taken[0]}" if len(taken) == 1 else "/", 303)

    def _take(self, sent: SentFile, address: str) -> int:
        # NumPy and pydicom are loaded by the first image alone: most pages never get one.
        from deepcovid_edge.cart.store.image_header import NotTakenError
        from deepcovid_edge.cart.store.intake import Arrival, Intake

        intake = Intake(self._it.writing, self._it.spool)
        try:
            taken = intake.take_file(sent.data, name=sent.name, arrival=Arrival("page", address))
        except NotTakenError:
            raise PostRejectedError(422, "error.no_image") from None
        except SpoolFullError:
            raise PostRejectedError(507, "error.full") from None
        except OutputError as error:
            log("page without ledger", kind=type(error).__name__)
            raise PostRejectedError(503, "error.busy") from None
        return taken.image_id

    async def changes(self, request: Request) -> Response:
        """The stream of events for an open page."""
        if request.method == "HEAD":
            return Response(media_type=_EVENTS)
        if self._it.changes.listeners >= MOST_LISTENERS:
            raise HTTPException(503)
        return StreamingResponse(self._it.changes.stream(), media_type=_EVENTS)

    async def static(self, request: Request) -> Response:
        """The page's own style, script and icon."""
        name = request.path_params["name"]
        if name not in STATIC_TYPES:
            raise HTTPException(404)
        return Response(self._it.files[name], media_type=STATIC_TYPES[name])

    async def healthz(self, request: Request) -> Response:
        """That the page answers."""
        del request
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Whether an image that came now would be assessed."""
        del request
        found = await run_in_threadpool(
            health.obstacles,
            *(self._it.config, self._it.reading, self._it.writing, self._it.spool),
        )
        return JSONResponse({"ready": not found, "obstacles": found}, 503 if found else 200)

    async def metrics(self, request: Request) -> Response:
        """What Prometheus reads."""
        del request
        from deepcovid_edge.cart.page import metrics  # its library is loaded where it is asked for

        data = await run_in_threadpool(
            self._read_alone,
            lambda ledger: metrics.metrics(self._it.config, ledger, self._it.spool),
        )
        return Response(data, headers={"content-type": metrics.CONTENT_TYPE})

    async def post_rejected(self, request: Request, error: Exception) -> Response:
        """A form that may not be used."""
        assert isinstance(error, PostRejectedError)
        log("page form refused", why=error.word, address=request.scope["visitor"].address)
        return self._message(
            request, error.status, error.word, names=error.names, taken=error.taken
        )

    async def http_error(self, request: Request, error: Exception) -> Response:
        """An address that is not there, or a method that it does not have."""
        assert isinstance(error, HTTPException)
        word = "error.not_there" if error.status_code in (404, 405) else "error.busy"
        return self._message(request, error.status_code, word)

    async def no_ledger(self, request: Request, error: Exception) -> Response:
        """The ledger is held by another role or damaged, or its disk is full."""
        log("page without ledger", kind=type(error).__name__)
        return self._message(request, 503, "error.busy")

    def _message(
        self, request: Request, status: int, word: str, *, names: Sequence[str] = (), taken: int = 0
    ) -> Response:
        return self._it.render(
            *(request, "message", status), word=word, names=names, taken=taken, files=MOST_FILES
        )


def _image(request: Request) -> int:
    number = _number(request.path_params["image"])
    if number is None:
        raise HTTPException(404)
    return number


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 18 else None
