"""The receiver's alerts: raised as often as their cause comes, cleared once it is over."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
from cart_outbox import alerts
from cart_peers import HOST, free_port, wait_until
from cart_store import ROOMY, Store, make_image
from pydicom import dcmread
from pynetdicom import AE

from deepcovid_edge.cart.config import (
    CartConfig,
    CartSettings,
    Destination,
    Peer,
    ReceiveSettings,
)
from deepcovid_edge.cart.receive import destination_addresses
from deepcovid_edge.cart.receive.receiver import (
    OUT_OF_RESOURCES,
    SUCCESS,
    Receiver,
    transfer_syntaxes,
)
from deepcovid_edge.cart.store.spool import SpoolSettings
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES

FULL = SpoolSettings(floor_mib=1 << 30, floor_share=0.0, ballast_mib=0)
BY_NAME = Destination("pacs", "PACS", "pacs.clinic", commitment=True)


@contextmanager
def receiving(store: Store, *destinations: Destination, max_image_mib: int = 64) -> Iterator[int]:
    """A receiver on a free port; the port."""
    config = CartConfig(
        Path("cart.toml"),
        CartSettings(store.spool.folder),
        ReceiveSettings(port=free_port(), max_image_mib=max_image_mib),
        (Peer("CONSOLE", "127.0.0.2" if destinations else HOST),),
        destinations,
    )
    with Receiver(config, store.intake) as running:
        running.start()
        yield running.port


def send(port: int) -> int:
    """Send an image; the status."""
    image = dcmread(io.BytesIO(make_image()))
    entity = AE("CONSOLE")
    entity.add_requested_context(image.SOPClassUID, image.file_meta.TransferSyntaxUID)
    association = entity.associate(HOST, port, ae_title="CART")
    assert association.is_established
    try:
        return int(association.send_c_store(image).Status)
    finally:
        association.release()


def test_every_image_that_finds_no_room_is_told(store: Store) -> None:
    """Housekeeping may clear the alert between two of them."""
    store.spool.settings = FULL
    with receiving(store) as port:
        for _ in range(2):
            assert send(port) == OUT_OF_RESOURCES
            assert alerts(store) == {"disk_floor": "disk_floor"}
            store.ledger.clear_alert("disk_floor")
        assert send(port) == OUT_OF_RESOURCES
        store.spool.settings = ROOMY
        assert send(port) == SUCCESS
        assert alerts(store) == {"disk_floor": "disk_floor"}, "the worker clears it"


@pytest.mark.parametrize(("limit", "stays"), [(64, True), (32, True), (65, False)])
def test_a_limit_that_was_raised_ends_the_alert_of_images_that_were_too_large(
    store: Store, limit: int, stays: bool
) -> None:
    code = "image_too_large"
    store.ledger.raise_alert(code, code, address=HOST, max_image_mib=64)
    store.ledger.raise_alert(f"{code}:/incoming", code, folder="/incoming", max_image_mib=64)
    with receiving(store, max_image_mib=limit):
        assert (code in alerts(store)) is stays
        assert f"{code}:/incoming" in alerts(store), "the watch of the folder looks after it"


def test_a_destination_that_calls_before_its_name_is_known_is_no_stranger_afterwards(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: set[str] = set()
    monkeypatch.setattr(Destination, "addresses", lambda _: frozenset(known))
    monkeypatch.setattr(destination_addresses, "LOOK_SECONDS", 0.05)
    with receiving(store, BY_NAME) as port:
        assert not is_admitted(port)
        wait_until(lambda: f"unknown_sender:{HOST}" in alerts(store), what="an alert")
        known.add(HOST)
        wait_until(lambda: alerts(store) == {}, what="that the alert is over")
        assert is_admitted(port)


def is_admitted(port: int) -> bool:
    """Whether a connection stays open for a moment."""
    with socket.create_connection((HOST, port), 5) as sock:
        sock.settimeout(0.5)
        try:
            return sock.recv(1) != b""
        except TimeoutError:
            return True
        except ConnectionError:
            return False


def test_every_syntax_that_is_read_is_taken() -> None:
    found = transfer_syntaxes()
    assert set(SYNTAXES) <= set(found)
    assert len(set(found)) == len(found)
