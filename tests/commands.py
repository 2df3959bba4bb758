"""The command line in this process: what needs none of its own is spared a start and imports."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deepcovid_edge.cli.main import run


class Done(NamedTuple):
    """What a command left, named as `subprocess.CompletedProcess` names it."""

    returncode: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def working_in(folder: Path | None) -> Iterator[None]:
    """Work in another folder for a while; in the same one where none is given."""
    before = Path.cwd()
    os.chdir(folder or before)
    try:
        yield
    finally:
        os.chdir(before)


def command(*arguments: object, cwd: Path | None = None) -> Done:
    """Run `deepcovid-edge` with arguments, in another folder where one is given."""
    output, messages = io.StringIO(), io.StringIO()
    with (
        working_in(cwd),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(messages),
    ):
        code = run([*map(str, arguments)])
    return Done(code, output.getvalue(), messages.getvalue())
