"""Networks with random weights, exported once a run for all tests that look at the files."""

from __future__ import annotations

import functools
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from run_folder import made_once
from torch import Tensor, nn

from deepcovid_edge.manifest import InputSpec, ModelManifest
from deepcovid_export.networks import build_network
from deepcovid_export.networks.checkpoint import load_checkpoint, save_checkpoint
from deepcovid_export.onnx_export.to_onnx import Parity, export_network

CLASSES = ("covid", "normal", "other")
SIZE = 96


@dataclass(frozen=True)
class ExportedNetwork:
    """An exported network.

    Attributes:
        path: The .onnx file; not to be changed.
        manifest: What stands in its checkpoint.
        parity: Of the export, on three images.
    """

    path: Path
    manifest: ModelManifest
    parity: Parity


def images(count: int, size: int, seed: int = 0) -> Tensor:
    """Noise, of shape (count, size, size), uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size), generator=generator, dtype=torch.uint8)


def settled(network: nn.Module, batch: Tensor) -> nn.Module:
    """The network in evaluation mode, its running statistics those of a batch, as if trained."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(batch)
    return network.eval()


def export_checkpoint(checkpoint: Path, output: Path, batch: NDArray[np.uint8]) -> Parity:
    """Export a checkpoint as the command does; how far the file is from torch."""
    network, manifest = load_checkpoint(checkpoint)
    _, parity = export_network(network, manifest, output, batch)
    return parity


@functools.cache
def exported_network(architecture: str) -> ExportedNetwork:
    """A network of an architecture as `export` writes it."""

    def make(folder: Path) -> None:
        (folder / "facts.pickle").write_bytes(pickle.dumps(_export(architecture, folder)))

    folder = made_once(f"network-{architecture}", make)
    manifest, parity = pickle.loads((folder / "facts.pickle").read_bytes())
    return ExportedNetwork(folder / "net.onnx", manifest, parity)


def _export(architecture: str, folder: Path) -> tuple[ModelManifest, Parity]:
    torch.manual_seed(0)
    network = settled(build_network(architecture, len(CLASSES)), images(4, SIZE))
    spec = InputSpec(height=SIZE, width=SIZE)
    manifest = ModelManifest("net", architecture, CLASSES, "covid", 0.5, input=spec)
    save_checkpoint(network, manifest, folder / "net.pt")  # type: ignore[arg-type]
    batch: NDArray[np.uint8] = np.asarray(images(3, SIZE, seed=1))
    return manifest, export_checkpoint(folder / "net.pt", folder / "net.onnx", batch)
