"""Who is on the cart itself: its programs ask without the PIN, whatever the page listens on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the cart needs extra cart")
from starlette.responses import PlainTextResponse

from deepcovid_edge.cart.config import PageSettings
from deepcovid_edge.cart.page.access import Access, Pin
from deepcovid_edge.cart.page.guard import Guard, hosts_of

_OWN, _OTHER = "192.168.1.10", "192.168.1.20"
_KEYS: dict[str, Any] = {
    "certificate": Path("c.pem"),
    "key": Path("k.pem"),
    "pin_file": Path("pin"),
}


def settings(host: str, **keys: Any) -> PageSettings:
    """A page beyond this machine."""
    return PageSettings(host=host, **_KEYS, **keys)


def status(path: str, client: str, server: str = _OWN) -> int:
    """What a client gets that has not given the PIN."""
    guard = Guard(PlainTextResponse("shown"), settings(_OWN), Access(Pin.of("123456")))
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [],
        "client": (client, 4711),
        "server": (server, 8443),
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    asyncio.run(guard(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_programs_of_the_cart_are_answered_at_each_of_its_addresses(path: str) -> None:
    assert status(path, _OWN) == 200
    assert status(path, "127.0.0.1", "127.0.0.1") == 200
    assert status(path, "::1", "::1") == 200
    assert status(path, _OTHER) == 403  # a probe that follows a redirect would find 200


def test_images_need_the_pin_on_the_cart_too() -> None:
    assert status("/", _OWN) == 303


def test_a_page_on_every_address_is_found_under_the_names_of_this_machine() -> None:
    assert hosts_of(settings("0.0.0.0", hosts=("cart.clinic",))) == [
        *("127.0.0.1", "localhost", "[::1]"),
        "cart.clinic",
    ]
    assert hosts_of(settings(_OWN)) == [_OWN]
