"""Fit the out-of-distribution limits of an exported model: images unlike its own are not assessed.

A linear layer on pooled features of the network tells training images from copies of them that are
turned or inverted, and from copies of which little is left (`outliers`): outlier exposure without
other pictures. It was chosen on `val` and by leaving out one source after the other
(benchmarks/ood/choice.py): energy, nearest neighbours and Mahalanobis distances of pooled features
let turned images through, or refuse many images of a source that was left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from deepcovid_edge.datasets.dataset import LabelledImage, dataset_sha256, load_dataset
from deepcovid_edge.decision.out_of_distribution import PARTS, OodLimits
from deepcovid_edge.errors import DataError, NotAssessedError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import InputSpec, ModelManifest, read_manifest
from deepcovid_export.decision.ood_graph import (
    FEATURES,
    OodLayer,
    features_alone,
    find_taps,
    put_on,
    shapes_of,
    take_off,
    with_features,
)
from deepcovid_export.decision.outliers import TURNED, UNRECOGNISABLE, Change, Pixels, vary
from deepcovid_export.onnx_export.graphs import finished, save
from deepcovid_export.quantization.calibration import open_session

LIMIT, STRICT_LIMIT = 1.5, 1.0
"""Of `ood_scores`, whose 1 is the 99th percentile of `val`.

The stricter one is that percentile itself, which would refuse too many good images of hospitals
that the model has not seen: of a source that is left out of the fit up to six in a hundred, where
1.5 refuses less than one, and still nearly all copies that are turned or unrecognisable
(benchmarks/results/ood-choice).
"""
FEWEST_IMAGES = 16
TURNED_EACH, UNRECOGNISABLE_EACH = 2, 3
"""Copies of each training image that are not to pass; one varied copy is, and the image itself."""
_QUANTILE = 0.99
_REGULARISATION = 1e-4
"""scikit-learn's C: there are thousands of features, and the images of a few hospitals."""
_BATCH = 16
_SEED = 1
_SPREAD_FLOOR = 0.05
"""Of the median spread of a feature: one that hardly varies in images must not decide."""

Features = NDArray[np.float32]


def fit_model(path: Path, data: Path, output: Path | None = None) -> ModelManifest:
    """Fit the out-of-distribution limits of an exported FP32 model and write the model with it.

    Args:
        path: The .onnx file; out-of-distribution limits that it has is replaced.
        data: Labelled images with the splits `train`, to fit on, and `val`, for the limits.
        output: The .onnx file to write, which is then made from `path`; None to finish `path`
            itself.

    Returns:
        The manifest inside the file.

    Raises:
        DataError: A split is missing or has too few images.
        ModelFileError: The model has no stage whose features could be pooled.
    """
    manifest = read_manifest(path)
    bare, _ = take_off(onnx.load(path))
    images = {split: _images(data, manifest, split) for split in ("train", "val")}
    ood, facts = fit(bare, images["train"], images["val"], manifest.input)
    if output is not None:
        known = manifest.ood.get("network_parent_sha256", manifest.parent_sha256)
        facts["network_parent_sha256"] = known  # what the weights come from
        manifest = replace(manifest, parent_sha256=file_sha256(path))
    manifest = replace(manifest, ood=facts)
    save(finished(put_on(bare, ood), manifest), output or path)
    return manifest


