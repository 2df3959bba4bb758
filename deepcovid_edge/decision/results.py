"""Results as plain values: dictionaries, lists, numbers and text, as JSON holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


class PlainResult:
    """Base of a result's dataclass: `as_dict` has its fields by name, in their order."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `json.loads` would return them."""
        return plain_fields(self)


def plain_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain values."""
    return {item.name: plain(getattr(value, item.name)) for item in fields(value)}


def plain(value: Any) -> Any:
    """Results and dataclasses as dictionaries, sequences and arrays as lists, at every depth."""
    if isinstance(value, PlainResult):
        return value.as_dict()
    if is_dataclass(value):
        return plain_fields(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value  # NumPy's arrays and numbers
