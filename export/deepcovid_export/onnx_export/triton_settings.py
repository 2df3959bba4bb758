"""How a model repository of Triton is written."""

from __future__ import annotations

from dataclasses import dataclass

from deepcovid_edge.errors import UsageError

PLATFORMS = ("python", "onnxruntime_onnx", "tensorrt_plan")
"""What runs the network: the process that reads the images, or a model of its own."""


@dataclass(frozen=True)
class RepositorySettings:
    """How a repository is written.

    Attributes:
        platform: One of `PLATFORMS`.
        instances: Processes that read images; one a core is right on a CPU, more beside a GPU.
    """

    platform: str = PLATFORMS[0]
    instances: int = 2

    def __post_init__(self) -> None:
        if self.platform not in PLATFORMS:
            known = ", ".join(PLATFORMS)
            raise UsageError(f"platform: got {self.platform!r}, expected one of {known}")
        if not 1 <= self.instances <= 256:
            raise UsageError(f"instances: got {self.instances}, expected 1 to 256")
