"""Fit the out-of-distribution limits of an exported model, from its own training images.

A linear layer on pooled features of the network learns to tell training images from altered copies
of them: turned or inverted ones, and ones of which little is left (`outliers`). This is outlier
exposure without other pictures. It was chosen on `val` and by leaving out one source after the
other (benchmarks/results/ood-choice): energy, nearest neighbours and Mahalanobis distances of
pooled features let turned images through, or reject many images of a source that was left out.

A part `child` is fitted by itself where images of children are given: adults of `train` against
them. They are in no other part and never train the network, for which "small chest" would be a
shortcut.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, cycle, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from deepcovid_edge.datasets.dataset import LabelledImage, dataset_sha256, load_dataset
from deepcovid_edge.decision.out_of_distribution import OodLimits
from deepcovid_edge.device.progress import counted
from deepcovid_edge.errors import DataError, ModelFileError, NotAssessedError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom
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
from deepcovid_export.decision.run_images import images_of_model
from deepcovid_export.evaluation.bootstrap import number_patients
from deepcovid_export.onnx_export.graphs import finish, save
from deepcovid_export.onnx_export.session import open_session

LIMIT, STRICT_LIMIT = 1.5, 1.0
"""Of `ood_scores`, whose 1 is the 99th percentile of `val`.

The stricter one is that percentile itself. It would reject too many good images of hospitals that
the model has not seen: up to six in a hundred of a source that is left out of the fit, where 1.5
rejects less than one in a hundred and still nearly all copies that are turned or unrecognisable
(benchmarks/results/ood-choice).
"""
FEWEST_IMAGES = 16
MOST_TRAIN, MOST_VAL = 1200, 400
"""Images that are read at most, of every source alike: altered copies make many of each."""
TURNED_EACH, UNRECOGNISABLE_EACH = 2, 3
"""Copies of each training image that the layer must reject. The image and one varied copy pass."""
_COPIES = {"turned": (TURNED, TURNED_EACH), "unrecognisable": (UNRECOGNISABLE, UNRECOGNISABLE_EACH)}
_QUANTILE = 0.99
_REGULARISATION = 1e-4
"""scikit-learn's C: there are thousands of features, and the images of a few hospitals."""
_REGULARISATION_OF_CHILDREN = 1e-2
"""The strongest with which hardly an adult of a source that was left out of the fit was taken for a
child, at either tap and at the limit of `_RECOGNISED`; train and val alone decided this."""
CHILD = "child"
CHILDREN_SPLITS = ("train", "paediatric")
_FOLDS = 5
_RECOGNISED = 0.95
_MARGIN = 1e-3
"""Share by which the last child of these lies above the limit: a score on it counts as within."""
_DRAWN, _MOST_OPACITIES = 60, 10
_BATCH = 16
_SEED = 1
_SPREAD_FLOOR = 0.05
"""Of the median spread of a feature: one that hardly varies in images must not decide."""

Features = NDArray[np.float32]


def fit_model(
    path: Path, data: Path, output: Path | None = None, *, children: Path | None = None
) -> ModelManifest:
    """Fit the out-of-distribution limits of an exported FP32 model and write them into it.

    Args:
        path: The .onnx file; limits that it has already are replaced.
        data: Labelled images with the splits `train`, to fit on, and `val`, for the limits; none
            that is marked `paediatric` counts as an adult.
        output: The .onnx file to write; None to rewrite `path`.
        children: Images of which those that are marked `paediatric` are children: those of the
            splits `train` and `paediatric` are fitted on, no file with the content of one of any
            split counts as an adult.
            None for a model that does not recognise children.

    Raises:
        DataError: A split is missing or has too few images.
        ModelFileError: The model is not FP32, or has no stage whose features could be pooled.
    """
    manifest = _fp32_manifest(path)
    bare, _ = take_off(onnx.load(path))
    young = _children(children) if children else []
    train = _adults(data, manifest, "train", MOST_TRAIN, young)
    val = _adults(data, manifest, "val", MOST_VAL, young)
    young = [image for image in young if image.split in CHILDREN_SPLITS]
    layer, facts = fit(bare, train, val, manifest.input, young)
    if output is not None:
        # What the weights come from, beside the file that this one is made from.
        known = manifest.ood.get("network_parent_sha256", manifest.parent_sha256)
        facts["network_parent_sha256"] = known
        manifest = replace(manifest, parent_sha256=file_sha256(path))
    manifest = replace(manifest, ood=facts)
    save(finish(put_on(bare, layer), manifest), output or path)
    return manifest


