"""The outbox against DCMTK's and Orthanc's servers: frozen, killed, back, over TLS."""

from __future__ import annotations

import gc
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cart_outbox import (
    IMPLICIT,
    SHORT,
    WAITS,
    alerts,
    all_states,
    config_for,
    fill,
    object_file,
    outbox_rows,
    scripted,
    sent_part,
)
from cart_peers import Orthanc, free_port, needs_dcmtk, needs_enclosure, needs_orthanc, storescp
from cart_peers import wait_until as wait
from cart_store import Store
from pydicom import dcmread

from deepcovid_edge.cart.config import Destination
from deepcovid_edge.cart.send.association import CertificateError, Timeouts
from deepcovid_edge.cart.send.dimse import DimseSender
from deepcovid_edge.cart.send.outbox import Outbox
from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.errors import NotThereError
from deepcovid_edge.imaging.dicom.syntaxes import file_meta_end


def outbox_to(store: Store, goal: Destination) -> Outbox:
    timeouts = Timeouts(connect=1.0, associate=1.5, stall=1.5, reply=2.0)
    return Outbox(
        config_for(store, goal), store.ledger, store.spool, timeouts=timeouts, waits=WAITS
    )


def is_sent(store: Store) -> bool:
    return all_states(store) == {"sent"}


@needs_dcmtk
@needs_enclosure
def test_dcmtk_gets_the_same_bytes_though_it_is_frozen_and_killed_on_the_way(
    store: Store, tmp_path: Path
) -> None:
    made = fill(store, 3)
    place = tmp_path / "there"
    with storescp(place, "+B", "+uf") as (server, port):
        server.freeze()
        outbox = outbox_to(store, Destination("pacs", "PACS", "127.0.0.1", port))
        outbox.start()
        try:
            wait(lambda: "waits:pacs" in alerts(store), 25)
            server.thaw()
            wait(lambda: is_sent(store), 20)
            assert alerts(store) == {}
            server.kill()
            made |= fill(store)
            wait(lambda: "queued" in all_states(store), 10)
        finally:
            outbox.stop()
    with storescp(place, "+B", "+uf") as (_, port):
        again = outbox_to(store, Destination("pacs", "PACS", "127.0.0.1", port))
        assert again.drain(15) == 0
    came = {}
    for path in place.iterdir():
        data = path.read_bytes()
        came[str(dcmread(path).SOPInstanceUID)] = data[file_meta_end(data) :]
    assert came == {uid: sent_part(file) for uid, file in made.items()}


@needs_orthanc
def test_orthanc_has_it_in_the_study_and_finds_what_was_uncertain(
    store: Store, tmp_path: Path
) -> None:
    made = fill(store, 2)
    queue = Deliveries(store.ledger, store.spool)
    with Orthanc(tmp_path / "orthanc") as orthanc:
        goal = Destination("pacs", "ORTHANC", "127.0.0.1", orthanc.port, find=True)
        sender = DimseSender(goal, "CART", SHORT)
        assert sender.check().kind == "sent"
        first, other, *_ = queue.due("pacs")
        assert sender.has(first) is False
        assert sender.send(first).kind == "sent"
        assert sender.has(first) is True
        assert sender.has(other) is False
        sender.close()
        queue.begin(first)  # the process was killed between the answer and the ledger
        outbox = outbox_to(store, goal)
        assert outbox.drain(15) == 0
        assert outbox_rows(store)[0][2] == "found there by C-FIND"
        there = orthanc.find(Modality="*")
        assert {one["MainDicomTags"]["SOPInstanceUID"] for one in there} == set(made)
        for one in there:
            file = orthanc.get(f"/instances/{one['ID']}/file")
            uid = one["MainDicomTags"]["SOPInstanceUID"]
            assert sent_part(file) == sent_part(made[uid])
        assert len(orthanc.get("/studies")) == 1


@needs_orthanc
@pytest.mark.slow
def test_a_full_orthanc_leaves_everything_in_the_outbox(store: Store, tmp_path: Path) -> None:
    fill(store, 2, side=300)
    options: dict[str, Any] = {"MaximumPatientCount": 1, "MaximumStorageSize": 0}
    options |= {"MaximumStorageMode": "Reject"}  # of Orthanc 1.11; others recycle
    with Orthanc(tmp_path / "orthanc", **options) as orthanc:
        version = tuple(map(int, orthanc.get("/system")["Version"].split(".")[:2]))
        if version < (1, 11):
            pytest.skip("this Orthanc deletes old images where it is full: 1.11 can refuse")
        goal = Destination("pacs", "ORTHANC", "127.0.0.1", orthanc.port)
        orthanc.post("/instances", object_file("sc", "2.25.9"))
        assert outbox_to(store, goal).drain(2) == 4


