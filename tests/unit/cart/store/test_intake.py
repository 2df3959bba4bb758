"""Taking images: durable first, once each, refused in words."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cart_store import FOLDER, Store, make_image, open_store

from deepcovid_edge.cart.store.image_header import NotTakenError
from deepcovid_edge.cart.store.intake import Arrival, content_hash
from deepcovid_edge.cart.store.spool import SpoolFullError, SpoolSettings
from deepcovid_edge.imaging.dicom.syntaxes import file_meta_end

EXPLICIT, DX = "1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.1.1"
AE = Arrival("ae", "127.0.0.1", "CONSOLE")
HEAD_SHA256 = "4d4c10c63b8ae574667ebd2b3f9cb14616a80303aafa98841368d44beb97a953"
"""Of preamble and file meta information for `EXPLICIT`, `DX` and the UID 2.25.1006."""
CONTENT_SHA256 = "b6660f2928dc347d686b7b239d9aae1ecf7dabe54ecce1d15aa52e89484a9565"
"""By `printf '1.2.840.10008.1.2.1\\0data set' | sha256sum`."""


def test_an_image_is_on_the_disk_and_synced_before_its_row_is_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def watch(name: str, real: Callable[..., object]) -> None:
        def noted(*given: object) -> object:
            steps.append(name)
            return real(*given)

        monkeypatch.setattr(os, name, noted)

    watch("fsync", os.fsync)
    replace, insert = Path.replace, store.ledger.insert

    def renamed(path: Path, place: Path) -> Path:
        steps.append("rename")
        return replace(path, place)

    def inserted(table: str, columns: dict[str, object]) -> int:
        steps.append(table)
        return insert(table, columns)

    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(store.ledger, "insert", inserted)
    store.take()
    # Two new folders, the file, its name; then the row.
    assert steps[: steps.index("image") + 1] == [*["fsync"] * 2, "rename", "fsync", "image"]


def test_the_bytes_that_came_are_kept(store: Store) -> None:
    data = make_image(5)
    store.intake.take_file(data, name="a.dcm", arrival=FOLDER)
    (kept,) = (store.spool.folder / "images").rglob("*.dcm")
    assert kept.read_bytes() == data
    assert kept.stat().st_mode & 0o077 == 0  # nobody else reads a patient's image


def test_the_same_image_by_dicom_and_as_a_file_is_one_image(store: Store) -> None:
    data = make_image(5)
    first = store.intake.take_file(data, name="a.dcm", arrival=FOLDER)
    again = store.intake.take_dataset(
        data[file_meta_end(data) :],
        sop_class=DX,
        sop_uid="2.25.1005",
        syntax=EXPLICIT,
        arrival=AE,
    )
    assert first.is_new
    assert (again.image_id, again.is_new, again.same_bytes) == (first.image_id, False, True)
    assert len(store.ledger.rows("SELECT * FROM arrival")) == 2
    assert len(store.ledger.rows("SELECT * FROM image")) == 1


def test_a_data_set_becomes_the_same_file_every_time(store: Store) -> None:
    whole = make_image(6)
    data = whole[file_meta_end(whole) :]
    store.intake.take_dataset(data, sop_class=DX, sop_uid="2.25.1006", syntax=EXPLICIT, arrival=AE)
    (kept,) = (store.spool.folder / "images").rglob("*.dcm")
    assert kept.read_bytes().endswith(data)
    head = kept.read_bytes()[: -len(data)]
    assert head[128:132] == b"DICM"
    # Changed bytes would make known images look new after an update.
    assert hashlib.sha256(head).hexdigest() == HEAD_SHA256
    assert b"2.25.137629302146843283741052264863190441473" in head
    assert len(head) == 132 + 12 + int.from_bytes(head[140:144], "little")


def test_a_content_is_known_by_the_same_hash_after_an_update(store: Store) -> None:
    assert content_hash(EXPLICIT, b"data set") == CONTENT_SHA256
    assert content_hash("1.2.840.10008.1.2", b"data set") != CONTENT_SHA256
    whole = make_image(6)
    store.intake.take_file(whole, name="a.dcm", arrival=FOLDER)
    (kept,) = (store.spool.folder / "images").rglob("*.dcm")
    assert kept.stem == content_hash(EXPLICIT, whole[file_meta_end(whole) :])


def test_the_same_uid_with_other_bytes_is_another_image_and_is_noted(store: Store) -> None:
    store.take(1, SOPInstanceUID="2.25.9")
    other = store.take(2, SOPInstanceUID="2.25.9")
    assert (other.is_new, other.same_bytes) == (True, False)
    assert "same UID, other bytes" in store.events()


@pytest.mark.parametrize("uid", ["", "2.25.1", "1" * 65, "../../../elsewhere"])
def test_a_request_that_names_another_instance_is_refused(store: Store, uid: str) -> None:
    whole = make_image(3)
    with pytest.raises(NotTakenError) as caught:
        store.intake.take_dataset(
            whole[file_meta_end(whole) :], sop_class=DX, sop_uid=uid, syntax=EXPLICIT, arrival=AE
        )
    assert caught.value.kind == "uid"
    assert not [*(store.spool.folder / "images").rglob("*.*")]


def test_a_request_that_names_another_class_is_refused_and_one_beside_none_is_not(
    store: Store,
) -> None:
    """DICOM PS3.4, B.2.3: the data set does not match the SOP class."""

    def take(whole: bytes, sop_class: str) -> None:
        data = whole[file_meta_end(whole) :]
        store.intake.take_dataset(
            data, sop_class=sop_class, sop_uid="2.25.1003", syntax=EXPLICIT, arrival=AE
        )

    with pytest.raises(NotTakenError) as caught:
        take(make_image(3, SOPClassUID="1.3.6.1.4.1.99999.1.2"), DX)
    assert caught.value.kind == "uid"
    assert store.states() == []
    take(make_image(3, SOPClassUID=None), DX)
    assert store.states() == ["received"]


@pytest.mark.parametrize("data", [b"", b"no image at all", b"%PDF-1.4"])
def test_what_is_no_image_is_refused(store: Store, data: bytes) -> None:
    with pytest.raises(NotTakenError) as caught:
        store.intake.take_file(data, name="x", arrival=FOLDER)
    assert caught.value.kind == "parse"


def test_an_image_whose_elements_are_out_of_order_is_taken(store: Store) -> None:
    data = make_image(3)
    start, rows = file_meta_end(data), data.index(b"\x28\0\x02\0US")
    pixels = data.index(b"\xe0\x7f\x10\0OW")
    data = data[:start] + data[rows:pixels] + data[start:rows] + data[pixels:]
    store.intake.take_file(data, name="x", arrival=FOLDER)
    assert store.states() == ["received"]


def test_an_image_that_is_damaged_behind_its_patient_is_taken(store: Store) -> None:
    data = make_image(3)
    at = data.index(b"\x28\0\x02\0US")
    damaged = b"\x21\0\x01\0SQ\0\0\xff\xff\xff\xff" + b"?" * 64
    store.intake.take_file(data[:at] + damaged + data[at:], name="x", arrival=FOLDER)
    assert store.states() == ["received"]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_uid_that_is_a_path_names_no_file(store: Store) -> None:
    store.take(3, SOPInstanceUID="../../../../elsewhere/x")
    (kept,) = (store.spool.folder / "images").rglob("*.dcm")
    assert len(kept.stem) == 64
    assert not (store.spool.folder.parent / "elsewhere").exists()


def test_names_of_patients_stand_in_one_table(store: Store) -> None:
    store.take(
        1, PatientName="Kanarienvogel^Anna", PatientID="KANARI-1", PatientBirthDate="19500101"
    )
    row = store.ledger.row("SELECT * FROM who")
    assert row is not None
    assert (row["name"], row["patient_id"]) == ("Kanarienvogel^Anna", "KANARI-1")
    for table in ("image", "arrival", "event", "meta", "alert"):
        held = " ".join(str([*one]) for one in store.ledger.rows(f"SELECT * FROM {table}"))
        assert "anari" not in held.lower()


@pytest.mark.filterwarnings("ignore:Unknown encoding")
@pytest.mark.parametrize(
    ("charset", "raw", "shown"),
    [
        ("ISO_IR 192", "陳^小明".encode(), "陳^小明"),
        ("GB18030", "王^小东".encode("gb18030"), "王^小东"),
        ("ISO_IR 100", "Müller^Änne".encode("latin-1"), "Müller^Änne"),
        ("NO_SUCH", "Müller".encode("latin-1"), "Müller"),
    ],
)
def test_names_are_decoded_as_the_image_states(
    store: Store, charset: str, raw: bytes, shown: str
) -> None:
    placeholder = "P" * (len(raw) + len(raw) % 2)
    data = make_image(1, PatientName=placeholder, SpecificCharacterSet="ISO_IR 192")
    data = data.replace(placeholder.encode(), raw.ljust(len(placeholder)))
    data = data.replace(b"ISO_IR 192", charset.encode().ljust(10)[:10])
    store.intake.take_file(data, name="a.dcm", arrival=FOLDER)
    row = store.ledger.row("SELECT name FROM who")
    assert row is not None
    assert row["name"] == shown


def test_many_senders_of_the_same_image_make_one(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        taken = [*pool.map(lambda _: store.take(4), range(24))]
    assert len({one.image_id for one in taken}) == 1
    assert sum(one.is_new for one in taken) == 1
    assert len(store.ledger.rows("SELECT * FROM arrival")) == 24


def test_below_the_floor_nothing_is_taken(tmp_path: Path) -> None:
    with open_store(tmp_path, SpoolSettings(1 << 30, 0.0, 0)) as store:
        with pytest.raises(SpoolFullError, match="MiB free, floor"):
            store.take()
        assert store.states() == []


def test_a_disk_that_fills_while_an_image_is_written_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpoolFullError, match="No space left"):
        store.spool.store([b"x"], store.spool.image("a" * 64, ".dcm"))
    assert not [*(store.spool.folder / "incoming").iterdir()]
