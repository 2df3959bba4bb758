"""Runs the programs of the installation, and waits until the services run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

from deepcovid_edge.errors import DeepCovidEdgeError

_SECONDS = 120.0
"""Longest time for a program, and for the services to be ready."""
_LOOK_SECONDS = 0.5
_STARTS = 3
"""A service that is started again this often meanwhile does not come up by itself."""
_LOG = "journalctl --namespace deepcovid-edge -n 20"


class InstallError(DeepCovidEdgeError):
    """Raised when a program of the installation failed, or a service does not run."""


def wait_until_active(units: Sequence[str], seconds: float = _SECONDS) -> None:
    """Wait until services are ready whose start, or restart, systemd has queued.

    Raises:
        InstallError: One has failed, was started again and again, or is not ready in time.
    """
    ends = time.monotonic() + seconds
    waiting = list(units)
    starts: dict[str, int] = {}
    while waiting := [unit for unit in waiting if not _is_active(unit, starts)]:
        if time.monotonic() >= ends:
            raise InstallError(
                f"{waiting[0]}: is not ready after {seconds:g} s; its log: {_LOG} -u {waiting[0]}"
            )
        time.sleep(_LOOK_SECONDS)


def _is_active(unit: str, starts: dict[str, int]) -> bool:
    """Whether a service is ready; `starts` holds how often each had been started again before."""
    said = run_program(("systemctl", "show", "-p", "ActiveState,NRestarts,Job", unit))
    values = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    is_queued = bool(values.get("Job"))  # what it is now, it was before
    if values["ActiveState"] == "active" and not is_queued:
        return True
    count = int(values["NRestarts"])
    starts[unit] = min(count, starts.get(unit, count))  # systemd may begin again at 0
    has_failed = values["ActiveState"] == "failed" and not is_queued
    if has_failed or count - starts[unit] >= _STARTS:
        raise InstallError(f"{unit}: does not run; its log: {_LOG} -u {unit}")
    return False


def run_program(command: Sequence[str]) -> str:
    """Run a program of the system; what it printed.

    Raises:
        InstallError: It failed, or took too long.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise InstallError(f"{' '.join(command)}: {said[-1] if said else done.returncode}")
    return done.stdout
