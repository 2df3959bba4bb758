"""What a status of a destination means: kept, tried again, or a person's business."""

from __future__ import annotations

import pytest

from deepcovid_edge.cart.send.answers import ANSWERS, GROUPS, answer_of


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, "sent") for status in (0x0000, 0x0001, 0x0107, 0x0111, 0x0116)),
        *((status, "sent") for status in (0xB000, 0xB006, 0xB007)),
        *((status, "permanent") for status in (0xA900, 0xA901, 0xA9FF, 0xC000, 0xC123, 0xCFFF)),
        *((status, "permanent") for status in (0x0112, 0x0117, 0x0122, 0x0124, 0x0211, 0x0212)),
        *((status, "transient") for status in (0xA700, 0xA701, 0xA7FF, 0x0110, 0x0210, 0x0213)),
        *((status, "transient") for status in (0xFE00, 0xD000, 0x0101, 0x9999, 0xFFFF)),
    ],
)
def test_status(status: int, kind: str) -> None:
    found = answer_of(status)
    assert (found.kind, found.status[:6]) == (kind, f"0x{status:04X}")


def test_statuses_of_pynetdicom_that_are_failures_are_never_sent() -> None:
    from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

    for status, (category, _) in STORAGE_SERVICE_CLASS_STATUS.items():
        kind = answer_of(status).kind
        is_there = category in ("Success", "Warning") or status == 0x0111
        assert (kind == "sent") == is_there, hex(status)
    assert set(ANSWERS) & set(GROUPS) == set()
