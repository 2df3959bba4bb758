"""DICOM files whose headers state body part, view and age in all ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from dicom_files import EXPLICIT, dataset, written
from pydicom.dataset import Dataset
from pydicom.sr._cid_dict import cid_concepts
from pydicom.sr._concepts_dict import concepts
from pydicom.sr._snomed_dict import mapping

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason, WarningCode

Decode = Callable[..., Radiograph]

PIXELS = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (128, 1))
NO_VIEW, AP, UNCLEAR = WarningCode.NO_VIEW, WarningCode.AP, WarningCode.NOT_UNDERSTOOD
CHEST = ("816094009", "SCT", "Chest")
PA = ("272479007", "SCT", "postero-anterior")


def code(value: str, scheme: str = "SCT", meaning: str = "?", **elements: Any) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    for keyword, content in elements.items():
        setattr(item, keyword, content)
    return item


def long_code(keyword: str, value: str) -> Dataset:
    item = Dataset()
    item.CodeMeaning = "?"
    setattr(item, keyword, value)
    return item


def file(syntax: str = EXPLICIT, **elements: Any) -> bytes:
    return written(dataset(PIXELS, **elements), syntax)


def raw(keyword: str, value: bytes, **elements: Any) -> bytes:
    """A file with these bytes as a value, whatever its kind allows."""
    value += b" " * (len(value) % 2)
    place = b"Q" * len(value)
    kind = "LO" if len(place) > 16 else None
    image = dataset(PIXELS, **elements)
    if kind:
        image.add_new(keyword, kind, place.decode())
    else:
        setattr(image, keyword, place.decode())
    return written(image).replace(place, value)


PLACE = "Q" * 16


def placed(template: bytes, value: str) -> bytes:
    """A file with this text where another has `PLACE`."""
    return template.replace(PLACE.encode(), value.encode().ljust(16))


def outcome(decode: Decode, data: bytes) -> Reason | tuple[WarningCode, ...]:
    try:
        return decode(data).warnings
    except NotAssessedError as error:
        return error.reason


def context(group: int) -> Iterator[tuple[str, str]]:
    """Code values of a context group of PS3.16, as pydicom has it, and their retired twins."""
    retired = {new: old for old, new in mapping["SRT"].items()}
    for scheme, names in cid_concepts[group].items():
        for name in names:
            coded: Any = concepts[scheme][name]
            for value, (_, groups) in coded.items():
                if group in groups:
                    yield value, name
                    if value in retired:
                        yield retired[value], name
