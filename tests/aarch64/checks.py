"""What runs in the chroot besides the comparison: the product's commands, and tests of this folder.

The tests are those that this processor may decide otherwise: DICOM of every kind, resizing, the
decoders' child processes, a whole cart between a console and a PACS, damaged files, and our use of
TensorRT's Python bindings for aarch64.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aarch64.chroot import Chroot
from aarch64.installed import PLACE, ROOT

CHECKOUT = "/srv/edge"
"""What of the checkout lies in the chroot: no package, so that the installed wheel is tested."""
_COPIED = ("tests", "jetson", "benchmarks", "pyproject.toml")
_WORK = "/srv/work"
_SECONDS = 3000.0
_EDGE = f"{PLACE}/bin/deepcovid-edge"
_PYTEST = (
    *(f"{PLACE}/bin/python", "-m", "pytest", "-q", "-o", "cache_dir=/srv/cache"),
    *("-m", "not slow", "--timeout", "2400"),
)
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?|deselected)")
_SKIPPED = re.compile(r"^SKIPPED \[\d+\] (?:\S+?): (.*)$", re.M)


@dataclass(frozen=True)
class Check:
    """A command in the chroot.

    Attributes:
        name: How it is stored.
        command: The program and its arguments.
        expected: Its exit code.
        in_short: Whether `make aarch64-short` runs it.
        environment: More variables.
        files: Files that it writes into its folder and whose content is stored.
    """

    name: str
    command: tuple[str, ...]
    expected: int = 0
    in_short: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def _tests(name: str, *files: str, without: tuple[str, ...] = ()) -> Check:
    chosen = ("-k", " and ".join(f"not {word}" for word in without)) if without else ()
    return Check(name, (*_PYTEST, *chosen, *(f"{CHECKOUT}/tests/{file}" for file in files)))


_NOT_EMULATED = ("too_long", "more_memory", "spoils_its_pipe")
"""Parts of names of tests: a limit of a second is too short for an emulated decoder, and qemu-user
does not enforce a limit of memory (RLIMIT_AS)."""


CHECKS = (
    Check("info", (_EDGE, "info"), in_short=True),
    Check("sample", (_EDGE, "sample", "demo-images"), in_short=True),
    Check("infer", (_EDGE, "infer", "demo-images", "--table"), 4, in_short=True),
    Check(
        "heatmap",
        (_EDGE, "heatmap", "demo-images/phantom_003.png", "-o", "maps", "--budget", "120s"),
        in_short=True,
    ),
    Check(
        "selftest",
        (f"{CHECKOUT}/jetson/selftest", "--seconds", "0", "--command", _EDGE),
        in_short=True,
        files=("selftest.json",),
    ),
    Check(
        "site-check",
        (
            *(_EDGE, "site-check", "/mnt/xray", "--split", "external", "--name", "Actualmed"),
            *("--source", "agchung/Actualmed-COVID-chestxray-dataset", "-o", "site.json"),
        ),
        3,  # 22 images are too few for a verdict
        files=("site.json",),
    ),
    _tests("DICOM matrix", "unit/imaging/test_dicom_matrix.py"),
    _tests(
        "child processes of decoders",
        "unit/imaging/test_dicom_sandbox.py",
        without=_NOT_EMULATED,
    ),
    _tests("resize", "unit/imaging/test_area.py", "unit/imaging/test_preprocess.py"),
    _tests("cart end to end", "integration/cart/test_end_to_end.py"),
    _tests("TensorRT's bindings", "integration/test_tensorrt_api.py"),
    Check(
        "damaged files",
        (
            *(f"{PLACE}/bin/python", f"{CHECKOUT}/tests/fuzz.py", "--inputs", "500"),
            *("--variant", "int8-cpu", "--most-seconds", "250"),
        ),
        environment={"PYTHONPATH": f"{CHECKOUT}/tests:{CHECKOUT}/tests/unit/imaging"},
    ),
)


def copy_checkout(chroot: Chroot) -> None:
    """Copy the tests and the Jetson's scripts into the chroot, and make a folder to work in."""
    place = Path(f"{chroot.folder}{CHECKOUT}")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name in _COPIED:
        own, copy = ROOT / name, place / name
        if own.is_dir():
            shutil.copytree(own, copy, ignore=shutil.ignore_patterns("results", "__pycache__"))
        else:
            shutil.copyfile(own, copy)
    work = Path(f"{chroot.folder}{_WORK}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)


def outcome(chroot: Chroot, check: Check) -> dict[str, Any]:
    """Run a check; what is stored of it."""
    variables = {"OMP_NUM_THREADS": "1", "COLUMNS": "100", **check.environment}
    done = chroot.run(*check.command, limit_s=_SECONDS, environment=variables, folder=_WORK)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    found: dict[str, Any] = {
        "check": check.name,
        "exit_code": done.returncode,
        "expected": check.expected,
        "is_right": done.returncode == check.expected,
    }
    if check.command[: len(_PYTEST)] == _PYTEST:
        counts = _COUNT.findall(lines[-1]) if lines else []
        found |= {kind.rstrip("s"): int(count) for count, kind in counts if kind != "deselected"}
        found["why_skipped"] = sorted({*_SKIPPED.findall(done.stdout)})
    for name in check.files:
        written = Path(f"{chroot.folder}{_WORK}", name)
        found[name] = json.loads(written.read_text("utf-8")) if written.is_file() else None
    if not found["is_right"]:
        found["output"] = [*lines[-40:], *done.stderr.splitlines()[-20:]]
    return found
