"""Which images calibrate, and what ranges they give."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the workstation side needs extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="the workstation side needs extra export")

from onnx import numpy_helper
from tiny_network import (
    MANIFEST,
    SPEC,
    pixels,
    quantize_command,
    run,
)

from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.errors import DataError, ModelFileError, UsageError
from deepcovid_export.quantization.calibration import (
    BINS,
    Histogram,
    ImageBatches,
    best_ranges,
    channel_peaks,
    choose_images,
)
from deepcovid_export.quantization.equalise import equalise, find_pairs
from deepcovid_export.quantization.quantize import quantize

# Which images calibrate -----------------------------------------------------------------------


def test_images_are_balanced_over_classes_and_labels_and_always_the_same(
    data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "train/hazier").mkdir()
    for path in sorted((copy / "train/hazy").iterdir())[:6]:
        path.rename(copy / "train/hazier" / path.name)
    for path in sorted((copy / "train/clear").iterdir()):
        shutil.copy(path, path.with_stem(path.stem + "_again"))
    chosen = choose_images(copy, MANIFEST, 18)
    assert chosen.by_class == {"clear": 9, "hazy": 9}
    assert chosen.split == "train"
    labels = [image.label for image in chosen.images]
    assert (labels.count("clear"), labels.count("hazy"), labels.count("hazier")) == (9, 5, 4)
    assert labels[::2] == ["clear"] * 9  # any first few are balanced, too
    again = choose_images(copy, MANIFEST, 18)
    assert [image.path for image in again.images] == [image.path for image in chosen.images]
    assert not any("/val/" in str(image.path) for image in chosen.images)


def test_a_broken_image_is_passed_over(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    for seed in range(3):
        (copy / f"train/clear/clear{seed:02d}.png").write_bytes(b"no image")
    chosen = choose_images(copy, MANIFEST, 128)
    assert chosen.by_class == {"clear": 9, "hazy": 9}
    assert set(chosen.not_assessed.values()) == {"E_NOT_IMAGE"}
    assert len(chosen.not_assessed) == 3


def test_three_images_are_too_few_and_the_error_says_how_many_are_needed(
    parent: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "few"
    (copy / "clear").mkdir(parents=True)
    (copy / "hazy").mkdir()
    for name in ("clear/clear00.png", "clear/clear01.png", "hazy/hazy00.png"):
        shutil.copy(data / "train" / name, copy / name)
    with pytest.raises(DataError) as error:
        choose_images(copy, MANIFEST, 128)
    assert str(error.value) == (
        f"{copy}: got 3 calibration images (clear 2, hazy 1), expected at least 16, that is 8 of "
        "each class: add labelled images of these classes"
    )
    options = ["--precision", "int8", "--calibration", copy, "--equivalence", data]
    done = quantize_command(parent, *options, cwd=tmp_path)
    assert done.returncode == 1
    assert "got 3 calibration images (clear 2, hazy 1), expected at least 16" in done.stderr
    assert not list(tmp_path.glob("*.onnx"))


def test_a_class_without_images_is_an_error(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "train/clear", tmp_path / "data/clear")
    with pytest.raises(DataError, match=r"\(clear 12, hazy 0\), expected at least 16"):
        choose_images(tmp_path / "data", MANIFEST, 128)


def test_images_to_compare_on_never_calibrate(parent: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is the split 'val'"):
        choose_images(data / "val", MANIFEST, 128)
    shutil.copytree(data / "val", tmp_path / "data/val")
    shutil.copytree(data / "val", tmp_path / "data/test")
    with pytest.raises(
        DataError, match="has the splits test, val; images to calibrate on come from"
    ):
        choose_images(tmp_path / "data", MANIFEST, 128)
    with pytest.raises(DataError, match="has a part in making the file"):
        quantize(parent, data, equivalence=data / "train")
    with pytest.raises(UsageError, match="has no splits, expected 'val' to compare on"):
        quantize(parent, data / "train")


def test_images_are_read_batch_by_batch_and_let_go(data: Path) -> None:
    images = load_dataset(data, split="train")
    batches = iter(ImageBatches(images, SPEC))
    first = next(batches)
    assert first.shape == (8, 64, 64)
    seen = weakref.ref(first)
    del first
    gc.collect()
    assert seen() is None
    assert sum(len(batch) for batch in batches) == len(images) - 8


@pytest.mark.parametrize(
    ("count", "measured", "fitted"),
    [(16, 8, 8), (66, 33, 33), (127, 63, 64), (128, 64, 64), (200, 64, 128), (512, 64, 128)],
)
def test_half_of_the_images_measures_and_others_are_fitted_on(
    count: int, measured: int, fitted: int
) -> None:
    images = [LabelledImage(Path(f"{number}.png"), "clear") for number in range(count)]
    first, second = (half.images for half in ImageBatches(images, SPEC).halves)
    assert first == images[:measured]
    assert second == images[measured : measured + fitted]


# What decides the ranges ---------------------------------------------------------------------


def test_histogram_counts_every_value_while_its_reach_grows() -> None:
    draw = np.random.default_rng(0)
    parts = [draw.normal(0, scale, 5000).astype(np.float32) for scale in (0.01, 3, 40)]
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    values = np.concatenate(parts)
    assert (histogram.lowest, histogram.highest) == (values.min(), values.max())
    expected, _ = np.histogram(values, BINS, range=(-histogram._reach, histogram._reach))
    assert np.abs(np.cumsum(histogram._counts) - np.cumsum(expected)).max() <= 2  # at bins' edges


def test_best_range_cuts_off_a_rare_outlier_and_nothing_else() -> None:
    draw = np.random.default_rng(0)
    even = Histogram()
    even.add(draw.uniform(0, 10, 100_000).astype(np.float32))
    assert even.best_range(symmetric=False)[1] == pytest.approx(10, rel=0.02)
    few = Histogram()  # cubes keep a large value unless very many others gain by its loss
    few.add(np.append(draw.uniform(0, 10, 100_000), 25).astype(np.float32))
    assert few.best_range(symmetric=True)[1] > 20
    rare = Histogram()
    for _ in range(100):
        rare.add(draw.uniform(0, 10, 100_000).astype(np.float32))
    rare.add(np.array([25], np.float32))
    low, high = rare.best_range(symmetric=True)
    assert low == -high
    assert 9 < high < 20


def test_equalising_changes_only_the_rounding_of_what_the_network_says(
    parent: Path, data: Path
) -> None:
    model = onnx.load(parent)
    loud = {item.name: item for item in model.graph.initializer}["squeeze.bias"]
    values = numpy_helper.to_array(loud).copy()
    values[3] = 50
    loud.CopyFrom(numpy_helper.from_array(values, loud.name))
    images = load_dataset(data, split="train")
    pairs = find_pairs(model)
    assert [pair.producer.output[0] for pair in pairs] == [
        "first",
        "squeeze",
        "expand1",
        "expand3",
        "main1",
    ]
    tensors = [pair.activation for pair in pairs]
    batches = ImageBatches(images, SPEC)
    peaks = channel_peaks(model, tensors, batches)
    even = equalise(model, peaks)
    after = channel_peaks(even, tensors, batches)
    assert np.ptp(after["squeeze_relu"]) < np.ptp(peaks["squeeze_relu"]) / 4
    seen = pixels(images)
    assert np.allclose(run(even, seen), run(model, seen), rtol=1e-6)


@pytest.mark.parametrize(
    ("output", "producer"),
    [("squeeze", "squeeze"), ("squeeze_relu", "squeeze"), ("pooled", "first")],
)
def test_channels_that_the_network_gives_away_are_not_equalised(
    parent: Path, output: str, producer: str
) -> None:
    model = onnx.load(parent)
    tensor = onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
    model.graph.output.append(tensor)
    assert producer not in [pair.producer.output[0] for pair in find_pairs(model)]


def test_an_activation_that_is_infinite_ends_the_calibration(parent: Path, data: Path) -> None:
    model = onnx.load(parent)
    loud = {item.name: item for item in model.graph.initializer}["squeeze.bias"]
    loud.CopyFrom(numpy_helper.from_array(np.full(loud.dims, np.inf, np.float32), loud.name))
    batches = ImageBatches(load_dataset(data, split="train")[:1], SPEC)
    with pytest.raises(ModelFileError, match=r"activation squeeze_relu: .* not finite"):
        best_ranges(model, ["squeeze_relu"], batches, symmetric=False)


def test_a_network_without_channels_to_equalise_is_calibrated_too(parent: Path, data: Path) -> None:
    """ONNX Runtime gives all outputs where none is asked for."""
    model = onnx.load(parent)
    for node in model.graph.node:
        if node.op_type == "Relu":  # as MobileNet's ReLU6
            node.op_type = "Clip"
            node.input.append("lowest")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "lowest"))
    assert find_pairs(model) == []
    assert channel_peaks(model, [], ImageBatches(load_dataset(data, split="train"), SPEC)) == {}
    assert equalise(model, {}).graph == model.graph
