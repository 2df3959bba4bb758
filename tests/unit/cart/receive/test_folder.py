"""Watched folders: what is taken when, by scans with a clock of the test's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="the cart needs extra cart")
from dicom_files import EXPLICIT, J2K, JPEG_LS, RLE, dataset, written
from watched_folder import WatchedFolder, make_image

from deepcovid_edge.cart.receive import folder as module
from deepcovid_edge.cart.receive.folder import is_whole
from deepcovid_edge.cart.receive.listing import is_passed_over
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.spool import SpoolFullError
from deepcovid_edge.device import shares
from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.dicom.syntaxes import DEFLATED, IMPLICIT
from deepcovid_edge.imaging.files import FileBytes, read_bytes
from deepcovid_edge.reasons import Reason


def test_a_file_is_taken_at_the_second_scan_that_finds_it_the_same(place: WatchedFolder) -> None:
    (place.folder / "a.dcm").write_bytes(make_image())
    assert place.scan() == 0
    assert place.scan() == 1
    assert place.scan(3) == 0
    assert (place.folder / "a.dcm").exists()


def test_a_growing_file_waits_until_it_is_whole(place: WatchedFolder) -> None:
    data, path = make_image(), place.folder / "a.dcm"
    for end in range(200, len(data), 700):
        path.write_bytes(data[:end])
        assert place.scan() == 0
    path.write_bytes(data)
    assert place.scan(2) == 1
    assert place.images() == 1


def test_a_file_that_pauses_half_written_is_not_taken(place: WatchedFolder) -> None:
    data, path = make_image(), place.folder / "a.dcm"
    path.write_bytes(data[:-500])
    assert place.scan(20) == 0
    path.write_bytes(data)
    assert place.scan(2) == 1


def test_a_stale_partial_becomes_an_image_once_and_stays_where_it_is(
    tmp_path: Path, ledger: Ledger
) -> None:
    place = WatchedFolder(tmp_path, ledger, "delete")
    path = place.folder / "a.dcm"
    path.write_bytes(make_image()[:-500])
    assert place.scan(300) == 0
    assert place.scan(10) == 1
    assert place.scan(300, 10) == 0
    assert path.exists(), "its sender may go on"
    path.write_bytes(make_image())
    assert place.scan(2) == 1
    assert place.images() == 2
    assert not path.exists()


def test_what_is_no_image_is_passed_over_once(place: WatchedFolder) -> None:
    (place.folder / "letter.txt").write_text("Dear colleague")
    (place.folder / "empty.dcm").write_bytes(b"")
    assert place.scan(400) == 0
    assert len(place.events("file passed over")) == 2
    assert place.scan(400) == 0
    assert len(place.events("file passed over")) == 2
    assert "letter" not in "".join(place.events("file passed over")), "names may be of patients"


def test_a_file_larger_than_the_largest_image_is_passed_over(place: WatchedFolder) -> None:
    with (place.folder / "large.dcm").open("wb") as stream:
        stream.truncate((1 << 20) + 1)
    assert place.scan(3) == 0
    assert "max_image_mib" in place.events("file passed over")[0]


def make_large_image(number: int = 0) -> bytes:
    """An image of 1.3 MiB."""
    pixels = np.full((800, 840), number, np.uint16)
    return written(dataset(pixels, stored=12, SOPInstanceUID=f"1.2.3.{number}"))


def test_a_file_that_is_too_large_is_told_until_the_limit_is_raised(place: WatchedFolder) -> None:
    (place.folder / "Anna.dcm").write_bytes(make_large_image())
    (place.folder / "letter.txt").write_text("Dear colleague")
    assert place.scan(400) == 0
    place.start()
    assert place.scan(3) == 0
    assert place.alerts() == ["image_too_large"]
    (told,) = place.events("alert")
    assert "Anna" not in told, "names may be of patients"
    assert '"max_image_mib": 1' in told
    assert len(place.events("file passed over")) == 2
    place.start(max_image_mib=2)
    assert place.scan(3) == 1
    assert place.alerts() == []
    place.start()
    assert place.scan(400) == 0
    assert place.alerts() == [], "it was taken"
    assert len(place.events("file passed over")) == 2, "what is no image is not looked at again"


def test_the_alert_of_a_file_that_is_too_large_ends_with_the_file(place: WatchedFolder) -> None:
    path, other = place.folder / "large.dcm", place.folder.with_name("other.dcm")
    path.write_bytes(make_large_image())
    place.scan(2)
    assert place.alerts() == ["image_too_large"]
    path.rename(other)  # the only one: as if the share were not mounted
    place.scan()
    assert place.alerts() == []
    other.rename(path)
    place.scan(2)
    assert place.alerts() == ["image_too_large"]
    path.write_bytes(make_image())
    assert place.scan(2) == 1
    assert place.alerts() == []


def test_a_ledger_that_does_not_know_its_limit_keeps_no_file_from_being_taken(
    place: WatchedFolder,
) -> None:
    (place.folder / "large.dcm").write_bytes(make_large_image())
    place.scan(2)
    with place.ledger.transaction() as now:
        now.execute("DELETE FROM meta")
    place.start(max_image_mib=2)
    assert place.scan(2) == 1


@pytest.mark.parametrize(
    "name",
    [
        *("a.part", "a.dcm.PART", "a.tmp", "a.dcm.crdownload", "a.filepart", "~$a.dcm", "a.dcm~"),
        *(".a.dcm.Xq2", "._a.dcm", "Thumbs.db", "DICOMDIR", ".DS_Store", "desktop.ini"),
    ],
)
def test_names_of_unfinished_files_are_not_looked_at(place: WatchedFolder, name: str) -> None:
    assert is_passed_over(name)
    (place.folder / name).write_bytes(make_image())
    assert place.scan(400) == 0
    assert place.images() == 0


def test_a_renamed_file_is_taken_under_its_last_name(place: WatchedFolder) -> None:
    (place.folder / "a.part").write_bytes(make_image())
    place.scan(3)
    (place.folder / "a.part").rename(place.folder / "a.dcm")
    assert place.scan(2) == 1


def test_folders_below_are_looked_into_but_those_of_a_system(place: WatchedFolder) -> None:
    for number, name in enumerate(("patient/series", "other", "@eaDir", ".Trash-1000")):
        (place.folder / name).mkdir(parents=True)
        (place.folder / name / "a.dcm").write_bytes(make_image(number))
    assert place.scan(2) == 2


@pytest.mark.parametrize("after", ["move", "delete"])
def test_a_taken_file_is_put_away(tmp_path: Path, ledger: Ledger, after: str) -> None:
    place = WatchedFolder(tmp_path, ledger, after)
    for number in (1, 2):
        (place.folder / "a.dcm").write_bytes(make_image(number))
        assert place.scan(2) == 1
        assert not (place.folder / "a.dcm").exists()
    done = sorted(path.name for path in (place.folder / "done").glob("*"))
    assert done == (["a (2).dcm", "a.dcm"] if after == "move" else [])
    assert place.scan(4) == 0
    assert not ledger.rows("SELECT * FROM seen"), "no names are kept of files that are gone"


def test_nothing_is_put_away_before_the_ledger_has_it(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = WatchedFolder(tmp_path, ledger, "delete")
    (place.folder / "a.dcm").write_bytes(make_image())

    def full(*_arguments: object) -> None:
        raise SpoolFullError("full")

    with monkeypatch.context() as patched:
        patched.setattr(place.intake.spool, "check_room", full)
        place.scan()
        with pytest.raises(SpoolFullError):
            place.scan()
    assert (place.folder / "a.dcm").exists()
    assert place.scan(2) == 1
    assert not (place.folder / "a.dcm").exists()


def test_a_file_that_changed_while_it_was_taken_stays(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = WatchedFolder(tmp_path, ledger, "delete")
    path = place.folder / "a.dcm"
    path.write_bytes(make_image(1))
    take = place.intake.take_file

    def take_slowly(*arguments: Any, **more: Any) -> Any:
        taken = take(*arguments, **more)
        path.write_bytes(make_image(2) + bytes(2))
        return taken

    monkeypatch.setattr(place.intake, "take_file", take_slowly)
    assert place.scan(2) == 1
    assert path.exists()


def test_a_restart_takes_nothing_twice(place: WatchedFolder) -> None:
    for number in range(3):
        (place.folder / f"{number}.dcm").write_bytes(make_image(number))
    assert place.scan(2) == 3
    place.start()
    assert place.scan(3) == 0
    assert place.arrivals() == 3


def test_a_file_that_was_taken_but_not_noted_is_the_same_image(place: WatchedFolder) -> None:
    """As after a power cut between the two."""
    (place.folder / "a.dcm").write_bytes(make_image())
    place.scan(2)
    with place.ledger.transaction() as now:
        now.execute("DELETE FROM seen")
    place.start()
    assert place.scan(2) == 1
    assert (place.images(), place.arrivals()) == (1, 2)


def test_a_file_that_was_written_again_is_taken_again(place: WatchedFolder) -> None:
    path = place.folder / "a.dcm"
    path.write_bytes(make_image(1))
    place.scan(2)
    path.write_bytes(make_image(2))
    os.utime(path, ns=(1, 1))
    assert place.scan(2) == 1
    assert place.images() == 2


def test_files_that_are_gone_are_forgotten_but_not_with_the_whole_share(
    place: WatchedFolder,
) -> None:
    for number in range(2):
        (place.folder / f"{number}.dcm").write_bytes(make_image(number))
    place.scan(2)
    (place.folder / "0.dcm").unlink()
    place.scan()
    assert len(place.ledger.rows("SELECT * FROM seen")) == 1
    (place.folder / "1.dcm").unlink()
    place.scan()
    assert len(place.ledger.rows("SELECT * FROM seen")) == 1


def test_a_folder_that_is_gone_is_an_alert_until_it_is_back(place: WatchedFolder) -> None:
    away = place.folder.with_name("away")
    place.folder.rename(away)
    assert place.scan(3) == 0
    assert place.alerts() == ["folder_gone"]
    away.rename(place.folder)
    (place.folder / "a.dcm").write_bytes(make_image())
    assert place.scan(2) == 1
    assert place.alerts() == []


def test_a_share_that_does_not_answer_is_an_alert(
    place: WatchedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_arguments: object) -> None:
        raise TimeoutError("the network share does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(shares, "call", silent)
        assert place.scan(2) == 0
    assert place.alerts() == ["folder_gone"]
    place.scan()
    assert place.alerts() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_below_without_permission_stops_nothing(place: WatchedFolder) -> None:
    (place.folder / "closed").mkdir(mode=0o000)
    (place.folder / "a.dcm").write_bytes(make_image())
    assert place.scan(2) == 1


def test_a_name_in_another_encoding_stops_nothing(tmp_path: Path, ledger: Ledger) -> None:
    place = WatchedFolder(tmp_path, ledger)
    path = Path(os.fsdecode(os.fsencode(place.folder) + b"/t\xf3rax.dcm"))
    path.write_bytes(make_image(1))
    (place.folder / "a.dcm").write_bytes(make_image(2))
    assert place.scan(2) == 2
    place.start()
    assert place.scan(3) == 0, "it is known after a restart"
    names = [row["file_name"] for row in ledger.rows("SELECT file_name FROM who ORDER BY image_id")]
    assert names == ["t?rax.dcm", "a.dcm"]
    path.unlink()
    place.scan()
    assert len(ledger.rows("SELECT * FROM seen")) == 1


def test_what_cannot_be_read_is_told_and_taken_once_it_can_be(
    place: WatchedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_bytes

    def closed(path: Path) -> FileBytes:
        if path.name == "closed.dcm":
            raise NotAssessedError(Reason.UNREADABLE, "Permission denied")
        return read(path)

    (place.folder / "closed.dcm").write_bytes(make_image(1))
    with monkeypatch.context() as patched:
        patched.setattr(module, "read_bytes", closed)
        assert place.scan(400) == 0
        assert place.alerts() == ["files_unread"]
        assert "closed" not in "".join(place.events("alert")), "names may be of patients"
        assert len(place.events("alert")) == 1
        (place.folder / "a.dcm").write_bytes(make_image(2))
        assert place.scan(2) == 1, "others are taken"
    assert place.scan(2) == 1
    assert place.alerts() == []
    assert place.scan(400) == 0


def test_a_link_that_leads_to_itself_is_told_and_stops_nothing(place: WatchedFolder) -> None:
    (place.folder / "loop.dcm").symlink_to("loop.dcm")
    (place.folder / "a.dcm").write_bytes(make_image())
    assert place.scan(2) == 1
    place.scan(400)
    assert place.alerts() == ["files_unread"]
    (place.folder / "loop.dcm").unlink()
    place.scan(2)
    assert place.alerts() == []


def test_a_fault_over_one_file_keeps_no_other_from_being_taken(
    place: WatchedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = place.intake.take_file

    def fails(data: bytes, *, name: str, **more: Any) -> Any:
        if name == "0.dcm":
            raise ValueError("a fault of the program")
        return take(data, name=name, **more)

    monkeypatch.setattr(place.intake, "take_file", fails)
    for number in range(3):
        path = place.folder / f"{number}.dcm"
        path.write_bytes(make_image(number))
        os.utime(path, (1000 + number, 1000 + number))
    assert place.scan(2) == 2
    place.scan(400)
    assert place.alerts() == ["files_unread"]
    assert '"why": "ValueError"' in place.events("alert")[0]


def test_pictures_are_images_too(place: WatchedFolder, pictures: Any) -> None:
    whole = pictures.encode(pictures.image(), "PNG")
    (place.folder / "a.png").write_bytes(whole[:-4])
    assert place.scan(5) == 0
    (place.folder / "a.png").write_bytes(whole)
    assert place.scan(2) == 1


def test_a_scan_ends_between_two_files_when_it_is_to_stop(place: WatchedFolder) -> None:
    for number in range(3):
        (place.folder / f"{number}.dcm").write_bytes(make_image(number))
    place.scan()
    place.stop.set()
    assert place.scan() == 0


def test_older_files_come_first(place: WatchedFolder) -> None:
    for number, age in enumerate((3, 1, 2)):
        path = place.folder / f"{number}.dcm"
        path.write_bytes(make_image(number))
        os.utime(path, (1000 - age, 1000 - age))
    place.scan(2)
    uids = [row["sop_uid"] for row in place.ledger.rows("SELECT sop_uid FROM image ORDER BY id")]
    assert uids == ["1.2.3.0", "1.2.3.2", "1.2.3.1"]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, RLE, JPEG_LS, J2K])
def test_a_file_is_whole_only_with_its_last_byte(syntax: str) -> None:
    data = make_image(syntax=syntax)
    assert is_whole(data)
    step = max(1, len(data) // 60)
    last = len(data) - (4 if syntax == DEFLATED else 2)  # behind it all pixels are there
    assert not [end for end in (*range(1, last, step), last) if is_whole(data[:end])]


def test_links_to_files_are_files_and_links_to_folders_are_not_followed(
    place: WatchedFolder, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.dcm").write_bytes(make_image())
    (place.folder / "folder").symlink_to(elsewhere)
    (place.folder / "up").symlink_to(place.folder)
    assert place.scan(3) == 0
    (place.folder / "a.dcm").symlink_to(elsewhere / "a.dcm")
    assert place.scan(2) == 1


def test_the_scan_is_made_every_two_seconds() -> None:
    assert module.SCAN_SECONDS == 2.0
    assert module.STALE_SECONDS == 600.0
