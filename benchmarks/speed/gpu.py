"""The network on an NVIDIA GPU: ours beside torch eager, torch.compile, CUDA graphs and trtexec.

    python -m benchmarks.speed.gpu                     all models, batches 1, 8, 32 and 128
    python -m benchmarks.speed.gpu --model resnet18 --batch 8

Without a GPU it prints `not executed: no GPU`, stores nothing and exits with 0.

All sides take turns in one process. `host_ms` is prepared images in host memory to logits in host
memory, `device_ms` the network alone by CUDA events. `graph` says which of the two are of a
captured CUDA graph: events inside a graph cannot be read, and TensorRT's holds the copies too, so
its network alone is launched without one. `of_the_roof` is the least time that the card can take
(gpu_roof.py) over `device_ms`. Torch's networks have random weights, which is no matter for speed.
ResNet50 and DenseNet-121 of ours are those that `make figures` trained; without them they are named
as missing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure
from benchmarks.measure import Pixels
from benchmarks.measure.options import parser_of
from benchmarks.peers import polygraphy_loop, trtexec
from benchmarks.speed.gpu_roof import BYTES, SIDE, ceilings, events, layers, roof_ms
from benchmarks.variants import ENGINE_VARIANTS, RUNS, VariantError, file_for, models
from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.backends.tensorrt.files import Profile
from deepcovid_edge.benchmarking.work import TellsParts
from deepcovid_edge.errors import DeepCovidEdgeError, NotThereError
from deepcovid_export.networks import build_network

MODELS = ("squeezenet1_1", "resnet18", "resnet50", "densenet121")
BATCHES = (1, 8, 32, 128)
NOT_EXECUTED = "not executed: no GPU"
NO_GRAPH, HOST_GRAPH, BOTH_GRAPH = "neither", "host to host", "both"


@dataclass(frozen=True)
class Side:
    """A way to run the network.

    Attributes:
        run: Host to host.
        device_ms: Milliseconds of the network alone by CUDA events, or None.
        graph: Which of the two are of a captured CUDA graph.
    """

    run: Callable[[Pixels], Any]
    device_ms: Callable[[Pixels], float] | None = None
    graph: str = NO_GRAPH


def main() -> None:
    """Measure each model, and store the results."""
    parser = parser_of(__doc__, rounds=200)
    parser.add_argument("--data", type=Path, help="images, to make variants of that are not there")
    parser.add_argument("--model", action="append", choices=MODELS, help="repeatable")
    parser.add_argument("--batch", action="append", type=int, help="repeatable")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(NOT_EXECUTED)
        return
    found = ceilings()
    for name in options.model or MODELS:
        runs = {
            str(batch): batch_of(name, batch, found, options) for batch in options.batch or BATCHES
        }
        measure.store(f"gpu-{name}", {"model": name, "ceilings": found, "batches": runs})


def batch_of(
    name: str, batch: int, found: dict[str, float], options: argparse.Namespace
) -> dict[str, Any]:
    """Every side on one batch, with its share of the roof."""
    images = np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE), dtype=np.uint8)
    work, absent = layers(build_network(name, 2)), {}
    with ExitStack() as opened:
        sides = dict(torch_sides(name, batch))
        for variant, side in our_sides(name, batch, options.data, opened):
            if isinstance(side, Side):
                sides[variant] = side
            else:
                absent[variant] = side
        rows = time_sides(sides, images, options.rounds)
    try:
        rows["trtexec_fp32"] = trtexec.measure(models()[name], batch)
    except (FileNotFoundError, RuntimeError, KeyError) as error:
        absent["trtexec_fp32"] = str(error)
    roofs = {precision: roof_ms(work, batch, precision, found) for precision in BYTES}
    for side, row in rows.items():
        if "device_ms" in row:
            row["of_the_roof"] = roofs[precision_of(side)] / row["device_ms"]["median"]
        if "host_ms" in row:
            print(f"{name} b{batch} {side}: {row['host_ms']['median']:.3f} ms", flush=True)
    return {"roof_ms": roofs, "sides": rows, "missing": absent}


def precision_of(side: str) -> str:
    """The precision in the name of a side."""
    return next(name for name in BYTES if name in side)


def torch_sides(name: str, batch: int, device: str = "cuda") -> Iterator[tuple[str, Side]]:
    """Eager, compiled and captured as a CUDA graph, in FP32 and FP16, channels last."""
    for precision, kind in (("fp32", torch.float32), ("fp16", torch.float16)):
        network = build_network(name, 2).eval().to(device, kind)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def forward(inputs: Any, network: Any = network, kind: Any = kind) -> Any:
            with torch.inference_mode():
                grey = network.normalise(inputs.float().unsqueeze(1)).to(kind)
                return network.maps(network.features(grey)).float().mean(dim=(2, 3))

        yield f"torch_eager_{precision}", on_device(forward, device)
        yield f"torch_compile_{precision}", on_device(torch.compile(forward), device)
        if device == "cuda":
            yield f"torch_cuda_graph_{precision}", captured(forward, batch)


def on_device(forward: Callable[[Any], Any], device: str) -> Side:
    """A call from host to host, and its milliseconds on the device."""

    def run(images: Pixels) -> Any:
        return forward(torch.from_numpy(images).to(device)).cpu().numpy()

    def device_ms(images: Pixels) -> float:
        inputs = torch.from_numpy(images).to(device)
        return events(lambda: forward(inputs))

    return Side(run, device_ms if device == "cuda" else None)


def captured(forward: Callable[[Any], Any], batch: int) -> Side:
    """The graph that torch.cuda.graph takes of a call, after the calls that it asks for before."""
    inputs = torch.zeros((batch, SIDE, SIDE), dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = forward(inputs)

    def run(images: Pixels) -> Any:
        inputs.copy_(torch.from_numpy(images))
        graph.replay()
        return logits.cpu().numpy()

    return Side(run, lambda _: events(graph.replay), BOTH_GRAPH)


def our_sides(
    name: str, batch: int, data: Path | None, opened: ExitStack
) -> Iterator[tuple[str, Side | str]]:
    """Engines of each precision, ONNX Runtime on CUDA, and Polygraphy's; or why one is missing."""
    trained = RUNS / f"{name}.onnx"
    model = models().get(name, trained)
    for variant in (*ENGINE_VARIANTS, "onnxruntime_cuda_fp32", "polygraphy_fp32"):
        side = f"tensorrt_{variant}" if variant in ENGINE_VARIANTS else variant
        try:
            if not model.is_file():
                raise NotThereError(f"{model.name} is not there: make figures")
            yield side, our_side(model, variant, batch, data, opened)
        except (DeepCovidEdgeError, VariantError, ImportError) as error:
            yield side, str(error)


