"""A bar on a terminal for what takes its time, and counts as people read them.

The bar shows how many are done, how fast, and how long yet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

_Item = TypeVar("_Item")


def number_of(count: int, one: str, more: str | None = None) -> str:
    """A count with what is counted, such as `1 file` and `2 files`.

    Args:
        count: How many.
        one: What is counted, if there is one: `file`, `file has`.
        more: If there are none or several, such as `files have`; None where an s is added.
    """
    return f"{count} {one}" if count == 1 else f"{count} {more or f'{one}s'}"


@contextmanager
def progress_bar(total: int | None, what: str = "images") -> Iterator[Callable[[int], object]]:
    """Show a bar on stderr while the block runs, if that is a terminal.

    Args:
        total: How many there are; None where nobody knows.
        what: What they are.

    Yields:
        To be called with the number that was done since the last call.
    """
    with open_bars() as bars:
        if bars is None:
            yield lambda _: None
            return
        task = bars.add_task(what, total=total)
        yield lambda done: bars.advance(task, done)


def counted(items: Iterable[_Item], total: int, what: str = "images") -> Iterator[_Item]:
    """Pass items on under a bar; each counts once the next one is asked for."""
    with progress_bar(total, what) as progress:
        for item in items:
            yield item
            progress(1)


@contextmanager
def open_bars() -> Iterator[Progress | None]:
    """Bars on stderr with count, rate and time left; None if stderr is no terminal."""
    if not sys.stderr or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        yield bars
