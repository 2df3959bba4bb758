"""Shards: records come back as they were, whole or not at all, and of one run alone."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from deepcovid_edge.decision.record import Prediction, RunFacts, SiteName
from deepcovid_edge.errors import DataError, OutputError, UsageError
from deepcovid_edge.manifest import IndeterminateRange
from deepcovid_edge.reasons import Reason

pq = pytest.importorskip("pyarrow.parquet", reason="shards need extra archive")

from deepcovid_edge.archive import stamp as stamp_module
from deepcovid_edge.archive.shards import (
    Counts,
    DamagedShardError,
    ScreenedImage,
    ShardFolder,
    read_shard,
    remove_unfinished,
)
from deepcovid_edge.archive.stamp import RUN_FILE, RunStamp, begin_run, plain_facts, read_stamp
from deepcovid_edge.decision.record_table import record_row, record_schema, records_of

FACTS = RunFacts(
    "m",
    "ab" * 32,
    "onnxruntime-cpu",
    "fp32",
    ("normal", "covid"),
    "covid",
    0.5,
    indeterminate_range=IndeterminateRange(0.2, 0.6),
    site=SiteName("North", "cd" * 32),
)
TIMINGS = {"read": 1.5, "preprocess": 0.25, "infer": 2.0, "total": 4.0}
REGION = {"x": 1, "y": 2, "width": 3, "height": 4, "peak": 0.5, "turns": None}
RECORDS = [
    Prediction(
        "a.png",
        FACTS,
        "0" * 64,
        warnings=("W_AP",),
        probabilities={"normal": 0.25, "covid": 0.75},
        timings_ms=TIMINGS,
        heatmap="a.npz",
        regions=(REGION,),
    ),
    Prediction("b.png", FACTS, "1" * 64, probabilities={"normal": 0.9, "covid": 0.1}),
    Prediction("c.png", FACTS, "2" * 64, probabilities={"normal": 0.5, "covid": 0.5}),
    Prediction("胸部 'd'.png", FACTS, None, Reason.VIEW.code, "Lateral (LL)"),
]
STAMP = RunStamp("0.1", plain_facts(FACTS), "reject", 10, "ef" * 32, 4)


def images(count: int = 4) -> list[ScreenedImage]:
    return [ScreenedImage(record, number) for number, record in enumerate(RECORDS[:count])]


def test_a_record_comes_back_from_a_table_as_it_was() -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist([record_row(one) for one in RECORDS], schema=record_schema())
    assert list(records_of(table)) == [one.as_dict() for one in RECORDS]
    assert table.schema.names == [*RECORDS[0].as_dict()]


def test_a_shard_comes_back_with_its_counts(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, STAMP)
    counts = folder.write(1, images())
    assert counts == Counts(positive=1, negative=1, indeterminate=1, not_assessed=1)
    assert folder.done(1) == counts
    assert folder.done(0) is None
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000001.parquet"]


def test_a_shard_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves a shard of zeros, which took hours."""
    steps: list[str] = []

    def watch(name: str, real: Callable[..., None]) -> None:
        def noted(*given: object) -> None:
            steps.append(name)
            real(*given)

        monkeypatch.setattr(os, name, noted)

    watch("fsync", os.fsync)
    watch("replace", os.replace)
    ShardFolder(tmp_path, STAMP).write(0, images())
    assert steps[:2] == ["fsync", "replace"]


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path) -> None:
    hour = 3600
    for name, age in (("old.part", 25 * hour), ("young.part", 23 * hour), ("old", 25 * hour)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "young.part"]


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_damaged_byte_of_a_shard_is_noticed(tmp_path: Path, place: float) -> None:
    folder = ShardFolder(tmp_path, STAMP)
    folder.write(0, images())
    data = bytearray(folder.path(0).read_bytes())
    data[int(len(data) * place)] ^= 0xFF
    folder.path(0).write_bytes(data)
    try:
        stated, rows = read_shard(folder.path(0))
    except DamagedShardError:
        return
    assert (stated["shard"], rows) == (0, 4), "a byte that means nothing"


def test_no_damaged_bit_of_a_page_changes_a_record(tmp_path: Path) -> None:
    """Bits of the data have checksums; those of a page's header, which have none, are counted."""
    folder = ShardFolder(tmp_path, STAMP)
    folder.write(0, images())
    path = folder.path(0)
    data, whole = path.read_bytes(), pq.read_table(path).to_pylist()
    pages = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    damaged = 0
    for place in range(4, pages, 7):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with suppress(DamagedShardError):
            read_shard(path)
            assert pq.read_table(path).to_pylist() == whole, f"byte {place}"
            continue
        damaged += 1
    assert damaged > pages // 14


