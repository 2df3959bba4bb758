"""Explicit into implicit VR: the same elements, every value byte for byte."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from dicom_files import dataset, written
from pydicom import Dataset, dcmread
from pydicom.filewriter import write_dataset

from deepcovid_edge.cart.send.implicit import to_implicit
from deepcovid_edge.imaging.dicom.syntaxes import file_meta_end


def explicit(image: Dataset) -> bytes:
    file = written(image)
    return file[file_meta_end(file) :]


def read_implicit(data: bytes) -> Dataset:
    return dcmread(io.BytesIO(data), force=True)


def image(**more: Any) -> Dataset:
    made = dataset(np.arange(64, dtype=np.uint8).reshape(8, 8), **more)
    inner = Dataset()
    inner.CodeValue, inner.CodeMeaning = "1", "one"
    outer = Dataset()
    outer.ConceptNameCodeSequence = [inner, inner]
    outer.ContentSequence = []
    made.ContentSequence = [outer, Dataset(), outer]
    made.add_new(0x00091001, "UN", b"private")
    made.add_new(0x00090010, "LO", "MAKER")
    return made


def test_it_reads_as_the_same_data_set() -> None:
    made = image()
    there = read_implicit(to_implicit(explicit(made)))
    built = dcmread(io.BytesIO(written(made)))
    assert there.to_json_dict() == built.to_json_dict()


def test_it_is_what_pydicom_writes() -> None:
    made = image()
    del made[0x00091001]
    stream: Any = io.BytesIO()
    from pydicom.filebase import DicomFileLike

    place = DicomFileLike(stream)
    place.is_little_endian, place.is_implicit_VR = True, True
    write_dataset(place, dcmread(io.BytesIO(written(made))))
    assert to_implicit(explicit(made)) == stream.getvalue()


def test_lengths_that_are_not_stated_are() -> None:
    made = image()
    for item in made.ContentSequence:
        item.is_undefined_length_sequence_item = True
    made["ContentSequence"].is_undefined_length = True
    data = explicit(made)
    assert b"\xff\xff\xff\xff" in data
    there = to_implicit(data)
    assert b"\xfe\xff\xdd\xe0" not in there
    assert read_implicit(there).to_json_dict() == dcmread(io.BytesIO(written(made))).to_json_dict()


def test_text_in_a_wrong_character_set_stays_as_it_is() -> None:
    data = explicit(dataset(np.zeros((2, 2), np.uint8), PatientName="R_ntgen^Anna"))
    broken = data.replace(b"R_ntgen", b"R\xf6ntgen")
    assert b"R\xf6ntgen^Anna" in to_implicit(broken)


def test_one_that_is_cut_off_or_compressed_is_refused_never_altered() -> None:
    data = explicit(image())
    whole = to_implicit(data)
    for end in range(1, len(data), 7):
        try:
            part = to_implicit(data[:end])
        except ValueError:
            continue
        assert whole.startswith(part)
    pixels = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
    with pytest.raises(ValueError, match="compressed"):
        to_implicit(pixels)
    with pytest.raises(ValueError, match="end of an item"):
        to_implicit(b"\xfe\xff\x0d\xe0\0\0\0\0")
