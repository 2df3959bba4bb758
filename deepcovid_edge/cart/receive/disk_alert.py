"""The alert that images are not taken for want of room, raised by whoever does not take one."""

from __future__ import annotations

import contextlib

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.store.intake import Intake
from deepcovid_edge.errors import OutputError

_CODE = AlertCode.DISK_FLOOR.code


def raise_disk_alert(intake: Intake) -> None:
    """Raise the alert, unless it is raised. The worker clears it when there is room again."""
    ledger = intake.ledger
    with contextlib.suppress(OutputError):  # the reserve is full too
        if not ledger.row("SELECT 1 FROM alert WHERE key = ?", _CODE):
            intake.spool.write_in_reserve(lambda: ledger.raise_alert(_CODE, _CODE))
