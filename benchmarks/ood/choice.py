"""How the out-of-distribution method was chosen: methods compared on `val` and by source.

    python -m benchmarks.ood.choice --data DATA [--model MODEL]

Each is fitted on `train`. Its limits are 1 and 1.5 times the way from the median image of `val` to
the 99th percentile. Counted are the images of `val` that it rejects, and copies of them that are
turned, inverted or made unrecognisable (`deepcovid_export.decision.outliers`). Then each source is
held out of `train` and `val` in turn: how many of its images, all good, would be rejected at a
hospital like that? `test` and `external` are not used.

`energy`: Liu et al. 2020. `neighbours`: Sun et al. 2022, cosine distance to the fifth. Mahalanobis
distances (Lee et al. 2018) have a covariance shrunken by Ledoit and Wolf's rule. `exposure` is
`deepcovid_export.decision.fit_ood`'s, at each stage.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import onnx
from sklearn.covariance import LedoitWolf

from benchmarks import measure
from benchmarks.measure import Pixels
from benchmarks.measure.options import parser_of
from benchmarks.measure.sessions import open_session
from deepcovid_edge.backends import load_backend
from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.models import find_model
from deepcovid_export.decision.fit_ood import (
    TURNED_EACH,
    UNRECOGNISABLE_EACH,
    FeatureReader,
    fit_linear,
)
from deepcovid_export.decision.ood_graph import find_taps, take_off
from deepcovid_export.decision.outliers import TURNED, UNRECOGNISABLE, vary

KINDS = ("images", "varied", "turned", "unrecognisable")
LIMITS = (1.0, 1.5)
NEIGHBOUR = 5
FEWEST = 20
"""Images that a source must have to be held out by itself."""

Rows = dict[str, dict[str, Pixels]]
"""Kind of image -> view of it -> values of shape (images, copies, ...)."""
Score = Callable[[dict[str, Pixels]], Pixels]


def main() -> None:
    """Compare all methods, and store the result."""
    options = parser_of(__doc__, data="images with train and val", model="one").parse_args()
    path = find_model(options.model)
    images = [image for image in load_dataset(options.data) if image.split in ("train", "val")]
    with load_backend(path) as backend:
        name, spec = backend.manifest.name, backend.manifest.input
    pixels = [measure.prepared(image.path, spec) for image in images]
    bare = take_off(onnx.load(path))[0]
    taps = find_taps(bare)
    rows = see(bare, pixels, taps)
    splits = np.array([image.split for image in images])
    figures = {"all sources": compare(rows, taps, splits == "train", splits == "val")}
    groups = np.array([collection(image) for image in images])
    for group in sorted(set(groups.tolist())):
        out = groups == group
        if out.sum() >= FEWEST:
            sides = (~out & (splits == "train"), ~out & (splits == "val"))
            figures[f"without {group}"] = compare(rows, taps, *sides, excluded=out)
    measure.store(name, {"model": name, "limits": LIMITS, "compared": figures}, folder="ood-choice")


def collection(image: LabelledImage) -> str:
    """Sources of one collection together: `ieee8023 (radiopaedia.org)` with its other sites."""
    return "ieee8023, sites" if image.source.startswith("ieee8023 (") else image.source


def see(model: onnx.ModelProto, images: list[Pixels], taps: list[str]) -> Rows:
    """Everything that a method here sees, of images and of copies of them."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    reader = FeatureReader(graph, taps)
    draw = np.random.default_rng(2)
    copies = {
        "images": [images],
        "varied": [[vary(image, draw) for image in images]],
        "turned": [[change(image, draw) for image in images] for change in TURNED],
        "unrecognisable": [[change(image, draw) for image in images] for change in UNRECOGNISABLE],
    }
    with_logits = onnx_logits(model)
    rows: Rows = {}
    for kind, parts in copies.items():
        seen = [{**reader(part), **with_logits(part), "grid": grid(part)} for part in parts]
        rows[kind] = {view: np.stack([one[view] for one in seen], axis=1) for view in seen[0]}
        print(kind, flush=True)
    return rows


def onnx_logits(model: onnx.ModelProto) -> Callable[[list[Pixels]], dict[str, Pixels]]:
    """A function that gives a network's logits."""
    session = open_session(model)

    def run(images: list[Pixels]) -> dict[str, Pixels]:
        parts = [
            session.run(["logits"], {"images": np.stack(images[start : start + 16])})[0]
            for start in range(0, len(images), 16)
        ]
        return {"logits": np.concatenate(parts)}

    return run


