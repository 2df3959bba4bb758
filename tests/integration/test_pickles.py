"""Networks of the published project become models: alike to the logit, and without being run."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the workstation side needs extra export")

from commands import Done, command
from torch import Tensor, nn

from deepcovid_edge.backends import load_backend
from deepcovid_edge.errors import DeepCovidEdgeError, ModelFileError, NotThereError, UsageError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import ModelManifest, ResizeRule, read_manifest
from deepcovid_edge.models.graph.tensorrt_rules import check_typed
from deepcovid_export.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_network,
    torchvision_models,
)
from deepcovid_export.networks.checkpoint import save_checkpoint
from deepcovid_export.networks.published.load import PublishedTerms, load_published

ARCHITECTURES = ("squeezenet1_0", "squeezenet1_1", "resnet18", "resnet50", "densenet121")
IMAGES = torch.randint(
    0, 256, (3, 224, 224), generator=torch.Generator().manual_seed(7), dtype=torch.uint8
)
SMALL = IMAGES[:, :96, :96]


def published_network(architecture: str, classes: int = 2) -> nn.Module:
    """As the published project makes it: ImageNet's layers, and a last one for its classes."""
    torch.manual_seed(0)
    network: Any = torchvision_models().get_model(architecture)
    if architecture.startswith("squeezenet"):
        network.classifier[1] = nn.Conv2d(512, classes, kernel_size=(1, 1), stride=(1, 1))
    elif architecture == "densenet121":
        network.classifier = nn.Linear(network.classifier.in_features, classes)
    else:
        network.fc = nn.Linear(network.fc.in_features, classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    published_logits(network.train(), SMALL)  # running statistics as of a trained one
    trained: nn.Module = network.eval()
    return trained


def published_logits(network: nn.Module, images: Tensor) -> Tensor:
    """As the published scripts feed it: grey repeated as RGB, 0 to 1, ImageNet's normalisation."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        logits: Tensor = network((images[:, None].expand(-1, 3, -1, -1) / 255 - mean) / std)
    return logits


def export(*arguments: object) -> Done:
    return command("export", *arguments)


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    network = published_network("resnet18")
    path = tmp_path_factory.mktemp("published") / "covid_resnet18_epoch2.pt"
    torch.save(network, path)
    return network, path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pickled_network_gives_the_published_logits(architecture: str, tmp_path: Path) -> None:
    network = published_network(architecture)
    torch.save(network, tmp_path / "model.pth")
    ours, manifest = load_published(tmp_path / "model.pth", PublishedTerms())
    with torch.inference_mode():
        logits, maps = ours(SMALL)
    torch.testing.assert_close(logits, published_logits(network, SMALL), atol=1e-4, rtol=0)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), logits)
    assert manifest.architecture == architecture
    if architecture.startswith("squeezenet"):  # the published ReLU behind the last convolution
        assert maps.min() == 0


@pytest.mark.parametrize(
    ("architecture", "threshold"),
    [("squeezenet1_0", 0.2), pytest.param("resnet18", None, marks=pytest.mark.slow)],
)
def test_exported_pickle_gives_the_published_logits_and_says_where_it_came_from(
    architecture: str, threshold: float | None, tmp_path: Path
) -> None:
    network = published_network(architecture)
    path, output = tmp_path / "old.pth", tmp_path / "model.onnx"
    torch.save(network, path)
    done = export(path, "-o", output, *(["--threshold", threshold] if threshold else []))
    assert done.returncode == 0, done.stderr
    assert f"pickle old.pth, trained elsewhere: taken for {architecture}" in done.stderr
    with load_backend(output) as backend:
        seen = backend.infer(np.asarray(IMAGES)).logits
    expected = published_logits(network, IMAGES).numpy()
    np.testing.assert_allclose(seen, expected, atol=1e-4, rtol=0)
    check_typed(output)
    manifest = read_manifest(output)
    assert (manifest.classes, manifest.positive_class) == (("covid", "non"), "covid")
    assert manifest.threshold == (threshold or 0.5)
    assert "not chosen on data" in manifest.threshold_origin["rule"]
    warned = "the threshold is 0.5, which was not chosen on any image" in done.stderr
    assert warned == (threshold is None)
    assert manifest.parent_sha256 == file_sha256(path)
    assert manifest.training["start"] == "whole-module pickle old.pth, trained elsewhere"
    assert manifest.training["published"]["max_logit_difference"] <= 1e-4
    assert (manifest.input.height, manifest.input.resize) == (224, ResizeRule.CENTRE_CROP)


@pytest.mark.parametrize("wrapped", ["bare", "state_dict", "module."])
def test_a_state_dict_is_taken_like_a_pickle(
    resnet18: tuple[nn.Module, Path], tmp_path: Path, wrapped: str
) -> None:
    network, _ = resnet18
    state: dict[str, Any] = dict(network.state_dict())
    if wrapped == "module.":  # of a network in DataParallel
        state = {f"module.{name}": value for name, value in state.items()}
    content = {"epoch": 3, "state_dict": state} if wrapped == "state_dict" else state
    torch.save(content, tmp_path / "weights.pth")
    ours, manifest = load_published(tmp_path / "weights.pth", PublishedTerms())
    with torch.inference_mode():
        logits = ours(SMALL)[0]
    torch.testing.assert_close(logits, published_logits(network, SMALL), atol=1e-4, rtol=0)
    assert manifest.training["start"] == "state dict weights.pth, trained elsewhere"


def age(network: nn.Module) -> None:
    """Take away what torch and torchvision added to modules since 2018 and 2020."""
    newer: tuple[str, ...] = (
        "_non_persistent_buffers_set",
        "_backward_pre_hooks",
        "_is_full_backward_hook",
    )
    newer += ("_forward_hooks_with_kwargs", "_state_dict_pre_hooks", "padding_mode", "groups")
    newer += ("_reversed_padding_repeated_twice", "_norm_layer", "base_width", "dilation")
    for module in network.modules():
        for name in newer:
            if name in vars(module) and not isinstance(module, nn.Conv2d | nn.MaxPool2d):
                del vars(module)[name]
        if isinstance(module, nn.BatchNorm2d):
            del module._buffers["num_batches_tracked"]


class Backend:
    """What modules of torch before 1.3 carry: an object that is pickled as a function's result."""

    def __init__(self, getter: Callable[[], object]) -> None:
        self.getter = getter

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return self.getter, ()


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "resnet18", "densenet121"])
def test_a_pickle_of_2020_is_read(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written without zip, with source snippets, a function backend, and fewer attributes."""
    network: Any = published_network(architecture)
    expected = published_logits(network, SMALL)
    if architecture == "squeezenet1_1":
        network.classifier[3] = nn.AvgPool2d(13, stride=1)
    elif architecture == "resnet18":
        network.avgpool = nn.AvgPool2d(7, stride=1)
    age(network)
    module = types.ModuleType("torch.nn.backends.thnn")

    def _get_thnn_function_backend() -> None: ...

    _get_thnn_function_backend.__module__ = module.__name__
    _get_thnn_function_backend.__qualname__ = "_get_thnn_function_backend"
    module.__dict__["_get_thnn_function_backend"] = _get_thnn_function_backend
    for part in network.modules():
        vars(part)["_backend"] = Backend(_get_thnn_function_backend)
    with monkeypatch.context() as patch:
        for name in ("torch.nn.backends", module.__name__):
            patch.setitem(sys.modules, name, module)
        torch.save(network, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pth").read_bytes()
    assert b"class Conv2d(_ConvNd):" in content  # the snippets are there
    classes = {type(part) for part in network.modules()}
    with (
        torch.serialization.safe_globals([*classes]),
        pytest.raises(Exception, match="Only persistent_load of storage is allowed"),
    ):  # and torch alone refuses them
        torch.load(tmp_path / "old.pth", weights_only=True)
    ours, manifest = load_published(tmp_path / "old.pth", PublishedTerms())
    assert manifest.architecture == architecture
    with torch.inference_mode():
        logits = ours(SMALL)[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


class Trap:
    """Springs when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["alone", "in a network", "in a state dict"])
