"""FP32 to FP16 or INT8: calibrated on training images, kept only if decisions are unchanged."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.datasets.dataset import LabelledImage, dataset_sha256, load_dataset
from deepcovid_edge.device.progress import progress_bar
from deepcovid_edge.errors import DataError, ModelFileError, UsageError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import ModelManifest, read_manifest
from deepcovid_edge.validation.equivalence import EquivalenceRules
from deepcovid_edge.validation.verify import CHANGED, verify
from deepcovid_export.decision.fit_ood import match_variant
from deepcovid_export.decision.ood_graph import OodLayer, put_on, take_off
from deepcovid_export.evaluation.predictions import with_truth
from deepcovid_export.onnx_export.graphs import check_place, finish, save
from deepcovid_export.onnx_export.half_weights import read_fp32
from deepcovid_export.quantization.calibration import (
    BINS,
    FEWEST_IMAGES,
    CalibrationImages,
    ImageBatches,
    choose_images,
)
from deepcovid_export.quantization.int8_graph import WEIGHT_BITS
from deepcovid_export.quantization.mixed_precision import Variant, VariantWriter
from deepcovid_export.quantization.sensitivity import Probe, layer_errors

EQUIVALENCE_SPLIT = "val"
RULES: dict[str, dict[str, Any]] = {
    "fp16": {"max_flips": 0.0, "max_auc_change": 0.001},
    "int8": {"max_flips": 0.01, "max_auc_change": 0.003, "paired_interval": True},
}
MAX_ERROR = 0.02
"""Largest error of the logits over their spread, on calibration images.

