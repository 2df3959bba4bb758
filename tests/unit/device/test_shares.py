"""A network share that stalls or vanishes gives a reason, and the run goes on."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import command

from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.options import NamedPath
from deepcovid_edge.datasets.folders import FolderWalk
from deepcovid_edge.device import shares
from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.files import read_bytes

MOUNT_LINE = (
    "36 35 0:42 / {point} rw,relatime shared:1 - {kind} server:/images rw,vers=4.2,hard\n"
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
)


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that counts as a network share; calls into it wait for 0.1 s at most."""
    folder = tmp_path / "a share"
    folder.mkdir()
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNT_LINE.format(point=str(folder).replace(" ", r"\040"), kind="nfs4"))
    monkeypatch.setattr(shares, "_MOUNTS", mounts)
    monkeypatch.setattr(shares, "ANSWER_SECONDS", 0.1)
    forget()
    yield folder
    forget()


def forget() -> None:
    for known in (shares._remote_mounts, shares._find_mount, shares._share):
        known.cache_clear()


def stall(monkeypatch: pytest.MonkeyPatch, name: str) -> threading.Event:
    """Have a call of `os` wait until the event is set, for what is in the share."""
    answers, before = threading.Event(), getattr(os, name)

    def waits(path: object, *more: object) -> object:
        if threading.current_thread().name == "share":
            answers.wait(20)
        return before(path, *more)

    monkeypatch.setattr(os, name, waits)
    return answers


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse", "fuse.sshfs", "9p"])
def test_what_is_on_a_network_share_is_known_by_its_mount(
    kind: str, share: Path, tmp_path: Path
) -> None:
    shares._MOUNTS.write_text(MOUNT_LINE.format(point=tmp_path, kind=kind))
    forget()
    assert shares._find_mount(str(tmp_path / "b" / "c"), 0)[1] == str(tmp_path)
    assert shares._find_mount(str(tmp_path.parent), 0)[1] is None


@pytest.mark.parametrize("kind", ["ext4", "fuseblk", "fusectl", "tmpfs"])
def test_a_disk_of_this_machine_is_no_share(kind: str, share: Path, tmp_path: Path) -> None:
    shares._MOUNTS.write_text(MOUNT_LINE.format(point=tmp_path, kind=kind))
    forget()
    assert shares._find_mount(str(tmp_path / "b"), 0)[1] is None


