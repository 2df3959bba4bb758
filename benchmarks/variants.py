"""The variants of a model that benchmarks run: FP32, and what `quantize` and `build` make of it.

What does not lie beside the model is made once, from the images of `train`, and kept: INT8 for CPUs
beside a model of benchmarks/models, where `infer` finds it, all else in runs/variants. A variant
made of another file than the present model is made again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from deepcovid_edge.backends import INT8_CPU_SUFFIX, load_backend
from deepcovid_edge.backends import onnxruntime as onnxruntime_backend
from deepcovid_edge.backends import openvino as openvino_backend
from deepcovid_edge.backends.tensorrt import backend as tensorrt_backend
from deepcovid_edge.backends.tensorrt.build import BuildSettings, build, installed_libraries
from deepcovid_edge.backends.tensorrt.files import Profile, read_facts, record_verification
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.errors import DeepCovidEdgeError, ModelFileError, NotThereError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import DEFAULT_MODEL, find_model, shipped_models
from deepcovid_edge.validation.verify import verify

MODELS = Path(__file__).parent / "models"
RUNS = Path(os.environ.get("RUNS", MODELS.parents[1] / "runs"))
MADE = RUNS / "variants"
VARIANTS = {
    "fp32": None,
    "fp16": ("fp16", "tensorrt"),
    "int8-cpu": ("int8", "cpu"),
    "int8-tensorrt": ("int8", "tensorrt"),
}
"""Variant -> what `quantize` is asked for: precision and target."""
ENGINE_VARIANTS = ("fp32", "fp16", "int8-tensorrt")
PROOF_SPLIT = "test"


class VariantError(Exception):
    """Raised when a variant cannot be made here; the text gives the reason."""


def models() -> dict[str, Path]:
    """Every model whose variants are measured: what ships, and what lies in benchmarks/models."""
    shipped = {name: path for name, path in shipped_models().items() if not is_derived(path)}
    beside = {path.stem: path for path in sorted(MODELS.glob("*.onnx")) if not is_derived(path)}
    return {**shipped, **beside}


def present_files() -> list[Path]:
    """The files of all models and of their variants that are there, what ships first."""
    made = [*MODELS.glob("*.onnx"), *MADE.glob("*.onnx")]
    return [*shipped_models().values(), *sorted(made)]


def named(model: str) -> Path:
    """The file of a model by its name, or the path itself."""
    return models().get(model) or find_model(model)


def pairs(names: Iterable[str] | None, data: Path) -> Iterator[dict[str, Path]]:
    """The FP32 file and the INT8 variant for CPUs of each model, or of the one that ships."""
    for name in names or [DEFAULT_MODEL]:
        model = named(name)
        yield {"fp32": model, "int8": variant_of(model, "int8-cpu", data)}


def is_derived(path: Path) -> bool:
    """Whether a file is the INT8 variant of another."""
    return path.stem.endswith(INT8_CPU_SUFFIX)


def variant_of(model: Path, variant: str, data: Path | None) -> Path:
    """A variant of a model.

    Args:
        model: FP32 .onnx file.
        variant: Of `VARIANTS`.
        data: Images with train, val and test, to make it of.

    Raises:
        VariantError: It is not there and cannot be made.
    """
    if variant not in VARIANTS:
        raise VariantError(f"variant: got {variant!r}, expected one of {', '.join(VARIANTS)}")
    if VARIANTS[variant] is None:
        return model
    name = f"{model.stem}-{variant}.onnx"
    digest = file_sha256(model)
    for path in (model.with_name(name), MADE / name):
        if path.is_file() and is_of(path, digest):
            return path
    if data is None:
        raise VariantError(f"{name} is not there, and no images to calibrate it on: --data")
    is_ours = model.parent == MODELS and variant == "int8-cpu"
    return make(model, variant, data, (MODELS if is_ours else MADE) / name)


def is_of(path: Path, digest: str) -> bool:
    """Whether a file was made of the one with this SHA-256."""
    try:
        return read_manifest(path).parent_sha256 == digest
    except ModelFileError:
        return False


def make(model: Path, variant: str, data: Path, output: Path) -> Path:
    """The variant, quantised now; INT8 for CPUs is proved on `test`, so that `infer` takes it."""
    try:
        from deepcovid_export.quantization.mixed_precision import Variant
        from deepcovid_export.quantization.quantize import QuantizeSettings, quantize
    except ImportError as error:
        raise VariantError(f"{output.name}: quantising needs extra export ({error})") from error
    precision, target = VARIANTS[variant] or ("", "")
    proof = load_dataset(data, split=PROOF_SPLIT) if variant == "int8-cpu" else ()
    output.parent.mkdir(parents=True, exist_ok=True)
    print(f"making {output.name}", flush=True)
    settings = QuantizeSettings(Variant(precision, target))
    try:
        done = quantize(model, data, settings, proof=proof, output=output)
    except DeepCovidEdgeError as error:
        raise VariantError(str(error)) from error
    if done.output is None:
        raise VariantError(f"{output.name}: the equivalence check fails: {done.report['failed']}")
    return done.output


def engine_of(model: Path, variant: str, data: Path | None, profile: Profile) -> Path:
    """The engine of a variant, proved against the FP32 file on `test` where there are images.

    Raises:
        VariantError: TensorRT does not run this variant.
        NotThereError: There is no GPU, or no TensorRT.
    """
    if variant not in ENGINE_VARIANTS:
        raise VariantError(f"{variant}: TensorRT runs {', '.join(ENGINE_VARIANTS)}")
    if not tensorrt_backend.is_available():
        raise NotThereError("TensorRT is not installed")
    file = variant_of(model, variant, data)
    engine, _ = build(file, BuildSettings(profile=profile))
    if data is not None and not read_facts(engine).is_verified:
        images = load_dataset(data, split=PROOF_SPLIT)
        with load_backend(model) as reference, load_backend(engine) as candidate:
            record_verification(engine, verify(reference, candidate, images).as_dict())
    return engine


def file_for(
    model: Path, variant: str, backend: str, data: Path | None, profile: Profile
) -> tuple[Path, str, str | None]:
    """What runs a variant on a backend: its file, the library, and the provider or None.

    Args:
        model: FP32 .onnx file.
        variant: Of `VARIANTS`.
        backend: Such as `openvino`, `tensorrt`, `onnxruntime:cuda`.
        data: See `variant_of`.
        profile: Of an engine that must be built.

    Raises:
        VariantError: The variant cannot be made.
        NotThereError: The backend does not run here.
    """
    if why := missing(backend):
        raise NotThereError(why)
    library, _, provider = backend.partition(":")
    if library == "tensorrt":
        return engine_of(model, variant, data, profile), library, None
    return variant_of(model, variant, data), library, provider or None


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

        if not installed_libraries():
            return "neither TensorRT nor TensorRT-RTX is installed"
        if find_gpu() is None:
            return "no NVIDIA GPU answers here"
    return None