The equivalence check has few images and cannot show small changes; this error can. On one network
it was between 2.1 and 2.8 % for fits that differ only by their images. Images of other hospitals
lie further from the ranges, so the limit is well below what would pass the check.
"""
TRIED = 4
"""Of the costliest layers, so many are tried before the one that helps most is excluded."""
MOST_TRIED = 2 * TRIED
"""So many are tried where the first do not help. While the equivalence check fails, all are."""
WORTH = 0.05
"""Least share of the error that a layer in higher precision, which is slower, must take away."""
ADDS = ("measured", "fused", "float")
_MATCHED_BATCHES = 8
"""The out-of-distribution layer follows its channels on this many batches of calibration images."""
Progress = Callable[[str], None]
Check = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class QuantizeSettings:
    """How a model is quantised.

    Attributes:
        variant: Precision and target.
        images: Most calibration images.
        adds: Residual additions for TensorRT: `fused`, `float`, or the better by measurement.
        max_excluded: Most layers left in higher precision; None for a third of them.
        sensitivity: Measure what each layer costs, even where it is not needed.
    """

    variant: Variant = field(default_factory=Variant)
    images: int = 128
    adds: str = "measured"
    max_excluded: int | None = None
    sensitivity: bool = False

    def __post_init__(self) -> None:
        if not FEWEST_IMAGES <= self.images <= 65536:
            raise UsageError(f"--images: got {self.images}, expected {FEWEST_IMAGES} to 65536")
        if self.adds not in ADDS:
            raise UsageError(f"--adds: got {self.adds!r}, expected one of {', '.join(ADDS)}")
        if self.max_excluded is not None and self.max_excluded < 0:
            raise UsageError(f"--max-excluded: got {self.max_excluded}, expected 0 or more")


@dataclass(frozen=True)
class Quantized:
    """The outcome of `quantize`.

    Attributes:
        output: The file, or None where the equivalence check failed.
        manifest: The manifest inside the file, or of the last attempt.
        report: Report of `verify` on the images of the equivalence check.
        sensitivity: Layer to the error that it causes alone, the largest first; empty where not
            measured.
        proof: Report of `verify` on images that had no part in making the file, or None.
    """

    output: Path | None
    manifest: ModelManifest
    report: dict[str, Any]
    sensitivity: dict[str, float]
    proof: dict[str, Any] | None = None


def quantize(
    model: Path,
    calibration: Path,
    settings: QuantizeSettings | None = None,
    *,
    equivalence: Path | None = None,
    proof: Sequence[LabelledImage] = (),
    output: Path | None = None,
    progress: Progress = lambda _: None,
) -> Quantized:
    """Quantise a model, and write it if it is as accurate as it was.

    Args:
        model: An FP32 .onnx file of `export`.
        calibration: Labelled images; those of its `train` split are used.
        settings: What to make.
        equivalence: Labelled images to compare decisions on; None for the `val` split of
            `calibration`.
        proof: Images that have no part in making the file. It is verified on them, and the verdict
            is written into its manifest.
        output: The file to write; None for MODEL-fp16.onnx and so on in this folder, after the
            model's file: `infer --model MODEL.onnx` looks for its variants by that name.
        progress: Called with a line about each step.

    Raises:
        ModelFileError: The model is not FP32, or has no manifest.
        DataError: Too few images, or images for the check are among the calibration images.
        OutputError: The file cannot be written; this is found out first.
        UsageError: There are no images for the equivalence check.
    """
    settings = settings or QuantizeSettings()
    manifest = _fp32_manifest(model)
    path = output or Path(f"{model.stem}{settings.variant.suffix}.onnx")
    check_place(path)
    parent, layer = take_off(read_fp32(str(model), model.read_bytes()))
    compared = with_truth(_equivalence_images(equivalence, calibration), manifest)
    proof = with_truth(proof, manifest)
    chosen = choose_images(calibration, manifest, settings.images)
    _check_disjoint(chosen.images, compared, "--equivalence")
    _check_disjoint([*chosen.images, *compared], proof, "--verify")
    progress(f"{len(chosen.images)} images to calibrate on, {len(compared)} to compare on")
    with tempfile.TemporaryDirectory() as folder, _load(model) as reference:
        place = Path(folder) / "candidate.onnx"
        named = _variant_manifest(manifest, model, settings)
        work = _Work(parent, named, settings, chosen, progress, ood=layer)
        report = work.search(lambda: _verify(work, reference, place, compared))
        result = _with_verdict(work.manifest, "equivalence", report)
        if not _passed(report):
            return Quantized(None, result, report, work.sensitivity)
        proved = _verify(work, reference, place, proof) if proof else None
    if proved:
        result = _with_verdict(result, "verified", proved)
    save(finish(work.with_limits(), result), path)
    return Quantized(path, result, report, work.sensitivity, proved)


class _Work:
    """The candidate that is being made: which layers are quantised, and its graph."""

    def __init__(
        self,
        parent: onnx.ModelProto,
        manifest: ModelManifest,
        settings: QuantizeSettings,
        chosen: CalibrationImages,
        progress: Progress,
        *,
        ood: OodLayer | None,
    ) -> None:
        batches = ImageBatches(chosen.images, manifest.input)
        self._parent, self._ood, self._batches = parent, ood, batches
        self.settings = settings
        self.sensitivity: dict[str, float] = {}
        self.excluded: list[str] = []
        self.measured: dict[str, dict[str, Any]] = {}
        self.fused_adds = settings.adds == "fused"
        self._progress = progress
        self._manifest = manifest
        self._chosen = chosen
        self._writer = VariantWriter(parent, settings.variant, batches)
        self._probe = Probe(parent, batches.halves[0])
        layers = len(self._writer.layers)
        limit = settings.max_excluded
        self._most = max(1, layers // 3) if limit is None else min(limit, layers)
        if settings.sensitivity:
            self._measure_layers()

    def refresh(self) -> None:
        """Write the graph again after a change."""
        quantised = [name for name in self._writer.layers if name not in self.excluded]
        self.model = self._writer.write(quantised, fused_adds=self.fused_adds)
        self.error = self._probe.error(self.model)

    def with_limits(self) -> onnx.ModelProto:
        """The candidate with the parent's out-of-distribution layer, if there is one."""
        if self._ood is None:
            return self.model
        few = islice(self._batches, _MATCHED_BATCHES)
        return put_on(self.model, match_variant(self._ood, self._parent, self.model, few))

    def search(self, check: Check) -> dict[str, Any]:
        """Choose how additions are done, then exclude layers until the equivalence check passes."""
        report = None
        if self._writer.adds and self.settings.adds == "measured":
            report = self._choose_adds(check)
        else:
            self.refresh()
        while self.error > MAX_ERROR and self._exclude_one(WORTH, MOST_TRIED):
            report = None
        report = report or check()
        while not _passed(report) and self._exclude_one(0.0, len(self._writer.layers)):
            report = check()
        return report

    def _choose_adds(self, check: Check) -> dict[str, Any]:
        """Fused, which TensorRT runs faster, unless it turns more decisions; the report on it."""
        reports, made = {}, {}
        for name in ADDS[1:]:
            self.fused_adds = name == "fused"
            self.refresh()
            reports[name], made[name] = check(), (self.model, self.error)
            self.measured[name] = _figures(reports[name])
            self._progress(f"residual additions {name}: {_line(reports[name])}")
            if not any(_harm(reports[name])):
                break  # the other cannot be better
        best = min(reports, key=lambda name: _harm(reports[name]))
        self.fused_adds = best == "fused"
        self.model, self.error = made[best]
        return reports[best]

    def _exclude_one(self, worth: float, most: int) -> bool:
        """Leave a layer in higher precision, if one more may be left: that which helps most.

        The costliest alone is not always it, because the fit of the weights undoes a part, or more
        than INT8 cost.

        Args:
            worth: Least share of the error that it must take away.
            most: Of the costliest layers, so many are tried.
        """
        if len(self.excluded) >= self._most:
            return False
        if not self.sensitivity:
            self._measure_layers()
        model, error, excluded = self.model, self.error, self.excluded
        left = [name for name in self.sensitivity if name not in excluded][:most]
        for first in range(0, len(left), TRIED):
            made: dict[str, tuple[onnx.ModelProto, float]] = {}
            for name in left[first : first + TRIED]:
                self.excluded = [*excluded, name]
                self.refresh()
                made[name] = self.model, self.error
            best = min(made, key=lambda name: made[name][1])
            if made[best][1] < error * (1 - worth):
                self.excluded, (self.model, self.error) = [*excluded, best], made[best]
                change = f"{error:.2%} -> {self.error:.2%}"
                self._progress(f"{best} excluded: error of the logits {change}")
                return True
        self.model, self.error, self.excluded = model, error, excluded
        return False

    def _measure_layers(self) -> None:
        self._progress(f"measuring {len(self._writer.layers)} layers one by one")

        def alone(name: str) -> onnx.ModelProto:
            return self._writer.write([name], alone=True)

        self.sensitivity = layer_errors(self._writer.layers, alone, self._probe)

    @property
    def manifest(self) -> ModelManifest:
        """The candidate's manifest, without the verdict of the equivalence check."""
        variant = self.settings.variant
        facts: dict[str, Any] = {
            "for": variant.target,
            "scheme": variant.scheme,
            "excluded": sorted(self.excluded),
            "never_quantised": sorted(self._writer.never),
            "relative_rmse": round(self.error, 6),
        }
        if variant.precision == "int8":
            facts["weight_bits"] = WEIGHT_BITS[variant.target]
            facts["method"] = (
                f"smallest cubed error, {BINS} bins; channels equalised; weights fitted"
            )
            facts["calibration"] = {
                "images": len(self._chosen.images),
                "by_class": self._chosen.by_class,
                "split": self._chosen.split,
                "data_sha256": dataset_sha256(self._chosen.images),
                "not_assessed": len(self._chosen.not_assessed),
            }
            facts["rest"] = variant.rest if variant.target == "tensorrt" else "fp32"
        if self._writer.adds:
            facts["adds"] = {
                "chosen": "fused" if self.fused_adds else "float",
                "measured": self.measured,
            }
        return replace(self._manifest, quantization=facts)


