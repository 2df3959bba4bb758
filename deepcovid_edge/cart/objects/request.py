"""The orders that a report answers: Referenced Request Sequence (PS3.3, table C.17-2).

An image states its orders in its Request Attributes Sequence (PS3.3, C.7.3.1 and table 10-9). The
values move byte for byte; what the sequence of the report must have besides is there and empty.
"""

from __future__ import annotations

from collections.abc import Mapping

from deepcovid_edge.cart.objects.encoding import encode_sequence, encode_value, items_of, value_of

REQUEST, REQUEST_ATTRIBUTES = 0x0040A370, 0x00400275
"""Referenced Request Sequence of a report, Request Attributes Sequence of an image."""
_ACCESSION, _STUDY_UID = 0x00080050, 0x0020000D
_PROCEDURE_ID, _PLACER, _FILLER = 0x00401001, 0x00402016, 0x00402017
_ORDER = (_ACCESSION, _PROCEDURE_ID, _PLACER, _FILLER)
"""One of these with a value is an order."""
_REQUIRED = {
    _ACCESSION: "SH",
    0x00081110: "SQ",  # Referenced Study Sequence
    0x00321060: "LO",  # Requested Procedure Description
    0x00321064: "SQ",  # Requested Procedure Code Sequence
    _PROCEDURE_ID: "SH",
    _PLACER: "LO",
    _FILLER: "LO",
}
"""Of type 2: present, with or without a value."""
_OPTIONAL = (0x00080005, 0x00080051, 0x00400026, 0x00400027, 0x00401002, 0x0040100A, _STUDY_UID)
"""Character set of the item, issuers of accession and order numbers, reason for the procedure."""


def referenced_request(copied: Mapping[int, bytes], study_uid: str) -> bytes | None:
    """The Referenced Request Sequence of a report.

    Args:
        copied: Tag -> element of the image in Explicit VR Little Endian.
        study_uid: Study of the report; an order may name another one.

    Returns:
        None where the image states no order.
    """
    attributes = copied.get(REQUEST_ATTRIBUTES)
    if attributes is None:
        return None
    orders = [
        _request(one, copied, study_uid)
        for one in items_of(attributes)
        if any(_has_value(one, tag) for tag in _ORDER)
    ]
    return encode_sequence(REQUEST, orders) if orders else None


def _request(
    order: Mapping[int, bytes], copied: Mapping[int, bytes], study_uid: str
) -> dict[int, bytes]:
    """An item of the report's sequence, of an item of the image's."""
    request = {tag: encode_value(tag, kind, b"") for tag, kind in _REQUIRED.items()}
    if _ACCESSION in copied:
        request[_ACCESSION] = copied[_ACCESSION]
    request[_STUDY_UID] = encode_value(_STUDY_UID, "UI", study_uid.encode("latin-1"))
    return request | {tag: order[tag] for tag in (*_REQUIRED, *_OPTIONAL) if _has_value(order, tag)}


def _has_value(item: Mapping[int, bytes], tag: int) -> bool:
    return tag in item and bool(value_of(item[tag]).strip(b" \0"))
