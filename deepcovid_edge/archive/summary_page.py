"""A summary as one HTML page without scripts, in the styles of the page of records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from deepcovid_edge.archive.summary import BINS, MOST_DEVICES, Group, Summary
from deepcovid_edge.decision.record import INDETERMINATE, NEGATIVE, POSITIVE, SIGNS
from deepcovid_edge.pipeline.html_page import about_run, page_style
from deepcovid_edge.reasons import NOTICE

_GROUP_COLUMNS = ("images", "positive", "indeterminate", "not assessed", "median", "distance")
_DRIFT = (
    "The distance is the greatest between the distribution of a row's scores and that of all other "
    "images, from 0 to 1. It tells that images differ, and not why."
)


def page(summary: Summary) -> str:
    """The page as text."""
    template = Template(Path(__file__).with_name("summary.html").read_text("utf-8"))
    run = summary.stamp.run_facts
    return template.substitute(
        style=page_style(),
        notice=escape(NOTICE),
        about=escape(about_run(run)),
        progress=escape(_progress(summary)),
        tables="\n".join(_tables(summary)),
    )


def _progress(summary: Summary) -> str:
    found = (
        f"{summary.shards} of {summary.stamp.shards} shards: {summary.counts.images} of "
        f"{summary.stamp.images} images."
    )
    return found if summary.is_whole else f"{found} The run is not at its end."


def _tables(summary: Summary) -> Iterable[str]:
    counts, same = summary.counts, summary.duplicates
    yield _table(
        "Results",
        ("result", "images"),
        [
            (SIGNS[POSITIVE], counts.positive),
            (SIGNS[INDETERMINATE], counts.indeterminate),
            (SIGNS[NEGATIVE], counts.negative),
            (SIGNS[None], counts.not_assessed),
        ],
    )
    for title, found in (("Not assessed", summary.reasons), ("Warnings", summary.warnings)):
        rows = [(one.code, one.sentence, one.images) for one in found]
        yield _table(title, ("code", "meaning", "images"), rows)
    yield _table(
        "Duplicates",
        ("what", "groups", "images"),
        [
            ("the same bytes as an earlier image", same.groups, same.images),
            ("one SOP instance UID, different bytes", same.uid_groups, same.uid_images),
        ],
    )
    yield _histogram(summary)
    yield f"<h2>By month and by device</h2>\n<p>{escape(_DRIFT)}</p>"
    yield _groups("month", summary.months)
    yield _groups("device", summary.devices[:MOST_DEVICES])
    if summary.further_devices:
        yield f"<p>{escape(summary.further_devices)}; JSON has each of them.</p>"


def _histogram(summary: Summary) -> str:
    most = max(*summary.histogram, 1)
    rows = "".join(
        f"<tr><td>{number / BINS:.2f} to {(number + 1) / BINS:.2f}</td>"
        f'<td class="number">{images}</td>'
        f'<td class="bar"><div style="width:{100 * images / most:.1f}%"></div></td></tr>\n'
        for number, images in enumerate(summary.histogram)
    )
    name = escape(summary.stamp.run_facts.positive_class)
    return (
        f"<h2>Scores: {name}</h2>\n<table><thead><tr><th>score</th>"
        f'<th class="number">images</th><th></th></tr></thead><tbody>\n{rows}</tbody></table>'
    )


def _groups(name: str, groups: Sequence[Group]) -> str:
    rows = [
        (
            group.name,
            group.images,
            group.positive,
            group.indeterminate,
            group.not_assessed,
            "" if group.median is None else f"{group.median:.3f}",
            "" if group.distance is None else f"{group.distance:.2f}",
        )
        for group in groups
    ]
    return _table("", (name, *_GROUP_COLUMNS), rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    heading = f"<h2>{escape(title)}</h2>\n" if title else ""
    if not rows:
        return f"{heading}<p>None.</p>"
    head = "".join(f"<th{_kind(row)}>{escape(name)}</th>" for name, row in _with(columns, rows))
    body = "\n".join(
        "<tr>" + "".join(f"<td{_kind(cell)}>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"{heading}<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _with(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterable[tuple[str, object]]:
    return zip(columns, rows[0], strict=True)


def _kind(cell: object) -> str:
    return ' class="number"' if isinstance(cell, int | float) else ""
