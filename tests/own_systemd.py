"""A systemd of its own for tests: process 1 of namespaces, with the cart's units and nothing else.

It needs root. Its processes lie in a control group of their own; `/etc`, `/var`, `/run` and `/opt`
are private, so nothing of this machine is changed. `/etc` and `/var` lie in a folder, so a machine
that was switched off can be booted again. Python and this checkout are seen below `/opt`, where the
units may read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
PROGRAM = "/opt/deepcovid-edge/bin/python3"
_NEEDED = ("unshare", "nsenter", "systemctl", "journalctl")
_SYSTEMD = Path("/lib/systemd/systemd")
_UNITS = (
    "systemd-journald@.service",
    "systemd-journald@.socket",
    "systemd-journald-varlink@.socket",
)
_TARGETS = (
    *("sysinit", "basic", "shutdown", "umount", "sockets", "multi-user", "network"),
    *("network-online", "time-sync", "local-fs"),
)
_BOOT_SECONDS, _GONE_SECONDS = 60.0, 20.0
_OUTER = """
set -e
mkdir "$1" && echo $$ >"$1/cgroup.procs"
exec unshare --cgroup --mount --pid --uts --ipc --fork --kill-child --propagation private \
    sh -c "$2"
"""
_INNER = """
set -e
mount -t proc proc /proc
mount -o bind,ro /proc/sys /proc/sys
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /opt
mkdir -p /opt/deepcovid-edge /opt/packages /opt/checkout /run/units
mount --rbind {base} /opt/deepcovid-edge
mount --rbind {packages} /opt/packages
mount --rbind {root} /opt/checkout
for folder in etc var; do mount --rbind {state}/$folder /$folder; done
mount -t tmpfs tmpfs /tmp
while umount -R /sys/fs/cgroup 2>/dev/null; do :; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cp {units} /run/units
for name in {targets}; do
    printf '[Unit]\\nDescription=%s\\nDefaultDependencies=no\\n' $name >/run/units/$name.target
done
export container=lxc SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/units PATH=/usr/bin:/bin:/usr/sbin
exec {systemd} --system --log-target=console --show-status=no --unit=multi-user.target \
    --default-standard-output=journal </dev/null >/dev/null 2>&1
"""


class OwnSystemd:
    """A machine whose process 1 is systemd.

    Args:
        state: Folder of its `/etc` and `/var`; filled where it is empty.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self._process: subprocess.Popen[bytes] | None = None
        self._boots = 0
        if not (state / "etc").exists():
            shutil.copytree("/etc", state / "etc", symlinks=True)
            for name in ("lib", "log", "cache", "tmp"):
                (state / "var" / name).mkdir(parents=True)
            (state / "var/run").symlink_to("/run")

    def boot(self) -> None:
        """Switch it on, and wait until its systemd answers."""
        groups = _control_groups()
        assert groups is not None
        self._boots += 1
        self._group = groups / f"edge-{os.getpid()}-{id(self)}-{self._boots}"
        inner = _INNER.format(
            base=sys.base_prefix,
            packages=SITE_PACKAGES,
            root=ROOT,
            state=self.state,
            units=" ".join(f"/lib/systemd/system/{name}" for name in _UNITS),
            targets=" ".join(_TARGETS),
            systemd=_SYSTEMD,
        )
        self._process = subprocess.Popen(
            ["sh", "-c", _OUTER, "sh", str(self._group), inner],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ends = time.monotonic() + _BOOT_SECONDS
        while not self._answers():
            if time.monotonic() > ends:
                raise RuntimeError(f"systemd does not answer within {_BOOT_SECONDS:g} s")
            time.sleep(0.1)

    def _answers(self) -> bool:
        first = self._first()
        if first is None or Path(f"/proc/{first}/comm").read_text().strip() != "systemd":
            return False
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() in (
            *("running", "degraded", "starting"),
        )

    def _first(self) -> int | None:
        """Its process 1, as this machine numbers it."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"no systemd: {self._process.returncode}")
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None

    def run(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program within it, as root.

        Raises:
            RuntimeError: It failed, where that is checked.
        """
        words = ["nsenter", "-t", str(self._first()), "-m", "-p", "-u", "-i", "-C", "--wdns=/"]
        done = subprocess.run(
            [*words, *map(str, command)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **environment()},
        )
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.stdout} {done.stderr}")
        return done

    def cart(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the cart within it, as root."""
        return self.run(PROGRAM, "-m", "deepcovid_edge", "cart", *words, check=check)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit (systemctl(1), `show`)."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def pid(self, unit: str) -> int:
        """Main process of a unit, as this machine numbers it; 0 where there is none."""
        inner = int(self.show(unit, "MainPID"))
        return _outer_pid(inner, self._group) if inner else 0

    def journal(self) -> str:
        """All that the cart's journal has."""
        return self.run(
            "journalctl", "--namespace=deepcovid-edge", "-o", "cat", "--no-pager"
        ).stdout

    def switch_off(self) -> None:
        """Kill its process 1; the kernel ends all others with it."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(_GONE_SECONDS)
        self._process = None
        ends = time.monotonic() + _GONE_SECONDS
        while self._group.exists() and time.monotonic() < ends:
            for folder in sorted(self._group.rglob("*"), reverse=True):
                if folder.is_dir():
                    with suppress(OSError):
                        folder.rmdir()
            with suppress(OSError):
                self._group.rmdir()
            time.sleep(0.05)

    def __enter__(self) -> OwnSystemd:
        return self

    def __exit__(self, *_: object) -> None:
        self.switch_off()


def environment() -> dict[str, str]:
    """What has Python within it find this checkout and its libraries."""
    return {
        "PYTHONPATH": "/opt/checkout:/opt/checkout/export:/opt/packages",
        "LD_LIBRARY_PATH": "/opt/deepcovid-edge/lib",
    }


def _outer_pid(inner: int, group: Path) -> int:
    """This machine's number of a process of a machine (proc(5), NSpid)."""
    for place in group.rglob("cgroup.procs"):
        for pid in place.read_text().split():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("NSpid:") and line.split()[-1] == str(inner):
                        return int(pid)
    return 0


def _control_groups() -> Path | None:
    """Where control groups of version 2 are mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind = line.split()[:3]
        if kind == "cgroup2" and os.access(place, os.W_OK):
            return Path(place)
    return None


@cache
def why_no_systemd() -> str:
    """Why no systemd of its own can run here; empty where it can."""
    if os.geteuid() != 0:
        return "namespaces with a systemd of their own need root"
    if lacking := [name for name in _NEEDED if shutil.which(name) is None]:
        return f"{lacking[0]} is not installed"
    if not all(Path(f"/lib/systemd/system/{name}").exists() for name in _UNITS):
        return "systemd with journal namespaces is not installed"
    if _control_groups() is None:
        return "no control groups of version 2"
    try:
        with TemporaryDirectory() as folder, OwnSystemd(Path(folder)) as machine:
            machine.boot()
    except (OSError, RuntimeError) as error:
        return f"systemd does not start in namespaces: {error}"
    return ""
