"""Write an evaluation as JSON and as a page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcovid_edge.errors import UsageError
from deepcovid_edge.files import write_text

_NUMBERS = re.compile(r"\[\n\s*([-+\d.e,\s]+?)\n\s*\]")  # a string in JSON has no line end
_NO_REPORTS = {".csv", ".jsonl", ".pdf", ".txt", ".md"}


@dataclass(frozen=True)
class Targets:
    """Files of a report: of its figures and of its page; None for one that is not written."""

    json: Path | None
    html: Path | None

    @classmethod
    def of(cls, output: Path | None) -> Targets:
        """`FILE.json` or `FILE.html` alone; anything else is a folder that gets both.

        Raises:
            UsageError: The suffix is that of another kind of file.
        """
        if output is None:
            return cls(None, None)
        if output.suffix == ".json" and not output.is_dir():
            return cls(output, None)
        if output.suffix in (".html", ".htm") and not output.is_dir():
            return cls(None, output)
        if output.suffix in _NO_REPORTS:
            raise UsageError(f"-o: got {output.name}, expected a folder, FILE.json or FILE.html")
        return cls(output / "report.json", output / "report.html")


def write_report(report: Mapping[str, Any], targets: Targets) -> None:
    """Write figures and page.

    Raises:
        OutputError: A file or its folder cannot be written.
    """
    if targets.json is not None:
        write_text(targets.json, as_json(report) + "\n")
    if targets.html is not None:
        from deepcovid_export.report.page import as_html

        write_text(targets.html, as_html(report) + "\n")


def as_json(report: Mapping[str, Any]) -> str:
    """The figures as JSON, with lists of numbers on one line."""
    text = json.dumps(report, indent=2, allow_nan=False)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
