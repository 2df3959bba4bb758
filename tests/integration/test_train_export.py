"""Training to model file on synthetic images: recipes run, resume changes nothing, torch agrees."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the workstation side needs extra export")

import onnx
import torch
from commands import Done, command
from drawn_once import drawn_phantom
from exported_networks import export_checkpoint
from PIL import Image
from terminal import on_terminal

from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.errors import DataError, ModelFileError, UsageError
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.imaging.synthetic.phantom import save_phantom
from deepcovid_edge.manifest import ModelManifest, read_manifest
from deepcovid_export.data.images import training_data
from deepcovid_export.data.training_set import ImageDataset
from deepcovid_export.networks import build_network, load_imagenet
from deepcovid_export.networks.checkpoint import load_checkpoint, save_checkpoint
from deepcovid_export.onnx_export.graphs import MAX_IR_VERSION
from deepcovid_export.onnx_export.to_onnx import OPSET
from deepcovid_export.recipe import Recipe, load_recipe
from deepcovid_export.training.train import RunSettings

SMALL = """
name = "small"
architecture = "{architecture}"
positive_class = "hazy"
[classes]
clear = ["clear"]
hazy = ["hazy"]
[input]
height = 96
width = 96
[fit]
epochs = 3
batch_size = 4
average = 0.5
precision = "fp32"
seed = 3
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed in range(16):
        split = "val" if seed % 4 == 3 else "train"
        for label, opacities in (("clear", 0), ("hazy", 6)):
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            image = drawn_phantom(seed, opacities=opacities)
            small = np.asarray(Image.fromarray(image).resize((160, 160)))
            save_phantom(small, place / f"{seed:02d}.png")
    return folder


def small_recipe(place: Path, architecture: str = "squeezenet1_1") -> Path:
    path = place / "small.toml"
    path.write_text(SMALL.format(architecture=architecture))
    return path


def train(*arguments: object) -> Done:
    return command("train", *arguments)


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


