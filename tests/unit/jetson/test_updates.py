"""jetson/install.sh over an earlier installation, in an environment whose programs only answer."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from jetson_roots import STACKS, Install, Root, executable, steps
from stand_in_wheels import stand_in_wheels

INSTALL = Path(__file__).parents[3] / "jetson/install.sh"


class Environment:
    """An environment of ours whose pip keeps a pycuda that is there, as the real one does.

    Args:
        folder: Of the environment.
        jetpack: What it belongs to.
        built: The CUDA that its pycuda was built with; empty for one that does not load.
    """

    def __init__(self, folder: Path, jetpack: str, built: str) -> None:
        self.folder, self.stamp = folder, folder / "jetson-install.txt"
        python, _, tensorrt = STACKS[jetpack]
        executable(
            folder / "bin/python",
            '#!/bin/sh\ncase "$*" in\n'
            f"*get_version*) cat {folder}/built ;;\n"
            f"*__version__*) echo {tensorrt} ;;\n"
            '*--no-index*" pycuda") ;;\n'
            '*--force-reinstall*" pycuda")\n'
            f"    nvcc --version | sed 's/.*release \\([0-9.]*\\),.*/\\1/' >{folder}/built ;;\n"
            "esac\n",
        )
        executable(folder / "bin/deepcovid-edge", "#!/bin/sh\n")
        self.stamp.write_text(f"python {python}\nunfinished\n")
        self.built = built

    @property
    def built(self) -> str:
        return (self.folder / "built").read_text().strip()

    @built.setter
    def built(self, cuda: str) -> None:
        (self.folder / "built").write_text(cuda)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "deepcovid_edge-0.1.0-py3-none-any.whl"
    path.write_bytes(b"stand-in")
    return path


def test_pycuda_of_an_earlier_jetpack_is_built_again(
    root: Root, install: Install, tmp_path: Path, wheel: Path
) -> None:
    root.release("39.2.0").board("orin").tools("7.2")
    cart = Environment(tmp_path / "cart", "7.2", built="13.0")
    options = ["--wheel", str(wheel), "--venv", str(cart.folder)]
    done = install(*options)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert cart.built == "13.2"
    assert "cuda 13.2" in cart.stamp.read_text()
    assert "already installed" in install(*options).stdout


def test_the_account_of_a_cart_can_read_it_whatever_the_umask_of_root(
    root: Root, install: Install, tmp_path: Path, wheel: Path
) -> None:
    root.release("39.2.0").board("orin").tools("7.2")
    cart = Environment(tmp_path / "cart", "7.2", built="13.2")
    executable(cart.folder / "bin/deepcovid-edge", "#!/bin/sh\numask\n")
    before = os.umask(0o027)
    try:
        done = install("--wheel", str(wheel), "--venv", str(cart.folder))
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert "\n0022\n" in done.stdout


def test_pycuda_of_this_cuda_is_kept(
    root: Root, install: Install, tmp_path: Path, wheel: Path
) -> None:
    """Building it takes minutes."""
    root.release("39.2.0").board("orin").tools("7.2")
    cart = Environment(tmp_path / "cart", "7.2", built="13.2")
    done = install("--wheel", str(wheel), "--venv", str(cart.folder))
    assert done.returncode == 0, done.stderr
    (pycuda,) = [step for step in steps(done.stdout) if step.endswith(" pycuda")]
    assert "--force-reinstall" not in pycuda


def test_without_nvcc_pycuda_of_an_earlier_jetpack_is_taken_from_the_wheels_again(
    root: Root, install: Install, tmp_path: Path
) -> None:
    root.release("39.2.0").board("orin").tools("7.2", cuda=False)
    stand_in_wheels(tmp_path / "wheels")
    cart = Environment(tmp_path / "cart", "7.2", built="13.0")
    done = install("--dry-run", "--wheels", str(tmp_path / "wheels"), "--venv", str(cart.folder))
    assert done.returncode == 0, done.stderr
    (pycuda,) = [step for step in steps(done.stdout) if step.endswith(" pycuda")]
    assert "--force-reinstall --no-deps pycuda" in pycuda


@pytest.mark.parametrize(
    ("built", "warning"),
    [
        ("13.0", "pycuda was built with CUDA 13.0, here is 13.2"),
        ("", "pycuda does not load, so engines cannot run"),
    ],
)
def test_an_installation_that_was_warned_of_is_not_called_installed(
    root: Root, install: Install, tmp_path: Path, built: str, warning: str
) -> None:
    root.release("39.2.0").board("orin").tools("7.2")
    stand_in_wheels(tmp_path / "wheels")
    cart = Environment(tmp_path / "cart", "7.2", built=built)
    options = ["--wheels", str(tmp_path / "wheels"), "--venv", str(cart.folder)]
    for _ in range(2):
        done = install(*options)
        assert done.returncode == 0, done.stderr
        assert warning in done.stderr
        assert "already installed" not in done.stdout
    cart.built = "13.2"
    assert not install(*options).stderr
    assert "already installed" in install(*options).stdout


@pytest.mark.parametrize(
    "changed", ["deepcovid_edge/__init__.py", "export/deepcovid_export/__init__.py"]
)
def test_each_package_of_a_changed_checkout_is_installed_again(
    root: Root, install: Install, tmp_path: Path, changed: str
) -> None:
    root.release("39.2.0").board("orin").tools("7.2")
    cart = Environment(tmp_path / "cart", "7.2", built="13.2")
    checkout = Root(tmp_path / "checkout")
    for path in ("deepcovid_edge/__init__.py", "export/deepcovid_export/__init__.py"):
        checkout.write(path, "")
    checkout.write("pyproject.toml", "")
    (checkout.folder / "jetson").mkdir()
    script = Path(shutil.copy(INSTALL, checkout.folder / "jetson"))
    options = ["--venv", str(cart.folder)]
    assert install(*options, script=script).returncode == 0
    assert "already installed" in install(*options, script=script).stdout
    checkout.write(changed, "version = 2\n")
    done = install(*options, script=script)
    assert done.returncode == 0, done.stderr
    assert "already installed" not in done.stdout
