"""A program whose messages go to a terminal, as a person sees them."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import tempfile
from typing import NamedTuple

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Shown(NamedTuple):
    """What a program left, named as `subprocess.CompletedProcess` names it.

    Attributes:
        returncode: Its exit code.
        stdout: What went to its output, which is no terminal.
        terminal: What went to its messages, without colours and movements of the cursor.
    """

    returncode: int
    stdout: str
    terminal: str


def on_terminal(command: list[str]) -> Shown:
    """Run a program whose stderr is a terminal."""
    screen, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=terminal,
            env=environment,
        )
        os.close(terminal)
        shown = b""
        while block := _read(screen):
            shown += block
        os.close(screen)
        code = process.wait(60)
        output.seek(0)
        return Shown(code, output.read().decode(), _CONTROL.sub("", shown.decode()))


def _read(screen: int) -> bytes:
    """More of what is shown; nothing once nobody has the terminal open any more (EIO)."""
    try:
        return os.read(screen, 1 << 16)
    except OSError:
        return b""
