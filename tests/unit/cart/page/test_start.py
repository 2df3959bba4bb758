"""What the page starts with: a safe configuration, the PIN's hash, TLS."""

from __future__ import annotations

import threading
from http.client import HTTPException
from pathlib import Path

import pytest
from cart_page import PIN, Reader, filled, write_config
from cart_peers import free_port, wait_until
from own_certificate import answer_over_tls, make_certificate

from deepcovid_edge.cart.config import PageSettings
from deepcovid_edge.cart.page.access import Pin
from deepcovid_edge.cart.page.guard import origins_of
from deepcovid_edge.cart.page.role import page
from deepcovid_edge.errors import NotThereError, UsageError


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"host": "0.0.0.0"}, "page.host: got '0.0.0.0' without certificate, key and pin_file"),
        ({"host": "192.168.1.9", "pin_file": "pin"}, "without certificate"),
        ({"host": "::"}, "page.host"),
        ({"host": "10.0.0.1", "certificate": "c", "key": "k"}, "without certificate, key and pin"),
        ({"certificate": "c"}, "page.certificate and key: got one of them"),
        (
            {"host": "0.0.0.0", "certificate": "c", "key": "k", "pin_file": "p"},
            "page.hosts: is missing",
        ),
        (
            {
                "host": "10.0.0.1",
                "certificate": "c",
                "key": "k",
                "pin_file": "p",
                "names": "always",
            },
            "page.names: got 'always'",
        ),
        ({"hosts": ["a:80"]}, "page.hosts: got 'a:80'"),
        ({"hosts": ["*"]}, "page.hosts"),
        ({"language": "xx"}, "page.language: got 'xx'"),
        ({"pin": "123456"}, "page.pin: no such key"),
    ],
)
def test_an_unsafe_configuration_is_refused(
    tmp_path: Path, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        write_config(tmp_path, 8080, **keys)
    assert message in str(caught.value)


def test_a_start_without_the_pin_s_hash_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, free_port(), pin_file="pin")
    with pytest.raises(NotThereError, match="cart set-pin"):
        page(config, threading.Event())


def test_origins_are_those_of_the_configured_names() -> None:
    assert origins_of(PageSettings(port=8080)) == {
        f"http://{name}:8080" for name in ("127.0.0.1", "localhost", "[::1]")
    }
    beyond = PageSettings(
        host="10.0.0.1",
        port=443,
        certificate=Path("c"),
        key=Path("k"),
        pin_file=Path("p"),
        hosts=("cart.example",),
    )
    assert origins_of(beyond) == {
        f"https://{name}{port}" for name in ("10.0.0.1", "cart.example") for port in ("", ":443")
    }


def test_with_tls_plain_http_gets_nothing_and_the_cookie_is_secure(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    Pin.of(PIN).write(tmp_path / "pin")
    port = free_port()
    config = write_config(filled(tmp_path), port, certificate="c.pem", key="k.pem", pin_file="pin")
    stop = threading.Event()
    thread = threading.Thread(target=page, args=(config, stop))
    thread.start()
    try:
        wait_until(lambda: answer_over_tls(port, tmp_path / "c.pem", "/log-in"), 20)
        text = answer_over_tls(port, tmp_path / "c.pem", "/log-in")
        assert "set-cookie: __Host-cart=" in text
        assert "Secure" in text
        with pytest.raises((OSError, HTTPException)):
            Reader(port).get("/log-in")
    finally:
        stop.set()
        thread.join(10)
