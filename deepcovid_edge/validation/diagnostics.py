"""This machine, its backends and models, and what is wrong with the installation."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from typing import Any

from deepcovid_edge.backends import onnxruntime, openvino
from deepcovid_edge.backends.tensorrt import build
from deepcovid_edge.device import jetpack
from deepcovid_edge.device.gpu import find_gpu
from deepcovid_edge.device.processor import INT8_SWITCH, int8_is_switched_off, processor_name
from deepcovid_edge.errors import DeepCovidEdgeError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import VERSION, limits_of, read_manifest
from deepcovid_edge.models import shipped_models

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_COMPUTING = (
    *("numpy", "opencv-python-headless", "opencv-python", "pillow", "simplejpeg"),
    *(*_RUNTIMES, "openvino", "tensorrt", "tensorrt_rtx", "pycuda", "cuda-bindings", "torch"),
)
"""Distributions whose version may decide a result or its speed."""


def describe() -> dict[str, Any]:
    """Version, device, settings, backends, models, problems, as `info --json` prints them."""
    return {
        "version": VERSION,
        "device": device_facts(),
        "settings": setting_facts(),
        "backends": backend_facts(),
        "models": model_facts(),
        "problems": problems(),
    }


def device_facts() -> dict[str, Any]:
    """Processor, memory, GPUs and system of this machine."""
    return {
        "machine": platform.machine(),
        "system": _release_name(),
        "python": platform.python_version(),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "gpus": [gpu.name] if (gpu := find_gpu()) else [],
        "gpu": asdict(gpu) if gpu else None,
        "jetpack": jetpack.find_release(),
        "power_mode": jetpack.power_mode(),
    }


def setting_facts() -> dict[str, str]:
    """What environment variables change here, by their names; of those that are set."""
    return {INT8_SWITCH: "off"} if int8_is_switched_off() else {}


def backend_facts() -> list[dict[str, Any]]:
    """Each backend with whether it is installed, its version and its providers."""
    return [_onnxruntime_facts(), _openvino_facts(), _tensorrt_facts()]


def _onnxruntime_facts() -> dict[str, Any]:
    distribution = next((name for name in _RUNTIMES if _version(name)), None)
    providers: list[str] = []
    with suppress(DeepCovidEdgeError):
        providers = onnxruntime.compiled_providers()
    return {
        "name": onnxruntime.REQUIRES,
        "available": onnxruntime.is_available(),
        "distribution": distribution,
        "version": distribution and _version(distribution),
        "providers": providers,
    }


def _openvino_facts() -> dict[str, Any]:
    return {
        "name": openvino.REQUIRES,
        "available": openvino.is_available(),
        "distribution": openvino.REQUIRES,
        "version": _version(openvino.REQUIRES),
        "providers": [],
    }


def _tensorrt_facts() -> dict[str, Any]:
    libraries = build.installed_libraries()
    name, version = next(iter(libraries.items()), (None, None))
    return {
        "name": "tensorrt",
        "available": bool(libraries) and find_gpu() is not None and _version("pycuda") is not None,
        "distribution": name,
        "version": version,
        "libraries": libraries,
        "pycuda": _version("pycuda"),
        "cuda_bindings": _version("cuda-bindings"),
        "providers": [],
    }


def model_facts() -> list[dict[str, Any]]:
    """Each shipped model's path, SHA-256 and facts from its manifest."""
    facts = []
    for name, path in shipped_models().items():
        try:
            manifest = read_manifest(path)
        except DeepCovidEdgeError:
            continue  # `problems` lists it
        shortcuts = manifest.training.get("shortcuts", {})
        facts.append(
            {
                "name": name,
                "path": str(path),
                "precision": manifest.precision,
                "sha256": file_sha256(path),
                "classes": list(manifest.classes),
                "limits": limits_of(manifest.threshold, manifest.indeterminate_range),
                "license": manifest.license,
                "ood": bool(manifest.ood),
                "reads_the_source": shortcuts.get("reads_the_source"),
                "verdict": shortcuts.get("verdict"),
                "verdict_on": {name: shortcuts.get(name) for name in ("data", "images")},
            }
        )
    return facts


def problems() -> list[dict[str, str]]:
    """What keeps this installation from working well, each with its fix."""
    groups = (_runtime_problems(), _tensorrt_problems(), _dicom_problems(), _model_problems())
    return [{"what": what, "fix": fix} for group in groups for what, fix in group]


def _runtime_problems() -> Iterator[tuple[str, str]]:
    installed = [name for name in _RUNTIMES if _version(name)]
    if not installed:
        yield (
            "no runtime for .onnx models is installed",
            "pip install 'deepcovid-edge[cpu]' (or [gpu] beside an NVIDIA GPU)",
        )
    try:
        onnxruntime.compiled_providers()
    except DeepCovidEdgeError as error:
        yield str(error), "pip install --force-reinstall onnxruntime"
    if len(installed) > 1:
        yield (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of "
            "'deepcovid-edge[cpu]' and 'deepcovid-edge[gpu]'",
        )


def _tensorrt_problems() -> Iterator[tuple[str, str]]:
    """What keeps engines from running on a machine that could run them."""
    libraries = build.installed_libraries()
    if not libraries and jetpack.hidden_tensorrt():
        yield (
            "this environment does not see the tensorrt that JetPack installed",
            "make it with python3 -m venv --system-site-packages (jetson/install.sh)",
        )
    elif "tensorrt" in libraries and _version("pycuda") is None:
        yield (
            "TensorRT is installed without pycuda, so engines cannot run",
            "pip install 'deepcovid-edge[tensorrt]' (on a Jetson: jetson/install.sh)",
        )


def _dicom_problems() -> Iterator[tuple[str, str]]:
    """What keeps images from being read as modalities send them."""
    fix = "pip install 'deepcovid-edge[dicom]'"
    if _version("pydicom") is None:
        yield "DICOM images cannot be read: pydicom is not installed", fix
    elif _version("imagecodecs") is None:
        yield "compressed DICOM images may not be readable: imagecodecs is not installed", fix


def _model_problems() -> Iterator[tuple[str, str]]:
    if not shipped_models():
        yield "no model ships with this installation", "make model"
    for path in shipped_models().values():
        try:
            read_manifest(path)
        except DeepCovidEdgeError as error:
            yield str(error), "reinstall deepcovid-edge"


def versions() -> dict[str, str]:
    """Versions of this package, of Python, and of the installed distributions that compute."""
    installed = {name: version for name in _COMPUTING if (version := _version(name))}
    return {
        "deepcovid-edge": VERSION,
        "python": platform.python_version(),
        "kernel": platform.release(),
        **installed,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _release_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()
