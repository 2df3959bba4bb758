"""The programs that write and read files beside this package, and what is missing of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

DICOM_PROGRAMS = {
    "dcmtk": (*("dcmj2pnm", "dcml2pnm", "dcmconv", "dcmcrle", "dcmcjpeg", "dcmcjpls"),),
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
MOST_SECONDS = 60.0


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
            words, capture_output=True, timeout=MOST_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{words[0]}: longer than {MOST_SECONDS:g} s") from error
    said = (done.stdout + done.stderr).decode("latin-1").strip()
    if done.returncode:
        raise ToolError(f"{words[0]}: {said or done.returncode}")
    return said


def version(command: Sequence[str], pattern: str = r"v?(\d+\.\d[\w.]*)") -> str:
    """The version that a program writes about itself, or `unknown`."""
    done = subprocess.run(command, capture_output=True, timeout=MOST_SECONDS)
    found = re.search(pattern, (done.stdout + done.stderr).decode("latin-1"))
    return found[1] if found else "unknown"
