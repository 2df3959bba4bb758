"""The memory of a process: what its libraries need, asked before they are loaded."""

from __future__ import annotations

import os
import resource

from deepcovid_edge.device.progress import number_of

_MIB = 1 << 20
_PROGRAM, _WORKER = 460, 100
"""MiB of address space: of a program with its libraries and a model, and of each worker beside it.
Seen: 1, 4, 8 and 16 workers fail below 345, 570, 860 and 1,400 (x86_64, ONNX Runtime). With other
programs on all cores 4 workers fail below 800: where a thread first allocates, glibc maps twice the
size of its arena and gives half of that back (malloc/arena.c), and threads then begin together."""
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def needed_address_space(workers: int = 1) -> int:
    """Address space of a program that classifies images, in MiB."""
    return _PROGRAM + workers * _WORKER


def check_address_space(workers: int = 1) -> None:
    """Call before libraries are loaded or threads are started that may not find room.

    Where a limit (`ulimit -v`) ends the address space of a process, libraries do not only fail.
    Some abort, some read from address 0, and a thread that dies while it starts is waited for
    without end (`threading.Thread.start`).

    Raises:
        MemoryError: The limit is below `needed_address_space`.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = needed_address_space(workers)
    if limit != resource.RLIM_INFINITY and limit < needed * _MIB:
        threads = number_of(workers, "worker needs", "workers need")
        raise MemoryError(
            f"`ulimit -v` allows {limit // _MIB} MiB of address space, {threads} {needed}"
        )


def use_one_blas_thread() -> None:
    """Call before NumPy is imported, in a program whose own threads keep the cores busy.

    Else OpenBLAS starts a thread a core and reserves memory for each, in NumPy and again in OpenCV.
    The small products of this package never use them. A number that the caller's environment gives
    is kept.
    """
    os.environ.setdefault(_BLAS_THREADS, "1")
