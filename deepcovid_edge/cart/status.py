"""How the cart does, read from the ledger alone: it works while every role is down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deepcovid_edge.cart.alerts import Alert, AlertCode, UnknownCode
from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.cart.heartbeat import RECEIVER, WORKER, silent_since
from deepcovid_edge.cart.model_pointer import ModelChoice, RunningModel, model_in_use, running_model
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.schema import IMAGE_STATES, OUTBOX_STATES
from deepcovid_edge.cart.store.spool import write_fault
from deepcovid_edge.errors import UsageError

_STOPPED = {
    RECEIVER: (AlertCode.RECEIVER_STOPPED, "cart receive"),
    WORKER: (AlertCode.WORKER_STOPPED, "cart work"),
}


@dataclass(frozen=True)
class CartStatus:
    """How the cart does.

    Attributes:
        images: Images by state.
        decisions: Results by decision; `not_assessed` for those without one.
        queues: For each destination, objects by state.
        alerts: What is not over.
        model: The model that assesses, and its site file.
        running: What it ran as when the assessor last started; None where it has not since it was
            chosen.
        last_image: When the last image came, UTC; None for never.
    """

    images: Mapping[str, int]
    decisions: Mapping[str, int]
    queues: Mapping[str, Mapping[str, int]]
    alerts: tuple[Alert, ...]
    model: ModelChoice
    running: RunningModel | None
    last_image: str | None

    def as_dict(self) -> dict[str, Any]:
        """The status as plain values."""
        values = asdict(self)
        values["model"] = self.model.name
        values["site"] = str(self.model.site) if self.model.site else None
        values["running"] = self.running._asdict() if self.running else None
        values["alerts"] = [
            {
                "code": alert.code.code,
                "key": alert.key,
                "sentence": alert.code.sentence,
                "fix": alert.code.fix,
                "detail": dict(alert.detail),
                "since": alert.since,
            }
            for alert in self.alerts
        ]
        return values


def read_status(config: CartConfig, ledger: Ledger) -> CartStatus:
    """Read how the cart does."""
    images = dict.fromkeys(IMAGE_STATES, 0)
    images |= _counts(ledger, "SELECT state AS name, count(*) AS n FROM image GROUP BY state")
    decisions = dict.fromkeys(("positive", "negative", "indeterminate", "not_assessed"), 0)
    decisions |= _counts(
        ledger,
        "SELECT coalesce(decision, 'not_assessed') AS name, count(*) AS n FROM result"
        " GROUP BY decision",
    )
    last = ledger.row("SELECT at_utc FROM arrival ORDER BY id DESC LIMIT 1")
    model = model_in_use(config, ledger)
    return CartStatus(
        images,
        decisions,
        _queues(config, ledger),
        tuple(raised_alerts(ledger)),
        model,
        running_model(ledger, model),
        last["at_utc"] if last else None,
    )


def _counts(ledger: Ledger, query: str) -> dict[str, int]:
    return {row["name"]: row["n"] for row in ledger.rows(query)}


def _queues(config: CartConfig, ledger: Ledger) -> dict[str, dict[str, int]]:
    empty = dict.fromkeys(OUTBOX_STATES, 0)
    queues = {one.name: dict(empty) for one in config.destinations}
    for row in ledger.rows(
        "SELECT destination, state, count(*) AS n FROM outbox GROUP BY destination, state"
    ):
        queues.setdefault(row["destination"], dict(empty))[row["state"]] = row["n"]
    return queues


def raised_alerts(ledger: Ledger) -> list[Alert]:
    """The alerts that are not over, the oldest first.

    A role that does not run cannot raise an alert of its own: it is seen by its silence. While
    nothing can be written, no role can say that it runs: the alert names the disk.
    """
    raised = [
        Alert(_code(row["code"]), row["key"], json.loads(row["detail"]), row["since_utc"])
        for row in ledger.rows("SELECT * FROM alert")
    ]
    silent = silent_since(ledger)
    if silent and (why := write_fault(ledger.path.parent)):
        code = AlertCode.DISK_FAILS
        raised.append(Alert(code, code.code, {"why": why}, min(silent.values())))
        silent = {}
    for key, since in silent.items():
        code, process = _STOPPED[key]
        raised.append(Alert(code, code.code, {"process": process}, since))
    return sorted(raised, key=lambda alert: (alert.since, alert.key))


def _code(code: str) -> AlertCode | UnknownCode:
    try:
        return AlertCode.of(code)
    except ValueError:
        return UnknownCode(code)


def find_alert(ledger: Ledger, named: str) -> Alert | None:
    """The alert that a person names by its key, or by a code that it alone has.

    Raises:
        UsageError: Several alerts have that code.
    """
    alerts = raised_alerts(ledger)
    found = [alert for alert in alerts if alert.key == named]
    found = found or [alert for alert in alerts if alert.code.code == named]
    if len(found) > 1:
        known = ", ".join(f'"{alert.key}"' for alert in found)
        raise UsageError(
            f"key: got {named}, which {len(found)} alerts have: expected one of {known}"
        )
    return found[0] if found else None
