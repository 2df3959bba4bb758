"""What `selftest --report` adds: the board's facts, and the speed of each backend, without names.

Only Python's own library is needed, as for selftest.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

Command = Callable[..., "subprocess.CompletedProcess[str]"]
"""Runs `deepcovid-edge` with arguments."""

PACKAGES = ("nvidia-jetpack", "nvidia-l4t-core", "libnvinfer*", "python3-libnvinfer", "cuda-nvcc-*")
"""Of Debian; their versions are those of JetPack's parts."""
_CPU_FACTS = ("Features", "CPU implementer", "CPU variant", "CPU part", "CPU revision")
_COMMON_NAMES = {"root", "user", "nvidia", "ubuntu", "jetson", "localhost"}
_LONGEST_OUTPUT = 8000


def complete(report: dict[str, Any], command: str) -> dict[str, Any]:
    """The report of selftest with everything else that is worth knowing, and no names.

    Args:
        report: What selftest has found.
        command: Path of the installed command.
    """
    return without_names({**report, "board": board_facts(Path(command))})


def bench(run: Command, model: str, options: list[str]) -> dict[str, Any]:
    """What `deepcovid-edge bench` measures with a backend, raw samples included.

    Args:
        run: Runs the installed command.
        model: Name of the model, where the options name no engine of it.
        options: Of `infer`, which choose the backend.
    """
    named = options[options.index("--model") + 1] if "--model" in options else model
    rest = [word for word in options if word not in ("--model", named)]
    done = run("bench", named, *rest, "--json")
    try:
        return {"exit_code": done.returncode, "result": json.loads(done.stdout)}
    except ValueError:
        return {"exit_code": done.returncode, "error": done.stderr.strip()[-_LONGEST_OUTPUT:]}


def board_facts(command: Path) -> dict[str, Any]:
    """Facts of the board and of the installation; None for what cannot be read."""
    folder = command.resolve().parent.parent
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": processor_facts(),
        "memory": [line for line in (text("/proc/meminfo") or "").splitlines()[:3]],
        "temperatures": temperatures(Path("/sys/class/thermal")),
        "clocks": output("jetson_clocks", "--show"),
        "power_mode": output("nvpmodel", "-q"),
        "packages": output("dpkg-query", "-W", *PACKAGES),
        "installed_as": text(str(folder / "jetson-install.txt")),
        "constraints": text(str(folder / "jetson-constraints.txt")),
        "distributions": output(
            str(folder / "bin" / "python"), "-m", "pip", "list", "--format", "freeze"
        ),
    }


def processor_facts(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Lines on the kinds of core, each once; a board's serial number is not among them."""
    lines = (text(str(cpuinfo)) or "").splitlines()
    kept = [line for line in lines if line.split(":")[0].strip() in _CPU_FACTS]
    return list(dict.fromkeys(re.sub(r"\s*:\s*", ": ", line) for line in kept))


def temperatures(folder: Path) -> dict[str, str | None]:
    """Thermal zone -> thousandths of a degree Celsius."""
    return {
        text(str(zone / "type")) or zone.name: text(str(zone / "temp"))
        for zone in sorted(folder.glob("thermal_zone*"))
    }


def without_names(report: dict[str, Any]) -> dict[str, Any]:
    """The report without the home folder, the user and the host; keys stay as they are."""
    home = str(Path.home())
    names = {user_name(): "USER", socket.gethostname(): "HOST"}

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [clean(inner) for inner in value]
        if not isinstance(value, str):
            return value
        cleaned = value.replace(home, "~") if home != "/" else value
        for name, word in names.items():
            if name and name.lower() not in _COMMON_NAMES:
                cleaned = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", word, cleaned)
        return cleaned

    cleaned: dict[str, Any] = clean(report)
    return cleaned


def user_name() -> str:
    """Who runs this, or nothing."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return ""


def text(path: str) -> str | None:
    """A small text file, without NULs; None if it is missing."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None


def output(*command: str) -> str | None:
    """What a command prints, also where it then fails; None where it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()[:_LONGEST_OUTPUT] or None
