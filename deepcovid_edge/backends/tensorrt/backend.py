"""Run engines through TensorRT 10.3 to 11 or TensorRT-RTX."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Inference, check_batch
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.backends.tensorrt.files import (
    LIBRARIES,
    SUFFIX,
    EngineFacts,
    Fit,
    Profile,
    read_engine,
    read_facts,
    rebuild_command,
)
from deepcovid_edge.decision import out_of_distribution
from deepcovid_edge.errors import (
    DeepCovidEdgeError,
    EngineMismatchError,
    MissingDependencyError,
    ModelFileError,
    NotThereError,
    OutputError,
    UsageError,
)
from deepcovid_edge.files import Closing, cache_folder, file_sha256
from deepcovid_edge.reasons import WarningCode

if TYPE_CHECKING:
    from deepcovid_edge.backends.tensorrt.runner import EngineRunner

REQUIRES = "tensorrt"
SUFFIXES = {SUFFIX}
_USUAL_BATCH = Profile().opt
"""Images in a call to a GPU where no other number is asked for."""


def is_available() -> bool:
    """Whether TensorRT or TensorRT-RTX is installed."""
    return any(find_spec(name) is not None for name in LIBRARIES)


def find_verified(model: Path) -> Path | None:
    """The proved engine of a model in the cache that suits usual batches best, or None.

    It fits this device, with the library that built it.
    """
    engines: list[Path] = []
    with suppress(OutputError):  # no cache folder, so no engine in it
        engines = sorted(cache_folder().glob(f"*{SUFFIX}"))
    if not engines:  # the imports behind what follows are a tenth of a cold start
        return None
    from deepcovid_edge.backends.tensorrt.build import device_fit
    from deepcovid_edge.device.gpu import find_gpu

    if (gpu := find_gpu()) is None:
        return None
    digest = file_sha256(model)
    found: list[tuple[Profile, Path]] = []
    for engine in engines:
        with suppress(DeepCovidEdgeError):
            facts = read_facts(engine)
            fits = not facts.fit.differences(device_fit(gpu, library=facts.fit.library))
            if fits and facts.is_proved and facts.parent_sha256 == digest:
                found.append((facts.profile, engine))
    return min(found, key=lambda one: _cost(one[0]), default=(None, None))[1]


def _cost(profile: Profile) -> tuple[tuple[int, int], int]:
    """How badly an engine suits usual batches: what they cost, then how far it is tuned off."""
    return profile.images_run(_USUAL_BATCH), abs(profile.opt - _USUAL_BATCH)


def load(path: Path, settings: BackendSettings) -> TensorRtBackend:
    """Load an engine after checking that it is the one that was built, and fits here.

    Raises:
        UsageError: The settings ask for more than one thread.
        MissingDependencyError: TensorRT or pycuda is not installed.
        NotThereError: There is no GPU.
        EngineMismatchError: The engine was changed, or does not fit this GPU or TensorRT.
    """
    from deepcovid_edge.backends.tensorrt.cuda import CudaDevice
    from deepcovid_edge.backends.tensorrt.runner import EngineRunner

    if settings.threads > 1:
        raise UsageError(f"threads: got {settings.threads}, TensorRT has none: expected 1")
    library = read_facts(path).fit.library
    facts, plan = read_engine(path, _own_fit(path, library))
    device = CudaDevice()
    trt = import_module(library)
    with device.active():
        engine = DeserialisedEngine(trt, path, plan, facts)
        out_of_distribution.check_output(facts.manifest, engine.outputs, path)
    image = (facts.manifest.input.height, facts.manifest.input.width)
    # TensorRT-RTX captures graphs by itself; capturing its work once more would fail.
    runner = EngineRunner(device, engine, facts.profile, image, graphs=not engine.captures_itself)
    return TensorRtBackend(runner, facts)


def _own_fit(engine: Path, library: str) -> Fit:
    from deepcovid_edge.backends.tensorrt.build import device_fit

    try:
        return device_fit(library=library)
    except MissingDependencyError:
        raise
    except NotThereError as error:  # its own fix is that of a build
        raise NotThereError(
            f"{engine}: no NVIDIA GPU answers here, and an engine runs on one alone: give the "
            ".onnx file that it was built from, or use a machine with its GPU"
        ) from error


class TensorRtBackend(Closing):
    """An engine on a GPU."""

    def __init__(self, runner: EngineRunner, facts: EngineFacts) -> None:
        self._runner = runner
        self.facts = facts
        self.manifest = facts.manifest
        self.sha256 = facts.sha256
        self.on_cpu = False

    @property
    def name(self) -> str:
        """Such as `tensorrt-10.3.0`."""
        return f"{self.facts.fit.library}-{self.facts.fit.version}"

    @property
    def warnings(self) -> tuple[WarningCode, ...]:
        """`W_UNVERIFIED` unless the engine was proved to decide as the FP32 model does."""
        return () if self.facts.is_proved else (WarningCode.UNVERIFIED,)

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        """See `Backend.infer`."""
        check_batch(batch, self.manifest)
        outputs = self._runner.infer(batch)
        if activation_maps and "activation_maps" not in outputs:
            raise ModelFileError(f"{self.manifest.name}: the engine has no activation maps")
        maps = outputs["activation_maps"] if activation_maps else None
        unlike = outputs[out_of_distribution.OUTPUT] if self.manifest.ood else None
        return Inference(outputs["logits"], maps, unlike)

    def infer_in_parts(self, batch: NDArray[np.uint8]) -> dict[str, float]:
        """Time a call's copies and network by CUDA events; see `runner.Lane`."""
        check_batch(batch, self.manifest)
        return self._runner.infer_in_parts(batch)

    def close(self) -> None:
        """Free the engine and all that was made of it."""
        self._runner.close()