def _fp32_manifest(path: Path) -> ModelManifest:
    """A variant that decides otherwise would keep the verdict of `verify` that it was given."""
    manifest = read_manifest(path)
    if manifest.precision != "fp32":
        raise ModelFileError(
            f"{path}: is {manifest.precision}, expected fp32: fit the file that it was made from "
            f"(SHA-256 {manifest.parent_sha256}), then quantise that"
        )
    return manifest


def fit(
    model: onnx.ModelProto,
    train: Sequence[LabelledImage],
    val: Sequence[LabelledImage],
    spec: InputSpec,
    children: Sequence[LabelledImage] = (),
) -> tuple[OodLayer, dict[str, Any]]:
    """Fit the layer at each tap, and keep the one that rejects most altered copies of `val`.

    Args:
        model: The network without the layer.
        train: Images to fit on.
        val: Images for the limits.
        spec: How images are prepared.
        children: Images of children, to fit the part `child` on; none for no such part.

    Returns:
        The layer, and the facts about it for the manifest.
    """
    own, checked = prepare_images(train, spec), prepare_images(val, spec)
    reader = FeatureReader(model, find_taps(model))
    samples = {"training": reader.join([reader(own), reader.altered(own, [vary])])}
    for name, (changes, each) in _COPIES.items():
        samples[name] = reader.altered(own, changes, each=each)
    seen = reader(checked)
    copies = {
        name: reader.altered(checked, changes, each=len(changes))
        for name, (changes, _) in _COPIES.items()
    }
    tried = {}
    for tap in reader.taps:
        layer = scale(fit_linear(_at(samples, tap), tap), seen[tap])
        tried[tap] = layer, _figures(layer, seen[tap], _at(copies, tap))
    layer, figures = max(tried.values(), key=lambda one: _copies_rejected(one[1]))
    parts = [*_COPIES]
    facts: dict[str, Any] = {
        "method": "outlier exposure: a linear layer on pooled features, against copies of training "
        "images that are turned, inverted, shuffled, enlarged, scrambled, drowned in "
        "noise or drawn",
        "parts": parts,
        "limit": LIMIT,
        "strict_limit": STRICT_LIMIT,
        "unit": f"0 is the median image of val, 1 its {_QUANTILE:.0%} quantile",
        "tap": layer.tap,
        "train": {"images": len(own), "data_sha256": dataset_sha256(train)},
        "val": {"images": len(checked), "data_sha256": dataset_sha256(val), **figures},
        "tried": {tap: shares for tap, (_, shares) in tried.items()},
    }
    if children:
        layer, facts["children"] = _with_children(reader, layer, own, seen, children, spec)
        parts.append(CHILD)
    return layer, facts


