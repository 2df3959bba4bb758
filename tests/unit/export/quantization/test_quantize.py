"""FP32 to FP16 and INT8: what the files hold, which images calibrate, and when nothing is written.

The network is made here: a fire block and a residual block, its head fitted to synthetic images.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="the workstation side needs extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="the workstation side needs extra export")

from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from tiny_network import (
    VARIANTS,
    Made,
    fitted,
    graph,
    pixels,
    quantize_command,
    run,
    saved,
    weights,
)

from deepcovid_edge.backends import find_variant, load_backend
from deepcovid_edge.datasets.dataset import dataset_sha256, load_dataset
from deepcovid_edge.errors import ModelFileError, UsageError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import METADATA_KEY, read_manifest
from deepcovid_edge.models.graph.tensorrt_rules import check_typed
from deepcovid_edge.validation.verify import CHANGED, verify
from deepcovid_export.quantization import quantize as quantize_module
from deepcovid_export.quantization.calibration import choose_images
from deepcovid_export.quantization.int8_graph import residual_adds
from deepcovid_export.quantization.mixed_precision import Variant
from deepcovid_export.quantization.quantize import MAX_ERROR, QuantizeSettings, quantize
from deepcovid_export.quantization.sensitivity import Probe

# What the files hold -------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_file_keeps_the_contract(variant: str, made: dict[str, Made], parent: Path) -> None:
    model, path = made[variant].model, made[variant].path
    assert model.ir_version <= 10
    expected = 18 if variant == "fp16" else 19
    assert [(item.domain, item.version) for item in model.opset_import] == [("", expected)]
    tensors = [
        (item.name, item.type.tensor_type.elem_type)
        for item in (*model.graph.input, *model.graph.output)
    ]
    assert tensors == [
        ("images", TensorProto.UINT8),
        ("logits", TensorProto.FLOAT),
        ("activation_maps", TensorProto.FLOAT),
    ]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [item.key for item in model.metadata_props] == [METADATA_KEY]
    assert not any(item.external_data for item in model.graph.initializer)
    assert not any(part.metadata_props for part in (*model.graph.node, *model.graph.initializer))
    content = path.read_bytes()
    for trace in (b"site-packages", b".py", str(parent.parent).encode(), b"/tmp"):
        assert trace not in content
    assert not [file for file in path.parent.iterdir() if file.suffix != ".onnx"]
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_manifest_says_what_was_done(
    variant: str, made: dict[str, Made], parent: Path, data: Path
) -> None:
    manifest, before = made[variant].manifest, read_manifest(parent)
    assert manifest.name == f"tiny-{variant}"
    assert manifest.precision == variant.partition("-")[0]
    assert manifest.parent_sha256 == file_sha256(parent)
    for name in (
        "classes",
        "positive_class",
        "threshold",
        "indeterminate_range",
        "input",
        "training",
    ):
        assert getattr(manifest, name) == getattr(before, name)
    facts = manifest.quantization
    assert facts["excluded"] == []
    assert facts["equivalence"]["images"] == 16
    assert facts["equivalence"]["verdict"] == "insufficient"  # 8 of a class show no change of 1 %
    if variant == "fp16":
        assert manifest.equivalence["max_flips"] == 0
        assert manifest.equivalence["max_auc_change"] == 0.001
        assert "calibration" not in facts
        return
    assert manifest.equivalence["max_flips"] == 0.01
    chosen = choose_images(data, before, 128)
    assert facts["calibration"] == {
        "images": 24,
        "by_class": {"clear": 12, "hazy": 12},
        "split": "train",
        "data_sha256": dataset_sha256(chosen.images),
        "not_assessed": 0,
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_stay_near_those_of_the_parent(
    variant: str, made: dict[str, Made], parent: Path, data: Path
) -> None:
    images = pixels(load_dataset(data, split="val"))
    with load_backend(parent, backend="onnxruntime") as before:
        expected = before.infer(images, activation_maps=True)
    with load_backend(made[variant].path, backend="onnxruntime") as now:
        seen = now.infer(images, activation_maps=True)
    spread = np.std(expected.logits)
    error = np.sqrt(np.mean((seen.logits - expected.logits) ** 2)) / spread
    assert error <= (0.002 if variant == "fp16" else 2 * MAX_ERROR)
    assert error > 0  # it is another precision
    assert seen.activation_maps is not None
    assert np.allclose(seen.activation_maps.mean(axis=(2, 3)), seen.logits, atol=1e-4)


def test_fp16_halves_the_weights_and_casts_three_times(made: dict[str, Made]) -> None:
    model = made["fp16"].model
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    assert {kinds[name] for name in kinds if name.endswith(".weight")} == {TensorProto.FLOAT16}
    assert kinds["scale"] == TensorProto.FLOAT  # normalisation stays FP32
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == 3  # uint8 to FP32, to FP16, and back
    outputs = {node.output[0]: node.op_type for node in model.graph.node}
    assert outputs["activation_maps"] == "Cast"
    assert outputs["logits"] == "ReduceMean"


def test_int8_for_tensorrt_is_symmetric_and_has_float_biases(made: dict[str, Made]) -> None:
    model = made["int8-tensorrt"].model
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = stored[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type == "Conv":
            assert stored[node.input[2]].dtype == np.float32
    scales = [value for name, value in stored.items() if name.endswith(".weight_scale")]
    assert len(scales) == 8
    assert all(value.ndim == 1 for value in scales)  # per channel


def test_int8_for_cpus_has_uint8_activations_and_integer_biases(made: dict[str, Made]) -> None:
    model = made["int8-cpu"].model
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    kinds = {
        stored[node.input[2]].dtype.name
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert kinds == {"uint8"}
    biases = [value for name, value in stored.items() if name.endswith(".bias_quantized")]
    assert len(biases) == 6
    assert {value.dtype.name for value in biases} == {"int32"}
    assert stored["maps.weight"].dtype == np.float32
    assert made["int8-cpu"].manifest.quantization["never_quantised"] == ["first", "maps"]
    scales = {name: stored[f"{name}_scale"] for name in ("cat", "expand1_relu", "expand3_relu")}
    assert len({float(value) for value in scales.values()}) == 1  # Concat only moves bytes


def test_same_inputs_give_the_same_bytes(
    made: dict[str, Made], parent: Path, data: Path, tmp_path: Path
) -> None:
    for seed, variant in enumerate(("int8-tensorrt", "int8-cpu"), start=1):
        _, target = variant.split("-")
        output = tmp_path / f"{variant}.onnx"
        options = ["--precision", "int8", "--for", target, "--calibration", data, "-o", output]
        done = quantize_command(parent, *options, seed=str(seed))
        assert done.returncode == 0, done.stderr
        assert output.read_bytes() == made[variant].path.read_bytes()


# What TensorRT takes -------------------------------------------------------------------------


class Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._batches = iter([{"images": images}])

    def get_next(self) -> Any:
        return next(self._batches, None)


@pytest.mark.parametrize("variant", ["fp16", "int8-tensorrt"])
def test_what_is_made_for_tensorrt_is_taken(variant: str, made: dict[str, Made]) -> None:
    check_typed(made[variant].path)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"activation_type": QuantType.QInt8, "symmetric": True}, "a bias in INT32"),
        ({"activation_type": QuantType.QUInt8, "symmetric": False}, "zero point|bias in INT32"),
        ({"activation_type": QuantType.QUInt8, "bias": False}, "a zero point"),
        ({"activation_type": QuantType.QInt8, "bias": False}, "a zero point"),
        (
            {
                "format": QuantFormat.QOperator,
                "activation_type": QuantType.QInt8,
                "symmetric": True,
            },
            "integer operators",
        ),
    ],
)
def test_onnxruntimes_own_defaults_are_refused_with_the_fix(
    options: dict[str, Any], why: str, parent: Path, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "default.onnx"
    quantize_static(
        str(parent),
        str(path),
        Images(pixels(load_dataset(data, split="train")[:8])),
        quant_format=options.get("format", QuantFormat.QDQ),
        activation_type=options.get("activation_type", QuantType.QUInt8),
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Add"],
        extra_options={
            "ActivationSymmetric": options.get("symmetric", False),
            "QuantizeBias": options.get("bias", True),
        },
    )
    with pytest.raises(ModelFileError, match=why) as refusal:
        check_typed(path)
    assert "deepcovid-edge quantize --for tensorrt" in str(refusal.value)


def test_the_cpu_variant_is_not_for_tensorrt(made: dict[str, Made]) -> None:
    with pytest.raises(ModelFileError, match=r"zero point|INT32"):
        check_typed(made["int8-cpu"].path)


def test_residual_additions_are_fused_or_left_in_float(
    made: dict[str, Made], parent: Path, data: Path, tmp_path: Path
) -> None:
    assert residual_adds(onnx.load(parent)) == {"node_sum": ("node_main2", 1)}
    facts = made["int8-tensorrt"].manifest.quantization["adds"]
    assert facts["chosen"] == "fused"
    assert facts["measured"]["fused"]["relative_rmse"] > 0
    # The other way is measured only where it could turn fewer decisions.
    assert set(facts["measured"]) == {"fused"}
    assert facts["measured"]["fused"]["flips"] == 0
    for adds, expected in (("fused", "DequantizeLinear"), ("float", "Conv")):
        path = tmp_path / f"{adds}.onnx"
        quantize(parent, data, QuantizeSettings(adds=adds), output=path)
        model = onnx.load(path)
        makers = {name: node for node in model.graph.node for name in node.output}
        (addition,) = (node for node in model.graph.node if node.op_type == "Add")
        main, shortcut = (makers[name].op_type for name in addition.input)
        assert (main, shortcut) == ("Conv", expected)
        check_typed(path)


def test_the_better_way_of_additions_is_not_verified_again(
    parent: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = []

    def noted(*arguments: Any, **options: Any) -> Any:
        reports.append(verify(*arguments, **options))
        return reports[-1]

    monkeypatch.setattr("deepcovid_export.quantization.quantize.verify", noted)
    settings = QuantizeSettings(VARIANTS["int8-tensorrt"])
    done = quantize(parent, data, settings, output=tmp_path / "done.onnx")
    assert len(reports) == len(done.manifest.quantization["adds"]["measured"]) == 1
    assert done.report == reports[0].as_dict()


# When a layer costs too much, and when nothing is written ------------------------------------


@pytest.mark.parametrize("variant", ["int8-tensorrt", "int8-cpu"])
def test_costly_layers_are_found_excluded_and_listed(
    variant: str, data: Path, tmp_path: Path
) -> None:
    spoilt = saved(tmp_path / "spoilt.onnx", graph(fitted(weights(spoilt=("squeeze",)), data)))
    settings = QuantizeSettings(VARIANTS[variant])
    done = quantize(spoilt, data, settings, output=tmp_path / "done.onnx")
    assert done.output is not None
    assert next(iter(done.sensitivity)) == "squeeze"
    assert done.sensitivity["squeeze"] > 10 * MAX_ERROR
    facts = done.manifest.quantization
    assert facts["excluded"][-1] == "squeeze"
    assert facts["relative_rmse"] <= MAX_ERROR
    model = onnx.load(done.output)
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    rest = TensorProto.FLOAT16 if variant == "int8-tensorrt" else TensorProto.FLOAT
    assert kinds["squeeze.weight"] == rest
    assert kinds["main1.weight_quantized"] == TensorProto.INT8


def test_of_the_costliest_layers_the_one_that_helps_most_is_excluded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though another seems to cost more when it is quantised alone."""

    def misleading(layers: Sequence[str], *_: object) -> dict[str, float]:
        first = ["main1", "squeeze"]
        return dict.fromkeys([*first, *(name for name in layers if name not in first)], 1.0)

    monkeypatch.setattr("deepcovid_export.quantization.quantize.layer_errors", misleading)
    spoilt = saved(tmp_path / "spoilt.onnx", graph(fitted(weights(spoilt=("squeeze",)), data)))
    settings = QuantizeSettings(VARIANTS["int8-cpu"])
    done = quantize(spoilt, data, settings, output=tmp_path / "done.onnx")
    assert done.manifest.quantization["excluded"] == ["squeeze"]


