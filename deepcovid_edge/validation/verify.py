"""Is a candidate as accurate as its reference? The clinical gate.

Two models judge the same films; what is compared is what a clinic would notice: decisions that
turned, sensitivity, specificity and area under the curve at the operating point; and, when asked,
whether both look at the same places.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge import __version__
from deepcovid_edge.backends import Backend, Inference, identity
from deepcovid_edge.datasets.dataset import LabelledFilm, check_labels, dataset_sha256
from deepcovid_edge.decision.out_of_distribution import FamiliarityGate
from deepcovid_edge.decision.statistics import (
    Scores,
    Truth,
    auc,
    auc_change,
    mcnemar_exact,
    paired_difference,
    upper_bound,
    wilson,
)
from deepcovid_edge.errors import DataError, ImageRefusedError, ModelFileError, UsageError
from deepcovid_edge.heatmaps.agreement import MapComparison, choose_films, compare_models, summarise
from deepcovid_edge.heatmaps.heatmap import OCCLUSION
from deepcovid_edge.imaging.pictures import read_radiograph
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.manifest import InputSpec, ModelManifest
from deepcovid_edge.pipeline.classifier import DECIMALS, probabilities

SCHEMA_VERSION = 1
UNCHANGED, CHANGED, INSUFFICIENT = "unchanged", "changed", "insufficient"
_CHUNK = 32


@dataclass(frozen=True)
class GateRules:
    """When a candidate counts as unchanged. A manifest's `gate` may set other values.

    Attributes:
        max_flips: Largest share of films whose decision turns.
        max_auc_change: Largest change of the area under the curve, either way.
        smallest_change: Smallest change of sensitivity or specificity that the films must be able
            to show: one film of the class may weigh no more.
        paired_interval: Whether the paired 95 % intervals of the changes of sensitivity and
            specificity must hold zero.
        min_heatmap_correlation: Smallest median of the rank correlations of heat maps, where maps
            were compared.
    """

    max_flips: float = 0.01
    max_auc_change: float = 0.003
    smallest_change: float = 0.01
    paired_interval: bool = True
    min_heatmap_correlation: float = 0.95

    def __post_init__(self) -> None:
        shares = ("max_flips", "max_auc_change", "smallest_change", "min_heatmap_correlation")
        for name in shares:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"gate.{name}: got {value}, expected 0 to 1")

    @classmethod
    def of(cls, manifest: ModelManifest, **changes: Any) -> GateRules:
        """The rules of a model's manifest, with changes; None changes nothing."""
        known = {item.name for item in fields(cls)}
        stated = {name: value for name, value in manifest.gate.items() if name in known}
        given = {name: value for name, value in changes.items() if value is not None}
        return cls(**{**stated, **given})


@dataclass(frozen=True)
class Judged:
    """What two models say of the same films.

    Attributes:
        films: The films that were assessed.
        reference: The reference's logits, of shape (N, classes), float32.
        candidate: The candidate's logits, likewise.
        refused: Files that could not be assessed, with their reason.
        unlike: Whether each model's out-of-distribution gate refuses each film; None for a model
            without one. The films are judged all the same.
    """

    films: list[LabelledFilm]
    reference: NDArray[np.float32]
    candidate: NDArray[np.float32]
    refused: dict[str, str]
    unlike: tuple[Truth | None, ...]


def judge(reference: Backend, candidate: Backend, films: Sequence[LabelledFilm]) -> Judged:
    """Let two models judge the same films, each read once.

    Raises:
        ModelFileError: The models differ in classes, input or positive class.
        DataError: No film could be assessed.
    """
    _check_comparable(reference.manifest, candidate.manifest)
    kept: list[LabelledFilm] = []
    refused: dict[str, str] = {}
    said: tuple[list[Inference], list[Inference]] = ([], [])
    for chunk in _prepared(films, reference.manifest.input):
        good = [(film, pixels) for film, pixels in chunk if isinstance(pixels, np.ndarray)]
        refused |= {str(film.path): code for film, code in chunk if isinstance(code, str)}
        if good:
            batch = np.stack([pixels for _, pixels in good])
            kept += [film for film, _ in good]
            said[0].append(reference.infer(batch))
            said[1].append(candidate.infer(batch))
    if not kept:
        raise DataError(f"none of {len(films)} films could be assessed")
    logits = [np.concatenate([one.logits for one in side]) for side in said]
    models = (reference.manifest, candidate.manifest)
    unlike = tuple(_unlike(*pair) for pair in zip(models, said, strict=True))
    return Judged(kept, logits[0], logits[1], refused, unlike)


def _unlike(manifest: ModelManifest, said: Sequence[Inference]) -> Truth | None:
    gate = FamiliarityGate.of(manifest)
    rows = [one.unlikeness for one in said if one.unlikeness is not None]
    return gate.beyond(np.concatenate(rows)) if gate and rows else None