def _fp32_manifest(model: Path) -> ModelManifest:
    if model.suffix != ".onnx":
        raise ModelFileError(
            f"{model}: got a {model.suffix or 'nameless'} file, expected .onnx: a checkpoint is "
            "made into one by `deepcovid-edge export`"
        )
    manifest = read_manifest(model)
    if manifest.precision != "fp32":
        raise ModelFileError(
            f"{model}: is {manifest.precision} already, expected fp32: quantise the model that "
            f"it was made from (SHA-256 {manifest.parent_sha256})"
        )
    return manifest


def _variant_manifest(
    manifest: ModelManifest, model: Path, settings: QuantizeSettings
) -> ModelManifest:
    variant = settings.variant
    rules = EquivalenceRules.of(manifest, **RULES[variant.precision])
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    return replace(
        manifest,
        name=manifest.name + variant.suffix,
        precision=variant.precision,
        variant=variant.suffix[1:],
        equivalence=asdict(rules),
        parent_sha256=file_sha256(model),
        created_with={**manifest.created_with, **versions},
    )


def _equivalence_images(equivalence: Path | None, calibration: Path) -> list[LabelledImage]:
    data = equivalence or calibration
    images = load_dataset(data)
    splits = sorted({image.split for image in images if image.split})
    if EQUIVALENCE_SPLIT in splits:
        return [image for image in images if image.split == EQUIVALENCE_SPLIT]
    if equivalence is None or splits:
        raise UsageError(
            f"{data}: has {', '.join(splits) or 'no'} splits, "
            f"expected {EQUIVALENCE_SPLIT!r} to compare on: "
            "give labelled images that are not used for calibration with --equivalence"
        )
    return images


