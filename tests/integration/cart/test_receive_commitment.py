"""Storage commitment with a real console: Orthanc sends, asks, and is told."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cart_peers import HOST, Orthanc, free_port, needs_orthanc, wait_until
from receiving_cart import ReceivingCart

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
from dicom_files import DX, dataset, written

from deepcovid_edge.cart.store.ledger import Ledger

pytestmark = needs_orthanc
UID = "1.2.3.77.1"


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(
        tmp_path_factory.mktemp("console"),
        ae_title="CONSOLE",
        peers={"cart": ("CART", free_port())},
    ) as running:
        yield running


def cart_of(console: Orthanc, folder: Path) -> ReceivingCart:
    """A cart on the port that the console knows."""
    return ReceivingCart(
        folder,
        peers=[("CONSOLE", HOST, console.port)],
        receive={"commitment": True, "port": console.calls[0]},
    )


def ask(console: Orthanc, *uids: str) -> str:
    """Ask for commitment; where the outcome will be."""
    wanted = [{"SOPClassUID": DX, "SOPInstanceUID": uid} for uid in uids]
    answer = console.post("/modalities/cart/storage-commitment", {"DicomInstances": wanted})
    return str(answer["Path"])


def outcome(console: Orthanc, path: str) -> Any:
    found = console.get(path)
    return None if found["Status"] == "Pending" else found


def settle(cart: ReceivingCart) -> None:
    """As if the worker had assessed every image."""
    with Ledger(cart.spool) as ledger, ledger.transaction() as now:
        now.execute("UPDATE image SET state = 'assessed'")


def send(console: Orthanc) -> None:
    image = dataset(np.zeros((32, 32), np.uint16), SOPInstanceUID=UID)
    identifier = console.post("/instances", written(image))["ID"]
    console.post("/modalities/cart/store", [identifier])


def test_orthanc_is_told_when_its_image_is_done_and_of_one_that_never_came(
    console: Orthanc, tmp_path: Path
) -> None:
    with cart_of(console, tmp_path / "cart") as cart:
        send(console)
        path, other = ask(console, UID), ask(console, UID, "1.2.3.4.99")
        wait_until(lambda: cart.events("store"), what="an image")
        assert outcome(console, path) is None
        settle(cart)
        wait_until(lambda: outcome(console, path) and outcome(console, other), what="reports")
        found = outcome(console, path)
        assert found["Status"] == "Success"
        assert [one["SOPInstanceUID"] for one in found["Success"]] == [UID]
        found = outcome(console, other)
        assert found["Status"] == "Failure"
        assert [one["SOPInstanceUID"] for one in found["Success"]] == [UID]
        assert [one["SOPInstanceUID"] for one in found["Failures"]] == ["1.2.3.4.99"]


def test_a_restart_sends_the_report_still(console: Orthanc, tmp_path: Path) -> None:
    with cart_of(console, tmp_path / "cart") as cart:
        send(console)
        path = ask(console, UID)
        cart.kill()
    with cart_of(console, tmp_path / "cart") as cart:
        settle(cart)
        wait_until(lambda: outcome(console, path), what="a report")
        assert outcome(console, path)["Status"] == "Success"


def test_it_is_not_negotiated_where_it_is_off(console: Orthanc, tmp_path: Path) -> None:
    peers = [("CONSOLE", HOST, console.port)]
    cart = ReceivingCart(tmp_path / "cart", peers=peers, receive={"port": console.calls[0]})
    with cart, pytest.raises(urllib.error.HTTPError):
        ask(console, UID)
