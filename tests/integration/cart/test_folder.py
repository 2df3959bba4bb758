"""Watched folders by the process that receives: many files, a share that goes away."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from cart_peers import wait_until
from namespaces import needs_mount
from receiving_cart import ReceivingCart

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
from dicom_files import dataset, written

from deepcovid_edge.cart.store.ledger import Ledger


def make_image(number: int) -> bytes:
    pixels = np.full((16, 16), number, np.uint16)
    return written(dataset(pixels, SOPInstanceUID=f"1.2.3.{number}"))


def count(cart: ReceivingCart, query: str) -> int:
    with Ledger(cart.spool, read_only=True) as ledger:
        row = ledger.row(query)
    assert row is not None
    return int(row[0])


def images(cart: ReceivingCart) -> int:
    return count(cart, "SELECT count(*) FROM image")


def write_slowly(path: Path, data: bytes, parts: int) -> None:
    with path.open("wb") as stream:
        for at in range(parts):
            stream.write(data[len(data) * at // parts : len(data) * (at + 1) // parts])
            stream.flush()
            time.sleep(1.0)


def test_a_file_that_is_written_slowly_is_taken_whole_and_once(tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    settings = {"folders": [incoming], "after": "delete"}
    with ReceivingCart(tmp_path / "cart", receive=settings) as cart:
        path = incoming / "slow.dcm"
        write_slowly(path, make_image(1), 3)
        wait_until(lambda: not path.exists(), what="the file is taken")
        assert images(cart) == 1
        assert cart.events("folder")[0]["is_whole"]
        assert cart.stop() == 0


@pytest.mark.slow
@needs_mount
def test_a_share_that_goes_away_is_an_alert_and_comes_back(tmp_path: Path) -> None:
    incoming = tmp_path / "share" / "incoming"
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(incoming.parent)]
    incoming.mkdir(parents=True)
    incoming.rmdir()
    subprocess.run(mount, check=True)
    try:
        incoming.mkdir()
        (incoming / "1.dcm").write_bytes(make_image(1))
        with ReceivingCart(tmp_path / "cart", receive={"folders": [incoming]}) as cart:
            wait_until(lambda: images(cart) == 1, what="the first image")
            subprocess.run(["umount", "-l", str(incoming.parent)], check=True)
            gone = "SELECT count(*) FROM alert WHERE code = 'folder_gone'"
            wait_until(lambda: count(cart, gone) == 1, what="an alert")
            subprocess.run(mount, check=True)
            incoming.mkdir()
            (incoming / "2.dcm").write_bytes(make_image(2))
            wait_until(lambda: images(cart) == 2, what="the second image")
            assert count(cart, gone) == 0
            assert "Traceback" not in cart.said()
    finally:
        subprocess.run(["umount", "-l", str(incoming.parent)], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_thousand_files_at_the_start(tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for number in range(5000):
        (incoming / f"{number}.dcm").write_bytes(make_image(number))
    with ReceivingCart(tmp_path / "cart", receive={"folders": [incoming]}) as cart:
        before = cart.rss_mib()
        wait_until(lambda: images(cart) == 5000, 800, what="all files are taken", step=1)
        time.sleep(5)
        assert count(cart, "SELECT count(*) FROM arrival") == 5000
        assert cart.rss_mib() < before + 30
        began = time.monotonic()
        assert cart.stop() == 0
        assert time.monotonic() - began < 5