class DeserialisedEngine:
    """TensorRT's engine as `runner.Engine`.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        path: The engine file, for messages.
        plan: Its content.
        facts: Its facts.

    Raises:
        EngineMismatchError: The library cannot load it.
    """

    def __init__(self, trt: Any, path: Path, plan: bytes, facts: EngineFacts) -> None:
        self._trt = trt
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineMismatchError(
                f"{path}: {facts.fit.library} cannot load it: build it again: "
                f"{rebuild_command(facts)}"
            )
        self.outputs = dict(self._output_shapes())

    @property
    def captures_itself(self) -> bool:
        """Whether the library captures CUDA graphs on its own (TensorRT-RTX)."""
        return hasattr(self._trt, "CudaGraphStrategy")

    def context(self) -> ExecutionContext:
        """See `runner.Engine`."""
        if not self.captures_itself:
            return ExecutionContext(self._engine.create_execution_context(), self._engine)
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return ExecutionContext(self._engine.create_execution_context(config), self._engine)

    def destroy(self) -> None:
        """See `runner.Engine`."""
        self._engine = self._runtime = None

    def _output_shapes(self) -> Any:
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.OUTPUT:
                yield name, tuple(self._engine.get_tensor_shape(name))[1:]


class ExecutionContext:
    """TensorRT's execution context as `runner.Context`."""

    def __init__(self, context: Any, engine: Any) -> None:
        self._context = context
        self._image = tuple(engine.get_tensor_shape("images"))[1:]

    def set_batch(self, size: int) -> None:
        """See `runner.Context`."""
        if not self._context.set_input_shape("images", (size, *self._image)):
            raise ModelFileError(f"images: got a batch of {size}, which the engine does not take")

    def bind(self, name: str, address: int) -> None:
        """See `runner.Context`."""
        self._context.set_tensor_address(name, address)

    def enqueue(self, stream: Any) -> None:
        """See `runner.Context`."""
        if not self._context.execute_async_v3(stream.handle):
            raise ModelFileError("TensorRT could not run the engine")

    def destroy(self) -> None:
        """See `runner.Context`."""
        self._context = None
