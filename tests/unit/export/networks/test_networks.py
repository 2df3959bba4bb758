"""The networks: maps and logits agree, weights fold, frozen layers stay, ONNX says the same."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the workstation side needs extra export")

import onnx
from exported_networks import exported_network, images, settled
from torch import Tensor, nn

from deepcovid_edge.errors import DataError, ModelFileError, OutputError, UsageError
from deepcovid_edge.manifest import ModelManifest
from deepcovid_edge.models import find_model
from deepcovid_edge.models.graph.tensorrt_rules import check_typed
from deepcovid_export.networks import (
    ARCHITECTURES,
    GREY_MEAN,
    GREY_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Classifier,
    build_network,
    load_imagenet,
    torchvision_models,
    train_only,
)
from deepcovid_export.networks.checkpoint import load_checkpoint, save_checkpoint
from deepcovid_export.onnx_export.to_onnx import OPSET, TOLERANCE

FROM_TORCHVISION = sorted(name for name, known in ARCHITECTURES.items() if known.head)
LAST_STAGE = {
    "squeezenet1_0": ("features.12.", "maps."),
    "squeezenet1_1": ("features.12.", "maps."),
    "resnet18": ("features.layer4.", "maps."),
    "resnet50": ("features.layer4.", "maps."),
    "densenet121": ("features.denseblock4.", "features.norm5.", "maps."),
    "small_cnn": ("features.dense1.", "features.dense2.", "maps."),
}


def torchvision_network(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    network = torchvision_models().get_model(architecture, num_classes=10)
    return settled(network, torch.randn(4, 3, 64, 64))


def save_weights(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_mean_of_the_activation_maps_is_the_logit_at_every_size(architecture: str) -> None:
    torch.manual_seed(0)
    network = build_network(architecture, 4).eval()
    sizes = (32, 512) if architecture in ("small_cnn", "squeezenet1_1") else (32, 128)
    for size in sizes:  # and 224 below, through ONNX Runtime
        with torch.inference_mode():
            logits, maps = network(images(1, size))
        assert logits.shape == (1, 4)
        assert maps.shape[:2] == (1, 4)
        torch.testing.assert_close(maps.mean(dim=(2, 3)), logits)
    assert maps.shape[2] >= size // 32


def test_the_table_of_networks_is_what_the_networks_are() -> None:
    rows = []
    for architecture in ("squeezenet1_0", "squeezenet1_1", "resnet18", "resnet50", "densenet121"):
        rows.append(row_of(architecture, 1e6, "M", ".1f"))
    rows.append(row_of("small_cnn", 1e3, "k", ".0f"))
    assert {row.split("`")[1] for row in rows} == {*ARCHITECTURES}
    text = (Path(__file__).parents[4] / "docs/training.md").read_text("utf-8")
    for row in rows:
        assert row in text


def row_of(architecture: str, unit: float, letter: str, variant: str) -> str:
    with torch.device("meta"):
        network = build_network(architecture, 2).eval()
        side = network(torch.zeros(1, 224, 224, dtype=torch.uint8))[1].shape[2]
    count = sum(parameter.numel() for parameter in network.parameters())
    return f"| `{architecture}` | {count / unit:{variant}} {letter} | {side} x {side} |"


def test_an_unknown_architecture_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"got 'vgg16', expected one of densenet121, resnet18, "):
        build_network("vgg16", 2)


def test_small_cnn_says_at_each_position_what_the_original_says_of_its_window() -> None:
    network: Any = build_network("small_cnn", 3).eval()
    layers: dict[str, Any] = dict(network.features.named_children())
    first, second = copy.deepcopy(layers["conv1"]), copy.deepcopy(layers["conv2"])
    for convolution in (first, second):
        convolution.padding = (0, 0)
    dense = [layers["dense1"], layers["dense2"], network.maps[0]]

    def original(image: Tensor) -> Tensor:
        seen = nn.functional.max_pool2d(first(image).relu(), 8)
        seen = nn.functional.max_pool2d(second(seen).relu(), 8).flatten(1)
        assert seen.shape == (1, 16)
        for layer in dense:
            seen = nn.functional.linear(seen, layer.weight[:, :, 0, 0], layer.bias)
            seen = seen.relu() if layer is not dense[-1] else seen
        return seen

    image = images(1, 224)
    normalised = (image[:, None].float() / 255 - GREY_MEAN) / GREY_STD
    with torch.inference_mode():
        assert original(normalised[:, :, :128, :128]).shape == (1, 3)
        maps = network(image)[1]
        for row, column in ((8, 8), (12, 15)):
            top, left = (8 * (place - 6) - 2 for place in (row, column))
            window = normalised[:, :, top : top + 100, left : left + 100]
            torch.testing.assert_close(maps[:, :, row, column], original(window))


@pytest.mark.parametrize("architecture", FROM_TORCHVISION)
def test_folded_imagenet_weights_see_grey_as_torchvision_sees_rgb(
    architecture: str, tmp_path: Path
) -> None:
    """Exactly for SqueezeNet; away from the border where the first convolution is padded."""
    reference: Any = torchvision_network(architecture)
    network: Any = build_network(architecture, 2).eval()
    path = save_weights(reference, tmp_path / "weights.pth")
    assert load_imagenet(network, architecture, path) == "weights.pth"
    image = images(1, 96)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    rgb = (image[:, None].expand(-1, 3, -1, -1) / 255 - mean) / std
    grey = network.normalise(image[:, None].float())
    with torch.inference_mode():
        if architecture.startswith("squeezenet"):
            expected, got = reference.features(rgb), network.features(grey)
        else:
            stem = [*getattr(reference, "features", reference).children()][:2]
            expected, got = nn.Sequential(*stem)(rgb), network.features[:2](grey)
            inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
            expected, got = expected[inner], got[inner]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_densenet_weights_under_their_old_names_are_the_same_weights(tmp_path: Path) -> None:
    """As torchvision's own file has them, which also lacks the counters of batches."""
    state = torchvision_models().densenet121(num_classes=2).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(state, tmp_path / "new.pth")
    torch.save(old, tmp_path / "old.pth")
    network = build_network("densenet121", 2)
    loaded = []
    for name in ("new.pth", "old.pth"):
        load_imagenet(network, "densenet121", tmp_path / name)
        loaded.append({key: value.clone() for key, value in network.state_dict().items()})
    for name, value in loaded[0].items():
        assert torch.equal(value, loaded[1][name]), name


