"""The process that assesses: a crash of a decoder or of a GPU's driver ends this one alone.

Its arguments are the settings of the worker, the model and its site file: the configuration may
have been changed meanwhile. It reads one line of JSON for each image from standard input and
answers with one line. Its first line says that the model is loaded, with what every record has in
common, or why it is not.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from deepcovid_edge.cart.config import CartSettings
from deepcovid_edge.cart.store.spool import FULL, Spool
from deepcovid_edge.cart.toml_tables import read_settings
from deepcovid_edge.cart.work.assessment import AssessmentRequest, Assessor
from deepcovid_edge.cart.work.self_test import check_assessor
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.device.process import set_up
from deepcovid_edge.errors import (
    BackendUnavailableError,
    DeepCovidEdgeError,
    OutputError,
    ServerMismatchError,
    one_line,
)
from deepcovid_edge.heatmaps.heatmap import OCCLUSION
from deepcovid_edge.heatmaps.windows import OcclusionSettings
from deepcovid_edge.model import Model


@contextmanager
def loaded_assessor(settings: CartSettings, model: str, site: Path | None) -> Iterator[Assessor]:
    """An assessor with a model as the configuration says, tested on drawn images.

    Raises:
        DeepCovidEdgeError: It cannot be loaded (see `Model`), or the self-test failed.
    """
    with ExitStack() as opened:
        loaded = opened.enter_context(
            Model(model, variant=settings.variant, backend=settings.backend, site=site, workers=1)
        )
        maker = None
        if settings.heatmap != "none":
            budget = settings.budget * 1000.0 if settings.heatmap == OCCLUSION else None
            maker = opened.enter_context(
                loaded.heatmap_maker(settings.heatmap, OcclusionSettings(budget_ms=budget))
            )
        assessor = Assessor(loaded, Spool(settings.spool), settings, maker)
        check_assessor(assessor)
        yield assessor


def main() -> None:
    """Answer requests until standard input ends."""
    set_up()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    settings, model, site = sys.argv[1:4]
    with ExitStack() as opened:
        try:
            assessor = opened.enter_context(
                loaded_assessor(
                    read_settings(CartSettings, settings), model, Path(site) if site else None
                )
            )
        except (DeepCovidEdgeError, OSError, MemoryError) as error:
            _answer(answers, {"failed": type(error).__name__, "why": one_line(error)})
            sys.exit(1)
        template = Prediction("", assessor.model.facts).as_dict()
        _answer(answers, {"ready": template, "backend": assessor.model.backend.name})
        for line in sys.stdin:
            values = json.loads(line)
            request = AssessmentRequest(**{**values, "path": Path(values["path"])})
            answer = {**_assessed(assessor, request), "content_sha256": request.content_sha256}
            _answer(answers, answer)


def _assessed(assessor: Assessor, request: AssessmentRequest) -> dict[str, Any]:
    """The answer for an image; a disk that is full or fails, or a server, ends no assessor."""
    try:
        return assessor.assess(request)
    except (BackendUnavailableError, ServerMismatchError) as error:
        return {"away": one_line(error)}
    except (OutputError, OSError) as error:
        cause = error.__cause__ if isinstance(error, OutputError) else error
        if isinstance(cause, OSError) and cause.errno in FULL:
            return {"full": cause.strerror}
        if isinstance(error, OutputError):
            return {"not_written": one_line(error)}
        raise


def _answer(stream: TextIO, values: dict[str, Any]) -> None:
    stream.write(json.dumps(values) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
