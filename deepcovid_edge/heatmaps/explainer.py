"""Heat maps of assessed images: made from what the network gives, written beside their records."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Backend
from deepcovid_edge.decision.record import Prediction, milliseconds
from deepcovid_edge.errors import OutputError, UsageError
from deepcovid_edge.files import Closing, write_atomically
from deepcovid_edge.heatmaps.files import write_map
from deepcovid_edge.heatmaps.heatmap import (
    METHODS,
    OCCLUSION,
    HeatMap,
    Region,
    of_activation,
    regions,
)
from deepcovid_edge.heatmaps.windows import OcclusionSettings
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.pipeline.classifier import Explained
from deepcovid_edge.pipeline.sources import MAP_HASH_DIGITS
from deepcovid_edge.reasons import WarningCode

if TYPE_CHECKING:
    from deepcovid_edge.heatmaps.occlusion import Occluder, Occlusion

_LONGEST_STEM = 40
"""Letters of an image's name that its map keeps: a file name has 255 bytes, a letter up to four."""


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
        _check_method(self.method)


@dataclass(frozen=True, repr=False)
class Explanation:
    """Where a model looked on one image.

    Attributes:
        heatmap: The map on the model input.
        regions: The places that spoke most for the positive class, as boxes on the image.
        prediction: The image's result.
        radiograph: The image as it was read.
        input: The model input, which says where on the image the map lies.
    """

    heatmap: HeatMap
    regions: tuple[Region, ...]
    prediction: Prediction
    radiograph: Radiograph
    input: InputSpec

    @property
    def values(self) -> NDArray[np.float32]:
        """The map, of shape (height, width) of the model input; see `HeatMap.values`."""
        return self.heatmap.values

    def __repr__(self) -> str:
        """One line: the image's result, how the map was made, and its places."""
        places = f"{len(self.regions)} region{'s' * (len(self.regions) != 1)}"
        return f"Explanation({self.prediction!r}, {self.heatmap.method}, {places})"

    def save(self, path: str | Path) -> None:
        """Write the map: `.npz` holds its values, `.png` is a picture of it over the image.

        Raises:
            UsageError: The path has another suffix.
            OutputError: The disk is full or the folder cannot be written.
        """
        path = Path(path)
        if path.suffix == ".npz":
            write_map(path, self.heatmap, self.regions, map_facts(self.prediction))
        elif path.suffix == ".png":
            record = self.prediction
            write_overlay(path, self.radiograph, self.input, self.heatmap, self.regions, record)
        else:
            raise UsageError(f"path: got {path}, expected a name that ends with .png or .npz")


def is_finite(found: HeatMap) -> bool:
    """Whether a map holds numbers alone; a network in FP16 may overflow."""
    return bool(np.isfinite(found.cells).all())


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise UsageError(f"heatmap: got {method!r}, expected one of {', '.join(METHODS)}")


class HeatMapMaker(Closing):
    """Makes heat maps with one model. Safe to call from several threads; ends with `with`.

    Args:
        backend: The loaded model.
        method: `occlusion` or `activation`.
        occlusion: Which windows are hidden; nothing to `activation`.
        limits: Probabilities at which the decision changes, the lowest first.
        workers: Calls at once; None for what suits the backend.

    Attributes:
        too_slow: Milliseconds that images needed whose time budget held no pass.

    Raises:
        UsageError: There is no such method, or a window is larger than the model's input.
    """

    def __init__(
        self,
        backend: Backend,
        method: str,
        occlusion: OcclusionSettings,
        *,
        limits: Sequence[float],
        workers: int | None = None,
    ) -> None:
        _check_method(method)
        self.input = backend.manifest.input
        self._positive = backend.manifest.positive_index
        self._settings = occlusion
        self._occluder: Occluder | None = None
        if method == OCCLUSION:
            from deepcovid_edge.heatmaps.occlusion import Occluder

            self._occluder = Occluder(backend, occlusion, limits=limits, workers=workers)
        self._one_at_a_time = threading.Lock()  # an occluded image takes every core by itself
        self.too_slow: list[float] = []

    @property
    def reads_activation_maps(self) -> bool:
        """Whether the network's activation maps are needed."""
        return self._occluder is None

    def maps(self, assessed: Sequence[Explained]) -> Iterator[tuple[HeatMap | None, float]]:
        """Each image's map, and the seconds that it took.

        An activation map is made when it is asked for: it is written before the next one takes its
        place in the processor's cache.
        """
        started = time.perf_counter()
        if self._occluder is None:
            for one in assessed:
                made = self._activation(one)
                yield made, time.perf_counter() - started
                started = time.perf_counter()
            return
        from deepcovid_edge.heatmaps.occlusion import of_occlusion

        with self._one_at_a_time:
            found = self._occlusions(self._occluder, assessed)
        own = self._settings
        maps = [of_occlusion(one, _occlusion_facts(one, own)) if one else None for one in found]
        share = (time.perf_counter() - started) / len(assessed)
        yield from ((occlusion, share) for occlusion in maps)

    def _activation(self, one: Explained) -> HeatMap:
        if one.activation_maps is None:
            raise ValueError("activation maps were not asked for")
        return of_activation(one.activation_maps[self._positive], self.input)

    def _occlusions(
        self, occluder: Occluder, assessed: Sequence[Explained]
    ) -> list[Occlusion | None]:
        from deepcovid_edge.heatmaps.occlusion import BudgetError

        inputs = [one.image.pixels for one in assessed if one.image.pixels is not None]
        if self._settings.budget_ms is None:
            return [*occluder.explain_all(np.stack(inputs))]
        found: list[Occlusion | None] = []
        for pixels in inputs:
            try:
                found.append(occluder.explain(pixels))
            except BudgetError as error:
                self.too_slow.append(error.needed_ms)
                found.append(None)
        return found

    def close(self) -> None:
        """End the threads."""
        if self._occluder:
            self._occluder.close()


