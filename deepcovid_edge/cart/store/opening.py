"""How a role opens the store: folders made, a damaged ledger made again from the files."""

from __future__ import annotations

from pathlib import Path

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import CartSettings
from deepcovid_edge.cart.model_pointer import settle_pointer
from deepcovid_edge.cart.store.backup import FOLDER_NAME, newest
from deepcovid_edge.cart.store.ledger import (
    LEDGER_NAME,
    Ledger,
    LedgerDamagedError,
)
from deepcovid_edge.cart.store.rebuild import (
    ALERT_KEY,
    delete_unfinished,
    rebuild,
    replaced_ledger,
)
from deepcovid_edge.cart.store.spool import Spool, SpoolSettings
from deepcovid_edge.device import shares
from deepcovid_edge.errors import NotThereError
from deepcovid_edge.files import locked


def open_store(settings: CartSettings) -> tuple[Ledger, Spool]:
    """Open spool and ledger; the first role to find a damaged ledger makes it again.

    Raises:
        OutputError: The spool cannot be written.
        NewerLedgerError: The ledger is of a newer version of this program.
    """
    spool = Spool(
        settings.spool,
        SpoolSettings(settings.floor_mib, settings.floor_share, settings.ballast_mib),
    )
    with locked(spool.folder, LEDGER_NAME):
        ledger = _open(spool, settings.backup or spool.folder / FOLDER_NAME)
        try:
            settle_pointer(settings, ledger)
        except BaseException:
            ledger.close()
            raise
        return ledger, spool


def open_ledger(settings: CartSettings, *, read_only: bool) -> Ledger:
    """Open the ledger of a spool that is there.

    Raises:
        NotThereError: There is no ledger yet: the cart has never run with this configuration.
        LedgerDamagedError: It is damaged; the next start of the cart makes it again.
    """
    if not (settings.spool / LEDGER_NAME).is_file():
        raise NotThereError(f"{settings.spool / LEDGER_NAME}: is not there: the cart never ran")
    return Ledger(settings.spool, read_only=read_only)


def _open(spool: Spool, copies: Path) -> Ledger:
    delete_unfinished(spool)
    if _is_lost(spool):
        return _made_again(spool, copies, "the ledger was gone, the images were not")
    try:
        ledger = Ledger(spool.folder)
        try:
            ledger.check()
        except BaseException:
            ledger.close()
            raise
    except LedgerDamagedError as error:
        return _made_again(spool, copies, str(error))
    return ledger


def _is_lost(spool: Spool) -> bool:
    """Whether there are images, but no ledger, or one that a power cut left without a byte."""
    place = spool.folder / LEDGER_NAME
    is_there = place.is_file() and place.stat().st_size > 0
    return not is_there and any((spool.folder / "images").iterdir())


def _made_again(spool: Spool, copies: Path, why: str) -> Ledger:
    """Make the ledger again; where the disk is full, in the room of the ballast."""

    def make() -> None:
        delete_unfinished(spool)
        with replaced_ledger(spool, "damaged") as ledger:
            found = rebuild(ledger, spool, _newest(copies))
            code = AlertCode.LEDGER_REBUILT.code
            ledger.raise_alert(ALERT_KEY, code, images=found, why=why)

    spool.write_in_reserve(make)
    return Ledger(spool.folder)


def _newest(copies: Path) -> Path | None:
    """The newest nightly copy; None where there is none, or its disk or share fails."""
    try:
        return shares.call(copies, lambda _: newest(copies))
    except OSError:
        return None
