"""What a run is: the stamp that every shard carries, and the folder's `_run.json`.

Two runs are the same where every record would be: model file, variant, backend, limits, site file,
version of this package, images and their order. A folder takes the records of one run alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepcovid_edge.archive.images.image_list import ImageList
from deepcovid_edge.decision.record import RunFacts, SiteName
from deepcovid_edge.errors import DataError, OutputError, UsageError
from deepcovid_edge.files import locked
from deepcovid_edge.manifest import VERSION, IndeterminateRange

RUN_FILE = "_run.json"
SCHEMA_VERSION = 1
SHARD_IMAGES = 10_000
_CREATE_SECONDS = 2.0
"""Longest that a file is empty between its creation and its content."""
_LOOK_SECONDS = 0.01


@dataclass(frozen=True)
class RunStamp:
    """What two runs must have in common to share a folder.

    Attributes:
        version: Version of this package.
        facts: What every record has in common, as plain values.
        ood: `reject` or `warn`.
        images: Number of images.
        fingerprint: Hash of the images, with size and time of each, and of their order.
        shard_images: Images of a shard.
        schema_version: Version of this format.
    """

    version: str
    facts: Mapping[str, Any]
    ood: str
    images: int
    fingerprint: str
    shard_images: int = SHARD_IMAGES
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def of(cls, facts: RunFacts, ood: str, images: ImageList, shard_images: int) -> RunStamp:
        """The stamp of a run that is about to begin."""
        return cls(VERSION, plain_facts(facts), ood, images.count, images.fingerprint, shard_images)

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.images // self.shard_images)

    def rows(self, shard: int) -> tuple[int, int]:
        """The first row of a shard, and the one behind its last."""
        start = shard * self.shard_images
        return start, min(start + self.shard_images, self.images)

    @property
    def run_facts(self) -> RunFacts:
        """What every record has in common."""
        return facts_of(self.facts)

    @property
    def digest(self) -> str:
        """A hash of all this."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()

    def as_json(self) -> str:
        """All this as JSON."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> RunStamp:
        """The stamp that JSON states.

        Raises:
            ValueError: It is not one.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"expected schema_version {SCHEMA_VERSION}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(str(error)) from error

    def differences(self, other: RunStamp) -> dict[str, tuple[Any, Any]]:
        """Where another stamp differs: name -> the value here and there."""
        here, there = ({**asdict(one), **one.facts} for one in (self, other))
        names = [name for name in here if name not in ("facts", "threshold")]
        found = {name: (here[name], there.get(name)) for name in [*names, "threshold"]}
        return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


def plain_facts(facts: RunFacts) -> dict[str, Any]:
    """Facts of a run as JSON holds them."""
    return dict(json.loads(json.dumps(asdict(facts))))


def facts_of(values: Mapping[str, Any]) -> RunFacts:
    """Facts of a run from plain values."""
    indeterminate, site = values["indeterminate_range"], values["site"]
    return RunFacts(
        **{
            **values,
            "classes": tuple(values["classes"]),
            "warnings": tuple(values["warnings"]),
            "indeterminate_range": IndeterminateRange(**indeterminate) if indeterminate else None,
            "site": SiteName(**site) if site else None,
        }
    )


def read_stamp(folder: Path) -> RunStamp | None:
    """The stamp of a folder; None where no run has begun, or a power cut left an empty file.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / RUN_FILE
    try:
        text = _text(path)
        return RunStamp.from_json(text) if text else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not the run of a results folder ({error}): use another folder"
        ) from error


def _text(path: Path) -> str:
    """The text of a file; one that is empty is waited for, since another process may write it."""
    ends = time.monotonic() + _CREATE_SECONDS
    while not (text := path.read_text("utf-8")) and time.monotonic() < ends:
        time.sleep(_LOOK_SECONDS)
    return text


def begin_run(folder: Path, stamp: RunStamp) -> None:
    """Make the folder that of a run; the first of several that begin at once decides.

    Raises:
        UsageError: The folder is another run's.
        OutputError: The folder cannot be written.
    """
    if (found := read_stamp(folder)) is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = _first(folder, stamp)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    check_same(folder, found, stamp)


def _first(folder: Path, stamp: RunStamp) -> RunStamp:
    """Write the stamp, unless another process was faster; the one that is there now."""
    if any(folder.glob("shard-*.parquet")):
        raise UsageError(
            f"output: {folder} has shards but no {RUN_FILE}, or an empty one: use another folder"
        )
    # Containers give the same process ids, and `tempfile` would make a file for its owner alone.
    own = folder / f"{RUN_FILE}.{secrets.token_hex(8)}.part"
    with own.open("w", encoding="utf-8") as stream:
        stream.write(stamp.as_json())
        stream.flush()
        os.fsync(stream.fileno())  # a power cut after the link leaves the content too
    try:
        _remove_empty(folder / RUN_FILE)
        _name_first(own, folder / RUN_FILE)
    finally:
        own.unlink(missing_ok=True)
    return read_stamp(folder) or stamp


def _remove_empty(path: Path) -> None:
    """Remove a file that stays empty: no other process writes it."""
    with suppress(FileNotFoundError):
        if path.stat().st_size:
            return
        with locked(path.parent, path.name):  # else a second process might remove a new one
            if not _text(path):
                path.unlink()


def _name_first(own: Path, path: Path) -> None:
    """Give a file its name if no other has it; a rename would replace the other."""
    try:
        os.link(own, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links, such as exFAT
        with suppress(FileExistsError), path.open("xb") as stream:
            try:
                stream.write(own.read_bytes())
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                path.unlink()
                raise


def check_same(folder: Path, found: RunStamp, stamp: RunStamp) -> None:
    """Check that a folder's run is the one that is asked for.

    Raises:
        UsageError: It is another.
    """
    if not (differing := found.differences(stamp)):
        return
    name, (there, here) = next(iter(differing.items()))
    raise UsageError(
        f"output: {folder} has the records of another run: {', '.join(differing)} differ "
        f"({name}: {_shown(there)} there, {_shown(here)} now): use the same manifest, model and "
        "settings, or another folder"
    )


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
