"""Heat maps of the same images on this processor and on one that qemu is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from aarch64.checks import CHECKOUT
from aarch64.chroot import Chroot, ChrootError
from aarch64.installed import PLACE
from deepcovid_edge.heatmaps.agreement import compare_maps, summarise

IMAGES = {"fp32": 2, "int8-cpu": 6}
"""Variant -> how many: an FP32 map takes minutes under emulation."""
LEAST_RANK_CORRELATION = 0.99
"""Of the maps of one image, the worst one's."""
_METHODS = ("activation", "occlusion")
_SECONDS = 3600.0
_PLACE = "/srv/maps"
_PROGRAM = Path(__file__).with_name("maps.py")


def heat_maps(chroot: Chroot, data: Path, here: Path) -> dict[str, Any]:
    """Make the maps on both, and compare them.

    Args:
        chroot: With the product; sees the images at /mnt/xray.
        data: The images.
        here: Folder for this machine's maps.
    """
    rows, broken = [], []
    for variant, most in IMAGES.items():
        own, other = here / variant, Path(f"{chroot.folder}{_PLACE}", variant)
        words = ["--variant", variant, "--most", str(most), "-o"]
        command = [sys.executable, str(_PROGRAM), str(data), *words, str(own)]
        _check(variant, subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS))
        emulated = [f"{PLACE}/bin/python", f"{CHECKOUT}/tests/aarch64/maps.py", "/mnt/xray", *words]
        done = chroot.run(
            *emulated,
            f"{_PLACE}/{variant}",
            limit_s=_SECONDS,
            environment={"PYTHONPATH": f"{CHECKOUT}/tests"},
        )
        _check(variant, done)
        for method in _METHODS:
            rows.append({"variant": variant, "method": method, **_compared(own, other, method)})
    for row in rows:
        worst = row["rank_correlation_least"]
        if worst < LEAST_RANK_CORRELATION:
            broken.append(f"{row['method']} maps, {row['variant']}: rank correlation {worst:.4f}")
    return {"processor": chroot.processor.name, "maps": rows, "broken": broken}


def _compared(own: Path, other: Path, method: str) -> dict[str, Any]:
    """Agreement of the maps of one method in two folders."""
    names = sorted(path.name for path in own.glob(f"*-{method}.npy"))
    pairs = [(np.load(own / name), np.load(other / name)) for name in names]
    found = [compare_maps(one, another) for one, another in pairs]
    return {
        "images": len(pairs),
        "equal": sum(np.array_equal(one, another) for one, another in pairs),
        "rank_correlation_least": min(one.rank_correlation for one in found),
        **summarise(found),
    }


def _check(what: str, done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise ChrootError(f"heat maps, {what}: {done.stderr.strip().splitlines()[-1:]}")