def test_a_link_into_a_share_counts_as_the_share(share: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(share.name)
    (tmp_path / "loop").symlink_to("loop")
    assert shares._find_mount(str(tmp_path / "link" / "b"), 0)[1] == str(share)
    assert shares._find_mount(str(tmp_path / "loop"), 0)[1] is None


def test_where_a_folder_lies_is_known_without_asking_its_share(
    share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(share)
    (tmp_path / "local").mkdir()
    (tmp_path / "other").symlink_to("local")
    lstat = os.lstat

    def ask(path: str, *more: object) -> object:
        assert not str(path).startswith(str(share))
        return lstat(path, *more)

    monkeypatch.setattr(os, "lstat", ask)
    assert shares.resolve(tmp_path / "link" / "b" / ".." / "a") == share / "a"
    assert shares.resolve(tmp_path / "other" / "b") == tmp_path / "local" / "b"


@pytest.fixture
def dead(share: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A share that answers nothing; who asks it on a thread that is not given up fails at once."""
    answers = threading.Event()
    links = share.parent / "link", share.parent / "linked.png"
    links[0].symlink_to(share)
    links[1].symlink_to(share / "a.png")

    def deaf(name: str) -> Callable[..., object]:
        before = getattr(os, name)

        def ask(path: object = ".", *more: Any, **named: Any) -> object:
            itself = str(path) in map(str, links) and name in ("lstat", "readlink")
            if str(path).startswith((str(share), *map(str, links))) and not itself:
                assert threading.current_thread().name == "share", f"{name} of {path}"
                answers.wait(20)
            return before(path, *more, **named)

        return ask

    for name in ("stat", "lstat", "readlink", "open", "scandir", "access"):
        monkeypatch.setattr(os, name, deaf(name))
    yield share
    answers.set()


@pytest.mark.parametrize("place", ["a share", "a share/a.png", "link", "link/a.png", "linked.png"])
def test_a_share_that_is_dead_at_the_start_stops_no_run(
    place: str, dead: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.jsonl").touch()
    image = tmp_path / place
    done = command("infer", image, "-o", tmp_path / "out.jsonl", "--workers", 1)
    assert done.returncode == ExitCode.NOT_ASSESSED, done.stderr
    (record,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (record["path"], record["reason"]) == (str(image), "E_UNREADABLE")
    assert "does not answer" in record["message"]


def test_a_run_goes_on_although_a_share_is_dead(dead: Path, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "out.jsonl", "--workers", 1)
    assert command("infer", dead / "a.png", *output).returncode == ExitCode.NOT_ASSESSED
    done = command("infer", dead / "a.png", *output, "--resume")
    assert (done.returncode, done.stdout) == (ExitCode.NOT_ASSESSED, ""), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "squeezenet1_1", "squeezenet1_1-int8-cpu", "a share"),
        ("site-check", "link/manifest.csv"),
    ],
)
def test_labelled_images_on_a_dead_share_are_an_error(
    arguments: tuple[str, ...], dead: Path, tmp_path: Path
) -> None:
    done = command(*arguments[:-1], tmp_path / arguments[-1])
    assert done.returncode == ExitCode.NOT_THERE
    assert "the network share does not answer" in done.stderr


def test_a_folder_to_write_to_on_a_dead_share_is_not_asked_about(dead: Path) -> None:
    assert NamedPath(folder=True).convert(str(dead), None, None) == dead


@pytest.mark.parametrize("name", ["open", "pread"])
def test_a_file_that_does_not_answer_has_a_reason(
    name: str, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (share / "a.png").write_bytes(b"image")
    answers = stall(monkeypatch, name)
    with pytest.raises(NotAssessedError, match="does not answer") as caught:
        read_bytes(share / "a.png")
    assert caught.value.reason.code == "E_UNREADABLE"
    started = time.monotonic()
    with pytest.raises(NotAssessedError, match="does not answer"):  # the next one at once
        read_bytes(share / "a.png")
    assert time.monotonic() - started < 0.09
    answers.set()
    ends = time.monotonic() + 20
    while any(thread.name == "share" for thread in threading.enumerate()):
        assert time.monotonic() < ends
        time.sleep(0.01)
    assert read_bytes(share / "a.png").data == b"image"  # it is back


class Interrupted(shares._Share):
    """A share whose list of calls is replaced late: another thread may come in between."""

    between = threading.Event()
    """Set when the other thread is done; it is waited for half a second."""
    is_late = False

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_waiting" and self.is_late:
            self.between.wait(0.5)
        super().__setattr__(name, value)


def test_a_call_that_waits_is_known_whatever_other_threads_ask_meanwhile(share: Path) -> None:
    known, answers = Interrupted(), threading.Event()

    def waits() -> None:
        with pytest.raises(TimeoutError):
            known.call(lambda _: answers.wait(20))
        known.between.set()

    first = threading.Thread(target=waits)
    first.start()
    while not any(thread.name == "share" for thread in threading.enumerate()):
        time.sleep(0.001)
    known.is_late = True
    assert known.call(lambda _: "answered") == "answered"
    first.join()
    with pytest.raises(TimeoutError):
        known.call(lambda _: pytest.fail("an earlier call still waits"))
    answers.set()


def test_a_slow_share_is_waited_for(share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(progress: shares.Progress) -> str:
        for _ in range(6):
            time.sleep(0.05)
            progress()
        return "all of it"

    assert shares.call(share, slow) == "all of it"


def test_a_folder_that_does_not_answer_is_not_lost(
    share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (share / "a.png").write_bytes(b"image")
    answers = stall(monkeypatch, "scandir")
    assert list(FolderWalk().images([share])) == [share]
    answers.set()


@pytest.mark.parametrize(
    "number",
    [errno.EIO, errno.ESTALE, errno.ENOENT, errno.EACCES, errno.ETIMEDOUT, errno.EHOSTDOWN],
)
@pytest.mark.parametrize("name", ["open", "pread"])
def test_an_error_of_the_system_is_a_reason_with_its_words(
    number: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"image")

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fails)
    with pytest.raises(NotAssessedError) as caught:
        read_bytes(tmp_path / "a.png")
    assert (caught.value.reason.code, caught.value.detail) == ("E_UNREADABLE", os.strerror(number))


def test_a_listing_that_breaks_off_keeps_what_it_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"image")
    monkeypatch.setattr(os, "scandir", partial(Broken, os.scandir))
    found = list(FolderWalk().images([tmp_path]))
    assert len(found) == 3
    assert found[-1] == tmp_path


class Broken:
    """A listing that gives two names, then an error."""

    def __init__(self, scandir: Any, folder: Path) -> None:
        self._entries = scandir(folder)

    def __enter__(self) -> Iterator[object]:
        return self._two()

    def __exit__(self, *_: object) -> None:
        self._entries.close()

    def _two(self) -> Iterator[object]:
        yield next(self._entries)
        yield next(self._entries)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
