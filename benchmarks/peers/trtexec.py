"""trtexec, where it is: the network alone, host to host, by its own --exportTimes.

trtexec 11 changed its defaults (CUDA graph and spin-wait on, transfers off), and no longer knows
the flags for them. So the options stand with the figures, and only the times of the copies and of
the network, which every version exports for each query, are compared.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure.programs import run_child

_LIMIT_SECONDS = 600
"""Longest run: it builds an engine first."""

PLACES = ("/usr/src/tensorrt/bin/trtexec",)
"""Where JetPack and the Debian packages put it, beside what PATH names."""
PARTS = {"h2dMs": "host_to_device", "computeMs": "compute", "d2hMs": "device_to_host"}
SECONDS = 3


def find() -> str | None:
    """trtexec, on PATH or where it is installed."""
    return shutil.which("trtexec") or next((one for one in PLACES if Path(one).is_file()), None)


def measure(model: Path, batch: int) -> dict[str, Any]:
    """Medians of the parts of a query, milliseconds, and the options that were used.

    Raises:
        FileNotFoundError: There is no trtexec.
        RuntimeError: It failed; its last line.
    """
    program = find()
    if program is None:
        raise FileNotFoundError("trtexec is not installed")
    help_text = run_child([program, "--help"], seconds=_LIMIT_SECONDS).stdout
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder, "times.json")
        options = asked(model, batch, times, help_text)
        done = run_child([program, *options], seconds=_LIMIT_SECONDS)
        if done.returncode:
            raise RuntimeError(f"trtexec: {last_error(done.stdout + done.stderr)}")
        queries = json.loads(times.read_text("utf-8"))
    medians = {
        name: statistics.median(query[key] for query in queries) for key, name in PARTS.items()
    }
    version = re.search(r"TensorRT[. ]v?(\d[\d.]*)", done.stdout)
    return {
        "version": version[1] if version else None,
        "options": [option for option in options if "/" not in option],
        "queries": len(queries),
        "ms": {**medians, "host_to_host": sum(medians.values())},
    }


def asked(model: Path, batch: int, times: Path, help_text: str) -> list[str]:
    """Options that this trtexec knows: CUDA graph on, no spinning, the graph's own precision."""
    shape = f"images:{batch}x224x224"
    options = [f"--onnx={model}", f"--shapes={shape}", f"--exportTimes={times}"]
    options += [f"--duration={SECONDS}", "--warmUp=500"]
    wanted = ("--stronglyTyped", "--useCudaGraph")
    if "--includeTransfers" in help_text:  # 11: graphs and types are its defaults, transfers not
        return [*options, "--includeTransfers"]
    return [*options, *(flag for flag in wanted if flag in help_text)]


def last_error(output: str) -> str:
    """The last line that names an error, or the last line."""
    lines = [line for line in output.splitlines() if "[E]" in line] or output.splitlines()
    return lines[-1] if lines else "no output"
