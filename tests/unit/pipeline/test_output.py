"""Record files: formats, and going on after a kill at any byte."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from deepcovid_edge.decision.record import Prediction, RunFacts, SiteName
from deepcovid_edge.errors import OutputError, UsageError
from deepcovid_edge.manifest import IndeterminateRange
from deepcovid_edge.pipeline import earlier_records, writers
from deepcovid_edge.pipeline.classifier import BY_THE_PICTURE
from deepcovid_edge.pipeline.earlier_records import ShownOptions
from deepcovid_edge.pipeline.writers import RecordFile, make_writer
from deepcovid_edge.reasons import Reason

RUN = RunFacts("m", "ab" * 32, "onnxruntime-cpu", "fp32", ("non", "covid"), "covid", 0.123456789)
RECORDS = [
    Prediction("a.png", RUN, "00", probabilities={"non": 0.9, "covid": 0.1}),
    Prediction('b,"ü".png', RUN, "01", probabilities={"non": 0.2, "covid": 0.8}),
    Prediction("carriage\rreturn.png", RUN, "04", probabilities={"non": 1.0, "covid": 0.0}),
    Prediction("line\nbreak.png", RUN, None, "E_NOT_IMAGE", "Not recognised as an image."),
    Prediction("d\udcff.png", RUN, "03", probabilities={"non": 0.5, "covid": 0.5}),
]


def write(path: Path, records: list[Prediction], kind: str, *, resume: bool = False) -> RecordFile:
    file = RecordFile(path, RUN, kind=kind, resume=resume)
    for record in records:
        file.write(record)
    file.close()
    return file


def paths_in(path: Path, kind: str) -> list[str]:
    text = path.read_bytes().decode(errors="surrogateescape")
    if kind == "csv":
        return [row["path"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    return [json.loads(line)["path"] for line in text.splitlines()]


def test_json_lines_and_csv_say_the_same(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", RECORDS, "jsonl")
    write(tmp_path / "r.csv", RECORDS, "csv")
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    text = (tmp_path / "r.csv").read_bytes().decode(errors="surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    for line, row in zip(lines, rows, strict=True):
        assert row["path"] == line["path"]
        assert row["decision"] == (line["decision"] or "")
        expected = line["probabilities"]["covid"] if line["probabilities"] else None
        assert row["probabilities.covid"] == ("" if expected is None else str(expected))
        assert row["notice"] == line["notice"]


@pytest.mark.parametrize(
    "every",
    [9, pytest.param(1, marks=pytest.mark.slow)],  # thousands of files, each of them synchronised
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_run_torn_at_any_byte_is_gone_on_with(tmp_path: Path, kind: str, every: int) -> None:
    """By default at every ninth, and at all about the ends of lines."""
    whole = tmp_path / f"whole.{kind}"
    write(whole, RECORDS, kind)
    data = whole.read_bytes()
    torn = tmp_path / f"torn.{kind}"
    ends = [match.end() for match in re.finditer(b"\n", data)]
    about_ends = {end + more for end in ends for more in range(-3, 4) if end + more <= len(data)}
    for cut in sorted({0, *range(1, len(data) + 1, every), *about_ends}):
        torn.write_bytes(data[:cut])
        file = RecordFile(torn, RUN, kind=kind, resume=True)
        for record in RECORDS:
            if not file.earlier.holds(record.path):
                file.write(record)
        file.close()
        assert torn.read_bytes() == data, f"cut at byte {cut}"


def test_a_tail_of_zeros_after_power_loss_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, RECORDS[:2], "jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 4096)
    write(path, RECORDS[2:], "jsonl", resume=True)
    assert paths_in(path, "jsonl") == [record.path for record in RECORDS]


def test_refusals_of_the_earlier_part_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, RECORDS[:4], "jsonl")
    assert write(path, [], "jsonl", resume=True).earlier.not_assessed == 1


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.5},
        {"model_sha256": "cd" * 32},
        {"backend": "openvino-cpu"},
        {"indeterminate_range": IndeterminateRange(0.1, 0.2)},
        {"site": SiteName("cart 1", "ef" * 32)},
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_another_model_backend_or_threshold_is_not_mixed_in(
    tmp_path: Path, change: dict[str, object], kind: str
) -> None:
    path = tmp_path / f"r.{kind}"
    write(path, RECORDS[:1], kind)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="use the same model and options"):
        RecordFile(path, replace(RUN, **change), kind=kind, resume=True)  # type: ignore[arg-type]
    assert path.read_bytes() == before


GOOD, SYNTHETIC = RECORDS[0], ("W_SYNTHETIC", "W_OOD")
REFUSED = Prediction("e.png", RUN, "05", "E_OOD", Reason.OOD.sentence)
CHILD = replace(REFUSED, reason="E_AGE", message=f"{Reason.AGE.sentence} ({BY_THE_PICTURE})")
MAPPED = replace(GOOD, heatmap="a.npz", regions=())
DRAWN = replace(MAPPED, overlay="a.png")
OTHER_OPTIONS = [
    (
        replace(GOOD, warnings=("W_OOD",)),
        ShownOptions(),
        "with ood warn, this run is with ood reject",
    ),
    (REFUSED, ShownOptions("warn"), "with ood reject, this run is with ood warn"),
    (replace(REFUSED, reason="E_ORIENT"), ShownOptions("warn"), "with ood reject"),
    (CHILD, ShownOptions("warn"), "with ood reject"),
    (GOOD, ShownOptions(heatmap=True), "without heat maps, this run is with heat maps"),
    (MAPPED, ShownOptions(), "with heat maps, this run is without heat maps"),
    (
        MAPPED,
        ShownOptions(heatmap=True, overlay=True),
        "without pictures of heat maps, this run is with",
    ),
    (DRAWN, ShownOptions(heatmap=True), "with pictures of heat maps, this run is without"),
]
SAME_OPTIONS = [
    (replace(GOOD, warnings=("W_OOD",)), ShownOptions("warn")),
    (replace(GOOD, warnings=SYNTHETIC), ShownOptions()),  # a synthetic image is shown either way
    (REFUSED, ShownOptions()),
    (replace(CHILD, message=f"{Reason.AGE.sentence} (12 years)"), ShownOptions("warn")),
    (REFUSED, ShownOptions(heatmap=True, overlay=True)),
    (replace(GOOD, warnings=("W_NO_HEATMAP",)), ShownOptions(heatmap=True, overlay=True)),
    (DRAWN, ShownOptions(heatmap=True, overlay=True)),
]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize(("record", "options", "said"), OTHER_OPTIONS)
def test_records_of_other_options_are_not_mixed_in(
    tmp_path: Path, record: Prediction, options: ShownOptions, said: str, kind: str
) -> None:
    path = tmp_path / f"r.{kind}"
    write(path, [RECORDS[3], record], kind)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=f"made {said}"):
        RecordFile(path, RUN, kind=kind, resume=True, options=options)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize(("record", "options"), SAME_OPTIONS)
def test_records_that_other_options_would_not_change_are_gone_on_with(
    tmp_path: Path, record: Prediction, options: ShownOptions, kind: str
) -> None:
    path = tmp_path / f"r.{kind}"
    write(path, [RECORDS[3], record], kind)
    file = RecordFile(path, RUN, kind=kind, resume=True, options=options)
    file.close()
    assert file.earlier.holds(record.path)


@pytest.mark.parametrize(
    "content",
    [
        *("not records\nat all\n", '{"a": 1}\n{"b": 2}\n'),
        # Found by fuzz.py: each was a traceback.
        *('{"path": {}, "status": "assessed"}\n{}\n', '{"path": "a.png"}\n{}\n'),
    ],
)
def test_a_file_of_something_else_is_not_destroyed_by_resume(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(content)
    with pytest.raises(OutputError, match="not a record"):
        RecordFile(path, RUN, kind="jsonl", resume=True)
    assert path.read_text() == content


def test_a_csv_of_something_else_is_not_destroyed_by_resume(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("name,age\nx,1\n")
    with pytest.raises(OutputError, match="not a record"):
        RecordFile(path, RUN, kind="csv", resume=True)
    assert path.read_text() == "name,age\nx,1\n"


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("csv", lambda data: data.replace(b"a.png", b"a" * 200_000), "no file of records"),
        ("csv", lambda data: data.replace(b"abab", b"ab\nab", 1), "use the same model"),
        ("jsonl", lambda data: b"[" * 100_000 + b"\n" + data, "no file of records"),
    ],
)
def test_damaged_file_of_records_gives_one_sentence(
    tmp_path: Path, kind: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    """Found by fuzz.py."""
    path = tmp_path / f"r.{kind}"
    write(path, RECORDS, kind)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((OutputError, UsageError), match=message) as caught:
        RecordFile(path, RUN, kind=kind, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_damaged_record_in_the_middle_is_not_thrown_away_silently(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"r.{kind}"
    write(path, RECORDS, kind)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"torn\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(OutputError, match="not a record"):
        RecordFile(path, RUN, kind=kind, resume=True)
    assert path.read_bytes() == b"".join(lines)


def test_two_processes_cannot_write_one_file(tmp_path: Path) -> None:
    first = RecordFile(tmp_path / "r.jsonl", RUN, kind="jsonl", resume=False)
    with pytest.raises(OutputError, match="another deepcovid-edge"):
        RecordFile(tmp_path / "r.jsonl", RUN, kind="jsonl", resume=True)
    first.close()


def test_without_resume_an_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, RECORDS, "jsonl")
    write(path, RECORDS[:1], "jsonl")
    assert paths_in(path, "jsonl") == ["a.png"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_run_with_band_and_site_is_gone_on_with(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"r.{kind}"
    run = replace(
        RUN, indeterminate_range=IndeterminateRange(0.1, 0.25), site=SiteName("cart, 1", "ef" * 32)
    )
    for resume in (False, True):
        file = RecordFile(path, run, kind=kind, resume=resume)
        for record in RECORDS:
            if not file.earlier.holds(record.path) and (resume or record is RECORDS[0]):
                file.write(replace(record, run=run))
        file.close()
    assert paths_in(path, kind) == [record.path for record in RECORDS]


def test_a_csv_of_another_version_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    write(path, RECORDS[:1], "csv")
    text = path.read_text().replace('"site.name"', '"place"')
    path.write_text(text)
    with pytest.raises(UsageError, match="columns of another model or version"):
        RecordFile(path, RUN, kind="csv", resume=True)
    assert path.read_text() == text


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_images_refused_for_want_of_room_are_judged_when_it_goes_on(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"r.{kind}"
    full = [replace(record, reason="E_DISK", probabilities=None) for record in RECORDS[2:4]]
    write(path, [*RECORDS[:2], *full, RECORDS[4]], kind)
    file = RecordFile(path, RUN, kind=kind, resume=True)
    assert [file.earlier.holds(record.path) for record in RECORDS] == [True] * 2 + [False] * 3
    for record in RECORDS[2:]:
        file.write(record)
    file.close()
    assert paths_in(path, kind) == [record.path for record in RECORDS]
    assert "E_DISK" not in path.read_text(errors="surrogateescape")


def test_dev_null_and_a_full_disk(tmp_path: Path) -> None:
    write(Path("/dev/null"), RECORDS, "jsonl")
    full = RecordFile(Path("/dev/full"), RUN, kind="jsonl", resume=False)
    with pytest.raises(OutputError, match="No space left"):
        full.write(RECORDS[0])


def test_a_pipe_waits_for_its_reader_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(writers, "_READER_SECONDS", 0.2)
    with pytest.raises(OutputError, match="pipe: nobody reads this pipe"):
        RecordFile(pipe, RUN, kind="jsonl", resume=False)
    monkeypatch.setattr(writers, "_READER_SECONDS", 60.0)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        file = RecordFile(pipe, RUN, kind="jsonl", resume=False)
        file.write(RECORDS[0])
        file.close()
        assert json.loads(read.result())["path"] == "a.png"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        RecordFile(tmp_path / "file" / "r.jsonl", RUN, kind="jsonl", resume=False)


def test_a_file_without_a_record_has_its_header_and_one_that_goes_on_has_one(
    tmp_path: Path,
) -> None:
    write(tmp_path / "r.csv", [], "csv")
    header = (tmp_path / "r.csv").read_text()
    assert header.startswith('"schema_version",')
    assert header.count("\n") == 1
    write(tmp_path / "r.csv", RECORDS[:1], "csv", resume=True)
    write(tmp_path / "r.csv", [], "csv", resume=True)
    assert (tmp_path / "r.csv").read_text().startswith(header)
    assert paths_in(tmp_path / "r.csv", "csv") == ["a.png"]


def test_the_table_shows_word_sign_probability_and_reason() -> None:
    stream = io.StringIO()
    writer = make_writer("table", stream, RUN)
    for record in RECORDS:
        writer.write(record)
    writer.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].split() == ["image", "result", "covid"]
    assert lines[1].split() == ["a.png", "○", "negative", "0.100"]
    assert "▲ positive       0.800" in lines[2]
    assert "line?break.png" in lines[4]
    assert "! not assessed" in lines[4]
    assert "Not recognised" in lines[4]
    assert lines[-1] == "Research use only. Not a medical device."


def test_sentences_stay_in_their_column_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name, value in {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    writer = make_writer("table", stream, RUN)
    message = f"{Reason.VIEW.sentence} (marked as LL)"
    writer.write(Prediction("images/lateral.dcm", RUN, reason=Reason.VIEW.code, message=message))
    writer.close()
    _, first, *more, _ = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()
    assert max(map(len, (first, *more))) <= 80
    column = first.index("Lateral")
    assert all(line[:column].isspace() for line in more)
    assert " ".join(line[column:].strip() for line in (first, *more)) == message


def test_an_image_too_close_to_call_has_its_own_word_and_sign() -> None:
    run = replace(RUN, indeterminate_range=IndeterminateRange(0.1, 0.2))
    stream = io.StringIO()
    writer = make_writer("table", stream, RUN)
    for record in RECORDS[:2]:
        writer.write(replace(record, run=run))
    assert [line.split()[1:3] for line in stream.getvalue().splitlines()[1:]] == [
        ["◆", "indeterminate"],
        ["▲", "positive"],  # 0.2 is the first that is called
    ]


def judged(place: Path, content: bytes | None, reason: str | None) -> tuple[Path, Prediction]:
    """An image file and its record; its content then is what the record saw."""
    path = place / f"{reason or 'good'}.png"
    path.write_bytes(content or b"")
    sha256 = None if content is None else hashlib.sha256(content).hexdigest()
    shares = None if reason else {"non": 0.1, "covid": 0.9}
    return path, Prediction(str(path), RUN, sha256, reason, probabilities=shares)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_resume_takes_up_files_that_were_sent_again(tmp_path: Path, kind: str) -> None:
    output = tmp_path / f"r.{kind}"
    made = [
        judged(tmp_path, b"good", None),
        judged(tmp_path, b"cut", "E_TRUNCATED"),
        judged(tmp_path, None, "E_UNREADABLE"),
        judged(tmp_path, b"blank", "E_BLANK"),
    ]
    write(output, [record for _, record in made], kind)
    good, cut, unreadable, blank = (path for path, _ in made)
    earlier = RecordFile(output, RUN, kind=kind, resume=True)
    assert [*earlier.earlier.left_of([good, cut, blank])] == []  # nothing has changed
    earlier.close()
    cut.write_bytes(b"whole")
    good.write_bytes(b"another")
    file = RecordFile(output, RUN, kind=kind, resume=True)
    new = tmp_path / "new.png"
    assert [*file.earlier.left_of([good, cut, unreadable, blank, new])] == [
        good,
        cut,
        unreadable,  # it can be read now
        new,
    ]
    assert (file.earlier.again, file.earlier.not_assessed) == (3, 1)
    file.write(replace(made[1][1], sha256=hashlib.sha256(b"whole").hexdigest(), reason=None))
    file.close()
    again = RecordFile(output, RUN, kind=kind, resume=True)
    assert [*again.earlier.left_of([cut])] == []  # its last record counts
    again.close()


def test_resume_knows_an_image_by_another_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link is a name of its own; what `..` leads to behind one, the disk says."""
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "other", "far/away"):
        Path(folder).mkdir(parents=True)
    Path("link").symlink_to("far/away")
    path, record = judged(Path("images"), b"good", None)
    write(tmp_path / "r.jsonl", [record], "jsonl")
    for place in ("good.png", "link/good.png", "far/good.png"):
        Path(place).write_bytes(b"good")
    file = RecordFile(tmp_path / "r.jsonl", RUN, kind="jsonl", resume=True)
    same = [path, path.absolute(), Path("other/../images/good.png")]
    assert [*file.earlier.left_of(same)] == []
    others = [Path("good.png"), Path("link/good.png"), Path("link/../good.png")]
    assert [*file.earlier.left_of(others)] == others
    file.close()
    write(tmp_path / "far.jsonl", [replace(record, path="link/../good.png")], "jsonl")
    far = RecordFile(tmp_path / "far.jsonl", RUN, kind="jsonl", resume=True)
    assert [*far.earlier.left_of([tmp_path / "far/good.png", Path("good.png")])] == [
        Path("good.png")
    ]
    far.close()


def test_resume_does_not_read_what_has_not_changed_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, record = judged(tmp_path, b"good", None)
    write(tmp_path / "r.jsonl", [record], "jsonl")
    later = path.stat().st_ctime + 2 * 86_400
    os.utime(tmp_path / "r.jsonl", (later, later))
    file = RecordFile(tmp_path / "r.jsonl", RUN, kind="jsonl", resume=True)
    monkeypatch.setattr(earlier_records, "read_source", None)  # to read it would be an error
    assert [*file.earlier.left_of([path])] == []
    file.close()