def _with_children(
    reader: FeatureReader,
    layer: OodLayer,
    adults: Sequence[Pixels],
    val: dict[str, Features],
    children: Sequence[LabelledImage],
    spec: InputSpec,
) -> tuple[OodLayer, dict[str, Any]]:
    """The layer with the part `child`, and the facts about it.

    A fifth of the patients at a time is held out of a fit. The unit is as large as the share
    `_RECOGNISED` of these children allows: adults of hospitals that the fit has not seen lie nearer
    to children than those of `val` do. Drawn chests count as adults: images that try the product
    are to pass.

    Raises:
        DataError: The children are too few patients to hold some out.
    """
    tap, read = layer.tap, _prepared(children, spec)
    folds, patients = draw_folds([image for image, _ in read])
    young = [pixels for _, pixels in read]
    adults = [*adults, *_drawn_chests(spec)]
    old = np.concatenate([reader(adults)[tap], reader.altered(adults, [vary])[tap]])
    own = reader(young)[tap]
    varied = reader.altered(young, [vary], each=2)[tap].reshape(len(own), 2, -1)

    def fitted(chosen: NDArray[np.bool_]) -> OodLayer:
        copies = varied[chosen].reshape(-1, own.shape[1])
        samples = {"training": old, CHILD: np.concatenate([own[chosen], copies])}
        return scale(fit_linear(samples, tap, _REGULARISATION_OF_CHILDREN), val[tap])

    held_out = np.empty(len(own))
    for fold in range(_FOLDS):
        held_out[folds == fold] = fitted(folds != fold).scores(own[folds == fold])[:, 0]
    factor = unit_factor(held_out)
    above = int((held_out * factor > LIMIT).sum())
    whole = fitted(np.ones(len(own), bool))
    found = replace(whole, weight=whole.weight * factor, bias=whole.bias * factor)
    facts = {
        "images": len(own),
        "patients": patients,
        "data_sha256": dataset_sha256(children),
        "sources": sorted({image.source for image in children}),
        "recognised_held_out": count_recognised(held_out, folds),
        "unit": f"0 is the median image of val; {above} of {len(own)} held-out children lie above "
        "the limit",
        "adults_of_val_rejected": int((found.scores(val[tap]) > LIMIT).sum()),
    }
    joined = OodLayer(
        tap, np.hstack([layer.weight, found.weight]), np.concatenate([layer.bias, found.bias])
    )
    return joined, facts


def draw_folds(children: Sequence[LabelledImage]) -> tuple[NDArray[np.intp], int]:
    """Divide images into folds by patient.

    Returns:
        The fold of each image, of shape (images,), and the number of patients.

    Raises:
        DataError: There are fewer patients than folds.
    """
    patients, owner = number_patients([image.patient for image in children])
    if patients < _FOLDS:
        raise DataError(
            f"--children: got images of {patients} patients that can be assessed, expected at "
            f"least {_FOLDS}: some are held out of each fit"
        )
    return np.random.default_rng(_SEED).permutation(patients)[owner] % _FOLDS, patients


def unit_factor(held_out: NDArray[np.float64]) -> float:
    """By what scores are multiplied so that at least `_RECOGNISED` of them lie above the limit.

    They are never raised, so fewer do where more than the rest lie below it already.
    """
    needed = math.ceil(_RECOGNISED * len(held_out) - 1e-9)
    last = float(np.sort(held_out)[-needed])
    return LIMIT / max(LIMIT, last * (1 - _MARGIN))


def count_recognised(held_out: NDArray[np.float64], folds: NDArray[np.intp]) -> int:
    """How many children lie above the limit in a unit that the other folds choose.

    In the unit that they choose themselves at least `_RECOGNISED` do, whatever they score above it.

    Args:
        held_out: Scores of children, each by the fit without its fold, of shape (images,).
        folds: Fold of each image.
    """
    recognised = 0
    for fold in np.unique(folds):
        own = folds == fold
        recognised += int((held_out[own] * unit_factor(held_out[~own]) > LIMIT).sum())
    return recognised


def _drawn_chests(spec: InputSpec) -> Iterator[Pixels]:
    for seed in range(_DRAWN):
        pixels = draw_phantom(seed, opacities=seed % _MOST_OPACITIES)
        yield prepare(Radiograph(pixels, 255, "", "PNG"), spec)


def _at(readings: dict[str, dict[str, Features]], tap: str) -> dict[str, Features]:
    return {name: features[tap] for name, features in readings.items()}


