"""The same images on this processor and on those that qemu is, in FP32 and INT8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aarch64.checks import CHECKOUT
from aarch64.chroot import Chroot, ChrootError
from aarch64.classify import pixels_file
from aarch64.comparison import Results, broken_rules, compared
from aarch64.installed import JETPACK_6, SAME, Environment
from aarch64.processors import PROCESSORS

OWN = "x86_64"
_PROGRAM = Path(__file__).with_name("classify.py")
_RESULTS = "/srv/results"
_SECONDS = 3 * 3600.0
_VARIANTS = ("fp32", "int8-cpu")


@dataclass(frozen=True)
class Step:
    """Images of `test` on one processor.

    Attributes:
        processor: Of `PROCESSORS`.
        variant: `fp32` or `int8-cpu`.
        most: How many, at equal steps through the split; None for all.
        environment: With which libraries.
    """

    processor: str
    variant: str
    most: int | None = None
    environment: Environment = SAME


STEPS = (
    Step("max", "int8-cpu"),
    Step("cortex-a57", "int8-cpu"),
    Step("max", "fp32"),
    Step("cortex-a76", "int8-cpu", 40),
    Step("cortex-a57", "fp32", 40),
    Step("cortex-a76", "int8-cpu", 40, JETPACK_6),
)
SHORT = (Step("max", "int8-cpu", 20), Step("max", "fp32", 20))


def read_results(path: Path) -> dict[str, Any]:
    """What `classify` wrote: what made it, and the images."""
    first, *images = map(json.loads, path.read_text("utf-8").splitlines())
    for image in images:
        pixels = pixels_file(path, image["image"])
        image["prepared"] = np.load(pixels) if pixels.is_file() else None
    return {**first, "images": images}


def decisions(chroot: Chroot, data: Path, here: Path, steps: tuple[Step, ...]) -> dict[str, Any]:
    """Run the steps, and compare each with this machine.

    Args:
        chroot: With the product; sees the images at /mnt/xray.
        data: The images.
        here: Folder for this machine's results.
        steps: What runs on aarch64.
    """
    own = {variant: _here(data, here, variant) for variant in _VARIANTS}
    emulated = {step: _there(chroot, step) for step in steps}
    rows, broken = [], []
    for step, found in emulated.items():
        row = {
            "processor": step.processor,
            "dot_product": PROCESSORS[step.processor].has_dot_product,
            "variant": step.variant,
            "environment": step.environment.name,
            "libraries": found["libraries"],
            **compared(own[step.variant], found),
        }
        rows.append(row)
        broken += [f"{step.processor}: {one}" for one in broken_rules(row, step.variant)]
    return {
        "split": "test",
        "images": len(own["fp32"]["images"]),
        "model_sha256": {name: found["model_sha256"] for name, found in own.items()},
        "libraries": own["fp32"]["libraries"],
        "compared": rows,
        "int8_with_fp32": _variants(own, emulated),
        "broken": broken,
    }


def _variants(own: Mapping[str, Results], emulated: Mapping[Step, Results]) -> list[dict[str, Any]]:
    """INT8 beside FP32 on this processor, and on the first one of aarch64 that has both."""
    sides: dict[str, dict[str, Results]] = {OWN: dict(own)}
    for step, found in emulated.items():
        if step.environment is SAME:
            sides.setdefault(step.processor, {})[step.variant] = found
    return [
        {"processor": name, **compared(found["fp32"], found["int8-cpu"])}
        for name, found in sides.items()
        if all(variant in found for variant in _VARIANTS)
        and len(found["fp32"]["images"]) == len(found["int8-cpu"]["images"])
    ]


def _here(data: Path, here: Path, variant: str) -> dict[str, Any]:
    """Results of this machine."""
    here.mkdir(parents=True, exist_ok=True)
    output = here / f"{OWN}-{variant}.jsonl"
    command = [sys.executable, str(_PROGRAM), str(data), "--variant", variant, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise ChrootError(f"classify here: {done.stderr.strip().splitlines()[-1:]}")
    return read_results(output)


def _there(chroot: Chroot, step: Step) -> dict[str, Any]:
    """Results of a processor that qemu is."""
    most = "" if step.most is None else f"-{step.most}"
    folder = f"{_RESULTS}{step.environment.place}"
    output = f"{folder}/{step.processor}-{step.variant}{most}.jsonl"
    place = Path(f"{chroot.folder}{output}")
    place.parent.mkdir(parents=True, exist_ok=True)
    command = [
        f"{step.environment.place}/bin/python",
        f"{CHECKOUT}/tests/aarch64/classify.py",
        "/mnt/xray",
    ]
    command += ["--variant", step.variant, "-o", output, "--threads", str(os.cpu_count() or 1)]
    command += ["--most", str(step.most)] if step.most else []
    as_it_is = replace(chroot, processor=PROCESSORS[step.processor])
    done = as_it_is.run(*command, limit_s=_SECONDS)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:]
        raise ChrootError(f"classify on {step.processor}: exit code {done.returncode}: {said}")
    print(f"{step.processor}, {step.variant}: done", flush=True)
    return read_results(place)
