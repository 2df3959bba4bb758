"""What an answer of a destination means for the outbox: it is there, again later, or never."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["sent", "transient", "permanent", "uncertain"]
Cause = Literal["object", "destination", "file"]


@dataclass(frozen=True)
class Answer:
    """What came of sending an object.

    Attributes:
        status: In words, without anything that the other side wrote itself: that may hold names.
        kind: `sent`: it is there; `transient`: try again later; `permanent`: it is refused for
            good; `uncertain`: it may be there.
        cause: Of a failure: this object, the destination as a whole, or the object's file.
        rejects: Whether a destination as a whole refuses by its settings: a person must look.
        is_silent: Whether the destination gave no answer at all.
    """

    status: str
    kind: Kind
    cause: Cause = "object"
    rejects: bool = False
    is_silent: bool = False


def no_answer(status: str, *, is_uncertain: bool = False) -> Answer:
    """That a destination gave no answer.

    Args:
        status: In words.
        is_uncertain: Whether it may have the object all the same.
    """
    kind: Kind = "uncertain" if is_uncertain else "transient"
    return Answer(status, kind, "destination", is_silent=True)


ANSWERS: dict[int, tuple[Kind, str]] = {
    0x0000: ("sent", "success"),
    0x0001: ("sent", "warning"),
    0x0107: ("sent", "warning: attribute list"),
    0x0111: ("sent", "it has this instance already"),
    0x0116: ("sent", "warning: attribute value out of range"),
    0xB000: ("sent", "warning: elements coerced"),
    0xB006: ("sent", "warning: elements discarded"),
    0xB007: ("sent", "warning: data set does not match its class"),
    0x0105: ("permanent", "no such attribute"),
    0x0106: ("permanent", "invalid attribute value"),
    0x0112: ("permanent", "no such instance"),
    0x0115: ("permanent", "invalid argument"),
    0x0117: ("permanent", "invalid instance"),
    0x0118: ("permanent", "no such class"),
    0x0119: ("permanent", "class and instance disagree"),
    0x0120: ("permanent", "attribute missing"),
    0x0121: ("permanent", "attribute value missing"),
    0x0122: ("permanent", "class not supported"),
    0x0124: ("permanent", "not authorised"),
    0x0211: ("permanent", "operation not recognised"),
    0x0212: ("permanent", "argument mistyped"),
    0x0110: ("transient", "processing failure"),
    0x0210: ("transient", "message number in use"),
    0x0213: ("transient", "too few resources"),
}
GROUPS: dict[int, tuple[Kind, str]] = {
    0xA700: ("transient", "out of resources"),
    0xA900: ("permanent", "data set does not match its class"),
    **dict.fromkeys(range(0xC000, 0xD000, 0x100), ("permanent", "cannot be understood")),
}
"""Status -> what it means."""


def answer_of(status: int) -> Answer:
    """What a status of C-STORE means for the outbox (PS3.4, B.2.3; PS3.7, annex C).

    0x0111 counts as sent: one UID of the cart never stands for two contents, so the instance that
    is there is the one that was sent before. What is not in the tables is tried again: the
    standard lets a destination have statuses of its own.
    """
    kind, words = ANSWERS.get(status) or GROUPS.get(status & 0xFF00, ("transient", "failure"))
    return Answer(f"0x{status:04X} {words}", kind)