def _copies_rejected(figures: dict[str, Any]) -> float:
    """What makes one stage better than another."""
    return sum(float(figures[f"{name}_copies_rejected"]) for name in _COPIES)


class FeatureReader:
    """The features at several taps, of prepared images and of altered copies of them."""

    def __init__(self, model: onnx.ModelProto, taps: Sequence[str]) -> None:
        self.taps = tuple(taps)
        self._session = open_session(features_alone(model, taps))
        self._draw = np.random.default_rng(_SEED)

    def __call__(self, images: Sequence[Pixels]) -> dict[str, Features]:
        """Tap to features of shape (images, features), in the order of the images."""
        return self._read(counted(images, len(images), "images to describe"))

    def altered(
        self, images: Sequence[Pixels], changes: Sequence[Change], each: int = 1
    ) -> dict[str, Features]:
        """The same of `each` altered copies of every image; the changes take turns."""
        turns = cycle(changes)
        copies = (next(turns)(image, self._draw) for image in images for _ in range(each))
        return self._read(counted(copies, len(images) * each, "altered copies"))

    def join(self, parts: Sequence[dict[str, Features]]) -> dict[str, Features]:
        """Features of several readings together."""
        return {tap: np.concatenate([part[tap] for part in parts]) for tap in self.taps}

    def _read(self, images: Iterator[Pixels]) -> dict[str, Features]:
        parts = []
        while batch := list(islice(images, _BATCH)):
            rows = self._session.run(None, {"images": np.stack(batch)})
            parts.append(dict(zip(self.taps, rows, strict=True)))
        return self.join(parts)


