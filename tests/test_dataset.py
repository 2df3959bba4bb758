"""DATA: which films a folder or a manifest CSV means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepcovid_edge.dataset import load_dataset, walk_files
from deepcovid_edge.errors import DataError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"film")
    return path


def test_walk_is_sorted_and_leaves_out_what_accompanies_films(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.png", "b/1.png", "c.txt", ".hidden", "manifest.csv", "Thumbs.db"):
        touch(tmp_path / name)
    names = [str(path.relative_to(tmp_path)) for path in walk_files(tmp_path)]
    assert names == ["a.png", "b/1.png", "b/2.png", "c.txt"]


def test_walk_follows_links_but_not_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path / "films/1.png")
    (tmp_path / "films/again").symlink_to(tmp_path / "films")
    touch(tmp_path / "other/2.png")
    (tmp_path / "films/other").symlink_to(tmp_path / "other")
    names = [str(path.relative_to(tmp_path)) for path in walk_files(tmp_path / "films")]
    assert names == ["films/1.png", "films/other/2.png"]


def test_a_link_to_itself_is_a_file_like_others_and_stops_nothing(tmp_path: Path) -> None:
    touch(tmp_path / "film.png")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert [path.name for path in walk_files(tmp_path)] == ["film.png", "loop"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_not_lost(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    assert list(walk_files(tmp_path)) == [closed]


def test_folder_per_class(tmp_path: Path) -> None:
    for name in ("covid/1.png", "normal/2.png"):
        touch(tmp_path / name)
    found = [(film.path.name, film.label, film.split) for film in load_dataset(tmp_path)]
    assert found == [("1.png", "covid", ""), ("2.png", "normal", "")]


def test_folder_per_split_and_class(tmp_path: Path) -> None:
    for name in ("train/covid/1.png", "val/covid/2.png"):
        touch(tmp_path / name)
    (film,) = load_dataset(tmp_path, split="val")
    assert (film.path.name, film.label, film.split) == ("2.png", "covid", "val")


def test_manifest_csv_with_columns_beyond_the_needed(tmp_path: Path) -> None:
    touch(tmp_path / "x/1.png")
    text = "path,label,split,patient,source,colour\nx/1.png,covid,test,p1,here,grey\n"
    (tmp_path / "manifest.csv").write_text(text)
    for data in (tmp_path, tmp_path / "manifest.csv"):
        (film,) = load_dataset(data)
        assert (film.label, film.split, film.patient, film.source) == (
            "covid",
            "test",
            "p1",
            "here",
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class\n1.png,covid\n", "columns label are missing; it has path, class"),
        ("path,label\nno.png,covid\n", r"line 2: no such file: .*no\.png"),
        ("", "columns label, path are missing"),
    ],
)
def test_wrong_manifest_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path)


def test_missing_split_lists_those_present(tmp_path: Path) -> None:
    touch(tmp_path / "train/covid/1.png")
    with pytest.raises(DataError, match=r"no film of split 'test'; it has \['train'\]"):
        load_dataset(tmp_path, split="test")


def test_nothing_there_and_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_dataset(tmp_path / "no")
    with pytest.raises(DataError, match="no labelled film"):
        load_dataset(tmp_path)
