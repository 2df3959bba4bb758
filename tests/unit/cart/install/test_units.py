"""The units: how much they may do by the word of systemd itself, and that it understands them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepcovid_edge.cart.install.installation import FILES, Installation, InstallSettings
from deepcovid_edge.cart.install.site import ROLES

MOST_EXPOSED, MOST_EXPOSED_WITH_GPU = 1.5, 2.0
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze (systemd) is not installed"
)
SITE = """
[cart]
spool = "/var/lib/deepcovid-edge/spool"
[receive]
host = "192.168.1.10"
[[peer]]
ae_title = "CONSOLE"
address = "192.168.1.0/24"
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "192.168.1.30"
[page]
"""


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *map(str, words)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A system with the units of a site, its GPU allowed."""
    place = tmp_path_factory.mktemp("root")
    (place / "etc/deepcovid-edge").mkdir(parents=True)
    (place / "etc/deepcovid-edge/cart.toml").write_text(SITE)
    Installation(InstallSettings(place, gpu=True), lambda _: None).install()
    return place


@needs_systemd
@pytest.mark.parametrize("role", ROLES)
def test_a_unit_as_shipped_is_hardly_exposed(role: str) -> None:
    unit = FILES / f"deepcovid-edge-{role}.service"
    done = analyze("security", "--offline=true", f"--threshold={10 * MOST_EXPOSED:.0f}", unit)
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout


@needs_systemd
@pytest.mark.parametrize("role", ROLES)
def test_a_unit_at_a_site_with_a_gpu_is_little_exposed(role: str, root: Path) -> None:
    """With the drop-ins: the addresses of the site, and the devices of NVIDIA's driver."""
    unit = f"deepcovid-edge-{role}.service"
    done = analyze(
        *("security", "--offline=true", f"--root={root}"),
        *(f"--threshold={10 * MOST_EXPOSED_WITH_GPU:.0f}", unit),
    )
    assert done.returncode == 0, done.stdout
    level = re.search(r"Overall exposure level for \S+ (\d\.\d)", done.stdout)
    assert level is not None
    if role == "work":  # the drop-in was read
        assert "char-nvidia" in done.stdout or "device ACL" in done.stdout


@needs_systemd
def test_the_score_of_a_unit_without_hardening_would_fail(tmp_path: Path) -> None:
    unit = tmp_path / "bare.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    done = analyze("security", "--offline=true", f"--threshold={10 * MOST_EXPOSED:.0f}", unit)
    assert done.returncode != 0


@needs_systemd
def test_systemd_understands_every_line(root: Path) -> None:
    """The programs that they start are not there."""
    units = sorted((root / "etc/systemd/system").glob("deepcovid-edge*.*"))
    paths = [path for path in units if path.is_file()]
    assert len(paths) == 4
    done = analyze("verify", "--man=no", *paths)
    said = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert not [line for line in said if "deepcovid-edge" in line], said


@needs_systemd
@pytest.mark.parametrize("name", ["the edge", "100%n", "a'b", 'a"b', "a\\b", "50$", "a;b", "ü"])
def test_systemd_reads_paths_with_any_letters(name: str, tmp_path: Path) -> None:
    """It says which program is not there, and nothing else of the units."""
    if not name.isascii() and sys.getfilesystemencoding() != "utf-8":
        pytest.skip("Python has no name for such a path in this locale")
    folder = Path("/srv", name)
    program = Path("/srv/edge") if re.search(r"""[$\\"']""", name) else folder
    settings = InstallSettings(tmp_path, folder / "cart.toml", program=program / "python")
    Installation(settings, lambda _: None).install()
    units = [tmp_path / "etc/systemd/system" / f"deepcovid-edge-{role}.service" for role in ROLES]
    done = analyze("verify", "--man=no", *units, units[0].with_name("deepcovid-edge.target"))
    said = [line for line in done.stderr.splitlines() if "deepcovid-edge" in line]
    assert len(said) == len(ROLES), said
    assert all(f"Command {program}/python is not executable" in line for line in said), said
    command = re.search(r"^ExecStart=(.*)$", units[0].read_text("utf-8"), re.MULTILINE)
    assert command is not None
    words = shlex.split(command[1].replace("$$", "$").replace("%%", "%"))
    assert words[-1] == str(settings.config)


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_may_bind_a_port_which_every_association_does(role: str) -> None:
    """pynetdicom binds its socket before it connects; systemd for Debian 13 would forbid it."""
    assert "SocketBind" not in (FILES / f"deepcovid-edge-{role}.service").read_text("utf-8")


def test_all_roles_are_hardened_alike() -> None:
    texts = [(FILES / f"deepcovid-edge-{role}.service").read_text("utf-8") for role in ROLES]
    parts = {re.split(r"\n# ", text.partition("\n# No privilege")[2])[0] for text in texts}
    assert len(parts) == 1
    for text in texts:
        for line in ("Type=notify", "WatchdogSec=30", "Restart=always", "StartLimitIntervalSec=0"):
            assert line in text.splitlines()
