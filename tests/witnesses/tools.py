"""The programs that write and read files beside this package, and what is missing of them."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

DICOM_PROGRAMS = {
    "dcmtk": ("dcmj2pnm", "dcml2pnm", "dcmconv", "dcmcrle", "dcmcjpeg", "dcmcjpls"),
    "libgdcm-tools": ("gdcmconv",),
    "libopenjp2-tools": ("opj_compress", "opj_decompress"),
    "openjph-tools": ("ojph_compress",),
    "libjpeg-turbo-progs": ("cjpeg",),
}
PICTURE_PROGRAMS = {
    "graphicsmagick": ("gm",),
    "libjpeg-turbo-progs": ("cjpeg", "jpegtran"),
    "libtiff-tools": ("tiffcp",),
    "webp": ("cwebp",),
}
MOST_SECONDS = 120.0
_GROUPS = re.compile(r"\((0002|0008|0028|0040|2050|60|7fe0|fffe)", re.IGNORECASE)
"""Groups of the elements that a picture depends on."""


class ToolError(Exception):
    """A program did not do what it was asked for; the text is what it wrote."""


def missing(programs: dict[str, tuple[str, ...]]) -> str | None:
    """What to install, or None where every program is there."""
    packages = [
        package
        for package, names in programs.items()
        if any(shutil.which(name) is None for name in names)
    ]
    return f"not found: apt-get install {' '.join(packages)}" if packages else None


def run(command: Sequence[str | Path]) -> str:
    """Run a program and return what it wrote.

    Raises:
        ToolError: It failed, or took too long.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            timeout=MOST_SECONDS,
            stdin=subprocess.DEVNULL,
            env=_environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{words[0]}: longer than {MOST_SECONDS:g} s") from error
    said = (done.stdout + done.stderr).decode("latin-1").strip()
    if done.returncode:
        raise ToolError(f"{words[0]}: {said or done.returncode}")
    return said


@cache
def _environment() -> dict[str, str]:
    """DCMTK spends half of its time on its dictionary; a part of it is enough."""
    found = sorted(Path("/usr/share").glob("*dcmtk*/dicom.dic"))
    if not found:
        return dict(os.environ)
    folder = tempfile.mkdtemp(prefix="witnesses-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    part = Path(folder, "dicom.dic")
    lines = found[0].read_text("latin-1").splitlines(keepends=True)
    part.write_text("".join(line for line in lines if _GROUPS.match(line)), "latin-1")
    return {**os.environ, "DCMDICTPATH": str(part)}


def version(command: Sequence[str], pattern: str = r"v?(\d+\.\d[\w.]*)") -> str:
    """The version that a program writes about itself, or `unknown`."""
    done = subprocess.run(command, capture_output=True, timeout=MOST_SECONDS)
    found = re.search(pattern, (done.stdout + done.stderr).decode("latin-1"))
    return found[1] if found else "unknown"
