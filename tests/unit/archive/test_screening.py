"""What people read of a run over an archive."""

from __future__ import annotations

import pytest

from deepcovid_edge.archive.screening import Screening
from deepcovid_edge.archive.shards import Counts


@pytest.mark.parametrize(
    ("images", "summary", "first_note", "note"),
    [
        (
            1,
            "1 image done: 0 positive, 0 negative, 1 not assessed. 1 image was done before",
            "1 image could not be read before: their shards, 1 image in all, are assessed again.",
            "1 image could not be read: the same command tries again.",
        ),
        (
            2,
            "2 images done: 0 positive, 0 negative, 2 not assessed. 2 images were done before",
            "2 images could not be read before: their shards, 2 images in all, are assessed again.",
            "2 images could not be read: the same command tries again.",
        ),
    ],
)
def test_one_image_is_not_images(images: int, summary: str, first_note: str, note: str) -> None:
    counts = Counts(not_assessed=images, unreadable=images)
    screening = Screening(before=counts, now=counts, again=counts, unread=images)
    assert screening.summary("done") == summary
    assert [*screening.first_notes()] == [first_note]
    assert [*screening.notes()] == [note]
