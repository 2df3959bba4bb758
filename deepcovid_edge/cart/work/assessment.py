"""Assessing one image: its record, its heat map, and the DICOM objects of its result."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from deepcovid_edge.cart.config import CartSettings
from deepcovid_edge.cart.pictures import write_map_picture, write_pictures
from deepcovid_edge.cart.store.clock import now_utc
from deepcovid_edge.cart.store.image_header import read_image_header
from deepcovid_edge.cart.store.spool import Spool, sync
from deepcovid_edge.cart.work.assessor import hash_unless_unreadable
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.device.service import log_fault
from deepcovid_edge.errors import DataError, DeepCovidEdgeError
from deepcovid_edge.heatmaps.explainer import HeatMapMaker, HeatMapSettings, HeatMapWriter
from deepcovid_edge.model import Model
from deepcovid_edge.pipeline.reader import PreparedImage, Read, Reading
from deepcovid_edge.reasons import Reason


@dataclass(frozen=True)
class AssessmentRequest:
    """An image that is to be assessed.

    Attributes:
        path: The file.
        content_sha256: What the ledger knows it by.
        is_dicom: Whether DICOM objects are built of its result.
        reason: Code of the reason for which it is not assessed, nor read; None to assess it.
        made: When its objects are made, ISO 8601: same time, same bytes.
    """

    path: Path
    content_sha256: str
    is_dicom: bool
    reason: str | None = None
    made: str = field(default_factory=now_utc)


class _KeepingReading(Reading):
    """A reading that keeps the last image, whatever becomes of it."""

    image: PreparedImage | None = None

    def __next__(self) -> Read:
        return partial(self._keep, super().__next__())

    def _keep(self, read: Read) -> PreparedImage:
        self.image = read()
        return self.image


class Assessor:
    """Assesses images and builds the objects of their results."""

    def __init__(
        self, model: Model, spool: Spool, settings: CartSettings, maker: HeatMapMaker | None
    ) -> None:
        self.model, self.spool, self.settings, self.maker = model, spool, settings, maker
        self._cart_id = spool.cart_id()
        self._reader = model.reader(keeps_radiographs=True)

    def assess(self, request: AssessmentRequest) -> dict[str, Any]:
        """Assess one image; its files are on the disk when this returns.

        Returns:
            `record`, and `objects` with `kind`, `sop_class`, `sop_uid`, `path` and `sha256` each;
            `faults`, and `missing`: kinds of objects that could not be built at all.
        """
        folder = self.spool.results(request.content_sha256)
        prediction = (
            self._not_assessed(request) if request.reason else self._predict(request, folder)
        )
        _sync(folder)
        answer: dict[str, Any] = {"objects": [], "faults": [], "missing": []}
        if request.is_dicom:
            try:
                answer = self._objects(request, prediction)
            except DataError:  # no object is built of a header that cannot be read
                if prediction.reason is None:
                    raise
                answer |= {"faults": ["sr: DataError"], "missing": ["sr"]}
        return {"record": prediction.as_dict(), **answer}

    def _predict(self, request: AssessmentRequest, folder: Path) -> Prediction:
        explainer = None
        if self.maker:
            explainer = HeatMapWriter(
                self.maker, HeatMapSettings(self.settings.heatmap, folder, overlay=True)
            )
        reading = _KeepingReading([request.path], self._reader)
        prediction = next(iter(next(self.model.predict_groups(reading, explainer=explainer))))
        self._draw(folder, prediction, reading.image)
        return prediction

    def _draw(self, folder: Path, prediction: Prediction, image: PreparedImage | None) -> None:
        """Write what the page shows of an image, where it was decoded."""
        if image is None or image.radiograph is None:
            return
        write_pictures(folder, image.radiograph)
        if prediction.overlay:
            overlay = Path(prediction.overlay)
            write_map_picture(folder, overlay, image.radiograph, self.model.manifest.input)

    def _not_assessed(self, request: AssessmentRequest) -> Prediction:
        sha256, reason = hash_unless_unreadable(request.path, Reason.of(str(request.reason)))
        return Prediction(
            str(request.path),
            self.model.facts,
            sha256=sha256,
            reason=reason.code,
            message=reason.sentence,
        )

    def _objects(self, request: AssessmentRequest, prediction: Prediction) -> dict[str, Any]:
        """The objects of a result, each as whole as it can be built: the record stays as it is."""
        objects, faults, missing = [], [], []
        for kind, builders in self._builders(request, prediction).items():
            data, failed = _built(builders)
            faults += [f"{kind}: {one}" for one in failed]
            if data is None:
                missing.append(kind)
            else:
                objects.append(self._stored(request, kind, data))
        return {"objects": objects, "faults": faults, "missing": missing}

    def _builders(
        self, request: AssessmentRequest, prediction: Prediction
    ) -> Mapping[str, Sequence[Callable[[], bytes]]]:
        """Kind -> what builds the object, and what builds one with less in it."""
        from deepcovid_edge.cart.objects.capture import build_capture
        from deepcovid_edge.cart.objects.common import local_time
        from deepcovid_edge.cart.objects.facts import Facts
        from deepcovid_edge.cart.objects.report import build_report
        from deepcovid_edge.cart.objects.source import SourceImage

        source = SourceImage.read(request.path)
        made = local_time(datetime.fromisoformat(request.made).astimezone(), source)
        facts = Facts(made, request.content_sha256, self._cart_id, station=platform.node())
        report = partial(build_report, facts=facts, sr_class=self.settings.report)
        without_regions = replace(prediction, regions=None)
        builders: dict[str, Sequence[Callable[[], bytes]]] = {
            "sr": (
                partial(report, source, prediction),
                partial(report, source.plainer(), without_regions),
            )
        }
        if prediction.overlay:
            capture = partial(build_capture, facts=facts)
            overlay = Path(prediction.overlay).read_bytes()
            builders["sc"] = (
                partial(capture, source, prediction, overlay),
                partial(capture, source.plainer(), prediction, None),
            )
        return builders

    def _stored(self, request: AssessmentRequest, kind: str, data: bytes) -> dict[str, Any]:
        header = read_image_header(data)
        place = self.spool.results(request.content_sha256) / f"{header.sop_uid}.dcm"
        self.spool.store([data], place)
        return {
            "kind": kind,
            "sop_class": header.sop_class,
            "sop_uid": header.sop_uid,
            "path": str(place),
            "sha256": hashlib.sha256(data).hexdigest(),
        }


def _built(builders: Sequence[Callable[[], bytes]]) -> tuple[bytes | None, list[str]]:
    """What the first builder makes that does not fail, and the kinds of errors of those that do."""
    failed: list[str] = []
    for build in builders:
        try:
            return build(), failed
        except (DeepCovidEdgeError, MemoryError):
            raise
        except Exception as error:  # of a library, over a header like no other
            log_fault("object not built", error)
            failed.append(type(error).__name__)
    return None, failed


def _sync(folder: Path) -> None:
    """Have the maps and pictures of an image survive a power cut."""
    if not folder.is_dir():
        return
    for place in (*folder.iterdir(), folder, folder.parent, folder.parent.parent):
        sync(place)