def test_a_pickle_with_a_trap_is_refused_and_does_not_spring(
    tmp_path: Path, where: str, zipped: bool
) -> None:
    trap, path = Trap(tmp_path / "sprung"), tmp_path / "trap.pth"
    content: Any = trap
    if where == "in a network":
        content = torchvision_models().squeezenet1_1(num_classes=2)
        content.features[3].notes = trap
    elif where == "in a state dict":
        content = {"fc.weight": torch.zeros(2, 512), "notes": trap}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = r"names (posix|nt)\.mkdir, expected the classes of torchvision's .*: it was not run"
    with pytest.raises(ModelFileError, match=message):
        load_published(path, PublishedTerms())
    assert not (tmp_path / "sprung").exists()
    if where == "in a network" and zipped:
        done = export(path, "-o", tmp_path / "model.onnx")
        assert done.returncode == 1
        assert "it was not run" in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(item.name for item in tmp_path.iterdir()) == ["trap.pth"]
    torch.load(path, weights_only=False)  # the trap is a real one
    assert (tmp_path / "sprung").exists()


def test_other_classes_are_named(tmp_path: Path) -> None:
    torch.save(torchvision_models().mobilenet_v2(num_classes=2), tmp_path / "mobile.pth")
    with pytest.raises(ModelFileError, match=r"torchvision\.models\.mobilenetv2\.MobileNetV2"):
        load_published(tmp_path / "mobile.pth", PublishedTerms())