def test_weights_of_a_deeper_network_are_refused(tmp_path: Path) -> None:
    """ResNet34 has every name of ResNet18, in the same shapes, and more."""
    path = save_weights(torchvision_models().resnet34(), tmp_path / "weights.pth")
    with pytest.raises(DataError, match=r"unknown weights layer1\.2\..*expected resnet18 weights"):
        load_imagenet(build_network("resnet18", 2), "resnet18", path)


def test_a_file_of_something_else_is_named_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    torch.save([1, 2], tmp_path / "numbers.pth")
    files = [find_model("squeezenet1_1"), *sorted(tmp_path.iterdir())]
    for path in files:
        with pytest.raises(DataError) as error:
            load_imagenet(build_network("resnet18", 2), "resnet18", path)
        assert str(error.value) == (
            f"{path}: not a checkpoint: expected .pth, .safetensors or a checkpoint of an earlier "
            "run"
        )
    with pytest.raises(DataError, match=r"none\.pth: cannot be read \(No such file"):
        load_imagenet(build_network("resnet18", 2), "resnet18", tmp_path / "none.pth")


@pytest.mark.parametrize("is_new", [True, False], ids=["zip", "before torch 1.6"])
def test_weights_that_are_a_whole_module_are_called_so(is_new: bool, tmp_path: Path) -> None:
    path = tmp_path / "network.pth"
    torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=is_new)
    with pytest.raises(DataError, match=r"network\.pth: holds a whole module .* state_dict\(\)"):
        load_imagenet(build_network("resnet18", 2), "resnet18", path)


