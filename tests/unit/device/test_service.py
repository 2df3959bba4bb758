"""What a role tells systemd: readiness, the watchdog, and where it was when it had to end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepcovid_edge.device.service import beat_seconds, notify


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket at which systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def test_states_arrive_as_one_message(systemd: socket.socket) -> None:
    notify("READY=1", "STATUS=3 images wait")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=3 images wait"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was opened"))
    notify("READY=1")


@pytest.mark.parametrize(
    ("microseconds", "seconds"), [("30000000", 5.0), ("6000000", 2.0), ("", 5.0), ("no", 5.0)]
)
def test_the_watchdog_hears_thrice_before_it_bites(
    monkeypatch: pytest.MonkeyPatch, microseconds: str, seconds: float
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    assert beat_seconds() == seconds


def test_a_role_that_the_watchdog_ends_says_where_it_was() -> None:
    program = (
        "import os, signal\n"
        "from deepcovid_edge.device.service import stop_event\n"
        "def stuck(name):\n"
        "    os.kill(os.getpid(), signal.SIGABRT)\n"
        "stop_event()\n"
        "stuck('Kanarienvogel^Anna')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGABRT
    assert "in stuck" in done.stderr
    assert "Kanarienvogel" not in done.stderr.partition("stuck")[2]


def test_the_log_goes_on_when_its_disk_has_room_again(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from deepcovid_edge.device.service import log\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "log('one')\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))\n"
        "log('two')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))\n"
        "log('three')\n"
    )
    with (tmp_path / "log").open("wb") as output:
        subprocess.run([sys.executable, "-c", program], stdout=output, check=True)
    text = (tmp_path / "log").read_text()
    assert '"one"' in text
    assert text.endswith('{"event": "three"}\n')


@pytest.mark.parametrize("place", ["a pipe that nobody reads", "/dev/full"])
def test_a_log_that_cannot_be_written_ends_no_service(place: str) -> None:
    program = (
        "import sys\n"
        "from deepcovid_edge.device.service import log\n"
        "log('one')\n"
        "log('two')\n"
        "print('goes on', file=sys.stderr)\n"
    )
    if place == "/dev/full":
        output = os.open(place, os.O_WRONLY)
    else:
        read, output = os.pipe()
        os.close(read)
    done = subprocess.run([sys.executable, "-c", program], stdout=output, stderr=subprocess.PIPE)
    os.close(output)
    assert (done.returncode, done.stderr) == (0, b"goes on\n")
