"""jetson/install.sh run to its end in a chroot, as each JetPack that is supported.

Real: Debian's Python and its pip, every wheel, the compiler, CUDA's headers and cuRAND from
NVIDIA's wheels for aarch64, and pycuda, which is built. Stand-ins: the release files, nvcc, which
only says its version, JetPack's tensorrt, which only says its own, and libcuda, whose functions all
fail.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jetson_roots import RELEASES, STACKS, Root, executable

from aarch64.checks import CHECKOUT
from aarch64.chroot import Chroot, ChrootError
from aarch64.installed import in_chroot

BOARDS = (
    *(("36.4.0", "orin"), ("36.4.7", "agx-orin")),
    *(("38.2.0", "thor"), ("38.4.0", "thor"), ("39.2.0", "orin")),
)
"""L4T and board: each JetPack once."""
PLACE = f"{CHECKOUT}/jetson"
_CUDA = {
    "12": (
        *("nvidia-cuda-runtime-cu12", "nvidia-cuda-nvcc-cu12"),
        *("nvidia-curand-cu12", "nvidia-cuda-profiler-api-cu12"),
    ),
    "13": (
        *("nvidia-cuda-runtime", "nvidia-cuda-crt"),
        *("nvidia-curand", "nvidia-cuda-profiler-api"),
    ),
}
"""Major version of CUDA -> the wheels with what pycuda is built from; the first two have the
version of CUDA itself."""
_INSTALL_SECONDS = 3000.0
_ENVIRONMENT = {
    "LD_LIBRARY_PATH": "/usr/local/cuda/lib64",
    "PIP_NO_COMPILE": "1",
    "CFLAGS": "-O0 -g0",
}
"""Where the loader of a JetPack finds its driver; no byte code and no optimisation, which take
minutes of every installation."""
_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_27_aarch64")
_DRIVER_HEADERS = ("cuda.h", "cudaProfiler.h", "cudaGL.h", "cudaEGL.h")
_FUNCTION = re.compile(r"\bCUDAAPI\s+(cu[A-Z]\w+)\s*\(")
_RENAMED = re.compile(
    r"^\s*#\s*define\s+(cu[A-Z]\w+)\s+(?:__CUDA_API_PT[SD][ZS]\()?(cu[A-Z]\w+)", re.M
)
DISTRIBUTIONS = (
    *("numpy", "opencv-python-headless", "onnxruntime", "pycuda", "cuda-bindings", "imagecodecs"),
)


@dataclass(frozen=True)
class Jetpack:
    """A JetPack on a board.

    Attributes:
        l4t: Its release.
        board: Of `jetson_roots.BOARDS`.
    """

    l4t: str
    board: str

    @property
    def name(self) -> str:
        """Such as `7.2`."""
        return RELEASES[self.l4t][2]

    @property
    def cuda(self) -> str:
        """Version of its CUDA, such as `13.2`."""
        return STACKS[self.name][1]

    @property
    def tensorrt(self) -> str:
        """Version of its TensorRT."""
        return STACKS[self.name][2]

    @property
    def folder(self) -> str:
        """Where its files lie in the chroot."""
        return f"/srv/jetpack-{self.l4t}-{self.board}"


def prepare(chroot: Chroot, jetpack: Jetpack, kept: Path) -> None:
    """Make the chroot's programs those of a JetPack.

    Args:
        chroot: The chroot.
        jetpack: Which one.
        kept: Folder for what is fetched.
    """
    own = Path(f"{chroot.folder}{jetpack.folder}")
    shutil.rmtree(own, ignore_errors=True)
    root = Root(own).release(jetpack.l4t).board(jetpack.board)
    root.packages(nvidia_jetpack=jetpack.name, nvidia_l4t_core=f"{jetpack.l4t}-20250101")
    (own / "usr").symlink_to("/usr")
    cuda = chroot.folder / "usr/local/cuda"
    if cuda.is_symlink():
        cuda.unlink()
    cuda.symlink_to(f"cuda-{jetpack.cuda}")
    _make_cuda(chroot, jetpack.cuda, kept)
    version = f"Cuda compilation tools, release {jetpack.cuda}, V{jetpack.cuda}.68"
    executable(cuda.parent / f"cuda-{jetpack.cuda}/bin/nvcc", f"#!/bin/sh\necho '{version}'\n")
    stand_in = chroot.folder / "usr/lib/python3/dist-packages/tensorrt"
    stand_in.mkdir(parents=True, exist_ok=True)
    (stand_in / "__init__.py").write_text(f"__version__ = {jetpack.tensorrt!r}\n", "utf-8")


def _make_cuda(chroot: Chroot, version: str, kept: Path) -> None:
    """CUDA's headers, runtime and cuRAND of NVIDIA's wheels; a libcuda whose functions all fail."""
    place = chroot.folder / f"usr/local/cuda-{version}"
    shutil.rmtree(place, ignore_errors=True)
    for folder in ("include", "lib64"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    for wheel in _cuda_wheels(version, kept / f"cuda-{version}"):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                _, is_header, rest = member.partition("/include/")
                library = Path(member).name
                if is_header:
                    target = place / "include" / rest
                elif library.startswith(("libcurand.so", "libcudart.so")):
                    target = place / "lib64" / library
                else:
                    continue
                if not member.endswith("/"):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(member))
    (curand,) = (place / "lib64").glob("libcurand.so.*")
    (place / "lib64/libcurand.so").symlink_to(curand.name)
    headers = [place / "include" / name for name in _DRIVER_HEADERS]
    header = "".join(path.read_text("utf-8") for path in headers if path.is_file())
    names = {*_FUNCTION.findall(header), *(name for _, name in _RENAMED.findall(header))}
    source = "".join(f"int {name}(void) {{ return 100; }}\n" for name in sorted(names))
    (place / "lib64/libcuda.c").write_text(source, "utf-8")
    library = f"/usr/local/cuda-{version}/lib64/libcuda"
    build = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", f"{library}.so.1"]
    in_chroot(chroot, [*build, f"{library}.c"])
    (place / "lib64/libcuda.so").symlink_to("libcuda.so.1")


def _cuda_wheels(version: str, place: Path) -> Iterator[Path]:
    """The wheels for aarch64, fetched once."""
    names = _CUDA[version.partition(".")[0]]
    if not place.is_dir() or len([*place.glob("*.whl")]) < len(names):
        platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(place)]
        command += [*platforms, "--only-binary=:all:"]
        command += [*(f"{name}=={version}.*" for name in names[:2]), *names[2:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise ChrootError(
                f"CUDA {version} for aarch64: {done.stderr.strip().splitlines()[-1:]}"
            )
    return iter(sorted(place.glob("*.whl")))


def install(
    chroot: Chroot, jetpack: Jetpack, wheel: str, venv: str, wheels: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the installer.

    Args:
        chroot: With what `prepare` makes.
        jetpack: Which one.
        wheel: The product's, in the chroot.
        venv: The environment.
        wheels: Folder of wheels: then there is no network, and nothing is built.
    """
    options = ["--wheels", wheels] if wheels else ["--wheel", wheel]
    return chroot.run(
        f"{PLACE}/install.sh",
        *("--root", jetpack.folder, "--venv", venv, *options),
        limit_s=_INSTALL_SECONDS,
        environment=_ENVIRONMENT,
        offline=bool(wheels),
    )