def _check_disjoint(
    used: Sequence[LabelledImage], compared: Sequence[LabelledImage], option: str
) -> None:
    known = {file_sha256(image.path) for image in used}
    for image in compared:
        if file_sha256(image.path) in known:
            raise DataError(
                f"{image.path}: has a part in making the file: "
                f"compare on other images with {option}"
            )


def _load(model: Path) -> Backend:
    """A model on ONNX Runtime, on all cores."""
    settings = BackendSettings(threads=len(os.sched_getaffinity(0)))
    return load_backend(model, backend="onnxruntime", settings=settings)


def _verify(
    work: _Work, reference: Backend, place: Path, images: Sequence[LabelledImage]
) -> dict[str, Any]:
    """The report of `verify` on the present candidate."""
    manifest = work.manifest
    onnx.save(finish(work.with_limits(), manifest), place)
    rules = EquivalenceRules(**manifest.equivalence)
    with _load(place) as candidate, progress_bar(len(images), "images to compare") as progress:
        return verify(reference, candidate, images, rules=rules, progress=progress).as_dict()


def _harm(report: dict[str, Any]) -> tuple[bool, int]:
    """Whether a report fails, and how many decisions turned."""
    return not _passed(report), report["flips"]["count"]


def _passed(report: dict[str, Any]) -> bool:
    return bool(report["verdict"] != CHANGED)


def _with_verdict(manifest: ModelManifest, place: str, report: dict[str, Any]) -> ModelManifest:
    verdict = {
        "verdict": report["verdict"],
        "images": report["images"],
        "data_sha256": report["data_sha256"],
        **_figures(report),
    }
    return replace(manifest, quantization={**manifest.quantization, place: verdict})


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    auc, logits = report["auc"], report["logits"]
    return {
        "flips": report["flips"]["count"],
        "auc_change": auc and round(auc["change"], 6),
        "relative_rmse": logits and round(logits["relative_rmse"], 6),
        "failed": report["failed"],
    }


def _line(report: dict[str, Any]) -> str:
    figures = _figures(report)
    error = figures["relative_rmse"]
    return f"{report['verdict']}, {figures['flips']} of {report['images']} decisions turned, " + (
        "no logit is a number" if error is None else f"error of the logits {error:.2%}"
    )
