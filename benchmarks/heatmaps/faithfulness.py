"""Do heat maps show what the network decides by? Two tests on covid images of val.

    python -m benchmarks.heatmaps.faithfulness --data DATA

**Deletion and insertion** (Petsiuk, Das and Saenko, RISE, BMVC 2018). The image is covered by
windows that do not overlap. They are hidden (black) one by one, those first that the map scores
highest, and the probability is followed; then they are revealed in the same order on an image that
shows them blurred. Beside it the same with the windows in random order, so that equal steps hide
equal areas. Deletion is better the smaller the area under its curve, insertion the larger.
Differences are taken image by image; their 95 % intervals are percentiles over draws of patients.
`lungs` does this with the windows in the middle of the image alone, so that a map earns nothing by
merely finding the chest.

**Random weights** (Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018). The network's
weights are drawn at random (He normal), in all layers or in the last one, and its maps are compared
with those of the trained network. A method whose maps do not change shows edges, not what was
learned. These maps have windows twice as far apart: there are many of them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks import measure
from benchmarks.measure import Pixels
from benchmarks.measure.options import parser_of
from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend, softmax
from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.heatmaps.agreement import rank_correlation
from deepcovid_edge.heatmaps.heatmap import METHODS, of_activation
from deepcovid_edge.heatmaps.occlusion import Occluder, of_occlusion
from deepcovid_edge.heatmaps.windows import OcclusionSettings, WindowGrid, occluded
from deepcovid_edge.models import find_model
from deepcovid_edge.models.graph.receptive_field import Box

SETTINGS = OcclusionSettings()
TILES = OcclusionSettings(stride=SETTINGS.window)
BLURRED = OcclusionSettings(baseline="blurred")
SPARSE = OcclusionSettings(stride=2 * SETTINGS.stride)
ORDERS = 5
"""Random orders of the windows, each of another seed."""
REDRAWN = {"all_layers": 5, "last_layer": 5}
"""Networks with random weights, each of another seed."""
DRAWS = 2000
EARLY = 0.1
"""The share of the windows after which curves are quoted, beside the areas under them."""

Maps = dict[str, Pixels]
"""Method -> heat map."""


def main() -> None:
    """Measure, and store the result."""
    parser = parser_of(__doc__, data="images with val", model="one")
    parser.add_argument("--images", type=int, help="positives of val at most  [default: all]")
    parser.add_argument("--sanity-images", type=int, default=20)
    options = parser.parse_args()
    path = find_model(options.model)
    with (
        load_backend(path, backend="onnxruntime") as backend,
        maps_of(backend, SETTINGS) as explain,
    ):
        manifest = backend.manifest
        every = load_dataset(options.data, split="val")
        images = [image for image in every if image.label in manifest.positive_labels]
        images = images[: options.images]
        pixels = [measure.prepared(image.path, manifest.input) for image in images]
        maps = [explain(image) for image in pixels]
        print(f"{len(maps)} images", flush=True)
        curves = {name: Curves(backend, name) for name in ("image", "lungs")}
        figures = {name: side.measure(images, pixels, maps) for name, side in curves.items()}
        sha256 = backend.sha256
        print_differences(figures)
    chosen = (
        np.arange(min(options.sanity_images, len(images))) * len(images) // options.sanity_images
    )
    sanity = random_weights(path, [pixels[place] for place in chosen])
    content = {
        "model": manifest.name,
        "model_sha256": sha256,
        "split": "val",
        "images": len(images),
        "patients": len({image.patient for image in images}),
        "window": SETTINGS.window,
        "random_orders": ORDERS,
        "deletion_and_insertion": figures,
        "random_weights": {"images": len(chosen), "stride": SPARSE.stride, **sanity},
    }
    measure.store(f"sense-{manifest.name}", content, folder="heatmap")


@contextmanager
def maps_of(backend: Backend, settings: OcclusionSettings) -> Iterator[Callable[[Pixels], Maps]]:
    """Both heat maps of an image."""
    spec, positive = backend.manifest.input, backend.manifest.positive_index
    with Occluder(backend, settings) as occluder:

        def explain(image: Pixels) -> Maps:
            occlusion = of_occlusion(occluder.explain(image), {})
            seen = backend.infer(image[None], activation_maps=True).activation_maps
            assert seen is not None
            found = (occlusion, of_activation(seen[0, positive], spec))
            return {each.method: each.values for each in found}

        yield explain


class Curves:
    """Deletion and insertion with the windows of one region.

    Args:
        backend: The network.
        region: `image`, or `lungs`: the windows of which none lies at the image's edge.
    """

    def __init__(self, backend: Backend, region: str) -> None:
        self.backend = backend
        grid = WindowGrid.over(backend.manifest.input.height, backend.manifest.input.width, TILES)
        inner = slice(1, -1) if region == "lungs" else slice(None)
        self.boxes = [
            (rows, columns) for rows in grid.rows[inner] for columns in grid.columns[inner]
        ]

    def measure(
        self, images: Sequence[LabelledImage], pixels: Sequence[Pixels], maps: Sequence[Maps]
    ) -> dict[str, Any]:
        """Curves and paired differences of both methods."""
        shuffled = [
            np.random.default_rng(seed).permutation(len(self.boxes)) for seed in range(ORDERS)
        ]
        owners = np.unique(
            [image.patient or str(image.path) for image in images], return_inverse=True
        )[1]
        by_chance = np.stack([self.all_of(pixels, [order] * len(pixels)) for order in shuffled])
        figures: dict[str, Any] = {"windows": len(self.boxes)}
        for method in METHODS:
            ours = self.all_of(pixels, [self.order(found[method]) for found in maps])
            figures[method] = {
                name: compared(ours[:, kind], by_chance[:, :, kind].mean(axis=0), owners)
                for kind, name in enumerate(("deletion", "insertion"))
            }
        return figures

    def all_of(self, pixels: Sequence[Pixels], orders: Sequence[Pixels]) -> Pixels:
        """Curves of all images, of shape (images, 2, steps)."""
        with ThreadPoolExecutor(measure.CORES) as pool:
            return np.array(list(pool.map(self.both, pixels, orders)))

    def order(self, values: Pixels) -> Pixels:
        """The windows, the one with the highest mean of the map first."""
        return np.argsort([-at(values, box).mean() for box in self.boxes], kind="stable")

    def both(self, image: Pixels, order: Pixels) -> tuple[Pixels, Pixels]:
        """Probability while windows are hidden, and while they are revealed."""
        boxes = [self.boxes[window] for window in order]
        covered = image.copy()
        for box in boxes:
            at(covered, box)[...] = at(occluded(image, BLURRED), box)
        deletion = self.follow(image, occluded(image, SETTINGS), boxes)
        return deletion, self.follow(covered, image, boxes)

    def follow(self, image: Pixels, shown: Pixels, boxes: Sequence[Box]) -> Pixels:
        """Probability as more and more windows of an image show what another image has there."""
        changed = np.repeat(image[None], len(boxes) + 1, axis=0)
        for step, box in enumerate(boxes, start=1):
            at(changed[step:], box)[...] = at(shown, box)
        scores = softmax(self.backend.infer(changed).logits)
        return scores[:, self.backend.manifest.positive_index]


def at(pixels: Pixels, box: Box) -> Pixels:
    """The part of images that lies in a box."""
    (top, bottom), (left, right) = box
    return pixels[..., top:bottom, left:right]


def compared(ours: Pixels, by_chance: Pixels, owners: Pixels) -> dict[str, Any]:
    """The mean curves of shape (images, steps), and how their areas and early values differ."""
    early = round(EARLY * (ours.shape[1] - 1))
    area, chance = ((each[:, 1:] + each[:, :-1]).mean(axis=1) / 2 for each in (ours, by_chance))
    return {
        "area": paired(area, chance, owners),
        "early": {"windows": early, **paired(ours[:, early], by_chance[:, early], owners)},
        "mean_curve": rounded(ours.mean(axis=0)),
        "mean_curve_at_random": rounded(by_chance.mean(axis=0)),
    }


def paired(ours: Pixels, by_chance: Pixels, owners: Pixels) -> dict[str, Any]:
    """Means over images, and their difference with its interval over draws of patients."""
    apart, patients = ours - by_chance, owners.max() + 1
    draw = np.random.default_rng(0)
    times = draw.multinomial(patients, np.full(patients, 1 / patients), size=DRAWS)[:, owners]
    drawn = (times @ apart) / times.sum(axis=1)
    return {
        "map": float(ours.mean()),
        "random": float(by_chance.mean()),
        "difference": float(apart.mean()),
        "interval_95": np.quantile(drawn, (0.025, 0.975)).tolist(),
        "images_lower": int((apart < 0).sum()),
        "images_higher": int((apart > 0).sum()),
    }


def print_differences(figures: dict[str, Any]) -> None:
    """Print the differences of the areas."""
    for region, sides in figures.items():
        for method in METHODS:
            for kind, found in sides[method].items():
                area = found["area"]
                print(region, method, kind, area["difference"], area["interval_95"], flush=True)


def random_weights(path: Path, pixels: Sequence[Pixels]) -> dict[str, Any]:
    """Rank correlation of the trained network's maps with those of random ones."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "network.onnx"
        shutil.copy(path, place)
        trained = sparse_maps(place, pixels)
        figures: dict[str, Any] = {}
        for layers, networks in REDRAWN.items():
            alike: dict[str, list[list[float]]] = {method: [] for method in METHODS}
            for seed in range(networks):
                onnx.save(redrawn(onnx.load(path), seed, last_only=layers == "last_layer"), place)
                found = sparse_maps(place, pixels)
                for method, values in alike.items():
                    pairs = [
                        (old[method], new[method]) for old, new in zip(trained, found, strict=True)
                    ]
                    values.append([rank_correlation(*pair) for pair in pairs])
            figures[layers] = {name: spread(np.array(values)) for name, values in alike.items()}
            for name, figure in figures[layers].items():
                print(layers, name, figure["median"], figure["median_by_network"], flush=True)
    return figures


