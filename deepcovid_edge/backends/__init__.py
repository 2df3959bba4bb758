"""Backends: what runs a model file.

A backend is a module with `REQUIRES` (the third-party module it needs), `SUFFIXES` (the model
files it runs), `is_available()` and `load(path, settings)`. What it loads is a `Backend`, whose
one verb is `infer`. The table names modules as text, so that one is imported only when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.device.processor import computes_int8_exactly
from deepcovid_edge.errors import ModelFileError, NotThereError, UsageError
from deepcovid_edge.manifest import ModelManifest, file_sha256, read_manifest
from deepcovid_edge.reasons import WarningCode

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
PROVIDERS = ("cpu", "cuda", "tensorrt", "rtx")
"""Values of `--provider`: what ONNX Runtime runs a model on."""


@dataclass(frozen=True)
class BackendSettings:
    """How a model is run.

    Attributes:
        provider: What ONNX Runtime runs a model on (`cpu` where None); it runs there or `load`
            raises. The other backends have none of these to choose from.
        threads: Threads inside one `infer` call; callers may run several calls at once.
    """

    provider: str | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.provider not in (None, *PROVIDERS):
            known = ", ".join(PROVIDERS)
            raise UsageError(f"--provider: got {self.provider!r}, expected one of {known}")
        if self.threads < 1:
            raise UsageError(f"--threads: got {self.threads}, expected 1 or more")


@dataclass(frozen=True)
class Inference:
    """What a network says of a batch.

    Attributes:
        logits: Of shape (N, classes), float32, before softmax.
        activation_maps: Of shape (N, classes, h, w), float32, or None where not asked for.
        ood_scores: Of shape (N, parts), float32, see `ood`; None for a model without that
            equivalence.
    """

    logits: NDArray[np.float32]
    activation_maps: NDArray[np.float32] | None = None
    ood_scores: NDArray[np.float32] | None = None

    @classmethod
    def joined(cls, parts: Sequence[Inference]) -> Inference:
        """One of several batches of the same model, in their order."""
        if len(parts) == 1:
            return parts[0]
        maps = [part.activation_maps for part in parts if part.activation_maps is not None]
        unlike = [part.ood_scores for part in parts if part.ood_scores is not None]
        return cls(
            np.concatenate([part.logits for part in parts]),
            np.concatenate(maps) if maps else None,
            np.concatenate(unlike) if unlike else None,
        )


class Backend(Protocol):
    """A loaded model. Safe to call from several threads; ends with `close` or `with`."""

    @property
    def name(self) -> str:
        """Backend and provider, such as `onnxruntime-cpu`."""

    @property
    def manifest(self) -> ModelManifest:
        """The model's own manifest."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file."""

    @property
    def warnings(self) -> tuple[WarningCode, ...]:
        """What to know about every result of this model on this backend."""

    @property
    def on_cpu(self) -> bool:
        """Whether `infer` computes on the calling thread, on the cores that decode images too."""

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        """Classify a batch of prepared images.

        Args:
            batch: Images of shape (N, height, width), uint8, as `preprocess.prepare` makes them.
            activation_maps: Also return the class activation maps.

        Raises:
            UsageError: The batch has another shape or type than the model's input.
        """

    def close(self) -> None:
        """Free what the model holds; `infer` must not be called again."""

    def __enter__(self) -> Backend: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class Partitionable(Protocol):
    """A backend that also runs parts of its model, and on which that is worth while."""

    def content(self) -> memoryview:
        """The model file, of which `graph.cut` cuts parts."""

    def run_part(self, part: bytes) -> Callable[[Sequence[NDArray[Any]]], NDArray[Any]]:
        """Make a part ready to run: a function from its inputs to its one output."""


def identity(backend: Backend) -> dict[str, Any]:
    """Which model classified, and on what, as plain values for a report."""
    manifest = backend.manifest
    return {
        "name": manifest.name,
        "sha256": backend.sha256,
        "precision": manifest.precision,
        "backend": backend.name,
    }


def load_backend(
    path: Path, *, backend: str = "auto", settings: BackendSettings | None = None
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
    if backend not in ("auto", *BACKENDS):
        raise UsageError(
            f"--backend: got {backend!r}, expected one of {', '.join(('auto', *BACKENDS))}"
        )
    settings = settings or BackendSettings()
    if found := _runs(path, backend):
        name, module = found
        if settings.provider and name != "onnxruntime":
            raise UsageError(f"--provider {settings.provider}: {name} has no providers")
        loaded: Backend = module.load(path, settings)
        return loaded
    kind = path.suffix or "such"
    if backend != "auto":
        raise ModelFileError(f"{path}: {backend} does not run {kind} files: use --backend auto")
    raise ModelFileError(
        f"{path}: no backend runs {kind} files: expected .onnx (onnxruntime, openvino), .engine "
        "(tensorrt) or .pt (torch)"
    )


def _runs(path: Path, backend: str) -> tuple[str, ModuleType] | None:
    """The backend that was asked for, if it runs the file; of all the first that is installed."""
    missing = None
    for name in BACKENDS if backend == "auto" else (backend,):
        module = import_module(BACKENDS[name])
        if path.suffix in module.SUFFIXES:
            if backend != "auto" or module.is_available():
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
    if not beside.is_file() or not computes_int8_exactly():
        return None
    try:
        manifest = read_manifest(beside)
    except ModelFileError:
        return None
    own = manifest.parent_sha256 == file_sha256(model)
    return beside if own and manifest.is_verified else None


def check_batch(batch: NDArray[np.uint8], manifest: ModelManifest) -> None:
    """Check a batch against a model's input.

    Raises:
        UsageError: The batch has another shape or type.
    """
    expected = (manifest.input.height, manifest.input.width)
    if batch.dtype != np.uint8 or batch.ndim != 3 or batch.shape[1:] != expected:
        raise UsageError(
            f"images: got {batch.shape} {batch.dtype}, model accepts (N, {expected[0]}, "
            f"{expected[1]}) uint8: make them with preprocess.prepare"
        )
