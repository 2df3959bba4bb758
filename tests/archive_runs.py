"""What tests of the archive share: links to images, commands, records, and images that harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drawn_once import phantom_files

from deepcovid_edge.decision.record_table import records_of

COMMAND = [sys.executable, "-m", "deepcovid_edge"]
RUN_SECONDS = 280
KILLER, HANGER = b"this image kills its reader", b"this image is never read"
_HARM = f"""
import sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "deepcovid_edge.archive.worker.child":
            return None
        sys.meta_path.remove(Finder)
        import ctypes, time
        from deepcovid_edge.imaging import pictures
        decode = pictures.decode_picture
        def harmful(file):
            if file.data.endswith({KILLER!r}):
                ctypes.string_at(0)
            if file.data.endswith({HANGER!r}):
                time.sleep(1000)
            return decode(file)
        from deepcovid_edge.imaging import reading
        reading.decode_picture = harmful
        return None
sys.meta_path.insert(0, Finder)
"""


def linked_images(folder: Path, count: int, *, contents: int = 6) -> Path:
    """A folder with links to a few drawn images, for a run of any length."""
    drawn = phantom_files(folder.parent / f"{folder.name}-drawn", count=contents)
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:05}.png").symlink_to(drawn[number % contents])
    return folder


def harmful_image(path: Path, ending: bytes) -> None:
    """Make a copy of a linked image that harms its reader; see `harmful_environment`."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data + ending)


def harmful_environment(folder: Path) -> dict[str, str]:
    """An environment in which the reader of a harmful image crashes, or never returns.

    No image here is known to crash a decoder. So Python is told at its start to touch address 0,
    or to sleep, in the very call that decodes such an image.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_HARM)
    places = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(places)}


def run_command(
    *arguments: object, environment: Mapping[str, str] = {}, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `deepcovid-edge` as a user does."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )


def without_timings(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Path -> record but for its timings; every path once."""
    found = {
        record["path"]: {name: value for name, value in record.items() if name != "timings_ms"}
        for record in records
    }
    assert len(found) == len(records), "one record an image"
    return found


def screened(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a folder of results."""
    import pyarrow.parquet as pq

    records = [
        record
        for path in sorted(folder.glob("shard-*.parquet"))
        for record in records_of(pq.read_table(path))
    ]
    return without_timings(records)


def inferred(path: Path) -> dict[str, dict[str, Any]]:
    """The records of `infer`."""
    return without_timings([json.loads(line) for line in path.read_text("utf-8").splitlines()])


def by_name(records: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The records of one folder by the names of their files."""
    return {
        Path(path).name: {**record, "path": Path(path).name} for path, record in records.items()
    }
