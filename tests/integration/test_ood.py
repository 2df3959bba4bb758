"""Out-of-distribution limits in real graphs: fitted, run by every runtime, kept by variants."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx", reason="the workstation side needs extra export")
pytest.importorskip("sklearn", reason="the workstation side needs extra export")

import onnx
from onnx import helper, numpy_helper
from toned_chests import COUNTS, SIZE, drawn, reasons, write_splits

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.openvino import is_available as has_openvino
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.backends.tensorrt.build import BuildSettings, build
from deepcovid_edge.cli.main import run
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.decision.out_of_distribution import OodLimits
from deepcovid_edge.files import file_sha256
from deepcovid_edge.heatmaps.occlusion import Occluder
from deepcovid_edge.heatmaps.windows import OcclusionSettings
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import find_model
from deepcovid_edge.models.graph.tensorrt_rules import check_typed
from deepcovid_export.decision.fit_ood import match_variant, prepare_images
from deepcovid_export.decision.ood_graph import (
    FEATURES,
    OodLayer,
    find_taps,
    put_on,
    shapes_of,
    take_off,
    with_features,
)
from deepcovid_export.onnx_export.graphs import finish, save
from deepcovid_export.onnx_export.half_weights import read_fp32
from deepcovid_export.onnx_export.session import open_session
from deepcovid_export.quantization.calibration import ImageBatches
from deepcovid_export.quantization.mixed_precision import Variant, VariantWriter

ROOT = Path(__file__).parents[2]
XRAY = Path(os.environ.get("DEEPCOVID_XRAY", ROOT.parent / "shared" / "xray"))
SHIPPED = find_model("squeezenet1_1")
TAPS = {
    SHIPPED: [(128, 27, 27), (256, 13, 13)],
    ROOT / "benchmarks/models/resnet18.onnx": [(128, 28, 28), (256, 14, 14)],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images in three splits, which do not say that they are synthetic."""
    return write_splits(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def limited(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped network with limits fitted on drawn images, as the command makes it."""
    path = tmp_path_factory.mktemp("limited") / "limited.onnx"
    assert run(["export", str(SHIPPED), "--fit", str(data), "-o", str(path)]) == 0
    return path


# Fitting -------------------------------------------------------------------------------------


def test_an_exported_file_gets_limits_and_keeps_its_weights(limited: Path, data: Path) -> None:
    before, now = read_manifest(SHIPPED), read_manifest(limited)
    assert now.parent_sha256 == file_sha256(SHIPPED)
    assert now.ood["train"]["images"] == COUNTS["train"]
    assert now.ood["val"]["images"] == COUNTS["val"]
    assert now.threshold == before.threshold
    images = np.stack(prepare_images(load_dataset(data, split="test"), now.input))
    with load_backend(SHIPPED) as old, load_backend(limited) as new:
        np.testing.assert_array_equal(old.infer(images).logits, new.infer(images).logits)


def test_radiographs_pass_and_other_pictures_are_rejected(limited: Path, tmp_path: Path) -> None:
    photographs = pytest.importorskip("skimage.data", reason="photographs are scikit-image's")
    draw = np.random.default_rng(0)
    radiographs = {f"image{seed}": drawn(seed) for seed in range(200, 216)}
    assert set(reasons(limited, radiographs, tmp_path).values()) == {None}
    others = {
        "camera": photographs.camera(),
        "coins": photographs.coins(),
        "cat": cv2.cvtColor(photographs.chelsea(), cv2.COLOR_RGB2GRAY),
        "noise": draw.integers(0, 256, SIZE).astype(np.uint8),
        "ramp": np.tile(np.linspace(10, 245, SIZE[1]), (SIZE[0], 1)).astype(np.uint8),
    }
    found = reasons(limited, others, tmp_path)
    assert set(found.values()) <= {"E_OOD", "E_ORIENT"}
    turned = {
        "left": np.rot90(drawn(300)),
        "down": np.rot90(drawn(301), 2),
        "right": np.rot90(drawn(302), 3),
        "inverted": 255 - drawn(303),
    }
    assert set(reasons(limited, turned, tmp_path).values()) == {"E_ORIENT"}


def test_commands_reject_a_photograph_and_let_it_through_where_asked(
    limited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = pytest.importorskip("skimage.data", reason="photographs are scikit-image's")
    photograph = tmp_path / "camera.png"
    cv2.imwrite(str(photograph), photographs.camera())
    maps = tmp_path / "maps"
    for verb, options in (("infer", []), ("heatmap", ["-o", str(maps), "--method", "activation"])):
        asked = [verb, str(photograph), "--model", str(limited), "--json", *options]
        assert run(asked) == 4
        record = json.loads(capsys.readouterr().out)
        assert record["reason"] in ("E_OOD", "E_ORIENT")
        assert record["probability"] is record["heatmap"] is None
    assert not list(maps.glob("*"))
    assert run(["infer", str(photograph), "--model", str(limited), "--json", "--ood", "warn"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["warnings"] == ["W_OOD"]
    assert record["decision"] is not None


def test_evaluate_measures_all_images_and_counts_those_that_infer_rejects(
    limited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        for label, image in (("covid", drawn(400 + number)), ("non", 255 - drawn(500 + number))):
            path = tmp_path / "test" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
    assert run(["evaluate", str(limited), str(tmp_path), "--split", "test", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["overall"]["images"] == 12
    unlike = figures["out_of_distribution"]
    assert (unlike["successes"], unlike["trials"]) == (6, 12)


def test_the_graph_computes_the_formula(limited: Path, data: Path) -> None:
    """Features pooled by the graph, times the weights, are what it gives; so are pooled maps."""
    bare, ood = take_off(onnx.load(limited))
    assert ood is not None
    manifest = read_manifest(limited)
    images = np.stack(prepare_images(load_dataset(data, split="test"), manifest.input))
    bare.graph.output.append(helper.make_empty_tensor_value_info(ood.tap))
    (tap,) = open_session(bare).run([ood.tap], {"images": images})
    stride, kernel = {13: (4, 5), 27: (9, 9)}[tap.shape[-1]]  # cells of five rows overlap by one
    spans = [slice(start * stride, start * stride + kernel) for start in range(3)]
    cells = [tap[:, :, rows, columns] for rows in spans for columns in spans]
    pooled = np.stack([cell.mean(axis=(2, 3)) for cell in cells], axis=2)
    expected = pooled.reshape(len(images), -1) @ ood.weight + ood.bias
    with load_backend(limited) as backend:
        found = backend.infer(images)
        maps = backend.infer(images, activation_maps=True)
    assert found.ood_scores is not None
    np.testing.assert_allclose(found.ood_scores, expected, atol=2e-4)
    assert maps.ood_scores is not None
    np.testing.assert_allclose(maps.ood_scores, expected, atol=2e-4)


def test_zero_and_one_are_the_median_and_the_99th_percentile_of_val(
    limited: Path, data: Path
) -> None:
    manifest = read_manifest(limited)
    images = np.stack(prepare_images(load_dataset(data, split="val"), manifest.input))
    with load_backend(limited) as backend:
        unlike = backend.infer(images).ood_scores
    assert unlike is not None
    np.testing.assert_allclose(np.quantile(unlike, [0.5, 0.99], axis=0).T, [[0, 1]] * 2, atol=1e-3)


def test_fitting_again_replaces_the_limits(limited: Path, data: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    assert run(["export", str(limited), "--fit", str(data), "-o", str(again)]) == 0
    first, second = take_off(onnx.load(limited))[1], take_off(onnx.load(again))[1]
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.weight, second.weight)
    known = [read_manifest(path).ood["network_parent_sha256"] for path in (limited, again)]
    shipped = read_manifest(SHIPPED)
    weights_from = shipped.ood.get("network_parent_sha256", shipped.parent_sha256)
    assert known == [weights_from] * 2


@pytest.mark.parametrize("more", [[], ["--fit", "DATA", "--half-weights"]])
def test_an_exported_file_takes_nothing_but_fit(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["export", str(SHIPPED), *more, "-o", str(tmp_path / "a.onnx")]
    assert run(asked) == 2
    assert "is exported already" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()


def test_too_few_images_fit_no_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        path = tmp_path / "few" / split / "covid" / "one.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), drawn(1))
    out = tmp_path / "a.onnx"
    assert run(["export", str(SHIPPED), "--fit", str(tmp_path / "few"), "-o", str(out)]) == 1
    assert "got 1 images of split 'train', expected at least 16" in capsys.readouterr().err


def test_a_variant_gets_no_limits_that_its_verdict_does_not_know(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The INT8 file says that `verify` found it unchanged, with the limits that it had."""
    variant, out = find_model("squeezenet1_1-int8-cpu"), tmp_path / "a.onnx"
    assert read_manifest(variant).is_verified
    assert run(["export", str(variant), "--fit", str(data), "-o", str(out)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "is int8, expected fp32: fit the file that it was made from (SHA-256 " in said
    assert said.endswith(", then quantise that")
    assert not out.exists()


# The graph -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TAPS, ids=lambda path: path.stem)
def test_taps_are_the_first_stages_an_eighth_and_a_sixteenth_as_large(path: Path) -> None:
    model, _ = take_off(onnx.load(path))
    shapes = shapes_of(model)
    assert [shapes[tap][1:] for tap in find_taps(model)] == TAPS[path]


def test_a_network_without_so_small_a_stage_is_tapped_at_its_last() -> None:
    """The maps are half as large as the image; what comes before a ReLU is no stage."""
    draw = np.random.default_rng(0)
    kernels = {"first": (5, 1, 3, 3), "last": (2, 5, 1, 1)}
    constants = [
        numpy_helper.from_array(draw.standard_normal(shape).astype(np.float32), name)
        for name, shape in kernels.items()
    ]
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    nodes = [
        helper.make_node("Cast", ["images"], ["grey"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["grey", "axis"], ["planes"]),
        helper.make_node("Conv", ["planes", "first"], ["sums"], strides=[2, 2]),
        helper.make_node("Relu", ["sums"], ["stage"]),
        helper.make_node("Conv", ["stage", "last"], ["activation_maps"]),
    ]
    images = helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["n", 64, 64])
    maps = helper.make_tensor_value_info(
        "activation_maps", onnx.TensorProto.FLOAT, ["n", 2, 31, 31]
    )
    graph = helper.make_graph(nodes, "small", [images], [maps], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert find_taps(model) == ["stage"]
    session = open_session(with_features(model, "stage"))
    (features,) = session.run([FEATURES], {"images": np.zeros((3, 64, 64), np.uint8)})
    assert features.shape == (3, 9 * 5)


@pytest.mark.parametrize("path", TAPS, ids=lambda path: path.stem)
def test_limits_that_are_taken_off_leave_the_network_as_it_was(path: Path) -> None:
    model, _ = take_off(onnx.load(path))
    tap = find_taps(model)[-1]
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((9 * TAPS[path][-1][0], 2)).astype(np.float32)
    ood = OodLayer(tap, weight, np.array([1, 2], np.float32))
    bare, found = take_off(put_on(model, ood))
    assert bare.graph == model.graph
    assert found is not None
    assert found.tap == tap
    np.testing.assert_array_equal(found.weight, weight)


def test_heat_maps_are_those_of_the_network_without_limits(limited: Path, data: Path) -> None:
    """A network is partitioned between its input and its maps: `ood_scores` is in no part."""
    settings = OcclusionSettings(window=64, stride=56)
    image = prepare_images(load_dataset(data, split="test")[:1], read_manifest(limited).input)[0]
    found = []
    for path in (SHIPPED, limited):
        with load_backend(path) as backend, Occluder(backend, settings) as occluder:
            found.append(occluder.explain(image).logit_drop)
    shipped, with_limits = found
    np.testing.assert_array_equal(shipped, with_limits)


# Runtimes and variants --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variant_named(
    limited: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """By its name: every layer quantised, calibrated on drawn images, with limits that follow."""
    folder = tmp_path_factory.mktemp("variants")
    manifest = read_manifest(limited)
    bare, ood = take_off(read_fp32("limited", limited.read_bytes()))
    assert ood is not None
    batches = ImageBatches(load_dataset(data, split="train")[:16], manifest.input)
    known = {
        "fp16": Variant("fp16"),
        "int8-tensorrt": Variant("int8", "tensorrt"),
        "int8-cpu": Variant("int8", "cpu"),
    }

    @cache
    def made(name: str) -> Path:
        lowering = VariantWriter(bare, known[name], batches)
        written = lowering.write(lowering.layers)
        model = put_on(written, match_variant(ood, bare, written, batches))
        path = folder / f"{name}.onnx"
        save(finish(model, replace(manifest, precision=known[name].precision)), path)
        return path

    return made


INT8_TENSORRT = pytest.param("int8-tensorrt", marks=pytest.mark.slow)
"""Five seconds to make; by default `int8-cpu` shows that limits follow quantised layers."""


@pytest.mark.parametrize("name", ["fp16", INT8_TENSORRT, "int8-cpu"])
def test_variants_in_lower_precision_keep_the_limits(
    name: str, limited: Path, variant_named: Callable[[str], Path], data: Path
) -> None:
    """Quantising evens channels out, also those that `ood_scores` reads; its weights follow."""
    own = read_manifest(limited)
    images = prepare_images(load_dataset(data, split="test"), own.input)
    batch = np.stack(
        [*images, *(255 - image for image in images), *(np.rot90(it) for it in images)]
    )
    with load_backend(limited) as before, load_backend(variant_named(name)) as now:
        expected, found = before.infer(batch).ood_scores, now.infer(batch).ood_scores
    ood = OodLimits.of(read_manifest(variant_named(name)))
    assert ood == OodLimits.of(own)
    assert ood is not None
    assert expected is not None
    assert found is not None
    np.testing.assert_array_equal(ood.beyond(found), ood.beyond(expected))
    share = 0.005 if name == "fp16" else 0.1
    np.testing.assert_allclose(found, expected, rtol=share, atol=3 * share)


def test_the_command_that_quantises_keeps_the_limits(
    limited: Path, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "half.onnx"
    asked = ["quantize", str(limited), "--precision", "fp16", "--calibration", str(data)]
    assert run([*asked, "--images", "16", "-o", str(path)]) == 0
    spec = read_manifest(limited).input
    images = np.stack(prepare_images(load_dataset(data, split="test"), spec))
    assert read_manifest(path).ood == read_manifest(limited).ood
    with load_backend(limited) as before, load_backend(path) as now:
        expected, found = before.infer(images).ood_scores, now.infer(images).ood_scores
    assert expected is not None
    assert found is not None
    np.testing.assert_allclose(expected, found, atol=0.02)


@pytest.mark.skipif(not has_openvino(), reason="openvino (extra openvino) is not installed")
def test_openvino_says_the_same(limited: Path, data: Path) -> None:
    spec = read_manifest(limited).input
    images = np.stack(prepare_images(load_dataset(data, split="test"), spec))
    seen: list[Any] = []
    for name in ("onnxruntime", "openvino"):
        with load_backend(limited, backend=name, settings=BackendSettings()) as backend:
            seen.append(backend.infer(images).ood_scores)
    by_onnxruntime, by_openvino = seen
    np.testing.assert_allclose(by_onnxruntime, by_openvino, atol=1e-3)


@pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx (extra rtx) is not installed"
)
@pytest.mark.parametrize("name", ["fp32", "fp16", INT8_TENSORRT])
def test_engines_are_built_with_the_limits(
    name: str,
    limited: Path,
    variant_named: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEEPCOVID_EDGE_CACHE", str(tmp_path))
    model = limited if name == "fp32" else variant_named(name)
    check_typed(model)
    engine, facts = build(model, BuildSettings(target="rtx:sm86"))
    assert facts.manifest.ood == read_manifest(limited).ood
    assert b"ood_scores" in engine.read_bytes()


# Real images ----------------------------------------------------------------------------------

real_images = pytest.mark.skipif(
    not (XRAY / "manifest.csv").is_file(),
    reason="no real X-rays: ../shared/xray is missing (DEEPCOVID_XRAY overrides)",
)
with_ood = pytest.mark.skipif(
    not read_manifest(SHIPPED).ood,
    reason="the shipped model has no limits yet: `deepcovid-edge export MODEL --fit DATA`",
)


@real_images
@with_ood
@pytest.mark.parametrize("model", ["squeezenet1_1", "squeezenet1_1-int8-cpu"])
def test_the_shipped_limits_keep_their_promise_on_images_of_test(model: str) -> None:
    path = find_model(model)
    manifest = read_manifest(path)
    ood = OodLimits.of(manifest)
    assert ood is not None
    images = np.stack(prepare_images(load_dataset(XRAY, split="test")[::4], manifest.input))
    with load_backend(path) as backend:
        shares = [
            ood.beyond(np.asarray(backend.infer(np.ascontiguousarray(batch)).ood_scores)).mean()
            for batch in (
                images,
                np.rot90(images, 1, (1, 2)),
                np.rot90(images, 2, (1, 2)),
                255 - images,
            )
        ]
    assert shares[0] <= 0.02
    assert min(shares[1:]) >= 0.95