def test_train_export_evaluate_infer_from_the_command_line(data: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run, model, report = tmp_path / "run", tmp_path / "small.onnx", tmp_path / "report.json"
    steps: tuple[list[object], ...] = (
        ["train", "--recipe", recipe, data, "-o", run, "--from-scratch", "--workers", 0],
        ["export", run / "checkpoint.pt", "-o", model, "--check", data],
        ["evaluate", model, data, "--split", "val", "-o", report],
        ["infer", data, "--model", model, "-o", tmp_path / "records.jsonl"],
    )
    line = [sys.executable, "-m", "deepcovid_edge", *map(str, steps[0])]
    trained = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert trained.returncode == 0, trained.stderr
    assert "24 images to fit on, 8 to choose on" in trained.stderr
    for arguments in steps[1:]:  # in this process, which has torch imported
        step = command(*arguments)
        assert step.returncode == 0, step.stderr
        limits = "no out-of-distribution limits: any image is classified: see --fit"
        assert (limits in step.stderr) == (arguments[0] == "export")
    manifest = read_manifest(model)
    assert manifest.classes == ("clear", "hazy")
    assert manifest.threshold_origin["images"] == 8
    assert manifest.training["start"] == "random"
    assert manifest.training["repeated"] == {"train": 0, "val": 0}
    assert manifest.training["export"]["images"] == 32
    assert manifest.indeterminate_range is None
    figures = json.loads(report.read_text())
    assert figures["overall"]["sensitivity"]["value"] >= 0.98
    on_val = manifest.training["val"]
    assert figures["overall"]["specificity"] == on_val["specificity"]
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 32


def test_a_terminal_shows_reading_and_every_epoch(data: Path, tmp_path: Path) -> None:
    words = ("train", "--recipe", small_recipe(tmp_path), data, "-o", tmp_path / "run")
    options = ("--from-scratch", "--workers", "0", "--set", "fit.epochs=2")
    done = on_terminal([sys.executable, "-m", "deepcovid_edge", *map(str, words), *options])
    assert done.returncode == 0, done.terminal
    assert re.search(r"images to read .*?0/32", done.terminal)
    for epoch in (1, 2):
        assert re.search(rf"epoch {epoch} .*?6/6", done.terminal)
    assert re.search(r"epoch [12] .*?/6 +[0-9.]+/s +0:0", done.terminal)


def test_a_refused_run_leaves_the_other_one_s_splits_alone(data: Path, tmp_path: Path) -> None:
    recipe, run = small_recipe(tmp_path), tmp_path / "run"
    options = ("--recipe", recipe, "-o", run, "--from-scratch", "--workers", 0)
    done = train(data, *options, "--set", "fit.epochs=1")
    assert done.returncode == 0, done.stderr
    splits = (run / "splits.csv").read_bytes()
    other = tmp_path / "other"
    shutil.copytree(data, other)
    next((other / "train/hazy").iterdir()).unlink()
    refused = train(other, *options, "--set", "fit.epochs=1", "--resume")
    assert refused.returncode == 2
    assert "made of other images" in refused.stderr
    refused = train(other, *options, "--find-lr")
    assert refused.returncode == 2
    assert "holds a run already: choose another with -o" in refused.stderr
    assert (run / "splits.csv").read_bytes() == splits
    checkpoint = (run / "checkpoint.pt").read_bytes()
    (run / "state.pt").unlink()
    for more in ((), ("--resume",), ("--find-lr",)):
        refused = train(data, *options, *more)
        assert refused.returncode == 2
        assert "holds checkpoint.pt of a run without its state.pt" in refused.stderr
    assert (run / "checkpoint.pt").read_bytes() == checkpoint
    assert train(data, *options, "--check-data").returncode == 0


def test_a_run_writes_over_nothing_that_it_reads(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    recipe = small_recipe(tmp_path)
    listed = run / "splits.csv"
    rows = [f"{path},{path.parts[-2]},{path.parts[-3]}" for path in sorted(data.rglob("*.png"))]
    listed.write_text("\n".join(["path,label,split", *rows]) + "\n")
    before = listed.read_bytes()
    for more in ((), ("--find-lr",)):
        refused = train(listed, "--recipe", recipe, "-o", run, "--from-scratch", *more)
        assert refused.returncode == 1
        assert "splits.csv: is what is read, and would be lost" in refused.stderr
    assert listed.read_bytes() == before


def test_export_classifies_only_images_that_the_network_knows(data: Path, tmp_path: Path) -> None:
    recipe, run = small_recipe(tmp_path), tmp_path / "run"
    options = ("--recipe", recipe, "-o", run, "--from-scratch", "--workers", 0)
    done = train(data, *options, "--set", "fit.epochs=1")
    assert done.returncode == 0, done.stderr
    more = tmp_path / "more"
    shutil.copytree(data, more)
    (more / "val/clear").rename(more / "val/clear_as_well")
    shutil.copytree(data / "val/clear", more / "val/clear")
    model = tmp_path / "small.onnx"
    done = command("export", run / "checkpoint.pt", "--check", more, "-o", model)
    assert done.returncode == 0, done.stderr
    assert read_manifest(model).training["shortcuts"]["images"] == 8


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_bit_for_bit_as_an_unkilled_one(
    data: Path, tmp_path: Path
) -> None:
    """Killed at random steps, while the state is written, before it is in place, and after."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL.format(architecture="squeezenet1_1") + "clip = 1.0\n")  # has dropout
    draw = random.Random()
    deaths = [draw.randint(1, 6), "torn", draw.randint(1, 12), "unrenamed", "saved"]
    draw.shuffle(deaths)
    driver = Path(__file__).with_name("killed_training.py")

    def run(folder: Path, *killed: object) -> None:
        line = [sys.executable, driver, recipe, data, folder, *killed]
        done = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, f"{deaths}: {done.stdout} {done.stderr}"

    run(tmp_path / "whole")
    run(tmp_path / "killed", *deaths)
    expected, got = (weights_of(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert [*expected] == [*got]
    for name, value in expected.items():
        assert torch.equal(value, got[name]), f"{deaths}: {name}"
    manifests = [
        load_checkpoint(tmp_path / name / "checkpoint.pt")[1] for name in ("whole", "killed")
    ]
    assert manifests[0] == manifests[1]
    histories = [
        [
            {**epoch, "seconds": 0}
            for epoch in json.loads((tmp_path / name / "history.json").read_text())
        ]
        for name in ("whole", "killed")
    ]
    assert histories[0] == histories[1]


def test_resume_refuses_the_state_of_another_recipe(data: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run = tmp_path / "run"
    options = ["--from-scratch", "--workers", 0, "--epochs", 1]
    assert train("--recipe", recipe, data, "-o", run, *options).returncode == 0
    again = train("--recipe", recipe, data, "-o", run, *options)
    assert again.returncode == 2
    assert "add --resume" in again.stderr
    other = train("--recipe", recipe, data, "-o", run, *options, "--seed", 9, "--resume")
    assert other.returncode == 2
    assert "made by another recipe" in other.stderr


@pytest.mark.parametrize(
    "architecture", ["squeezenet1_1", pytest.param("resnet18", marks=pytest.mark.slow)]
)
def test_exported_file_keeps_the_contract_and_agrees_with_torch(
    architecture: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = build_network(architecture, 2).eval()
    manifest = ModelManifest("net", architecture, ("non", "covid"), "covid", 0.5)
    save_checkpoint(network, manifest, tmp_path / "checkpoint.pt")
    images = np.random.default_rng(0).integers(0, 256, (64, 224, 224), dtype=np.uint8)
    output = tmp_path / "net.onnx"
    parity = export_checkpoint(tmp_path / "checkpoint.pt", output, images)
    assert parity.images == 64
    assert parity.max_logit_difference <= 1e-4
    model = onnx.load(output)
    assert model.ir_version <= MAX_IR_VERSION
    assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
    tensors = [
        (value.name, value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim))
        for value in (*model.graph.input, *model.graph.output)
    ]
    uint8, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    assert tensors == [
        ("images", uint8, 3),
        ("logits", float32, 2),
        ("activation_maps", float32, 4),
    ]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert not [item for item in model.graph.initializer if item.external_data]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "net.onnx"]
    content = output.read_bytes()
    for trace in (b"site-packages", b".py", str(tmp_path).encode(), b"stack_trace"):
        assert trace not in content


def test_mean_of_the_activation_maps_is_the_logit() -> None:
    images = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8)
    for architecture in ("squeezenet1_1", "resnet18"):
        logits, maps = build_network(architecture, 3).eval()(images)
        assert maps.shape[:2] == (3, 3)
        torch.testing.assert_close(maps.mean(dim=(2, 3)), logits)


def test_resnet18_is_torchvisions_own_on_grey_images(tmp_path: Path) -> None:
    """Folded ImageNet weights give torchvision's features, away from the padded border."""
    from deepcovid_export.networks import IMAGENET_MEAN, IMAGENET_STD, torchvision_models

    torch.manual_seed(0)
    for architecture in ("squeezenet1_1", "resnet18"):
        reference = torchvision_models().get_model(architecture, num_classes=1000).eval()
        torch.save(reference.state_dict(), tmp_path / "weights.pth")
        network = build_network(architecture, 2).eval()
        assert load_imagenet(network, architecture, tmp_path / "weights.pth") == "weights.pth"
        image = torch.randint(0, 256, (1, 224, 224), dtype=torch.uint8)
        rgb = image.repeat(3, 1, 1).float()[None] / 255
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
        features: Any = network.features
        if architecture == "squeezenet1_1":
            first, ours = reference.features[0], features[0]
        else:
            first, ours = reference.conv1, features.conv1
        normalised = (image.float()[None] / 255 - sum(IMAGENET_MEAN) / 3) / (sum(IMAGENET_STD) / 3)
        expected, got = first((rgb - mean) / std), ours(normalised)
        inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
        difference = (expected[inner] - got[inner]).mean(dim=(2, 3), keepdim=True)
        # Without a bias (ResNet) a constant a channel is left to the batch normalisation.
        constant = difference if ours.bias is None else 0
        torch.testing.assert_close(expected[inner] - constant, got[inner], atol=1e-4, rtol=1e-4)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    from deepcovid_export.networks import torchvision_models

    torch.save(torchvision_models().resnet18().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(DataError, match="expected squeezenet1_1 weights"):
        load_imagenet(build_network("squeezenet1_1", 2), "squeezenet1_1", tmp_path / "weights.pth")


def test_a_pickle_of_code_is_refused_unread(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"format": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ModelFileError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_training_images_differ_by_epoch_and_validation_images_do_not(
    data: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(str(small_recipe(tmp_path)))
    images = load_dataset(data, split="train")
    changed, plain = (ImageDataset(images, recipe, training=flag) for flag in (True, False))
    first = changed[0][0]
    assert torch.equal(first, changed[0][0])
    changed.epoch = 1
    assert not torch.equal(first, changed[0][0])
    expected = prepare(read_radiograph(images[0].path), recipe.input)
    assert np.array_equal(plain[0][0].numpy(), expected)


def test_broken_images_and_unknown_labels_are_excluded_and_named(
    data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "train/clear/broken.png").write_text("no image")
    (copy / "train/fracture").mkdir()
    shutil.copy(copy / "train/clear/00.png", copy / "train/fracture/00.png")
    (copy / "test/clear").mkdir(parents=True)
    small = np.asarray(cv2.resize(drawn_phantom(20), (160, 160)), np.uint8)
    save_phantom(small, copy / "test/clear/20.png")
    images = training_data(copy, load_recipe(str(small_recipe(tmp_path))))
    assert len(images.train) == 24
    reasons = sorted(images.excluded)
    assert reasons[0].startswith("E_NOT_IMAGE")
    assert "broken.png" in reasons[0]
    assert reasons[1:] == ["label fracture is in no class of the recipe", "split test"]


def test_a_class_without_images_and_a_patient_in_two_splits_are_named(
    data: Path, tmp_path: Path
) -> None:
    recipe: Recipe = load_recipe(str(small_recipe(tmp_path)))
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    shutil.rmtree(copy / "val/hazy")
    with pytest.raises(DataError, match="class 'hazy' has no image in split 'val'"):
        training_data(copy, recipe)
    rows = ["path,label,split,patient"]
    for split in ("train", "val"):
        rows += [f"{split}/{label}/03.png,{label},{split},p7" for label in ("clear", "hazy")]
    for label in ("clear", "hazy"):
        shutil.copytree(data / "val" / label, copy / "val" / label, dirs_exist_ok=True)
        shutil.copy(data / f"val/{label}/03.png", copy / f"train/{label}/03.png")
    (copy / "manifest.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError, match="patient p7 is in train and in val"):
        training_data(copy, recipe)


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA: its absence cannot show")
    with pytest.raises(UsageError, match="torch sees no CUDA device"):
        RunSettings(tmp_path, device="cuda")
