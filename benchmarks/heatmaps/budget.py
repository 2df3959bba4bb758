"""How much of the whole map a part of its windows tells: what `--budget` costs in agreement.

    python -m benchmarks.heatmaps.budget --data DATA

For each image every window is classified once. Coarse-to-fine refinement is then given these
logits, window by window in the order in which it asks for them, and its estimate is held against
the whole map at several shares: rank correlation over pixels, as `verify --heatmap` takes it. No
time is measured. `deepcovid_edge/heatmaps/coarse_to_fine.py` has the figures of the default
baseline as `EXPECTED`.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.measurement import images_of_both_classes, prepared, store
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
    parser.add_argument("--data", type=Path, required=True, help="images with val")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--baseline", action="append", choices=BASELINES, help="repeatable")
    options = parser.parse_args()
    with load_backend(find_model(options.model)) as backend:
        manifest = backend.manifest
        images = images_of_both_classes(options.data, manifest, options.images)
        pixels = [prepared(image, manifest.input) for image in images]
        curves = {}
        for baseline in options.baseline or BASELINES:
            settings = OcclusionSettings(baseline=baseline)
            with Occluder(backend, settings) as occluder:
                found = [occluder.explain(image) for image in pixels]
            positive, spacing = manifest.positive_index, settings.first_spacing
            curves[baseline] = summarise([agreement(one, spacing, positive) for one in found])
            print(
                baseline, *(f"{row['share']:.3f}:{row['median']:.3f}" for row in curves[baseline])
            )
        figures = {
            "model": manifest.name,
            "model_sha256": backend.sha256,
            "split": "val",
            "images": {
                label: [image.label for image in images].count(label) for label in labels(images)
            },
            "occlusion": asdict(OcclusionSettings()),
            "windows": occluder.grid.shape,
            "at_once": AT_ONCE,
            "baselines": curves,
        }
    store(f"budget-{manifest.name}", figures, folder="heatmap")


def labels(images: list[Any]) -> list[str]:
    return sorted({image.label for image in images})


def agreement(found: Occlusion, spacing: int, positive: int) -> dict[int, float]:
    """Windows classified -> rank correlation of the estimate with the whole map."""
    logits = np.repeat(found.logits[None], found.evaluated.size, axis=0)
    logits[:, positive] -= found.logit_drop.ravel()
    classified = Refinement(found.evaluated.shape, spacing, found.logits, positive)
    whole = found.grid.spread(found.logit_drop)
    first = classified.first_pass()
    classified.add(first, logits[first])
    reached = {}
    for count in (len(first), *(round(share * len(logits)) for share in SHARES)):
        while missing := count - int(classified.evaluated.sum()):
            windows = classified.next()[: min(AT_ONCE, missing)]
            classified.add(windows, logits[windows])
        drop = found.logits[positive] - classified.estimate()[..., positive]
        reached[count] = rank_correlation(whole, found.grid.spread(drop))
    return reached


def summarise(images: list[dict[int, float]]) -> list[dict[str, float]]:
    windows = max(images[0])
    rows = []
    for count in images[0]:
        reached = [image[count] for image in images]
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
