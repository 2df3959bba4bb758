"""A Debian for arm64 in a folder, whose programs qemu runs.

What a program sees there (/proc, /sys, /dev, folders of this machine) is mounted in a mount
namespace of its own (unshare(1)): it is gone when the program ends, however that ends, and its
children with it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from aarch64.processors import PROCESSORS, Processor
from deepcovid_edge.device.child_process import ending_with_this

MIRROR = "http://deb.debian.org/debian"
PACKAGES = ("ca-certificates", "python3", "python3-dev", "python3-venv")
QEMU = "qemu-aarch64-static"
_PROGRAMS = ("debootstrap", QEMU, "update-binfmts", "unshare", "ip")
_UNSHARE = shutil.which("unshare") or "/usr/bin/unshare"
TOO_LONG = 124
"""Exit code of a command that took longer than its limit, as timeout(1) has it."""
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_MAKE_SECONDS = 1800.0
_NOTHING: Mapping[str, str] = MappingProxyType({})

_ENTER = r"""
root=$1; shift
mount -t proc proc "$root/proc"
mount --bind "$root/$CPUINFO" "$root/proc/cpuinfo"
mount -t sysfs -o ro sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$root$2"; else [ -e "$root$2" ] || : >"$root$2"; fi
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
    shift 2
done
shift
! [ "${WITHOUT_NETWORK-}" ] || ip link set lo up
chroot "$root" "$@"
"""


class ChrootError(Exception):
    """Raised when the file system cannot be made, or its programs cannot be run."""


@dataclass(frozen=True)
class Chroot:
    """A Debian for arm64.

    Attributes:
        folder: Its root.
        suite: The release: bookworm has Python 3.11, trixie 3.13.
        processor: What qemu is.
        shown: Place in the chroot -> folder or file of this machine that is seen there, read-only.
    """

    folder: Path
    suite: str
    processor: Processor = PROCESSORS["max"]
    shown: Mapping[str, Path] = field(default_factory=dict)

    def make(self) -> None:
        """Make the file system, where it is not there whole; certificates are this machine's now.

        Raises:
            ChrootError: debootstrap failed.
        """
        if not self.folder.is_dir():
            self._make()
        shutil.copyfile(_CERTIFICATES, self.folder / _CERTIFICATES.relative_to("/"))

    def _make(self) -> None:
        made = self.folder.with_name(f"{self.folder.name}.partial")
        shutil.rmtree(made, ignore_errors=True)
        made.parent.mkdir(parents=True, exist_ok=True)
        command = ["debootstrap", "--arch=arm64", "--variant=minbase"]
        command += [f"--include={','.join(PACKAGES)}", self.suite, str(made), MIRROR]
        words = ending_with_this([*_namespace(), *command])
        done = subprocess.run(words, capture_output=True, text=True, timeout=_MAKE_SECONDS)
        _check("debootstrap", done)
        made.rename(self.folder)

    def run(
        self,
        *command: object,
        limit_s: float,
        environment: Mapping[str, str] = _NOTHING,
        folder: str = "/root",
        offline: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the chroot; the end of this process ends it, too.

        Args:
            command: The program and its arguments.
            limit_s: Seconds after which it is killed; its exit code is then `TOO_LONG`.
            environment: More variables for it.
            folder: Where it runs.
            offline: Whether it has no network but its own loopback interface.
        """
        variables = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "QEMU_CPU": self.processor.name,
            "PIP_CERT": str(_CERTIFICATES),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **environment,
        }
        cpuinfo = f"srv/cpuinfo-{self.processor.name}"
        (self.folder / cpuinfo).write_text(self.processor.cpuinfo(), "utf-8")
        shown = [str(word) for place, own in self.shown.items() for word in (own, place)]
        inside = ["env", "-i", f"--chdir={folder}", *(f"{k}={v}" for k, v in variables.items())]
        words = [*_namespace(offline=offline), "sh", "-eu", "-c", _ENTER, "sh", str(self.folder)]
        whole = [*words, *shown, "--", *inside, *map(str, command)]
        try:
            return subprocess.run(
                ending_with_this(whole),
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, "CPUINFO": cpuinfo, "WITHOUT_NETWORK": "1" if offline else ""},
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired as late:
            said = late.stderr.decode(errors="replace") if isinstance(late.stderr, bytes) else ""
            message = f"{said}\nended after {limit_s:.0f} s"
            return subprocess.CompletedProcess(whole, TOO_LONG, "", message)


def _check(what: str, done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise ChrootError(f"{what}: exit code {done.returncode}: {' '.join(said)}")


def _namespace(*, offline: bool = False) -> list[str]:
    """unshare(1) with mounts and processes that end with what it starts."""
    network = ["--net"] if offline else []
    return [_UNSHARE, "--mount", "--pid", "--fork", "--kill-child", *network, "--"]


def why_no_chroot() -> str:
    """Why no chroot can be made here; empty where it can."""
    if platform.machine() != "x86_64":
        return f"this machine is {platform.machine()}: there `make test` says more"
    if os.geteuid() != 0:
        return "a chroot and its mounts need root"
    if lacking := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return (
            f"{lacking[0]} is not there: apt-get install debootstrap qemu-user-static "
            "binfmt-support iproute2"
        )
    return _why_not_registered()


def _why_not_registered() -> str:
    """Have the kernel run programs for aarch64 by qemu; why it does not, or nothing."""
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)], check=False)
    rule = _BINFMT / "qemu-aarch64"
    if not rule.exists():
        subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], check=False)
    if not rule.exists() or "F" not in rule.read_text("utf-8").split("flags:")[-1].split("\n")[0]:
        return "binfmt_misc does not run programs for aarch64 by a qemu that it keeps open (flag F)"
    return ""


def qemu_version() -> str:
    """Version of the emulator, such as `7.2.22`."""
    done = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.split("version ")[1].split(" ")[0]
