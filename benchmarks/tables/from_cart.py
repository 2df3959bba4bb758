"""Tables of the cart: its configuration, its alerts, and its DICOM conformance statement."""

from __future__ import annotations

from benchmarks.tables.from_code import field_rows
from benchmarks.tables.table import Table
from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import (
    CartSettings,
    Destination,
    PageSettings,
    Peer,
    ReceiveSettings,
)
from deepcovid_edge.cart.objects.common import implementation_name
from deepcovid_edge.cart.objects.uids import IMPLEMENTATION_UID
from deepcovid_edge.cart.receive.connections import Limits
from deepcovid_edge.cart.receive.receiver import IMAGES, STATUSES, transfer_syntaxes
from deepcovid_edge.cart.send.answers import ANSWERS, GROUPS
from deepcovid_edge.cart.send.commitment import PUSH_MODEL
from deepcovid_edge.cart.send.dimse import FIND, VERIFICATION
from deepcovid_edge.manifest import VERSION

_TABLES = {
    "cart": CartSettings,
    "receive": ReceiveSettings,
    "[peer]": Peer,
    "[destination]": Destination,
    "page": PageSettings,
}
_FOLLOWS = {
    "sent": "sent",
    "transient": "tried again, for ever",
    "permanent": "parked; a person looks",
}
_REPORT, _REPORT_3D, _CAPTURE = (
    ("Comprehensive SR Storage", "1.2.840.10008.5.1.4.1.1.88.33"),
    ("Comprehensive 3D SR Storage", "1.2.840.10008.5.1.4.1.1.88.34"),
    ("Secondary Capture Image Storage", "1.2.840.10008.5.1.4.1.1.7"),
)


def configuration() -> Table:
    """Every key of the configuration with its default."""
    rows = []
    for table, kind in _TABLES.items():
        rows += [(f"`[{table}]`", *row) for row in field_rows(kind, "")]
    return Table(("table", "key", "default", "meaning"), rows)


def alerts() -> Table:
    """Every alert with what to do about it."""
    found = [(f"`{one.code}`", one.sentence, one.fix) for one in AlertCode]
    return Table(("alert", "what has happened", "what to do"), found)


def classes() -> Table:
    """SOP classes by role."""
    rows = [(name, uid, "SCP", "takes images") for uid, name in IMAGES.items()]
    rows += [
        ("Verification", VERIFICATION, "SCP, SCU", "C-ECHO; `cart check-config` asks"),
        ("Storage Commitment Push Model", PUSH_MODEL, "SCP, SCU", "`commitment = true`"),
        (*_REPORT, "SCU", "sends reports"),
        (*_REPORT_3D, "SCU", '`report = "comprehensive3d"`'),
        (*_CAPTURE, "SCU", "sends pictures"),
        ("Study Root Query/Retrieve - FIND", FIND, "SCU", "`find = true`, after an uncertain end"),
    ]
    return Table(("SOP class", "UID", "role", "use"), rows)


def syntaxes() -> Table:
    """Transfer syntaxes in which images are taken, as they come."""
    from pydicom.uid import UID

    return Table(("transfer syntax", "UID"), [(UID(one).name, one) for one in transfer_syntaxes()])


def statuses() -> Table:
    """What the cart answers to C-STORE."""
    return Table(("answer", "when"), [(f"0x{status:04X}", why) for status, why in STATUSES.items()])


def answers() -> Table:
    """What follows from a destination's answer."""
    rows = [(f"0x{status:04X}", words, _FOLLOWS[kind]) for status, (kind, words) in ANSWERS.items()]
    rows += [
        (f"0x{group:04X} to 0x{group + 0xFF:04X}", words, _FOLLOWS[kind])
        for group, (kind, words) in GROUPS.items()
    ]
    rows.append(("any other", "failure", _FOLLOWS["transient"]))
    return Table(("answer", "means", "what follows"), rows)


def implementation() -> Table:
    """By what its associations and its files are known."""
    import pynetdicom

    rows = [
        (
            "associations",
            pynetdicom.PYNETDICOM_IMPLEMENTATION_UID,
            pynetdicom.PYNETDICOM_IMPLEMENTATION_VERSION,
        ),
        ("reports and pictures", IMPLEMENTATION_UID, implementation_name(VERSION)),
    ]
    return Table(("of", "Implementation Class UID", "Implementation Version Name"), rows)


def limits() -> Table:
    """What a connection may do."""
    return Table(("limit", "value", "meaning"), field_rows(Limits, ""))


TABLES = {
    "cart-configuration": configuration,
    "cart-alerts": alerts,
    "cart-classes": classes,
    "cart-syntaxes": syntaxes,
    "cart-statuses": statuses,
    "cart-answers": answers,
    "cart-limits": limits,
    "cart-implementation": implementation,
}
