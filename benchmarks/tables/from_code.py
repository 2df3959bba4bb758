"""Tables of what the code defines: reasons, warnings, syntaxes, recipes, settings, exit codes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from benchmarks.tables.table import Table
from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.datasets.folders import SYSTEM_FOLDERS
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES
from deepcovid_edge.reasons import Reason, WarningCode
from deepcovid_export.recipe import SHIPPED, Recipe, load_recipe


def codes(members: Iterable[Reason | WarningCode], kind: str) -> Table:
    """Reasons or warnings with their sentences."""
    found = [(f"`{one.code}`", one.sentence, one.cause) for one in members]
    return Table((kind, "sentence", "when"), found)


def syntaxes() -> Table:
    """Transfer syntaxes that are read."""
    found = [(one.name, uid, one.family.value) for uid, one in SYNTAXES.items()]
    return Table(("transfer syntax", "UID", "compression"), found)


def system_folders() -> Table:
    """Folders that are skipped, by who makes them."""
    found = [
        (maker, ", ".join(f"`{name}`" for name in folders))
        for maker, folders in SYSTEM_FOLDERS.items()
    ]
    return Table(("made by", "folders (`*`: digits)"), found)


def exit_codes() -> Table:
    """What a command ends with."""
    return Table(
        ("exit code", "meaning"),
        [(str(int(code)), code.meaning) for code in ExitCode],
    )


def recipes() -> Table:
    """The recipes that ship, and what sets each apart."""
    rows = []
    for path in sorted(SHIPPED.glob("*.toml")):
        it = load_recipe(path.stem)
        how = f"{it.fit.layers}, {it.fit.optimiser}, {it.fit.schedule}, {it.fit.epochs} epochs"
        size = f"{it.input.height} x {it.input.width}"
        rows.append((f"`{path.stem}`", it.architecture, it.fit.start, size, how))
    return Table(("recipe", "network", "start", "input", "fit"), rows)


def settings() -> Table:
    """Every setting of a recipe with its default."""
    rows: list[tuple[str, str, str]] = []
    for field in fields(Recipe):
        inner = field.default_factory
        if isinstance(inner, type) and is_dataclass(inner):
            rows += field_rows(inner, f"{field.name}.")
    return Table(("setting", "default", "meaning"), [*field_rows(Recipe, ""), *rows])


def field_rows(kind: type, prefix: str) -> list[tuple[str, str, str]]:
    """Name, default and meaning of each field of a dataclass, by its docstring."""
    meaning = _attributes(kind)
    return [
        (f"`{prefix}{field.name}`", _default(field), meaning[field.name])
        for field in fields(kind)
        if not hasattr(field.default_factory, "__dataclass_fields__")
    ]


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        value = getattr(field.default, "value", field.default)
        return f"`{value}`" if value not in ("", ()) else "none"
    if field.default_factory is not MISSING:
        value = field.default_factory()
        return f"`{value}`" if value else "none"
    return "required"


def _attributes(kind: type) -> dict[str, str]:
    """Field -> its line of the docstring's section `Attributes`."""
    text = inspect.getdoc(kind) or ""
    section = text.partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", section, re.MULTILINE)
    return {name: " ".join(words.split()).replace("|", "\\|") for name, words in found}


TABLES = {
    "reasons": lambda: codes(Reason, "reason"),
    "warnings": lambda: codes(WarningCode, "warning"),
    "syntaxes": syntaxes,
    "system-folders": system_folders,
    "exit-codes": exit_codes,
    "recipes": recipes,
    "recipe-settings": settings,
}
