"""FP32 model to FP16 or INT8: calibrated on training films, kept only if the gate lets it pass."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from deepcovid_edge.backends import Backend, BackendSettings, load_backend
from deepcovid_edge.datasets.dataset import LabelledFilm, dataset_sha256, load_dataset
from deepcovid_edge.errors import DataError, ModelFileError, UsageError
from deepcovid_edge.manifest import ModelManifest, file_sha256, read_manifest
from deepcovid_edge.validation.verify import CHANGED, GateRules, verify
from deepcovid_export.decision.fit_ood import matched
from deepcovid_export.decision.ood_graph import LinearGate, put_on, take_off
from deepcovid_export.onnx_export.graphs import finished, read_fp32, save
from deepcovid_export.quantization.calibration import (
    BINS,
    FEWEST_FILMS,
    CalibrationFilms,
    FilmBatches,
    choose_films,
)
from deepcovid_export.quantization.mixed_precision import Lowered, Lowering
from deepcovid_export.quantization.sensitivity import PROBE_BATCHES, Probe, layer_errors

GATE_SPLIT = "val"
RULES: dict[str, dict[str, Any]] = {
    "fp16": {"max_flips": 0.0, "max_auc_change": 0.001},
    "int8": {"max_flips": 0.01, "max_auc_change": 0.003, "paired_interval": True},
}
MAX_ERROR = 0.02
"""Error of the logits over their spread, on calibration films, from which layers are left out.

The few films of a gate show no change that is smaller than their own number; this does. On the same
network it came out between 2.1 and 2.8 % for fits that differ by their films alone, and films of
other hospitals lie further from the ranges: so it is asked to be well below what would pass.
"""
ADDS = ("measured", "fused", "float")
Say = Callable[[str], None]


@dataclass(frozen=True)
class QuantizeSettings:
    """How a model is quantised.

    Attributes:
        lowered: Precision and target.
        films: Most calibration films.
        adds: Residual additions for TensorRT: `fused`, `float`, or the better by measurement.
        max_left_out: Most layers left in higher precision; None for a third of them.
        sensitivity: Measure what each layer costs, even if nothing asks for it.
    """

    lowered: Lowered = field(default_factory=Lowered)
    films: int = 128
    adds: str = "measured"
    max_left_out: int | None = None
    sensitivity: bool = False

    def __post_init__(self) -> None:
        if not FEWEST_FILMS <= self.films <= 65536:
            raise UsageError(f"--films: got {self.films}, expected {FEWEST_FILMS} to 65536")
        if self.adds not in ADDS:
            raise UsageError(f"--adds: got {self.adds!r}, expected one of {', '.join(ADDS)}")
        if self.max_left_out is not None and self.max_left_out < 0:
            raise UsageError(f"--max-left-out: got {self.max_left_out}, expected 0 or more")


@dataclass(frozen=True)
class Quantized:
    """What came of it.

    Attributes:
        output: The file, or None where the gate did not let it pass.
        manifest: The manifest inside the file, or of the last attempt.
        report: Of `verify`, on the gate's films.
        sensitivity: Layer to the error it causes alone, the costliest first; empty where not
            measured.
        proof: Report of `verify` on films that had no part in making it, or None.
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
    gate: Path | None = None,
    proof: Sequence[LabelledFilm] = (),
    output: Path | None = None,
    say: Say = lambda _: None,
) -> Quantized:
    """Quantise a model, and write it if it is as accurate as it was.

    Args:
        model: An FP32 .onnx file of `export`.
        calibration: Labelled films; those of its `train` split are used.
        settings: What to make.
        gate: Labelled films to judge on; None for the `val` split of `calibration`.
        proof: Films that have no part in making it; the finished file is verified on them, and the
            verdict stands in its manifest.
        output: The file to write; None for NAME-fp16.onnx and so on in this folder.
        say: Called with a line about each step.

    Raises:
        ModelFileError: The model is not FP32, or has no manifest.
        DataError: There are too few films, or the gate's are among the calibration films.
        UsageError: There are no films for the gate.
    """
    settings = settings or QuantizeSettings()
    manifest = _fp32_manifest(model)
    parent, gate_of_parent = take_off(read_fp32(str(model), model.read_bytes()))
    judged = _gate_films(gate, calibration)
    chosen = choose_films(calibration, manifest, settings.films)
    _check_apart(chosen.films, judged, "--gate")
    _check_apart([*chosen.films, *judged], proof, "--verify")
    say(f"{len(chosen.films)} films to calibrate on, {len(judged)} to judge on")
    with tempfile.TemporaryDirectory() as folder, _fp32(model) as reference:
        place = Path(folder) / "candidate.onnx"
        named = _named(manifest, model, settings)
        work = _Work(parent, named, settings, chosen, say, gate=gate_of_parent)
        report = work.search(lambda: _judge(work, reference, place, judged))
        result = _with_verdict(work.manifest, "gate", report)
        if not _passed(report):
            return Quantized(None, result, report, work.sensitivity)
        proved = _judge(work, reference, place, proof) if proof else None
    if proved:
        result = _with_verdict(result, "verified", proved)
    path = output or Path(f"{result.name}.onnx")
    save(finished(work.gated(), result), path)
    return Quantized(path, result, report, work.sensitivity, proved)


