"""Duplicates in a run: identical files keep their first result, changed ones get a warning.

A cart gets images twice: a modality that sends again after a broken connection, a folder that was
copied. Whatever thread or batch an image fell into the second time, its result is the first one's.
Another picture under the identifier of an earlier image is a re-export or a mix-up: it is
classified, and its record says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.reasons import WarningCode

Value = TypeVar("Value")
MOST = 100_000
"""Images that are remembered, the newest: some 40 MB at most, however long a run is."""


class Duplicates:
    """What a run has seen. Called in the order of the images, by one thread.

    Attributes:
        same: Images whose bytes had come before.
    """

    def __init__(self, most: int = MOST) -> None:
        self.same = 0
        self._most = most
        self._contents: dict[int, int] = {}
        self._results: dict[int, Mapping[str, float]] = {}

    @property
    def has_uids(self) -> bool:
        """Whether an image had a UID to compare."""
        return bool(self._contents)

    def warned(self, record: Prediction, uid: str) -> Prediction:
        """The record of an image, with `W_DUP_UID` where its UID came before with other bytes.

        Args:
            record: With the image's hash.
            uid: SOP instance UID of a DICOM image; empty for others.
        """
        if not uid or record.sha256 is None:
            return record
        content = _number(record.sha256)
        if self._kept(self._contents, uid_number(uid), content) == content:
            return record
        return replace(record, warnings=(*record.warnings, WarningCode.DUPLICATE_UID.code))

    def settled(self, record: Prediction) -> Prediction:
        """The record of an assessed image, with the result that its bytes got first."""
        if record.sha256 is None or record.probabilities is None:
            return record
        first = self._kept(self._results, _number(record.sha256), record.probabilities)
        if first is record.probabilities:
            return record
        self.same += 1
        return replace(record, probabilities=first)

    def _kept(self, known: dict[int, Value], key: int, value: Value) -> Value:
        """What is known under a key, which is `value` where nothing was."""
        if key not in known and len(known) >= self._most:
            del known[next(iter(known))]
        return known.setdefault(key, value)


def uid_number(uid: str) -> int:
    """The first 64 bits of SHA-256 of a UID, signed as databases have them."""
    digest = hashlib.sha256(uid.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _number(sha256: str) -> int:
    """The first eight bytes of a hash: enough to tell images apart, and small."""
    return int(sha256[:16], 16)
