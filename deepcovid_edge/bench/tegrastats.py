"""What a Jetson says of itself while it works: one line of `tegrastats` at a time.

NVIDIA Jetson Linux Developer Guide, "tegrastats Utility", "Reported Statistics". Held against
lines of that guide's variant in the tests; no board has run it yet.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import threading

from deepcovid_edge.device import child_process

_EVERY_MS = 100
_END_SECONDS = 1.0
_MEMORY = re.compile(r"\bRAM (\d+)/\d+MB")
_GPU_CLOCK = re.compile(r"\bGR3D_FREQ \d+%@\[?(\d+)")
_TEMPERATURE = re.compile(r"\b([A-Za-z]\w*)@(\d+(?:\.\d+)?)C\b")
_POWER = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)mW/\d+mW")
_INPUT_RAILS = ("VDD_IN", "POM_5V_IN")
"""Rails that feed the whole module; where there is none, the rails are summed."""


def parse_line(line: str) -> dict[str, float | str | None]:
    """A line as the same readings that `nvml` gives; what it does not tell is None.

    `rails` names what was summed into `watts`: module power where the board measures that.
    """
    rails = {name: int(milliwatts) for name, milliwatts in _POWER.findall(line)}
    whole = next((name for name in _INPUT_RAILS if name in rails), None)
    counted = {whole: rails[whole]} if whole else rails
    heat = {name.lower(): float(value) for name, value in _TEMPERATURE.findall(line)}
    clock, memory = _GPU_CLOCK.search(line), _MEMORY.search(line)
    return {
        "gpu_mhz": float(clock[1]) if clock else None,
        "gpu_celsius": heat.get("gpu", heat.get("tj")),
        "gpu_memory_mib": float(memory[1]) if memory else None,
        "watts": sum(counted.values()) / 1000 if counted else None,
        "joules": None,
        "slowed": None,
        "rails": "+".join(sorted(counted)) or None,
    }


class Tegrastats:
    """The tool running beside the measurement; `reading` is its newest line.

    Should this process be killed, the tool ends with its next line, which nobody reads (SIGPIPE).
    """

    def __init__(self) -> None:
        """Start it.

        Raises:
            OSError: This is no Jetson: there is no such tool.
        """
        tool = shutil.which("tegrastats")
        if tool is None:
            raise FileNotFoundError("tegrastats")
        self._process = subprocess.Popen(
            [tool, "--interval", str(_EVERY_MS)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # what it starts itself ends with it
        )
        assert self._process.stdout
        self._pipe = self._process.stdout
        self._line = ""
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def versions(self) -> dict[str, str | None]:
        """None of its own: `jetpack` stands among the device's facts."""
        return {"driver": None, "cuda": None}

    def reading(self) -> dict[str, float | str | None]:
        """See `parse_line`."""
        return parse_line(self._line)

    def close(self) -> None:
        """End the tool."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # it inherited that SIGTERM is ignored
            child_process.end(self._process)
        self._left.set()
        self._thread.join(_END_SECONDS)
        self._pipe.close()

    def _follow(self) -> None:
        """Keep the newest line, until `close`: somebody else may hold the pipe open."""
        waiting, rest = select.poll(), b""
        waiting.register(self._pipe, select.POLLIN)
        while not self._left.is_set():
            if not waiting.poll(_EVERY_MS):
                continue
            block = os.read(self._pipe.fileno(), select.PIPE_BUF)
            if not block:
                return
            *whole, rest = (rest + block).split(b"\n")
            self._line = whole[-1].decode(errors="replace") if whole else self._line
