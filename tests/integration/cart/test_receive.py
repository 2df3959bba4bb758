"""Images by C-STORE from real senders: DCMTK in every syntax that it writes, else pynetdicom."""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cart_peers import HOST, echoscu, needs_dcmtk, storescu, wait_until
from namespaces import needs_mount
from receiving_cart import CR, ReceivingCart, association_request, p_data, status_in, store_command

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
import dicom_files
from dicom_files import DCMTK, EXPLICIT, HTJ2K, J2K, MOST_BITS, WRITABLE, by_dcmtk, dataset, written
from pydicom import dcmread
from pynetdicom import AE

from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.imaging.dicom.syntaxes import file_meta_end

pytestmark = needs_dcmtk
_ROOT = Path(__file__).parents[3]
REAL = sorted(
    image for place in (_ROOT, _ROOT.parent) for image in (place / "shared/dicom").glob("*.dcm")
)
CT = "1.2.840.10008.5.1.4.1.1.2"
OPTIONS = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.5": "-xr",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
}
"""Option of storescu that proposes a syntax first."""
_numbers = iter(range(1, 10_000))


@pytest.fixture(scope="module")
def cart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceivingCart]:
    with ReceivingCart(tmp_path_factory.mktemp("cart")) as running:
        yield running


def make_image(bits: int = 12, **elements: Any) -> Any:
    number = next(_numbers)
    pixels = np.random.default_rng(number).integers(0, 1 << bits, (64, 48))
    kind = np.uint16 if bits > 8 else np.uint8
    uid = elements.pop("SOPInstanceUID", f"1.2.3.{os.getpid()}.{number}")
    return dataset(pixels.astype(kind), stored=bits, SOPInstanceUID=uid, **elements)


def saved(folder: Path, image: Any, syntax: str = EXPLICIT) -> Path:
    path = folder / f"{next(_numbers)}.dcm"
    path.write_bytes(written(image, syntax))
    return path


def rows(cart: ReceivingCart, query: str, *values: object) -> list[sqlite3.Row]:
    with Ledger(cart.spool, read_only=True) as ledger:
        return ledger.rows(query, *values)


def images(cart: ReceivingCart, uid: str) -> list[Path]:
    """Files of the images with a SOP instance UID."""
    names = [
        row[0] for row in rows(cart, "SELECT content_sha256 FROM image WHERE sop_uid = ?", uid)
    ]
    return [cart.spool / "images" / name[:2] / f"{name}.dcm" for name in names]


def stored(cart: ReceivingCart, uid: str) -> Path:
    (path,) = images(cart, uid)
    return path


def statuses(cart: ReceivingCart, of: int) -> list[str]:
    """The statuses of the last requests, in the log, which is written before the answer."""
    return [one["status"] for one in cart.events("store")][-of:]


def sent(cart: ReceivingCart, image: Any, syntax: str = EXPLICIT, title: str = "CONSOLE") -> int:
    """Send by pynetdicom; the status."""
    entity = AE(title)
    entity.add_requested_context(image.SOPClassUID, syntax)
    association = entity.associate(HOST, cart.port, ae_title="CART")
    assert association.is_established
    try:
        data = io.BytesIO(written(image, syntax))
        return int(association.send_c_store(dcmread(data)).Status)
    finally:
        association.release()


def test_an_echo_is_answered(cart: ReceivingCart) -> None:
    assert "Success" in echoscu(cart.port).stdout


@pytest.mark.parametrize("syntax", sorted(set(DCMTK) & set(OPTIONS)))
def test_every_syntax_of_dcmtk_arrives_as_it_was_sent(
    cart: ReceivingCart, tmp_path: Path, syntax: str
) -> None:
    image = make_image(min(12, MOST_BITS.get(syntax, 12)))
    path = tmp_path / "image.dcm"
    path.write_bytes(by_dcmtk(written(image), syntax))
    uid = str(dcmread(path).SOPInstanceUID)  # a lossy copy has another one
    done = storescu(cart.port, path, options=[OPTIONS[syntax]])
    assert "(Success)" in done.stdout, done.stdout
    kept, before = dcmread(stored(cart, uid)), dcmread(path)
    assert kept.file_meta.TransferSyntaxUID == syntax
    assert kept.PixelData == before.PixelData