def test_training_starts_from_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, fresh = build_network("small_cnn", 2), build_network("small_cnn", 4)
    manifest = ModelManifest("net", "small_cnn", ("non", "covid"), "covid", 0.5)
    save_checkpoint(trained, manifest, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match="small_cnn has no ImageNet weights: start --from-scratch"):
        load_imagenet(fresh, "small_cnn", None)
    load_imagenet(fresh, "small_cnn", tmp_path / "checkpoint.pt")
    for name, value in trained.features.state_dict().items():
        assert torch.equal(value, fresh.features.state_dict()[name]), name


def test_a_checkpoint_whose_weights_are_of_another_network_is_refused(tmp_path: Path) -> None:
    manifest = ModelManifest("net", "resnet18", ("non", "covid"), "covid", 0.5)
    save_checkpoint(build_network("small_cnn", 2), manifest, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelFileError, match="its weights do not fit resnet18"):
        load_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(
    ("name", "fails_on"), [("checkpoint.pt", "/dev/full"), ("none/checkpoint.pt", None)]
)
def test_a_checkpoint_that_cannot_be_written_is_an_error_and_leaves_nothing(
    name: str, fails_on: str | None, tmp_path: Path
) -> None:
    path = tmp_path / name
    if fails_on:
        path.with_name("checkpoint.pt.part").symlink_to(fails_on)
    manifest = ModelManifest("net", "small_cnn", ("non", "covid"), "covid", 0.5)
    with pytest.raises(OutputError, match=re.escape(f"{path}: cannot be written")):
        save_checkpoint(build_network("small_cnn", 2), manifest, path)
    assert not list(tmp_path.iterdir())


def changed_by_a_step(network: Classifier) -> set[str]:
    """Names of all parameters and buffers that one step of training changes."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    network.eval()
    network.train()
    logits, _ = network(images(4, 32))
    optimiser.zero_grad()
    loss: Any = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1]))
    loss.backward()
    optimiser.step()
    after = network.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_step_of_training_changes_the_chosen_layers_and_nothing_else(architecture: str) -> None:
    """Neither a weight nor a running statistic, though weights decay and the network trains."""
    torch.manual_seed(0)
    network = build_network(architecture, 2)
    train_only(network, "last")
    changed = changed_by_a_step(network)
    assert len(changed) == 2  # weights and bias of the class maps
    assert all(name.startswith("maps.") for name in changed)
    train_only(network, "last_stage")
    changed = changed_by_a_step(network)
    stage = LAST_STAGE[architecture]
    assert all(name.startswith(stage) for name in changed)
    assert {part for part in stage if any(name.startswith(part) for name in changed)} == {*stage}
    normalised = any(name.endswith("running_mean") for name in changed)
    assert normalised == architecture.startswith(("resnet", "densenet"))


def test_training_all_layers_sets_free_what_was_frozen() -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 2)
    train_only(network, "last")
    train_only(network, "all")
    assert changed_by_a_step(network) == {*network.state_dict()}


def test_frozen_layers_stay_frozen_in_a_copy_whose_weights_are_averaged() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    network = build_network("resnet18", 2)
    train_only(network, "last")
    average: Any = get_ema_multi_avg_fn
    averaged = AveragedModel(network, multi_avg_fn=average(0.9), use_buffers=True)
    averaged.update_parameters(network)  # the first one copies
    before = copy.deepcopy(network.features.state_dict())
    changed_by_a_step(network)
    averaged.update_parameters(network)
    averaged.train()
    copied: Any = averaged.module
    assert not copied.features.bn1.training
    for name, value in copied.features.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_layers_that_there_are_not_are_refused() -> None:
    with pytest.raises(UsageError, match="got 'first', expected last, last_stage or all"):
        train_only(build_network("small_cnn", 2), "first")


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name == "squeezenet1_0"))
        for name in sorted(ARCHITECTURES)  # test_pickles exports squeezenet1_0 by default
    ],
)
def test_onnx_runtime_computes_what_torch_computes(architecture: str) -> None:
    """Every network, in the opset and the variant that TensorRT takes, with a dynamic batch."""
    network = exported_network(architecture)
    assert network.parity.max_logit_difference <= TOLERANCE
    assert network.parity.max_map_difference <= 1e-3
    check_typed(network.path)
    model = onnx.load(network.path)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
