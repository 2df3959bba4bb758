"""UIDs that follow from what an object says: the same result has the same UIDs, every time.

PS3.5, annex B.2: a UID may be `2.25.` and a UUID as a decimal number. The UUID is of version 8
(RFC 9562, section 5.8), as its bits come from SHA-256.
"""

from __future__ import annotations

import hashlib
import uuid

REPORT, REPORT_3D, CAPTURE = "sr", "sr3d", "sc"
"""Kinds of objects."""
SERIES, TRACKING, DEVICE, STUDY = "series", "tracking", "device", "study"
"""Kinds of UIDs that belong to an object, a region, a cart, and an image that states no study."""
IMPLEMENTATION_UID = "2.25.302160617795641798962148733338186500924"
"""Implementation Class UID of what this package writes (PS3.7, D.3.3.2)."""
_PREFIX = "2.25."


def derived_uid(*parts: str) -> str:
    """A UID of texts, at most 44 characters long; other texts, or another order, give another."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    bits = bytearray(digest.digest()[:16])
    bits[6] = bits[6] & 0x0F | 0x80  # version
    bits[8] = bits[8] & 0x3F | 0x80  # variant
    return _PREFIX + str(uuid.UUID(bytes=bytes(bits)).int)


def belonging_uid(object_uid: str, kind: str, number: int = 0) -> str:
    """The UID of a series or of what a report tracks.

    Args:
        object_uid: SOP Instance UID of the object that it belongs to.
        kind: `series` or `tracking`.
        number: 0 for the image, from 1 on for its regions.
    """
    return derived_uid(kind, object_uid, str(number))


def device_uid(serial: str) -> str:
    """The UID of a cart by its serial number."""
    return derived_uid(DEVICE, serial)


def stand_in_study_uid(sop_uid: str) -> str:
    """The study of an image that states none."""
    return derived_uid(STUDY, sop_uid)
