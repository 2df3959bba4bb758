"""What an image may be read from: an open file gives its bytes in whatever pieces it likes."""

from __future__ import annotations

import io
from typing import Any, BinaryIO, cast

import pytest

from deepcovid_edge.errors import NotAssessedError, UsageError
from deepcovid_edge.imaging.files import ImageBytes, read_source
from deepcovid_edge.reasons import Reason

CONTENT = bytes(range(256)) * 40


class InPieces(io.RawIOBase):
    """A file without a buffer, such as a socket's: a read may give less than was asked for."""

    def __init__(self) -> None:
        self._left = memoryview(CONTENT)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part, self._left = self._left[:1000], self._left[1000:]
        buffer[: len(part)] = part
        return len(part)


@pytest.mark.parametrize("source", [io.BytesIO(CONTENT), InPieces(), ImageBytes("x", CONTENT)])
def test_all_bytes_of_a_source_are_read(source: Any) -> None:
    assert read_source(source).data == CONTENT


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_of_another_type_become_bytes(kind: Any) -> None:
    """simplejpeg takes no memoryview."""
    data = read_source(ImageBytes("x", kind(CONTENT))).data
    assert type(data) is bytes
    assert data == CONTENT


def test_a_file_that_was_opened_as_text_is_named_as_such() -> None:
    with pytest.raises(NotAssessedError, match="opened as text") as caught:
        read_source(cast(BinaryIO, io.StringIO("text")))
    assert caught.value.reason is Reason.UNREADABLE


def test_what_is_no_source_is_a_wrong_use() -> None:
    with pytest.raises(UsageError, match="got int, expected a path, an open file or `ImageBytes`"):
        read_source(cast(Any, 5))
