"""Run a command as on a processor with AVX2 that has neither AVX-512 nor VNNI.

ONNX Runtime chooses its kernels by what CPUID says, and no setting or kernel hides an instruction
set from it. So the command gets a copy of ONNX Runtime in which a breakpoint stands for each CPUID
instruction, and a handler that answers as the processor does, less those sets. The other libraries
have environment variables for it. What ran says so in the device's name: the kernels are those of a
processor without VNNI, the clock, caches and execution units are this one's.

    python -m benchmarks.measure.avx2_alone python -m benchmarks.speed.infer --data DATA

Needs Linux on x86-64, a C compiler and objdump (binutils).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measure import AVX2_ALONE

_LIBRARIES = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "OPENCV_CPU_DISABLE": "AVX512-COMMON,AVX512-SKX,AVX512-CNL,AVX512-CLX,AVX512-ICL",
}
_CPUID, _BREAKPOINT = b"\x0f\xa2", b"\xcc\x90"
_HANDLER = r"""
#define _GNU_SOURCE
#include <signal.h>
#include <ucontext.h>

/* Intel SDM, volume 2A, CPUID, leaf 7: the bits of AVX-512, AVX-VNNI and AMX. */
static void answer(int number, siginfo_t *info, void *context) {
  greg_t *of = ((ucontext_t *)context)->uc_mcontext.gregs;
  unsigned leaf = of[REG_RAX], part = of[REG_RCX];
  unsigned a = leaf, b, c = part, d;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if (leaf == 7 && part == 0) {
    b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
    c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
    d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);
  } else if (leaf == 7 && part == 1) {
    a &= ~(1u << 4 | 1u << 5 | 1u << 21 | 1u << 23);
    d &= ~(1u << 4 | 1u << 5 | 1u << 8 | 1u << 10 | 1u << 19);
  }
  of[REG_RAX] = a; of[REG_RBX] = b; of[REG_RCX] = c; of[REG_RDX] = d;
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
  sigaction(SIGTRAP, &action, 0);
}
"""


def main() -> int:
    """Run the command; returns its exit code."""
    if not sys.argv[1:]:
        sys.exit("usage: python -m benchmarks.measure.avx2_alone COMMAND [ARGUMENT ...]")
    with tempfile.TemporaryDirectory() as folder:
        handler, copies = make_handler(Path(folder)), copy_runtime(Path(folder))
        before = filter(None, [os.environ.get("PYTHONPATH")])
        hidden = {
            **_LIBRARIES,
            AVX2_ALONE: "1",
            "LD_PRELOAD": str(handler),
            "PYTHONPATH": os.pathsep.join([str(copies), *before]),
        }
        return subprocess.run(sys.argv[1:], env={**os.environ, **hidden}, check=False).returncode


def make_handler(folder: Path) -> Path:
    """The library to preload: it answers in the place of CPUID."""
    handler = folder / "handler.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-x", "c", "-", "-o", str(handler)]
    subprocess.run(command, input=_HANDLER, text=True, check=True)
    return handler


def copy_runtime(folder: Path) -> Path:
    """A folder for PYTHONPATH with ONNX Runtime, its CPUID instructions trapped."""
    found = find_spec("onnxruntime")
    if found is None or found.origin is None:
        sys.exit("ONNX Runtime is not installed")
    copy = folder / "onnxruntime"
    shutil.copytree(Path(found.origin).parent, copy)
    for library in copy.glob("capi/onnxruntime_pybind11_state*.so"):
        trap_cpuid(library)
    return folder


def trap_cpuid(library: Path) -> int:
    """Put a breakpoint in the place of each CPUID instruction; returns their number."""
    listed = ["objdump", "--section=.text", "--disassemble", str(library)]
    content, count = bytearray(library.read_bytes()), 0
    offset = _text_offset(library)
    with subprocess.Popen(listed, stdout=subprocess.PIPE, text=True) as lines:
        assert lines.stdout
        for line in lines.stdout:
            if re.search(r"\t0f a2 +\tcpuid$", line.rstrip()):
                place = int(line.split(":")[0], 16) + offset
                assert content[place : place + 2] == _CPUID
                content[place : place + 2] = _BREAKPOINT
                count += 1
    library.write_bytes(content)
    return count


def _text_offset(library: Path) -> int:
    """From an address in the code to its place in the file."""
    headers = subprocess.run(
        ["objdump", "--section-headers", str(library)], capture_output=True, text=True, check=True
    )
    for line in headers.stdout.splitlines():
        if " .text " in line:
            address, _, place = line.split()[3:6]
            return int(place, 16) - int(address, 16)
    raise ValueError(f"{library.name}: no code")


if __name__ == "__main__":
    sys.exit(main())