class HeatMapWriter(Closing):
    """Makes and writes the heat maps of a run (`pipeline.classifier.Explainer`).

    Args:
        maker: Makes the maps, and is closed with this.
        settings: Where they go.

    Raises:
        OutputError: The folder cannot be made.
    """

    def __init__(self, maker: HeatMapMaker, settings: HeatMapSettings) -> None:
        self.maker, self.settings = maker, settings
        try:
            settings.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{settings.folder}: {error.strerror or error}") from error

    @property
    def reads_activation_maps(self) -> bool:
        """See `Explainer`."""
        return self.maker.reads_activation_maps

    @property
    def draws(self) -> bool:
        """See `Explainer`."""
        return self.settings.overlay

    def explain(self, assessed: Sequence[Explained]) -> list[Prediction]:
        """Make the heat maps of assessed images.

        Returns:
            Their records with the maps' files and regions, or with `W_NO_HEATMAP`.
        """
        if not assessed:
            return []
        pairs = zip(assessed, self.maker.maps(assessed), strict=True)
        return [self._explained(one, found, seconds) for one, (found, seconds) in pairs]

    def _explained(self, one: Explained, found: HeatMap | None, seconds: float) -> Prediction:
        timings = dict(one.record.timings_ms or {})
        if found is None or not is_finite(found):
            timings["total"] = milliseconds(one.image.started, time.perf_counter())
            warnings = (*one.record.warnings, WarningCode.NO_HEATMAP.code)
            return replace(one.record, warnings=warnings, timings_ms=timings)
        started = time.perf_counter()
        places = regions(found, one.image.shape, self.maker.input, one.image.box_shape)
        data, overlay = self._write(one.record, one.image.radiograph, found, places)
        ended = time.perf_counter()
        timings["heatmap"] = milliseconds(started - seconds, ended)
        timings["total"] = milliseconds(one.image.started, ended)
        return replace(
            one.record,
            heatmap=data,
            overlay=overlay,
            regions=tuple(region.as_dict() for region in places),
            timings_ms=timings,
        )

    def _write(
        self,
        record: Prediction,
        radiograph: Radiograph | None,
        found: HeatMap,
        places: Sequence[Region],
    ) -> tuple[str, str | None]:
        """Write an image's files; the paths of the map and of its picture."""
        name, sha256 = Path(record.path).stem[:_LONGEST_STEM], record.sha256 or ""
        data = self.settings.folder / f"{name}-{sha256[:MAP_HASH_DIGITS]}.npz"
        write_map(data, found, places, map_facts(record))
        if radiograph is None:
            return str(data), None
        overlay = data.with_suffix(".png")
        write_overlay(overlay, radiograph, self.maker.input, found, places, record)
        return str(data), str(overlay)

    def close(self) -> None:
        """End the threads."""
        self.maker.close()


def write_overlay(
    path: Path,
    radiograph: Radiograph,
    spec: InputSpec,
    found: HeatMap,
    places: Sequence[Region],
    record: Prediction,
) -> None:
    """Draw an image with its heat map into a picture file.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    from deepcovid_edge.heatmaps.overlay import draw_overlay, encode_overlay

    write_atomically(path, encode_overlay(draw_overlay(radiograph, spec, found, places, record)))


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


def map_facts(record: Prediction) -> dict[str, Any]:
    """What a map file says of the image and the model."""
    return {
        "path": record.path,
        "sha256": record.sha256,
        "model": record.run.model,
        "model_sha256": record.run.model_sha256,
        "variant": record.run.variant,
        "probability": record.probability,
        "limits": record.run.limits,
        "decision": record.decision,
    }
