"""Heat maps beside results: makes them, writes them, and names them in the records."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends import Backend
from deepcovid_edge.decision.record import Prediction, milliseconds
from deepcovid_edge.errors import OutputError, UsageError
from deepcovid_edge.heatmaps.files import write_file, write_map
from deepcovid_edge.heatmaps.heatmap import (
    METHODS,
    OCCLUSION,
    HeatMap,
    Region,
    of_activation,
    of_occlusion,
    regions,
)
from deepcovid_edge.heatmaps.windows import OcclusionSettings
from deepcovid_edge.imaging.pictures import Radiograph
from deepcovid_edge.reasons import WarningCode

if TYPE_CHECKING:
    from deepcovid_edge.heatmaps.occlusion import Occluder, Occlusion

_LONGEST_STEM = 40
"""Letters of an image's name that its map keeps: a file name has 255 bytes, a letter up to four."""
_HASH_DIGITS = 8


@dataclass(frozen=True)
class HeatMapSettings:
    """Which heat maps are made, and where they go.

    Attributes:
        method: `occlusion` or `activation`.
        folder: Where map files (and pictures) are written; made where it is not there.
        overlay: Draw a picture of every image too.
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


@dataclass(frozen=True)
class Explained:
    """An assessed image whose heat map is wanted.

    Attributes:
        record: The image's result.
        shape: Rows and columns of the image.
        image: The image as it was read, where `Explainer.draws`.
        pixels: As the network saw it, of shape (height, width).
        started: When it was opened, seconds of the performance counter.
        activation_maps: What the network gave beside its logits, of shape (classes, h, w), if it
            was asked.
    """

    record: Prediction
    shape: tuple[int, ...]
    image: Radiograph | None
    pixels: NDArray[np.uint8]
    started: float
    activation_maps: NDArray[np.float32] | None = None


class Explainer:
    """Makes the heat maps of a run. Safe to call from several threads; ends with `with`.

    Args:
        backend: The loaded model.
        settings: Which maps, and where they go.
        threshold: Probability from which an image is positive.
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
        self._occluder: Occluder | None = None
        if settings.method == OCCLUSION:
            from deepcovid_edge.heatmaps.occlusion import Occluder

            self._occluder = Occluder(
                backend, settings.occlusion, threshold=threshold, workers=workers
            )
        self._one_at_a_time = threading.Lock()  # an occluded image takes every core by itself
        self.too_slow: list[float] = []
        try:
            settings.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{settings.folder}: {error.strerror or error}") from error

    @property
    def reads_activation_maps(self) -> bool:
        """Whether the network's activation maps are needed."""
        return self._occluder is None

    @property
    def draws(self) -> bool:
        """Whether images as they were read are needed: pictures are drawn on them."""
        return self.settings.overlay

    def explain(self, classified: Sequence[Explained]) -> list[Prediction]:
        """Make the heat maps of assessed images.

        Returns:
            Their records with the maps' files and regions, or with `W_NO_HEATMAP`.
        """
        if not classified:
            return []
        pairs = zip(classified, self._maps(classified), strict=True)
        return [self._explained(one, found, seconds) for one, (found, seconds) in pairs]

    def _explained(self, one: Explained, found: HeatMap | None, seconds: float) -> Prediction:
        timings = dict(one.record.timings_ms or {})
        if found is None or not np.isfinite(found.cells).all():
            timings["total"] = milliseconds(one.started, time.perf_counter())
            warnings = (*one.record.warnings, WarningCode.NO_HEATMAP.code)
            return replace(one.record, warnings=warnings, timings_ms=timings)
        started = time.perf_counter()
        places = regions(found, one.shape, self._input)
        data, overlay = self._write(one.record, one.image, found, places)
        ended = time.perf_counter()
        timings["heatmap"] = milliseconds(started - seconds, ended)
        timings["total"] = milliseconds(one.started, ended)
        return replace(
            one.record,
            heatmap=data,
            overlay=overlay,
            regions=tuple(region.as_dict() for region in places),
            timings_ms=timings,
        )

    def _maps(self, classified: Sequence[Explained]) -> Iterator[tuple[HeatMap | None, float]]:
        """Each image's map, and the seconds that it took.

        An activation map is made when it is asked for: it is written before the next one takes its
        place in the processor's cache.
        """
        started = time.perf_counter()
        if self._occluder is None:
            for one in classified:
                made = self._activation(one)
                yield made, time.perf_counter() - started
                started = time.perf_counter()
            return
        with self._one_at_a_time:
            found = self._occlusions(self._occluder, classified)
        own = self.settings.occlusion
        maps = [of_occlusion(one, _occlusion_facts(one, own)) if one else None for one in found]
        share = (time.perf_counter() - started) / len(classified)
        yield from ((occlusion, share) for occlusion in maps)

    def _activation(self, one: Explained) -> HeatMap:
        if one.activation_maps is None:
            raise ValueError("activation maps were not asked for")
        return of_activation(one.activation_maps[self._positive], self._input)

    def _occlusions(
        self, occluder: Occluder, classified: Sequence[Explained]
    ) -> list[Occlusion | None]:
        from deepcovid_edge.heatmaps.occlusion import BudgetError

        if self.settings.occlusion.budget_ms is None:
            return [*occluder.explain_all(np.stack([one.pixels for one in classified]))]
        found: list[Occlusion | None] = []
        for one in classified:
            try:
                found.append(occluder.explain(one.pixels))
            except BudgetError as error:
                self.too_slow.append(error.needed_ms)
                found.append(None)
        return found

    def _write(
        self, record: Prediction, image: Radiograph | None, found: HeatMap, places: list[Region]
    ) -> tuple[str, str | None]:
        """Write an image's files; the paths of the map and of its picture."""
        stem = f"{Path(record.path).stem[:_LONGEST_STEM]}-{(record.sha256 or '')[:_HASH_DIGITS]}"
        data = self.settings.folder / f"{stem}.npz"
        write_map(data, found, places, _identity(record))
        if image is None:
            return str(data), None
        from deepcovid_edge.heatmaps.overlay import draw_overlay, encode_overlay

        overlay = data.with_suffix(".png")
        write_file(overlay, encode_overlay(draw_overlay(image, self._input, found, places, record)))
        return str(data), str(overlay)

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
    from deepcovid_edge.heatmaps.coarse_to_fine import expected_agreement

    facts: dict[str, Any] = {
        "window": settings.window,
        "stride": settings.stride,
        "baseline": settings.baseline,
    }
    expected = expected_agreement(float(found.evaluated.mean()), settings)
    if expected and not found.evaluated.all():
        facts["expected_agreement"] = {"median": expected[0], "quantile_10": expected[1]}
    return facts


def _identity(record: Prediction) -> dict[str, Any]:
    """What a map file says of the image and the model."""
    return {
        "path": record.path,
        "sha256": record.sha256,
        "model": record.run.model,
        "model_sha256": record.run.model_sha256,
        "variant": record.run.variant,
        "probability": record.probability,
        "threshold": record.run.threshold,
        "decision": record.decision,
    }
