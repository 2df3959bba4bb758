"""Fake roots of a Jetson's file system, for its installer."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

Install = Callable[..., subprocess.CompletedProcess[str]]
"""Runs the installer with options, and with variables of the environment."""

# (L4T as the release file spells it, dpkg's version of nvidia-l4t-core, JetPack). Sources: the
# comments of install.sh.
RELEASES = {
    "36.4.0": ("R36", "4.0", "6.1"),
    "36.4.2": ("R36", "4.2", "6.1"),
    "36.4.3": ("R36", "4.3", "6.2"),
    "36.4.7": ("R36", "4.7", "6.2"),
    "36.5.0": ("R36", "5.0", "6.2"),
    "38.2.0": ("R38", "2.0", "7.0"),
    "38.2.1": ("R38", "2.1", "7.0"),
    "38.4.0": ("R38", "4.0", "7.1"),
    "39.2.0": ("R39", "2.0", "7.2"),
    "39.2.1": ("R39", "2.1", "7.2"),
}
# JetPack -> Python, CUDA, TensorRT
STACKS = {
    "6.1": ("3.10", "12.6", "10.3.0"),
    "6.2": ("3.10", "12.6", "10.3.0"),
    "7.0": ("3.12", "13.0", "10.13.3.9"),
    "7.1": ("3.12", "13.0", "10.13.3.9"),
    "7.2": ("3.12", "13.2", "10.16.2.10"),
}
BOARDS = {  # device tree: model, compatible
    "orin": (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    ),
    "agx-orin": (
        "NVIDIA Jetson AGX Orin Developer Kit",
        "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0nvidia,tegra23x\0",
    ),
    "thor": (
        "NVIDIA Jetson AGX Thor Developer Kit",
        "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
    ),
    "xavier": (
        "NVIDIA Jetson Xavier NX Developer Kit",
        "nvidia,p3509-0000+p3668-0000\0nvidia,tegra194\0",
    ),
}


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Root:
    """A fake root of a Jetson's file system, with stand-ins for its tools."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def release(self, l4t: str) -> Root:
        major, revision, _ = RELEASES.get(l4t, (f"R{l4t[:2]}", l4t[3:], ""))
        self.write(
            "etc/nv_tegra_release",
            f"# {major} (release), REVISION: {revision}, GCID: 38968081, BOARD: generic, "
            "EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n"
            "TARGET_USERSPACE_LIB_DIR=nvidia\n",
        )
        return self

    def board(self, name: str) -> Root:
        model, compatible = BOARDS[name]
        self.write("proc/device-tree/model", model + "\0")
        self.write("proc/device-tree/compatible", compatible)
        return self

    def packages(self, **versions: str) -> Root:
        entries = (
            f"Package: {name.replace('_', '-')}\nStatus: install ok installed\nPriority: standard\n"
            f"Architecture: arm64\nVersion: {version}\nDescription: NVIDIA\n it is here\n"
            for name, version in versions.items()
        )
        gone = "Package: nvidia-l4t-old\nStatus: deinstall ok config-files\nVersion: 35.1\n"
        self.write("var/lib/dpkg/status", "\n".join([gone, *entries]))
        return self

    def tools(self, jetpack: str, *, tensorrt: bool = True, cuda: bool = True) -> Root:
        python, toolkit, library = STACKS[jetpack]
        executable(
            self.folder / "usr/bin/python3",
            '#!/bin/sh\ncase "$*" in\n'
            f"*version_info*) echo {python} ;;\n"
            f"*tensorrt*) {'echo ' + library if tensorrt else 'exit 1'} ;;\n"
            "*) echo yes ;;\nesac\n",
        )
        executable(self.folder / "usr/bin/g++", "#!/bin/sh\n")
        if cuda:
            self.nvcc(toolkit)
        return self

    def nvcc(self, version: str) -> Root:
        text = f"Cuda compilation tools, release {version}, V{version}.68"
        executable(self.folder / "usr/local/cuda/bin/nvcc", f"#!/bin/sh\necho '{text}'\n")
        return self

    def write(self, path: str, text: str) -> None:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def steps(output: str) -> list[str]:
    """The commands that were printed."""
    return [line[2:] for line in output.splitlines() if line.startswith("+ ")]
