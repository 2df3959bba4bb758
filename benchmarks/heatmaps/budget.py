"""How much of the whole map is there after a part of its windows: what `--budget` costs.

    python -m benchmarks.heatmaps.budget --data DATA

For each image every window is evaluated once. Coarse-to-fine refinement then gets these logits,
window by window in the order in which it asks for them. Its estimate is compared with the whole map
at several shares, by rank correlation over pixels, as in `verify --heatmap`. No time is measured.
`deepcovid_edge/heatmaps/coarse_to_fine.py` has the figures of the default baseline as `EXPECTED`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure.options import parser_of
from deepcovid_edge.backends import load_backend
from deepcovid_edge.heatmaps.agreement import rank_correlation
from deepcovid_edge.heatmaps.coarse_to_fine import Refinement
from deepcovid_edge.heatmaps.occlusion import Occluder, Occlusion
from deepcovid_edge.heatmaps.windows import BASELINES, OcclusionSettings
from deepcovid_edge.models import find_model

AT_ONCE = 64
"""Windows that are evaluated at once: what `Occluder` does on two cores."""
SHARES = (0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Measured beside the first pass alone."""


def main() -> None:
    """Measure each baseline, and store the result."""
    parser = parser_of(__doc__, data="images with val", model="one")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--baseline", action="append", choices=BASELINES, help="repeatable")
    options = parser.parse_args()
    with load_backend(find_model(options.model)) as backend:
        manifest = backend.manifest
        images, pixels = measure.prepared_val(options.data, manifest, options.images)
        curves: dict[str, Any] = {}
        for baseline in options.baseline or BASELINES:
            settings = OcclusionSettings(baseline=baseline)
            with Occluder(backend, settings) as occluder:
                found = [occluder.explain(image) for image in pixels]
            positive, spacing = manifest.positive_index, settings.first_spacing
            curves[baseline] = summarise([agreement(one, spacing, positive) for one in found])
            medians = (f"{row['share']:.3f}:{row['median']:.3f}" for row in curves[baseline])
            print(baseline, *medians)
        figures = {
            "model": manifest.name,
            "model_sha256": backend.sha256,
            "split": "val",
            "images": dict(sorted(Counter(image.label for image in images).items())),
            "occlusion": asdict(OcclusionSettings()),
            "windows": occluder.grid.shape,
            "at_once": AT_ONCE,
            "baselines": curves,
        }
    measure.store(f"budget-{manifest.name}", figures, folder="heatmap")


def agreement(found: Occlusion, spacing: int, positive: int) -> dict[int, float]:
    """Number of evaluated windows -> rank correlation of the estimate with the whole map."""
    logits = np.repeat(found.logits[None], found.evaluated.size, axis=0)
    logits[:, positive] -= found.logit_drop.ravel()
    refinement = Refinement(found.evaluated.shape, spacing, found.logits, positive)
    whole = found.grid.spread(found.logit_drop)
    first = refinement.first_pass()
    refinement.add(first, logits[first])
    reached = {}
    for count in (len(first), *(round(share * len(logits)) for share in SHARES)):
        while missing := count - int(refinement.evaluated.sum()):
            windows = refinement.next()[: min(AT_ONCE, missing)]
            refinement.add(windows, logits[windows])
        drop = found.logits[positive] - refinement.estimate()[..., positive]
        reached[count] = rank_correlation(whole, found.grid.spread(drop))
    return reached


def summarise(images: list[dict[int, float]]) -> list[dict[str, float]]:
    """Agreement over images, for each number of windows."""
    windows, rows = max(images[0]), []
    for count in images[0]:
        found = measure.quantiles([image[count] for image in images])
        rounded = {name: round(value, 4) for name, value in found.items()}
        rows.append({"windows": count, "share": round(count / windows, 4), **rounded})
    return rows


if __name__ == "__main__":
    main()
