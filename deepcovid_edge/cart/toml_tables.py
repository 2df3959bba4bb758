"""Tables of TOML as settings: frozen dataclasses whose mistakes name the key."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from deepcovid_edge.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Settings = TypeVar("Settings")
_LARGEST = 1e300


def parse_toml(path: Path, data: bytes) -> dict[str, Any]:
    """The values of a file of TOML.

    Args:
        path: The file, for messages.
        data: What it holds.

    Raises:
        UsageError: It is not TOML; the message has the line, and the usual mistake.
    """
    try:
        text = data.decode("utf-8-sig")  # editors of Windows write its mark
        values: dict[str, Any] = tomllib.loads(text)
    except UnicodeError as error:
        raise UsageError(f"{path}: not TOML: expected a text in UTF-8: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: not TOML: its lists are nested too deeply") from error
    except ValueError as error:
        raise UsageError(f"{path}: not TOML: {error}{_hint(text, str(error))}") from error
    return values


def _hint(text: str, error: str) -> str:
    """The line that is wrong, and the usual mistake where it is one."""
    found = re.search(r"at line (\d+)", error)
    lines = text.splitlines()
    if not found or not 0 < int(found[1]) <= len(lines):
        return ""
    line = lines[int(found[1]) - 1].strip()
    value = line.partition("=")[2].strip()
    with contextlib.suppress(ValueError):
        tomllib.loads(line)
        return f": {line}"  # right by itself: a key that is there twice
    if re.search("[\u2018-\u201f\u00ab\u00bb]", line):
        hint = "; write texts in straight quotes"
    elif value.startswith('"') and "\\" in value:
        hint = "; write a path with a backslash in single quotes"
    elif value.count('"') % 2 or value.count("'") % 2:
        hint = "; a quote is missing, or there is one too many"
    elif value in ("True", "False"):
        hint = "; write true and false in small letters"
    elif value and not re.match("[\"'\\[{]", value):
        hint = "; write texts in quotes"
    else:
        hint = ""
    return f": {line}{hint}"


def build_settings(kind: type[Settings], values: Any, where: str, base: Path) -> Settings:
    """A table as settings; errors name the key with its table."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: got {values!r}, expected a table")
    known: dict[str, Field[Any]] = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"{where}.{unknown[0]}: no such key; expected one of {', '.join(sorted(known))}"
        )
    needed = [name for name, item in known.items() if item.default is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{where}.{missing[0]}: is missing")
    built = {name: _value(hints[name], values[name], f"{where}.{name}", base) for name in values}
    try:
        return kind(**built)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error


def settings_text(settings: Any) -> str:
    """Settings as a line for another process; see `read_settings`."""
    named = {name: value for name, value in asdict(settings).items() if value is not None}
    return json.dumps(named, default=str)


def read_settings(kind: type[Settings], text: str) -> Settings:
    """The settings that `settings_text` wrote."""
    return build_settings(kind, json.loads(text), "settings", Path())


def _value(hint: Any, value: Any, where: str, base: Path) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        hint = next(kind for kind in inner if kind is not type(None))
        return _value(hint, value, where, base)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: got {value!r}, expected a list")
        return tuple(_value(inner[0], each, where, base) for each in value)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{where}: got {value!r}, expected {' or '.join(map(repr, inner))}")
        return value
    if hint is Path and isinstance(value, str) and re.match(r"~[^/]*(/|$)", value):
        raise ValueError(f"{where}: got {value!r}, expected a whole path: ~ is not replaced here")
    check, words, make = _KINDS[hint]
    if not check(value):
        if isinstance(value, str) and hint in (bool, int, float):
            words += " without quotes"
        raise ValueError(f"{where}: got {value!r}, expected {words}")
    return base / value if hint is Path else make(value)


_KINDS: dict[type, tuple[Callable[[Any], bool], str, Callable[[Any], Any]]] = {
    str: (lambda it: isinstance(it, str), "a text", str),
    Path: (lambda it: isinstance(it, str) and bool(it) and "\0" not in it, "a path", Path),
    bool: (lambda it: isinstance(it, bool), "true or false", bool),
    int: (lambda it: isinstance(it, int) and not isinstance(it, bool), "a whole number", int),
    float: (
        lambda it: isinstance(it, int | float) and not isinstance(it, bool) and abs(it) < _LARGEST,
        "a number",
        float,
    ),
}