def fit(
    model: onnx.ModelProto,
    train: Sequence[LabelledImage],
    val: Sequence[LabelledImage],
    spec: InputSpec,
) -> tuple[OodLayer, dict[str, Any]]:
    """Fit out-of-distribution limits.

    Args:
        model: The network without out-of-distribution limits.
        train: Images to fit on.
        val: Images for the limits.
        spec: The network's input.

    Returns:
        The out-of-distribution limits, and what the manifest says of it.
    """
    own, checked = prepared(train, spec), prepared(val, spec)
    see = FeatureReader(model, find_taps(model))
    samples = {
        "familiar": see.joined([see(own), see.changed(own, [vary])]),
        "turned": see.changed(own, TURNED, each=TURNED_EACH),
        "unrecognisable": see.changed(own, UNRECOGNISABLE, each=UNRECOGNISABLE_EACH),
    }
    seen, copies = see(checked), {}
    for name, changes in (("turned", TURNED), ("unrecognisable", UNRECOGNISABLE)):
        copies[name] = see.changed(checked, changes, each=len(changes))
    tried = {}
    for tap in see.taps:
        own_features = {name: features[tap] for name, features in samples.items()}
        ood = scaled(fit_linear(own_features, tap), seen[tap])
        shown = {name: features[tap] for name, features in copies.items()}
        tried[tap] = ood, _figures(ood, seen[tap], shown)
    ood, figures = max(tried.values(), key=lambda one: _found(one[1]))
    facts = {
        "method": "outlier exposure: a linear layer on pooled features, against copies of training "
        "images that are turned, inverted, shuffled, enlarged, scrambled, drowned in "
        "noise or drawn",
        "parts": list(PARTS),
        "limit": LIMIT,
        "strict_limit": STRICT_LIMIT,
        "unit": f"0 is the median image of val, 1 its {_QUANTILE:.0%} quantile",
        "tap": ood.tap,
        "train": {"images": len(own), "data_sha256": dataset_sha256(train)},
        "val": {
            "images": len(checked),
            "data_sha256": dataset_sha256(val),
            **figures,
        },
        "tried": {tap: shares for tap, (_, shares) in tried.items()},
    }
    return ood, facts


def _found(figures: dict[str, Any]) -> float:
    """By what one stage is better than another: the copies of val that it refuses."""
    return sum(float(figures[f"{name}_copies_rejected"]) for name in PARTS)


class FeatureReader:
    """The features at several taps, of prepared images and of altered copies of them.

    Args:
        model: The network without out-of-distribution limits.
        taps: Where features are pooled.
    """

    def __init__(self, model: onnx.ModelProto, taps: Sequence[str]) -> None:
        self.taps = tuple(taps)
        self._session = open_session(features_alone(model, taps))
        self._draw = np.random.default_rng(_SEED)

    def __call__(self, images: Sequence[Pixels]) -> dict[str, Features]:
        """Of images, in their order: tap to features of shape (N, features)."""
        return self._read(iter(images))

    def changed(
        self, images: Sequence[Pixels], changes: Sequence[Change], each: int = 1
    ) -> dict[str, Features]:
        """Of changed copies of images: so many of each image, by changes that take turns."""
        turns = cycle(changes)
        return self._read(next(turns)(image, self._draw) for image in images for _ in range(each))

    def joined(self, parts: Sequence[dict[str, Features]]) -> dict[str, Features]:
        """Features of several readings together."""
        return {tap: np.concatenate([part[tap] for part in parts]) for tap in self.taps}

    def _read(self, images: Iterator[Pixels]) -> dict[str, Features]:
        parts = []
        while batch := list(islice(images, _BATCH)):
            rows = self._session.run(None, {"images": np.stack(batch)})
            parts.append(dict(zip(self.taps, rows, strict=True)))
        return self.joined(parts)


def fit_linear(samples: dict[str, Features], tap: str) -> OodLayer:
    """Fit the linear layer: for each part, its logit less that of a familiar image.

    Args:
        samples: `familiar` and every part to features of shape (N, features).
        tap: Where the features are read.
    """
    from sklearn.linear_model import LogisticRegression

    centre = samples["familiar"].mean(axis=0)
    spread = samples["familiar"].std(axis=0)
    spread = np.maximum(spread, _SPREAD_FLOOR * np.median(spread)) + np.finfo(np.float32).tiny
    names = ("familiar", *PARTS)
    features = np.concatenate([(samples[name] - centre) / spread for name in names])
    truth = np.repeat(np.arange(len(names)), [len(samples[name]) for name in names])
    head = LogisticRegression(C=_REGULARISATION, class_weight="balanced", max_iter=300)
    head.fit(features, truth)
    weight = (head.coef_[1:] - head.coef_[0]).T.astype(np.float64) / spread[:, None]
    bias = head.intercept_[1:] - head.intercept_[0] - centre @ weight
    return OodLayer(tap, weight.astype(np.float32), bias.astype(np.float32))


