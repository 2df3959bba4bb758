"""NVIDIA Jetson: which JetPack is installed, and in what power mode the board runs."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from deepcovid_edge.device.child_process import output_of

# L4T release -> JetPack (NVIDIA's JetPack archive); the longest matching prefix counts.
_JETPACK = {
    "36.4.0": "6.1",
    "36.4.2": "6.1",
    "36.4": "6.2",
    "36.5": "6.2",
    "36": "6",
    "38.2": "7.0",
    "38.4": "7.1",
    "38": "7",
    "39.2": "7.2",
}
_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")
_PACKAGE = re.compile(r"^Package: nvidia-l4t-core$.*?^Version: (\d+\.\d+(?:\.\d+)?)", re.M | re.S)


def find_release(root: Path = Path("/")) -> str | None:
    """Such as `JetPack 6.2 (L4T 36.4.3)`, or None where this is not a Jetson.

    Args:
        root: Root of the file system, for tests.
    """
    l4t = _l4t(root)
    if l4t is None:
        return None
    parts = l4t.split(".")
    beginnings = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    version = next((_JETPACK[part] for part in beginnings if part in _JETPACK), "unknown")
    return f"JetPack {version} (L4T {l4t})"


def _l4t(root: Path) -> str | None:
    """The L4T release from its release file, else from the package database."""
    sources = ((root / "etc/nv_tegra_release", _RELEASE), (root / "var/lib/dpkg/status", _PACKAGE))
    for file, pattern in sources:
        try:
            match = pattern.search(file.read_text(errors="replace"))
        except OSError:
            continue
        if match:
            return ".".join(match.groups())
    return None


def power_mode() -> str | None:
    """The board's power mode as nvpmodel names it, such as `MAXN`, or None."""
    tool = shutil.which("nvpmodel")
    if tool is None:
        return None
    match = re.search(r"NV Power Mode: (\S+)", output_of([tool, "-q"], seconds=10) or "")
    return match[1] if match else None


def hidden_tensorrt(root: Path = Path("/")) -> bool:
    """Whether JetPack's tensorrt is on the machine but not visible in this environment."""
    if find_spec("tensorrt") is not None:
        return False
    return any(root.glob("usr/lib/python3*/dist-packages/tensorrt/__init__.py"))