def strided(network: Any) -> None:
    network.layer4[0].conv1.stride = (1, 1)


def without_relu(network: Any) -> None:
    network.relu = nn.Dropout()


def deeper(network: Any) -> None:
    network.layer4[0].downsample.append(nn.ReLU())


def other_eps(network: Any) -> None:
    network.bn1.eps = 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (strided, r"layer layer4\.0\.conv1: got .*stride=\(1, 1\).*, expected .*stride=\(2, 2\)"),
        (without_relu, r"layer relu: got Dropout, expected ReLU"),
        (deeper, r"layer layer4\.0\.downsample\.2: got ReLU, expected nothing"),
        (other_eps, r"layer bn1: got .*eps=0\.001"),
    ],
)
def test_a_network_that_computes_otherwise_than_its_weights_say_is_refused(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    network = torchvision_models().resnet18(num_classes=2)
    change(network)
    torch.save(network, tmp_path / "changed.pth")
    with pytest.raises(ModelFileError, match=message):
        load_published(tmp_path / "changed.pth", PublishedTerms())


def test_files_that_are_no_network_are_refused_with_their_content(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    for content, message in (
        ([1, 2], "holds a list, expected a network or its weights by name"),
        ({"fc.weight": 3}, "holds a dict"),
        ({"fc.weight": torch.zeros(2, 512)}, "weights of none of squeezenet1_0, "),
        (torchvision_models().resnet34().state_dict(), "nearest is resnet18, except for layer1.2."),
        (nn.Linear(2, 2), "weights of none of"),
    ):
        torch.save(content, path)
        with pytest.raises(ModelFileError, match=message):
            load_published(path, PublishedTerms())
    for data in (b"", b"not a pickle", b"PK\x03\x04torn", bytes(100)):
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match="not a checkpoint of deepcovid-edge, nor a"):
            load_published(path, PublishedTerms())
    with pytest.raises(NotThereError, match="no such checkpoint"):
        load_published(tmp_path / "nothing.pth", PublishedTerms())


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    state = torchvision_models().resnet18(num_classes=2).state_dict()
    state["fc.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(ModelFileError, match="logits are off by nan"):
        load_published(tmp_path / "nan.pth", PublishedTerms())


def test_classes_are_named_in_the_order_of_the_network(
    resnet18: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    _, path = resnet18
    with pytest.raises(UsageError, match="but the network has 2 outputs"):
        load_published(path, PublishedTerms(("covid", "normal", "other")))
    terms = PublishedTerms(("healthy", "ill"), positive="ill", threshold=0.3)
    manifest = load_published(path, terms)[1]
    assert (manifest.classes, manifest.positive_class) == (("healthy", "ill"), "ill")
    done = export(path, "--classes", "healthy,ill", "-o", tmp_path / "model.onnx")
    assert done.returncode == 2
    assert "--positive: got 'covid', expected one of healthy, ill" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": ("covid",)}, "--classes: got 'covid'"),
        ({"classes": ("covid", "covid")}, "two or more different names"),
        ({"classes": ("covid", "")}, "two or more different names"),
        ({"positive": "flu"}, "--positive: got 'flu', expected one of covid, non"),
        ({"threshold": 20.0}, r"--threshold: got 20\.0, expected 0 to 1"),
    ],
)
def test_terms_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DeepCovidEdgeError, match=message):
        PublishedTerms(**wrong)


def test_a_checkpoint_of_its_own_takes_no_terms(tmp_path: Path) -> None:
    manifest = ModelManifest("net", "small_cnn", ("non", "covid"), "covid", 0.4)
    save_checkpoint(build_network("small_cnn", 2), manifest, tmp_path / "checkpoint.pt")
    done = export(tmp_path / "checkpoint.pt", "--threshold", 0.3)
    assert done.returncode == 2
    assert "contains it: leave the option out" in done.stderr
