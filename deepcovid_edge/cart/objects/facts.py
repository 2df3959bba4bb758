"""What an object states of the cart that made it, and in which words it states a result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime

from deepcovid_edge.cart.objects.uids import derived_uid
from deepcovid_edge.decision.record import (
    INDETERMINATE,
    NEGATIVE,
    POSITIVE,
    Prediction,
)
from deepcovid_edge.manifest import VERSION
from deepcovid_edge.reasons import Reason, warning_sentence

BURNED_LINE = "RESEARCH USE ONLY - NOT A DIAGNOSIS"
RESULT_SERIES, MAP_SERIES, NOT_ASSESSED_SERIES = (
    "AI RESULT - RESEARCH USE ONLY",
    "AI HEAT MAP - RESEARCH USE ONLY",
    "AI: NOT ASSESSED",
)
"""Series Description of reports, of captures, and of both where there is no result."""
VERDICTS = {
    POSITIVE: "FLAG FOR REVIEW",
    NEGATIVE: "NO FLAG",
    INDETERMINATE: "TOO CLOSE TO CALL",
    None: "NOT ASSESSED",
}
"""Decision -> the word on the page, in the picture and in the report."""
_NOT_STATED = ("path", "sha256", "heatmap", "overlay", "timings_ms")
"""Of a record: what no object states. It may be another one each time."""
_THRESHOLD = "threshold"
_LONGEST = 64
"""Longest value of LO (PS3.5, 6.2), characters."""


@dataclass(frozen=True)
class Facts:
    """What neither the image nor the record states. Model, variant and site are in the record.

    Attributes:
        made: When the object was made, with its offset from UTC. Same `made`, same bytes.
        content_sha256: SHA-256 of the image's data set, as the ledger knows it.
        serial: What tells this cart from others.
        station: Name of the cart's computer, or empty.
        manufacturer: Who answers for the software.
        product: Name of the device.
        version: Of this software.
    """

    made: datetime
    content_sha256: str
    serial: str
    station: str = ""
    manufacturer: str = "deepcovid-edge"
    product: str = "deepcovid-edge cart"
    version: str = VERSION

    def __post_init__(self) -> None:
        if self.made.utcoffset() is None:
            raise ValueError(f"made: got {self.made}, expected a time with its offset from UTC")


def object_uid(
    sop_uid: str, prediction: Prediction, facts: Facts, kind: str, picture: bytes = b""
) -> str:
    """The SOP Instance UID of an object of a result.

    It follows from all that shapes the object, so that no UID stands for two contents. The moment
    is kept with the result: an image that is assessed again has the same objects. Where it was lost
    with the ledger, they are others.

    Args:
        sop_uid: SOP Instance UID of the image.
        prediction: Its record.
        facts: Of the cart.
        kind: `sr`, `sr3d` or `sc`.
        picture: Of the heat map, or empty.
    """
    record = {name: one for name, one in prediction.as_dict().items() if name not in _NOT_STATED}
    return derived_uid(
        *("result", kind, sop_uid, facts.content_sha256),
        *(facts.serial, facts.station, facts.manufacturer, facts.product, facts.version),
        facts.made.isoformat(),
        json.dumps(record, sort_keys=True),
        hashlib.sha256(picture).hexdigest(),
    )


def series_description(prediction: Prediction, assessed: str) -> str:
    """The Series Description: `assessed`, or that there is no result."""
    return NOT_ASSESSED_SERIES if prediction.decision is None else assessed


def verdict_text(prediction: Prediction) -> str:
    """The verdict in words, such as `FLAG FOR REVIEW (positive)`."""
    word = VERDICTS[prediction.decision]
    return word if prediction.decision is None else f"{word} ({prediction.decision})"


def score_text(prediction: Prediction) -> str:
    """The score with what decides, such as `model score 0.33, threshold 0.03, ...`."""
    score = number_text(prediction.probability or 0.0)
    limits = limits_text(prediction)
    if not limits.startswith(_THRESHOLD):
        limits = f"limits {limits}"
    return f"model score {score}, {limits}, not a probability of disease"


def limits_text(prediction: Prediction) -> str:
    """What decides: `threshold 0.03`, or `low 0.02 high 0.05`."""
    limits = prediction.run.limits.items()
    return " ".join(f"{name} {number_text(value)}" for name, value in limits)


def number_text(value: float) -> str:
    """A number with all the decimals of a record and no zeros behind them."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def not_assessed_text(prediction: Prediction) -> str:
    """Code and sentence of the reason why an image was not assessed."""
    known = next((one for one in Reason if one.code == prediction.reason), None)
    sentence = known.sentence if known else prediction.message or "No reason was given."
    return f"{VERDICTS[None]}: {prediction.reason}: {sentence}"


def warning_text(code: str) -> str:
    """Code and sentence of a warning."""
    return f"Warning {code}: {warning_sentence(code)}"


def parameters(prediction: Prediction, facts: Facts) -> list[str]:
    """What made a result, as parameters of the algorithm (TID 4019), each `name: value`."""
    run = prediction.run
    site = f"{run.site.name}, sha256 {run.site.sha256}" if run.site else "none"
    named = {
        "model sha256": run.model_sha256,
        "variant": run.variant,
        "backend": run.backend,
        "positive class": run.positive_class,
        "limits": limits_text(prediction),
        "site file": site,
        "software": f"deepcovid-edge {facts.version}",
        "image sha256": facts.content_sha256,
    }
    return [plain(f"{name}: {value}") for name, value in named.items()]


def plain(text: str) -> str:
    r"""A text in printable ASCII, which every character set holds; others as `\u4e2d`.

    An object keeps the character set of its image (PS3.5, 6.1), so its own words have no other
    choice.
    """
    escaped = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(letter if letter.isprintable() else " " for letter in escaped) or " "


def short(text: str) -> str:
    """A text for a value of LO: as `plain`, without backslashes, at most 64 characters."""
    return plain(text).replace("\\", "/")[:_LONGEST].strip()
