"""Heat maps as files: arrays and plain facts in one .npz that `numpy.load` reads without pickles.

    values, probability_drop, turned    on the network's input; occlusion only
    cells                               what they are made from: windows, or the network's own map
    facts                               JSON: method, shape, how it was made, regions, the record's

An activation map is stored as the network's own map, from which `values` are computed again.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import DataError, NotThereError
from deepcovid_edge.files import open_regular, write_new
from deepcovid_edge.heatmaps.heatmap import ACTIVATION, METHODS, HeatMap, Region, of_activation
from deepcovid_edge.manifest import InputSpec

SCHEMA_VERSION = 1
_ENCODER = json.JSONEncoder(allow_nan=False)


@dataclass(frozen=True)
class MapFile:
    """The content of a file.

    Attributes:
        heatmap: The map.
        regions: Its regions, on the image.
        facts: What the writer stored beside it, such as the image's record.
    """

    heatmap: HeatMap
    regions: tuple[Region, ...]
    facts: dict[str, Any]


def write_map(
    path: Path, heatmap: HeatMap, regions: Sequence[Region], facts: Mapping[str, Any]
) -> None:
    """Write a map; see `write_new`.

    Args:
        path: The file, usually `.npz`; its folder must be there.
        heatmap: The map.
        regions: Its regions, on the image.
        facts: Plain values to store beside it, such as `Prediction.as_dict()`.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    described = {
        "schema_version": SCHEMA_VERSION,
        "method": heatmap.method,
        "shape": heatmap.values.shape,
        "made": heatmap.facts,
        "regions": [vars(region) for region in regions],
        "facts": dict(facts),
    }
    text = _ENCODER.encode(described).encode("ascii")
    arrays: dict[str, Any] = {"cells": heatmap.cells, "facts": np.array(text)}
    if heatmap.method != ACTIVATION:
        names = ("values", "probability_drop", "turned")
        arrays |= {name: getattr(heatmap, name) for name in names}
    stream = io.BytesIO()
    np.savez(stream, **{name: array for name, array in arrays.items() if array is not None})
    write_new(path, stream.getbuffer())


def read_map(path: Path) -> MapFile:
    """Read a map that `write_map` wrote.

    Raises:
        NotThereError: The file cannot be opened.
        DataError: It is not such a map, or was cut off or changed.
    """
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        described = json.loads(arrays.pop("facts").item())
        return MapFile(
            _heatmap(described, arrays),
            tuple(Region(**region) for region in described["regions"]),
            described["facts"],
        )
    except OSError as error:
        raise NotThereError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a heat map that this version of deepcovid-edge reads ({error}): "
            "write it again with `deepcovid-edge heatmap`"
        ) from error


def _heatmap(described: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> HeatMap:
    version, method = described["schema_version"], described["method"]
    if version != SCHEMA_VERSION or method not in METHODS:
        raise ValueError(f"schema_version {version}, method {method}")
    if method == ACTIVATION:
        height, width = described["shape"]
        made = of_activation(arrays["cells"], InputSpec(height, width))
        return HeatMap(ACTIVATION, made.values, made.cells, facts=described["made"])
    return HeatMap(
        method,
        arrays["values"],
        arrays["cells"],
        arrays.get("probability_drop"),
        arrays.get("turned"),
        described["made"],
    )