class _Work:
    """The candidate that is being made: which layers are lowered, and the graph that follows."""

    def __init__(
        self,
        parent: onnx.ModelProto,
        manifest: ModelManifest,
        settings: QuantizeSettings,
        chosen: CalibrationFilms,
        say: Say,
        *,
        gate: LinearGate | None,
    ) -> None:
        batches = FilmBatches(chosen.films, manifest.input)
        self._parent, self._gate, self._batches = parent, gate, batches
        self.settings = settings
        self.sensitivity: dict[str, float] = {}
        self.left_out: list[str] = []
        self.measured: dict[str, dict[str, Any]] = {}
        self.fused_adds = settings.adds == "fused"
        self._say = say
        self._manifest = manifest
        self._chosen = chosen
        self._lowering = Lowering(parent, settings.lowered, batches)
        self._probe = Probe(parent, batches)
        layers = len(self._lowering.layers)
        limit = settings.max_left_out
        self._most = max(1, layers // 3) if limit is None else min(limit, layers)
        if settings.sensitivity:
            self._measure_layers()

    def refresh(self) -> None:
        """Write the graph anew."""
        lowered = [name for name in self._lowering.layers if name not in self.left_out]
        self.model = self._lowering.write(lowered, fused_adds=self.fused_adds)
        self.error = self._probe.error(self.model)

    def gated(self) -> onnx.ModelProto:
        """The candidate with the parent's out-of-distribution gate, where that has one."""
        if self._gate is None:
            return self.model
        few = islice(self._batches, PROBE_BATCHES)
        return put_on(self.model, matched(self._gate, self._parent, self.model, few))

    def search(self, judge: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Choose how additions are done, then leave layers out until the gate lets it pass."""
        if self._lowering.adds and self.settings.adds == "measured":
            self._choose_adds(judge)
        else:
            self.refresh()
        while self.error > MAX_ERROR and self._leave_one_out():
            pass
        report = judge()
        while not _passed(report) and self._leave_one_out():
            report = judge()
        return report

    def _choose_adds(self, judge: Callable[[], dict[str, Any]]) -> None:
        """Fused, which TensorRT runs faster, unless it turns more decisions."""
        reports, made = {}, {}
        for name in ADDS[1:]:
            self.fused_adds = name == "fused"
            self.refresh()
            reports[name], made[name] = judge(), (self.model, self.error)
            self.measured[name] = _figures(reports[name])
            self._say(f"residual additions {name}: {_line(reports[name])}")
            if not any(_harm(reports[name])):
                break  # none is better
        best = min(reports, key=lambda name: _harm(reports[name]))
        self.fused_adds = best == "fused"
        self.model, self.error = made[best]

    def _leave_one_out(self) -> bool:
        """Leave the costliest layer that is lowered in higher precision, if one more may be."""
        if len(self.left_out) >= self._most:
            return False
        if not self.sensitivity:
            self._measure_layers()
        costliest = next(name for name in self.sensitivity if name not in self.left_out)
        self.left_out.append(costliest)
        before = self.error
        self.refresh()
        self._say(f"{costliest} left out: error of the logits {before:.2%} -> {self.error:.2%}")
        return True

    def _measure_layers(self) -> None:
        self._say(f"measuring {len(self._lowering.layers)} layers one by one")
        self.sensitivity = layer_errors(
            self._lowering.layers,
            lambda name: self._lowering.write([name], alone=True),
            self._probe,
        )

    @property
    def manifest(self) -> ModelManifest:
        """The candidate's manifest, without the gate's verdict."""
        lowered = self.settings.lowered
        facts: dict[str, Any] = {
            "for": lowered.target,
            "flavour": lowered.flavour,
            "left_out": sorted(self.left_out),
            "never_lowered": sorted(self._lowering.never),
            "relative_rmse": round(self.error, 6),
        }
        if lowered.precision == "int8":
            facts["method"] = (
                f"smallest squared error, {BINS} bins; channels equalised; weights fitted"
            )
            facts["calibration"] = {
                "films": len(self._chosen.films),
                "by_class": self._chosen.by_class,
                "split": self._chosen.split,
                "data_sha256": dataset_sha256(self._chosen.films),
                "refused": len(self._chosen.refused),
            }
            facts["rest"] = lowered.rest if lowered.target == "tensorrt" else "fp32"
        if self._lowering.adds:
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


def _named(manifest: ModelManifest, model: Path, settings: QuantizeSettings) -> ModelManifest:
    lowered = settings.lowered
    rules = GateRules.of(manifest, **RULES[lowered.precision])
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    return replace(
        manifest,
        name=manifest.name + lowered.suffix,
        precision=lowered.precision,
        gate=asdict(rules),
        parent_sha256=file_sha256(model),
        created_with={**manifest.created_with, **versions},
    )


def _gate_films(gate: Path | None, calibration: Path) -> list[LabelledFilm]:
    data = gate or calibration
    films = load_dataset(data)
    splits = sorted({film.split for film in films if film.split})
    if GATE_SPLIT in splits:
        return [film for film in films if film.split == GATE_SPLIT]
    if gate is None or splits:
        raise UsageError(
            f"{data}: has {', '.join(splits) or 'no'} splits, expected {GATE_SPLIT!r} to judge on: "
            "give labelled films that are not calibrated on with --gate"
        )
    return films


def _check_apart(used: Sequence[LabelledFilm], judged: Sequence[LabelledFilm], option: str) -> None:
    known = {file_sha256(film.path) for film in used}
    for film in judged:
        if file_sha256(film.path) in known:
            raise DataError(
                f"{film.path}: has a part in making the file: judge on other films with {option}"
            )


def _fp32(model: Path) -> Backend:
    return load_backend(model, backend="onnxruntime", settings=_all_cores())


def _all_cores() -> BackendSettings:
    return BackendSettings(threads=len(os.sched_getaffinity(0)))


def _judge(
    work: _Work, reference: Backend, place: Path, films: Sequence[LabelledFilm]
) -> dict[str, Any]:
    """The gate's report on the candidate as it is now."""
    manifest = work.manifest
    onnx.save(finished(work.gated(), manifest), place)
    rules = GateRules(**manifest.gate)
    with load_backend(place, backend="onnxruntime", settings=_all_cores()) as candidate:
        return verify(reference, candidate, films, rules=rules)


def _harm(report: dict[str, Any]) -> tuple[bool, int]:
    """Whether a report fails, and how many decisions turned."""
    return not _passed(report), report["flips"]["count"]


def _passed(report: dict[str, Any]) -> bool:
    return report["verdict"] != CHANGED and math.isfinite(report["logits"]["rmse"])


def _with_verdict(manifest: ModelManifest, place: str, report: dict[str, Any]) -> ModelManifest:
    verdict = {
        "verdict": report["verdict"],
        "films": report["films"],
        "data_sha256": report["data_sha256"],
        **_figures(report),
    }
    return replace(manifest, quantization={**manifest.quantization, place: verdict})


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    auc = report["auc"]
    return {
        "flips": report["flips"]["count"],
        "auc_change": auc and round(auc["change"], 6),
        "relative_rmse": round(report["logits"]["relative_rmse"], 6),
        "failed": report["failed"],
    }


def _line(report: dict[str, Any]) -> str:
    figures = _figures(report)
    return (
        f"{report['verdict']}, {figures['flips']} of {report['films']} decisions turned, "
        f"error of the logits {figures['relative_rmse']:.2%}"
    )
