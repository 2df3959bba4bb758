"""A command is run as on a processor without AVX-512 and VNNI."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure.avx2_alone import copy_runtime, make_handler, trap_cpuid

pytestmark = [
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86"
    ),
    pytest.mark.skipif(
        not (shutil.which("cc") and shutil.which("objdump")),
        reason="needs a C compiler and objdump: apt-get install gcc binutils",
    ),
]

LEAF_7 = """
void registers(unsigned part, unsigned *of) {
  of[0] = 7; of[2] = part;
  __asm__ volatile("cpuid" : "+a"(of[0]), "=b"(of[1]), "+c"(of[2]), "=d"(of[3]));
}
"""
ASKS = """
import ctypes, sys
library, found = ctypes.CDLL(sys.argv[1]), (ctypes.c_uint * 4)()
for part in (0, 1):
    library.registers(part, found)
    print(*found)
"""


def _asked(library: Path, env: dict[str, str]) -> list[list[int]]:
    """EAX, EBX, ECX and EDX of leaf 7, of its parts 0 and 1."""
    command = [sys.executable, "-c", ASKS, str(library)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return [[int(value) for value in line.split()] for line in run.stdout.splitlines()]


def test_the_sets_are_hidden_and_nothing_else(tmp_path: Path) -> None:
    library = tmp_path / "asks.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=LEAF_7, text=True, check=True)
    as_it_is = _asked(library, dict(os.environ))
    assert trap_cpuid(library) == 1
    hidden = _asked(library, {**os.environ, "LD_PRELOAD": str(make_handler(tmp_path))})
    (_, ebx, ecx, _), (eax, *_) = hidden
    assert not ebx & 1 << 16, "AVX512F"
    assert not ecx & 1 << 11, "AVX512_VNNI"
    assert not eax & 1 << 4, "AVX_VNNI"
    kept = 1 << 3 | 1 << 5 | 1 << 8
    assert ebx & kept == as_it_is[0][1] & kept, "BMI1, AVX2, BMI2"
    assert not any(
        bits & ~was
        for found, before in zip(hidden, as_it_is, strict=True)
        for bits, was in zip(found, before, strict=True)
    ), "nothing is made up"


def test_onnx_runtime_computes_in_its_copy(tmp_path: Path) -> None:
    program = "import onnxruntime as it; print(it.__file__, it.get_available_providers())"
    env = {
        **os.environ,
        "LD_PRELOAD": str(make_handler(tmp_path)),
        "PYTHONPATH": str(copy_runtime(tmp_path)),
    }
    run = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(str(tmp_path))
    assert "CPUExecutionProvider" in run.stdout