def fit_linear(
    samples: dict[str, Features], tap: str, regularisation: float = _REGULARISATION
) -> OodLayer:
    """Fit the linear layer: for each part, its logit less that of a training image.

    Args:
        samples: `training` and every part to features of shape (N, features).
        tap: Where the features are read.
        regularisation: scikit-learn's C.
    """
    from sklearn.linear_model import LogisticRegression

    centre = samples["training"].mean(axis=0)
    spread = samples["training"].std(axis=0)
    spread = np.maximum(spread, _SPREAD_FLOOR * np.median(spread)) + np.finfo(np.float32).tiny
    names = ("training", *(name for name in samples if name != "training"))
    features = np.concatenate([(samples[name] - centre) / spread for name in names])
    truth = np.repeat(np.arange(len(names)), [len(samples[name]) for name in names])
    head = LogisticRegression(C=regularisation, class_weight="balanced", max_iter=300)
    head.fit(features, truth)
    coefficients, intercepts = head.coef_, head.intercept_
    if len(names) == 2:  # of two classes scikit-learn gives the difference alone
        coefficients = np.vstack([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
    weight = (coefficients[1:] - coefficients[0]).T.astype(np.float64) / spread[:, None]
    bias = intercepts[1:] - intercepts[0] - centre @ weight
    return OodLayer(tap, weight.astype(np.float32), bias.astype(np.float32))


def scale(layer: OodLayer, features: Features) -> OodLayer:
    """The layer in its unit: 0 for the median of these features, 1 for their 99th percentile."""
    raw = features.astype(np.float64) @ layer.weight + layer.bias
    middle, high = np.quantile(raw, [0.5, _QUANTILE], axis=0)
    width = np.maximum(high - middle, np.finfo(np.float32).eps)
    weight, bias = layer.weight / width, (layer.bias - middle) / width
    return replace(layer, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def _figures(layer: OodLayer, features: Features, copies: dict[str, Features]) -> dict[str, Any]:
    """How many images of `val`, and what share of their altered copies, are rejected."""
    limits = OodLimits(tuple(_COPIES), LIMIT, STRICT_LIMIT)
    own = layer.scores(features)
    shares = {name: limits.beyond(layer.scores(seen)).mean() for name, seen in copies.items()}
    return {
        "rejected": int(limits.beyond(own).sum()),
        "rejected_strictly": int((own.max(axis=1) > STRICT_LIMIT).sum()),
        **{f"{name}_copies_rejected": round(float(share), 4) for name, share in shares.items()},
    }


def over_sources(images: Sequence[LabelledImage], most: int) -> list[LabelledImage]:
    """At most `most` images, one of each source in turn, always the same ones."""
    if len(images) <= most:
        return list(images)
    rows: dict[str, list[LabelledImage]] = {}
    for image in sorted(images, key=lambda it: hashlib.sha256(it.path.name.encode()).digest()):
        rows.setdefault(image.source, []).append(image)
    turns = chain.from_iterable(zip_longest(*(rows[name] for name in sorted(rows))))
    return list(islice((image for image in turns if image is not None), most))


def prepare_images(images: Sequence[LabelledImage], spec: InputSpec) -> list[Pixels]:
    """Images as the network sees them, without those that cannot be read."""
    return [pixels for _, pixels in _prepared(images, spec)]


def _prepared(
    images: Sequence[LabelledImage], spec: InputSpec
) -> list[tuple[LabelledImage, Pixels]]:
    def read(image: LabelledImage) -> tuple[LabelledImage, Pixels] | None:
        try:
            return image, prepare(read_radiograph(image.path, spec), spec)
        except NotAssessedError:
            return None

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        done = counted(pool.map(read, images), len(images), "images to prepare")
        return [one for one in done if one is not None]


def _adults(
    data: Path, manifest: ModelManifest, split: str, most: int, children: Sequence[LabelledImage]
) -> list[LabelledImage]:
    """Images of a split for the fit: none that is marked `paediatric`, here or in `children`."""
    young = {file_sha256(image.path) for image in children}
    images = [
        image
        for image in over_sources(images_of_model(data, manifest, split), most)
        if not image.is_child and not (young and file_sha256(image.path) in young)
    ]
    if len(images) < FEWEST_IMAGES:
        raise DataError(
            f"--fit {data}: got {len(images)} images of split {split!r}, expected at least "
            f"{FEWEST_IMAGES} of adults with labels of the model's classes"
        )
    return images


def _children(data: Path) -> list[LabelledImage]:
    images = [image for image in load_dataset(data) if image.is_child]
    fitted = sum(image.split in CHILDREN_SPLITS for image in images)
    if fitted < FEWEST_IMAGES:
        raise DataError(
            f"--children {data}: got {fitted} images that are marked `paediatric` in the splits "
            f"{' and '.join(CHILDREN_SPLITS)}, expected at least {FEWEST_IMAGES}"
        )
    return images


def match_variant(
    layer: OodLayer,
    parent: onnx.ModelProto,
    variant: onnx.ModelProto,
    batches: Iterable[NDArray[np.uint8]],
) -> OodLayer:
    """The layer for a variant of its network whose channels may have other scales.

    Quantising scales channels (`equalise`), and the next convolutions undo it; here the weights of
    the layer do. Each channel's factor is that of least squares between the features of the two.

    Args:
        layer: The layer of the FP32 network.
        parent: That network without the layer.
        variant: The network in lower precision, without the layer.
        batches: Prepared images to compare on, each of shape (N, height, width).
    """
    readers = [open_session(with_features(model, layer.tap)) for model in (parent, variant)]
    seen = [
        [session.run([FEATURES], {"images": batch})[0] for session in readers] for batch in batches
    ]
    before, now = (np.concatenate(side).astype(np.float64) for side in zip(*seen, strict=True))
    channels = shapes_of(parent)[layer.tap][1]
    before, now = (side.reshape(len(side), channels, -1) for side in (before, now))
    power = (now**2).sum(axis=(0, 2))
    shared = (before * now).sum(axis=(0, 2))
    factors = np.divide(shared, power, out=np.ones_like(power), where=power > 0)
    cells = len(layer.weight) // channels
    weight = layer.weight * np.repeat(factors, cells)[:, None]
    return replace(layer, weight=weight.astype(np.float32))
