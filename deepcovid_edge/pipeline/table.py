"""Records as a table for people, on a terminal or in a file."""

from __future__ import annotations

import errno
import os
import textwrap
from typing import IO

from rich.console import Console
from rich.text import Text

from deepcovid_edge.decision.record import INDETERMINATE, NEGATIVE, POSITIVE, SIGNS, Prediction
from deepcovid_edge.reasons import NOTICE

_STYLES = {
    POSITIVE: "bold red",
    NEGATIVE: "green",
    INDETERMINATE: "bold magenta",
    None: "bold yellow",
}


_USUAL_WIDTH = 80


class PipedConsole(Console):
    """A console that leaves a closed pipe to its caller, as any other stream does."""

    def on_broken_pipe(self) -> None:
        """Raise the error again; rich would end the process."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class TableWriter:
    """Lines for people: word, sign and colour say the same."""

    def __init__(self, stream: IO[str]) -> None:
        self._console = PipedConsole(file=stream, highlight=False, soft_wrap=True)
        if self._console.width < 1:  # COLUMNS=0, as some terminals and jobs have it
            self._console.width = _USUAL_WIDTH
        self._width = max(24, min(60, self._console.width - 40))
        if self._console.is_terminal:
            self._width = max(28, min(60, self._console.width - 52))
        self._titled = False

    def write(self, *records: Prediction) -> None:
        """Write a line for each record."""
        for record in records:
            if not self._titled:
                self._titled = True
                title = f"{'image':<{self._width}}  {'result':<15}  {record.run.positive_class}"
                self._console.print(Text(title, style="bold"))
            self._console.print(self._line(record))
        self._console.file.flush()

    def _line(self, record: Prediction) -> Text:
        line = Text(_shortened(record.path, self._width).ljust(self._width) + "  ")
        line.append(f"{SIGNS[record.decision]:<15}", style=_STYLES[record.decision])
        if record.probability is not None:
            line.append(f"  {record.probability:.3f}")
        notes = record.message or ", ".join(record.warnings)
        line.append(f"  {self._wrapped(notes, len(line) + 2)}" if notes else "")
        return line

    def _wrapped(self, notes: str, indent: int) -> str:
        """Words that stay in their column on a terminal; one line in a file."""
        if not self._console.is_terminal:
            return notes
        width = max(20, self._console.width - indent)
        return f"\n{' ' * indent}".join(textwrap.wrap(notes, width, break_on_hyphens=False))

    def close(self) -> None:
        """State what the table is not."""
        self._console.print(Text(NOTICE, style="italic"))


def _shortened(path: str, width: int) -> str:
    printable = "".join(letter if letter.isprintable() else "?" for letter in path)
    return printable if len(printable) <= width else "…" + printable[1 - width :]
