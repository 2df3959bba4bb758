"""The processor of this machine: its name, and whether it computes INT8 exactly."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from deepcovid_edge.errors import UsageError

_CPUINFO = Path("/proc/cpuinfo")
_DEVICE_TREE = Path("/proc/device-tree/model")
_VNNI = {"avx_vnni", "avx512_vnni"}
_NEVER_SATURATE = 7
INT8_SWITCH = "DEEPCOVID_EDGE_INT8"
"""Environment variable: `off` has any processor count as one that does not compute INT8 exactly."""


def processor_name() -> str:
    """Name of the processor: /proc/cpuinfo on x86, the device tree on a Jetson."""
    named = _entry(_CPUINFO, "model name") or _read(_DEVICE_TREE).strip("\0 \n")
    return named or platform.processor() or platform.machine()


def computes_int8_exactly(
    weight_bits: int = 8, cpuinfo: Path = _CPUINFO, machine: str = ""
) -> bool:
    """Whether sums of INT8 products cannot saturate, and are faster than FP32.

    x86 without VNNI adds two products of uint8 and int8 in 16 bits (VPMADDUBSW), which may
    saturate; the result of `verify` on another processor then does not hold here. Weights of 7 bits
    cannot make it saturate; where there is no AVX2 either, nobody has measured that it is faster.
    ARM multiplies into 16 bits and adds in 32 (ONNX Runtime, Quantize ONNX models, "When and why do
    I need to try U8U8?").

    With `$DEEPCOVID_EDGE_INT8` set to `off` no processor does, so that a machine can be made to
    decide as one without VNNI. It cannot be made to count as one that has it.

    Args:
        weight_bits: Of the weights.
        cpuinfo: The kernel's description of the processor.
        machine: Its architecture; empty for this one's.

    Raises:
        UsageError: The variable is neither `off` nor `auto`, which is as if it were not set.
    """
    if int8_is_switched_off():
        return False
    if (machine or platform.machine()) not in ("x86_64", "AMD64"):
        return True
    flags = set(_entry(cpuinfo, "flags").split())
    return bool(flags & _VNNI) or (weight_bits <= _NEVER_SATURATE and "avx2" in flags)


def int8_is_switched_off() -> bool:
    """Whether $DEEPCOVID_EDGE_INT8 says so; raises as `computes_int8_exactly` does."""
    said = os.environ.get(INT8_SWITCH) or "auto"
    if said not in ("auto", "off"):
        raise UsageError(f"{INT8_SWITCH}: got {said!r}, expected auto or off")
    return said == "off"


def _entry(cpuinfo: Path, key: str) -> str:
    for line in _read(cpuinfo).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
