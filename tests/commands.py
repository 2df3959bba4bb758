"""The command line in this process: what needs none of its own is spared torch's import."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

from deepcovid_edge.cli.main import run


class Done(NamedTuple):
    """What a command left, named as `subprocess.CompletedProcess` names it."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: object) -> Done:
    """Run `deepcovid-edge` with arguments."""
    output, messages = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(messages):
        code = run([*map(str, arguments)])
    return Done(code, output.getvalue(), messages.getvalue())
