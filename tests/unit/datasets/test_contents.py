"""Files with the content of an earlier one: what people read of them."""

from __future__ import annotations

from deepcovid_edge.datasets.contents import repeated_text


def test_one_file_is_not_files() -> None:
    assert repeated_text(1) == "1 file has the content of an earlier file: counted once"
    assert repeated_text(2) == "2 files have the content of an earlier file: counted once"
