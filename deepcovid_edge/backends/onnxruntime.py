"""Run .onnx files through ONNX Runtime, on the CPU or with CUDA."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Inference, check_batch
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.decision import out_of_distribution
from deepcovid_edge.errors import (
    BackendUnavailableError,
    ModelFileError,
    OutputError,
    UsageError,
    require,
)
from deepcovid_edge.files import CACHE_VARIABLE, Closing, cache_folder, file_sha256
from deepcovid_edge.manifest import ModelManifest, read_manifest
from deepcovid_edge.reasons import WarningCode

if TYPE_CHECKING:
    import onnxruntime  # noqa: TID251 - this module is onnxruntime's one home

REQUIRES = "onnxruntime"
SUFFIXES = {".onnx"}
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
}
_EXTRAS = {"cpu": "cpu", "cuda": "gpu", "tensorrt": "gpu", "rtx": "gpu"}
_RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_ERRORS_ONLY = 3


def is_available() -> bool:
    """Whether onnxruntime (or onnxruntime-gpu) is installed."""
    return find_spec(REQUIRES) is not None


def compiled_providers() -> list[str]:
    """The values of `--provider` that the installed onnxruntime was compiled with."""
    if not is_available():
        return []
    compiled = require(REQUIRES, extra="cpu").get_available_providers()
    return [name for name, provider in _PROVIDERS.items() if provider in compiled]


def load(path: Path, settings: BackendSettings) -> OnnxRuntimeBackend:
    """Load an exported model.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BackendUnavailableError: The provider that was asked for does not run here.
        OutputError: The folder for the engines that ONNX Runtime builds cannot be made.
        ModelFileError: The file carries no manifest, or ONNX Runtime cannot read it.
    """
    settings = replace(settings, provider=settings.provider or "cpu")
    runtime = require(REQUIRES, extra=_EXTRAS[settings.provider or "cpu"])
    manifest = read_manifest(path)
    session = _session(runtime, path, settings)
    _check_session(session, manifest, path)
    kind = CpuBackend if settings.provider == "cpu" else OnnxRuntimeBackend
    return kind(session, manifest, path, settings)


class OnnxRuntimeBackend(Closing):
    """A model in an ONNX Runtime session."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        manifest: ModelManifest,
        path: Path,
        settings: BackendSettings,
    ) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._outputs = [output.name for output in session.get_outputs()]
        self._settings = settings
        self.manifest = manifest
        proved = manifest.is_proved
        self.warnings: tuple[WarningCode, ...] = () if proved else (WarningCode.UNVERIFIED,)
        self._path, self.sha256 = path, file_sha256(path)

    @property
    def name(self) -> str:
        """Such as `onnxruntime-cpu`."""
        return f"{REQUIRES}-{self._settings.provider}"

    @property
    def on_cpu(self) -> bool:
        """True for the CPU provider."""
        return self._settings.provider == "cpu"

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        """See `Backend.infer`."""
        check_batch(batch, self.manifest)
        if self._session is None:
            raise UsageError("the model is closed: load it again")
        wanted = ["logits", *([out_of_distribution.OUTPUT] if self.manifest.ood else [])]
        if activation_maps:
            if "activation_maps" not in self._outputs:
                raise ModelFileError(f"{self.manifest.name}: the model has no activation maps")
            wanted.append("activation_maps")
        found = dict(zip(wanted, self._session.run(wanted, {"images": batch}), strict=True))
        return Inference(
            found["logits"], found.get("activation_maps"), found.get(out_of_distribution.OUTPUT)
        )

    def close(self) -> None:
        """Free the session."""
        self._session = None