def sparse_maps(path: Path, pixels: Sequence[Pixels]) -> list[Maps]:
    """Maps of a network with windows far apart."""
    with load_backend(path, backend="onnxruntime") as backend, maps_of(backend, SPARSE) as explain:
        return [explain(image) for image in pixels]


def redrawn(model: onnx.ModelProto, seed: int, *, last_only: bool) -> onnx.ModelProto:
    """A network with weights from He's normal distribution (He et al. 2015), biases zero."""
    draw = np.random.default_rng(seed)
    stored = {item.name: item for item in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for node in convolutions[-1:] if last_only else convolutions:
        weights, *bias = (stored[name] for name in node.input[1:])
        shape = tuple(weights.dims)
        new = draw.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        weights.CopyFrom(numpy_helper.from_array(new, weights.name))
        for item in bias:
            item.CopyFrom(numpy_helper.from_array(np.zeros(item.dims, np.float32), item.name))
    return model


def spread(values: Pixels) -> dict[str, Any]:
    """Of rank correlations of shape (networks, images)."""
    return {
        "median": round(float(np.median(values)), 4),
        "median_of_absolute": round(float(np.median(np.abs(values))), 4),
        "quantile_90_of_absolute": round(float(np.quantile(np.abs(values), 0.9)), 4),
        "median_by_network": rounded(np.median(values, axis=1)),
    }


def rounded(values: Pixels) -> list[float]:
    """Values for JSON."""
    return [round(float(value), 4) for value in values]


if __name__ == "__main__":
    main()