@needs_orthanc
def test_orthanc_that_does_not_know_the_cart_is_told(store: Store, tmp_path: Path) -> None:
    fill(store)
    with Orthanc(tmp_path / "orthanc", DicomAlwaysAllowStore=False) as orthanc:
        goal = Destination("pacs", "WRONG", "127.0.0.1", orthanc.port)
        answer = DimseSender(goal, "CART", SHORT).check()
        with DimseSender(goal, "CART", SHORT) as sender, pytest.raises(NotThereError):
            sender.echo()
        assert answer.rejects
        assert answer.status.endswith("Called AE title not recognised")
        assert outbox_to(store, goal).drain(1) == 2
        assert "rejects cart:pacs" in alerts(store)


def test_check_names_what_is_wrong(store: Store) -> None:
    closed = Destination("pacs", "PACS", "127.0.0.1", free_port())
    assert DimseSender(closed, "CART", SHORT).check().status == "no connection"
    unknown = Destination("pacs", "PACS", "no-such-host.invalid", 104)
    assert "host not known" in DimseSender(unknown, "CART", SHORT).check().status
    with scripted() as pacs:
        good = Destination("pacs", "PACS", "127.0.0.1", pacs.port)
        assert DimseSender(good, "CART", SHORT).check().kind == "sent"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A certificate and key of each of two, self-signed."""
    place = tmp_path_factory.mktemp("keys")
    for name in ("pacs", "cart"):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        command += ["-keyout", f"{place}/{name}.key", "-out", f"{place}/{name}.pem"]
        command += ["-subj", f"/CN={name}"]
        subprocess.run(command, check=True, capture_output=True)
    return {path.name: path for path in place.iterdir()}


def test_tls_with_certificates_of_both_sides(store: Store, keys: dict[str, Path]) -> None:
    import ssl

    made = fill(store, 2, side=300)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=keys["cart.pem"])
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(keys["pacs.pem"], keys["pacs.key"])
    with scripted(context=context) as pacs:
        own: dict[str, Any] = {"certificate": keys["cart.pem"], "key": keys["cart.key"]}
        goal = Destination(
            "pacs", "PACS", "127.0.0.1", pacs.port, authority=keys["pacs.pem"], **own
        )
        assert outbox_to(store, goal).drain(15) == 0
        assert all(data == sent_part(made[uid]) for uid, data in pacs.arrived)
        for wrong in (
            Destination("pacs", "PACS", "127.0.0.1", pacs.port),  # in clear
            Destination("pacs", "PACS", "127.0.0.1", pacs.port, authority=keys["pacs.pem"]),
            Destination("pacs", "PACS", "127.0.0.1", pacs.port, authority=keys["cart.pem"], **own),
        ):
            answer = DimseSender(wrong, "CART", SHORT).check()
            assert answer.kind == "transient", wrong


@needs_dcmtk
@needs_enclosure
@pytest.mark.slow
def test_dcmtk_that_takes_implicit_vr_alone_has_equal_values(store: Store, tmp_path: Path) -> None:
    made = fill(store, 2)
    place = tmp_path / "there"
    with storescp(place, "+xi", "+B", "+uf") as (_, port):
        goal = Destination("pacs", "PACS", "127.0.0.1", port)
        assert outbox_to(store, goal).drain(15) == 0
    for path in place.iterdir():
        there = dcmread(path)
        assert there.file_meta.TransferSyntaxUID == IMPLICIT
        built = tmp_path / "built.dcm"
        built.write_bytes(made[str(there.SOPInstanceUID)])
        assert there == dcmread(built)
    assert len(list(place.iterdir())) == len(made)


@pytest.mark.slow
def test_a_week_of_silence_costs_one_try_for_each_wait(store: Store) -> None:
    """The waits of the shipped table, shortened a thousandfold."""
    fill(store, 2)
    waits = tuple(wait / 1000 for wait in (10.0, 30.0, 60.0, 120.0, 300.0, 900.0))
    goal = Destination("pacs", "PACS", "127.0.0.1", free_port())
    outbox = Outbox(config_for(store, goal), store.ledger, store.spool, timeouts=SHORT, waits=waits)
    outbox.start()
    time.sleep(8)
    outbox.stop()
    assert sum(tries for _, tries, _ in outbox_rows(store)) <= 5 + 8 / 0.9 + 10


def test_failed_tries_leave_no_socket_behind() -> None:
    goal = Destination("pacs", "PACS", "127.0.0.1", free_port())
    sender = DimseSender(goal, "CART", SHORT)
    sender.check()
    gc.collect()
    gc.disable()  # it would close them, sooner or later
    try:
        before = len([*Path("/proc/self/fd").iterdir()])
        for _ in range(10):
            assert sender.check().kind == "transient"
        assert len([*Path("/proc/self/fd").iterdir()]) <= before
    finally:
        gc.enable()


def test_a_key_with_a_pass_phrase_asks_nobody(keys: dict[str, Path], tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", str(keys["cart.key"])]
    subprocess.run([*command, "-out", str(locked)], check=True, capture_output=True)
    goal = Destination("pacs", "PACS", "127.0.0.1", 104, certificate=keys["cart.pem"], key=locked)
    with pytest.raises(CertificateError, match=r"pacs: key: .*locked\.key: is encrypted"):
        DimseSender(goal, "CART", SHORT)
