"""How the out-of-distribution limits was chosen: kinds of ood compared on `val` and by source.

    python -m benchmarks.ood.choice --data DATA [--model MODEL]

Each is fitted on `train`; its limits are 1 and 1.5 times the way from the median image of `val` to
the 99th percentile. Counted are the images of `val` that it refuses, and copies of them that are
turned, inverted or made unrecognisable (`deepcovid_export.decision.outliers`). Then each source is
left out of `train` and `val` in turn: how many of its images, all good, would a hospital like that
see refused? `test` and `external` are not looked at.

`energy`: Liu et al. 2020. `neighbours`: Sun et al. 2022, cosine distance to the fifth. Mahalanobis
distances (Lee et al. 2018) have a covariance shrunken by Ledoit and Wolf's rule. `exposure` is
`deepcovid_export.decision.fit_ood`'s, at each stage.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from sklearn.covariance import LedoitWolf

from benchmarks.measure.measurement import prepared, store
from deepcovid_edge.backends import load_backend
from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.models import DEFAULT_MODEL, find_model
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
"""Images that a source must have to be left out by itself."""

Rows = dict[str, dict[str, np.ndarray]]
"""Kind of image -> view of it -> values of shape (images, copies, ...)."""
Score = Callable[[dict[str, np.ndarray]], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    options = parser.parse_args()
    path = find_model(options.model)
    images = [image for image in load_dataset(options.data) if image.split in ("train", "val")]
    with load_backend(path) as backend:
        name, spec = backend.manifest.name, backend.manifest.input
    pixels = [prepared(image, spec) for image in images]
    bare = take_off(onnx.load(path))[0]
    taps = find_taps(bare)
    rows = see(bare, pixels, taps)
    splits = np.array([image.split for image in images])
    figures = {"all sources": compare(rows, taps, splits == "train", splits == "val")}
    groups = np.array([collection(image) for image in images])
    for left in sorted(set(groups.tolist())):
        out = groups == left
        if out.sum() >= FEWEST:
            sides = (~out & (splits == "train"), ~out & (splits == "val"))
            figures[f"without {left}"] = compare(rows, taps, *sides, excluded=out)
    store(name, {"model": name, "limits": LIMITS, "compared": figures}, folder="ood-choice")


def collection(image: LabelledImage) -> str:
    """Sources of one collection together: `ieee8023 (radiopaedia.org)` with its other sites."""
    return "ieee8023, sites" if image.source.startswith("ieee8023 (") else image.source


def see(model: onnx.ModelProto, images: list[np.ndarray], taps: list[str]) -> Rows:
    """All that any ood here goes by, of images and of copies of them."""
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


def onnx_logits(model: onnx.ModelProto) -> Callable[[list[np.ndarray]], dict[str, np.ndarray]]:
    from deepcovid_export.onnx_export.session import open_session

    session = open_session(model)

    def run(images: list[np.ndarray]) -> dict[str, np.ndarray]:
        parts = [
            session.run(["logits"], {"images": np.stack(images[start : start + 16])})[0]
            for start in range(0, len(images), 16)
        ]
        return {"logits": np.concatenate(parts)}

    return run


def grid(images: list[np.ndarray]) -> np.ndarray:
    """Images in 8 x 8 cells, with a mean of 0 and a spread of 1 each."""
    cells = [cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).ravel() for image in images]
    values = np.stack(cells).astype(np.float32) / 255
    return (values - values.mean(1, keepdims=True)) / (values.std(1, keepdims=True) + 0.03)


def compare(
    rows: Rows,
    taps: list[str],
    train: np.ndarray,
    val: np.ndarray,
    excluded: np.ndarray | None = None,
) -> dict[str, Any]:
    found = {}
    for name, score in ood_layers(rows, taps, train).items():
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
                shares[str(limit)]["left out"] = float((good > beyond).mean())
                shares[str(limit)]["images left out"] = len(good)
        found[name] = shares
        print(name, shares, flush=True)
    return found


def pick(views: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Some images with all of their copies, in one row each."""
    return {name: values[chosen].reshape(-1, *values.shape[2:]) for name, values in views.items()}


def ood_layers(rows: Rows, taps: list[str], train: np.ndarray) -> dict[str, Score]:
    own = pick(rows["images"], train)
    made: dict[str, Score] = {"energy": lambda seen: -np.logaddexp.reduce(seen["logits"], axis=1)}
    last = taps[-1]
    made[f"neighbours, {last}"] = neighbours(pooled(own, last), last)
    for name, view in (
        *((f"Mahalanobis, {tap}", lambda seen, tap=tap: pooled(seen, tap)) for tap in taps),
        ("Mahalanobis, both stages", lambda seen: np.hstack([pooled(seen, tap) for tap in taps])),
        ("Mahalanobis, image in 8 x 8", lambda seen: seen["grid"]),
    ):
        made[name] = mahalanobis(view(own), view)
    for tap in taps:
        made[f"exposure, {tap}"] = exposure(rows, tap, train)
    return made


def pooled(seen: dict[str, np.ndarray], tap: str) -> np.ndarray:
    """Means over the 3 x 3 cells."""
    return seen[tap].reshape(len(seen[tap]), -1, 9).mean(axis=2)


def neighbours(known: np.ndarray, tap: str) -> Score:
    centre, spread = known.mean(0), known.std(0) + 1e-4

    def direction(values: np.ndarray) -> np.ndarray:
        scaled = (values - centre) / spread
        return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)

    base = direction(known)
    return lambda seen: np.sort(1 - direction(pooled(seen, tap)) @ base.T, axis=1)[:, NEIGHBOUR - 1]


def mahalanobis(known: np.ndarray, view: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Score:
    centre, spread = known.mean(0), known.std(0) + 1e-4
    inverse = LedoitWolf().fit((known - centre) / spread).precision_

    def score(seen: dict[str, np.ndarray]) -> np.ndarray:
        apart = (view(seen) - centre) / spread
        return np.sqrt(((apart @ inverse) * apart).sum(axis=1))

    return score


def exposure(rows: Rows, tap: str, train: np.ndarray) -> Score:
    """As `ood.fit` has it, with copies of each image that take turns."""
    turns = np.arange(int(train.sum()))[:, None]
    samples = {"training": np.concatenate([pick(rows[kind], train)[tap] for kind in KINDS[:2]])}
    for kind, each in (("turned", TURNED_EACH), ("unrecognisable", UNRECOGNISABLE_EACH)):
        values = rows[kind][tap][train]
        chosen = (turns * each + np.arange(each)) % values.shape[1]
        samples[kind] = values[turns, chosen].reshape(-1, values.shape[2])
    ood = fit_linear(samples, tap)

    def score(seen: dict[str, np.ndarray]) -> np.ndarray:
        return (seen[tap] @ ood.weight + ood.bias).max(axis=1)

    return score


if __name__ == "__main__":
    main()
