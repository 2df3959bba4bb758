"""A program may be started with streams that are closed, full, or not UTF-8: no record is lost."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "jetson/golden"
NAMES = ("a.png", "b-胸部-ü.png", "c\udcff.png")
COMMAND = f"{sys.executable} -m deepcovid_edge"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with images under odd names, and one with a site's data."""
    for name in NAMES:
        (tmp_path / "images").mkdir(exist_ok=True)
        shutil.copy(GOLDEN / "above.png", tmp_path / "images" / name)
    for label, name in (("normal", "below"), ("covid", "above")):
        (tmp_path / "data" / label).mkdir(parents=True)
        shutil.copy(GOLDEN / f"{name}.png", tmp_path / "data" / label)
    return tmp_path


def shell(place: Path, line: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'export'}", **variables}
    command = ["bash", "-c", line.replace("DE", COMMAND)]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    "streams",
    ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full", "2> >(exit 0)"],
)
def test_streams_that_are_closed_or_full_cost_no_record(streams: str, place: Path) -> None:
    done = shell(place, f"DE infer images -o records.jsonl {streams}")
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    records = [json.loads(line) for line in (place / "records.jsonl").read_text().splitlines()]
    assert [record["path"] for record in records] == [f"images/{name}" for name in NAMES]


@pytest.mark.parametrize(
    ("line", "makes"),
    [
        ("DE heatmap images --method activation -o maps", "maps"),
        ("DE site-check data -o site.json", "site.json"),
        ("DE sample drawn --count 1", "drawn"),
        ("DE info", ""),
        ("DE --version", ""),
    ],
)
def test_every_command_does_its_work_without_any_stream(line: str, makes: str, place: Path) -> None:
    done = shell(place, f"{line} <&- >&- 2>&-")
    assert done.returncode == (3 if "site-check" in line else 0)  # two images are too few
    assert (place / makes).exists()


def test_records_that_have_nowhere_to_go_are_an_error(place: Path) -> None:
    done = shell(place, "DE infer images >&-")
    assert done.returncode == 2
    assert b"--output" in done.stderr


def test_no_library_writes_into_the_records_in_place_of_a_closed_stream(place: Path) -> None:
    """The next file that is opened gets the number of a closed stream."""
    program = "import os; print(os.readlink('/proc/self/fd/2'))"
    done = shell(
        place,
        f'{sys.executable} -c "from deepcovid_edge.device.streams import open_streams; '
        f'open_streams(); {program}" 2>&-',
    )
    assert done.stdout == b"/dev/null\n"


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_records_are_whole_on_a_stream_that_is_not_utf_8(
    variables: dict[str, str], place: Path
) -> None:
    done = shell(place, "DE infer images --csv", **variables)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    rows = csv.DictReader(io.StringIO(done.stdout.decode("utf-8", "surrogateescape")))
    assert [row["path"] for row in rows] == [f"images/{name}" for name in NAMES]


def test_messages_and_tables_replace_the_letters_that_a_stream_does_not_have(place: Path) -> None:
    for encoding in ("ascii", "latin-1:strict"):
        done = shell(place, "DE infer images --table", PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stdout.count(b"images/")) == (0, 3), done.stderr
    missing = shell(place, "DE infer no-胸部.png", PYTHONIOENCODING="ascii:strict")
    assert missing.returncode == 6
    assert b"no such file" in missing.stderr
    named = shell(place, "DE site-check data --name 胸部", PYTHONIOENCODING="latin-1:strict")
    assert (named.returncode, b"Traceback" in named.stderr) == (3, False)
