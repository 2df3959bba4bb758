"""Results of the same images on two processors, or of two variants on one, held side by side."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from deepcovid_edge.decision.record import ASSESSED

Results = Mapping[str, Any]
"""What `classify` wrote."""

MOST_FP32 = 0.005
"""Probabilities of the FP32 model, apart at most: its sums are in another order."""
MOST_INT8 = 0.1
"""Of the INT8 variant: a factor that rounds to the next step moves everything behind it."""
MOST_LEVELS, MOST_PIXELS = 1, 0.005
"""Prepared pixels: grey levels apart at most, and the share of an image's pixels that differ. What
lies between two levels is rounded by the last bit of a sum, whose order is the processor's."""
MOST_FLIPS = {"fp32": 0.0, "int8-cpu": 0.01}
"""Share of images that may get another decision."""


def compared(one: Results, other: Results) -> dict[str, Any]:
    """How far the second results are from the first, image by image.

    Args:
        one: The reference: x86_64, or FP32.
        other: Of the same images.
    """
    beside = {image["image"]: image for image in one["images"]}
    pairs = [(beside[image["image"]], image) for image in other["images"]]
    assessed = [pair for pair in pairs if all(image["status"] == ASSESSED for image in pair)]
    apart = [abs(a["probability"] - b["probability"]) for a, b in assessed]
    return {
        "images": len(pairs),
        "pixels_equal": sum(a.get("pixels") == b.get("pixels") for a, b in pairs),
        "pixels_apart": _pixels_apart(pairs),
        "logits_equal": sum(a.get("logits") == b.get("logits") for a, b in pairs),
        "logits_apart_most": _largest(assessed, "logits"),
        "ood_scores_apart_most": _largest(assessed, "ood_scores"),
        "probability_apart_most": max(apart, default=0.0),
        "probability_apart_median": statistics.median(apart) if apart else 0.0,
        "warnings_differ": sum(a["warnings"] != b["warnings"] for a, b in pairs),
        "flips": [_flip(a, b, other["limits"]) for a, b in pairs if _decided(a) != _decided(b)],
    }


def _decided(image: Results) -> tuple[str | None, str | None]:
    return image["decision"], image["reason"]


def _largest(pairs: Iterable[tuple[Results, Results]], name: str) -> float:
    """Largest difference of the floats of that name; 0 where there are none."""
    values = [
        abs(x - y)
        for a, b in pairs
        for x, y in zip(a.get(name) or [], b.get(name) or [], strict=True)
    ]
    return max(values, default=0.0)


def _pixels_apart(pairs: Iterable[tuple[Results, Results]]) -> dict[str, float]:
    """Of prepared pixels: grey levels at most, and the largest share of an image."""
    apart = [
        np.abs(a["prepared"].astype(int) - b["prepared"])
        for a, b in pairs
        if a.get("prepared") is not None and b.get("prepared") is not None
    ]
    return {
        "levels_most": max((float(one.max()) for one in apart), default=0.0),
        "share_most": max((float(np.mean(one > 0)) for one in apart), default=0.0),
    }


def _flip(one: Results, other: Results, limits: Mapping[str, float | None]) -> dict[str, Any]:
    """An image that has another decision, and how near its probability was to a limit."""
    known = [limit for limit in limits.values() if limit is not None]
    near = [
        abs(image["probability"] - limit)
        for image in (one, other)
        for limit in known
        if image["probability"] is not None
    ]
    return {
        "image": one["image"],
        "from": one["decision"] or one["reason"],
        "to": other["decision"] or other["reason"],
        "probabilities": [one["probability"], other["probability"]],
        "distance_to_the_limit": min(near, default=None),
    }


def broken_rules(found: Mapping[str, Any], variant: str) -> list[str]:
    """What a comparison of the processors breaks, a sentence each.

    Args:
        found: Of `compared`.
        variant: `fp32` or `int8-cpu`.
    """
    images, flips, pixels = found["images"], len(found["flips"]), found["pixels_apart"]
    most = MOST_FP32 if variant == "fp32" else MOST_INT8
    rules = {
        f"{variant}: {flips} of {images} decisions differ": flips > MOST_FLIPS[variant] * images,
        f"{variant}: a probability differs by {found['probability_apart_most']:.4f}, at most {most}"
        " may be": found["probability_apart_most"] > most,
        f"{variant}: prepared pixels differ by {pixels['levels_most']:g} levels, in"
        f" {pixels['share_most']:.2%} of an image": pixels["levels_most"] > MOST_LEVELS
        or pixels["share_most"] > MOST_PIXELS,
    }
    return [sentence for sentence, is_broken in rules.items() if is_broken]
