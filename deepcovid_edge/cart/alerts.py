"""The closed list of alerts: what a person at the cart must know, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class AlertCode(Enum):
    """An alert: its code, what has happened, and the fix."""

    UNKNOWN_SENDER = (
        "unknown_sender",
        "A sender that is not named was turned away.",
        "If it may send films, add it as [[peer]] to the configuration and restart the cart.",
    )
    FILM_TOO_LARGE = (
        "film_too_large",
        "A film was larger than the cart takes, and was cut off.",
        "Raise max_film_mib, or have the console send films compressed.",
    )
    DESTINATION_SILENT = (
        "destination_silent",
        "A destination does not answer; results wait here.",
        "Check its power, its network and its AE title; the cart goes on trying by itself.",
    )
    DESTINATION_REFUSES = (
        "destination_refuses",
        "A destination refused a result for good.",
        "Have the destination accept it (see the status), then `cart resend`.",
    )
    DISK_FLOOR = (
        "disk_floor",
        "The disk is nearly full; no film is taken.",
        "Free some room on the disk of the spool, or lower keep_days.",
    )
    JUDGE_STOPPED = (
        "judge_stopped",
        "Films are received but not judged.",
        "See the detail: the model, its engine or the memory is the usual cause.",
    )
    MODEL = (
        "model_unverified",
        "The model, or its site file, may not be used.",
        "Build and verify the engine again, or choose another model with `cart model use`.",
    )
    CLOCK = (
        "clock",
        "The clock of the cart is wrong or not synchronised.",
        "Set the clock, or connect the cart to a time server.",
    )
    CERTIFICATE = (
        "certificate",
        "A certificate of the cart ends soon, or has ended.",
        "Renew the certificate that is named, and restart the cart.",
    )
    QUARANTINED = (
        "quarantined",
        "A film could not be judged in three tries; it is kept aside.",
        "Look at the film by eye; keep the file in `quarantine` for whoever mends the cart.",
    )
    NO_FILM = (
        "no_film",
        "No film has arrived for a long time.",
        "Check that the X-ray console still sends to the cart.",
    )
    FOLDER_GONE = (
        "folder_gone",
        "A watched folder cannot be read.",
        "Mount the share again, or correct receive.folders.",
    )
    FILMS_CHANGED = (
        "films_changed",
        "The films of the last week differ from those the model was checked with.",
        "Look for a new detector, new processing or other patients; repeat the site check.",
    )
    LEDGER_REBUILT = (
        "ledger_rebuilt",
        "The ledger was damaged and was made again from the files.",
        "Check the disk; the damaged ledger lies beside the new one.",
    )
    SELF_TEST = (
        "self_test",
        "The self-test at the start failed: films are received but not judged.",
        "See the detail, then restart the cart.",
    )

    def __init__(self, code: str, sentence: str, fix: str) -> None:
        self.code, self.sentence, self.fix = code, sentence, fix

    @classmethod
    def of(cls, code: str) -> AlertCode:
        """The alert with a code."""
        return next(member for member in cls if member.code == code)


@dataclass(frozen=True)
class Alert:
    """An alert that is not over.

    Attributes:
        code: What it is.
        key: What tells it from others of its code.
        detail: Values, such as the name of a destination.
        since: When it began, UTC.
    """

    code: AlertCode
    key: str
    detail: Mapping[str, object]
    since: str
