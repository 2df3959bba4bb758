"""Run .onnx files through OpenVINO on a CPU.

Where openvino_telemetry is installed, `import openvino` sends data about its use over the internet
and leaves files in the home folder. `errors.require` hides that package, so a cart does neither.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Inference, check_batch
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.decision import out_of_distribution
from deepcovid_edge.device.process import cores
from deepcovid_edge.errors import BackendUnavailableError, ModelFileError, UsageError, require
from deepcovid_edge.files import Closing, file_sha256
from deepcovid_edge.manifest import ModelManifest, read_manifest
from deepcovid_edge.reasons import WarningCode

if TYPE_CHECKING:
    import openvino  # noqa: TID251 - this module is openvino's one home

REQUIRES = "openvino"
SUFFIXES = {".onnx"}
_DEVICE = "CPU"
_FIRST_USE = Lock()


def is_available() -> bool:
    """Whether openvino is installed."""
    return find_spec(REQUIRES) is not None


def quiet_runtime() -> ModuleType:
    """Import openvino without its telemetry, ready for calls from several threads.

    Its first conversion of a type fills tables, and gives up Python's lock meanwhile. A second
    thread that comes then waits for the tables while it holds that lock, and both wait for ever
    (seen with 2026.4). So they are filled here, by one thread.

    Raises:
        MissingDependencyError: openvino is not installed.
    """
    with _FIRST_USE:
        runtime = require(REQUIRES, extra="openvino")
        runtime.Type(np.uint8).to_dtype()
    return runtime


def load(path: Path, settings: BackendSettings) -> OpenVinoBackend:
    """Load an exported model.

    Raises:
        MissingDependencyError: openvino is not installed.
        BackendUnavailableError: OpenVINO has no CPU plugin here, or would compute in BF16.
        ModelFileError: The file carries no manifest, or OpenVINO cannot read it.
    """
    runtime = quiet_runtime()
    manifest = read_manifest(path)
    compiled = _compiled(runtime, path, settings.threads)
    _check_tensors(compiled, manifest, path)
    return OpenVinoBackend(compiled, manifest, file_sha256(path))


class OpenVinoBackend(Closing):
    """A model that OpenVINO compiled for this CPU."""

    name = "openvino-cpu"
    on_cpu = True

    def __init__(
        self, compiled: openvino.CompiledModel, manifest: ModelManifest, sha256: str
    ) -> None:
        self._compiled: openvino.CompiledModel | None = compiled
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        self.manifest = manifest
        self.sha256 = sha256
        # `quantize` proved the variant in ONNX Runtime; other kernels round differently.
        unproved = manifest.is_derived
        self.warnings: tuple[WarningCode, ...] = (WarningCode.UNVERIFIED,) if unproved else ()

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        """See `Backend.infer`."""
        check_batch(batch, self.manifest)
        if self._compiled is None:
            raise UsageError("the model is closed: load it again")
        if activation_maps and not _has_maps(self._compiled):
            raise ModelFileError(f"{self.manifest.name}: the model has no activation maps")
        request = self._request(self._compiled)
        try:
            # Results are copied: they belong to the caller, and the request to whoever comes next.
            results = request.infer({"images": batch}, share_inputs=True, share_outputs=False)
            maps = results["activation_maps"] if activation_maps else None
            unlike = results[out_of_distribution.OUTPUT] if self.manifest.ood else None
            return Inference(results["logits"], maps, unlike)
        finally:
            self._idle.put(request)

    def close(self) -> None:
        """Free the compiled model and the requests made of it."""
        self._compiled = None
        self._idle = SimpleQueue()

    def _request(self, compiled: openvino.CompiledModel) -> openvino.InferRequest:
        """One that nobody uses: a request holds the buffers of one call at a time."""
        try:
            return self._idle.get_nowait()
        except Empty:
            return compiled.create_infer_request()


def _compiled(runtime: Any, path: Path, threads: int) -> openvino.CompiledModel:
    """Compile for as many calls at once as the cores allow, if each call uses `threads` of them.

    On CPUs with BF16, OpenVINO computes FP32 files in BF16 by default (OpenVINO, "CPU Device",
    "Supported Inference Data Types"). The graph states the precision of each part. So this sets
    FP32 and then checks it. Parts with Q/DQ stay INT8.
    """
    core = runtime.Core()
    if _DEVICE not in core.available_devices:
        raise BackendUnavailableError(
            "backend openvino: this openvino has no CPU plugin: pip install --force-reinstall "
            "openvino"
        )
    calls = max(1, cores() // threads)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": str(calls),
        "INFERENCE_NUM_THREADS": calls * threads,
        "ENABLE_CPU_PINNING": False,  # the same threads decode images
    }
    try:
        compiled: openvino.CompiledModel = core.compile_model(str(path), _DEVICE, options)
    except Exception as error:  # openvino raises RuntimeError and types of its own
        raise ModelFileError(f"{path}: OpenVINO cannot load it: {error}") from error
    used = compiled.get_property("INFERENCE_PRECISION_HINT")
    if used != runtime.Type.f32:
        raise BackendUnavailableError(
            f"backend openvino: it computes in {used}, the graph says FP32: use --backend "
            "onnxruntime"
        )
    return compiled


def _has_maps(compiled: openvino.CompiledModel) -> bool:
    return any("activation_maps" in output.names for output in compiled.outputs)


def _check_tensors(compiled: openvino.CompiledModel, manifest: ModelManifest, path: Path) -> None:
    """Hold the graph's tensors against its manifest."""
    image = [-1, manifest.input.height, manifest.input.width]
    shapes = {
        name: [dimension.get_length() if dimension.is_static else -1 for dimension in shape]
        for tensor in (*compiled.inputs, *compiled.outputs)
        for name, shape in [(tensor.any_name, tensor.partial_shape)]
    }
    expected = {"images": image, "logits": [-1, len(manifest.classes)]}
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise ModelFileError(
                f"{path}: {name} of shape {shapes.get(name)}, its manifest says {shape} (-1: any "
                "batch): export the model again"
            )
    out_of_distribution.check_output(manifest, shapes, path)
