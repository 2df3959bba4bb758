"""`cart run`: every role as a process of its own, started again when one ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.device.child_process import end, ending_with_this
from deepcovid_edge.device.ports import check_free
from deepcovid_edge.device.service import log

ROLES = ("receive", "work")
_LOOK_SECONDS = 0.2
_STOP_SECONDS = 15.0
_RESTART_SECONDS = (0.5, 2.0, 10.0, 60.0)
_PORT_SECONDS = 5.0
"""The roles of a cart that was killed leave their ports a moment later."""
_STEADY_SECONDS = 60.0
"""A role that ran so long is started again at once."""


@dataclass
class _Role:
    name: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    next_start: float = field(default_factory=time.monotonic)


def run_roles(
    config: CartConfig, data: bytes, stop: threading.Event, roles: tuple[str, ...] = ROLES
) -> None:
    """Run the roles until the stop; they end with this process, even where it is killed.

    The thread that calls this must stay: the kernel ends the roles with it.

    Args:
        config: The configuration.
        data: What its file held: roles get this, whatever becomes of the file.
        stop: Ends this.
        roles: The roles.

    Raises:
        NotThereError: A port of theirs cannot be listened on.
    """
    if "receive" in roles and config.listens:
        place = config.receive
        check_free("receive.port", place.host, place.port, seconds=_PORT_SECONDS)
    if "page" in roles and config.page:
        check_free("page.port", config.page.host, config.page.port, seconds=_PORT_SECONDS)
    running = [_Role(name) for name in roles]
    try:
        while not stop.wait(_LOOK_SECONDS):
            for role in running:
                _look(config.path, data, role)
    finally:
        _end_all(running)


def _look(path: Path, data: bytes, role: _Role) -> None:
    now = time.monotonic()
    if role.process is None:
        if now >= role.next_start:
            _start(path, data, role)
        return
    code = role.process.poll()
    if code is None:
        return
    steady = now - role.started >= _STEADY_SECONDS
    role.failures = 0 if steady else role.failures + 1
    wait = _RESTART_SECONDS[min(role.failures, len(_RESTART_SECONDS) - 1)]
    log("role ended", role=role.name, code=code, again_in=wait)
    role.process, role.next_start = None, now + wait


def _start(path: Path, data: bytes, role: _Role) -> None:
    command = [sys.executable, "-m", "deepcovid_edge", "cart", role.name, str(path), "--stdin"]
    with os.fdopen(os.memfd_create("cart.toml"), "w+b") as given:  # a pipe may be too small
        given.write(data)
        given.seek(0)
        role.process = subprocess.Popen(
            ending_with_this(command), stdin=given, start_new_session=True
        )
    role.started = time.monotonic()
    log("role started", role=role.name, pid=role.process.pid)


def _end_all(running: list[_Role]) -> None:
    """Ask every role to end, and end those that do not."""
    processes = [role.process for role in running if role.process]
    for process in processes:
        process.terminate()
    ends = time.monotonic() + _STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            log("role killed", pid=process.pid)
        end(process)
