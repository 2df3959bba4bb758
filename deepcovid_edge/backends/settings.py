"""How a model is run: what a command asks of every backend, before one is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from deepcovid_edge.errors import UsageError

PROVIDERS = ("cpu", "cuda", "tensorrt", "rtx")
"""What ONNX Runtime runs a model on."""


@dataclass(frozen=True)
class BackendSettings:
    """How a model is run.

    Attributes:
        provider: What ONNX Runtime runs a model on (`cpu` where None); it runs there or `load`
            raises. The other backends have none of these to choose from.
        threads: Threads inside one `infer` call; callers may run several calls at once. TensorRT
            has none, so that it takes 1 alone.
    """

    provider: str | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.provider not in (None, *PROVIDERS):
            known = ", ".join(PROVIDERS)
            raise UsageError(f"provider: got {self.provider!r}, expected one of {known}")
        if self.threads < 1:
            raise UsageError(f"threads: got {self.threads}, expected 1 or more")


def is_address(backend: str) -> bool:
    """Whether a backend is a server: `kserve://HOST[:PORT]`."""
    return "://" in backend
