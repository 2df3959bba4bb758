"""Folders are walked once each, whatever they are called; those of a system are passed over."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

import pytest

from deepcovid_edge.datasets.folders import COMPANIONS, SYSTEM_FOLDERS, FolderWalk
from deepcovid_edge.pipeline.sources import image_sources, list_images


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"image")
    return path


def names(root: Path, *paths: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in FolderWalk().images(paths or (root,))]


@pytest.mark.parametrize(
    "name", [*sorted(COMPANIONS), "DICOMDIR", "Thumbs.db", ".dcm", "x.png", "._x", "@eadir", ".a"]
)
def test_a_folder_is_not_passed_over_for_its_likeness_to_a_file(name: str, tmp_path: Path) -> None:
    touch(tmp_path / name / "deeper" / "a.png")
    touch(tmp_path / name / "b.png")
    assert names(tmp_path) == [f"{name}/b.png", f"{name}/deeper/a.png"]


@pytest.mark.parametrize("name", [n for kind in SYSTEM_FOLDERS.values() for n in kind])
def test_a_system_folder_is_passed_over_and_counted_but_walked_when_it_is_named(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / name.replace("*", "1000")
    touch(folder / "deeper" / "a.png")
    touch(tmp_path / "b.png")
    touch(tmp_path / "c" / f"{folder.name}2" / "c.png")
    walk = FolderWalk()
    found = [path.name for path in walk.images([tmp_path])]
    assert found == (["b.png"] if "*" in name else ["b.png", "c.png"])
    assert walk.passed_over[folder.name] == 1
    assert folder.name in " ".join(walk.notes())
    assert names(tmp_path, folder) == [f"{folder.name}/deeper/a.png"]


def test_a_file_with_the_name_of_a_system_folder_is_an_image(tmp_path: Path) -> None:
    touch(tmp_path / "@eaDir")
    touch(tmp_path / "#recycle")
    assert names(tmp_path) == ["#recycle", "@eaDir"]


def test_companions_are_no_images_and_hidden_files_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".DS_Store", "Desktop.ini", ".a.png.x7Fq"):
        touch(tmp_path / name)
    walk = FolderWalk()
    assert [path.name for path in walk.images([tmp_path])] == ["a.png"]
    assert [*walk.notes()] == ["1 hidden file was passed over."]
    hidden = tmp_path / ".a.png.x7Fq"
    assert [*FolderWalk().images([tmp_path, hidden])] == [tmp_path / "a.png", hidden]


def test_folders_that_link_to_each_other_are_walked_once_under_their_own_names(
    tmp_path: Path,
) -> None:
    for one in range(12):
        touch(tmp_path / f"p{one:02}" / "a.png")
        for other in range(12):
            (tmp_path / f"p{one:02}" / f"see_{other}").symlink_to(f"../p{other:02}")
        (tmp_path / f"p{one:02}" / "up").symlink_to("..")
    assert names(tmp_path) == [f"p{one:02}/a.png" for one in range(12)]


def test_arguments_that_overlap_give_each_image_once(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "b" / "1.png")
    touch(tmp_path / "a" / "2.png")
    (tmp_path / "link").symlink_to("a")
    for paths in (
        ("a", "a/b", "link", "a/b/1.png", "link/2.png", "a/../a"),
        ("link/2.png", "a/2.png", "a/b/1.png", "a", "link"),
        ("a/b", "a", "a"),
    ):
        found = names(tmp_path, *(tmp_path / path for path in paths))
        assert sorted(os.path.basename(name) for name in found) == ["1.png", "2.png"]  # noqa: PTH119


def test_two_names_of_one_file_are_two_images(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    os.link(tmp_path / "a.png", tmp_path / "c.png")
    assert names(tmp_path) == ["a.png", "b.png", "c.png"]


def test_a_linked_folder_outside_comes_last_and_once(tmp_path: Path) -> None:
    touch(tmp_path / "outside" / "1.png")
    touch(tmp_path / "in" / "z.png")
    for name in ("first", "second"):
        (tmp_path / "in" / name).symlink_to("../outside")
    assert names(tmp_path, tmp_path / "in") == ["in/z.png", "in/first/1.png"]


def test_folders_may_lie_deeper_than_python_calls_itself(tmp_path: Path) -> None:
    touch(tmp_path.joinpath(*["d"] * 300, "a.png"))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        found = names(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert len(found) == 1


def test_a_run_and_the_python_api_walk_alike(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/@eaDir/2.png", "b/DICOMDIR/3.png"):
        touch(tmp_path / name)
    (tmp_path / "a" / "b").symlink_to("../b")
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "a"]
    walked = [*list_images(folders)]
    assert [*image_sources(folders)] == walked
    assert [path.name for path in walked] == ["1.png", "3.png"]
    assert [*image_sources([tmp_path / "a/1.png"] * 3)] == [tmp_path / "a/1.png"] * 3