class CpuBackend(OnnxRuntimeBackend):
    """A model on the CPU, where calls cost little: its parts are worth running one by one."""

    def content(self) -> memoryview:
        """See `Partitionable.content`."""
        return memoryview(self._path.read_bytes())

    def run_part(self, part: bytes) -> Callable[[Sequence[NDArray[Any]]], NDArray[Any]]:
        """See `Partitionable.run_part`."""
        session = _session(require(REQUIRES, extra="cpu"), part, self._settings)
        names = [item.name for item in session.get_inputs()]

        def run(tensors: Sequence[NDArray[Any]]) -> NDArray[Any]:
            (made,) = session.run(None, dict(zip(names, tensors, strict=True)))
            return np.asarray(made)

        return run


def _check_session(session: Any, manifest: ModelManifest, path: Path) -> None:
    """Hold the graph's tensors against its manifest."""
    (images, *_), outputs = (
        session.get_inputs(),
        {item.name: item for item in session.get_outputs()},
    )
    expected = ["images", manifest.input.height, manifest.input.width]
    if [images.name, *images.shape[1:]] != expected or isinstance(images.shape[0], int):
        raise ModelFileError(
            f"{path}: input {images.name} of shape {images.shape}, its manifest says images "
            "(batch, "
            f"{manifest.input.height}, {manifest.input.width}): export the model again"
        )
    if "logits" not in outputs or outputs["logits"].shape[1:] != [len(manifest.classes)]:
        raise ModelFileError(
            f"{path}: no logits for the {len(manifest.classes)} classes of its manifest: export "
            "the model again"
        )
    out_of_distribution.check_output(manifest, outputs, path)


def _options(provider: str, model: Path | bytes) -> dict[str, str]:
    """Provider options: engines that ONNX Runtime builds are kept in the cache.

    ONNX Runtime names an engine after the graph, not after its weights. So each model has a folder
    of its own. The times of layers hold for every model.

    Raises:
        OutputError: The folder cannot be made.
    """
    if provider not in ("tensorrt", "rtx"):
        return {}
    shared = cache_folder() / "onnxruntime"
    digest = hashlib.sha256(model).hexdigest() if isinstance(model, bytes) else file_sha256(model)
    own = str(shared / digest)
    try:
        Path(own).mkdir(parents=True, exist_ok=True)  # ONNX Runtime makes no folder around its own
    except OSError as error:
        raise OutputError(
            f"cache: {own} cannot be made: {error.strerror or error}: set {CACHE_VARIABLE} to a "
            "folder that can be written"
        ) from error
    if provider == "rtx":
        return {"nv_runtime_cache_path": own}
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": own,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(shared),
    }


def _register_rtx(runtime: Any) -> None:
    """TensorRT-RTX comes to ONNX Runtime as a plug-in library of its own package."""
    if find_spec(_RTX_PLUGIN) is None:
        return
    plugin = import_module(_RTX_PLUGIN)
    try:
        runtime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    except Exception as error:  # without a driver its library does not load
        raise BackendUnavailableError(f"provider rtx: {error}") from error


def _session(
    runtime: Any, model: Path | bytes, settings: BackendSettings
) -> onnxruntime.InferenceSession:
    asked = settings.provider or "cpu"
    provider = _PROVIDERS[asked]
    if asked == "rtx":
        _register_rtx(runtime)
    if provider not in runtime.get_available_providers():
        raise BackendUnavailableError(
            f"provider {asked}: this onnxruntime has no {provider}: "
            f"pip install 'deepcovid-edge[{_EXTRAS[asked]}]'"
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    chosen = [(provider, _options(asked, model))]
    try:
        source = model if isinstance(model, bytes) else str(model)
        session = runtime.InferenceSession(source, options, providers=chosen)
    except Exception as error:  # onnxruntime raises its own types for each way to fail
        what = "a part of the model" if isinstance(model, bytes) else model
        raise ModelFileError(f"{what}: ONNX Runtime cannot load it: {error}") from error
    # get_available_providers lists what was compiled in; only the session knows what it uses.
    used = session.get_providers()
    if not used or used[0] != provider:
        raise BackendUnavailableError(
            f"provider {asked}: ONNX Runtime fell back to {used}; "
            "its libraries or the driver are missing, see `deepcovid-edge info`"
        )
    return session
