"""How much of the whole map a part of its windows tells: what `--budget` costs in agreement.

    python -m benchmarks.heatmaps.budget --data DATA

For each film every window is judged once. Coarse-to-fine refinement is then given these logits,
window by window in the order in which it asks for them, and its estimate is held against the whole
map at several shares: rank correlation over pixels, as `verify --heatmap` takes it. No time is
measured. `deepcovid_edge/heatmaps/coarse_to_fine.py` has the figures of the default baseline as
`EXPECTED`.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.measurement import films_of_both_classes, prepared, store
from deepcovid_edge.backends import load_backend
from deepcovid_edge.heatmaps.agreement import rank_correlation
from deepcovid_edge.heatmaps.coarse_to_fine import Refinement
from deepcovid_edge.heatmaps.occlusion import Occluder, Occlusion
from deepcovid_edge.heatmaps.windows import BASELINES, OcclusionSettings
from deepcovid_edge.models import DEFAULT_MODEL, find_model

AT_ONCE = 64
"""Windows that are asked for at once: what `Occluder` does on two cores."""
SHARES = (0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Measured beside the first pass alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="films with val")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--films", type=int, default=60)
    parser.add_argument("--baseline", action="append", choices=BASELINES, help="repeatable")
    options = parser.parse_args()
    with load_backend(find_model(options.model)) as backend:
        manifest = backend.manifest
        films = films_of_both_classes(options.data, manifest, options.films)
        pixels = [prepared(film, manifest.input) for film in films]
        curves = {}
        for baseline in options.baseline or BASELINES:
            settings = OcclusionSettings(baseline=baseline)
            with Occluder(backend, settings) as occluder:
                found = [occluder.explain(film) for film in pixels]
            positive, spacing = manifest.positive_index, settings.first_spacing
            curves[baseline] = summarise([agreement(one, spacing, positive) for one in found])
            print(
                baseline, *(f"{row['share']:.3f}:{row['median']:.3f}" for row in curves[baseline])
            )
        figures = {
            "model": manifest.name,
            "model_sha256": backend.sha256,
            "split": "val",
            "films": {
                label: [film.label for film in films].count(label) for label in labels(films)
            },
            "occlusion": asdict(OcclusionSettings()),
            "windows": occluder.lattice.shape,
            "at_once": AT_ONCE,
            "baselines": curves,
        }
    store(f"budget-{manifest.name}", figures, folder="heatmap")


def labels(films: list[Any]) -> list[str]:
    return sorted({film.label for film in films})


def agreement(found: Occlusion, spacing: int, positive: int) -> dict[int, float]:
    """Windows judged -> rank correlation of the estimate with the whole map."""
    logits = np.repeat(found.logits[None], found.evaluated.size, axis=0)
    logits[:, positive] -= found.logit_drop.ravel()
    judged = Refinement(found.evaluated.shape, spacing, found.logits, positive)
    whole = found.lattice.spread(found.logit_drop)
    first = judged.first_pass()
    judged.add(first, logits[first])
    reached = {}
    for count in (len(first), *(round(share * len(logits)) for share in SHARES)):
        while missing := count - int(judged.evaluated.sum()):
            windows = judged.next()[: min(AT_ONCE, missing)]
            judged.add(windows, logits[windows])
        drop = found.logits[positive] - judged.estimate()[..., positive]
        reached[count] = rank_correlation(whole, found.lattice.spread(drop))
    return reached


def summarise(films: list[dict[int, float]]) -> list[dict[str, float]]:
    windows = max(films[0])
    rows = []
    for count in films[0]:
        reached = [film[count] for film in films]
        rows.append(
            {
                "windows": count,
                "share": round(count / windows, 4),
                "median": round(float(np.median(reached)), 4),
                "quantile_10": round(float(np.quantile(reached, 0.1)), 4),
                "min": round(min(reached), 4),
            }
        )
    return rows


if __name__ == "__main__":
    main()