@pytest.mark.parametrize(
    "syntax", [uid for uid in WRITABLE if uid.endswith((".90", ".91", ".201", ".203"))]
)
def test_jpeg_2000_arrives_bit_for_bit(cart: ReceivingCart, syntax: str) -> None:
    assert {J2K, HTJ2K} & set(dicom_files.WRITABLE)
    image = make_image()
    assert sent(cart, image, syntax) == 0x0000
    kept = dcmread(stored(cart, image.SOPInstanceUID))
    assert kept.file_meta.TransferSyntaxUID == syntax
    assert kept.PixelData == image.PixelData


@pytest.mark.skipif(not REAL, reason="no real images in ../shared/dicom")
def test_real_images_arrive(cart: ReceivingCart) -> None:
    for path in REAL:  # two of them have one UID and other pixels
        before = dcmread(path)
        assert sent_file(cart, path) == 0x0000
        kept = [dcmread(image) for image in images(cart, str(before.SOPInstanceUID))]
        assert before.PixelData in [one.PixelData for one in kept]
        assert {one.PatientID for one in kept} == {before.PatientID}


def sent_file(cart: ReceivingCart, path: Path) -> int:
    entity = AE("CONSOLE")
    image = dcmread(path)
    entity.add_requested_context(image.SOPClassUID, image.file_meta.TransferSyntaxUID)
    association = entity.associate(HOST, cart.port, ae_title="CART")
    try:
        return int(association.send_c_store(path).Status)
    finally:
        association.release()


def test_a_duplicate_is_taken_once_and_noted_twice(cart: ReceivingCart, tmp_path: Path) -> None:
    image = make_image()
    path = saved(tmp_path, image)
    assert "(Success)" in storescu(cart.port, path).stdout
    assert "(Success)" in storescu(cart.port, path).stdout
    (row,) = rows(cart, "SELECT id FROM image WHERE sop_uid = ?", image.SOPInstanceUID)
    arrivals = rows(cart, "SELECT * FROM arrival WHERE image_id = ?", row["id"])
    assert [one["same_bytes"] for one in arrivals] == [1, 1]
    assert arrivals[0]["ae_title"] == "CONSOLE"


def test_the_same_uid_with_other_bytes_is_another(cart: ReceivingCart, tmp_path: Path) -> None:
    one, other = make_image(), make_image()
    other.SOPInstanceUID = one.SOPInstanceUID
    assert "(Success)" in storescu(cart.port, saved(tmp_path, one)).stdout
    assert "(Success)" in storescu(cart.port, saved(tmp_path, other)).stdout
    found = rows(cart, "SELECT id FROM image WHERE sop_uid = ?", one.SOPInstanceUID)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("titles", "reason"),
    [
        ({"calling": "SOMEBODY"}, "Calling AE Title Not Recognized"),
        ({"called": "PACS"}, "Called AE Title Not Recognized"),
    ],
)
def test_wrong_titles_are_rejected_with_the_reason(
    cart: ReceivingCart, titles: dict[str, str], reason: str
) -> None:
    assert reason in echoscu(cart.port, **titles).stdout
    query = "SELECT detail FROM alert WHERE code = 'unknown_sender'"
    said = "calls itself 'SOMEBODY'" if "calling" in titles else "calls for 'PACS'"
    wait_until(lambda: any(said in row["detail"] for row in rows(cart, query)), what="an alert")


def test_a_ct_is_refused_when_the_sender_asks(cart: ReceivingCart, tmp_path: Path) -> None:
    done = storescu(cart.port, saved(tmp_path, make_image(SOPClassUID=CT)))
    assert done.returncode != 0
    assert "No valid Presentation Context" in done.stdout


def test_a_raw_image_is_refused_when_the_sender_asks(cart: ReceivingCart, tmp_path: Path) -> None:
    raw = CR + ".1.1"
    assert storescu(cart.port, saved(tmp_path, make_image(SOPClassUID=raw))).returncode != 0


