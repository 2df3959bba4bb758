"""No entry point opens an address, or writes a file but where it was asked to and its own cache.

Each runs as a user runs it, in a network namespace of its own, with an empty home, under strace,
and is stopped with all it started if it takes too long. Together they load every runtime of the
extras that runs without a GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcovid_edge.imaging.synthetic.phantom import draw_phantom, save_phantom

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "deepcovid_edge"]
CALLS = "socket,connect,?open,openat,?openat2,?creat"
TRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", f"trace={CALLS}")
WRITTEN = re.compile(
    r'(?:creat\(|open(?:at2?\([^,]+, |\()(?="[^"]*", [^,)]*O_(?:WRONLY|RDWR|CREAT)))"([^"]*)"'
)
ADDRESS = re.compile(r"(?:socket|connect)\(.*AF_INET")
NO_FILES = ("/dev/", "/proc/", "/sys/")


def allows_traces() -> bool:
    if not (shutil.which("strace") and shutil.which("unshare")):
        return False
    command = ["unshare", "-rn", *TRACE, "-o", os.devnull, "true"]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


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
TORCH = """
deepcovid() {{ {python} -m deepcovid_edge "$@"; }}
deepcovid train --recipe recipe.toml data -o run --from-scratch --workers 0 --allow-leaks
deepcovid export run/checkpoint.pt --check data -o tiny.onnx
deepcovid infer images --model run/checkpoint.pt --backend torch -o torch.jsonl
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
    "openvino": [*COMMAND, "infer", "images", "--backend", "openvino", "-o", "openvino.jsonl"],
    "dicom": [*COMMAND, "infer", "dicom", "-o", "dicom.jsonl"],
    "heatmap": [*COMMAND, "heatmap", "images", "-o", "maps", "--stride", "32"],
    "sample": [*COMMAND, "sample", "sample", "--count", "1"],
    "verify": [
        *(*COMMAND, "verify", "squeezenet1_1", "squeezenet1_1-int8-cpu", "data"),
        *("--split", "train"),
    ],
    "site-check": [*COMMAND, "site-check", "data", "--split", "train", "-o", "site.json"],
    "build": [
        *(*COMMAND, "build", "squeezenet1_1", "--target", "rtx:sm86", "--level", "0"),
        *("--batch", "1,1,1"),
    ],
    "quantize": [
        *(*COMMAND, "quantize", "squeezenet1_1", "--precision", "int8", "--for", "cpu"),
        *("--calibration", "drawn", "-o", "int8.onnx"),
    ],
    "train": ["sh", "-ec", TORCH.format(python=sys.executable)],
    "evaluate": [*COMMAND, "evaluate", "squeezenet1_1", "data", "--split", "val", "-o", "report"],
}
SLOW = {"quantize", "train", "evaluate", "selftest"}
TOO_FEW = {3}
"""The place has too few images for a verdict; on drawn ones a variant may turn a decision."""
MAY_END_WITH = {"bench": {0, 7}, "quantize": {0, 3}, "verify": TOO_FEW, "site-check": TOO_FEW}
NEEDS = {
    "openvino": "openvino",
    "dicom": "imagecodecs",
    "sample": "pydicom",
    "build": "tensorrt_rtx",
    "quantize": "onnx",
    "train": "torch",
    "evaluate": "matplotlib",
}
LIMIT_S = 240


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    golden = ROOT / "jetson/golden"
    for name, label in (("below", "normal"), ("above", "covid")):
        for part in ("images", f"data/train/{label}", f"data/val/{label}"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(golden / f"{name}.png", folder / part)
    (folder / "recipe.toml").write_text(RECIPE)
    for seed in range(32):  # a calibration asks for eight images of each class
        pixels = draw_phantom(seed, opacities=9 * (seed % 2))
        label, split = ("normal", "covid")[seed % 2], ("train", "val")[seed // 16]
        (folder / "drawn" / split / label).mkdir(parents=True, exist_ok=True)
        save_phantom(pixels, folder / "drawn" / split / label / f"{seed}.png")
    if find_spec("pydicom") and find_spec("imagecodecs"):
        write_dicom(folder / "dicom", golden / "below.png")
    return folder


def write_dicom(folder: Path, image: Path) -> None:
    """A file for each codec."""
    import dicom_files

    folder.mkdir()
    with Image.open(image) as opened:
        pixels = np.asarray(opened.convert("L"))
    for syntax in (dicom_files.EXPLICIT, dicom_files.JPEG, dicom_files.JPEG_LS, dicom_files.J2K):
        data = dicom_files.written(dicom_files.dataset(pixels), syntax)
        (folder / f"{syntax}.dcm").write_bytes(data)


def run(command: list[str], place: Path, environment: dict[str, str]) -> tuple[int, str]:
    """The exit code and what stderr says; all that was started ends with the time limit."""
    with subprocess.Popen(
        command,
        cwd=place,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _, messages = process.communicate(timeout=LIMIT_S)
        finally:
            if process.poll() is None:  # strace alone would leave what it traces behind
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, messages


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
    code, messages = run(command, place, environment)
    assert code in MAY_END_WITH.get(entry, {0}), messages
    lines = trace.read_text(errors="replace").splitlines()
    assert entry not in NEEDS or any(f"/{NEEDS[entry]}/" in line for line in lines), "not loaded"
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
