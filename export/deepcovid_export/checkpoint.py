"""Checkpoints: a network's weights and its manifest, read without running foreign code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from deepcovid_edge.errors import ModelFileError, NotThereError
from deepcovid_edge.manifest import ModelManifest
from deepcovid_export.networks import Classifier, build_network

_FORMAT = "deepcovid-edge checkpoint 1"


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Write with torch.save so that a kill leaves the old file or the new one, never a torn one."""
    temporary = path.with_name(path.name + ".part")
    torch.save(content, temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)


def save_checkpoint(network: Classifier, manifest: ModelManifest, path: Path) -> None:
    """Write a network with its manifest."""
    content = {
        "format": _FORMAT,
        "manifest": manifest.to_json(),
        "state_dict": {name: value.cpu() for name, value in network.state_dict().items()},
    }
    save_atomically(content, path)


def load_checkpoint(path: Path) -> tuple[Classifier, ModelManifest]:
    """Read a network, in evaluation mode, and its manifest.

    Raises:
        NotThereError: There is no such file.
        ModelFileError: The file is no checkpoint of this project.
    """
    if not path.is_file():
        raise NotThereError(f"{path}: no such checkpoint: make one with `deepcovid-edge train`")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickles of any kind end here, unread
        raise ModelFileError(f"{path}: not a checkpoint of deepcovid-edge") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ModelFileError(f"{path}: not a checkpoint of deepcovid-edge")
    manifest = ModelManifest.from_json(content["manifest"])
    network = build_network(manifest.architecture, len(manifest.classes))
    network.load_state_dict(content["state_dict"])
    return network.eval(), manifest