def verify(
    reference: Backend,
    candidate: Backend,
    films: Sequence[LabelledFilm],
    *,
    rules: GateRules | None = None,
    heatmaps: MapComparison | None = None,
) -> dict[str, Any]:
    """Compare a candidate with its reference on labelled films.

    Args:
        reference: The model whose accuracy is known.
        candidate: The model that shall replace it.
        films: Labelled films; both classes must occur for a verdict.
        rules: When the candidate counts as unchanged; None for the reference's own.
        heatmaps: Which heat maps are compared too; None for none.

    Returns:
        Differences, flips, paired statistics and the verdict, as plain values for JSON.

    Raises:
        ModelFileError: The models cannot be compared.
        DataError: No film could be assessed.
        UsageError: A window of the heat maps is larger than the models' input.
    """
    manifest = reference.manifest
    rules = rules or GateRules.of(manifest)
    check_labels(films, manifest.known_labels)
    judged = judge(reference, candidate, films)
    scores = tuple(
        np.round(probabilities(logits)[:, manifest.positive_index], DECIMALS)
        for logits in (judged.reference, judged.candidate)
    )
    positive = np.array([film.label in manifest.positive_labels for film in judged.films])
    figures = _figures(scores[0], scores[1], positive, manifest.threshold)
    models = (reference, candidate)
    figures["heatmap"] = heatmaps and _heatmaps(models, judged.films, positive, heatmaps)
    figures["ood"] = _ood(judged)
    failed = _failures(figures, rules, manifest, candidate.manifest)
    missing = _missing(positive, rules)
    verdict = CHANGED if failed else INSUFFICIENT if missing else UNCHANGED
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict,
        "failed": failed,
        "missing": missing,
        "rules": asdict(rules),
        "reference": identity(reference),
        "candidate": identity(candidate),
        "threshold": manifest.threshold,
        "films": len(judged.films),
        "not_assessed": judged.refused,
        "data_sha256": dataset_sha256(judged.films),
        "logits": _differences(judged.reference, judged.candidate),
        "probability": _differences(scores[0], scores[1]),
        **figures,
        "flipped": _flipped(judged.films, scores, manifest.threshold),
        **_by_group(judged.films, scores, manifest.threshold),
        "created_with": {"deepcovid-edge": __version__},
    }


def _check_comparable(reference: ModelManifest, candidate: ModelManifest) -> None:
    for name in ("classes", "positive_class", "input"):
        expected, got = getattr(reference, name), getattr(candidate, name)
        if expected != got:
            raise ModelFileError(
                f"{name}: candidate has {got}, reference has {expected}: "
                "only models of the same task and input can be compared"
            )


def _prepared(
    films: Sequence[LabelledFilm], spec: InputSpec
) -> Iterator[list[tuple[LabelledFilm, NDArray[np.uint8] | str]]]:
    def read(film: LabelledFilm) -> NDArray[np.uint8] | str:
        try:
            return prepare(read_radiograph(film.path), spec)
        except ImageRefusedError as error:
            return error.reason.code

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(films), _CHUNK):
            chunk = films[start : start + _CHUNK]
            yield list(zip(chunk, pool.map(read, chunk), strict=True))


def _figures(before: Scores, now: Scores, positive: Truth, threshold: float) -> dict[str, Any]:
    """Flips and the changes of sensitivity, specificity and area under the curve."""
    called = (before >= threshold, now >= threshold)
    right = (called[0] == positive, called[1] == positive)
    lost, gained = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    flips = int((called[0] != called[1]).sum())
    figures: dict[str, Any] = {
        "flips": {
            "count": flips,
            "share": flips / len(before),
            "upper_95": upper_bound(flips, len(before)),
        },
        "mcnemar": {"lost": lost, "gained": gained, "p": mcnemar_exact(lost, gained)},
        "sensitivity": _change(right, positive),
        "specificity": _change(right, ~positive),
        "auc": None,
    }
    if positive.any() and not positive.all():
        change, interval = auc_change(before, now, positive)
        values = {"reference": auc(before, positive), "candidate": auc(now, positive)}
        figures["auc"] = {**values, "change": change, "interval_95": list(interval)}
    return figures


def _change(right: tuple[Truth, Truth], group: Truth) -> dict[str, Any] | None:
    before, now = right[0][group], right[1][group]
    if not len(before):
        return None
    change, interval = paired_difference(before, now)
    return {
        "films": len(before),
        "reference": _rate(before),
        "candidate": _rate(now),
        "change": change,
        "interval_95": list(interval),
    }


def _ood(judged: Judged) -> dict[str, int] | None:
    """How many films the out-of-distribution gates refuse, and on how many they differ."""
    before, now = judged.unlike
    if before is None or now is None:
        return None
    counts = (before, now, before != now)
    return {
        name: int(count.sum())
        for name, count in zip(("reference", "candidate", "differ"), counts, strict=True)
    }


