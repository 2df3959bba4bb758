"""How the out-of-distribution gate was chosen: kinds of gate compared on `val` and by source.

    python -m benchmarks.ood.choice --data DATA [--model MODEL]

Each is fitted on `train`; its limits are 1 and 1.5 times the way from the median film of `val` to
the 99th percentile. Counted are the films of `val` that it refuses, and copies of them that are
turned, inverted or made unrecognisable (`deepcovid_export.decision.outliers`). Then each source is
left out of `train` and `val` in turn: how many of its films, all good, would a hospital like that see
refused? `test` and `external` are not looked at.

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
from deepcovid_edge.datasets.dataset import LabelledFilm, load_dataset
from deepcovid_edge.models import DEFAULT_MODEL, find_model
from deepcovid_export.decision.fit_ood import FOREIGN_EACH, TURNED_EACH, FeatureReader, fit_linear
from deepcovid_export.decision.ood_graph import find_taps, take_off
from deepcovid_export.decision.outliers import FOREIGN, TURNED, vary

KINDS = ("films", "varied", "turned", "foreign")
LIMITS = (1.0, 1.5)
NEIGHBOUR = 5
FEWEST = 20
"""Films that a source must have to be left out by itself."""

Rows = dict[str, dict[str, np.ndarray]]
"""Kind of film -> view of it -> values of shape (films, copies, ...)."""
Score = Callable[[dict[str, np.ndarray]], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    options = parser.parse_args()
    path = find_model(options.model)
    films = [film for film in load_dataset(options.data) if film.split in ("train", "val")]
    with load_backend(path) as backend:
        name, spec = backend.manifest.name, backend.manifest.input
    pixels = [prepared(film, spec) for film in films]
    bare = take_off(onnx.load(path))[0]
    taps = find_taps(bare)
    rows = see(bare, pixels, taps)
    splits = np.array([film.split for film in films])
    figures = {"all sources": compare(rows, taps, splits == "train", splits == "val")}
    groups = np.array([collection(film) for film in films])
    for left in sorted(set(groups.tolist())):
        out = groups == left
        if out.sum() >= FEWEST:
            sides = (~out & (splits == "train"), ~out & (splits == "val"))
            figures[f"without {left}"] = compare(rows, taps, *sides, left_out=out)
    store(name, {"model": name, "limits": LIMITS, "compared": figures}, folder="ood-choice")


def collection(film: LabelledFilm) -> str:
    """Sources of one collection together: `ieee8023 (radiopaedia.org)` with its other sites."""
    return "ieee8023, sites" if film.source.startswith("ieee8023 (") else film.source


def see(model: onnx.ModelProto, films: list[np.ndarray], taps: list[str]) -> Rows:
    """All that any gate here goes by, of films and of copies of them."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    reader = FeatureReader(graph, taps)
    draw = np.random.default_rng(2)
    copies = {
        "films": [films],
        "varied": [[vary(film, draw) for film in films]],
        "turned": [[change(film, draw) for film in films] for change in TURNED],
        "foreign": [[change(film, draw) for film in films] for change in FOREIGN],
    }
    with_logits = onnx_logits(model)
    rows: Rows = {}
    for kind, parts in copies.items():
        seen = [{**reader(part), **with_logits(part), "grid": grid(part)} for part in parts]
        rows[kind] = {view: np.stack([one[view] for one in seen], axis=1) for view in seen[0]}
        print(kind, flush=True)
    return rows


def onnx_logits(model: onnx.ModelProto) -> Callable[[list[np.ndarray]], dict[str, np.ndarray]]:
    from deepcovid_export.quantization.calibration import open_session

    session = open_session(model)

    def run(films: list[np.ndarray]) -> dict[str, np.ndarray]:
        parts = [
            session.run(["logits"], {"images": np.stack(films[start : start + 16])})[0]
            for start in range(0, len(films), 16)
        ]
        return {"logits": np.concatenate(parts)}

    return run


def grid(films: list[np.ndarray]) -> np.ndarray:
    """Films in 8 x 8 cells, with a mean of 0 and a spread of 1 each."""
    cells = [cv2.resize(film, (8, 8), interpolation=cv2.INTER_AREA).ravel() for film in films]
    values = np.stack(cells).astype(np.float32) / 255
    return (values - values.mean(1, keepdims=True)) / (values.std(1, keepdims=True) + 0.03)


def compare(
    rows: Rows,
    taps: list[str],
    train: np.ndarray,
    val: np.ndarray,
    left_out: np.ndarray | None = None,
) -> dict[str, Any]:
    found = {}
    for name, score in gates(rows, taps, train).items():
        own = score(pick(rows["films"], val))
        middle, high = np.quantile(own, [0.5, 0.99])
        shares: dict[str, Any] = {}
        for limit in LIMITS:
            beyond = middle + limit * (high - middle)
            shares[str(limit)] = {
                "val": float((own > beyond).mean()),
                **{
                    kind: float((score(pick(rows[kind], val)) > beyond).mean())
                    for kind in ("turned", "foreign")
                },
            }
            if left_out is not None:
                good = score(pick(rows["films"], left_out))
                shares[str(limit)]["left out"] = float((good > beyond).mean())
                shares[str(limit)]["films left out"] = len(good)
        found[name] = shares
        print(name, shares, flush=True)
    return found


def pick(views: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Some films with all of their copies, in one row each."""
    return {name: values[chosen].reshape(-1, *values.shape[2:]) for name, values in views.items()}


def gates(rows: Rows, taps: list[str], train: np.ndarray) -> dict[str, Score]:
    own = pick(rows["films"], train)
    made: dict[str, Score] = {"energy": lambda seen: -np.logaddexp.reduce(seen["logits"], axis=1)}
    last = taps[-1]
    made[f"neighbours, {last}"] = neighbours(pooled(own, last), last)
    for name, view in (
        *((f"Mahalanobis, {tap}", lambda seen, tap=tap: pooled(seen, tap)) for tap in taps),
        ("Mahalanobis, both stages", lambda seen: np.hstack([pooled(seen, tap) for tap in taps])),
        ("Mahalanobis, film in 8 x 8", lambda seen: seen["grid"]),
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
    """As `familiarity.fit` has it, with copies of each film that take turns."""
    turns = np.arange(int(train.sum()))[:, None]
    samples = {"familiar": np.concatenate([pick(rows[kind], train)[tap] for kind in KINDS[:2]])}
    for kind, each in (("turned", TURNED_EACH), ("foreign", FOREIGN_EACH)):
        values = rows[kind][tap][train]
        chosen = (turns * each + np.arange(each)) % values.shape[1]
        samples[kind] = values[turns, chosen].reshape(-1, values.shape[2])
    gate = fit_linear(samples, tap)

    def score(seen: dict[str, np.ndarray]) -> np.ndarray:
        return (seen[tap] @ gate.weight + gate.bias).max(axis=1)

    return score


if __name__ == "__main__":
    main()
