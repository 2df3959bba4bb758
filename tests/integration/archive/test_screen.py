"""`manifest` and `screen` on this machine: the records of `infer`, whatever happens on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_runs import (
    COMMAND,
    HANGER,
    KILLER,
    by_name,
    harmful_environment,
    harmful_image,
    inferred,
    linked_images,
    run_command,
    screened,
)
from commands import command
from dicom_files import dataset, written
from drawn_once import drawn_phantom
from namespaces import skip_without_small_disk

from deepcovid_edge.archive.screening import Screener, ScreenSettings
from deepcovid_edge.files import file_sha256

pa = pytest.importorskip("pyarrow", reason="screen needs extra archive")
pq = pytest.importorskip("pyarrow.parquet", reason="screen needs extra archive")

OPTIONS = ("--variant", "fp32", "--ood", "warn", "--workers", "2")


def radiograph(view: str) -> Any:
    """A drawn radiograph as DICOM, with a device and a date."""
    return dataset(
        drawn_phantom(0),
        ViewPosition=view,
        AcquisitionDate="20200317",
        Manufacturer="Maker",
        ManufacturerModelName="Model",
        StationName="Station",
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to drawn images, files of other kinds, their manifest, and the records of `infer`."""
    folder = tmp_path_factory.mktemp("archive")
    images = linked_images(folder / "images", 60)
    (images / "00061.txt").write_text("no image")
    (images / "00062.png").write_bytes((images / "00001.png").read_bytes()[:4000])
    for number, view in ((63, "PA"), (64, "LL")):
        (images / f"000{number}.dcm").write_bytes(written(radiograph(view)))
    assert command("infer", images, "-o", folder / "infer.jsonl", *OPTIONS).returncode == 4
    assert command("manifest", images, "-o", folder / "m.parquet").returncode == 0
    return folder


def test_records_are_those_of_infer(place: Path, tmp_path: Path) -> None:
    done = command("screen", place / "m.parquet", "-o", tmp_path, *OPTIONS)
    assert done.returncode == 4, done.stderr
    assert "64 images done on onnxruntime-cpu" in done.stderr
    assert screened(tmp_path) == inferred(place / "infer.jsonl")
    table = pq.read_table(tmp_path / "shard-000000.parquet")
    assert_headers_stand_beside_the_records(table.to_pylist())
    another = command("screen", place / "m.parquet", "-o", tmp_path, *OPTIONS, "--threshold", 0.9)
    assert another.returncode == 2
    assert "another run" in another.stderr
    assert "threshold" in another.stderr


def assert_headers_stand_beside_the_records(found: list[dict[str, Any]]) -> None:
    """Those of an image that is not assessed, too."""
    rows = {Path(row["path"]).name: row for row in found}
    for name in ("00063.dcm", "00064.dcm"):
        assert (rows[name]["month"], rows[name]["device"]) == ("2020-03", "Maker Model Station")
        assert rows[name]["uid_hash"] is not None
    assert rows["00064.dcm"]["reason"] == "E_VIEW"
    assert rows["00000.png"]["uid_hash"] is None
    drawn = Path(rows["00000.png"]["path"]).stat().st_mtime
    assert rows["00000.png"]["month"] == time.strftime("%Y-%m", time.gmtime(drawn))


def test_parts_of_a_job_array_make_one_folder(place: Path, tmp_path: Path) -> None:
    for part in (2, 1):
        done = command(
            *("screen", place / "m.parquet", "-o", tmp_path, *OPTIONS),
            *("--shard-size", 10, "--shard", f"{part}/2"),
        )
        assert done.returncode in (0, 4), done.stderr
    assert len(list(tmp_path.glob("*.parquet"))) == 7
    assert screened(tmp_path) == inferred(place / "infer.jsonl")


def test_a_damaged_shard_is_written_again(place: Path, tmp_path: Path) -> None:
    words = ("screen", place / "m.parquet", "-o", tmp_path, *OPTIONS, "--shard-size", 20)
    command(*words)
    shards = sorted(tmp_path.glob("*.parquet"))
    kept = {path: path.stat().st_mtime_ns for path in shards}
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    done = command(*words)
    assert done.returncode == 4
    assert f"{shards[1].name}: damaged" in done.stderr
    assert "20 images done" in done.stderr
    assert "44 images were done before" in done.stderr
    assert [path for path in shards if path.stat().st_mtime_ns != kept[path]] == [shards[1]]
    assert screened(tmp_path) == inferred(place / "infer.jsonl")