@pytest.mark.parametrize("helps", ["squeeze", None])
def test_a_layer_that_does_not_help_is_not_excluded(
    helps: str | None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit of the weights undid more than INT8 cost."""

    def error(_: Probe, model: ModelProto) -> float:
        names = {item.name for item in model.graph.initializer}
        return 0.01 if f"{helps}.weight" in names else 0.03

    def last(layers: Sequence[str], *_: object) -> dict[str, float]:
        return dict.fromkeys(sorted(layers, key=lambda name: name == "squeeze"), 1.0)

    monkeypatch.setattr(Probe, "error", error)
    monkeypatch.setattr("deepcovid_export.quantization.quantize.layer_errors", last)
    path = saved(tmp_path / "model.onnx", graph(fitted(weights(), data)))
    done = quantize(
        path, data, QuantizeSettings(VARIANTS["int8-cpu"]), output=tmp_path / "done.onnx"
    )
    assert done.manifest.quantization["excluded"] == ([helps] if helps else [])


def test_while_the_check_fails_every_layer_is_tried(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer that helps is the last, behind those that are tried while the check passes."""

    def error(_: Probe, model: ModelProto) -> float:
        return 0.01 if "squeeze.weight" in {item.name for item in model.graph.initializer} else 0.03

    def last(layers: Sequence[str], *_: object) -> dict[str, float]:
        return dict.fromkeys(sorted(layers, key=lambda name: name == "squeeze"), 1.0)

    def checked(work: Any, *others: Any) -> dict[str, Any]:
        report: dict[str, Any] = verified(work, *others)
        return report if "squeeze" in work.excluded else {**report, "verdict": "changed"}

    verified = quantize_module._verify
    monkeypatch.setattr(Probe, "error", error)
    changed = {"TRIED": 1, "MOST_TRIED": 1, "layer_errors": last, "_verify": checked}
    for name, value in changed.items():
        monkeypatch.setattr(quantize_module, name, value)
    path = saved(tmp_path / "model.onnx", graph(fitted(weights(), data)))
    done = quantize(
        path, data, QuantizeSettings(VARIANTS["int8-cpu"]), output=tmp_path / "done.onnx"
    )
    assert done.output is not None
    assert done.manifest.quantization["excluded"] == ["squeeze"]


def test_a_layer_excluded_for_a_cpu_is_not_quantised_by_onnxruntime_behind_our_back(
    data: Path, tmp_path: Path
) -> None:
    spoilt = saved(tmp_path / "spoilt.onnx", graph(fitted(weights(spoilt=("main1",)), data)))
    settings = QuantizeSettings(VARIANTS["int8-cpu"])
    done = quantize(spoilt, data, settings, output=tmp_path / "done.onnx")
    assert done.manifest.quantization["excluded"] == ["main1"]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(done.output), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    floats = {node.input[1] for node in nodes if node.op_type in ("Conv", "FusedConv")}
    assert floats == {"first.weight", "main1.weight", "maps.weight"}
    assert sum(node.op_type == "QLinearConv" for node in nodes) == 5


def test_rest_in_fp32_keeps_excluded_layers_in_fp32(data: Path, tmp_path: Path) -> None:
    spoilt = saved(tmp_path / "spoilt.onnx", graph(fitted(weights(spoilt=("squeeze",)), data)))
    settings = QuantizeSettings(Variant("int8", "tensorrt", "fp32"))
    done = quantize(spoilt, data, settings, output=tmp_path / "done.onnx")
    kinds = {item.data_type for item in onnx.load(done.output).graph.initializer}
    assert TensorProto.FLOAT16 not in kinds
    assert done.manifest.quantization["rest"] == "fp32"


def test_exit_code_3_and_no_file_if_the_equivalence_check_fails(data: Path, tmp_path: Path) -> None:
    arrays = fitted(weights(spoilt=("squeeze", "main1")), data)
    spoilt = saved(tmp_path / "spoilt.onnx", graph(arrays))
    options = ["--precision", "int8", "--calibration", data, "--max-excluded", 0]
    done = quantize_command(spoilt, *options, "--sensitivity", "--json", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "not written: the equivalence check fails" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["spoilt.onnx"]
    outcome = json.loads(done.stdout)
    assert outcome["output"] is None
    assert outcome["report"]["verdict"] == CHANGED
    assert set(list(outcome["sensitivity"])[:2]) == {"squeeze", "main1"}
    assert "%  squeeze" in done.stderr


def test_one_flip_is_too_many_for_fp16(data: Path, parent: Path, tmp_path: Path) -> None:
    """The threshold is put where FP16 moves an image across it, and no layer may be excluded."""
    images = pixels(load_dataset(data, split="val"))
    half = quantize(parent, data, QuantizeSettings(Variant("fp16")), output=tmp_path / "h.onnx")
    scores = [
        one[:, 1] - one[:, 0] for one in (run(onnx.load(p), images) for p in (parent, half.output))
    ]
    place = int(np.argmax(np.abs(scores[1] - scores[0])))
    between = 1 / (1 + np.exp(-(scores[0][place] + scores[1][place]) / 2))
    manifest = replace(read_manifest(parent), threshold=float(between), indeterminate_range=None)
    edge = saved(tmp_path / "edge.onnx", onnx.load(parent), manifest)
    settings = QuantizeSettings(Variant("fp16"), max_excluded=0)
    done = quantize(edge, data, settings, output=tmp_path / "no.onnx")
    assert done.output is None
    assert done.report["flips"]["count"] >= 1
    assert not (tmp_path / "no.onnx").exists()
    tried = quantize(edge, data, QuantizeSettings(Variant("fp16")), output=tmp_path / "yes.onnx")
    assert tried.manifest.quantization["excluded"]  # the equivalence check alone asked for it
    assert (tried.output is not None) == (tried.report["flips"]["count"] == 0)


def test_a_variant_is_named_after_the_file_beside_which_infer_looks_for_it(
    data: Path, parent: Path, tmp_path: Path
) -> None:
    first = Path(shutil.copy(parent, tmp_path / "first.onnx"))
    options = ("--precision", "fp16", "--calibration", data)
    done = quantize_command("first.onnx", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "first-fp16.onnx\n"), done.stderr
    assert find_variant(first, "fp16") == tmp_path / "first-fp16.onnx"


# What is refused -----------------------------------------------------------------------------


def test_models_that_are_not_fp32_are_refused(
    made: dict[str, Made], parent: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match="is int8 already, expected fp32"):
        quantize(made["int8-cpu"].path, data)
    for variant, what in (("fp16", "FP16"), ("int8-cpu", "Q/DQ")):
        posing = saved(tmp_path / "posing.onnx", made[variant].model, read_manifest(parent))
        with pytest.raises(ModelFileError, match=f"has {what} in it already"):
            quantize(posing, data)
    with pytest.raises(ModelFileError, match=r"got a \.pt file, expected \.onnx"):
        quantize(tmp_path / "checkpoint.pt", data)


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda: Variant("fp8"), "--precision: got 'fp8'"),
        (lambda: Variant("fp16", "cpu"), "--for cpu: got --precision fp16"),
        (lambda: Variant(rest="bf16"), "--rest: got 'bf16'"),
        (lambda: QuantizeSettings(images=8), "--images: got 8, expected 16"),
        (lambda: QuantizeSettings(adds="none"), "--adds: got 'none'"),
        (lambda: QuantizeSettings(max_excluded=-1), "--max-excluded: got -1"),
    ],
)
def test_settings_that_make_no_sense_name_their_option(make: Any, flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        make()


def test_weights_that_fp16_cannot_hold_are_refused(data: Path, tmp_path: Path) -> None:
    arrays = fitted(weights(), data)
    arrays["first.weight"][0, 0, 0, 0] = 1e5
    large = saved(tmp_path / "large.onnx", graph(arrays))
    with pytest.raises(ModelFileError, match=r"first\.weight: weights above 65504"):
        quantize(large, data, QuantizeSettings(Variant("fp16")))
