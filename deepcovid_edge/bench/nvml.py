"""What an NVIDIA GPU says of itself while it works, through the driver's own library (NVML).

NVML API Reference, "Device Queries". The library comes with the driver; a Jetson has none that
tells as much, see `tegrastats`. Held against a fake library in the tests; no GPU has run it yet.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_CLOCK_SM, _SENSOR_GPU = 1, 0
_SLOWED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "brake"}
"""nvmlClocksThrottleReasons: bits that mean the GPU runs below the clock it was asked for."""


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class NvmlError(RuntimeError):
    """Raised when the library answers with an error."""


class Nvml:
    """One GPU. A value that this GPU or driver does not tell is None."""

    def __init__(self, library: Any = None) -> None:
        """Open the library and the first visible GPU.

        Args:
            library: Stands in for the driver's, in tests.

        Raises:
            OSError: There is no such library.
            NvmlError: The driver or the GPU does not answer.
        """
        self._library = library or ctypes.CDLL(_LIBRARY)
        self._check(self._library.nvmlInit_v2())
        self._device = ctypes.c_void_p()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        device = ctypes.byref(self._device)
        if visible.startswith("GPU-"):
            self._check(self._library.nvmlDeviceGetHandleByUUID(visible.encode(), device))
        else:
            number = int(visible) if visible.isdigit() else 0
            self._check(self._library.nvmlDeviceGetHandleByIndex_v2(number, device))

    def versions(self) -> dict[str, str | None]:
        """Of the driver, and of the newest CUDA that it runs."""
        text = ctypes.create_string_buffer(96)
        driver = cuda = None
        if self._library.nvmlSystemGetDriverVersion(text, len(text)) == 0:
            driver = text.value.decode()
        number = ctypes.c_int()
        if self._library.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(number)) == 0:
            cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
        return {"driver": driver, "cuda": cuda}

    def reading(self) -> dict[str, float | str | None]:
        """Clock (MHz), temperature (Celsius), memory in use (MiB), power (W), energy (J), slowed.

        Energy counts from when the driver was loaded.
        """
        power = self._number("nvmlDeviceGetPowerUsage", ctypes.c_uint)
        energy = self._number("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)
        memory = _Memory()
        answer = self._library.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(memory))
        return {
            "gpu_mhz": self._number("nvmlDeviceGetClockInfo", ctypes.c_uint, _CLOCK_SM),
            "gpu_celsius": self._number("nvmlDeviceGetTemperature", ctypes.c_uint, _SENSOR_GPU),
            "gpu_memory_mib": memory.used / 2**20 if answer == 0 else None,
            "watts": None if power is None else power / 1000,
            "joules": None if energy is None else energy / 1000,
            "slowed": self._slowed(),
        }

    def close(self) -> None:
        """Let go of the library."""
        self._library.nvmlShutdown()

    def _slowed(self) -> str | None:
        bits = self._number("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong)
        names = {name for bit, name in _SLOWED.items() if bits and int(bits) & bit}
        return ", ".join(sorted(names)) or None

    def _number(self, function: str, kind: Any, *arguments: int) -> float | None:
        value = kind()
        call = getattr(self._library, function)
        return None if call(self._device, *arguments, ctypes.byref(value)) else float(value.value)

    def _check(self, code: int) -> None:
        if code:
            raise NvmlError(f"NVML answers {code}")
