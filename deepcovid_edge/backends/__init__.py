"""Backends: what runs a model file.

A backend is a module with `REQUIRES` (the third-party module it needs), `SUFFIXES` (the model
files it runs), `is_available()` and `load(path, settings)`. What it loads is a `base.Backend`,
whose one verb is `infer`. The table names modules as text, so that one is imported only when it is
used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from deepcovid_edge.backends.settings import BackendSettings, is_address
from deepcovid_edge.device.processor import computes_int8_exactly
from deepcovid_edge.errors import ModelFileError, NotThereError, UsageError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import find_model

if TYPE_CHECKING:
    from deepcovid_edge.backends.base import Backend

AUTO = "auto"
BACKENDS = {
    "tensorrt": "deepcovid_edge.backends.tensorrt.backend",
    "onnxruntime": "deepcovid_edge.backends.onnxruntime",
    "openvino": "deepcovid_edge.backends.openvino",
    "torch": "deepcovid_export.networks.torch_backend",
}
"""Values of `--backend`, and the module of each; of two that run a file, `auto` takes the first
that is installed."""
INT8_CPU_SUFFIX = "-int8-cpu"
"""What `quantize --for cpu` adds to a model's file name."""


def load_model(
    name: str | Path,
    *,
    variant: str = AUTO,
    backend: str = AUTO,
    settings: BackendSettings | None = None,
    site_model_sha256: str | None = None,
) -> Backend:
    """Load a model by name, in the variant and on the backend that were asked for.

    Args:
        name: A shipped name, or a model file.
        variant: See `choose_file`.
        backend: Its name, `auto`, or the address of a server: `kserve://HOST[:PORT]`.
        settings: How it is run.
        site_model_sha256: See `choose_file`.

    Raises:
        NotThereError: The model, the variant, the backend's package or its device is not there.
        ModelFileError: The file is not a model that the backend runs.
        ServerMismatchError: The server runs another model.
    """
    if is_address(backend):
        if settings is not None and settings.provider:
            raise UsageError(f"provider {settings.provider}: {backend} has its own")
        from deepcovid_edge.backends.remote.backend import load

        return load(backend, find_model(str(name)), None if variant == AUTO else variant)
    named = backend != AUTO or (settings is not None and settings.provider is not None)
    path = choose_file(name, variant=variant, named=named, site_model_sha256=site_model_sha256)
    return load_backend(path, backend=backend, settings=settings)


def choose_file(
    name: str | Path,
    *,
    variant: str = AUTO,
    named: bool = False,
    site_model_sha256: str | None = None,
) -> Path:
    """The file that runs for a model's name.

    Args:
        name: A shipped name, or a model file.
        variant: `fp32`, `int8-cpu`, ...: that one, which lies beside the model; `auto` takes the
            fastest one that was proved to decide as the model does.
        named: Whether a backend or provider was named: then `auto` is the model's own file.
        site_model_sha256: The model file that a site file belongs to: `auto` keeps to it.

    Raises:
        NotThereError: The model or the variant is not there.
    """
    path = find_model(str(name))
    if variant != AUTO:
        return find_variant(path, variant)
    if named or (site_model_sha256 and file_sha256(path) == site_model_sha256):
        return path
    return fastest_verified(path)


def find_variant(model: Path, variant: str) -> Path:
    """The file of a variant of a model: the model's own, or one beside it.

    Raises:
        NotThereError: There is no such variant.
    """
    beside = model.with_name(f"{model.stem}-{variant}.onnx")
    if beside.is_file():
        return beside
    own = read_manifest(model).variant if model.suffix == ".onnx" else model.suffix[1:]
    if variant == own:
        return model
    known = [
        path.stem.removeprefix(f"{model.stem}-")
        for path in model.parent.glob(f"{model.stem}-*.onnx")
    ]
    raise NotThereError(
        f"variant: got {variant!r}, {model.name} has {', '.join(sorted({own, *known}))}: make it "
        "with `deepcovid-edge quantize`"
    )


def load_backend(
    path: Path, *, backend: str = AUTO, settings: BackendSettings | None = None
) -> Backend:
    """Load a model file with the backend that was asked for.

    Args:
        path: The model file.
        backend: Its name, or `auto`: the first that is installed and runs files of this kind. The
            file itself is run; see `fastest_verified` for a faster variant of it.
        settings: How it is run.

    Raises:
        NotThereError: The file, the backend's package or its device is not there.
        ModelFileError: The file is not a model that the backend runs.
    """
    if not path.is_file():
        raise NotThereError(f"{path}: no such model file")
    if backend not in (AUTO, *BACKENDS):
        raise UsageError(
            f"backend: got {backend!r}, expected one of {', '.join((AUTO, *BACKENDS))}"
        )
    settings = settings or BackendSettings()
    if found := _runs(path, backend):
        name, module = found
        if settings.provider and name != "onnxruntime":
            raise UsageError(f"provider {settings.provider}: {name} has no providers")
        loaded: Backend = module.load(path, settings)
        return loaded
    kind = path.suffix or "such"
    if backend != AUTO:
        raise ModelFileError(f"{path}: {backend} does not run {kind} files: use --backend auto")
    raise ModelFileError(
        f"{path}: no backend runs {kind} files: expected .onnx (onnxruntime, openvino), .engine "
        "(tensorrt) or .pt (torch)"
    )


def _runs(path: Path, backend: str) -> tuple[str, ModuleType] | None:
    """The backend that was asked for, if it runs the file; of all the first that is installed."""
    missing = None
    for name in BACKENDS if backend == AUTO else (backend,):
        module = import_module(BACKENDS[name])
        if path.suffix in module.SUFFIXES:
            if backend != AUTO or module.is_available():
                return name, module
            missing = missing or (name, module)  # says what to install
    return missing


def fastest_verified(model: Path) -> Path:
    """The fastest variant of a model that runs here and was proved to decide as the model does.

    Args:
        model: Any model file; variants are looked for of an .onnx file alone.

    Returns:
        A verified engine of it that lies in the cache and fits this device; else its INT8 variant
        for CPUs, if that lies beside it and this processor computes it exactly; else the file
        itself.
    """
    if model.suffix != ".onnx" or not model.is_file():
        return model
    return _verified_engine(model) or _verified_int8(model) or model


def _verified_engine(model: Path) -> Path | None:
    tensorrt = import_module(BACKENDS["tensorrt"])
    if not tensorrt.is_available():
        return None
    found: Path | None = tensorrt.find_verified(model)
    return found


def _verified_int8(model: Path) -> Path | None:
    beside = model.with_name(f"{model.stem}{INT8_CPU_SUFFIX}.onnx")
    if not beside.is_file():
        return None
    try:
        manifest = read_manifest(beside)
    except ModelFileError:
        return None
    bits = manifest.quantization.get("weight_bits")
    if not computes_int8_exactly(bits if isinstance(bits, int) else 8):
        return None
    own = manifest.parent_sha256 == file_sha256(model)
    return beside if own and manifest.is_verified else None