def scaled(ood: OodLayer, features: Features) -> OodLayer:
    """The layer in its unit: 0 for the median of these features, 1 for their 99th percentile."""
    raw = features.astype(np.float64) @ ood.weight + ood.bias
    middle, high = np.quantile(raw, [0.5, _QUANTILE], axis=0)
    width = np.maximum(high - middle, np.finfo(np.float32).eps)
    return replace(
        ood,
        weight=(ood.weight / width).astype(np.float32),
        bias=((ood.bias - middle) / width).astype(np.float32),
    )


def _figures(ood: OodLayer, features: Features, copies: dict[str, Features]) -> dict[str, Any]:
    """How many images of `val`, and of copies of them, are rejected."""
    limits = OodLimits(tuple(PARTS), LIMIT, STRICT_LIMIT)
    own = features @ ood.weight + ood.bias
    return {
        "rejected": int(limits.beyond(own).sum()),
        "rejected_strictly": int((own.max(axis=1) > STRICT_LIMIT).sum()),
        **{
            f"{name}_copies_rejected": round(
                float(limits.beyond(seen @ ood.weight + ood.bias).mean()), 4
            )
            for name, seen in copies.items()
        },
    }


def prepared(images: Sequence[LabelledImage], spec: InputSpec) -> list[Pixels]:
    """Images as the network sees them; those that cannot be read are left out."""

    def read(image: LabelledImage) -> Pixels | None:
        try:
            return prepare(read_radiograph(image.path), spec)
        except NotAssessedError:
            return None

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return [image for image in pool.map(read, images) if image is not None]


def _images(data: Path, manifest: ModelManifest, split: str) -> list[LabelledImage]:
    images = [image for image in load_dataset(data, split=split) if _is_own(image, manifest)]
    if len(images) < FEWEST_IMAGES:
        raise DataError(
            f"--fit {data}: got {len(images)} images of split {split!r}, expected at least "
            f"{FEWEST_IMAGES} with labels of the model's classes"
        )
    return images


def _is_own(image: LabelledImage, manifest: ModelManifest) -> bool:
    views = manifest.training.get("recipe", {}).get("data", {}).get("views", ())
    return image.label in manifest.known_labels and (not views or image.view in views)


def matched(
    ood: OodLayer,
    parent: onnx.ModelProto,
    variant: onnx.ModelProto,
    batches: Iterable[NDArray[np.uint8]],
) -> OodLayer:
    """The layer for a variant of its network whose channels may have other scales.

    Quantising evens channels out (`equalise`), which the next convolutions undo; here the weights
    do. Each channel's factor is that of least squares between the two networks' features.

    Args:
        ood: The out-of-distribution limits of the FP32 network.
        parent: That network, without its out-of-distribution limits.
        variant: The network in lower precision, without out-of-distribution limits.
        batches: Prepared images to compare on, each of shape (N, height, width).
    """
    readers = [open_session(with_features(model, ood.tap)) for model in (parent, variant)]
    seen = [
        [session.run([FEATURES], {"images": batch})[0] for session in readers] for batch in batches
    ]
    before, now = (np.concatenate(side).astype(np.float64) for side in zip(*seen, strict=True))
    channels = _channels(parent, ood.tap)
    before, now = (side.reshape(len(side), channels, -1) for side in (before, now))
    power = (now**2).sum(axis=(0, 2))
    shared = (before * now).sum(axis=(0, 2))
    factors = np.divide(shared, power, out=np.ones_like(power), where=power > 0)
    cells = len(ood.weight) // channels
    weight = ood.weight * np.repeat(factors, cells)[:, None]
    return replace(ood, weight=weight.astype(np.float32))


def _channels(model: onnx.ModelProto, tap: str) -> int:
    return shapes_of(model)[tap][1]
