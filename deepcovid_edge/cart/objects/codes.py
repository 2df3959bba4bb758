"""Codes of the objects (PS3.16: annex D for DCM, the context groups for SCT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepcovid_edge.cart.objects.facts import short
from deepcovid_edge.errors import require


@dataclass(frozen=True)
class CodedWord:
    """A word that a standard gave a number.

    Attributes:
        value: Code value.
        scheme: Coding scheme designator (PS3.16, section 8).
        meaning: Code meaning.
    """

    value: str
    scheme: str
    meaning: str

    def concept(self) -> Any:
        """The same as highdicom knows it."""
        coding = require("highdicom.sr.coding", extra="cart")
        return coding.CodedConcept(self.value, self.scheme, self.meaning)


TITLE = CodedWord("126000", "DCM", "Imaging Measurement Report")  # CID 7021
CHEST_IMAGE = CodedWord("399208008", "SCT", "Plain chest X-ray")
IMAGING = CodedWord("363679005", "SCT", "Imaging")  # where an image may show anything
DEVICE = CodedWord("121007", "DCM", "Device")  # CID 270, observer type
COVID = CodedWord("840539006", "SCT", "COVID-19")
LUNG = CodedWord("39607008", "SCT", "Lung")
PRESENCE = CodedWord("705057003", "SCT", "Presence")
PRESENT = CodedWord("52101004", "SCT", "Present")
INDETERMINATE = CodedWord("82334004", "SCT", "Indeterminate")
COMMENT = CodedWord("121106", "DCM", "Comment")
CAD_SUMMARY = CodedWord("111017", "DCM", "CAD Processing and Findings Summary")  # TID 4015
NONE_SUCCEEDED = CodedWord("111245", "DCM", "No algorithms succeeded; without findings")  # CID 6047
IMAGE_PROCESSING = CodedWord(
    "121322", "DCM", "Source Image for Image Processing Operation"
)  # CID 7202

_FINDINGS = {"covid": COVID, "covid-19": COVID, "covid19": COVID}
_PRIVATE = "99DEEPCOVID"
"""Of classes without a code here. PS3.3, 8.2: private schemes start with 99."""


def finding_of(positive_class: str) -> CodedWord:
    """The finding that a model's positive class stands for."""
    name = short(positive_class)
    return _FINDINGS.get(name.lower()) or CodedWord(name[:16] or "positive", _PRIVATE, name)
