"""What stands before every page: headers, hosts, the PIN. It looks at `scope` alone.

A URL that Starlette builds of a request holds the `Host` header, which its sender chooses; nothing
here is decided by one.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from http.cookies import Morsel, SimpleCookie

from starlette.datastructures import MutableHeaders, QueryParams
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepcovid_edge.cart.config import PageSettings
from deepcovid_edge.cart.page.access import SESSION_SECONDS, Access, new_cookie
from deepcovid_edge.cart.page.languages import LANGUAGES
from deepcovid_edge.serve.settings import is_loopback

LOG_IN, STATIC = "/log-in", "/static/"
_FOR_PROGRAMS = ("/healthz", "/readyz", "/metrics")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # With `no-referrer` browsers send `Origin: null` with a form (Fetch, 3.2), which the check of
    # the origin would have to let in.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_STATIC_CACHE = "max-age=31536000, immutable"  # its address has the hash of its content
_LONGEST_COOKIE = 64
_LANGUAGE_COOKIE = "language"


@dataclass(frozen=True)
class Visitor:
    """Who asks.

    Attributes:
        cookie: What tells this browser from others.
        token: What its forms must carry.
        is_in: Whether it may see images.
        has_session: Whether it has given the PIN.
        sees_names: Whether it may see whose images they are.
        language: The language it wants.
        address: Its IP address.
    """

    cookie: str
    token: str
    is_in: bool
    has_session: bool
    sees_names: bool
    language: str
    address: str


def hosts_of(settings: PageSettings) -> list[str]:
    """Names by which a browser may ask for the page."""
    address = ipaddress.ip_address(settings.host)
    is_here = address.is_loopback or address.is_unspecified
    own = ["127.0.0.1", "localhost", "[::1]"] if is_here else []
    if not address.is_unspecified:
        own.append(f"[{address}]" if address.version == 6 else str(address))
    return [*own, *settings.hosts]


def origins_of(settings: PageSettings) -> frozenset[str]:
    """Where a form may come from: the page itself, under each of its names."""
    scheme, usual = ("https", 443) if settings.certificate else ("http", 80)
    names = {f"{scheme}://{host.lower()}" for host in hosts_of(settings)}
    with_port = {f"{name}:{settings.port}" for name in names}
    return frozenset(with_port | names if settings.port == usual else with_port)


class Headers:
    """Puts the headers of security on every response, errors and refusals included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (ASGI 3)."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                headers.update(_HEADERS)
                is_static = scope["path"].startswith(STATIC) and message["status"] == 200
                headers["cache-control"] = _STATIC_CACHE if is_static else "no-store"
                message["headers"] = headers.raw
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class Guard:
    """Lets nobody see an image before the PIN, and gives each browser a cookie."""

    def __init__(self, app: ASGIApp, settings: PageSettings, access: Access) -> None:
        self._app, self._settings, self._access = app, settings, access
        self._secure = settings.certificate is not None

    @property
    def cookie_name(self) -> str:
        """Of the cookie; with TLS browsers keep others from setting it (RFC 6265bis, 4.1.3)."""
        return "__Host-cart" if self._secure else "cart"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (ASGI 3)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        cookies = HTTPConnection(scope).cookies
        cookie = cookies.get(self.cookie_name, "")
        is_known = 0 < len(cookie) <= _LONGEST_COOKIE
        visitor = self._visitor(scope, cookie if is_known else new_cookie(), cookies)
        scope["visitor"] = visitor
        if (refusal := self._refusal(scope, visitor)) is not None:
            await refusal(scope, receive, send)
            return

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and not is_known:
                headers = MutableHeaders(raw=message["headers"])
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("set-cookie", self.cookie(visitor.cookie))
                message["headers"] = headers.raw
            await send(message)

        await self._app(scope, receive, with_cookie)

    def _visitor(self, scope: Scope, cookie: str, cookies: dict[str, str]) -> Visitor:
        language = cookies.get(_LANGUAGE_COOKIE, "")
        has_session = self._access.sessions.holds(cookie)
        is_in = self._access.is_in(cookie)
        names = self._settings.names
        return Visitor(
            cookie,
            self._access.token_for(cookie),
            is_in,
            has_session,
            is_in and (names == "always" or (names == "after_pin" and has_session)),
            language if language in LANGUAGES else self._settings.language,
            scope["client"][0] if scope.get("client") else "",
        )

    def _refusal(self, scope: Scope, visitor: Visitor) -> Response | None:
        path = scope["path"]
        if visitor.is_in or path == LOG_IN or path.startswith(STATIC):
            return None
        if path in _FOR_PROGRAMS:
            refused = PlainTextResponse("This is for programs of the cart itself.", 403)
            return None if _is_of_this_machine(scope, visitor.address) else refused
        if scope["method"] in ("GET", "HEAD"):
            response = RedirectResponse(LOG_IN, 303)
            if path == "/" and (language := asked_language(scope)):  # chosen before the PIN
                value = language_cookie(language, secure=self._secure)
                response.headers.append("set-cookie", value)
            return response
        return PlainTextResponse("The PIN is needed.", 403)

    def cookie(self, value: str) -> str:
        """A `Set-Cookie` header's value."""
        return cookie_header(self.cookie_name, value, secure=self._secure)


def _is_of_this_machine(scope: Scope, address: str) -> bool:
    """Whether a client is on the cart: it calls from the very address at which it was answered."""
    server = scope.get("server")
    return is_loopback(address) or (server is not None and server[0] == address)


def cookie_header(name: str, value: str, *, secure: bool, seconds: int = SESSION_SECONDS) -> str:
    """A `Set-Cookie` header's value; no script and no other site gets at the cookie."""
    made: SimpleCookie = SimpleCookie({name: value})
    morsel: Morsel[str] = made[name]
    morsel.update({"path": "/", "max-age": str(seconds), "samesite": "Strict"})
    morsel["httponly"] = True
    if secure:
        morsel["secure"] = True
    return morsel.OutputString()


def asked_language(scope: Scope) -> str | None:
    """The language that a reader has chosen at the foot of the page; None for no new one."""
    chosen = QueryParams(scope["query_string"]).get("language")
    return chosen if chosen in LANGUAGES else None


def language_cookie(language: str, *, secure: bool) -> str:
    """The `Set-Cookie` header's value that keeps a language for a year."""
    return cookie_header(_LANGUAGE_COOKIE, language, secure=secure, seconds=31536000)
