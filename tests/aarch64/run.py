"""Run the product on aarch64 under emulation, beside this machine, and store what came out.

    PYTHONPATH=.:export:tests python -m aarch64.run --root FOLDER --data XRAY --store

The parts are `checks`, `decisions`, `maps` and `jetpacks`; named, they run alone. `--short` runs
the quick checks and 20 images. The exit code is 1 where a part is not as it must be. A run that was
ended goes on with the image that it was at. What is not there is named, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aarch64.checks import CHECKS, copy_checkout, outcome
from aarch64.chroot import Chroot, ChrootError, qemu_version, why_no_chroot
from aarch64.decisions import SHORT, STEPS, decisions
from aarch64.heat_maps import heat_maps
from aarch64.installed import JETPACK_6, install, product_wheel
from aarch64.jetpacks import jetpacks
from aarch64.processors import PROCESSORS
from aarch64.programs import compiler, peers, why_no_compiler
from benchmarks.measure import store
from deepcovid_edge.device.processor import computes_int8_exactly

SYSTEMS = {"bookworm": "3.11", "trixie": "3.13"}
"""Release of Debian -> its Python. Everything runs in the first; the second is for short runs."""
RESULTS = "aarch64"


@dataclass(frozen=True)
class Workplace:
    """What the parts share.

    Attributes:
        chroot: With the product installed.
        wheel: The product's.
        kept: Folder for what is fetched.
        data: Images with a manifest.
        is_short: Whether only the quick things run.
    """

    chroot: Chroot
    wheel: Path
    kept: Path
    data: Path
    is_short: bool

    def name(self, part: str) -> str:
        """The name of a part's results, with the x86_64 processor that they were compared with."""
        beside = "-without-vnni" if part in _COMPARED and not computes_int8_exactly() else ""
        return f"{part}{f'-{self.chroot.suite}-short' if self.is_short else ''}{beside}"

    def checks(self) -> dict[str, Any]:
        """Each check's outcome."""
        chosen = [check for check in CHECKS if check.in_short or not self.is_short]
        found = []
        for check in chosen:
            found.append(outcome(self.chroot, check))
            print(f"{check.name}: {_said(found[-1])}", flush=True)
        broken = [f"{one['check']}: {_said(one)}" for one in found if not one["is_right"]]
        return {"checks": found, "broken": broken}

    def decisions(self) -> dict[str, Any]:
        """Images on every processor."""
        steps = SHORT if self.is_short else STEPS
        return decisions(self.chroot, self.data, self.kept / "here", steps)

    def maps(self) -> dict[str, Any]:
        """Heat maps on both processors."""
        return heat_maps(self.chroot, self.data, self.kept / "maps")

    def jetpacks(self) -> dict[str, Any]:
        """The installer as each JetPack."""
        if why := why_no_compiler():
            return {"jetpacks": [], "broken": [], "not_run": why}
        return jetpacks(self.chroot, self.wheel, self.kept)


def _said(found: dict[str, Any]) -> str:
    """A check's outcome in a line."""
    counts = ", ".join(
        f"{found[kind]} {kind}"
        for kind in ("passed", "failed", "error", "skipped")
        if kind in found
    )
    return counts or ("as it must be" if found["is_right"] else f"exit code {found['exit_code']}")


PARTS: dict[str, Callable[[Workplace], dict[str, Any]]] = {
    "checks": Workplace.checks,
    "decisions": Workplace.decisions,
    "maps": Workplace.maps,
    "jetpacks": Workplace.jetpacks,
}
_COMPARED = ("decisions", "maps")
"""What this machine's processor rounds in its own way, too."""
_SHORT_PARTS = ("checks", "decisions")
_BESIDE = "jetpacks"
"""Its programs use one core, most of them pip and a compiler."""


def set_up(place: Path, data: Path, suite: str, *, is_short: bool) -> Workplace:
    """Make the chroot, or take the one that is there, and install the product as it is now."""
    kept = place / "kept"
    (kept / "wheel").mkdir(parents=True, exist_ok=True)
    shown = {"/mnt/xray": data, **compiler(), **peers()}
    chroot = Chroot(place / suite, suite, shown=shown)
    chroot.make()
    wheel = product_wheel(kept / "wheel")
    install(chroot, wheel, kept, SYSTEMS[suite])
    if not is_short:
        install(chroot, wheel, kept, SYSTEMS[suite], JETPACK_6)
    copy_checkout(chroot)
    return Workplace(chroot, wheel, kept, data, is_short)


def run_parts(place: Workplace, names: list[str], *, is_stored: bool) -> list[str]:
    """Run parts, the JetPacks beside all others; sentences on what is not as it must be."""
    about = {
        "run": "on aarch64 under emulation, not on a board",
        "emulator": f"qemu-user {qemu_version()}",
        "processors": {one.name: one.what for one in PROCESSORS.values()},
        "system": f"Debian {place.chroot.suite}",
        "python": SYSTEMS[place.chroot.suite],
    }

    def broken_in(name: str) -> list[str]:
        figures = PARTS[name](place)
        if "not_run" in figures:
            print(f"{name}: not run: {figures['not_run']}", flush=True)
        elif is_stored:
            store(place.name(name), {**about, **figures}, RESULTS)
        broken: list[str] = figures["broken"]
        return broken

    beside = [_in_background(broken_in, name) for name in names if name == _BESIDE]
    broken = [why for name in names if name != _BESIDE for why in broken_in(name)]
    return [*broken, *(why for one in beside for why in one.result())]


def _in_background(work: Callable[[str], list[str]], name: str) -> Future[list[str]]:
    """Run a part in a thread that does not keep this process alive: its programs end with it."""
    found: Future[list[str]] = Future()

    def run() -> None:
        try:
            found.set_result(work(name))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return found


def main() -> None:
    """Run as a script; see the module's description."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} [default: all]")
    parser.add_argument("--root", type=Path, required=True, help="folder for the chroots")
    parser.add_argument("--data", type=Path, required=True, help="images with a manifest")
    parser.add_argument("--suite", choices=SYSTEMS, default=next(iter(SYSTEMS)))
    parser.add_argument("--short", action="store_true", help="the quick checks and 20 images")
    parser.add_argument("--store", action="store_true", help="store what came out")
    options = parser.parse_args()
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"got {sorted(unknown)[0]}, expected one of {', '.join(PARTS)}")
    if why := why_no_chroot() or ("" if options.data.is_dir() else f"{options.data} is missing"):
        print(f"aarch64: not run: {why}")
        return
    # A run that is stopped ends what it has started, and with that its mounts.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        folders = options.root.resolve(), options.data.resolve()
        place = set_up(*folders, options.suite, is_short=options.short)
        names = options.parts or [*(_SHORT_PARTS if options.short else PARTS)]
        broken = run_parts(place, names, is_stored=options.store)
    except ChrootError as error:
        sys.exit(f"aarch64: {error}")
    print("\n".join(broken) or "aarch64: everything is as it must be")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
