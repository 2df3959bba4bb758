"""Which files of a run are images, and which of them the run itself has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepcovid_edge.datasets.folders import FolderWalk
from deepcovid_edge.errors import NotThereError
from deepcovid_edge.pipeline.sources import check_folders, image_sources, list_images

DIGITS = "0123456789abcdef"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image")


def listed(folder: Path, *paths: Path, maps: str | None = None, html: str | None = None) -> str:
    """The names of the images, in their order."""
    found = list_images(
        paths or [folder],
        maps=folder / maps if maps is not None else None,
        html=folder / html if html is not None else None,
    )
    return " ".join(path.name for path in found)


def test_maps_come_in_pairs_and_a_picture_without_its_map_is_an_image(tmp_path: Path) -> None:
    touch(tmp_path, f"a-{DIGITS}.npz", f"a-{DIGITS}.png", f"b-{DIGITS}.png")
    touch(tmp_path, "c-20200315.png", "c-20200315.npz", f"d-{DIGITS}.jpg", f"d-{DIGITS}.npz")
    assert (
        listed(tmp_path, maps="") == f"b-{DIGITS}.png c-20200315.npz c-20200315.png d-{DIGITS}.jpg"
    )


def test_maps_are_passed_over_in_their_folder_alone_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, f"maps/a-{DIGITS}.npz", f"maps/a-{DIGITS}.png", f"b-{DIGITS}.npz", "c.png")
    walk = FolderWalk()
    found = [*list_images([tmp_path], maps=tmp_path / "maps", walk=walk)]
    assert [path.name for path in found] == [f"b-{DIGITS}.npz", "c.png"]
    assert [*walk.notes()] == ["2 files of heat maps were passed over."]


def test_a_link_to_an_image_is_no_map_whatever_it_is_called(tmp_path: Path) -> None:
    touch(tmp_path, "maps/chest.png", f"link-{DIGITS}.npz")
    (tmp_path / f"link-{DIGITS}.png").symlink_to("maps/chest.png")
    names = f"link-{DIGITS}.npz link-{DIGITS}.png chest.png"
    assert listed(tmp_path, maps="maps") == names


def test_a_file_that_is_named_is_an_image(tmp_path: Path) -> None:
    touch(tmp_path, f"a-{DIGITS}.npz", f"a-{DIGITS}.png", "index.html")
    for name in (f"a-{DIGITS}.png", "index.html"):
        assert listed(tmp_path, tmp_path / name, maps="", html="") == name
        assert listed(tmp_path, tmp_path, tmp_path / name, maps="", html="") == name
        assert listed(tmp_path, tmp_path / name, tmp_path, maps="", html="") == name


def test_the_page_is_passed_over_and_no_other(tmp_path: Path) -> None:
    touch(tmp_path, "page/index.html", "other/index.html", "a.png")
    assert listed(tmp_path, html="page") == "a.png index.html"
    assert listed(tmp_path, html="other/../page") == "a.png index.html"


def test_a_folder_of_the_runs_own_files_holds_no_image(tmp_path: Path) -> None:
    touch(tmp_path, "page/index.html", f"page/maps/a-{DIGITS}.npz", f"page/maps/a-{DIGITS}.png")
    own = {"html": tmp_path / "page", "maps": tmp_path / "page/maps"}
    with pytest.raises(NotThereError, match="2 files of heat maps were"):
        check_folders([tmp_path], **own)
    touch(tmp_path, "a.png")
    check_folders([tmp_path], **own)


@pytest.mark.parametrize("data", [b"an image", bytearray(b"an image")])
def test_bytes_are_one_source_and_not_numbers(data: Any) -> None:
    assert [*image_sources(data)] == [data]
