"""The model of a Triton repository: image files in, records out, by the reader of this package.

Triton's Python backend makes a `TritonPythonModel` in a process of each instance. Where the network
is a model of its own (`onnxruntime_onnx`, `tensorrt_plan`) it is called from here (business logic
scripting); an `ensemble` would have no place for reasons and warnings. Sources:
triton-inference-server/python_backend, README; `export --triton` writes the repository.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend, Inference, check_batch
from deepcovid_edge.backends.remote.client import INPUT, OUTPUT, PARAMETER
from deepcovid_edge.decision import out_of_distribution
from deepcovid_edge.device.process import set_up
from deepcovid_edge.errors import ModelFileError, one_line
from deepcovid_edge.files import Closing, file_sha256
from deepcovid_edge.imaging.files import ImageBytes
from deepcovid_edge.manifest import ModelManifest
from deepcovid_edge.model import Model
from deepcovid_edge.pipeline.pipeline import PredictSettings
from deepcovid_edge.reasons import WarningCode

NETWORK = "network"
"""Parameter of the configuration: name of the model that is called for the network."""


class TritonPythonModel:
    """One instance; Triton calls its methods."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model.

        Args:
            args: Of Triton: `model_config` (JSON), `model_repository`, `model_version`.

        Raises:
            ModelFileError: The file is not the one that the configuration was written for.
        """
        set_up()
        self._triton: Any = import_module("triton_python_backend_utils")
        parameters = json.loads(args["model_config"])["parameters"]
        facts = json.loads(parameters[PARAMETER]["string_value"])
        place = Path(args["model_repository"])
        network = parameters.get(NETWORK, {}).get("string_value")
        if network:
            place = place.parent / network
        (path,) = [*(place / "1").glob("model.onnx"), *(place / "1").glob("model.plan")]
        if file_sha256(path) != facts["model_sha256"]:
            raise ModelFileError(f"{path}: not the model of this repository: export it again")
        backend: Backend = (
            NetworkBackend(self._triton, network, facts)
            if network
            else load_backend(path, backend="onnxruntime")  # this file, no faster variant of it
        )
        self._model = Model.of(backend, PredictSettings(workers=1))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, each with a record or with why there is none."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        triton = self._triton
        try:
            tensor = triton.get_input_tensor_by_name(request, INPUT).as_numpy()
            image = ImageBytes(request.request_id(), tensor.reshape(-1)[0])
            (record,) = self._model.predict_together([image])
            found = np.array([record.as_json().encode()], dtype=np.object_)
        except Exception as error:  # one request's fault is not the instance's
            return triton.InferenceResponse(error=triton.TritonError(one_line(error)))
        return triton.InferenceResponse(output_tensors=[triton.Tensor(OUTPUT, found)])

    def finalize(self) -> None:
        """Free the model."""
        self._model.close()


class NetworkBackend(Closing):
    """A network that is a Triton model of its own, called from this process.

    Args:
        triton: The module `triton_python_backend_utils`.
        network: Name of the network's model.
        facts: What the repository's configuration says.
    """

    on_cpu = False

    def __init__(self, triton: Any, network: str, facts: Mapping[str, Any]) -> None:
        self._triton, self._network = triton, network
        self.manifest = ModelManifest.from_json(json.dumps(facts["manifest"]))
        self.sha256 = str(facts["model_sha256"])
        self.name = str(facts["backend"])
        self.warnings = tuple(WarningCode.of(code) for code in facts["warnings"])

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        """See `Backend.infer`."""
        check_batch(batch, self.manifest)
        triton = self._triton
        wanted = ["logits", *([out_of_distribution.OUTPUT] if self.manifest.ood else [])]
        wanted += ["activation_maps"] if activation_maps else []
        request = triton.InferenceRequest(
            model_name=self._network,
            requested_output_names=wanted,
            inputs=[triton.Tensor("images", np.ascontiguousarray(batch))],
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU),
        )
        response = request.exec()
        if response.has_error():
            raise ModelFileError(f"{self._network}: {response.error().message()}")
        found = {
            name: triton.get_output_tensor_by_name(response, name).as_numpy() for name in wanted
        }
        return Inference(
            found["logits"], found.get("activation_maps"), found.get(out_of_distribution.OUTPUT)
        )

    def close(self) -> None:
        """Nothing is held."""
