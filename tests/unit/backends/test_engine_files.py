"""Engines on disk: names, facts, atomic writes, and what keeps one from being run."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import pwd
import time
from dataclasses import replace
from pathlib import Path

import pytest

from deepcovid_edge import files
from deepcovid_edge.backends.tensorrt.backend import find_verified
from deepcovid_edge.backends.tensorrt.files import (
    EngineFacts,
    Fit,
    Profile,
    check_engine,
    engine_name,
    facts_path,
    read_facts,
    record_verification,
    write_engine,
)
from deepcovid_edge.cli.exit_codes import ExitCode, exit_code
from deepcovid_edge.errors import EngineMismatchError, ModelFileError, NotThereError, OutputError
from deepcovid_edge.files import cache_folder, locked, locked_at_once
from deepcovid_edge.manifest import ModelManifest

MANIFEST = ModelManifest("net-int8", "resnet18", ("non", "covid"), "covid", 0.25, precision="int8")
ORIN = Fit("tensorrt", "10.3.0", ("sm87",), "Orin")
PARENT = "ab" * 32
FACTS = EngineFacts(MANIFEST, ORIN, Profile(1, 8, 32), PARENT, "")
REPORT = {
    "verdict": "unchanged",
    "failed": [],
    "missing": {},
    "unproved": [],
    "reference": {"sha256": "ab" * 32},
    "images": 253,
    "data_sha256": "00",
    "flips": {"count": 0},
    "auc": None,
    "rules": {},
    "flipped": ["left out"],
}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path, "net.engine", b"plan" * 100, FACTS)


def test_name_says_all_that_an_engine_depends_on() -> None:
    assert (
        engine_name(MANIFEST, PARENT, ORIN, Profile(1, 8, 32))
        == "net-int8-abababab.int8.b1-8-32.sm87.trt10.3.0.engine"
    )
    ahead = Fit("tensorrt_rtx", "1.7.1", ("sm86", "sm89"))
    assert engine_name(MANIFEST, PARENT, ahead, Profile(1, 1, 1)).endswith(
        ".b1-1-1.sm86-sm89.rtx1.7.1.engine"
    )


def test_an_engine_is_its_plan_and_its_facts_stand_beside_it(engine: Path) -> None:
    assert engine.read_bytes() == b"plan" * 100
    facts = check_engine(engine, ORIN, parent_sha256=PARENT)
    assert replace(facts, sha256="") == FACTS
    values = json.loads(facts_path(engine).read_text())
    assert values["classes"] == ["non", "covid"]
    assert values["threshold"] == 0.25
    assert values["engine"]["fit"]["version"] == "10.3.0"
    assert not facts.is_verified


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (replace(ORIN, version="10.7.0"), "was built with tensorrt 10.3.0, here is 10.7.0"),
        (replace(ORIN, capabilities=("sm110",)), "was built for sm87, this GPU is sm110"),
        (replace(ORIN, gpu="Orin NX"), "was tuned for Orin, this GPU is Orin NX"),
        (Fit("tensorrt_rtx", "1.7", ("sm86",)), "was built with tensorrt, here is tensorrt_rtx"),
    ],
)
def test_an_engine_of_another_device_is_refused_with_the_command_that_mends_it(
    engine: Path, device: Fit, said: str
) -> None:
    with pytest.raises(EngineMismatchError) as caught:
        check_engine(engine, device)
    assert said in str(caught.value)
    assert "deepcovid-edge build net-int8.onnx --batch 1,8,32" in str(caught.value)
    assert exit_code(caught.value) is ExitCode.MISMATCH


def test_an_engine_for_several_gpus_fits_each_of_them() -> None:
    built = Fit("tensorrt_rtx", "1.7", ("sm86", "sm89"))
    assert not built.differences(Fit("tensorrt_rtx", "1.7", ("sm89",), "any"))
    assert built.differences(Fit("tensorrt_rtx", "1.7", ("sm120",)))


def test_an_engine_of_another_parent_is_refused(engine: Path) -> None:
    with pytest.raises(EngineMismatchError, match="made of another model file"):
        check_engine(engine, ORIN, parent_sha256="cd" * 32)


def test_a_tampered_engine_is_refused_before_it_is_run(engine: Path) -> None:
    content = bytearray(engine.read_bytes())
    content[7] ^= 1
    engine.write_bytes(content)
    with pytest.raises(EngineMismatchError, match="sha256 differs"):
        check_engine(engine, ORIN)


def test_an_engine_without_facts_or_with_foreign_ones_is_refused(engine: Path) -> None:
    for content in (b'{"engine": {}}', b"\xff\xfe{", b"[" * 100_000, b"", b"null"):
        facts_path(engine).write_bytes(content)
        with pytest.raises(ModelFileError, match=r"\.json: .*deepcovid-edge build"):
            read_facts(engine)
    facts_path(engine).unlink()
    with pytest.raises(EngineMismatchError, match="deepcovid-edge build"):
        read_facts(engine)
    with pytest.raises(NotThereError):
        read_facts(engine.with_name("no.engine"))


def test_the_verdict_is_recorded_beside_the_engine(engine: Path) -> None:
    assert record_verification(engine, REPORT).is_verified
    assert check_engine(engine, ORIN).is_verified
    assert "flipped" not in json.loads(facts_path(engine).read_text())["engine"]["verification"]
    assert not record_verification(engine, {**REPORT, "verdict": "insufficient"}).is_verified


def test_nothing_is_left_of_a_write_but_the_two_files(engine: Path) -> None:
    assert sorted(path.name for path in engine.parent.iterdir()) == ["net.engine", "net.json"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_engine(tmp_path / "file", "net.engine", b"", FACTS)


def _hold(folder: Path, order: str, seconds: float) -> None:
    with locked(folder, "net.engine"):
        with (folder / "order").open("a") as stream:
            stream.write(f"{order}in ")
        time.sleep(seconds)
        with (folder / "order").open("a") as stream:
            stream.write(f"{order}out ")


def test_two_processes_do_not_build_one_engine_at_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=_hold, args=(tmp_path, name, 0.3)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(10)
    order = (tmp_path / "order").read_text().split()
    assert order in (["ain", "aout", "bin", "bout"], ["bin", "bout", "ain", "aout"])


def test_a_lock_that_is_never_given_back_is_an_error_that_names_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LOCK_SECONDS", 0.3)
    told: list[str] = []
    lock = tmp_path / ".net.engine.lock"
    holder = f"process {os.getpid()}, which holds {lock}"
    with (
        locked(tmp_path, "net.engine", told.append),
        pytest.raises(OutputError, match=f"{holder}, did not end in 0.3 s: end it, or try later"),
        locked(tmp_path, "net.engine", told.append),
    ):
        raise AssertionError("two held the lock")
    assert told == [f"waiting up to 0.005 min for {holder}"]
    with locked(tmp_path, "net.engine", told.append):
        assert lock.read_text() == str(os.getpid())
    assert len(told) == 1


def test_a_disk_without_locks_is_used_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuses)
    told: list[str] = []
    with locked(tmp_path, "net.engine", told.append) as is_held:
        assert (is_held, told) == (True, [])
    with locked_at_once(tmp_path / "net.engine", "another process holds it"):
        pass


@pytest.mark.parametrize(
    ("text", "profile"), [("1,8,32", Profile(1, 8, 32)), ("4", Profile(4, 4, 4))]
)
def test_batch_sizes_are_read_from_the_command_line(text: str, profile: Profile) -> None:
    assert Profile.parse(text) == profile


@pytest.mark.parametrize("text", ["", "1,2", "8,4,2", "0,1,2", "a", "1,2,3,4", "1,8,99999"])
def test_wrong_batch_sizes_name_the_flag(text: str) -> None:
    with pytest.raises(ValueError, match="batch: got"):
        Profile.parse(text)


def test_cache_lies_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEEPCOVID_EDGE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("DEEPCOVID_EDGE_CACHE")
    assert cache_folder() == tmp_path / "xdg/deepcovid-edge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/deepcovid-edge"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without HOME and without an entry in passwd, as in some containers."""
    for name in ("DEEPCOVID_EDGE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_folder_learns_how_to_name_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="no home folder: set DEEPCOVID_EDGE_CACHE"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "deepcovid-edge"


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_folder_has_no_engine(tmp_path: Path) -> None:
    assert find_verified(tmp_path / "net.onnx") is None
