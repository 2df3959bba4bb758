"""A table of a document: columns, and rows of which each is a template filled from a result.

A template has one cell for each column. `{seconds.infer:.2f}` is the value at `seconds`, `infer` of
a stored result. What has a median shows the median, what has an interval shows it too, None is a
dash, and a path becomes a link whose text is the format.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import device_name

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
VALUES = ("value", "difference", "change")
"""Keys of a figure that stands beside its `interval_95`."""

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table in Markdown.

    Attributes:
        columns: Names of the columns.
        rows: The cells of each row.
        empty: The sentence that takes the place of a table without rows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    empty: str = "No result is stored."

    def markdown(self) -> str:
        """The table, or the sentence for no rows."""
        lines = (self.columns, ["---"] * len(self.columns), *self.rows)
        text = ("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines)
        return "\n".join(text) if self.rows else self.empty


class Cells(string.Formatter):
    """Fills the templates of a document's tables."""

    def __init__(self, document: Path) -> None:
        self.up = "../" * (len(document.relative_to(ROOT).parts) - 1)

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        """The value at a path of keys."""
        value = kwargs
        for key in field_name.split("."):
            value = value[key]
        return value, field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        """A figure as text."""
        if isinstance(value, Path):
            return f"[{format_spec}]({self.up}{value.relative_to(ROOT)})"
        if isinstance(value, str):
            return value
        if isinstance(value, Mapping):
            if "median" in value:
                return format(value["median"], format_spec)
            return self.interval(value, format_spec)
        return "-" if value is None else format(value, format_spec)

    def interval(self, found: Figures, spec: str) -> str:
        """A figure with its interval."""
        value = next(found[name] for name in VALUES if name in found)
        if value is None:
            return "-"
        low, high = found["interval_95"]
        return f"{value:{spec}} [{low:{spec}}, {high:{spec}}]"


@dataclass(frozen=True)
class ResultsTable:
    """A table whose rows come from stored results.

    Attributes:
        files: Pattern of the results, within results/.
        columns: Names of the columns, with ` | ` between them.
        cells: The template of a row, with ` | ` between the cells.
        empty: What takes the place of the table where the results give no row.
        missing: What takes its place without a stored result.
    """

    files: str
    columns: str
    cells: str
    empty: str = Table.empty
    missing: str = Table.empty

    def table(self, rows: Callable[[Figures], Iterable[Figures]], document: Path) -> Table:
        """The table for a document, to whose folder links are relative.

        Args:
            rows: What a result shows in each of its rows, beside its own values.
            document: The file that the table stands in.
        """
        fill, cells = Cells(document).vformat, self.cells.split(" | ")
        results = [load(path) for path in sorted(RESULTS.glob(self.files))]
        found = [
            [fill(cell, (), {**result, **row}) for cell in cells]
            for result in results
            for row in rows(result)
        ]
        empty = self.empty if results else self.missing
        return Table(self.columns.split(" | "), found, empty)


def load(path: Path) -> dict[str, Any]:
    """A stored result, with the `path` of its file and the name of its device as `on`.

    What the name of its folder adds to the device's, such as `-busy-host`, follows that name.
    """
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    facts = figures.get("device")
    if isinstance(facts, Mapping):
        gpus = facts["gpus"]
        device = gpus[0] if gpus else f"{facts['processor']}, {facts['cores']} cores"
        _, _, more = path.parent.name.partition(f"{device_name(dict(facts))}-")
        figures["on"] = f"{device}, {more.replace('-', ' ')}" if more else device
    return {**figures, "path": path}
