"""What every backend is: what it returns, and its one verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import UsageError
from deepcovid_edge.manifest import ModelManifest
from deepcovid_edge.reasons import WarningCode

GPU_LANES = 2
"""Calls to a GPU at once: while one computes, the other copies."""


@dataclass(frozen=True)
class Inference:
    """What a network gives for a batch.

    Attributes:
        logits: Of shape (N, classes), float32, before softmax.
        activation_maps: Of shape (N, classes, h, w), float32, or None where not asked for.
        ood_scores: Of shape (N, kinds), float32, see `decision.out_of_distribution`; None for a
            model without them.
    """

    logits: NDArray[np.float32]
    activation_maps: NDArray[np.float32] | None = None
    ood_scores: NDArray[np.float32] | None = None

    @classmethod
    def joined(cls, parts: Sequence[Inference]) -> Inference:
        """One of several batches of the same model, in their order."""
        if len(parts) == 1:
            return parts[0]
        maps = [part.activation_maps for part in parts if part.activation_maps is not None]
        scores = [part.ood_scores for part in parts if part.ood_scores is not None]
        return cls(
            np.concatenate([part.logits for part in parts]),
            np.concatenate(maps) if maps else None,
            np.concatenate(scores) if scores else None,
        )


class Backend(Protocol):
    """A loaded model. Safe to call from several threads; ends with `close` or `with`."""

    @property
    def name(self) -> str:
        """Backend and provider, such as `onnxruntime-cpu`."""

    @property
    def manifest(self) -> ModelManifest:
        """The model's own manifest."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file."""

    @property
    def warnings(self) -> tuple[WarningCode, ...]:
        """What to know about every result of this model on this backend."""

    @property
    def on_cpu(self) -> bool:
        """Whether `infer` computes on the calling thread, on the cores that decode images too."""

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        """Run the network on a batch of model inputs.

        Args:
            batch: Of shape (N, height, width), uint8, as `imaging.prepare.prepare` makes them.
            activation_maps: Also return the class activation maps.

        Raises:
            UsageError: The batch has another shape or type than the model's input, or the model is
                closed.
        """

    def close(self) -> None:
        """Free what the model holds; `infer` must not be called again."""

    def __enter__(self) -> Backend: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class Partitionable(Protocol):
    """A backend that also runs parts of its model, where that is worth while."""

    def content(self) -> memoryview:
        """The model file, of which `graph.reader.cut` cuts parts."""

    def run_part(self, part: bytes) -> Callable[[Sequence[NDArray[Any]]], NDArray[Any]]:
        """Make a part ready to run: a function from its inputs to its one output."""


@runtime_checkable
class AssessesFiles(Protocol):
    """A backend that takes image files as they are, and gives their records: a server."""

    @property
    def run_warnings(self) -> tuple[str, ...]:
        """Codes of warnings that its records of assessed images have, by its own settings."""

    def assess(self, data: bytes, sha256: str, suffix: str) -> Mapping[str, Any]:
        """The record of an image, in plain values.

        Args:
            data: The image file.
            sha256: Its SHA-256; the record is of these bytes and no others.
            suffix: Of the file's name.

        Raises:
            NotAssessedError: The file is too large.
            BackendUnavailableError: The server is away.
            ServerMismatchError: Other bytes arrived, or another model answered.
        """

    def check_ood(self, ood: str) -> None:
        """Check that out-of-distribution images are treated as this run treats them.

        Raises:
            ServerMismatchError: They are not.
        """


def identity(backend: Backend) -> dict[str, Any]:
    """Which model ran, and on what, as plain values for a report."""
    manifest = backend.manifest
    return {
        "name": manifest.name,
        "sha256": backend.sha256,
        "precision": manifest.precision,
        "backend": backend.name,
    }


def check_batch(batch: NDArray[np.uint8], manifest: ModelManifest) -> None:
    """Check a batch against a model's input.

    Raises:
        UsageError: The batch has another shape or type.
    """
    expected = (manifest.input.height, manifest.input.width)
    if batch.dtype != np.uint8 or batch.ndim != 3 or batch.shape[1:] != expected:
        raise UsageError(
            f"images: got {batch.shape} {batch.dtype}, model accepts (N, {expected[0]}, "
            f"{expected[1]}) uint8: make them with imaging.prepare.prepare"
        )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities over classes; logits and result are of shape (N, classes)."""
    with np.errstate(invalid="ignore"):  # what is not finite stays so, and is not assessed later
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        weights = np.exp(shifted)
    share: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return share
