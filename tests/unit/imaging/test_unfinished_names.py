"""Names that say that a file is still written: a command and the cart know the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepcovid_edge.cart.receive.listing import is_passed_over
from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.files import read_bytes
from deepcovid_edge.reasons import Reason

NAMES = (
    *("a.part", "a.png.partial", "a.tmp", "a.png.TEMP", "a.crdownload", "a.filepart"),
    *("a.png.download", "a.png~"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_still_written_is_not_read(name: str, tmp_path: Path, pictures: Any) -> None:
    path = tmp_path / name
    path.write_bytes(pictures.encode(pictures.image(), "PNG"))
    with pytest.raises(NotAssessedError) as caught:
        read_bytes(path)
    assert caught.value.reason is Reason.INCOMPLETE
    assert is_passed_over(name)


@pytest.mark.parametrize("name", ["a.png", "part", "template.png", "a.temporary", "~a.png"])
def test_a_finished_file_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    assert read_bytes(path).data == b"x"
