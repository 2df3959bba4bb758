"""The forms of a model that benchmarks run: FP32, and what `quantize` and `build` make of it.

What does not lie beside the model is made once, from the films of `train`, and kept: INT8 for CPUs
beside a model of benchmarks/models, where `infer` finds it, all else in runs/forms. A form made of
another file than the present model is made again.
"""

from __future__ import annotations

import os
from pathlib import Path

from deepcovid_edge.backends import INT8_CPU_SUFFIX, load_backend
from deepcovid_edge.backends import onnxruntime as onnxruntime_backend
from deepcovid_edge.backends import openvino as openvino_backend
from deepcovid_edge.backends.tensorrt import backend as tensorrt_backend
from deepcovid_edge.backends.tensorrt.build import BuildSettings, build, installed_flavours
from deepcovid_edge.backends.tensorrt.files import Profile, read_facts, record_verification
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.errors import DeepCovidEdgeError, ModelFileError, NotThereError
from deepcovid_edge.manifest import file_sha256, read_manifest
from deepcovid_edge.models import find_model, shipped_models
from deepcovid_edge.validation.verify import verify

ROOT = Path(__file__).parent.parent
MODELS = Path(__file__).parent / "models"
MADE = Path(os.environ.get("RUNS", ROOT / "runs")) / "forms"
FORMS = {
    "fp32": None,
    "fp16": ("fp16", "tensorrt"),
    "int8-cpu": ("int8", "cpu"),
    "int8-tensorrt": ("int8", "tensorrt"),
}
"""Form -> what `quantize` is asked for: precision and target."""
ENGINE_FORMS = ("fp32", "fp16", "int8-tensorrt")
PROOF_SPLIT = "test"


class FormError(Exception):
    """Raised when a form cannot be made here; the text says why."""


def models() -> dict[str, Path]:
    """Every model whose forms are measured: what ships, and what lies in benchmarks/models."""
    shipped = {name: path for name, path in shipped_models().items() if not lowered(path)}
    beside = {path.stem: path for path in sorted(MODELS.glob("*.onnx")) if not lowered(path)}
    return {**shipped, **beside}


def named(model: str) -> Path:
    """The file of a model by its name, or the path itself."""
    return models().get(model) or find_model(model)


def lowered(path: Path) -> bool:
    return path.stem.endswith(INT8_CPU_SUFFIX)


def form_of(model: Path, form: str, data: Path | None) -> Path:
    """A form of a model.

    Args:
        model: FP32 .onnx file.
        form: Of `FORMS`.
        data: Films with train, val and test, to make it of.

    Raises:
        FormError: It is not there and cannot be made.
    """
    if form not in FORMS:
        raise FormError(f"form: got {form!r}, expected one of {', '.join(FORMS)}")
    if FORMS[form] is None:
        return model
    name = f"{model.stem}-{form}.onnx"
    digest = file_sha256(model)
    for path in (model.with_name(name), MADE / name):
        if path.is_file() and is_of(path, digest):
            return path
    if data is None:
        raise FormError(f"{name} is not there, and no films to calibrate it on: --data")
    is_ours = model.parent == MODELS and form == "int8-cpu"
    return made(model, form, data, (MODELS if is_ours else MADE) / name)


def is_of(path: Path, digest: str) -> bool:
    try:
        return read_manifest(path).parent_sha256 == digest
    except ModelFileError:
        return False


def made(model: Path, form: str, data: Path, output: Path) -> Path:
    """The form, quantised now; INT8 for CPUs is proved on `test`, so that `infer` takes it."""
    try:
        from deepcovid_export.quantization.mixed_precision import Lowered
        from deepcovid_export.quantization.quantize import QuantizeSettings, quantize
    except ImportError as error:
        raise FormError(f"{output.name}: quantising needs extra export ({error})") from error
    precision, target = FORMS[form] or ("", "")
    proof = load_dataset(data, split=PROOF_SPLIT) if form == "int8-cpu" else ()
    output.parent.mkdir(parents=True, exist_ok=True)
    print(f"making {output.name}", flush=True)
    settings = QuantizeSettings(Lowered(precision, target))
    try:
        done = quantize(model, data, settings, proof=proof, output=output)
    except DeepCovidEdgeError as error:
        raise FormError(str(error)) from error
    if done.output is None:
        raise FormError(f"{output.name}: the gate does not let it pass: {done.report['failed']}")
    return done.output


def engine_of(model: Path, form: str, data: Path | None, profile: Profile) -> Path:
    """The engine of a form, proved against the FP32 file on `test` where there are films.

    Raises:
        FormError: TensorRT does not run this form.
        NotThereError: There is no GPU, or no TensorRT.
    """
    if form not in ENGINE_FORMS:
        raise FormError(f"{form}: TensorRT runs {', '.join(ENGINE_FORMS)}")
    if not tensorrt_backend.is_available():
        raise NotThereError("TensorRT is not installed")
    file = form_of(model, form, data)
    engine, _ = build(file, BuildSettings(profile=profile))
    if data is not None and not read_facts(engine).is_verified:
        films = load_dataset(data, split=PROOF_SPLIT)
        with load_backend(model) as reference, load_backend(engine) as candidate:
            record_verification(engine, verify(reference, candidate, films))
    return engine


def stack(backend: str, versions: dict[str, str]) -> str:
    """Backend and version as files are named, such as `onnxruntime-1.31` or `tensorrt-10.13`.

    Args:
        backend: As a result names it: `onnxruntime-cpu`, `openvino-cpu`, `tensorrt-10.13.0.35`.
        versions: Of the result.
    """
    library, _, rest = backend.partition("-")
    if library.startswith("tensorrt"):
        return f"{library.replace('_', '-')}-{short(rest)}"
    version = versions.get(library) or versions.get(f"{library}-gpu", "unknown")
    provider = "" if rest == "cpu" else f"-{rest}"
    return f"{library}{provider}-{short(version)}"


def short(version: str) -> str:
    """The first two numbers of a version."""
    return ".".join(version.split(".")[:2])


def missing(backend: str) -> str | None:
    """Why a backend cannot run here, as far as that is known without trying; None where it may."""
    library, _, provider = backend.partition(":")
    if library == "openvino" and not openvino_backend.is_available():
        return "openvino (extra openvino) is not installed"
    if library == "onnxruntime":
        compiled = onnxruntime_backend.compiled_providers()
        if (provider or "cpu") not in compiled:
            return f"onnxruntime here has {', '.join(compiled) or 'no providers'}, not {provider}"
    if library == "tensorrt":
        from deepcovid_edge.device.gpu import find_gpu

        if not installed_flavours():
            return "neither TensorRT nor TensorRT-RTX is installed"
        if find_gpu() is None:
            return "no NVIDIA GPU answers here"
    return None