def test_images_of_a_share_that_was_away_are_read_by_the_same_command(tmp_path: Path) -> None:
    """One image lacks longer: its shard is tried again, and an outage costs no record of it."""
    images, away = linked_images(tmp_path / "images", 8), tmp_path / "away"
    command("infer", images, "-o", tmp_path / "infer.jsonl", *OPTIONS)
    command("manifest", images, "-o", tmp_path / "m.parquet")
    results, whole = tmp_path / "r", inferred(tmp_path / "infer.jsonl")
    words = ("screen", tmp_path / "m.parquet", "-o", results, *OPTIONS, "--shard-size", 4)

    images.rename(away)
    done = command(*words)
    assert done.returncode == 4
    assert {record["reason"] for record in screened(results).values()} == {"E_UNREADABLE"}
    assert "8 images could not be read: the same command tries again." in done.stderr

    away.rename(images)
    (images / "00005.png").rename(tmp_path / "00005.png")
    done = command(*words)
    assert "8 images could not be read before: their shards, 8 images in all," in done.stderr
    found = screened(results)
    assert found.pop(str(images / "00005.png"))["reason"] == "E_UNREADABLE"
    assert found == {path: whole[path] for path in found}
    assert len(found) == 7

    images.rename(away)
    done = command(*words)
    assert "1 image could not be read before: their shards, 4 images in all," in done.stderr
    assert "4 images were done before" in done.stderr
    assert found.items() < screened(results).items()

    away.rename(images)
    (tmp_path / "00005.png").rename(images / "00005.png")
    assert command(*words, "--shard", "1/2").returncode == 0
    assert command(*words, "--shard", "2/2").returncode == 0
    assert screened(results) == whole
    assert "8 images were done before" in command(*words).stderr


def test_a_run_none_of_whose_first_images_can_be_read_ends_once(tmp_path: Path) -> None:
    paths = [f"nowhere/{number}.png" for number in range(1500)]
    pq.write_table(pa.table({"path": paths}), tmp_path / "m.parquet")
    words = ("screen", tmp_path / "m.parquet", "-o", tmp_path / "r", *OPTIONS, "--shard-size", 500)
    done = command(*words)
    assert done.returncode == 6, done.stderr
    assert "not one of the first 1000 images can be read" in done.stderr
    assert command(*words).returncode == 4
    assert len(screened(tmp_path / "r")) == 1500


def test_a_worker_s_process_stays_for_further_shards(place: Path, tmp_path: Path) -> None:
    settings = ScreenSettings(place / "m.parquet", tmp_path, {"variant": "fp32"}, 2, 10)
    with Screener(settings) as screener:
        for shards in ([0, 1], [3], [2, 4]):
            before = screener._worker._child
            assert [shard for shard, _ in screener.screen_each(shards)] == shards
            assert screener._worker._child is before is not None


def test_what_comes_before_a_damaged_part_of_the_manifest_is_written(
    place: Path, tmp_path: Path
) -> None:
    table = pq.read_table(place / "m.parquet")
    manifest = tmp_path / "m.parquet"
    pq.write_table(table, manifest, row_group_size=20, use_dictionary=False, compression="none")
    column = pq.ParquetFile(manifest).metadata.row_group(2).column(0)
    data = bytearray(manifest.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 8] = bytes(8)
    manifest.write_bytes(data)
    done = command("screen", manifest, "-o", tmp_path / "r", *OPTIONS, "--shard-size", 20)
    assert done.returncode == 1, done.stderr
    assert "m.parquet: damaged" in done.stderr
    assert len([*(tmp_path / "r").glob("shard-*.parquet")]) == 2


