"""What every process of a service does alike: its log, its stop, its word to systemd."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

_lock = threading.Lock()


def log(event: str, **detail: Any) -> None:
    """Write one line of JSON to standard output; journald adds the time.

    Args:
        event: A fixed name.
        detail: Plain values; never a name of a patient, never a UID.
    """
    line = json.dumps({"event": event, **detail}, default=str)
    with _lock:
        print(line, flush=True)


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set; the process ends when it is set."""
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return stop


def notify(*states: str) -> None:
    """Tell systemd how the service does (sd_notify(3)), where systemd started it.

    Args:
        states: Such as `READY=1`, `WATCHDOG=1` or `STATUS=...`.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as told:
            told.sendto("\n".join(states).encode(), name)
    except OSError as error:
        print(f"systemd does not listen: {error}", file=sys.stderr)
