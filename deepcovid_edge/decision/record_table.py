"""Records as an Arrow table: the same fields as in JSON, each with a type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.errors import require

if TYPE_CHECKING:
    import pyarrow

EXTRA = "archive"


def record_schema() -> pyarrow.Schema:
    """The columns of records, in the order of `Prediction.as_dict`.

    Names that repeat are stored once (dictionaries). Probabilities are a map, so that the columns
    are the same for every model.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    pa = require("pyarrow", extra=EXTRA)
    text, number = pa.string(), pa.float64()
    name = pa.dictionary(pa.int32(), text)
    sides = [(side, pa.int32()) for side in ("x", "y", "width", "height")]
    region = pa.struct([*sides, ("peak", number), ("turns", pa.bool_())])
    limits = pa.struct([("low", number), ("high", number), ("threshold", number)])
    timings = [(step, number) for step in ("read", "preprocess", "infer", "heatmap", "total")]
    schema: pyarrow.Schema = pa.schema(
        {
            "schema_version": pa.int16(),
            "path": text,
            "sha256": text,
            "status": name,
            "reason": name,
            "message": text,
            "warnings": pa.list_(text),
            "model": name,
            "model_sha256": name,
            "backend": name,
            "variant": name,
            "probabilities": pa.map_(text, number),
            "positive_class": name,
            "probability": number,
            "limits": limits,
            "site": pa.struct([("name", text), ("sha256", text)]),
            "decision": name,
            "heatmap": text,
            "overlay": text,
            "regions": pa.list_(region),
            "timings_ms": pa.struct(timings),
            "notice": name,
        }
    )
    return schema


def record_row(record: Prediction) -> dict[str, Any]:
    """A record as Arrow takes it."""
    row = record.as_dict()
    if row["probabilities"] is not None:
        row["probabilities"] = [*row["probabilities"].items()]
    return row


def records_of(table: pyarrow.Table) -> Iterable[dict[str, Any]]:
    """The records of a table as `Prediction.as_dict` gives them; other columns are passed over."""
    names = record_schema().names
    for row in table.select(names).to_pylist():
        if row["probabilities"] is not None:
            row["probabilities"] = dict(row["probabilities"])
        row["limits"] = {name: value for name, value in row["limits"].items() if value is not None}
        yield row
