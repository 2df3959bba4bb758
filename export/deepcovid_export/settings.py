"""Settings from plain values: TOML tables and `name=value` options become checked dataclasses.

A wrong setting is named with its value and what was expected, and an unknown one is an error.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Settings = TypeVar("Settings")
Rule = tuple[str, Callable[[Any], bool], str]
"""Names of settings, what each must fulfil, and that in words."""
_WORDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def build_settings(kind: type[Settings], values: Mapping[str, Any], prefix: str = "") -> Settings:
    """Make a settings dataclass, and those within it, from plain values.

    Args:
        kind: The dataclass.
        values: Field name to value; a mapping where the field is itself a dataclass.
        prefix: Put before names in messages, such as `fit.`.

    Raises:
        ValueError: A setting is unknown, missing, of another type or out of range.
    """
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"{prefix}{unknown[0]}: no such setting; expected one of {', '.join(sorted(known))}"
        )
    for name, item in known.items():
        if name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{prefix}{name}: is missing")
    return kind(**{name: _build(hints[name], values[name], prefix + name) for name in values})


def check(settings: object, prefix: str, *rules: Rule) -> None:
    """Check the ranges of settings.

    Raises:
        ValueError: A setting does not fulfil its rule.
    """
    for names, holds, expected in rules:
        for name in names.split():
            if not holds(value := getattr(settings, name)):
                raise ValueError(f"{prefix}{name}: got {value}, expected {expected}")


def _build(hint: Any, value: Any, name: str) -> Any:
    if is_dataclass(hint) and isinstance(value, Mapping):
        return build_settings(hint, value, f"{name}.")  # type: ignore[arg-type]
    inner = next(iter(get_args(hint)), None)
    if is_dataclass(inner) and isinstance(value, (list, tuple)):
        return tuple(_build(inner, one, f"{name}[{at}]") for at, one in enumerate(value))
    if not _fits(value, hint):
        raise ValueError(f"{name}: got {value!r}, expected {_describe(hint)}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if choices := _choices(hint):
        return value in choices
    if origin in (Union, UnionType):
        return any(_fits(value, choice) for choice in arguments)
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(v, arguments[0]) for v in value)
    if origin is not None:
        return isinstance(value, Mapping) and all(_fits(v, arguments[1]) for v in value.values())
    if isinstance(value, float) and not math.isfinite(value):
        return False
    right_kind = isinstance(value, (int, float) if hint is float else hint)
    return right_kind and isinstance(value, bool) == (hint is bool)  # True is an int to Python


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if choices := _choices(hint):
        return " or ".join(map(repr, choices))
    if origin in (Union, UnionType):
        return " or ".join(_describe(choice) for choice in arguments)
    if origin in (list, tuple):
        return f"a list, each {_describe(arguments[0])}"
    if origin is not None:
        return f"a table, each value {_describe(arguments[1])}"
    return _WORDS.get(hint, "a table")


def _choices(hint: Any) -> list[Any]:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [choice.value for choice in hint]
    return [*get_args(hint)] if get_origin(hint) is Literal else []


def read_table(path: Path) -> dict[str, Any]:
    """A TOML file as plain values.

    Raises:
        ValueError: The file is not TOML.
    """
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return table


def merge(kind: Any, values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a settings dataclass, updated by others.

    Settings within settings are updated one by one. A table that is a setting, such as
    `fit.repeat`, is replaced, so that it can also be made smaller or empty.
    """
    result = dict(values)
    for name, value in over.items():
        inner, below = _within(kind, name), result.get(name)
        both = inner and isinstance(value, Mapping) and isinstance(below, Mapping)
        result[name] = merge(inner, below or {}, value) if both else value
    return result


def assign(kind: Any, values: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Values of a settings dataclass with one changed, such as `fit.epochs=1`.

    A name may go on into a table: `fit.repeat.covid=5` keeps its other entries. A value that is not
    TOML is taken as text, so that a shell needs no quotes.

    Raises:
        ValueError: The text has no name or no equals sign.
    """
    name, equals, value = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise ValueError(f"got {text!r}, expected NAME=VALUE such as fit.epochs=1")
    try:
        read = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        read = value.strip()
    return _placed(kind, values, parts, read)


def _placed(kind: Any, values: Mapping[str, Any], parts: list[str], value: Any) -> dict[str, Any]:
    first, *rest = parts
    if not rest:
        return merge(kind, values, {first: value})
    below = values.get(first)
    inside = below if isinstance(below, Mapping) else {}
    return {**values, first: _placed(_within(kind, first), inside, rest, value)}


def _within(kind: Any, name: str) -> Any:
    """The settings dataclass that a setting is, or None."""
    hint = get_type_hints(kind).get(name) if kind else None
    return hint if is_dataclass(hint) else None