def test_a_kill_loses_no_image_and_doubles_none(place: Path, tmp_path: Path) -> None:
    words = ["screen", place / "m.parquet", "-o", tmp_path, *OPTIONS, "--shard-size", 4]
    process = subprocess.Popen([*COMMAND, *map(str, words)], stderr=subprocess.DEVNULL)
    ends = time.monotonic() + 120
    while len(list(tmp_path.glob("*.parquet"))) < 3 and time.monotonic() < ends:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    before = len(list(tmp_path.glob("*.parquet")))
    assert 3 <= before < 16
    done = command(*words)
    assert f"{4 * before} images were done before" in done.stderr, done.stderr
    assert screened(tmp_path) == inferred(place / "infer.jsonl")


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        (KILLER, "the decoder died (-11)"),
        pytest.param(HANGER, "took longer than 5 s", marks=pytest.mark.slow),
    ],
)
def test_images_that_harm_their_reader_cost_themselves_alone(
    place: Path, tmp_path: Path, ending: bytes, why: str
) -> None:
    """They crash the process, or are never read: they get a reason, all others their record."""
    images = tmp_path / "images"
    shutil.copytree(place / "images", images, symlinks=True)
    for path in images.glob("*.dcm"):
        path.unlink()  # the first loads pydicom, which takes its time on a busy machine
    harmful = {"00007.png", "00030.png"}
    for name in harmful:
        harmful_image(images / name, ending)
    command("manifest", images, "-o", tmp_path / "m.parquet")
    done = run_command(
        *("screen", tmp_path / "m.parquet", "-o", tmp_path / "r", *OPTIONS, "--image-seconds", 5),
        environment=harmful_environment(tmp_path / "site"),
    )
    assert done.returncode == 4, done.stderr
    found = by_name(screened(tmp_path / "r"))
    assert len(found) == 62
    for name in harmful:
        record = found.pop(name)
        assert record["reason"] == "E_DECODE"
        assert why in record["message"]
        assert record["sha256"] == file_sha256(images / name)
        assert record["probability"] is None
    whole = by_name(inferred(place / "infer.jsonl"))
    assert found == {name: whole[name] for name in found}


def test_a_uid_that_comes_again_is_known_after_a_crash_between(tmp_path: Path) -> None:
    """The process that reads the last image never saw the first one."""
    images = linked_images(tmp_path / "images", 60)
    for number, name in enumerate(("00000.dcm", "99999.dcm")):
        pixels = np.roll(drawn_phantom(0), number, axis=1)
        (images / name).write_bytes(written(dataset(pixels)))
    harmful_image(images / "00059.png", KILLER)
    command("manifest", images, "-o", tmp_path / "m.parquet")
    one_thread = ("--variant", "fp32", "--ood", "warn", "--workers", "1")
    done = run_command(
        *("screen", tmp_path / "m.parquet", "-o", tmp_path / "r", *one_thread),
        environment=harmful_environment(tmp_path / "site"),
    )
    assert done.returncode == 4, done.stderr
    found = by_name(screened(tmp_path / "r"))
    assert found["00059.png"]["reason"] == "E_DECODE"
    assert "W_DUP_UID" not in found["00000.dcm"]["warnings"]
    assert "W_DUP_UID" in found["99999.dcm"]["warnings"]


def test_a_full_disk_ends_the_run_and_with_more_room_it_goes_on(
    place: Path, tmp_path: Path
) -> None:
    skip_without_small_disk()
    (tmp_path / "disk").mkdir()
    words = [*COMMAND, "screen", place / "m.parquet", "-o", "disk", *OPTIONS]
    run = " ".join(map(str, [*words, "--shard-size", 4, "--min-free", 0]))
    script = (
        f"mount -t tmpfs -o size=72k none disk; {run}; echo code $?; ls disk | grep -c part;"
        f"mount -o remount,size=10m disk; {run}; echo code $?; cp -r disk kept"
    )
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.stdout.split() == ["code", "1", "0", "code", "4"], done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    assert "images were done before" in done.stderr
    assert screened(tmp_path / "kept") == inferred(place / "infer.jsonl")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("m.parquet",), 2, "--output is missing"),
        (("m.parquet", "-o", "r", "--shard", "4/3"), 2, "--shard: got 4/3"),
        (("m.parquet", "-o", "r", "--shard", "half"), 2, "expected a part such as 17/400"),
        (("m.parquet", "-o", "r", "--actors", "2"), 2, "--actors needs --on"),
        (("m.parquet", "-o", "r", "--shard", "1/2", "--on", "ray"), 2, "--shard and --on"),
        (("m.parquet", "-o", "r", "--threshold", "2"), 2, "--threshold: got 2"),
        (("m.parquet", "-o", "r", "--workers", "0"), 2, "--workers: got 0"),
        (("m.parquet", "-o", "s3://bucket/r"), 2, "--output: got the address s3:/bucket/r"),
        (("m.parquet", "-o", "r\udcff"), 2, "expected a name in UTF-8"),
        (("--summary", "r\udcff"), 2, "expected a name in UTF-8"),
        (("m.parquet", "-o", "r", "--model", "none"), 6, "none"),
        (("nothing.parquet", "-o", "r"), 6, "no such file"),
        (("--summary", "nothing"), 6, "no results of `screen`"),
    ],
)
def test_a_wrong_command_is_one_sentence(
    place: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    (tmp_path / "m.parquet").symlink_to(place / "m.parquet")
    done = command("screen", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert not list(tmp_path.glob("r/*.parquet"))
