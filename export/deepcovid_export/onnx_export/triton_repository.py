"""A model repository of Triton: the model that takes image files, and the network if it is apart.

Fields are those of `model_config.proto` (triton-inference-server/common); tests hold what is
written against that schema. `python` runs with the Python backend alone and was executed. The
platforms need backends that no package index has, so their configurations say `not executed`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.remote.client import INPUT, OUTPUT, PARAMETER
from deepcovid_edge.backends.tensorrt.files import Profile, read_facts
from deepcovid_edge.errors import UsageError
from deepcovid_edge.files import file_sha256, write_atomically, write_text
from deepcovid_edge.manifest import VERSION, ModelManifest, read_manifest
from deepcovid_edge.reasons import WarningCode
from deepcovid_edge.serve.triton_model import NETWORK
from deepcovid_export.onnx_export.triton_settings import RepositorySettings

_FILES = {".onnx": "model.onnx", ".engine": "model.plan"}
_NEEDS = {"python": ".onnx", "onnxruntime_onnx": ".onnx", "tensorrt_plan": ".engine"}
_BACKENDS = {
    "python": "onnxruntime-cpu",
    "onnxruntime_onnx": "triton-onnxruntime",
    "tensorrt_plan": "triton-tensorrt",
}
_DELAY_US = 2000
"""On a GPU alone: a CPU gains nothing from batches."""
_WARM_UP = "synthetic.png"
_MODEL_PY = '''"""Written by `deepcovid-edge export --triton`, which Triton's Python needs too."""

from deepcovid_edge.serve.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_repository(model: Path, folder: Path, settings: RepositorySettings) -> list[Path]:
    """Write a repository.

    Args:
        model: An .onnx; for `tensorrt_plan` an .engine of `build`.
        folder: The repository; other models in it stay.
        settings: How it is written.

    Returns:
        The configurations.

    Raises:
        UsageError: The platform runs no such file.
        OutputError: The folder cannot be written.
    """
    if model.suffix != _NEEDS[settings.platform]:
        raise UsageError(
            f"platform {settings.platform}: got {model.name}, expected an "
            f"{_NEEDS[settings.platform]} file"
        )
    weights_of = _Weights.of(model)
    manifest = weights_of.manifest
    facts = _facts(model, weights_of, settings.platform)
    own = folder / manifest.name
    network = f"{manifest.name}-network" if settings.platform != "python" else ""
    _write_data(own / "warmup" / _WARM_UP, _warm_up())
    write_text(own / "1" / "model.py", _MODEL_PY)
    weights = folder / (network or manifest.name) / "1" / _FILES[model.suffix]
    _write_data(weights, model.read_bytes())
    written = [own / "config.pbtxt"]
    write_text(written[0], _reader_config(manifest.name, network, facts, settings))
    if network:
        written.append(folder / network / "config.pbtxt")
        text = _network_config(network, manifest, settings.platform, weights_of.profile)
        write_text(written[1], text)
    return written


@dataclass(frozen=True)
class _Weights:
    """What is known of a model file; an .onnx takes any batch, and gets the usual sizes."""

    manifest: ModelManifest
    parents: tuple[str | None, ...]
    is_proved: bool
    profile: Profile = field(default_factory=Profile)

    @classmethod
    def of(cls, model: Path) -> _Weights:
        if model.suffix == ".onnx":
            manifest = read_manifest(model)
            with load_backend(model) as backend:
                is_proved = WarningCode.UNVERIFIED not in backend.warnings
            return cls(manifest, (manifest.parent_sha256,), is_proved)
        facts = read_facts(model)
        parents = (facts.parent_sha256, facts.manifest.parent_sha256)
        return cls(facts.manifest, parents, facts.is_proved, facts.profile)


def _facts(model: Path, weights: _Weights, platform: str) -> dict[str, Any]:
    """What clients check; as `serve` gives it."""
    warnings = [] if weights.is_proved else [WarningCode.UNVERIFIED.code]
    return {
        "version": VERSION,
        "model_sha256": file_sha256(model),
        "parents": [one for one in weights.parents if one],
        "backend": _BACKENDS[platform],
        "warnings": warnings,
        "run_warnings": warnings,
        "ood": "reject",
        "manifest": json.loads(weights.manifest.to_json()),
    }


def _warm_up() -> bytes:
    """The synthetic image as an element of a BYTES tensor: four bytes of length before it."""
    from deepcovid_edge.serve.assessors.child import synthetic_image

    image = synthetic_image()
    return len(image).to_bytes(4, "little") + image


def _write_data(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def _reader_config(
    name: str, network: str, facts: Mapping[str, Any], settings: RepositorySettings
) -> str:
    parameters = {PARAMETER: json.dumps(facts, sort_keys=True)}
    if network:
        parameters[NETWORK] = network
    written = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}\n'
        for key, value in parameters.items()
    )
    return f"""{_head(settings.platform)}\
name: "{name}"
backend: "python"
max_batch_size: 0
input {{ name: "{INPUT}" data_type: TYPE_STRING dims: 1 }}
output {{ name: "{OUTPUT}" data_type: TYPE_STRING dims: 1 }}
instance_group {{ kind: KIND_CPU count: {settings.instances} }}
model_warmup {{
  name: "synthetic"
  inputs {{
    key: "{INPUT}"
    value {{ data_type: TYPE_STRING dims: 1 input_data_file: "{_WARM_UP}" }}
  }}
}}
{written}"""


def _network_config(name: str, manifest: ModelManifest, platform: str, profile: Profile) -> str:
    rows, columns, classes = manifest.input.height, manifest.input.width, len(manifest.classes)
    outputs = f'output {{ name: "logits" data_type: TYPE_FP32 dims: {classes} }}\n'
    if manifest.ood:
        outputs += 'output { name: "ood_scores" data_type: TYPE_FP32 dims: -1 }\n'
    sizes = [size for size in (profile.opt, 2 * profile.opt) if size <= profile.max]
    preferred = "".join(f" preferred_batch_size: {size}" for size in sizes)
    return f"""{_head(platform)}\
name: "{name}"
platform: "{platform}"
max_batch_size: {profile.max}
input {{ name: "images" data_type: TYPE_UINT8 dims: {rows} dims: {columns} }}
{outputs}\
dynamic_batching {{{preferred} max_queue_delay_microseconds: {_DELAY_US} }}
instance_group {{ kind: KIND_GPU count: 2 }}
model_warmup {{
  name: "random"
  batch_size: {profile.opt}
  inputs {{
    key: "images"
    value {{ data_type: TYPE_UINT8 dims: {rows} dims: {columns} random_data: true }}
  }}
}}
"""


def _head(platform: str) -> str:
    note = (
        "" if platform == "python" else "# Not executed: checked against Triton's schema alone.\n"
    )
    return f"# Written by `deepcovid-edge export --triton`, version {VERSION}.\n{note}"
