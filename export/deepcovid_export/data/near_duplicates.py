"""Near-duplicates: images of one exposure, reduced, re-toned, cropped, turned or mirrored.

They are found in three steps, each on fewer pairs. First all pairs whose perceptual hashes (pHash
and dHash of 64 bits, library imagehash) differ in at most `HASH_DISTANCE` bits and whose
reductions to 16 x 16 pixels correlate. Then those whose 64 x 64 thumbnails correlate without the
low frequencies, in which all chests are alike. Then the same after an affine alignment (Evangelidis
and Psarakis 2008, OpenCV's findTransformECC), which finds crops and small turns. Mirrored images
are compared in the same way.

docs/training.md, "Images in two splits", explains the limits.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import sched_getaffinity
from typing import Any

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import WarningCode

HASH_DISTANCE = 10
"""Bits of 64 in which pHash or dHash of two near-duplicates may differ."""
COARSE_LIKENESS = 0.85
"""Least correlation of the 16 x 16 reductions of a pair that is compared further."""
ALIGNED_FROM = 0.92
"""Least correlation of the 16 x 16 reductions of a pair that is aligned: it takes 1 ms."""
LIKENESS = 0.75
"""Least correlation of high-passed thumbnails of one exposure."""

SIDE = 64
_COARSE_SIDE = 16
_BITS = 64
_HIGH_PASS = 2.0
_FRAME_NOISE = 4.0
"""Standard deviation, grey levels, up to which a row or column is taken for a frame."""
_GRID = 256
"""Frames are searched at this size, where noise is averaged out."""
_BLOCK = 512
_FEWEST_SHARED = 0.6
_ALIGNMENT = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-3)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image to find its near-duplicates.

    Attributes:
        sha256: SHA-256 of the file's bytes.
        thumbnail: The image at 64 x 64 pixels, uint8.
        hashes: pHash and dHash of the image, then of its mirror image; bool of shape (2, 2, 64).
        synthetic: A phantom of `deepcovid-edge sample`; all look alike, so they are not compared.
    """

    sha256: str
    thumbnail: NDArray[np.uint8]
    hashes: NDArray[np.bool_]
    synthetic: bool


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that show one exposure.

    Attributes:
        first: Index of an image.
        second: Index of the other, which is higher.
        distance: Bits in which the nearer of pHash and dHash differs.
        likeness: Correlation of the high-passed thumbnails.
        mirrored: One is the mirror image of the other.
    """

    first: int
    second: int
    distance: int
    likeness: float
    mirrored: bool


def fingerprint(image: Radiograph) -> Fingerprint:
    """Reduce an image to what its near-duplicates have in common."""
    grey = image.pixels
    if grey.dtype != np.uint8:
        grey = (grey * np.float32(255 / image.white)).astype(np.uint8)
    grey = _crop_frame(grey)
    thumbnail = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)
    hashes = []
    for turned in (thumbnail, thumbnail[:, ::-1]):
        picture = Image.fromarray(np.ascontiguousarray(turned))
        both = imagehash.phash(picture), imagehash.dhash(picture)
        hashes.append([one.hash.ravel() for one in both])
    synthetic = WarningCode.SYNTHETIC in image.warnings
    return Fingerprint(image.sha256, thumbnail, np.array(hashes, np.bool_), synthetic)


def _crop_frame(grey: NDArray[Any]) -> NDArray[Any]:
    """An image without a frame or padding of one grey level, up to half of each side."""
    reduced = cv2.resize(grey, (_GRID, _GRID), interpolation=cv2.INTER_AREA).astype(np.float32)
    kept = []
    for axis, length in ((1, grey.shape[0]), (0, grey.shape[1])):
        drawn = np.flatnonzero(reduced.std(axis=axis) > _FRAME_NOISE)
        first, last = (drawn[0], drawn[-1] + 1) if len(drawn) > _GRID // 2 else (0, _GRID)
        kept.append(slice(first * length // _GRID, -(-last * length // _GRID)))
    return grey[kept[0], kept[1]]


def find_near_duplicates(
    prints: Sequence[Fingerprint], parts: Sequence[Hashable]
) -> list[NearDuplicate]:
    """Find pairs of images of one exposure; pairs of equal files are not among them.

    Args:
        prints: Fingerprints.
        parts: The part of each image; only images of different parts are compared.

    Returns:
        Pairs in the order of the images.
    """
    real = [index for index, one in enumerate(prints) if not one.synthetic]
    if len(real) < 2:
        return []
    names = {part: number for number, part in enumerate(dict.fromkeys(parts))}
    index = _Index(
        [prints[image] for image in real], np.array([names[parts[image]] for image in real])
    )
    found: dict[tuple[int, int], NearDuplicate] = {}
    for mirrored in (False, True):
        for one in index.near_duplicates(mirrored=mirrored):
            pair = (real[one.first], real[one.second])
            if pair not in found or found[pair].likeness < one.likeness:
                found[pair] = replace(one, first=pair[0], second=pair[1])
    return [found[pair] for pair in sorted(found)]


class _Index:
    """Fingerprints as arrays, to compare all pairs by a few matrix products."""

    def __init__(self, prints: Sequence[Fingerprint], parts: NDArray[np.int64]) -> None:
        self.parts = parts
        self.sha256 = np.array([one.sha256 for one in prints])
        self.hashes = np.where([one.hashes for one in prints], 1, -1).astype(np.float32)
        self.thumbnails = [one.thumbnail.astype(np.float32) for one in prints]
        size = (_COARSE_SIDE, _COARSE_SIDE)
        reduced = [cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in self.thumbnails]
        self.coarse = _standardise(np.array(reduced))
        self.fine = np.array([_standardise(_high_pass(one)[None])[0] for one in self.thumbnails])

    def near_duplicates(self, *, mirrored: bool) -> Iterator[NearDuplicate]:
        """Pairs by the steps in the module's description."""
        first, second, distance, coarse = self._candidates(mirrored)
        likeness = self._likeness(first, second, mirrored)
        unsure = np.flatnonzero((likeness < LIKENESS) & (coarse >= ALIGNED_FROM))
        with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:
            aligned = pool.map(
                lambda pair: self._aligned_likeness(first[pair], second[pair], mirrored), [*unsure]
            )
            likeness[unsure] = np.maximum(likeness[unsure], np.array([*aligned], np.float32))
        for pair in np.flatnonzero(likeness >= LIKENESS):
            figures = int(distance[pair]), round(float(likeness[pair]), 3)
            yield NearDuplicate(int(first[pair]), int(second[pair]), *figures, mirrored)

    def _candidates(self, mirrored: bool) -> tuple[NDArray[Any], ...]:
        """Indices of pairs with near hashes, their hash distance and coarse correlation."""
        hashes = self.hashes[:, int(mirrored)]
        pictures, others = (
            _mirror(self.coarse, turn).reshape(len(self.parts), -1) for turn in (False, mirrored)
        )
        found: list[tuple[NDArray[Any], ...]] = []
        for top in range(0, len(self.parts), _BLOCK):
            rows = slice(top, top + _BLOCK)
            alike = pictures[rows] @ others[top:].T
            # Of signs s and t, the product is 64 less twice the bits in which they differ.
            products = [self.hashes[rows, 0, kind] @ hashes[top:, kind].T for kind in (0, 1)]
            apart = (_BITS - np.maximum(*products)) / 2
            first, second = np.nonzero((alike >= COARSE_LIKENESS) & (apart <= HASH_DISTANCE))
            kept = (second > first) & (self.parts[first + top] != self.parts[second + top])
            kept &= self.sha256[first + top] != self.sha256[second + top]
            first, second = first[kept], second[kept]
            found.append((first + top, second + top, apart[first, second], alike[first, second]))
        return tuple(np.concatenate(column) for column in zip(*found, strict=True))

    def _likeness(self, first: NDArray[Any], second: NDArray[Any], mirrored: bool) -> Floats:
        likeness = np.empty(len(first), np.float32)
        for start in range(0, len(first), _BLOCK):
            part = slice(start, start + _BLOCK)
            other = _mirror(self.fine[second[part]], mirrored)
            likeness[part] = np.einsum("nhw,nhw->n", self.fine[first[part]], other)
        return likeness

    def _aligned_likeness(self, first: Any, second: Any, mirrored: bool) -> float:
        """Correlation with the second image aligned with the first; -1 if that is impossible."""
        fixed, moved = self.thumbnails[first], _mirror(self.thumbnails[second], mirrored)
        start, everywhere = np.eye(2, 3, dtype=np.float32), np.ones((SIDE, SIDE), np.uint8)
        try:
            _, affine = cv2.findTransformECC(
                fixed, moved, start, cv2.MOTION_AFFINE, _ALIGNMENT, everywhere, 5
            )
        except cv2.error:  # no convergence: the images have nothing in common
            return -1.0
        size, inverse = (SIDE, SIDE), cv2.WARP_INVERSE_MAP
        laid = cv2.warpAffine(moved, affine, size, flags=cv2.INTER_LINEAR | inverse)
        shared = cv2.warpAffine(everywhere, affine, size, flags=cv2.INTER_NEAREST | inverse)
        shared = cv2.erode(shared, np.ones((5, 5), np.uint8), borderValue=0)
        if shared.mean() < _FEWEST_SHARED:
            return -1.0
        where = shared > 0
        pair = [_standardise(_high_pass(one)[where][None]) for one in (fixed, laid)]
        return float(np.vdot(*pair))


def _mirror(pictures: Any, mirrored: bool) -> Any:
    return np.ascontiguousarray(pictures[..., ::-1]) if mirrored else pictures


def _high_pass(thumbnail: Any) -> Any:
    return thumbnail - cv2.GaussianBlur(thumbnail, (0, 0), _HIGH_PASS)


def _standardise(pictures: Any) -> Floats:
    """Pictures with mean 0 and norm 1 each, so that products are correlations."""
    axes = tuple(range(1, pictures.ndim))
    centred = pictures - pictures.mean(axis=axes, keepdims=True)
    norm = np.sqrt((centred**2).sum(axis=axes, keepdims=True))
    scaled: Floats = (centred / np.maximum(norm, 1e-6)).astype(np.float32)
    return scaled
