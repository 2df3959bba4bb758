"""The closed list of alerts: what a person at the cart must know, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deepcovid_edge.reasons import Coded


class AlertCode(Coded):
    """An alert: its code, what has happened, and the fix."""

    UNKNOWN_SENDER = (
        "unknown_sender",
        "A sender that is not named was turned away.",
        "If it may send images, add it as [[peer]] to the configuration and restart the cart. If it"
        " is one already, have it call the cart by the cart's AE title.",
    )
    IMAGE_TOO_LARGE = (
        "image_too_large",
        "An image was larger than the cart takes, and was cut off.",
        "Raise max_image_mib, or have the console send images compressed.",
    )
    DESTINATION_SILENT = (
        "destination_silent",
        "A destination does not answer; results wait here.",
        "Check its power, its network and its AE title; the cart goes on trying by itself.",
    )
    DESTINATION_FAILS = (
        "destination_fails",
        "A destination answers, but does not take results or does not confirm that it keeps them.",
        "See the status, and look at the destination: its disk may be full, or it may not know"
        " storage commitment. The cart goes on trying by itself.",
    )
    DESTINATION_REJECTS = (
        "destination_rejects",
        "A destination rejected a result for good, or does not let the cart in.",
        "Have the destination accept it (see the status). Send what it rejected with"
        " `cart resend`.",
    )
    RESULT_STUCK = (
        "result_stuck",
        "A destination takes other results, but refuses one again and again.",
        "See the status and the image that is named, and look at the log of the destination. The"
        " cart goes on trying by itself.",
    )
    SENDING_FAILS = (
        "sending_fails",
        "Results are not sent to a destination: something is wrong on the cart itself.",
        "See the detail and the log of `cart work`. If a file of the spool belongs to another"
        " account, give it to the account of the cart. The cart goes on trying by itself.",
    )
    DESTINATION_REMOVED = (
        "destination_removed",
        "Results wait for a destination that the configuration does not name any more.",
        "Name it again and restart the cart, or give them up with `cart drain --give-up NAME`.",
    )
    DISK_FLOOR = (
        "disk_floor",
        "The disk is nearly full; not every image is taken.",
        "Free some room on the disk of the spool, or lower keep_days.",
    )
    DISK_FAILS = (
        "disk_fails",
        "Nothing can be written onto the disk of the cart: no image is taken, assessed or"
        " answered.",
        "See the detail. Free some room on the disk of the spool; if it is read-only or fails, have"
        " it repaired. This alert ends by itself.",
    )
    ASSESSOR_STOPPED = (
        "assessor_stopped",
        "Images are received but not assessed.",
        "See the detail: the model, its engine or the memory is the usual cause.",
    )
    RECEIVER_STOPPED = (
        "receiver_stopped",
        "The receiver does not run: no image comes in from consoles or folders.",
        "Start the cart. If it was started, see the log of `cart receive`: often the address"
        " receive.host is no longer one of this machine.",
    )
    WORKER_STOPPED = (
        "worker_stopped",
        "The worker does not run: nothing is assessed, and no result is sent.",
        "Start the cart. If it was started, see the log of `cart work`.",
    )
    MODEL = (
        "model_unverified",
        "The model, or its site file, may not be used.",
        "See the detail: build and verify the engine again, repeat the site check with this model,"
        " or choose another model with `cart model use`.",
    )
    MODEL_NOT_IN_USE = (
        "model_not_in_use",
        "The configuration names a model or a site file that is not in use.",
        "See the detail: run `cart model use` with what the configuration names, or name there what"
        " is in use.",
    )
    CLOCK = (
        "clock",
        "The clock of the cart is wrong, or went ahead by more than a week.",
        "Set the clock, or connect the cart to a time server. If the date is right, the cart was"
        " off for long: this alert ends once the cart has run for a day. Until then no image is"
        " deleted for its age.",
    )
    CERTIFICATE = (
        "certificate",
        "A certificate of the cart ends soon, has ended, or cannot be used.",
        "See the detail: renew or correct the file that is named, and restart the cart.",
    )
    QUARANTINED = (
        "quarantined",
        "An image could not be assessed, or its answer could not be built; it is kept aside.",
        "Look at the image by eye; keep the file in `quarantine` for whoever repairs the cart.",
    )
    FILE_DAMAGED = (
        "file_damaged",
        "A file on the disk of the cart is missing, was changed or cannot be read.",
        "Check the disk, and look at the image that is named by eye. One that could not be read is"
        " assessed once it is sent again.",
    )
    NO_IMAGE = (
        "no_image",
        "No image has arrived for a long time.",
        "Check that the X-ray console still sends to the cart.",
    )
    FOLDER_GONE = (
        "folder_gone",
        "A watched folder cannot be read.",
        "Mount the share again, or correct receive.folders.",
    )
    FILES_UNREAD = (
        "files_unread",
        "Files in a watched folder cannot be read.",
        "Let the account of the cart read them, or remove them; once they can be read they are"
        " taken.",
    )
    IMAGES_CHANGED = (
        "images_changed",
        "The images of the last week differ from those the model was checked with.",
        "Look for a new detector, new processing or other patients; repeat the site check.",
    )
    LEDGER_REBUILT = (
        "ledger_rebuilt",
        "The ledger was damaged and was made again from the files.",
        "Check the disk; the damaged ledger lies beside the new one.",
    )
    LEDGER_RESTORED = (
        "ledger_restored",
        "The ledger was replaced by a nightly copy.",
        "Check that the images since that night are listed; their results may be sent once more.",
    )
    BACKUP = (
        "backup",
        "The nightly copy of the ledger could not be written.",
        "See the detail: the disk of the copies is full, or not mounted.",
    )

    def __init__(self, code: str, sentence: str, fix: str) -> None:
        self.code, self.sentence, self.fix = code, sentence, fix


_OF_SILENCE = (AlertCode.RECEIVER_STOPPED, AlertCode.WORKER_STOPPED, AlertCode.DISK_FAILS)


@dataclass(frozen=True)
class UnknownCode:
    """The code of an alert that another version of the program raised."""

    code: str
    sentence: str = "Another version of the program raised this alert."
    fix: str = "See its code and its detail, and acknowledge it once its cause is over."


@dataclass(frozen=True)
class Alert:
    """An alert that is not over.

    Attributes:
        code: What it is.
        key: What tells it from others of its code.
        detail: Values, such as the name of a destination.
        since: When it began, UTC.
    """

    code: AlertCode | UnknownCode
    key: str
    detail: Mapping[str, object]
    since: str

    @property
    def is_silence(self) -> bool:
        """Whether it is seen by a role's silence: it ends once the role is heard, by no person."""
        return self.code in _OF_SILENCE
