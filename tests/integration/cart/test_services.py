"""The cart's units under a systemd of their own: what `cart install` says, what the kiosk sees."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_systemd import PROGRAM, ROOT, OwnSystemd, environment, why_no_systemd

from deepcovid_edge.cart.install.installation import FILES, KIOSK

_CONFIG = """
[cart]
spool = "/var/lib/deepcovid-edge/spool"
floor_mib = 0
floor_share = 0.0
[receive]
folders = ["/var/lib/deepcovid-edge/incoming"]
[page]
"""
_SEAT = """
[Unit]
Conflicts=
[Service]
Type=oneshot
Restart=no
PAMName=
TTYPath=
TTYReset=no
TTYVHangup=no
TTYVTDisallocate=no
StandardInput=null
UtmpIdentifier=
ExecStart=
Environment=XDG_RUNTIME_DIR=/run/user/{uid}
ExecStart={program} -c "{look}"
"""
"""In place of a session on a seat and a compositor: a look at what there would be."""
_LOOK = (
    "import os, socket;"
    "socket.socket(socket.AF_UNIX).bind(os.environ['XDG_RUNTIME_DIR'] + '/wayland-0');"
    "print('socket made');"
    "print('homes seen', [one for one in ('/home', '/root') if os.access(one, os.R_OK)])"
)


def words_of_environment() -> list[str]:
    """What has the units find this checkout and its libraries."""
    return [f"{name}={value}" for name, value in environment().items()]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[OwnSystemd]:
    if why := why_no_systemd():
        pytest.skip(why)
    with OwnSystemd(tmp_path) as found:
        found.boot()
        found.run("systemctl", "set-environment", *words_of_environment())
        yield found


def test_an_installation_whose_page_does_not_run_fails_and_names_it(machine: OwnSystemd) -> None:
    config = machine.state / "etc/deepcovid-edge/cart.toml"
    config.parent.mkdir()
    config.write_text(f'{_CONFIG}pin_file = "/var/lib/deepcovid-edge/none.pin"\n')
    done = machine.cart("install", check=False)
    assert done.returncode == 1
    assert "deepcovid-edge-page.service: does not run" in done.stderr
    config.write_text(_CONFIG)
    machine.cart("install")
    for role in ("receive", "work", "page"):
        assert machine.show(f"deepcovid-edge-{role}", "ActiveState") == "active"


def test_a_cart_is_taken_off_as_the_document_says(machine: OwnSystemd) -> None:
    """Without the program: that is this checkout's Python here, so no line may name /opt."""
    config = machine.state / "etc/deepcovid-edge/cart.toml"
    config.parent.mkdir()
    config.write_text(_CONFIG)
    machine.cart("install", "--kiosk")
    text = (ROOT / "docs/cart-install.md").read_text("utf-8")
    section = text.partition("## Take the cart off a machine")[2].partition("\n## ")[0]
    *blocks, program = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    assert program == "sudo rm -rf /opt/deepcovid-edge /usr/local/bin/deepcovid-edge\n"
    drain, *lines = "".join(blocks).splitlines()
    assert drain.endswith("cart drain /etc/deepcovid-edge/cart.toml")
    for line in [*lines, "sudo userdel deepcovid-edge-kiosk"]:
        assert "/opt" not in line
        assert line.startswith("sudo ")
        machine.run("sh", "-c", line.removeprefix("sudo "))
    assert machine.run("systemctl", "list-units", "--all", "*deepcovid-edge*", "-q").stdout == ""
    for folder in ("etc", "var"):
        assert [*(machine.state / folder).rglob("*deepcovid-edge*")] == []
    assert "deepcovid" not in (machine.state / "etc/passwd").read_text()
    assert "deepcovid" not in (machine.state / "etc/group").read_text()


def test_the_kiosk_can_make_its_socket_and_sees_no_home(machine: OwnSystemd) -> None:
    users, units = (machine.state / f"etc/{name}" for name in ("sysusers.d", "systemd/system"))
    users.mkdir(exist_ok=True)
    shutil.copy(FILES / "sysusers-kiosk.conf", users)
    machine.run("systemd-sysusers")
    uid = machine.run("id", "-u", "deepcovid-edge-kiosk").stdout.strip()
    shutil.copy(FILES / KIOSK, units)
    seat = _SEAT.format(uid=uid, program=PROGRAM, look=_LOOK)
    (units / f"{KIOSK}.d").mkdir()
    (units / f"{KIOSK}.d/seat.conf").write_text(seat)
    # As pam_systemd makes it for the session.
    machine.run("mkdir", "-p", f"/run/user/{uid}")
    machine.run("mount", "-t", "tmpfs", "-o", f"mode=700,uid={uid}", "tmpfs", f"/run/user/{uid}")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", KIOSK, check=False)
    said = machine.journal()
    assert "socket made" in said
    assert "homes seen []" in said