def test_other_images_are_taken_where_that_is_asked_for(tmp_path: Path) -> None:
    with ReceivingCart(tmp_path / "cart", receive={"other_images": "record"}) as cart:
        done = storescu(cart.port, saved(tmp_path, make_image(SOPClassUID=CT)))
        assert "(Success)" in done.stdout
        report = make_image(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33")
        assert storescu(cart.port, saved(tmp_path, report)).returncode != 0


@pytest.mark.parametrize("uid", [None, "", "1" * 65, "1.2.3.4.5.6.7"])
def test_a_uid_that_is_missing_or_another_one_is_refused(
    cart: ReceivingCart, uid: str | None
) -> None:
    """Without a UID pynetdicom itself answers nothing, and with a long one it aborts."""
    assert raw_store(cart, data_set(make_image()), store_command(uid)) == 0xA900


def test_what_is_no_data_set_is_refused(cart: ReceivingCart) -> None:
    for data in (b"", b"\1", bytes(1000), b"\1\2\3" * 1000):
        assert raw_store(cart, data, store_command("1.2.3")) in (0xA900, 0xC000)


def test_a_class_that_was_not_negotiated_is_refused(cart: ReceivingCart) -> None:
    image = make_image()
    assert raw_store(cart, data_set(image), store_command(image.SOPInstanceUID, CT)) == 0x0122


def data_set(image: Any) -> bytes:
    file = written(image)
    return file[file_meta_end(file) :]


def raw_store(cart: ReceivingCart, data: bytes, command: bytes) -> int:
    """Send a C-STORE request that no honest sender would; the status."""
    with socket.create_connection((HOST, cart.port), 10) as sock:
        sock.sendall(association_request())
        assert sock.recv(4096)[:1] == b"\2", "A-ASSOCIATE-AC"
        sock.sendall(p_data(command, 3) + p_data(data, 2))
        answer = sock.recv(4096)
        sock.sendall(bytes.fromhex("05 00 00000004 00000000"))  # A-RELEASE-RQ
        sock.recv(4096)
    return status_in(answer)


@contextlib.contextmanager
def idle_association(cart: ReceivingCart) -> Iterator[None]:
    entity = AE("CONSOLE")
    entity.add_requested_context(CR, EXPLICIT)
    association = entity.associate(HOST, cart.port, ae_title="CART")
    assert association.is_established
    try:
        yield
    finally:
        association.abort()


def test_a_locked_ledger_is_out_of_resources(tmp_path: Path) -> None:
    with ReceivingCart(tmp_path / "cart") as cart:
        path = saved(tmp_path, make_image())
        with contextlib.closing(sqlite3.connect(cart.spool / "ledger.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            done = storescu(cart.port, path)
            other.rollback()
        assert statuses(cart, 1) == ["0xA700"], done.stdout
        assert "(Success)" in storescu(cart.port, path).stdout


@needs_mount
def test_a_full_disk_is_out_of_resources_until_there_is_room(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=True)
    try:
        with ReceivingCart(place / "cart") as cart:
            path = saved(tmp_path, make_image())
            assert "(Success)" in storescu(cart.port, path).stdout
            filling = place / "filling"
            with contextlib.suppress(OSError), filling.open("wb") as stream:
                while True:
                    stream.write(bytes(1 << 16))
                    stream.flush()
            more = saved(tmp_path, make_image())
            assert "OutOfResources" in storescu(cart.port, more).stdout
            assert statuses(cart, 1) == ["0xA700"]
            filling.unlink()
            assert "(Success)" in storescu(cart.port, more).stdout
            assert "Traceback" not in cart.said()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_sigterm_ends_it_within_five_seconds_and_an_idle_sender_with_it(tmp_path: Path) -> None:
    with ReceivingCart(tmp_path) as cart:
        with idle_association(cart):
            began = time.monotonic()
            assert cart.stop() == 0
            assert time.monotonic() - began < 5
        assert cart.events()[-1] == {"event": "stopped"}
        assert "Traceback" not in cart.said()


def test_a_port_that_is_taken_is_told_in_a_sentence(tmp_path: Path, cart: ReceivingCart) -> None:
    second = ReceivingCart(tmp_path, receive={"port": cart.port})
    assert second.process.wait(30) != 0
    assert f"receive.port: 127.0.0.1:{cart.port}: Address already in use" in second.said()


def test_images_of_two_senders_at_once_all_arrive(cart: ReceivingCart, tmp_path: Path) -> None:
    images = [make_image() for _ in range(20)]
    paths = [saved(tmp_path, image) for image in images]
    said: list[str] = []

    def send(half: list[Path]) -> None:
        said.append(storescu(cart.port, *half).stdout)

    threads = [threading.Thread(target=send, args=(paths[at::2],)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(text.count("(Success)") for text in said) == 20
    for image in images:
        assert dcmread(stored(cart, image.SOPInstanceUID)).PixelData == image.PixelData


def test_the_log_has_no_name_and_no_uid(cart: ReceivingCart, tmp_path: Path) -> None:
    image = make_image(PatientName="CANARY^ZEBRA", PatientID="CANARY17")
    assert "(Success)" in storescu(cart.port, saved(tmp_path, image)).stdout
    assert "CANARY" not in cart.said()
    assert not re.search(r"\d+(\.\d+){5,}", cart.said())
    events = rows(cart, "SELECT detail FROM event")
    assert not any("CANARY" in row["detail"] for row in events)
