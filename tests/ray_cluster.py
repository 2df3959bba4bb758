"""Ray clusters of tests: nodes that are processes of this machine, on loopback, and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from cart_peers import free_port

HOST = "127.0.0.1"
_PROGRAM = Path(sys.executable).with_name("ray")
_STORE_BYTES = 100 << 20
_START_SECONDS = 180.0
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


class Node:
    """A node: `ray start --block`, with all that it starts in a session of its own.

    Args:
        folder: For its log; also Ray's own folder.
        address: Of the head; None for the head itself.
        cpus: That Ray counts.
    """

    def __init__(self, folder: Path, address: str | None = None, cpus: int = 2) -> None:
        self.port = free_port()
        self.address = address or f"{HOST}:{self.port}"
        words = [str(_PROGRAM), "start", "--block", f"--node-ip-address={HOST}"]
        words += [f"--num-cpus={cpus}", f"--object-store-memory={_STORE_BYTES}"]
        self.client_port = free_port()
        words += ["--disable-usage-stats"]
        if address:
            words += [f"--address={address}"]
        else:
            words += ["--head", f"--port={self.port}", "--include-dashboard=false"]
            words += [f"--ray-client-server-port={self.client_port}"]
        self._log = (folder / f"node-{self.port}.log").open("wb")
        self.process = subprocess.Popen(
            words,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )

    def wait(self) -> None:
        """Wait until it has joined."""
        ends = time.monotonic() + _START_SECONDS
        while time.monotonic() < ends and self.process.poll() is None:
            if b"Ray runtime started" in Path(self._log.name).read_bytes():
                return
            time.sleep(0.2)
        raise RuntimeError(Path(self._log.name).read_text()[-2000:])

    def processes(self) -> list[int]:
        """Its processes."""
        found = [self.process.pid]
        for process in found:
            found += children(process)
        return found

    def kill(self) -> None:
        """SIGKILL for all its processes."""
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait(20)

    def close(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.kill()
        self._log.close()


def children(process: int) -> list[int]:
    """The children of a process."""
    command = ["ps", "-o", "pid=", "--ppid", str(process)]
    return [
        int(one) for one in subprocess.run(command, capture_output=True, text=True).stdout.split()
    ]


def actors(below: int) -> list[int]:
    """Processes below one that are actors with a worker."""
    found = [below]
    for process in found:
        found += children(process)
    return [process for process in found if b"ray::MapWorker" in _command(process)]


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
