"""Arrays as .npz content: what NumPy's own reader and writer, and ZIP's, make of them."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepcovid_edge.heatmaps.npz import npz

ARRAYS: dict[str, NDArray[Any]] = {
    "cells": np.random.default_rng(0).normal(size=(13, 13)).astype(np.float32),
    "values": np.random.default_rng(1).normal(size=(224, 224)).astype(np.float32),
    "turned": np.arange(12).reshape(3, 4) % 2 == 0,
    "facts": np.array(b'{"method": "activation"}'),
    "text": np.array(["é", "image"]),
    "one": np.arange(3, dtype=np.int64),
    "scalar": np.array(2.5),
    "none": np.zeros((0, 5), np.uint8),
    "fortran": np.asfortranarray(np.arange(6, dtype=">u2").reshape(2, 3)),
    "part": np.arange(20, dtype=np.int16)[::3],
}


def test_numpy_reads_every_array_as_it_was() -> None:
    with np.load(io.BytesIO(npz(ARRAYS)), allow_pickle=False) as read:
        assert read.files == [*ARRAYS]
        for name, array in ARRAYS.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array, strict=True)


def test_zip_readers_find_whole_entries_like_those_that_numpy_writes() -> None:
    theirs = io.BytesIO()
    np.savez(theirs, **ARRAYS)  # type: ignore[arg-type]
    with zipfile.ZipFile(theirs) as expected, zipfile.ZipFile(io.BytesIO(npz(ARRAYS))) as read:
        assert read.testzip() is None
        assert read.namelist() == expected.namelist()
        for ours, own in zip(read.infolist(), expected.infolist(), strict=True):
            assert ours.compress_type == own.compress_type == zipfile.ZIP_STORED
            assert (ours.date_time, ours.extra) == (own.date_time, b"")


def test_data_begin_where_they_are_aligned_within_their_entry() -> None:
    with zipfile.ZipFile(io.BytesIO(npz(ARRAYS))) as read:
        for name, array in ARRAYS.items():
            assert (len(read.read(f"{name}.npy")) - array.nbytes) % 64 == 0


def test_no_arrays_make_an_empty_file() -> None:
    with np.load(io.BytesIO(npz({}))) as read:
        assert read.files == []


@pytest.mark.parametrize("array", [np.array([None]), np.zeros(2, [("a", "i4")])])
def test_objects_and_fields_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="expected numbers, bytes or text"):
        npz({"bad": array})
