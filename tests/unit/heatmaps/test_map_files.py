"""Heat maps as files: what comes back, what NumPy reads, what is refused, what a failure leaves."""

from __future__ import annotations

import errno
import json
import os
import resource
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcovid_edge.errors import DataError, NotThereError, OutputError
from deepcovid_edge.files import write_atomically, write_new
from deepcovid_edge.heatmaps.files import MapFile, read_map, write_map
from deepcovid_edge.heatmaps.heatmap import ACTIVATION, OCCLUSION, HeatMap, Region, of_activation
from deepcovid_edge.manifest import InputSpec

SPEC = InputSpec(96, 128)
REGIONS = (
    Region(3, 4, 50, 60, peak=1.0 / 3.0, turns=True),
    Region(0, 0, 1, 1, peak=-2.0, turns=False),
)
FACTS: dict[str, Any] = {"path": "folder/Lunge \u80ba \udcff.png", "probability": 0.25, "notes": []}


def occlusion() -> HeatMap:
    draw = np.random.default_rng(1)
    values, chances = draw.normal(size=(2, 96, 128)).astype(np.float32)
    cells = draw.normal(size=(9, 13)).astype(np.float32)
    made = {"window": 32, "windows": 117, "evaluated": 60}
    return HeatMap(OCCLUSION, values, cells, chances, values > 1, made)


def activation() -> HeatMap:
    cells = np.random.default_rng(2).normal(size=(6, 8)).astype(np.float32)
    return of_activation(cells, SPEC)


def same(first: HeatMap, second: HeatMap) -> bool:
    names = ("values", "cells", "probability_drop", "turned")
    pairs = [(getattr(first, name), getattr(second, name)) for name in names]
    return (first.method, first.facts) == (second.method, second.facts) and all(
        before is after
        if before is None or after is None
        else np.array_equal(before, after) and before.dtype == after.dtype
        for before, after in pairs
    )


@pytest.mark.parametrize("made", [occlusion, activation])
@pytest.mark.parametrize("places", [REGIONS, ()])
def test_what_was_written_comes_back_to_the_last_bit(
    made: Any, places: tuple[Region, ...], tmp_path: Path
) -> None:
    path, found = tmp_path / "map.npz", made()
    write_map(path, found, places, FACTS)
    back = read_map(path)
    assert isinstance(back, MapFile)
    assert same(back.heatmap, found)
    assert back.regions == places
    assert back.facts == FACTS


def test_numpy_reads_the_arrays_without_pickles(tmp_path: Path) -> None:
    found = occlusion()
    write_map(tmp_path / "map.npz", found, REGIONS, FACTS)
    with np.load(tmp_path / "map.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"values", "cells", "probability_drop", "turned", "facts"}
        assert np.array_equal(arrays["turned"], found.turned)  # type: ignore[arg-type]
        described = json.loads(arrays["facts"].item())
    assert described["regions"][0]["width"] == 50
    assert described["made"]["evaluated"] == 60
    with zipfile.ZipFile(tmp_path / "map.npz") as archive:
        assert archive.testzip() is None  # every checksum holds


def test_activation_map_is_kept_as_the_network_gave_it_and_is_small(tmp_path: Path) -> None:
    write_map(tmp_path / "map.npz", activation(), (), {})
    with np.load(tmp_path / "map.npz") as arrays:
        assert set(arrays.files) == {"cells", "facts"}
    assert (tmp_path / "map.npz").stat().st_size < 1500


def test_array_that_is_not_contiguous_is_written_in_its_order(tmp_path: Path) -> None:
    turned = replace(activation(), cells=activation().cells.T[::-1])
    write_map(tmp_path / "map.npz", turned, (), {})
    assert np.array_equal(read_map(tmp_path / "map.npz").heatmap.cells, turned.cells)


def test_map_replaces_an_older_one_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    write_map(path, occlusion(), REGIONS, {})
    write_map(path, activation(), (), {})
    assert read_map(path).heatmap.method == ACTIVATION
    assert list(tmp_path.iterdir()) == [path]


def test_failure_names_the_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "map.npz").mkdir()
    with pytest.raises(OutputError, match=r"map\.npz: cannot be written: Is a directory"):
        write_map(tmp_path / "map.npz", activation(), (), {})
    assert [path.name for path in tmp_path.iterdir()] == ["map.npz"]
    with pytest.raises(OutputError, match=r"none/map\.npz: cannot be written: No such file"):
        write_map(tmp_path / "none/map.npz", activation(), (), {})


def test_map_that_finds_no_room_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    write_map(path, activation(), (), {"older": True})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            write_map(path, occlusion(), (), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_map(path).facts == {"older": True}
    assert list(tmp_path.iterdir()) == [path]


def test_map_that_is_not_there_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match=r"none\.npz: No such file"):
        read_map(tmp_path / "none.npz")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_map_that_was_cut_off_is_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    write_map(path, occlusion(), REGIONS, FACTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(DataError, match="not a heat map that this version"):
        read_map(path)


def test_map_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    write_map(path, occlusion(), REGIONS, FACTS)
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    with pytest.raises(DataError, match="Bad CRC-32"):
        read_map(path)


@pytest.mark.parametrize(
    "facts",
    [
        b"{}",
        b"[]",
        b"no JSON",
        json.dumps({"schema_version": 2, "method": ACTIVATION}).encode(),
        json.dumps({"schema_version": 1, "method": "guess"}).encode(),
    ],
)
def test_archive_of_something_else_is_refused(facts: bytes, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", cells=np.zeros((2, 2)), facts=np.array(facts))
    with pytest.raises(DataError, match="not a heat map"):
        read_map(tmp_path / "other.npz")


def test_array_and_text_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("not a map")
    for name in ("array.npy", "text.npz"):
        with pytest.raises(DataError, match="not a heat map"):
            read_map(tmp_path / name)


def test_a_new_file_is_made_at_once_and_one_that_is_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    for content in (b"first", b"the second, longer", b"3"):
        write_new(path, content)
        assert path.read_bytes() == content
    assert [*tmp_path.iterdir()] == [path]


def test_a_full_disk_leaves_no_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("deepcovid_edge.files.os.write", full)
    for write in (write_new, write_atomically):
        with pytest.raises(OutputError, match=r"map\.npz: cannot be written: No space left"):
            write(tmp_path / "map.npz", b"content")
        assert not [*tmp_path.iterdir()]
    with pytest.raises(OutputError, match="No such file or directory"):
        write_new(tmp_path / "none/map.npz", b"content")
