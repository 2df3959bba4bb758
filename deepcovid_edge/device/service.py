"""What every process of a service does alike: its log, its stop, its word to systemd."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from deepcovid_edge.device.streams import drop_buffer, drop_writes

_BEAT_SECONDS = 5.0
_PACKAGE = Path(__file__).parents[1]
_lock = threading.Lock()
_json = json.JSONEncoder(default=str).encode


def log(event: str, **detail: Any) -> None:
    """Write one line of JSON to standard output; journald adds the time.

    Args:
        event: A fixed name.
        detail: Plain values; never a name of a patient, never a UID.
    """
    line = _json({"event": event, **detail}) + "\n"
    with _lock:
        try:
            sys.stdout.write(line)  # `print` writes the line's end by itself without a buffer
            sys.stdout.flush()
        except BrokenPipeError:  # nobody reads the log any more: the service goes on
            drop_writes(sys.stdout)
        except (OSError, ValueError):  # a full disk may have room for the next line
            drop_buffer(sys.stdout)


def log_fault(event: str, error: BaseException) -> None:
    """Log a fault of the program by its kind and the lines of this package that it passed.

    What an exception says may hold a value of an image's header, so it is not logged.

    Args:
        event: A fixed name.
        error: What was raised.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in ours]
    log(event, kind=type(error).__name__, where=where)


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set; the process ends when it is set.

    One that the watchdog ends (SIGABRT) says where each of its threads was; no value is said.
    """
    faulthandler.enable()
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return stop


def beat_seconds() -> float:
    """Time between two words to systemd's watchdog: a third of what it waits, at most 5 s."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    waits = int(microseconds) / 1e6 if microseconds.isdigit() else 3 * _BEAT_SECONDS
    return min(_BEAT_SECONDS, waits / 3)


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
