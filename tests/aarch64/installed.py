"""The product as a wheel, and all that it needs, installed in a chroot.

The wheels for aarch64 have the versions of this machine's environment, so that what differs
between the processors is not a library's version.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from aarch64.chroot import Chroot, ChrootError

ROOT = Path(__file__).parents[2]
EXTRAS = "cpu,dicom,cart"
TESTS = ("pytest", "pytest-timeout", "hypothesis", "pip")
"""What tests need beside the product."""
_PLATFORMS = ("2_17", "2014", "2_27", "2_28", "2_34")
"""glibc of the wheels; bookworm has 2.36, JetPack 6 has 2.35."""
_SECONDS = 1200.0


@dataclass(frozen=True)
class Environment:
    """A virtual environment in the chroot.

    Attributes:
        name: How results name it.
        place: Its folder there.
        pins: Constraints, such as `numpy<2`; None for the versions of this machine's environment.
    """

    name: str
    place: str
    pins: tuple[str, ...] | None = None


SAME = Environment("the same versions as on x86_64", "/opt/edge")
JETPACK_6 = Environment("the versions of JetPack 6", "/opt/edge-jetpack-6", ("numpy>=1.26,<2",))
"""As jetson/install.sh holds them, with pip's choice of everything else."""
PLACE = SAME.place


def product_wheel(place: Path) -> Path:
    """The wheel of this checkout, alone in a folder."""
    for old in place.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(place), str(ROOT)]
    _on_this_machine(command)
    (wheel,) = place.glob("deepcovid_edge-*.whl")
    return wheel


def _for_aarch64(python: str) -> list[str]:
    """Options by which pip takes wheels for aarch64 and nothing else."""
    platforms = [
        word for glibc in _PLATFORMS for word in ("--platform", f"manylinux{_under(glibc)}_aarch64")
    ]
    return [*platforms, "--python-version", python, "--only-binary=:all:"]


def collect(wheel: Path, kept: Path, python: str, environment: Environment = SAME) -> Path:
    """Fetch what a wheel with its extras and the tests need on aarch64.

    Args:
        wheel: The product's.
        kept: Folder for what is fetched.
        python: Version of the Python there, such as `3.11`.
        environment: What it is for.

    Returns:
        The folder of the wheels.
    """
    place = kept / f"wheels-{python}-{Path(environment.place).name}"
    place.mkdir(parents=True, exist_ok=True)
    constraints = place / "constraints.txt"
    constraints.write_text("\n".join(pins_of(environment)) + "\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(place)]
    command += [*_for_aarch64(python), "-c", str(constraints)]
    _on_this_machine([*command, f"{wheel}[{EXTRAS}]", *TESTS])
    return place


def _under(glibc: str) -> str:
    return glibc if glibc == "2014" else f"_{glibc}"


def pins_of(environment: Environment) -> list[str]:
    """The constraints of an environment."""
    return versions_here() if environment.pins is None else [*environment.pins]


def versions_here() -> list[str]:
    """Each distribution of this environment with its version, but for the product."""
    found = {one.metadata["Name"]: one.version for one in distributions()}
    return sorted(
        f"{name}=={version.partition('+')[0]}"
        for name, version in found.items()
        if name != "deepcovid-edge"
    )


def install(
    chroot: Chroot, wheel: Path, kept: Path, python: str, environment: Environment = SAME
) -> None:
    """Fetch and install the wheel and what it needs, at the speed of this machine.

    The pip of this machine unpacks the wheels into the chroot's virtual environment: the chroot's
    own would take minutes. `jetson/install.sh` is what runs that one. Nothing happens where the
    same is installed already.

    Args:
        chroot: The chroot.
        wheel: The product's.
        kept: Folder for what is fetched.
        python: Version of the chroot's Python.
        environment: Where it is installed.

    Raises:
        ChrootError: pip failed.
    """
    place = Path(f"{chroot.folder}{environment.place}")
    stamp = place / "installed.txt"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    plan = "\n".join([digest, EXTRAS, *TESTS, *pins_of(environment)])
    if stamp.is_file() and stamp.read_text("utf-8") == plan:
        return
    wheels = collect(wheel, kept, python, environment)
    shutil.rmtree(place, ignore_errors=True)
    _make_environment(place)
    packages = place / f"lib/python{python}/site-packages"
    own = python == f"{sys.version_info[0]}.{sys.version_info[1]}"  # its byte code is the same
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--find-links"]
    command += [str(wheels), "--target", str(packages), *_for_aarch64(python)]
    command += ["--compile" if own else "--no-compile", f"{wheel}[{EXTRAS}]", *TESTS]
    _on_this_machine(command)
    _lay_scripts(packages / "bin", place / "bin", environment.place)
    stamp.write_text(plan, "utf-8")


def _make_environment(place: Path) -> None:
    """What `python3 -m venv --without-pip` makes of it (PEP 405), without an emulated Python."""
    (place / "bin").mkdir(parents=True)
    (place / "bin/python").symlink_to("/usr/bin/python3")
    settings = "home = /usr/bin\ninclude-system-site-packages = false\n"
    (place / "pyvenv.cfg").write_text(settings, "utf-8")


def _lay_scripts(made: Path, place: Path, there: str) -> None:
    """Give the commands that pip made for this machine's Python the chroot's."""
    for script in made.iterdir():
        first, _, rest = script.read_text("utf-8").partition("\n")
        if first.startswith("#!"):
            (place / script.name).write_text(f"#!{there}/bin/python\n{rest}", "utf-8")
            (place / script.name).chmod(0o755)


def in_chroot(chroot: Chroot, command: Sequence[str]) -> str:
    """Run a command that must succeed; what it printed.

    Raises:
        ChrootError: It failed.
    """
    done = chroot.run(*command, limit_s=_SECONDS, offline=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise ChrootError(f"{' '.join(command[:4])} ...: exit code {done.returncode}: {said}")
    return done.stdout


def _on_this_machine(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:]
        raise ChrootError(f"{' '.join(command[1:4])}: {said}")
