"""Watched folders, scan after scan: what is looked at again, what is not, and what is not lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("pydicom", reason="the cart needs extra cart")
from watched_folder import WatchedFolder, make_image

from deepcovid_edge.cart.receive import folder as module
from deepcovid_edge.cart.receive import listing
from deepcovid_edge.cart.receive.folder import FolderWatch
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.spool import SpoolFullError
from deepcovid_edge.imaging.files import FileBytes, read_bytes

Patch = pytest.MonkeyPatch


@pytest.fixture
def deleting(tmp_path: Path, ledger: Ledger) -> WatchedFolder:
    return WatchedFolder(tmp_path, ledger, "delete")


def fails(error: Exception) -> Callable[..., Any]:
    def fail(*_arguments: object) -> None:
        raise error

    return fail


def count_reads(patched: Patch) -> list[str]:
    """Names of the files that are read from now on."""
    names: list[str] = []

    def read(path: Path) -> FileBytes:
        names.append(path.name)
        return read_bytes(path)

    patched.setattr(module, "read_bytes", read)
    return names


def close_folder(patched: Patch, folder: Path) -> None:
    """Have a folder not be listed; root lists every folder."""
    entries = listing._entries

    def list_folder(place: Path, progress: Callable[[], None]) -> Any:
        if place == folder:
            raise PermissionError(13, "Permission denied")
        return entries(place, progress)

    patched.setattr(listing, "_entries", list_folder)


def test_every_image_that_finds_no_room_is_told(place: WatchedFolder, monkeypatch: Patch) -> None:
    """Housekeeping may clear the alert between two of them."""
    (place.folder / "a.dcm").write_bytes(make_image())
    place.scan()
    monkeypatch.setattr(place.intake.spool, "check_room", fails(SpoolFullError("full")))
    for _ in range(3):
        with pytest.raises(SpoolFullError):
            place.scan()
        assert place.alerts() == ["disk_floor"]
        place.ledger.clear_alert("disk_floor")
    assert len(place.events("alert")) == 3


def test_an_alert_of_the_disk_that_stands_is_left_as_it_is(
    place: WatchedFolder, monkeypatch: Patch
) -> None:
    (place.folder / "a.dcm").write_bytes(make_image())
    place.scan()
    place.ledger.raise_alert("disk_floor", "disk_floor", free_mib=64)
    monkeypatch.setattr(place.intake.spool, "check_room", fails(SpoolFullError("full")))
    with pytest.raises(SpoolFullError):
        place.scan()
    assert len(place.events("alert")) == 1


def test_files_below_a_folder_that_cannot_be_listed_are_not_forgotten(
    place: WatchedFolder, monkeypatch: Patch
) -> None:
    closed = place.folder / "closed" / "series"
    closed.mkdir(parents=True)
    (closed / "a.dcm").write_bytes(make_image(1))
    (place.folder / "b.dcm").write_bytes(make_image(2))
    assert place.scan(2) == 2
    with monkeypatch.context() as patched:
        close_folder(patched, closed.parent)
        place.scan(2)
        (place.folder / "b.dcm").unlink()
        place.scan(2)
    assert len(place.ledger.rows("SELECT * FROM seen")) == 1, "what is gone is forgotten"
    assert place.scan(3) == 0
    assert place.arrivals() == 2
    (closed / "a.dcm").unlink()
    (place.folder / "c.dcm").write_bytes(make_image(3))
    assert place.scan(2) == 1
    assert len(place.ledger.rows("SELECT * FROM seen")) == 1


def test_a_file_that_is_locked_is_put_away_later(
    deleting: WatchedFolder, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = deleting.folder / "a.dcm"
    path.write_bytes(make_image())
    with monkeypatch.context() as patched:
        patched.setattr(FolderWatch, "_remove", fails(PermissionError(13, "Permission denied")))
        assert deleting.scan(2) == 1
        deleting.scan(5)
    assert path.exists()
    assert capsys.readouterr().out.count("file_stays") == 1
    deleting.scan()
    assert not path.exists()
    assert not deleting.ledger.rows("SELECT * FROM seen")
    assert deleting.arrivals() == 1


def test_a_power_cut_before_a_file_was_put_away_keeps_it_for_the_next_start(
    deleting: WatchedFolder, monkeypatch: Patch
) -> None:
    count = module._MOST_AWAY + 2
    for number in range(count):
        (deleting.folder / f"{number}.dcm").write_bytes(make_image(number))
    with monkeypatch.context() as patched:
        patched.setattr(FolderWatch, "_put_away", lambda *_: None)
        assert deleting.scan(2) == count
    deleting.start()
    deleting.scan()
    assert len([*deleting.folder.iterdir()]) == 2, "new images do not wait for all of them"
    deleting.scan()
    assert [*deleting.folder.iterdir()] == []
    assert deleting.arrivals() == count


def test_what_is_put_away_later_is_what_was_taken(
    deleting: WatchedFolder, monkeypatch: Patch
) -> None:
    path = deleting.folder / "a.dcm"
    path.write_bytes(make_image(1))
    with monkeypatch.context() as patched:
        patched.setattr(FolderWatch, "_remove", fails(PermissionError(13, "Permission denied")))
        deleting.scan(3)
        path.write_bytes(make_image(2)[:-500])
        deleting.scan(3)
    deleting.scan(10)
    assert path.exists(), "it has changed since, and is not whole"
    assert deleting.scan(400) == 1
    assert path.exists(), "its sender may go on"


def test_a_partial_file_stays_after_a_restart_too_and_is_read_once(
    deleting: WatchedFolder, monkeypatch: Patch
) -> None:
    path = deleting.folder / "a.dcm"
    path.write_bytes(make_image()[:-500])
    assert deleting.scan(400) == 1
    deleting.start()
    names = count_reads(monkeypatch)
    assert deleting.scan(400) == 0
    assert path.exists()
    assert names == ["a.dcm"]


def test_a_file_whose_image_the_spool_has_no_more_stays(tmp_path: Path, ledger: Ledger) -> None:
    """It may be the last one there is."""
    place = WatchedFolder(tmp_path, ledger, "keep")
    path = place.folder / "a.dcm"
    path.write_bytes(make_image())
    place.scan(2)
    with ledger.transaction() as now:
        now.execute("UPDATE image SET state = 'expired'")
    place.after = "delete"
    place.start()
    assert place.scan(3) == 0
    assert path.exists()


@pytest.mark.parametrize("name", ["letter.txt", "part.dcm", "nobody.dcm"])
def test_what_is_not_taken_is_read_once_until_it_changes_or_is_stale(
    place: WatchedFolder, monkeypatch: Patch, name: str
) -> None:
    without_uid = make_image().replace(b"\x08\x00\x18\x00UI", b"\x08\x00\x19\x00UI")
    contents = {
        "letter.txt": b"Dear colleague",
        "part.dcm": make_image()[:-500],
        "nobody.dcm": without_uid,
    }
    path = place.folder / name
    path.write_bytes(contents[name])
    names = count_reads(monkeypatch)
    assert place.scan(250) == 0
    assert names == [name]
    path.write_bytes(contents[name][:-1])
    place.scan(250)
    assert names == [name] * 2
    place.scan(60)
    assert names == [name] * 3, "it is stale"
    place.scan(60)
    assert names == [name] * 3


@pytest.mark.parametrize("after", ["keep", "delete"])
def test_files_that_were_moved_stay_where_they_are_whatever_becomes_of_files_later(
    tmp_path: Path, ledger: Ledger, after: str
) -> None:
    place = WatchedFolder(tmp_path, ledger, "move")
    (place.folder / "a.dcm").write_bytes(make_image())
    assert place.scan(3) == 1
    with ledger.transaction() as now:
        now.execute("UPDATE image SET state = 'expired'")  # long ago
    place.after = after
    place.start()
    assert place.scan(400) == 0
    assert (place.folder / "done" / "a.dcm").exists()
    assert place.arrivals() == 1


@pytest.mark.parametrize("after", ["keep", "move", "delete"])
@pytest.mark.parametrize("what", ["inode", "time"])
def test_numbers_beyond_63_bits_are_those_of_a_file_like_any_other(
    tmp_path: Path, ledger: Ledger, monkeypatch: Patch, after: str, what: str
) -> None:
    """An inode number of a share has 64 bits; a time in 2286 has more than 63, in nanoseconds."""
    place = WatchedFolder(tmp_path, ledger, after)
    path = place.folder / "a.dcm"
    path.write_bytes(make_image())
    real = listing.signature_of

    def far(status: os.stat_result) -> listing.Signature:
        number = {"inode": "st_ino", "time": "st_mtime_ns"}[what]
        values = {name: getattr(status, name) for name in ("st_size", "st_mtime_ns", "st_ino")}
        return real(cast(os.stat_result, SimpleNamespace(**{**values, number: (1 << 64) - 9})))

    for used in (listing, module):
        monkeypatch.setattr(used, "signature_of", far)
    assert place.scan(20) == 1
    assert (place.arrivals(), place.alerts()) == (1, [])
    assert path.exists() == (after == "keep")
    place.start()
    assert place.scan(5) == 0


def test_a_share_that_is_mounted_again_has_the_files_of_before(
    place: WatchedFolder, monkeypatch: Patch
) -> None:
    """It may give them other inode numbers."""
    large = place.folder / "large.dcm"
    large.write_bytes(bytes((1 << 20) + 1))
    (place.folder / "a.dcm").write_bytes(make_image())
    assert place.scan(3) == 1
    with place.ledger.transaction() as now:
        now.execute("UPDATE image SET state = 'expired'")
    real = listing.signature_of
    for used in (listing, module):
        monkeypatch.setattr(
            used,
            "signature_of",
            lambda status: real(status)._replace(inode=real(status).inode + 1000),
        )
    for _ in range(2):
        assert place.scan(3) == 0
        assert place.arrivals() == 1
        assert place.alerts() == ["image_too_large"]
        place.start()
    (place.folder / "a.dcm").write_bytes(make_image(1))
    assert place.scan(3) == 1, "it has changed"


def test_a_file_with_another_number_is_not_deleted_before_it_was_read(
    deleting: WatchedFolder, monkeypatch: Patch
) -> None:
    """Another file may have been moved to its place."""
    path = deleting.folder / "a.dcm"
    path.write_bytes(make_image())
    with monkeypatch.context() as patched:
        patched.setattr(FolderWatch, "_remove", fails(OSError("held")))
        assert deleting.scan(3) == 1
    status = path.stat()
    other = deleting.folder / "b.part"
    other.write_bytes(make_image(1))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)
    deleting.start()
    assert deleting.scan(3) == 1
    assert (deleting.images(), path.exists()) == (2, False)
