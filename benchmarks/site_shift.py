"""Would a shift of the logits, learned from a site's own unlabelled images, help at that site?

    python -m benchmarks.site_shift --data DATA --siim SIIM --sites SITES

The mean of the activation map is the logit, so a shift of the pooled features is a shift of the
logit, and AUC cannot change: a shift can only correct the threshold. Three are tried, each learned
without labels. `centre` moves the median of a site's logits to that of `val`. `spread` also scales
them to the quartiles of `val`. `modes` fits two normal distributions and moves their middle to the
middle of the two appearances of `val`.

The sites are two hospitals that the model was not trained on, and pieces of SIIM `test` of which a
tenth, a half or nine tenths are typical: the share of positives is another at every site, and is
not known there. A shift helps if the lowest of all sensitivities and specificities rises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from benchmarks import measure
from benchmarks.measure.options import parser_of
from deepcovid_edge import Model
from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset

ACTUALMED = "agchung/Actualmed-COVID-chestxray-dataset"
TB_NORMAL = "TB set via GitKentC/lundis, 256 px"
POSITIVE, NEGATIVE = "covid", "no_pneumonia"
SHARES = (0.1, 0.5, 0.9)
"""Positives of a piece."""
PIECE, PIECES = 60, 200
"""Images of a piece, and pieces of each share; the median of them counts."""
_QUARTILES = (25, 75)

Logits = NDArray[np.float64]
Shift = Callable[[Logits], Logits]


def main() -> None:
    """Measure, and store the result."""
    parser = parser_of(__doc__, data="folder with external/", model="one")
    parser.add_argument("--siim", type=Path, required=True, help="images of both appearances")
    parser.add_argument("--sites", type=Path, required=True, help="images of further sites")
    options = parser.parse_args()
    with Model(options.model) as model:
        val = _logits(model, load_dataset(options.siim, split="val"))
        test = _logits(model, load_dataset(options.siim, split="test"))
        external = load_dataset(options.data, split="external")
        sites = load_dataset(options.sites, split="external")
        places = {
            "Actualmed": _logits(model, [it for it in external if it.source == ACTUALMED]),
            "TB screening": _logits(model, [it for it in sites if it.source == TB_NORMAL]),
        }
        threshold = logit(model.facts.threshold)
        facts = {"model": model.facts.model, "model_sha256": model.facts.model_sha256}
    found = {
        name: {
            **{place: rates(by_label, shift, threshold) for place, by_label in places.items()},
            **{piece_of(share): in_pieces(test, share, shift, threshold) for share in SHARES},
        }
        for name, shift in shifts_to(val[POSITIVE], val[NEGATIVE]).items()
    }
    lowest = {name: _lowest(at) for name, at in found.items()}
    figures = {
        "images": {place: sum(map(len, by_label.values())) for place, by_label in places.items()},
        "shifts": found,
        "lowest": lowest,
        "helps": [name for name in found if lowest[name] > lowest["none"]],
    }
    measure.store("shift", {**facts, **figures}, "site-shift")


def piece_of(share: float) -> str:
    """Name of the pieces with that share of positives."""
    return f"SIIM, {share:.0%} typical"


def logit(probability: float) -> float:
    """Logarithm of the odds."""
    return float(np.log(probability) - np.log1p(-probability))


def shifts_to(positive: Logits, negative: Logits) -> Mapping[str, Shift]:
    """What moves a site's logits to those of `val`, by name; `none` leaves them.

    Args:
        positive: Logits of the positive images of `val`.
        negative: Of the others.
    """
    known = np.concatenate([positive, negative])
    low, high = np.percentile(known, _QUARTILES)
    centre = float(np.median(known))
    middle = float(np.median(positive) + np.median(negative)) / 2

    def spread(logits: Logits) -> Logits:
        own_low, own_high = np.percentile(logits, _QUARTILES)
        scale = float(high - low) / float(own_high - own_low)
        return (logits - float(np.median(logits))) * scale + centre

    def modes(logits: Logits) -> Logits:
        fitted = GaussianMixture(2, random_state=0, n_init=3).fit(logits[:, None])
        return logits - float(fitted.means_.mean()) + middle

    return {
        "none": lambda logits: logits,
        "centre": lambda logits: logits - float(np.median(logits)) + centre,
        "spread": spread,
        "modes": modes,
    }


def rates(by_label: Mapping[str, Logits], shift: Shift, threshold: float) -> dict[str, Any]:
    """Sensitivity and specificity at a place whose images all take part in the shift."""
    moved = shift(np.concatenate([*by_label.values()]))
    truth = np.concatenate([np.full(len(own), name == POSITIVE) for name, own in by_label.items()])
    called = moved >= threshold
    return {
        "sensitivity": float(called[truth].mean()) if truth.any() else None,
        "specificity": float(1 - called[~truth].mean()) if not truth.all() else None,
    }


def in_pieces(
    by_label: Mapping[str, Logits], share: float, shift: Shift, threshold: float
) -> dict[str, Any]:
    """Medians of the rates in pieces with that share of positives, drawn with replacement."""
    draw = np.random.default_rng(1)
    positives = round(share * PIECE)
    found = []
    for _ in range(PIECES):
        piece = {
            POSITIVE: draw.choice(by_label[POSITIVE], positives),
            NEGATIVE: draw.choice(by_label[NEGATIVE], PIECE - positives),
        }
        found.append(rates(piece, shift, threshold))
    return {name: float(np.median([one[name] for one in found])) for name in found[0]}


def _lowest(at: Mapping[str, Mapping[str, float | None]]) -> float:
    """The lowest rate of any place."""
    return min(rate for place in at.values() for rate in place.values() if rate is not None)


def _logits(model: Model, images: Sequence[LabelledImage]) -> dict[str, Logits]:
    """Logits of the assessed images, by label."""
    by_label: dict[str, list[float]] = {}
    predictions = model.predict([image.path for image in images])
    for image, prediction in zip(images, predictions, strict=True):
        if prediction.probability is not None:
            by_label.setdefault(image.label, []).append(logit(prediction.probability))
    return {label: np.array(values) for label, values in by_label.items()}


if __name__ == "__main__":
    main()