def our_side(model: Path, variant: str, batch: int, data: Path | None, opened: ExitStack) -> Side:
    """One side of ours, loaded.

    Raises:
        NotThereError: What it needs is not here.
    """
    if variant == "polygraphy_fp32":
        return Side(polygraphy_loop.runner(model, batch))
    on_cuda = variant == "onnxruntime_cuda_fp32"
    asked = ("fp32", "onnxruntime:cuda") if on_cuda else (variant, "tensorrt")
    file, library, provider = file_for(model, *asked, data, Profile(batch, batch, batch))
    settings = BackendSettings(provider=provider)
    loaded = opened.enter_context(load_backend(file, backend=library, settings=settings))
    if isinstance(loaded, TellsParts):
        return Side(
            loaded.infer, lambda images: loaded.infer_in_parts(images)["compute"], HOST_GRAPH
        )
    return Side(loaded.infer)


def time_sides(sides: dict[str, Side], images: Pixels, rounds: int) -> dict[str, Any]:
    """Samples of all sides, in turn; a tenth of the rounds, and three at least, warm up."""
    host: dict[str, list[float]] = {name: [] for name in sides}
    device: dict[str, list[float]] = {name: [] for name in sides}
    before = max(3, rounds // 10)
    for number in range(rounds + before):
        for name, side in sides.items():
            spent = measure.seconds_of(side.run, images) * 1e3
            own = side.device_ms(images) if side.device_ms else None
            if number >= before:
                host[name].append(spent)
                device[name] += [] if own is None else [own]
    return {
        name: {
            "host_ms": measure.summary(host[name]),
            "images_per_second": len(images) / statistics.median(host[name]) * 1e3,
            "graph": sides[name].graph,
            **({"device_ms": measure.summary(device[name])} if device[name] else {}),
        }
        for name in sides
    }


if __name__ == "__main__":
    main()
