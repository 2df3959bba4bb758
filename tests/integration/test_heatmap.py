"""Heat maps on the command line: pictures, maps and records that name each other.

One test starts a process; the others run in this one, which has the runtime loaded.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from commands import Done, command
from drawn_once import phantom_files

from deepcovid_edge.heatmaps.files import read_map

pytestmark = pytest.mark.int8

QUICK = ("--stride", "32")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    phantom_files(folder, count=2)
    (folder / "zz_broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def process(*words: str | Path, cwd: Path) -> Done:
    line = [sys.executable, "-m", "deepcovid_edge", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=cwd)
    return Done(done.returncode, done.stdout, done.stderr)


def run(*words: str | Path, cwd: Path) -> Done:
    return command(*words, cwd=cwd)


def records(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_heatmap_writes_picture_and_map_and_names_them_in_the_record(
    images: Path, tmp_path: Path
) -> None:
    done = process("heatmap", images, "-o", "maps", "--json", *QUICK, cwd=tmp_path)
    assert done.returncode == 4, done.stderr  # one file is no image
    first, second, broken = records(done)
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {
        Path(record[kind]).name for record in (first, second) for kind in ("heatmap", "overlay")
    }
    for record in (first, second):
        picture = cv2.imread(str(tmp_path / record["overlay"]))
        assert picture is not None
        assert picture.shape[1] > 2 * picture.shape[0]
        stored = read_map(tmp_path / record["heatmap"])
        assert stored.heatmap.values.shape == (224, 224)
        assert stored.heatmap.cells.shape == (7, 7)
        assert stored.facts["sha256"] == record["sha256"]
        assert [place.as_dict() for place in stored.regions] == record["regions"]
        radiograph = cv2.imread(record["path"], cv2.IMREAD_GRAYSCALE)
        assert radiograph is not None
        height, width = radiograph.shape
        for place in record["regions"]:
            assert 0 <= place["x"] < place["x"] + place["width"] <= width
            assert 0 <= place["y"] < place["y"] + place["height"] <= height
        assert record["timings_ms"]["heatmap"] > 0
        assert record["timings_ms"]["total"] >= record["timings_ms"]["heatmap"]
    assert broken["status"] == "not_assessed"
    assert broken["heatmap"] is broken["overlay"] is broken["regions"] is None


def test_pictures_among_the_images_are_not_taken_for_images(images: Path, tmp_path: Path) -> None:
    run("heatmap", images, "-o", tmp_path / "maps", "--json", *QUICK, cwd=tmp_path)
    again = records(run("infer", "maps", cwd=tmp_path))
    assert {record["status"] for record in again} == {"not_assessed"}


def test_infer_with_activation_maps_gives_the_results_of_infer(
    images: Path, tmp_path: Path
) -> None:
    plain = records(run("infer", images, "--json", cwd=tmp_path))
    done = run("infer", images, "--json", "--heatmap", "activation", cwd=tmp_path)
    mapped = records(done)
    for own, other in zip(mapped, plain, strict=True):
        assert own["probabilities"] == other["probabilities"]
        assert other["heatmap"] is None
    stored = read_map(tmp_path / mapped[0]["heatmap"])
    assert mapped[0]["overlay"] is None
    assert stored.heatmap.method == "activation"
    assert stored.heatmap.cells.shape == (13, 13)


def test_csv_has_the_regions_as_json(images: Path, tmp_path: Path) -> None:
    done = run("infer", images, "--csv", "--heatmap", "activation", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 3
    for row in rows:
        assert bool(row["regions"]) == (row["status"] == "assessed")
        if row["regions"]:
            assert isinstance(json.loads(row["regions"]), list)


def test_incremental_and_auto_forms_agree_on_where_the_network_looked(
    images: Path, tmp_path: Path
) -> None:
    """The INT8 variant that `auto` takes, and the FP32 model itself."""
    maps = []
    for name, backend in (("auto", "auto"), ("own", "onnxruntime")):
        done = run(
            "heatmap", images, "-o", name, "--json", "--backend", backend, *QUICK, cwd=tmp_path
        )
        maps.append(read_map(tmp_path / records(done)[0]["heatmap"]).heatmap.values)
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.95


def test_a_budget_below_one_pass_costs_the_map_and_not_the_result(
    images: Path, tmp_path: Path
) -> None:
    done = run("heatmap", images, "-o", "maps", "--json", "--budget", "0.01ms", cwd=tmp_path)
    assert done.returncode == 4
    first = records(done)[0]
    assert first["status"] == "assessed"
    assert first["heatmap"] is None
    assert "W_NO_HEATMAP" in first["warnings"]
    assert "2 images have no heat map: --budget is shorter than one pass" in done.stderr
    image = images / "phantom_000.png"
    done = run("heatmap", image, "-o", "maps", "--json", "--budget", "0.01ms", cwd=tmp_path)
    assert "1 image has no heat map: --budget is shorter than one pass" in done.stderr


def test_a_budget_is_kept_or_said(images: Path, tmp_path: Path) -> None:
    image = images / "phantom_000.png"
    done = run("heatmap", image, "-o", "maps", "--json", "--budget", "60s", cwd=tmp_path)
    stored = read_map(tmp_path / records(done)[0]["heatmap"])
    assert stored.heatmap.facts["evaluated"] == stored.heatmap.facts["windows"] == 625


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--window", "300"), "--window: got 300, the network sees images of 224 x 224"),
        (("--stride", "0"), "--stride: got 0, expected 1 to the window's 32 pixels"),
        (("--stride", "40"), "parts of the image would never be hidden"),
        (("--budget", "200"), "expected a time with its unit"),
        (("--budget", "0ms"), "--budget: got 0 s, expected more than 0"),
    ],
)
def test_bad_use_gets_a_sentence(
    words: tuple[str, str], said: str, images: Path, tmp_path: Path
) -> None:
    done = run("heatmap", images, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_a_folder_that_cannot_be_made_is_said(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("heatmap", images, "-o", tmp_path / "file" / "maps", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert "file" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_image_with_a_long_name_in_any_script_gets_its_map(images: Path, tmp_path: Path) -> None:
    named = tmp_path / f"{'肺' * 80}.png"
    named.write_bytes((images / "phantom_000.png").read_bytes())
    done = run("infer", named, "--json", "--heatmap", "activation", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / records(done)[0]["heatmap"]).is_file()


def test_maps_among_the_images_are_left_out_and_images_among_the_maps_are_not(
    images: Path, tmp_path: Path
) -> None:
    place = tmp_path / "images"
    place.mkdir()
    for name in ("phantom_000.png", "phantom_001.png"):
        (place / name).write_bytes((images / name).read_bytes())
    for folder in ("images/maps", "images"):
        for _ in range(2):
            done = run("heatmap", "images", "-o", folder, "--json", *QUICK, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            classified = [Path(record["path"]).name for record in records(done)]
            assert classified == ["phantom_000.png", "phantom_001.png"]
            assert f"Heat maps are in {folder}." in done.stderr
        for left in (tmp_path / folder).glob(f"*-{'?' * 16}.*"):
            left.unlink()


def test_an_image_whose_name_ends_in_a_date_is_one_beside_its_own_map(
    images: Path, tmp_path: Path
) -> None:
    place = tmp_path / "same"
    place.mkdir()
    names = ["chest-2.png", "chest-20200315.png", "chest-2020031512345678.png"]
    for name in names:
        (place / name).write_bytes((images / "phantom_000.png").read_bytes())
    line = ("infer", "same", "--json", "--heatmap", "activation", "--heatmap-dir", "same")
    for _ in range(2):
        done = run(*line, cwd=tmp_path)
        classified = [Path(record["path"]).name for record in records(done)]
        assert sorted(classified) == sorted(names)
    assert "3 files of heat maps were passed over." in done.stderr


def test_a_map_that_is_named_is_read(images: Path, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes((images / "phantom_000.png").read_bytes())
    run("heatmap", "one.png", "-o", ".", "--json", *QUICK, cwd=tmp_path)
    (picture,) = tmp_path.glob("one-*.png")
    for named in ((picture.name,), (".", picture.name)):
        done = run("heatmap", *named, "-o", ".", "--json", *QUICK, cwd=tmp_path)
        (found,) = [one for one in records(done) if Path(one["path"]).name == picture.name]
        assert found["status"] == "not_assessed"


def test_a_single_picture_is_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes((images / "phantom_000.png").read_bytes())
    done = run("heatmap", "one.png", "-o", "maps", "--json", *QUICK, cwd=tmp_path)
    (picture,) = (tmp_path / "maps").glob("one-*.png")
    assert "1 image done" in done.stderr
    assert f"The heat map is maps/{picture.name}." in done.stderr
