"""Records as a page: one row per image with its picture, for people who would rather look.

The page is one file beside the folder of its pictures. It loads nothing else, works without its
script, and can be sorted and filtered with it.
"""

from __future__ import annotations

import io
import os
from contextlib import suppress
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from deepcovid_edge.decision.record import DECIMALS, SIGNS, Prediction, RunFacts
from deepcovid_edge.errors import OutputError
from deepcovid_edge.files import missing_folders, open_regular, remove_empty
from deepcovid_edge.pipeline.sources import PAGE
from deepcovid_edge.pipeline.writers import open_locked
from deepcovid_edge.reasons import NOTICE, warning_sentence

_ORDER = [*SIGNS]
_OWN, _LOOKED_AT = b"<title>deepcovid-edge", 4096
_LEGEND = (
    "The pictures show what the network relied on, right or wrong. Yellow spoke for the finding, "
    "blue against it."
)


class HtmlPage:
    """A page of records (`pipeline.writers.RecordWriter`); rows are written as they are ready.

    Before `begin` an earlier page stays as it is, and a new one leaves nothing.

    Args:
        folder: The page is its `index.html`; the pictures of its records lie below it.
        run: What is the same in every record.

    Raises:
        OutputError: The folder cannot be written, has a page of somebody else, or another process
            writes the page.
    """

    def __init__(self, folder: Path, run: RunFacts) -> None:
        self.path = folder / PAGE
        template = Template(Path(__file__).with_name("page.html").read_text("utf-8"))
        page = template.substitute(
            notice=escape(NOTICE),
            about=escape(about_run(run)),
            positive_class=escape(run.positive_class),
            legend=escape(_LEGEND),
        )
        self._head, self._tail = page.split("<!-- rows -->\n")
        self._has_begun = False
        _check_own(self.path)
        self._is_new, self._folders = not self.path.exists(), missing_folders(folder)
        self._stream = io.TextIOWrapper(open_locked(self.path), encoding="utf-8", errors="replace")

    def begin(self) -> None:
        """Write what stands before the first row; an earlier page is lost.

        Raises:
            OutputError: The disk is full or gone.
        """
        self._has_begun = True
        self._stream.truncate(0)
        self._put(self._head)

    def write(self, *records: Prediction) -> None:
        """Write a row for each record.

        Raises:
            OutputError: The disk is full or gone.
        """
        self._put("".join(self._row(record) for record in records))

    def close(self) -> None:
        """Write what follows the last row; remove what was made for a page that was not begun.

        Raises:
            OutputError: The disk is full or gone.
        """
        if self._has_begun and not self._stream.closed:
            self._put(self._tail)
        elif not self._stream.closed:
            if self._is_new:
                with suppress(OSError):
                    self.path.unlink()  # still locked: nobody else has begun it
            remove_empty(self._folders)
        self._stream.close()

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            with suppress(OSError):
                self._stream.close()
            raise OutputError(f"{self.path}: {error.strerror or error}") from error

    def _row(self, record: Prediction) -> str:
        kind = record.decision or record.status
        cells = (
            f'<td class="file">{escape(record.path)}</td>',
            f'<td class="result {kind}" data-key="{_ORDER.index(record.decision)}">'
            f"{SIGNS[record.decision]}</td>",
            self._probability(record),
            f"<td>{'<br>'.join(map(escape, _notes(record)))}</td>",
            f"<td>{self._picture(record)}</td>",
        )
        return f'<tr data-result="{kind}">{"".join(cells)}</tr>\n'

    def _probability(self, record: Prediction) -> str:
        if record.probability is None:
            return '<td class="probability" data-key=""></td>'
        name, value = escape(record.run.positive_class), record.probability
        cell = f'<td class="probability" data-key="{value:.{DECIMALS}f}">'
        return f"{cell}<b>{name} </b>{value:.3f}</td>"

    def _picture(self, record: Prediction) -> str:
        if record.overlay is None:
            return ""
        place = quote(os.fsencode(os.path.relpath(record.overlay, self.path.parent)))
        name = escape(Path(record.path).name)
        words = f"{name}: where the network looked"
        return f'<a href="{place}"><img src="{place}" loading="lazy" alt="{words}"></a>'


def _notes(record: Prediction) -> list[str]:
    """The message of an image without a result, and the sentences of its warnings."""
    message = [record.message] if record.message else []
    return [*message, *map(warning_sentence, record.warnings)]


def page_style() -> str:
    """The styles of the page, for pages of other results."""
    text = Path(__file__).with_name("page.html").read_text("utf-8")
    return text.split("<style>")[1].split("</style>")[0]


def about_run(run: RunFacts) -> str:
    """Model, variant, backend, site and limits of a run, in two sentences."""
    limits = run.limits
    if "threshold" in limits:
        decides = f"Positive from {limits['threshold']:.3f}"
    else:
        decides = f"Negative below {limits['low']:.3f}, positive from {limits['high']:.3f}"
    site = f", site {run.site.name}" if run.site else ""
    return f"Model {run.model}, variant {run.variant}, on {run.backend}{site}. {decides}."


def _check_own(path: Path) -> None:
    with suppress(OSError), open_regular(path) as stream:
        if (found := stream.read(_LOOKED_AT)) and _OWN not in found:
            raise OutputError(f"{path}: is another page, and would be lost: choose another folder")
