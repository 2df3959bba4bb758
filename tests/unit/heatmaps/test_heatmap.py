"""Heat maps: class activation is Grad-CAM, and regions are where the map says on the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from deepcovid_edge.heatmaps.heatmap import ACTIVATION, HeatMap, of_activation, regions
from deepcovid_edge.manifest import InputSpec, ResizeRule
from deepcovid_edge.models import find_model
from deepcovid_edge.models.graph.reader import nodes_between, read_graph
from deepcovid_edge.models.graph.receptive_field import Chain

ROOT = Path(__file__).parents[3]
SPEC = InputSpec(height=224, width=224, resize=ResizeRule.CENTRE_CROP)


def bump(y: float, x: float, *, height: float = 1.0, width: float = 20.0) -> NDArray[np.float32]:
    rows, columns = np.mgrid[0:224, 0:224]
    value = height * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2))
    single: NDArray[np.float32] = value.astype(np.float32)
    return single


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "resnet18"])
def test_class_activation_is_grad_cam(architecture: str) -> None:
    """Of captum, on the last features: the same ranks, and the same values up to scale and bias."""
    torch = pytest.importorskip("torch", reason="the workstation side needs extra export")
    attr = pytest.importorskip("captum.attr", reason="captum is in extra dev")
    stats = pytest.importorskip("scipy.stats", reason="needs extra export")
    from deepcovid_export.networks import build_network

    torch.manual_seed(0)
    network: Any = build_network(architecture, 3).eval()
    images = torch.randint(0, 256, (2, 224, 224), dtype=torch.uint8)
    weigh: Any = attr.LayerGradCam(lambda x: network(x)[0], network.features)
    theirs = weigh.attribute(images, target=1).detach().numpy()[:, 0]
    with torch.inference_mode():
        ours = network(images)[1][:, 1].numpy()
    bias = network.maps[-1].bias[1].item()
    for own, other in zip(ours, theirs, strict=True):
        assert stats.spearmanr(own.ravel(), other.ravel()).statistic >= 0.999
        np.testing.assert_allclose((own - bias) / own.size, other, rtol=1e-3, atol=1e-6)


def test_an_activation_map_is_brought_to_the_size_of_the_input() -> None:
    cells = np.arange(4, dtype=np.float32).reshape(2, 2)
    found = of_activation(cells, SPEC)
    assert found.method == ACTIVATION
    assert found.values.shape == (224, 224)
    assert found.cells is cells
    np.testing.assert_allclose(found.values[56:168:111, 56:168:111], cells, atol=0.05)


def test_a_peak_may_lie_between_cells() -> None:
    """Where two neighbours respond alike, a bilinear map would peak at the first one's centre."""
    cells = np.zeros((7, 7), np.float32)
    cells[3, 3:5] = 1
    peak = np.unravel_index(int(of_activation(cells, SPEC).values.argmax()), (224, 224))
    assert peak[0] in (111, 112)  # the middle of the fourth row of tiles
    assert peak[1] in (127, 128)  # the border between the fourth and the fifth tile


@pytest.mark.parametrize(
    ("model", "centres", "farthest"),
    [
        (find_model("squeezenet1_1"), [16 * cell + 15 for cell in range(13)], 8),
        (ROOT / "benchmarks/models/resnet18.onnx", [32 * cell for cell in range(7)], 15.5),
    ],
    ids=["squeezenet1_1", "resnet18"],
)
def test_cells_are_tiles_whose_centres_are_as_far_from_the_receptive_fields_as_documented(
    model: Path, centres: list[int], farthest: float
) -> None:
    graph = read_graph(memoryview(model.read_bytes()))
    (image,) = graph.inputs
    nodes = nodes_between(graph, [image], "activation_maps")
    chain = Chain(graph, nodes, [image], "activation_maps", 0)
    assert chain.lengths({image: 224})["activation_maps"] == len(centres)
    size = 224 * 20  # wide enough that the border cuts no receptive field off
    lengths = chain.lengths({image: size})
    middle = lengths["activation_maps"] // 2
    first, last = chain.needed((middle, middle + 1), lengths)[image]
    stride = centres[1] - centres[0]
    assert (first + last - 1) / 2 == stride * middle + centres[0]
    tiles = (np.arange(len(centres)) + 0.5) * 224 / len(centres) - 0.5
    assert farthest - 0.5 < np.abs(tiles - centres).max() <= farthest


def test_regions_are_boxes_on_the_image_strongest_first() -> None:
    values = np.maximum(bump(60, 50), bump(150, 170, height=0.8))
    first, second = regions(HeatMap(ACTIVATION, values, values), (448, 896), SPEC)
    assert first.peak == pytest.approx(1.0, abs=1e-3)
    assert second.peak == pytest.approx(0.8, abs=1e-3)
    # The image is twice as large as the input, and the crop begins at column 224.
    assert first.x <= 224 + 2 * 50 < first.x + first.width
    assert first.y <= 2 * 60 < first.y + first.height
    half = 20 * np.sqrt(2 * np.log(2))  # where a bump falls to one half
    assert first.width == pytest.approx(4 * half, abs=6)
    assert second.x <= 224 + 2 * 170 < second.x + second.width
    assert first.turns is None


def test_a_region_says_whether_hiding_a_window_of_it_turns_the_decision() -> None:
    values = np.maximum(bump(60, 50), bump(150, 170, height=0.8))
    turned = np.zeros((224, 224), bool)
    turned[140:172, 160:192] = True
    found = HeatMap("occlusion", values, values, values, turned)
    first, second = regions(found, (224, 224), SPEC)
    assert (first.turns, second.turns) == (False, True)


def test_a_map_below_zero_has_no_region() -> None:
    values = -bump(60, 50)
    assert regions(HeatMap(ACTIVATION, values, values), (224, 224), SPEC) == []


def test_specks_are_left_out_and_at_most_five_regions_told() -> None:
    values = np.zeros((224, 224), np.float32)
    values[3, 3] = 1.0
    for index in range(7):
        cv2.circle(values, (20 + 30 * index, 100), 8, 0.6 + 0.05 * index, -1)
    found = regions(HeatMap(ACTIVATION, values, values), (224, 224), SPEC)
    assert [round(place.peak, 2) for place in found] == [0.9, 0.85, 0.8, 0.75, 0.7]
