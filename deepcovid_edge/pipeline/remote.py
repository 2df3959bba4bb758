"""Images that a server assesses: files go there, records come back, and this run decides.

The server gives probabilities, warnings and reasons. Threshold, indeterminate range and site file
are those of this run, so that carts with site files of their own can share one server.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import AssessesFiles, Backend
from deepcovid_edge.decision.out_of_distribution import REJECT
from deepcovid_edge.decision.record import Prediction, RunFacts, milliseconds
from deepcovid_edge.errors import NotAssessedError, UsageError
from deepcovid_edge.pipeline.classifier import Classifier, Explainer
from deepcovid_edge.pipeline.disk_guard import DiskGuard
from deepcovid_edge.pipeline.reader import PreparedImage
from deepcovid_edge.reasons import WarningCode


class RemoteClassifier(Classifier):
    """Has a server assess images. Safe to use from several threads."""

    def _records(
        self, images: list[PreparedImage], batch_size: int, *, with_maps: bool
    ) -> tuple[list[Prediction], NDArray[np.float32] | None]:
        if with_maps or self.explainer is not None:
            raise UsageError("backend: a server gives no heat maps: run the model on this machine")
        return [self._assessed(image) for image in images], None

    def _assessed(self, image: PreparedImage) -> Prediction:
        server = self.backend
        assert isinstance(server, AssessesFiles)
        if image.error:
            return self._not_assessed(image, image.error)
        assert image.sha256 is not None, "it was read"
        try:
            record = server.assess(image.data, image.sha256, PurePath(image.name).suffix)
        except NotAssessedError as error:
            return self._not_assessed(image, error)
        total = milliseconds(image.started, time.perf_counter())
        return Prediction(
            image.name,
            self.run,
            image.sha256,
            record["reason"],
            record["message"],
            self._own_warnings(record, server.run_warnings),
            record["probabilities"],
            timings_ms={**record["timings_ms"], "total": total},
        )

    def _own_warnings(
        self, record: Mapping[str, Any], of_server: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Warnings of the image, and those of this run in the place of the server's."""
        codes: tuple[str, ...] = tuple(record["warnings"])
        if of_server == self.run.warnings or not codes:
            return codes
        last = tuple(code for code in codes if code == WarningCode.OOD.code)
        of_image = tuple(code for code in codes if code not in (*of_server, *last))
        return (*of_image, *self.run.warnings, *last)


def make_classifier(
    backend: Backend,
    run: RunFacts,
    ood: str,
    explainer: Explainer | None = None,
    disk: DiskGuard | None = None,
) -> Classifier:
    """What classifies images with a backend.

    Args:
        backend: The loaded model.
        run: What the run's records have in common.
        ood: `reject` or `warn`.
        explainer: Makes the heat maps, or None.
        disk: Stops the run when there is too little room for its results, or None.

    Raises:
        ServerMismatchError: A server treats out-of-distribution images otherwise.
    """
    kind = Classifier
    if isinstance(backend, AssessesFiles):
        backend.check_ood(ood)
        kind = RemoteClassifier
    return kind(backend, run, ood == REJECT, explainer, disk)