@pytest.mark.parametrize("name", [b"path", b"decision", b"probability", b"month", b"uid_hash"])
def test_a_footer_that_states_another_column_is_damaged(tmp_path: Path, name: bytes) -> None:
    """The footer has no checksum."""
    folder = ShardFolder(tmp_path, STAMP)
    folder.write(0, images())
    path = folder.path(0)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    changed = data[footer:].replace(name, bytes([name[0] ^ 1]) + name[1:])
    assert changed != data[footer:]
    path.write_bytes(data[:footer] + changed)
    with pytest.raises(DamagedShardError):
        folder.done(0)


@pytest.mark.parametrize("page", ["dictionary_page_offset", "data_page_offset"])
def test_a_page_that_states_another_number_of_values_is_damaged(tmp_path: Path, page: str) -> None:
    """The count of a page's values stands in its header, which has no checksum (PageHeader)."""
    folder = ShardFolder(tmp_path, STAMP)
    folder.write(0, images())
    path = folder.path(0)
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    data = bytearray(path.read_bytes())
    at = data.index(b"\x15\x08", getattr(column, page))  # 4 as zigzag, an i32 of Thrift
    data[at : at + 2] = b"\x15\x00"
    path.write_bytes(data)
    with pytest.raises(DamagedShardError):
        read_shard(path)


def test_no_damaged_bit_of_what_a_shard_states_is_taken_for_another_run(tmp_path: Path) -> None:
    """Parquet's footer has no checksum; both places that hold the statement are damaged in turn."""
    folder = ShardFolder(tmp_path, STAMP)
    folder.write(0, images())
    data = folder.path(0).read_bytes()
    base64 = data.index(b"ARROW:schema")
    plain = data.index(b'{"run"')
    for place in (*range(base64, base64 + 400, 5), *range(plain, plain + 160, 5)):
        damaged = bytearray(data)
        damaged[place] ^= 2
        folder.path(0).write_bytes(damaged)
        with suppress(DamagedShardError):
            assert folder.done(0) == Counts(1, 1, 1, 1)


@pytest.mark.parametrize("size", [0, 4, 1000])
def test_a_shard_that_was_cut_off_is_damaged(tmp_path: Path, size: int) -> None:
    folder = ShardFolder(tmp_path, STAMP)
    folder.write(0, images())
    folder.path(0).write_bytes(folder.path(0).read_bytes()[:size])
    with pytest.raises(DamagedShardError, match="damaged"):
        folder.done(0)


def test_a_shard_that_lacks_an_image_is_damaged(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, STAMP)
    folder.write(0, images(3))
    with pytest.raises(DamagedShardError, match="3 records, expected 4"):
        folder.done(0)


def test_a_shard_of_another_run_is_an_error(tmp_path: Path) -> None:
    ShardFolder(tmp_path, replace(STAMP, ood="warn")).write(0, images())
    with pytest.raises(DataError, match="another run"):
        ShardFolder(tmp_path, STAMP).done(0)


def test_a_shard_under_another_s_name_is_an_error(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, STAMP)
    folder.write(0, images())
    folder.path(1).write_bytes(folder.path(0).read_bytes())
    assert folder.done(0) == Counts(1, 1, 1, 1)
    with pytest.raises(DataError, match="another run"):
        folder.done(1)


def test_a_disk_without_room_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="free some; the same command goes on"):
        ShardFolder(tmp_path, STAMP, min_free=1 << 40).write(0, images())
    assert not list(tmp_path.iterdir())


def test_a_second_command_does_not_write_into_the_folder(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, STAMP)
    with folder.locked("screen-1-of-1"):
        with (
            pytest.raises(OutputError, match="another `screen`"),
            folder.locked("screen-1-of-1"),
        ):
            pass
        with folder.locked("screen-2-of-2"):
            pass


def test_a_folder_belongs_to_the_run_that_began_it(tmp_path: Path) -> None:
    begin_run(tmp_path / "r", STAMP)
    begin_run(tmp_path / "r", STAMP)
    assert read_stamp(tmp_path / "r") == STAMP
    assert [path.name for path in (tmp_path / "r").iterdir()] == [RUN_FILE]


