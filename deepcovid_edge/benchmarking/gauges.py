"""Readings of an NVIDIA GPU while it works: from the driver (NVML), on a Jetson from tegrastats.

NVML API Reference, "Device Queries", through the package nvidia-ml-py; NVIDIA Jetson Linux
Developer Guide, "tegrastats Utility", "Reported Statistics". No GPU and no board has run this yet:
tests give known answers and lines of the form that the guide shows.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from typing import Any, Protocol

from deepcovid_edge.device import child_process
from deepcovid_edge.errors import NotThereError, require

Reading = dict[str, float | str | None]

_SLOWED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "brake"}
"""nvmlClocksThrottleReasons: bits that mean the GPU runs below the clock it was asked for."""
_EVERY_MS = 100
_END_SECONDS = 1.0
_MEMORY = re.compile(r"\bRAM (\d+)/\d+MB")
_GPU_CLOCK = re.compile(r"\bGR3D_FREQ \d+%@\[?(\d+)")
_TEMPERATURE = re.compile(r"\b([A-Za-z]\w*)@(\d+(?:\.\d+)?)C\b")
_POWER = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)mW/\d+mW")
_INPUT_RAILS = ("VDD_IN", "POM_5V_IN")
"""Rails that feed the whole module; where there is none, the rails are summed."""


class GpuGauge(Protocol):
    """Readings of a GPU; a value that it does not give is None."""

    def versions(self) -> dict[str, str | None]:
        """Driver and CUDA."""

    def reading(self) -> Reading:
        """Clock (MHz), temperature (Celsius), memory in use (MiB), power (W), energy (J), slowed.

        Energy counts from when the driver was loaded.
        """

    def close(self) -> None:
        """Release it."""


def gpu_gauge() -> GpuGauge | None:
    """NVML, else tegrastats, else None: there is no NVIDIA GPU that can be read here."""
    for kind in (Nvml, Tegrastats):
        try:
            return kind()
        except (OSError, NotThereError):
            continue
    return None


class Nvml:
    """One GPU, read through its driver."""

    def __init__(self) -> None:
        """Open the driver's library and the first visible GPU.

        Raises:
            NotThereError: nvidia-ml-py is not installed, or the driver or the GPU does not answer.
        """
        self._nvml: Any = require("pynvml", extra="gpu")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        try:
            self._nvml.nvmlInit()
            if visible.startswith("GPU-"):
                self._device = self._nvml.nvmlDeviceGetHandleByUUID(visible)
            else:
                number = int(visible) if visible.isdigit() else 0
                self._device = self._nvml.nvmlDeviceGetHandleByIndex(number)
        except self._nvml.NVMLError as error:
            raise NotThereError(f"NVML: {error}") from error

    def versions(self) -> dict[str, str | None]:
        """Version of the driver, and of the newest CUDA that it runs."""
        driver = self._answer("nvmlSystemGetDriverVersion")
        cuda = self._answer("nvmlSystemGetCudaDriverVersion_v2")
        return {"driver": driver, "cuda": cuda and f"{cuda // 1000}.{cuda % 1000 // 10}"}

    def reading(self) -> Reading:
        """See `GpuGauge.reading`."""
        nvml, device = self._nvml, self._device
        memory = self._answer("nvmlDeviceGetMemoryInfo", device)
        bits = self._answer("nvmlDeviceGetCurrentClocksThrottleReasons", device) or 0
        slowed = {name for bit, name in _SLOWED.items() if bits & bit}
        return {
            "gpu_mhz": self._number("nvmlDeviceGetClockInfo", device, nvml.NVML_CLOCK_SM),
            "gpu_celsius": self._number(
                "nvmlDeviceGetTemperature", device, nvml.NVML_TEMPERATURE_GPU
            ),
            "gpu_memory_mib": memory and memory.used / 2**20,
            "watts": self._number("nvmlDeviceGetPowerUsage", device, scale=1000),
            "joules": self._number("nvmlDeviceGetTotalEnergyConsumption", device, scale=1000),
            "slowed": ", ".join(sorted(slowed)) or None,
        }

    def close(self) -> None:
        """Release the library."""
        self._nvml.nvmlShutdown()

    def _number(self, function: str, *arguments: Any, scale: float = 1) -> float | None:
        answer = self._answer(function, *arguments)
        return None if answer is None else answer / scale

    def _answer(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError:
            return None


class Tegrastats:
    """The tool running beside the measurement; `reading` is its newest line.

    Should this process be killed, the tool ends with its next line, which nobody reads (SIGPIPE).
    """

    def __init__(self) -> None:
        """Start it.

        Raises:
            NotThereError: This is no Jetson: there is no such tool.
        """
        tool = shutil.which("tegrastats")
        if tool is None:
            raise NotThereError("tegrastats: no such tool")
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

    def reading(self) -> Reading:
        """See `parse_line`."""
        return parse_line(self._line)

    def close(self) -> None:
        """End the tool."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):  # it inherited that SIGTERM is ignored
            self._process.wait(_END_SECONDS)
        self._left.set()
        self._thread.join(_END_SECONDS)
        child_process.end(self._process)  # closes the pipe, which nobody reads now

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


def parse_line(line: str) -> Reading:
    """A line of tegrastats as a reading; a value that it does not hold is None.

    `rails` names what was summed into `watts`: module power where the board measures it.
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
