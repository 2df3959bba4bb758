"""Checkpoints: a network's weights and its manifest, read without running code from the file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from deepcovid_edge.errors import ModelFileError, NotThereError, OutputError
from deepcovid_edge.manifest import ModelManifest
from deepcovid_export.networks import Classifier, build_network

_FORMAT = "deepcovid-edge checkpoint 1"
_NOT_OURS = (
    "not a checkpoint of deepcovid-edge; a network of the published project becomes a model by "
    "`deepcovid-edge export`"
)


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Write with torch.save; a kill leaves the old file or the new one, never half of one.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        torch.save(content, temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises a RuntimeError for a full disk
        with suppress(OSError):
            temporary.unlink()
        why = getattr(error, "strerror", None) or "is the disk full, or the folder read-only?"
        raise OutputError(f"{path}: cannot be written: {why}") from error


def save_checkpoint(network: Classifier, manifest: ModelManifest, path: Path) -> None:
    """Write a network with its manifest; raises as `save_atomically` does."""
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
        ModelFileError: The file is not a checkpoint of this project, or its weights do not fit.
    """
    if not path.is_file():
        raise NotThereError(f"{path}: no such checkpoint: make one with `deepcovid-edge train`")
    content = _read(path)
    if content is None:
        raise ModelFileError(f"{path}: {_NOT_OURS}")
    manifest = ModelManifest.from_json(content["manifest"])
    network = build_network(manifest.architecture, len(manifest.classes))
    try:
        network.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ModelFileError(
            f"{path}: its weights do not fit {manifest.architecture}: {error}"
        ) from error
    return network.eval(), manifest


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of this project; nothing that it names is run."""
    return _read(path) is not None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # no file, no pickle, or a pickle that names other classes
        return None
    ours = isinstance(content, dict) and content.get("format") == _FORMAT
    return content if ours else None
