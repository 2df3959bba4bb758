"""The file of keys: who may read it, and that no key is lost."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from deepcovid_edge.errors import OutputError, UsageError
from deepcovid_edge.serve.keys import Callers, add_key, read_keys

OTHER = 4711
"""User id of a service account."""


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another account: needs root")
def test_a_service_can_still_read_the_file_after_root_has_added_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    add_key(path, "cart-1")
    os.chown(path, OTHER, OTHER + 1)
    path.chmod(0o640)
    add_key(path, "cart-2")
    status = path.stat()
    assert (status.st_uid, status.st_gid) == (OTHER, OTHER + 1)
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert sorted(read_keys(path).values()) == ["cart-1", "cart-2"]


def test_a_new_file_is_never_readable_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append(os.fstat(file).st_mode))
    add_key(tmp_path / "keys", "cart-1")
    assert [stat.S_IMODE(mode) for mode in seen] == [0o600]


def _add(path: Path, name: str) -> None:
    for number in range(5):
        add_key(path, f"{name}-{number}")


def test_keys_that_are_added_at_once_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    context = multiprocessing.get_context("fork")
    callers = [context.Process(target=_add, args=(path, f"cart-{at}")) for at in range(4)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(60)
        assert one.exitcode == 0
    assert len(read_keys(path)) == 20


def test_a_file_that_cannot_be_written_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    add_key(path, "cart-1")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="keys: cannot be written: No space left"):
            add_key(path, "cart-2")
    assert path.read_bytes() == before
    assert not [*tmp_path.glob("*.part")]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        add_key(tmp_path / "file/keys", "cart-1")


def test_a_name_has_one_key(tmp_path: Path) -> None:
    add_key(tmp_path / "keys", "cart-1")
    before = (tmp_path / "keys").read_text()
    with pytest.raises(UsageError, match="cart-1 has a key in"):
        add_key(tmp_path / "keys", "cart-1")
    assert (tmp_path / "keys").read_text() == before


def test_a_key_that_is_added_within_the_same_tick_of_the_clock_is_known(tmp_path: Path) -> None:
    """The file keeps its inode, and its time where the clock of the disk is coarse."""
    path, now = tmp_path / "keys", [0.0]
    add_key(path, "cart-1")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    callers = Callers(path, lambda: now[0])
    added = add_key(tmp_path / "others", "cart-2")
    with path.open("a") as stream:
        stream.write((tmp_path / "others").read_text())
    os.utime(path, ns=times)
    now[0] = 2.0
    assert callers.name_of(f"Bearer {added}") == "cart-2"