def collect_as_documented(chroot: Chroot, jetpack: Jetpack, wheel: str) -> str:
    """Collect wheels for carts without a network, by the commands of jetson/README.md.

    Returns:
        Their folder.
    """
    own, place = f"{jetpack.folder}/venv", f"{jetpack.folder}/wheels"
    command = (
        "export CUDA_ROOT=/usr/local/cuda PATH=/usr/local/cuda/bin:$PATH\n"
        f"{own}/bin/pip wheel -q -w {place} -c {own}/jetson-constraints.txt "
        f"'{wheel}[cpu,dicom,tensorrt]'"
    )
    done = chroot.run("sh", "-c", command, limit_s=_INSTALL_SECONDS, environment=_ENVIRONMENT)
    if done.returncode:
        raise ChrootError(f"pip wheel: {done.stderr.strip().splitlines()[-1:]}")
    return place


def jetpacks(chroot: Chroot, wheel: Path, kept: Path) -> dict[str, Any]:
    """Install as each JetPack twice, and as the first one without a network too; what came out.

    Args:
        chroot: The chroot, with the checkout's scripts.
        wheel: The product's.
        kept: Folder for what is fetched.
    """
    place = f"/srv/{wheel.name}"
    shutil.copyfile(wheel, f"{chroot.folder}{place}")
    rows = []
    for board in BOARDS:
        jetpack = Jetpack(*board)
        prepare(chroot, jetpack, kept)
        rows.append(_twice(chroot, jetpack, place))
        if board == BOARDS[0]:
            wheels = collect_as_documented(chroot, jetpack, place)
            rows.append(_twice(chroot, jetpack, place, wheels))
    broken = [
        f"install.sh, JetPack {row['jetpack']} on {row['board']}: {why}"
        for row in rows
        if (why := _why_broken(row))
    ]
    return {"jetpacks": rows, "broken": broken}


def _why_broken(row: Mapping[str, Any]) -> str:
    """What an installation breaks, or nothing. Another Python than JetPack's is expected here."""
    if any(row["exit_codes"]):
        return str(row["error"] or "the second run failed")
    if not row["second_run_changes_nothing"]:
        return "a second run changes something"
    return next((warning for warning in row["warnings"] if "pycuda" in warning), "")


def _twice(chroot: Chroot, jetpack: Jetpack, wheel: str, wheels: str = "") -> dict[str, Any]:
    """Run the installer twice into an environment of its own."""
    venv = f"{jetpack.folder}/{'offline' if wheels else 'venv'}"
    first, second = (install(chroot, jetpack, wheel, venv, wheels) for _ in range(2))
    row = {
        "jetpack": jetpack.name,
        "l4t": jetpack.l4t,
        "board": jetpack.board,
        "network": not wheels,
        "exit_codes": [first.returncode, second.returncode],
        "second_run_changes_nothing": "already installed" in second.stdout,
        "warnings": [
            line.removeprefix("Warning: ")
            for line in first.stderr.splitlines()
            if line.startswith("Warning: ")
        ],
        "versions": _versions(Path(f"{chroot.folder}{venv}")),
        "error": "\n".join(first.stderr.splitlines()[-20:]) if first.returncode else "",
    }
    print(f"JetPack {jetpack.name}, {jetpack.board}: exit codes {row['exit_codes']}", flush=True)
    return row


def _versions(venv: Path) -> dict[str, str | None]:
    """What the environment has of `DISTRIBUTIONS`."""
    found: dict[str, str | None] = {}
    for name in DISTRIBUTIONS:
        pattern = f"lib/python3*/site-packages/{name.replace('-', '_')}-*.dist-info"
        folder = next(venv.glob(pattern), None)
        found[name] = folder.name.removesuffix(".dist-info").split("-")[1] if folder else None
    return found
