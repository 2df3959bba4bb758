"""The NVIDIA GPU of this machine: from pycuda where it is installed, else from the driver's tool.

On a Jetson, which has no such tool, the device tree names the board.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from deepcovid_edge.device.child_process import output_of

_JETSON_CAPABILITIES = {"orin": "sm87", "thor": "sm110", "xavier": "sm72"}
_TOOL_SECONDS = 20.0
"""The driver may take seconds to wake up; of a GPU that has failed its tool never answers."""


@dataclass(frozen=True)
class GpuFacts:
    """An NVIDIA GPU.

    Attributes:
        name: Its name, such as `Orin` or `NVIDIA H200`.
        capability: Compute capability, such as `sm87`.
        driver: Version of the driver, or of CUDA where the driver's is unknown.
        free_mib: Free memory, MiB; None where unknown.
    """

    name: str
    capability: str
    driver: str = ""
    free_mib: int | None = None


def find_gpu() -> GpuFacts | None:
    """The first GPU, or None where none is found."""
    return _by_pycuda() or _by_tool() or _by_device_tree()


def _by_pycuda() -> GpuFacts | None:
    try:
        cuda = import_module("pycuda.driver")
        cuda.init()
        device = cuda.Device(0)
        major, minor = device.compute_capability()
        free = None
        with suppress(Exception):  # free memory needs a context; without one it stays unknown
            context = device.retain_primary_context()
            context.push()
            free = cuda.mem_get_info()[0] >> 20
            context.pop()
        version = ".".join(str(part) for part in cuda.get_version()[:2])
        return GpuFacts(device.name(), f"sm{major}{minor}", f"CUDA {version}", free)
    except Exception:  # not installed, no driver, no device: each raises its own type
        return None


def _by_tool() -> GpuFacts | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = "name,compute_cap,driver_version,memory.free"
    command = [tool, f"--query-gpu={asked}", "--format=csv,noheader,nounits"]
    said = output_of(command, seconds=_TOOL_SECONDS)
    try:
        name, capability, driver, free = (
            part.strip() for part in (said or "").splitlines()[0].split(",")
        )
    except (ValueError, IndexError):
        return None
    if not re.fullmatch(r"\d+\.\d+", capability):
        return None
    memory = int(free) if free.isdigit() else None
    return GpuFacts(name, "sm" + capability.replace(".", ""), driver, memory)


def _by_device_tree(root: Path = Path("/")) -> GpuFacts | None:
    try:
        model = (root / "proc/device-tree/model").read_text(errors="replace").strip("\0 \n")
    except OSError:
        return None
    for family, capability in _JETSON_CAPABILITIES.items():
        if family in model.lower():
            return GpuFacts(model, capability)
    return None