def grid(images: list[Pixels]) -> Pixels:
    """Images in 8 x 8 cells, with a mean of 0 and a spread of 1 each."""
    cells = [cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).ravel() for image in images]
    values = np.stack(cells).astype(np.float32) / 255
    return np.asarray(
        (values - values.mean(1, keepdims=True)) / (values.std(1, keepdims=True) + 0.03)
    )


def compare(
    rows: Rows,
    taps: list[str],
    train: Pixels,
    val: Pixels,
    excluded: Pixels | None = None,
) -> dict[str, Any]:
    """Shares of `val`, of its copies and of a held-out source that each method rejects."""
    found = {}
    for name, score in methods(rows, taps, train).items():
        own = score(pick(rows["images"], val))
        middle, high = np.quantile(own, [0.5, 0.99])
        shares: dict[str, Any] = {}
        for limit in LIMITS:
            beyond = middle + limit * (high - middle)
            shares[str(limit)] = {
                "val": float((own > beyond).mean()),
                **{
                    kind: float((score(pick(rows[kind], val)) > beyond).mean())
                    for kind in ("turned", "unrecognisable")
                },
            }
            if excluded is not None:
                good = score(pick(rows["images"], excluded))
                shares[str(limit)]["held out"] = float((good > beyond).mean())
                shares[str(limit)]["images held out"] = len(good)
        found[name] = shares
        print(name, shares, flush=True)
    return found


def pick(views: dict[str, Pixels], chosen: Pixels) -> dict[str, Pixels]:
    """Some images with all of their copies, in one row each."""
    return {name: values[chosen].reshape(-1, *values.shape[2:]) for name, values in views.items()}


def methods(rows: Rows, taps: list[str], train: Pixels) -> dict[str, Score]:
    """The score of each method, fitted on `train`; the higher, the less alike."""
    own = pick(rows["images"], train)
    made: dict[str, Score] = {"energy": lambda seen: -np.logaddexp.reduce(seen["logits"], axis=1)}
    last = taps[-1]
    made[f"neighbours, {last}"] = neighbours(pooled(own, last), last)
    views: dict[str, Score] = {tap: partial(pooled, tap=tap) for tap in taps}
    views["both stages"] = lambda seen: np.hstack([pooled(seen, tap) for tap in taps])
    views["image in 8 x 8"] = lambda seen: seen["grid"]
    made |= {f"Mahalanobis, {name}": mahalanobis(view(own), view) for name, view in views.items()}
    for tap in taps:
        made[f"exposure, {tap}"] = exposure(rows, tap, train)
    return made


def pooled(seen: dict[str, Pixels], tap: str) -> Pixels:
    """Means over the 3 x 3 cells."""
    return np.asarray(seen[tap].reshape(len(seen[tap]), -1, 9).mean(axis=2))


def neighbours(known: Pixels, tap: str) -> Score:
    """Cosine distance to the fifth neighbour."""
    centre, spread = known.mean(0), known.std(0) + 1e-4

    def direction(values: Pixels) -> Pixels:
        scaled = (values - centre) / spread
        return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True))

    base = direction(known)
    return lambda seen: np.sort(1 - direction(pooled(seen, tap)) @ base.T, axis=1)[:, NEIGHBOUR - 1]


def mahalanobis(known: Pixels, view: Score) -> Score:
    """Distance with a shrunken covariance."""
    centre, spread = known.mean(0), known.std(0) + 1e-4
    inverse = LedoitWolf().fit((known - centre) / spread).precision_

    def score(seen: dict[str, Pixels]) -> Pixels:
        apart = (view(seen) - centre) / spread
        return np.asarray(np.sqrt(((apart @ inverse) * apart).sum(axis=1)))

    return score


def exposure(rows: Rows, tap: str, train: Pixels) -> Score:
    """As `fit_ood` fits it, with copies of each image that take turns."""
    turns = np.arange(int(train.sum()))[:, None]
    samples = {"training": np.concatenate([pick(rows[kind], train)[tap] for kind in KINDS[:2]])}
    for kind, each in (("turned", TURNED_EACH), ("unrecognisable", UNRECOGNISABLE_EACH)):
        values = rows[kind][tap][train]
        chosen = (turns * each + np.arange(each)) % values.shape[1]
        samples[kind] = values[turns, chosen].reshape(-1, values.shape[2])
    ood = fit_linear(samples, tap)

    def score(seen: dict[str, Pixels]) -> Pixels:
        return np.asarray((seen[tap] @ ood.weight + ood.bias).max(axis=1))

    return score


if __name__ == "__main__":
    main()