def _rate(right: Truth) -> dict[str, Any]:
    successes, trials = int(right.sum()), len(right)
    return {"value": successes / trials, "interval_95": list(wilson(successes, trials))}


def _heatmaps(
    models: tuple[Backend, Backend],
    films: Sequence[LabelledFilm],
    positive: Truth,
    asked: MapComparison,
) -> dict[str, Any]:
    """How alike the occlusion maps of some films are, on the whole and each."""
    spec, windows = models[0].manifest.input, asked.occlusion
    chosen = [films[place] for place in choose_films(positive, asked.films)]
    pixels = (prepare(read_radiograph(film.path), spec) for film in chosen)
    found = compare_models(*models, pixels, windows)
    return {
        "method": OCCLUSION,
        "window": windows.window,
        "stride": windows.stride,
        "baseline": windows.baseline,
        "films": len(chosen),
        **summarise(found),
        "by_film": [
            {"path": _short(film.path), "label": film.label, **asdict(agreement)}
            for film, agreement in zip(chosen, found, strict=True)
        ],
    }


def _failures(
    figures: dict[str, Any], rules: GateRules, reference: ModelManifest, candidate: ModelManifest
) -> list[str]:
    failed = []
    if candidate.threshold != reference.threshold:
        failed.append(
            f"threshold: candidate has {candidate.threshold}, reference {reference.threshold}"
        )
    if reference.familiarity and not candidate.familiarity:
        failed.append("out-of-distribution gate: reference has one, candidate judges any film")
    share = figures["flips"]["share"]
    if share > rules.max_flips:
        failed.append(f"flips: {share:.2%} of the decisions turned, allowed {rules.max_flips:.2%}")
    for name in ("sensitivity", "specificity"):
        change = figures[name]
        if change and rules.paired_interval:
            low, high = change["interval_95"]
            if not low <= 0 <= high:
                failed.append(
                    f"{name}: changed by {change['change']:+.2%} [{low:+.2%}, {high:+.2%}]"
                )
    moved = figures["auc"]
    if moved and abs(moved["change"]) > rules.max_auc_change:
        failed.append(f"AUC: changed by {moved['change']:+.4f}, allowed {rules.max_auc_change}")
    return [*failed, *_unlike_maps(figures["heatmap"], rules)]


def _unlike_maps(maps: dict[str, Any] | None, rules: GateRules) -> list[str]:
    alike = maps["rank_correlation"]["median"] if maps else 1.0
    if alike >= rules.min_heatmap_correlation:
        return []
    return [
        f"heat maps: median rank correlation {alike:.3f}, expected at least "
        f"{rules.min_heatmap_correlation}"
    ]


def _missing(positive: Truth, rules: GateRules) -> dict[str, Any]:
    """How many films of which class are too few to show the smallest change, if any."""
    if not rules.smallest_change:
        return {}
    needed = int(np.ceil(1 / rules.smallest_change - 1e-9))
    present = {"positive": int(positive.sum()), "negative": int((~positive).sum())}
    return {
        name: {"films": count, "needed": needed}
        for name, count in present.items()
        if count < needed
    }


def _differences(before: NDArray[Any], now: NDArray[Any]) -> dict[str, float]:
    apart = np.abs(now.astype(np.float64) - before)
    spread = float(np.std(before))
    rmse = float(np.sqrt(np.mean(apart**2)))
    return {
        "max": float(apart.max()),
        "median": float(np.median(apart)),
        "rmse": rmse,
        "relative_rmse": rmse / spread if spread else 0.0,
    }


def _flipped(
    films: Sequence[LabelledFilm], scores: tuple[Scores, ...], threshold: float
) -> list[dict[str, Any]]:
    return [
        {
            "path": _short(film.path),
            "label": film.label,
            "source": film.source,
            "reference": float(before),
            "candidate": float(now),
        }
        for film, before, now in zip(films, *scores, strict=True)
        if (before >= threshold) != (now >= threshold)
    ]


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])


def _by_group(
    films: Sequence[LabelledFilm], scores: tuple[Scores, ...], threshold: float
) -> dict[str, Any]:
    return {
        f"by_{kind}": _groups([getattr(film, kind) for film in films], scores, threshold)
        for kind in ("label", "source")
    }


def _groups(
    names: Sequence[str], scores: tuple[Scores, ...], threshold: float
) -> dict[str, dict[str, Any]]:
    keys = np.array([name or "not stated" for name in names])
    groups = {}
    for key in sorted(set(keys.tolist())):
        before, now = (part[keys == key] for part in scores)
        groups[key] = {
            "films": len(before),
            "called_positive": {
                "reference": int((before >= threshold).sum()),
                "candidate": int((now >= threshold).sum()),
            },
            "flips": int(((before >= threshold) != (now >= threshold)).sum()),
            "max_probability_difference": float(np.abs(now - before).max()),
        }
    return groups
