"""Checkpoints as a backend, so that `verify` and `evaluate` take them like any model file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Inference, check_batch
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.errors import require
from deepcovid_edge.files import Closing, file_sha256
from deepcovid_edge.manifest import ModelManifest
from deepcovid_edge.reasons import WarningCode

if TYPE_CHECKING:
    from deepcovid_export.networks import Classifier

REQUIRES = "torch"
SUFFIXES = {".pt"}


def is_available() -> bool:
    """Whether torch is installed."""
    return find_spec(REQUIRES) is not None


def load(path: Path, settings: BackendSettings) -> TorchBackend:
    """Load a checkpoint of `deepcovid-edge train`.

    Torch has one number of threads for the whole process. It stays after the model is closed.

    Raises:
        MissingDependencyError: torch is not installed.
        ModelFileError: The file is no checkpoint.
    """
    torch = require(REQUIRES, extra="export")
    from deepcovid_export.networks.checkpoint import load_checkpoint

    network, manifest = load_checkpoint(path)
    torch.set_num_threads(settings.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TorchBackend(network.to(device), manifest, file_sha256(path), device)


class TorchBackend(Closing):
    """A network in torch, eager, FP32."""

    def __init__(
        self, network: Classifier, manifest: ModelManifest, sha256: str, device: str
    ) -> None:
        self._network = network
        self._device = device
        self.manifest = manifest
        self.warnings: tuple[WarningCode, ...] = ()
        self.sha256 = sha256

    @property
    def name(self) -> str:
        """`torch-cpu` or `torch-cuda`."""
        return f"torch-{self._device}"

    @property
    def on_cpu(self) -> bool:
        """True where the network lies on the CPU."""
        return self._device == "cpu"

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        """See `Backend.infer`."""
        import torch

        check_batch(batch, self.manifest)
        with torch.inference_mode():
            logits, maps = self._network(torch.from_numpy(batch).to(self._device))
        return Inference(logits.cpu().numpy(), maps.cpu().numpy() if activation_maps else None)

    def close(self) -> None:
        """Do nothing: the network holds no other resources."""
