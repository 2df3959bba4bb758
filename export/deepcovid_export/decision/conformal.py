"""The indeterminate range of a model that was chosen on several sources.

The range is what no source can promise (split conformal prediction for each class: Vovk, Gammerman
and Shafer 2005, Algorithmic Learning in a Random World, chapter 4). Below it lies at most a small
share of the new positives of any source, above it at most a small share of the new negatives of
any source. What lies between is for a person, and how much that is, source by source, is the
range's cost. A source with too few images to promise it has no part in this; where that is every
source, the range promises it of all their images together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from deepcovid_edge.manifest import IndeterminateRange
from deepcovid_export.evaluation.metrics import Scores, Truth
from deepcovid_export.evaluation.worst_source import (
    WorstSource,
    highest_threshold,
    lowest_threshold,
)
from deepcovid_export.recipe import RangeSettings


def conformal_range(
    scores: Scores,
    positive: Truth,
    sources: Sequence[str],
    threshold: float,
    settings: RangeSettings | None = None,
) -> IndeterminateRange | None:
    """The range that the worst sources ask for, extended to hold the threshold.

    Args:
        scores: Scores of the images of `val`.
        positive: Their truth.
        sources: Their sources.
        threshold: The model's threshold.
        settings: What is promised.

    Returns:
        The range with its cost for each source; None where the negatives are too few to promise
        anything of them.
    """
    settings = settings or RangeSettings()
    low = lowest_threshold(scores, positive, sources, 1 - settings.missed)
    high = highest_threshold(scores, positive, sources, settings.alarms)
    if high is None:
        return None
    ends = min(low.threshold, threshold), max(high.threshold, threshold)
    held = (scores >= ends[0]) & (scores < ends[1])
    origin = {
        "rule": f"at most {_missed(low, settings)} of new positive images lie below, {low.where}; "
        f"at most {100 * high.expected:.3g}% of new negative images lie above, {high.where} "
        "(split conformal)",
        "split": "val",
        "images": len(scores),
        "indeterminate": int(held.sum()),
        "lowest_for": low.source,
        "highest_for": high.source,
        "cost_by_source": _costs(held, sources),
        **asdict(settings),
    }
    return IndeterminateRange(*ends, origin)


def _missed(low: WorstSource, settings: RangeSettings) -> str:
    """The share of new positives below the range: more than asked for where they are too few."""
    return f"{100 * max(settings.missed, 1 - low.expected):.3g}%"


def _costs(held: Truth, sources: Sequence[str]) -> dict[str, dict[str, int]]:
    """Images of each source, and those in the range."""
    names = np.array(sources)
    return {
        name: {
            "images": int((names == name).sum()),
            "indeterminate": int(held[names == name].sum()),
        }
        for name in sorted(set(names.tolist()))
    }
