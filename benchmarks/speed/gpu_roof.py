"""The least time that a GPU can take for a network: its work over the card's measured ceilings.

Layer by layer the longer of two times: its operations over the rate of a large matrix product, and
its bytes (weights, input and output, each once) over the rate of a copy. What stands between the
convolutions is taken to be fused with them. A small batch may stay in the card's cache, which is
faster than the copy: then the roof is a little low.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deepcovid_export.networks import Classifier

SIDE = 224
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
"""Of a number in each precision."""


@dataclass(frozen=True)
class Layer:
    """What one convolution or product does for an image.

    Attributes:
        operations: Multiplications and additions.
        weights: Numbers that it holds, bias included.
        moved: Numbers of its input and of its output.
    """

    operations: int
    weights: int
    moved: int


def layers(network: Classifier, side: int = SIDE) -> list[Layer]:
    """Convolutions and products of a network for one image, without computing them."""
    seen: list[Layer] = []

    def look(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        weight = module.weight  # convolution: (out, in / groups, kh, kw); product: (out, in)
        places = output[0, 0].numel() if output.ndim == 4 else 1
        held = weight.numel() + (0 if module.bias is None else module.bias.numel())
        moved = inputs[0][0].numel() + output[0].numel()
        seen.append(Layer(2 * weight.numel() * places, held, moved))

    network = network.to("meta").eval()
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    hooks = [one.register_forward_hook(look) for one in network.modules() if isinstance(one, kinds)]
    network(torch.zeros((1, side, side), dtype=torch.uint8, device="meta"))
    for hook in hooks:
        hook.remove()
    return seen


def roof_ms(
    found: Sequence[Layer], batch: int, precision: str, ceilings: Mapping[str, float]
) -> float:
    """The least milliseconds that a batch can take on the card."""
    rate, width = ceilings[f"{precision}_operations_per_second"], BYTES[precision]
    copied = ceilings["bytes_per_second"]
    return 1e3 * sum(
        max(one.operations * batch / rate, (one.weights + one.moved * batch) * width / copied)
        for one in found
    )


def ceilings(size: int = 8192) -> dict[str, float]:
    """Operations a second of a matrix product in each precision, and bytes a second of a copy.

    FP32 is TF32 where the card has it: cuDNN and TensorRT take it too.
    """
    torch.backends.cuda.matmul.allow_tf32 = True
    floats = torch.randn((size, size), device="cuda")
    halves = floats.half()
    bytes_ = torch.randint(-99, 99, (size, size), device="cuda", dtype=torch.int8)
    other = torch.empty_like(floats)
    work = 2 * size**3
    return {
        "fp32_operations_per_second": work / best(lambda: floats @ floats),
        "fp16_operations_per_second": work / best(lambda: halves @ halves),
        "int8_operations_per_second": work / best(lambda: torch._int_mm(bytes_, bytes_.t())),
        "bytes_per_second": 2 * floats.nbytes / best(lambda: other.copy_(floats)),
    }


def best(step: Callable[[], object], rounds: int = 20) -> float:
    """Seconds of the fastest of some calls: a ceiling is what the card can do."""
    return min(events(step) for _ in range(rounds)) / 1e3


def events(step: Callable[[], object]) -> float:
    """Milliseconds of a call by CUDA events."""
    start, end = [torch.cuda.Event(enable_timing=True) for _ in "12"]  # type: ignore[no-untyped-call]
    start.record()
    step()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds
