"""Heat maps beside results: makes them, writes them, and names them in the records."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends import Backend
from deepcovid_edge.errors import OutputError, UsageError
from deepcovid_edge.heatmap import (
    METHODS,
    OCCLUSION,
    HeatMap,
    Region,
    of_activation,
    of_occlusion,
    regions,
)
from deepcovid_edge.images import Radiograph
from deepcovid_edge.lattice import OcclusionSettings
from deepcovid_edge.map_files import write_file, write_map
from deepcovid_edge.occlusion import BudgetError, Occluder, Occlusion
from deepcovid_edge.overlay import draw_overlay, encode_overlay
from deepcovid_edge.reasons import Caution
from deepcovid_edge.records import Prediction
from deepcovid_edge.refine import expected_agreement

_LONGEST_STEM = 80
_HASH_DIGITS = 8


@dataclass(frozen=True)
class HeatMapSettings:
    """Which heat maps are made, and where they go.

    Attributes:
        method: `occlusion` or `activation`.
        folder: Where map files (and pictures) are written; made where it is not there.
        overlay: Draw a picture of every film too.
        occlusion: Which windows are hidden; nothing to `activation`.
    """

    method: str
    folder: Path
    overlay: bool = False
    occlusion: OcclusionSettings = field(default_factory=OcclusionSettings)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(
                f"--heatmap: got {self.method!r}, expected one of {', '.join(METHODS)}"
            )


class Explainer:
    """Makes the heat maps of a run. Safe to call from several threads; ends with `with`.

    Args:
        backend: The loaded model.
        settings: Which maps, and where they go.
        threshold: Probability from which a film is positive.
        workers: Calls at once; None for what suits the backend.

    Raises:
        UsageError: A window is larger than the model's input.
        OutputError: The folder cannot be made.
    """

    def __init__(
        self,
        backend: Backend,
        settings: HeatMapSettings,
        *,
        threshold: float,
        workers: int | None = None,
    ) -> None:
        self.settings = settings
        self._input = backend.manifest.input
        self._positive = backend.manifest.positive_index
        self._occluder = None
        if settings.method == OCCLUSION:
            self._occluder = Occluder(
                backend, settings.occlusion, threshold=threshold, workers=workers
            )
        self._one_at_a_time = threading.Lock()  # an occluded film takes every core by itself
        self.too_slow: list[float] = []
        try:
            settings.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{settings.folder}: {error.strerror or error}") from error

    @property
    def reads_activation_maps(self) -> bool:
        """Whether the network's activation maps are needed."""
        return self._occluder is None

    def explain(
        self,
        record: Prediction,
        film: Radiograph,
        pixels: NDArray[np.uint8],
        activation_maps: NDArray[np.float32] | None,
    ) -> Prediction:
        """Make the heat map of an assessed film.

        Args:
            record: The film's result.
            film: The film as it was read.
            pixels: As the network saw it, of shape (height, width).
            activation_maps: What the network gave beside its logits, of shape (classes, h, w), if
                it was asked.

        Returns:
            The record with the map's files and regions, or with `W_NO_HEATMAP`.
        """
        started = time.perf_counter()
        try:
            found = self._map(pixels, activation_maps)
        except BudgetError as error:
            self.too_slow.append(error.needed_ms)
            return _without_map(record)
        if not np.isfinite(found.values).all():
            return _without_map(record)
        places = regions(found, film.pixels.shape, self._input)
        record = self._write(record, film, found, places)
        spent = round((time.perf_counter() - started) * 1000, 3)
        return replace(record, timings_ms={**(record.timings_ms or {}), "heatmap": spent})

    def _map(
        self, pixels: NDArray[np.uint8], activation_maps: NDArray[np.float32] | None
    ) -> HeatMap:
        if self._occluder is None:
            if activation_maps is None:
                raise ValueError("activation maps were not asked for")
            return of_activation(activation_maps[self._positive], self._input)
        with self._one_at_a_time:
            found = self._occluder.explain(pixels)
        return of_occlusion(found, _occlusion_facts(found, self.settings.occlusion))

    def _write(
        self, record: Prediction, film: Radiograph, found: HeatMap, places: list[Region]
    ) -> Prediction:
        stem = f"{Path(record.path).stem[:_LONGEST_STEM]}-{(record.sha256 or '')[:_HASH_DIGITS]}"
        data = self.settings.folder / f"{stem}.npz"
        write_map(data, found, places, _identity(record))
        overlay = None
        if self.settings.overlay:
            overlay = str(self.settings.folder / f"{stem}.png")
            picture = draw_overlay(film, self._input, found, places, record)
            write_file(Path(overlay), encode_overlay(picture))
        return replace(
            record,
            heatmap=str(data),
            overlay=overlay,
            regions=tuple(region.as_dict() for region in places),
        )

    def close(self) -> None:
        """End the threads."""
        if self._occluder:
            self._occluder.close()

    def __enter__(self) -> Explainer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _occlusion_facts(found: Occlusion, settings: OcclusionSettings) -> dict[str, Any]:
    """How an occlusion was made, and how far a part of it is expected to agree with the whole."""
    facts: dict[str, Any] = {
        "window": settings.window,
        "stride": settings.stride,
        "baseline": settings.baseline,
    }
    expected = expected_agreement(float(found.evaluated.mean()), settings)
    if expected and not found.evaluated.all():
        facts["expected_agreement"] = {"median": expected[0], "quantile_10": expected[1]}
    return facts


def _without_map(record: Prediction) -> Prediction:
    return replace(record, warnings=(*record.warnings, Caution.NO_HEATMAP.code))


def _identity(record: Prediction) -> dict[str, Any]:
    """What a map file says of the film and the model."""
    return {
        "path": record.path,
        "sha256": record.sha256,
        "model": record.run.model,
        "model_sha256": record.run.model_sha256,
        "precision": record.run.precision,
        "probability": record.probability,
        "threshold": record.run.threshold,
        "decision": record.decision,
    }
