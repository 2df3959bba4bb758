"""Files that torch wrote before 1.6: cut out their source snippets, so that they can be read.

`torch.save(model)` then put every class of a module into the pickle as a persistent object of four
parts: the word `module`, the class, its source file, its source text (torch/serialization.py,
`_legacy_save`). torch's restricted unpickler accepts only storages as persistent objects. So the
four parts are replaced by the class, which the unpickler checks like any other. The pickle is
edited as a list of operations; none of them is run.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass, field
from itertools import pairwise

_HEADERS = 3
"""Pickles before the object: magic number, protocol, machine."""
_ZIP = b"PK\x03\x04"
_PUT, _GET = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
_STRINGS = ("BINUNICODE", "SHORT_BINSTRING", "BINSTRING")


@dataclass
class _Operation:
    name: str
    argument: object
    content: bytes


@dataclass
class _Editor:
    """Copies operations, except those around the classes of modules.

    Attributes:
        kept: Operations of the new pickle.
        memo: Place in the unpickler's memo to the string that was put there.
        cut: Places whose strings are no longer put there.
    """

    kept: list[_Operation] = field(default_factory=list)
    memo: dict[object, _Operation] = field(default_factory=dict)
    cut: set[object] = field(default_factory=set)

    def take(self, operation: _Operation) -> None:
        if operation.name == "BINPERSID" and (start := self._module_start()) is not None:
            self._cut_from(start)
            return
        if operation.name in _PUT and self.kept and self.kept[-1].name in _STRINGS:
            self.memo[operation.argument] = self.kept[-1]
        self.kept.append(operation)

    def _module_start(self) -> int | None:
        """Where the four parts of a module's class begin, if they end here."""
        for index in range(len(self.kept) - 1, -1, -1):
            if self.kept[index].name == "MARK":
                first = self._string(self.kept[index + 1])
                return index if first in ("module", b"module") else None
            if self.kept[index].name in ("BUILD", "REDUCE", "BINPERSID"):
                return None
        return None

    def _string(self, operation: _Operation) -> object:
        found = self.memo.get(operation.argument) if operation.name in _GET else operation
        return found.argument if found and found.name in _STRINGS else None

    def _cut_from(self, start: int) -> None:
        parts, self.kept = self.kept[start:], self.kept[:start]
        for before, part in pairwise(parts):
            if part.name == "GLOBAL" or (part.name in _PUT and before.name == "GLOBAL"):
                self.kept.append(part)
            elif part.name in _PUT:
                self.cut.add(part.argument)

    def written(self) -> bytes:
        """The new pickle; strings whose first mention was cut are written where they are used."""
        return b"".join(
            self.memo[item.argument].content
            if item.name in _GET and item.argument in self.cut and item.argument in self.memo
            else item.content
            for item in self.kept
        )


def without_sources(data: bytes) -> bytes:
    """The same file without source snippets; files of today's format stay unchanged.

    Raises:
        ValueError: The bytes are not a sequence of pickles.
    """
    if data.startswith(_ZIP):
        return data
    stream = io.BytesIO(data)
    for _ in range(_HEADERS):
        for _operation in pickletools.genops(stream):
            pass
    start = stream.tell()
    editor = _Editor()
    for operation in _operations(stream, data):
        editor.take(operation)
    return data[:start] + editor.written() + data[stream.tell() :]


def _operations(stream: io.BytesIO, data: bytes) -> list[_Operation]:
    found = [(code.name, argument, place) for code, argument, place in pickletools.genops(stream)]
    ends = [*(place or 0 for _, _, place in found[1:]), stream.tell()]
    return [
        _Operation(name, argument, data[place or 0 : end])
        for (name, argument, place), end in zip(found, ends, strict=True)
    ]
