"""UIDs of objects follow from what they say."""

from __future__ import annotations

import uuid

from deepcovid_edge.cart.objects.uids import (
    belonging_uid,
    derived_uid,
    device_uid,
    stand_in_study_uid,
)

PARTS = ("1.2.3", "aa", "bb", "cc", "sr")


def test_a_uid_is_a_uuid_of_the_right_version_and_length() -> None:
    for number in range(200):
        uid = derived_uid(str(number))
        prefix, _, digits = uid.rpartition(".")
        found = uuid.UUID(int=int(digits))
        assert prefix == "2.25"
        assert digits == str(int(digits))
        assert (found.variant, found.bytes[6] >> 4) == (uuid.RFC_4122, 8)
        assert len(uid) <= 44


def test_each_part_counts_and_so_does_its_place() -> None:
    same = derived_uid(*PARTS)
    assert same == derived_uid(*PARTS)
    others = {
        derived_uid(*(part + "x" * (place == n) for place, part in enumerate(PARTS)))
        for n in range(len(PARTS))
    }
    assert len(others | {same}) == len(PARTS) + 1
    assert derived_uid("ab", "c") != derived_uid("a", "bc")


def test_uids_of_other_kinds_are_others() -> None:
    uid = derived_uid(*PARTS)
    uids = {
        belonging_uid(uid, kind, number) for kind in ("series", "tracking") for number in (0, 1)
    }
    uids |= {device_uid("1.2.3"), stand_in_study_uid("1.2.3"), uid}
    assert len(uids) == 7
