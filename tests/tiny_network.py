"""A network made in a moment, a fire block and a residual block, and images that it tells apart.

Its head is fitted to these images, which are synthetic.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
from commands import Done, command
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from plain_chest import draw_chest

from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import IndeterminateRange, InputSpec, ModelManifest, read_manifest
from deepcovid_export.onnx_export.graphs import finish
from deepcovid_export.quantization.mixed_precision import Variant
from deepcovid_export.quantization.quantize import QuantizeSettings, quantize

SPEC = InputSpec(64, 64)
RECIPE = {"recipe": {"classes": {"clear": ["clear"], "hazy": ["hazy", "hazier"]}}}
MANIFEST = ModelManifest(
    *("tiny", "tiny", ("clear", "hazy"), "hazy", 0.5),
    indeterminate_range=IndeterminateRange(0.4, 0.6, {"rule": "by hand"}),
    input=SPEC,
    training=RECIPE,
)
VARIANTS = {
    "fp16": Variant("fp16"),
    "int8-tensorrt": Variant("int8", "tensorrt"),
    "int8-cpu": Variant("int8", "cpu"),
}
Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Made:
    """A variant of the network as a file, and what it holds."""

    path: Path
    model: Any
    manifest: ModelManifest


def make(parent: Path, data: Path, variant: Variant, path: Path) -> Made:
    """A variant that the equivalence check let pass."""
    done = quantize(parent, data, QuantizeSettings(variant), output=path)
    assert done.output == path, done.report["failed"]
    return Made(path, onnx.load(path), read_manifest(path))


def weights(*, spoilt: tuple[str, ...] = ()) -> Arrays:
    """Random weights. A spoilt layer has large ones on a silent channel: INT8 rounds all else off.

    Args:
        spoilt: Layers among `squeeze` and `main1`.
    """
    draw = np.random.default_rng(3)

    def kernel(out: int, into: int, size: int) -> NDArray[np.float32]:
        scale = np.sqrt(2 / (into * size * size))
        return draw.normal(0, scale, (out, into, size, size)).astype(np.float32)

    shapes = {
        "first": (8, 1, 3),
        "squeeze": (8, 8, 1),
        "expand1": (8, 8, 1),
        "expand3": (8, 8, 3),
        "main1": (16, 16, 3),
        "main2": (16, 16, 3),
        "shortcut": (16, 16, 1),
        "maps": (2, 16, 1),
    }
    made = {f"{name}.weight": kernel(*shape) for name, shape in shapes.items()}
    made |= {f"{name}.bias": np.full(shape[0], 0.05, np.float32) for name, shape in shapes.items()}
    if spoilt:  # channel 0 of the layers before is silent
        for name in ("first", "expand1"):
            made[f"{name}.weight"][0] = 0
            made[f"{name}.bias"][0] = -1
    for name in spoilt:
        made[f"{name}.weight"][:, 0] = 1e4
    return made


def graph(arrays: Arrays) -> Any:
    """The network: uint8 images to logits and activation maps, as `export` writes them."""
    nodes: list[Any] = []

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], f"node_{output}", **attributes))
        return output

    def convolve(name: str, source: str, *, relu: bool = True, stride: int = 1) -> str:
        margin = arrays[f"{name}.weight"].shape[2] // 2
        output = name if name != "maps" else "activation_maps"
        layout = {"pads": [margin] * 4, "strides": [stride] * 2}
        add("Conv", [source, f"{name}.weight", f"{name}.bias"], output, **layout)
        return add("Relu", [output], f"{name}_relu") if relu else output

    add("Cast", ["images"], "cast", to=TensorProto.FLOAT)
    add("Unsqueeze", ["cast", "axis"], "grey")
    add("Mul", ["grey", "scale"], "scaled")
    add("Sub", ["scaled", "mean"], "normalised")
    tensor = convolve("first", "normalised", stride=2)
    tensor = add("MaxPool", [tensor], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    tensor = convolve("squeeze", tensor)
    tensor = add(
        "Concat", [convolve("expand1", tensor), convolve("expand3", tensor)], "cat", axis=1
    )
    main = convolve("main2", convolve("main1", tensor), relu=False)
    tensor = add("Add", [main, convolve("shortcut", tensor, relu=False)], "sum")
    maps = convolve("maps", add("Relu", [tensor], "features"), relu=False)
    add("ReduceMean", [maps, "space"], "logits", keepdims=0)
    constants: Arrays = {
        **arrays,
        "axis": np.array([1], np.int64),
        "space": np.array([2, 3], np.int64),
        "scale": np.array(1 / 58, np.float32),
        "mean": np.array(2.0, np.float32),
    }
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 64, 64])
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2]),
        helper.make_tensor_value_info("activation_maps", TensorProto.FLOAT, ["batch", 2, 16, 16]),
    ]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    body = helper.make_graph(nodes, "tiny", [images], outputs, stored)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: Any, images: NDArray[np.uint8], output: str = "logits") -> NDArray[np.float32]:
    if output not in {item.name for item in model.graph.output}:
        model = type(model).FromString(model.SerializeToString())
        model.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    values: NDArray[np.float32] = session.run([output], {"images": images})[0]
    return values


def fitted(arrays: Arrays, data: Path) -> Arrays:
    """The head along the line between the classes, so that they stand well apart."""
    images = load_dataset(data, split="train")
    features = run(graph(arrays), pixels(images), "features").mean(axis=(2, 3))
    clear = np.array([image.label == "clear" for image in images])
    apart = features[clear].mean(axis=0) - features[~clear].mean(axis=0)
    kernel = 3 * apart / (apart @ apart)
    head = np.stack([kernel, -kernel]).astype(np.float32)
    middle = (features[clear].mean(axis=0) + features[~clear].mean(axis=0)) / 2
    bias = (-head @ middle).astype(np.float32)
    return {**arrays, "maps.weight": head[:, :, None, None], "maps.bias": bias}


def pixels(images: Any) -> NDArray[np.uint8]:
    return np.stack([prepare(read_radiograph(image.path), SPEC) for image in images])


def saved(path: Path, model: Any, manifest: ModelManifest = MANIFEST) -> Path:
    onnx.save(finish(model, manifest), path)
    return path


def draw_data(folder: Path) -> Path:
    """24 images to calibrate on, 16 to classify on, as folders of splits."""
    phantoms = [cv2.resize(draw_chest(seed), (160, 160)).astype(float) for seed in range(3)]
    y, x = np.mgrid[0:160, 0:160] / 160
    for seed in range(20):
        draw = np.random.default_rng(seed)
        split = "train" if seed < 12 else "val"
        for label in ("clear", "hazy"):
            image = phantoms[seed % 3] * draw.uniform(0.9, 1.1) + draw.normal(0, 4, (160, 160))
            if label == "hazy":
                for side in (0.3, 0.7):
                    far = (x - side) ** 2 + (y - draw.uniform(0.4, 0.5)) ** 2
                    image += 110 * np.exp(-far / 0.02)
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            grey = np.clip(image, 0, 255).astype(np.uint8)
            Image.fromarray(grey).save(place / f"{label}{seed:02d}.png")
    return folder


def quantize_command(*arguments: object, seed: str | None = None, cwd: Path | None = None) -> Done:
    """`deepcovid-edge quantize` with these arguments, in this process.

    Args:
        arguments: Of the command line.
        seed: Of Python's hashes: the command is a process of its own that has it.
        cwd: The folder to work in.
    """
    if seed is None:
        return command("quantize", *arguments, cwd=cwd)
    line = [sys.executable, "-m", "deepcovid_edge", "quantize", *map(str, arguments)]
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=cwd)
    return Done(done.returncode, done.stdout, done.stderr)
