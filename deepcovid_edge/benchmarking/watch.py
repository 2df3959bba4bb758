"""The machine beside a run: clocks, temperatures, memory, power, and who else used the cores.

A thread takes a reading every half second, of the GPU too where it can be read (`gauges`). What
this process started belongs to it: compressed DICOM images are decoded in children.
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import statistics
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcovid_edge.benchmarking.gauges import GpuGauge
from deepcovid_edge.device.process_tree import process_tree

_EVERY_SECONDS = 0.5
_END_SECONDS = 10.0
"""Longest wait for a last reading: a driver may be slow, or never answer."""
_MOST_CORES = 16
"""Reading a core's clock interrupts it, so no more than these are read."""
_HEAT = re.compile(r"cpu|pkg|soc|tj", re.IGNORECASE)

Reading = dict[str, Any]


def cpu_reading(root: Path = Path("/")) -> Reading:
    """Clock of this process's cores (MHz, median) and the hottest CPU sensor (Celsius), or None."""
    return {"cpu_mhz": _cpu_mhz(root), "cpu_celsius": _cpu_celsius(root)}


def peak_rss_mib() -> float:
    """Largest resident memory of this process until now, and of each one below it, summed; MiB."""
    below = [one.pid for one in process_tree(os.getpid())[1:]]
    own = _peak_kib(os.getpid()) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (own + sum(map(_peak_kib, below))) / 1024


class Watch:
    """Readings from the start to the end of a `with`."""

    def __init__(self, gauge: GpuGauge | None, *, every: float = _EVERY_SECONDS) -> None:
        self._gauge, self._every = gauge, every
        self._readings: list[tuple[float, Reading]] = []
        self._left = threading.Event()

    def __enter__(self) -> Watch:
        self._cores = _core_seconds(), _own_seconds(), time.monotonic()
        self._read()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join(_END_SECONDS)
        if not self._thread.is_alive():  # else its last reading has no answer, and none follows
            self._read()
        self._used = _shares(self._cores)

    def facts(self) -> dict[str, Any]:
        """Each reading as first, last, lowest, highest; energy; who else used the cores."""
        columns: dict[str, list[Any]] = {}
        for _, reading in self._readings:
            for name, value in reading.items():
                if value is not None:
                    columns.setdefault(name, []).append(value)
        slowed = sorted(set(columns.pop("slowed", ())))
        ranges = {
            name: _range(values)
            for name, values in columns.items()
            if name not in ("joules", "rails")
        }
        return {**ranges, "slowed": slowed, "energy": energy(self._readings), **self._used}

    def _follow(self) -> None:
        while not self._left.wait(self._every):
            self._read()

    def _read(self) -> None:
        gpu = self._gauge.reading() if self._gauge else {}
        self._readings.append((time.monotonic(), {**cpu_reading(), **gpu}))


def energy(readings: list[tuple[float, Reading]]) -> dict[str, Any] | None:
    """Joules between the first and the last reading, and by what they were measured.

    By the GPU's own counter, else by the trapezoid rule over its power; None without either.
    """
    counted = [values["joules"] for _, values in readings if values.get("joules") is not None]
    if len(counted) >= 2:
        return {"joules": counted[-1] - counted[0], "by": "the GPU's energy counter (NVML)"}
    power = [
        (when, values["watts"]) for when, values in readings if values.get("watts") is not None
    ]
    if len(power) < 2:
        return None
    joules = sum(
        (later - earlier) * (first + second) / 2
        for (earlier, first), (later, second) in itertools.pairwise(power)
    )
    rails = next((values["rails"] for _, values in readings if values.get("rails")), None)
    return {"joules": joules, "by": f"power of {rails or 'the GPU'} over time"}


def _range(values: list[float]) -> Mapping[str, float]:
    return {
        "first": values[0],
        "last": values[-1],
        "min": min(values),
        "max": max(values),
        "median": statistics.median(values),
    }


def _cpu_mhz(root: Path) -> float | None:
    cores = sorted(os.sched_getaffinity(0))[:_MOST_CORES]
    clocks = [
        int(text) / 1000
        for core in cores
        if (text := _text(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"))
    ]
    if not clocks:
        listed = re.findall(r"^cpu MHz\s*: ([\d.]+)", _text(root / "proc/cpuinfo"), re.MULTILINE)
        clocks = [float(value) for value in listed]
    return statistics.median(clocks) if clocks else None


def _cpu_celsius(root: Path) -> float | None:
    heat = [
        int(text) / 1000
        for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"))
        if _HEAT.search(_text(zone / "type")) and (text := _text(zone / "temp"))
    ]
    return max(heat, default=None)


def _peak_kib(pid: int) -> int:
    """VmHWM of proc_pid_status(5); 0 where the kernel does not have it, or the process ended."""
    found = re.search(r"VmHWM:\s+(\d+) kB", _text(Path(f"/proc/{pid}/status")))
    return int(found[1]) if found else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # a sensor may be listed and not answer
        return ""


def _core_seconds() -> tuple[float, float]:
    """Busy and stolen seconds of this process's cores since the machine began (proc_stat(5))."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    busy = stolen = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name in cores:
            user, nice, system, _, _, irq, softirq, steal, *_ = map(int, ticks)
            busy += user + nice + system + irq + softirq
            stolen += steal
    second = os.sysconf("SC_CLK_TCK")
    return busy / second, stolen / second


def _own_seconds() -> float:
    return sum(one.cpu_seconds for one in process_tree(os.getpid()))


def _shares(before: tuple[tuple[float, float], float, float]) -> dict[str, float]:
    """Shares of this process's cores, 0 to 1: used by it with its children, by others, stolen."""
    (busy, stolen), own, began = before
    (busy_now, stolen_now), own_now = _core_seconds(), _own_seconds()
    whole = (time.monotonic() - began) * len(os.sched_getaffinity(0))
    others = (busy_now - busy) - (own_now - own)
    return {
        "own_share": (own_now - own) / whole,
        "others_share": max(0.0, others / whole),
        "stolen_share": (stolen_now - stolen) / whole,
        "load_average": os.getloadavg()[0],
    }
