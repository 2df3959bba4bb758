"""The test at each start of an assessor: drawn images go through the whole path.

What comes of them must be a number, a heat map and objects; an assessor that does not get so far
says why, and no image of a patient is given to it. A time budget that holds no heat map on this
machine is no fault: images get their reports. The test also loads what the first image would wait
for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcovid_edge.cart.store.spool import Spool, SpoolSettings
from deepcovid_edge.cart.work.assessment import AssessmentRequest, Assessor
from deepcovid_edge.device.service import log
from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.imaging.dicom.writing import write_radiograph
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom

_OPACITIES = (0, 9)


def check_assessor(assessor: Assessor) -> None:
    """Have an assessor assess drawn images, in a folder that is deleted afterwards.

    Raises:
        ModelFileError: One has no number, or an object is missing.
        DeepCovidEdgeError: Whatever else the assessor raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), SpoolSettings(0, 0.0, 0))
        own = Assessor(assessor.model, spool, assessor.settings, assessor.maker)
        for opacities in _OPACITIES:
            path = Path(folder) / f"{opacities}.dcm"
            write_radiograph(path, draw_phantom(7, opacities=opacities))
            late = len(_too_slow(own))
            answer = own.assess(AssessmentRequest(path, f"{opacities:064d}", is_dicom=True))
            is_late = len(_too_slow(own)) > late
            _check(answer, with_map=own.maker is not None and not is_late)
    if is_late:
        budget, needed = own.settings.budget, round(_too_slow(own)[-1] / 1000, 3)
        log("no heat map within the budget", budget=budget, one_pass=needed)


def _too_slow(assessor: Assessor) -> Sequence[float]:
    """Milliseconds of heat maps that the time budget did not hold."""
    return assessor.maker.too_slow if assessor.maker else ()


def _check(answer: Mapping[str, Any], *, with_map: bool) -> None:
    record = answer["record"]
    if record["status"] != "assessed":
        raise ModelFileError(f"self-test: a synthetic image is not assessed: {record['message']}")
    if answer["faults"]:
        raise ModelFileError(f"self-test: objects cannot be built: {answer['faults']}")
    kinds = [one["kind"] for one in answer["objects"]]
    if kinds != (["sr", "sc"] if with_map else ["sr"]):
        raise ModelFileError(f"self-test: objects {kinds}, expected a report and a picture")
