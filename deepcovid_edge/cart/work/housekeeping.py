"""What the worker looks after beside the images: room, clock, certificates, and a backup."""

from __future__ import annotations

import gc
import shutil
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.cart.store.backup import FOLDER_NAME, back_up, newest
from deepcovid_edge.cart.store.clock import clock_is_plausible
from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.cart.store.ledger import LEDGER_NAME, Ledger
from deepcovid_edge.cart.store.rebuild import may_lack_images
from deepcovid_edge.cart.store.retention import (
    RetentionSettings,
    clock_went_ahead,
    delete_leftovers,
    delete_old,
)
from deepcovid_edge.cart.store.spool import Spool, SpoolFullError
from deepcovid_edge.device import shares
from deepcovid_edge.device.service import log
from deepcovid_edge.errors import OutputError, one_line

LOOK_SECONDS = 30.0
BACKUP_HOUR = 2
"""Of the night, local time."""
_CERTIFICATE_DAYS = 30
_ALERTS_OF_DESTINATION = ("waits", "rejects", "rejects cart", "stuck", "file", "fault")
"""How the keys of alerts begin that name a destination after a colon; see `send.outbox`."""


class Housekeeping:
    """Looks after a cart now and then, in a thread of its own.

    Args:
        config: The configuration.
        ledger: The ledger.
        spool: The spool folder.
        stop: Ends it when it is set.
        further: What else is done each time, such as the watch for images that have changed.
    """

    def __init__(
        self,
        config: CartConfig,
        ledger: Ledger,
        spool: Spool,
        stop: threading.Event,
        further: Callable[[], None] | None = None,
    ) -> None:
        self.config, self.ledger, self.spool, self.stop = config, ledger, spool, stop
        self._further = further
        self._has_leftovers = True
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the end."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self.stop.is_set():
            self.look()
            # Associations leave cycles of objects; by itself Python lets megabytes of them pile up.
            gc.collect()
            self.stop.wait(LOOK_SECONDS)

    def look(self) -> None:
        """Look once. Where one thing fails, by a disk or a share, the others are done."""
        for step in (
            self._delete_old,
            self._delete_leftovers,
            self.spool.fill_ballast,
            self._back_up,
            self._look_at_disk,
            self._look_at_destinations,
            self._look_at_clock,
            self._look_for_images,
            self._look_at_certificates,
            *([self._further] if self._further else []),
        ):
            try:
                step()
            except Exception as error:
                log("housekeeping", step=getattr(step, "__name__", ""), error=one_line(error))

    def _delete_old(self) -> None:
        committing = tuple(one.name for one in self.config.destinations if one.commitment)
        settings = self.config.cart
        kept = RetentionSettings(
            settings.keep_days, settings.quota_mib, committing, bool(self.config.destinations)
        )
        if deleted := delete_old(self.ledger, self.spool, kept):
            log("deleted", images=deleted)

    def _delete_leftovers(self) -> None:
        """Delete once what an earlier start left of images that are gone.

        A ledger that was replaced may call an image gone that has come again since.
        """
        if self._has_leftovers and not may_lack_images(self.ledger):
            delete_leftovers(self.ledger, self.spool)
            self._has_leftovers = False

    def _back_up(self) -> None:
        """Copy the ledger once a night, perhaps to a share; at the first start at once."""
        settings = self.config.cart
        folder = settings.backup or self.spool.folder / FOLDER_NAME
        code = AlertCode.BACKUP.code

        def copy_if_due(progress: shares.Progress) -> Path | None:
            if not settings.backup_keep or not _is_due(newest(folder)):
                return None
            self._check_room(folder)
            return back_up(self.spool.folder, folder, settings.backup_keep, progress)

        try:
            copy = shares.call(folder, copy_if_due)
        except (OutputError, OSError) as error:
            self.ledger.raise_alert(code, code, why=one_line(error))
            return
        self.ledger.clear_alert(code)
        if copy:
            log("backup", copy=copy.name)

    def _check_room(self, folder: Path) -> None:
        """Check that a copy leaves the room for results, where it lies on the spool's disk.

        Raises:
            SpoolFullError: It does not.
        """
        above = next(place for place in (folder, *folder.parents) if place.exists())
        if above.stat().st_dev == self.spool.folder.stat().st_dev:
            parts = self.spool.folder.glob(f"{LEDGER_NAME}*")
            try:
                self.spool.check_room(sum(part.stat().st_size for part in parts))
            except SpoolFullError as error:  # without its numbers: the alert stays the same
                raise SpoolFullError(
                    f"{folder}: too little room for a copy of the ledger"
                ) from error

    def _look_at_destinations(self) -> None:
        """Nothing is sent to a destination that was removed; an alert names what waits for it."""
        self._clear_alerts_of_removed()
        named = [one.name for one in self.config.destinations]
        waiting = Deliveries(self.ledger, self.spool).of_removed(named)
        code = AlertCode.DESTINATION_REMOVED.code
        if waiting:
            self.ledger.raise_alert(code, code, destination=", ".join(waiting))
        else:
            self.ledger.clear_alert(code)

    def _clear_alerts_of_removed(self) -> None:
        """End alerts of destinations that were removed, or are asked for commitment no more."""
        keys = set()
        for one in self.config.destinations:
            kinds = ("commitment",) if one.commitment else ()
            keys |= {f"{kind}:{one.name}" for kind in (*_ALERTS_OF_DESTINATION, *kinds)}
        for code in (
            AlertCode.DESTINATION_SILENT,
            AlertCode.DESTINATION_FAILS,
            AlertCode.DESTINATION_REJECTS,
            AlertCode.RESULT_STUCK,
            AlertCode.SENDING_FAILS,
        ):
            self.ledger.clear_other_alerts(code.code, keys)
        self.ledger.clear_other_alerts(AlertCode.FILE_DAMAGED.code, keys, begins="file:")

    def _look_at_disk(self) -> None:
        """Whether the largest image that is allowed would be taken."""
        try:
            self.spool.check_room(self.config.receive.max_image_mib << 20)
        except SpoolFullError:
            free = shutil.disk_usage(self.spool.folder).free >> 20
            code = AlertCode.DISK_FLOOR.code  # the receiver's key too: it is one alert
            self.ledger.raise_alert(
                code, code, free_mib=free // 64 * 64
            )  # an event only now and then
        else:
            self.ledger.clear_alert(AlertCode.DISK_FLOOR.code)

    def _look_for_images(self) -> None:
        """Whether images still come, where they came before."""
        hours = self.config.cart.no_image_hours
        last = self.ledger.row("SELECT at_utc FROM arrival ORDER BY id DESC LIMIT 1")
        if not hours or last is None:
            self.ledger.clear_alert(AlertCode.NO_IMAGE.code)
            return
        silent = datetime.now(timezone.utc) - datetime.fromisoformat(last["at_utc"])
        if silent > timedelta(hours=hours):
            code = AlertCode.NO_IMAGE.code
            self.ledger.raise_alert(code, code, last=last["at_utc"], hours=hours)
        else:
            self.ledger.clear_alert(AlertCode.NO_IMAGE.code)

    def _look_at_clock(self) -> None:
        code = AlertCode.CLOCK.code
        if clock_is_plausible() and not clock_went_ahead(self.ledger):
            self.ledger.clear_alert(code)
        else:
            self.ledger.raise_alert(code, code, year=time.gmtime().tm_year)

    def _look_at_certificates(self) -> None:
        files = {f"certificate {of}": path for of, path in _certificates(self.config).items()}
        of_couriers = {f"certificate:{one.name}" for one in self.config.destinations}
        self.ledger.clear_other_alerts(AlertCode.CERTIFICATE.code, files.keys() | of_couriers)
        for key, path in files.items():
            ends = certificate_end(path)
            if ends and ends - datetime.now(timezone.utc) > timedelta(days=_CERTIFICATE_DAYS):
                self.ledger.clear_alert(key)
                continue
            when = ends.date().isoformat() if ends else "cannot be read"
            self.ledger.raise_alert(key, AlertCode.CERTIFICATE.code, file=str(path), ends=when)


def _is_due(copy: Path | None) -> bool:
    """Whether it is night, and the newest copy is of another day, whatever the clock says."""
    if copy is None:
        return True
    now, made = datetime.now(), datetime.fromtimestamp(copy.stat().st_mtime)
    return now.date() != made.date() and (
        now.hour >= BACKUP_HOUR or abs(now - made) > timedelta(days=1)
    )


def _certificates(config: CartConfig) -> dict[str, Path]:
    """The certificates of the cart, each by what it is for: files may share a name."""
    found = {f"destination {one.name}": one.certificate for one in config.destinations}
    found["receive"] = config.receive.certificate
    found["page"] = config.page.certificate if config.page else None
    return {of: path for of, path in found.items() if path}


def certificate_end(path: Path) -> datetime | None:
    """When a certificate ends; None where the file is not one."""
    import ssl

    try:
        decode = ssl._ssl._test_decode_cert  # type: ignore[attr-defined]
        facts = decode(str(path))
        seconds = ssl.cert_time_to_seconds(facts["notAfter"])
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return datetime.fromtimestamp(seconds, timezone.utc)