def test_two_containers_with_the_same_process_id_begin_a_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins, and ends, between two steps of the first."""
    real, linked = os.link, list[str]()

    def link(own: Path, path: Path) -> None:
        linked.append(own.name)
        if len(linked) == 1:
            begin_run(tmp_path / "r", STAMP)
        real(own, path)

    monkeypatch.setattr(os, "link", link)
    begin_run(tmp_path / "r", STAMP)
    assert len(set(linked)) == 2
    assert [path.name for path in (tmp_path / "r").iterdir()] == [RUN_FILE]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_run_begins_on_a_disk_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def link(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    begin_run(tmp_path / "r", STAMP)
    begin_run(tmp_path / "r", STAMP)
    with pytest.raises(UsageError, match="another run"):
        begin_run(tmp_path / "r", OTHERS["ood"])
    assert read_stamp(tmp_path / "r") == STAMP
    assert [path.name for path in (tmp_path / "r").iterdir()] == [RUN_FILE]


def test_the_first_of_several_runs_decides_on_a_disk_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one creates the file meanwhile, and writes it a moment later."""
    writing = threading.Timer(0.1, (tmp_path / RUN_FILE).write_text, (STAMP.as_json(),))

    def link(*_: object) -> None:
        (tmp_path / RUN_FILE).touch()
        writing.start()
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(UsageError, match="another run"):
        begin_run(tmp_path, OTHERS["ood"])
    writing.join()
    assert read_stamp(tmp_path) == STAMP


OTHERS = {
    "ood": replace(STAMP, ood="warn"),
    "fingerprint": replace(STAMP, fingerprint="00" * 32),
    "shard_images": replace(STAMP, shard_images=5),
    "version": replace(STAMP, version="0.2"),
    "threshold": replace(STAMP, facts=plain_facts(replace(FACTS, threshold=0.4))),
    "variant": replace(STAMP, facts=plain_facts(replace(FACTS, variant="int8-cpu"))),
    "site": replace(STAMP, facts=plain_facts(replace(FACTS, site=None))),
    "indeterminate_range": replace(
        STAMP, facts=plain_facts(replace(FACTS, indeterminate_range=None))
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_run_is_an_error_that_names_the_difference(
    tmp_path: Path, name: str
) -> None:
    begin_run(tmp_path, STAMP)
    with pytest.raises(UsageError, match=rf"another run: {name} differ"):
        begin_run(tmp_path, OTHERS[name])
    assert read_stamp(tmp_path) == STAMP


def test_a_damaged_run_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("{")
    with pytest.raises(DataError, match="not the run"):
        begin_run(tmp_path, STAMP)
    (tmp_path / RUN_FILE).unlink()
    ShardFolder(tmp_path, STAMP).write(0, images())
    with pytest.raises(UsageError, match="shards but no"):
        begin_run(tmp_path, STAMP)


def test_facts_come_back_from_the_run_file(tmp_path: Path) -> None:
    begin_run(tmp_path, STAMP)
    found = read_stamp(tmp_path)
    assert found is not None
    assert found.run_facts == FACTS


def test_shards_cover_every_image_once() -> None:
    rows = [STAMP.rows(shard) for shard in range(STAMP.shards)]
    assert rows == [(0, 4), (4, 8), (8, 10)]


def test_a_single_file_that_is_gone_is_no_outage() -> None:
    """Else a large archive would be assessed again at every start."""
    assert not Counts(positive=199, not_assessed=1, unreadable=1).lacks_files
    assert Counts(positive=198, not_assessed=2, unreadable=2).lacks_files
    assert Counts(not_assessed=1, unreadable=1).lacks_files
    assert not Counts().lacks_files


def test_an_empty_run_file_is_no_dead_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may leave a name without content."""
    monkeypatch.setattr(stamp_module, "_CREATE_SECONDS", 0.1)
    (tmp_path / RUN_FILE).touch()
    assert read_stamp(tmp_path) is None
    begin_run(tmp_path, STAMP)
    assert read_stamp(tmp_path) == STAMP
    with pytest.raises(UsageError, match="another run"):
        begin_run(tmp_path, OTHERS["ood"])


def test_an_empty_run_file_beside_shards_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be of another run."""
    monkeypatch.setattr(stamp_module, "_CREATE_SECONDS", 0.1)
    ShardFolder(tmp_path, STAMP).write(0, images())
    (tmp_path / RUN_FILE).touch()
    with pytest.raises(UsageError, match="or an empty one: use another folder"):
        begin_run(tmp_path, STAMP)


def test_the_run_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    link = os.link
    monkeypatch.setattr(os, "fsync", lambda _: steps.append("fsync"))

    def noted(own: Path, path: Path) -> None:
        steps.append("link")
        link(own, path)

    monkeypatch.setattr(os, "link", noted)
    begin_run(tmp_path, STAMP)
    assert steps == ["fsync", "link"]
