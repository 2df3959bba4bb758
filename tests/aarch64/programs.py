"""Programs of this machine that the chroot sees, which run there as they are, at full speed.

They are a compiler that makes programs for aarch64, by the name that Debian's Python for arm64 asks
for, and the console and the PACS of a cart. What processor these have decides nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path

TARGET = "aarch64-linux-gnu"
PEERS = (
    *("dcmdump", "dcmsend", "storescu", "storescp", "echoscu", "findscu", "dcmconv", "dcmcrle"),
    *("dcmcjpeg", "dcmcjpls", "dciodvfy", "dsrdump", "Orthanc", "ip", "ps"),
)
_PROGRAMS = "/usr/local/bin:/usr/bin:/usr/sbin"
"""A virtual environment may have programs of the same names (pynetdicom's)."""
_COMPILER_PLACES = ("/usr/lib/gcc-cross", f"/usr/{TARGET}")
_PLACES = ("/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/share/libdcmtk17", "/usr/share/orthanc")
"""Where the libraries and dictionaries of this machine's programs lie."""


def compiler() -> dict[str, Path]:
    """What the chroot sees of the compiler, by its place there."""
    tools = {str(tool): tool.resolve() for tool in Path("/usr/bin").glob(f"{TARGET}-*")}
    plain = {
        f"/usr/bin/{name}": tools[named]
        for name in ("gcc", "g++")
        if (named := f"/usr/bin/{TARGET}-{name}") in tools
    }
    return {**_there(_PLACES[:2]), **_there(_COMPILER_PLACES), **tools, **plain}


def peers() -> dict[str, Path]:
    """What the chroot sees of consoles, PACS and validators: those that are installed."""
    named = (shutil.which(name, path=_PROGRAMS) for name in PEERS)
    found = {place: Path(place).resolve() for place in named if place}
    return {**_there(_PLACES), **found}


def _there(places: tuple[str, ...]) -> dict[str, Path]:
    return {place: Path(place).resolve() for place in places if Path(place).is_dir()}


def why_no_compiler() -> str:
    """Why nothing can be built for aarch64; empty where it can."""
    there = shutil.which(f"{TARGET}-g++")
    return "" if there else f"g++ for aarch64 is not there: apt-get install g++-{TARGET}"
