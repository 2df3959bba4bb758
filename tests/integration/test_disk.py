"""A disk that fills up: a reason for each image, whole records, and `--resume` goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from drawn_once import phantom_files
from namespaces import skip_without_small_disk

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.pipeline.disk_guard import DiskGuard
from deepcovid_edge.reasons import Reason

INFER = f"{sys.executable} -m deepcovid_edge infer"
_MIB = 1 << 20


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images of three contents."""
    folder = tmp_path_factory.mktemp("images")
    drawn = phantom_files(folder, count=3)
    for number in range(3, 60):
        os.link(drawn[number % 3], folder / f"phantom_{number:03}.png")
    return folder


def on_small_disk(size: str, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with a real file system of that size at `disk`, in a mount namespace."""
    (folder / "disk").mkdir()
    mount = f"mount -t tmpfs -o size={size} none disk && exec bash -c '{script}'"
    skip_without_small_disk()
    command = ["unshare", "-rm", "bash", "-c", mount]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def records_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_images_are_refused_before_the_disk_is_full_and_judged_later(
    images: Path, tmp_path: Path
) -> None:
    """Pictures of heat maps fill 12 MiB; with more room the same command goes on."""
    named = " ".join(str(image) for image in sorted(images.iterdir())[:24])
    run = f"{INFER} {named} -o disk/r.jsonl --heatmap activation --overlay --heatmap-dir disk/maps"
    script = (
        f"{run} --workers 2 --min-free 4; echo code $?; cp disk/r.jsonl first.jsonl;"
        "mount -o remount,size=100m disk;"
        f"{run} --workers 2 --min-free 4 --resume; echo code $?; cp disk/r.jsonl second.jsonl;"
        "ls disk/maps | wc -l"
    )
    done = on_small_disk("12m", script, tmp_path)
    assert done.stdout.split() == ["code", "4", "code", "0", "48"], done.stderr
    first = records_of((tmp_path / "first.jsonl").read_text())
    assert len(first) == 24
    classified = [record for record in first if record["status"] == "assessed"]
    refused = [record for record in first if record["status"] == "not_assessed"]
    assert 5 < len(classified) < 20
    assert {record["reason"] for record in refused} == {"E_DISK"}
    assert all(record["probability"] is None for record in refused)
    assert all(Path(record["heatmap"]).parent == Path("disk/maps") for record in classified)
    assert "MiB free in disk" in refused[0]["message"]
    assert "--resume goes on" in done.stderr
    second = records_of((tmp_path / "second.jsonl").read_text())
    assert [record["path"] for record in second] == [record["path"] for record in first]
    assert {record["status"] for record in second} == {"assessed"}


def test_a_disk_that_is_full_all_the_same_holds_whole_records(images: Path, tmp_path: Path) -> None:
    run = f"{INFER} {images} -o disk/r.jsonl --min-free 0"
    script = (
        f"{run}; echo code $?; cp disk/r.jsonl first.jsonl; mount -o remount,size=10m disk;"
        f"{run} --resume; echo code $?; cp disk/r.jsonl second.jsonl"
    )
    done = on_small_disk("32k", script, tmp_path)
    assert done.stdout.split() == ["code", "1", "code", "0"], done.stderr
    assert "disk/r.jsonl: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    text = (tmp_path / "first.jsonl").read_text()
    assert text.endswith("}\n")
    assert 5 < len(records_of(text)) < 60
    assert (
        len({record["path"] for record in records_of((tmp_path / "second.jsonl").read_text())})
        == 60
    )


def test_once_full_it_stays_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that images after the first refused one are all refused, and a run goes on from there."""
    free, seconds = [9 * _MIB, 7 * _MIB, 90 * _MIB], iter([10.0, 10.01, 10.1, 10.2])
    real = os.statvfs(tmp_path)

    def statvfs(_: Path) -> os.statvfs_result:
        blocks = free.pop(0) // real.f_frsize
        return os.statvfs_result((*real[:4], blocks, *real[5:]))

    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    guard = DiskGuard([tmp_path], 8)
    for _ in range(2):  # so soon after, it is not asked again
        guard.check()
    for _ in range(2):
        with pytest.raises(NotAssessedError, match="7 MiB free") as caught:
            guard.check()
        assert caught.value.reason is Reason.DISK
    assert free == [90 * _MIB]


def test_nothing_is_refused_where_nothing_is_written_or_asked(tmp_path: Path) -> None:
    DiskGuard([], 1 << 40).check()
    DiskGuard([tmp_path], 0).check()
    DiskGuard([tmp_path / "not there"], 1 << 40).check()
