"""No entry point opens an address, or writes a file but where it was asked to and its own cache.

Each runs as a user runs it, in a network namespace of its own, with an empty home, under strace.
OpenVINO is in `test_openvino`: under strace its threads may wait for each other.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "deepcovid_edge"]
TRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=socket,connect,openat,creat")
WRITTEN = re.compile(r'openat\([^,]+, "([^"]*)", [^,)]*O_(?:WRONLY|RDWR|CREAT)')
ADDRESS = re.compile(r"(?:socket|connect)\(.*AF_INET")
NO_FILES = ("/dev/", "/proc/", "/sys/")


def allows_traces() -> bool:
    if not (shutil.which("strace") and shutil.which("unshare")):
        return False
    command = ["unshare", "-rn", *TRACE, "-o", os.devnull, "true"]
    return subprocess.run(command, capture_output=True).returncode == 0


needs_traces = pytest.mark.skipif(
    not allows_traces(),
    reason="strace or unshare -rn is missing, or this user may not use them here",
)

PYTHON_API = """
from deepcovid_edge import Model
with Model() as model:
    assert [record.status for record in model.predict("images")] == ["assessed"] * 2
"""
RECIPE = """
name = "tiny"
architecture = "small_cnn"
positive_class = "covid"
[classes]
normal = ["normal"]
covid = ["covid"]
[input]
height = 64
width = 64
[fit]
epochs = 1
batch_size = 4
precision = "fp32"
"""
ENTRIES = {
    "infer": [*COMMAND, "infer", "images", "-o", "records.jsonl"],
    "python": [sys.executable, "-c", PYTHON_API],
    "info": [*COMMAND, "info"],
    "bench": [
        *(*COMMAND, "bench", "squeezenet1_1", "--seconds", "0.1", "--queries", "4"),
        *("--warm-up", "0", "--scenario", "single-stream", "-o", "bench.json"),
        *("--data", "images"),
    ],
    "selftest": [sys.executable, str(ROOT / "jetson/selftest"), "-o", "selftest.json"],
    "train": [
        *(*COMMAND, "train", "--recipe", "recipe.toml", "data", "-o", "run"),
        *("--from-scratch", "--workers", "0", "--allow-leaks"),
    ],
    "evaluate": [*COMMAND, "evaluate", "squeezenet1_1", "data", "--split", "val", "-o", "report"],
}
SLOW = {"train", "evaluate", "selftest"}
MAY_END_WITH = {"bench": {0, 7}}
NEEDS = {"train": "torch", "evaluate": "matplotlib"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    golden = ROOT / "jetson/golden"
    for name, label in (("below", "normal"), ("above", "covid")):
        for part in ("images", f"data/train/{label}", f"data/val/{label}"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(golden / f"{name}.png", folder / part)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@needs_traces
@pytest.mark.parametrize(
    "entry", [pytest.param(e, marks=[pytest.mark.slow] if e in SLOW else []) for e in ENTRIES]
)
def test_nobody_is_called_and_nothing_is_kept(entry: str, place: Path, tmp_path: Path) -> None:
    if entry in NEEDS:
        pytest.importorskip(NEEDS[entry], reason=f"{entry} needs it")
    home, scratch, trace = (tmp_path / name for name in ("home", "scratch", "trace.txt"))
    home.mkdir()
    scratch.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment = {
        **{name: value for name, value in kept.items() if name != "DEEPCOVID_EDGE_CACHE"},
        "HOME": str(home),
        "TMPDIR": str(scratch),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "export"))),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }
    environment.pop("ORT_DISABLE_TELEMETRY", None)  # this process has it from our own package
    command = ["unshare", "-rn", *TRACE, "-o", str(trace), *ENTRIES[entry]]
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode in MAY_END_WITH.get(entry, {0}), done.stderr
    lines = trace.read_text(errors="replace").splitlines()
    assert not [line for line in lines if ADDRESS.search(line)]
    written = {str(place / found[1]) for found in map(WRITTEN.search, lines) if found}
    own = (str(place), str(scratch), str(home / ".cache/deepcovid-edge"), *NO_FILES)
    assert not {path for path in written if not path.startswith(own)}
    kept_files = [path for path in home.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(home / ".cache/deepcovid-edge") for path in kept_files)


@pytest.mark.parametrize("package", ["deepcovid_edge", "deepcovid_export", "benchmarks"])
def test_telemetry_is_off_before_any_module_of_a_package_is_imported(package: str) -> None:
    """A package is imported before its modules, so no module can import a runtime too early."""
    program = f"import os, {package}; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "export")))}
    del environment["ORT_DISABLE_TELEMETRY"]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "1", done.stderr


def test_the_installer_of_a_board_imports_onnxruntime_without_its_telemetry() -> None:
    script = (ROOT / "jetson/install.sh").read_text("utf-8")
    assert "export ORT_DISABLE_TELEMETRY=1" in script.partition("import numpy, onnxruntime")[0]
