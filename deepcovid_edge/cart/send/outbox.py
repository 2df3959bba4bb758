"""Takes what waits in the outbox to its destinations, each by a thread of its own, for ever.

| what happens | what follows |
| --- | --- |
| the destination takes an object | the next one, over the same association |
| it cannot be reached, or the end is uncertain | nothing more until the next wait is over |
| it fails one object for now | that one waits; after three in a row, so does the destination |
| it takes others, but fails one after all waits | an alert names it; it is tried on |
| it refuses one object for good | that one is parked; a person looks, and sends it again |
| it refuses the cart (AE title not known) | an alert at once; it is tried again like a silent one |
| the end of an object is uncertain | its row stays `sending`: C-FIND is asked before a resend |
| its kind is none that the destination gets any more | given up at the start, later left alone |
| the cart itself fails, three times in a row | an alert names the kind of error; tried on |

A refusal of the whole association parks nothing, although the standard calls it permanent: it says
nothing of an object, and once the destination is set right everything goes out by itself.

While a destination is silent, one object at a time is tried after each wait; the first success
sends the rest. One process at a time sends to a destination: it holds a lock in the spool, which
the kernel takes back however the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import CartConfig, Destination
from deepcovid_edge.cart.heartbeat import WORKER, runs
from deepcovid_edge.cart.send.answers import Answer
from deepcovid_edge.cart.send.association import CertificateError, Timeouts
from deepcovid_edge.cart.send.commitment import CommitmentUser
from deepcovid_edge.cart.send.dimse import FILE_STATUS, DimseSender, Sender
from deepcovid_edge.cart.send.stow import StowSender
from deepcovid_edge.cart.store.clock import now_utc
from deepcovid_edge.cart.store.deliveries import (
    BACKOFF_SECONDS,
    Deliveries,
    Delivery,
    with_jitter,
)
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.schema import unanswered
from deepcovid_edge.cart.store.spool import Spool
from deepcovid_edge.device.service import log
from deepcovid_edge.errors import one_line

FAILURES_UNTIL_ALERT = 3
STOP_SECONDS = 5.0
"""A role ends within this time; what is sent then has an uncertain end."""
_GRACE_SECONDS = 2.0
_LOOK_SECONDS = 0.5
"""How often a sender looks for new work without being woken."""
_AFTER_FAULT_SECONDS = 5.0
_MOST = 100
"""Objects that are read from the ledger at once."""
_MOST_NAMED = 20
"""Images that an alert names."""
_DAMAGED = f"(state = 'parked' AND last_status LIKE '{FILE_STATUS}%')"
_REJECTED = f"(state = 'parked' AND coalesce(last_status, '') NOT LIKE '{FILE_STATUS}%')"
"""SQL of rows of the outbox that wait for a person: for the cart's fault, for the destination's."""
_SEND_AGAIN, _DRAIN = "send again", "drain"
"""Events that end every wait."""


def make_sender(
    destination: Destination, ae_title: str, timeouts: Timeouts | None = None
) -> Sender:
    """A sender to a destination: STOW-RS where it has a URL, else DIMSE."""
    kind = DimseSender if destination.url is None else StowSender
    return kind(destination, ae_title, timeouts)


class Waiting(NamedTuple):
    """What keeps a cart from having sent everything.

    Attributes:
        images: Images that wait to be assessed.
        objects: Objects that are not at their destination yet.
        parked: Objects that a destination rejected.
        damaged: Objects that cannot be sent: their file is not what was built.
        unanswered: Images without an answer that could be sent.
    """

    images: int
    objects: int
    parked: int
    damaged: int
    unanswered: int


class Outbox:
    """Sends to every destination of a configuration.

    Args:
        config: The configuration.
        ledger: The ledger.
        spool: Its spool.
        timeouts: Longest waits for a destination.
        waits: Waits after a first, second, ... failure of a destination, seconds.
    """

    def __init__(
        self,
        config: CartConfig,
        ledger: Ledger,
        spool: Spool,
        *,
        timeouts: Timeouts | None = None,
        waits: tuple[float, ...] = BACKOFF_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._config, self._stopping = config, threading.Event()
        self._deliveries = Deliveries(ledger, spool)
        title = config.receive.ae_title
        self._couriers = [
            Courier(one, title, self._deliveries, timeouts=timeouts, waits=waits)
            for one in config.destinations
        ]

    def start(self) -> None:
        """Start to send."""
        for courier in self._couriers:
            courier.start()

    def wake(self) -> None:
        """There is something new to send."""
        for courier in self._couriers:
            courier.wake()

    def stop(self) -> None:
        """Stop sending, within `STOP_SECONDS`; an object that is being sent may get so long."""
        ends = time.monotonic() + STOP_SECONDS
        running = [courier for courier in self._couriers if courier.is_alive()]
        for courier in running:
            courier.ask_to_stop()
        for courier in running:
            courier.join(max(0.0, ends - STOP_SECONDS + _GRACE_SECONDS - time.monotonic()))
        for courier in running:
            courier.cut()
        for courier in running:
            courier.join(max(0.0, ends - time.monotonic()))

    def drain(self, seconds: float) -> int:
        """Send what waits now, without the waits after earlier failures.

        Where another process of the cart sends, it is asked to do so. While a worker runs, images
        that wait to be assessed are waited for too.

        Returns:
            How many objects are not at their destination yet; parked ones do not count.
        """
        self._ledger.event(_DRAIN)
        is_own = not any(courier.is_alive() for courier in self._couriers)
        if is_own:  # couriers heed what is asked after their start
            for one in self._config.destinations:
                self._deliveries.hasten(one.name)
            self.start()
        self.wake()
        ends = time.monotonic() + seconds
        while self._goes_on() and time.monotonic() < ends:
            time.sleep(min(0.1, seconds))
        if is_own:
            self.stop()
        return self.waiting().objects

    def _goes_on(self) -> bool:
        left = self.waiting()
        return left.objects > 0 or (left.images > 0 and runs(self._ledger, WORKER))

    def waiting(self) -> Waiting:
        """What waits now; what waits for destinations that are not named any more is left out."""
        pairs = [(one.name, kind) for one in self._config.destinations for kind in one.objects]
        marks = ", ".join(["(?, ?)"] * len(pairs)) or "(NULL, NULL)"
        lacks_answer = unanswered(has_destinations=bool(pairs))
        row = self._ledger.row(
            "SELECT (SELECT count(*) FROM image WHERE state IN ('received', 'assessing')),"
            " count(*) FILTER (WHERE state IN ('queued', 'sending')),"
            f" count(*) FILTER (WHERE {_REJECTED}), count(*) FILTER (WHERE {_DAMAGED}),"
            " (SELECT count(*) FROM image WHERE state IN ('assessed', 'not_assessed')"
            f" AND {lacks_answer})"
            " FROM outbox JOIN object ON object.id = object_id"
            f" WHERE (destination, kind) IN (VALUES {marks})",
            *(value for pair in pairs for value in pair),
        )
        return Waiting(*(row or (0, 0, 0, 0, 0)))


class Courier(threading.Thread):
    """The thread that sends to one destination; see `Outbox`."""

    def __init__(
        self,
        destination: Destination,
        ae_title: str,
        deliveries: Deliveries,
        *,
        timeouts: Timeouts | None = None,
        waits: tuple[float, ...] = BACKOFF_SECONDS,
    ) -> None:
        super().__init__(name=f"send to {destination.name}", daemon=True)
        self._destination, self._ae_title = destination, ae_title
        self._deliveries, self._ledger = deliveries, deliveries.ledger
        self._timeouts, self._waits = timeouts, waits
        self._sender: Sender | None = None
        self._commitment: CommitmentUser | None = None
        self._stopping, self._woken = threading.Event(), threading.Event()
        self._has_given_up = False
        self._failures = self._faults = 0
        self._failing_since = ""
        self._held_until = 0.0
        self._uncertain_until: dict[int, float] = {}
        self._failed_tries: dict[int, int] = {}
        self._refused: Counter[int] = Counter()
        self._stuck = f"(state IN ('queued', 'sending') AND tries >= {len(waits)})"
        self._last_event = 0

    def wake(self) -> None:
        """There is something new to send."""
        self._woken.set()

    def ask_to_stop(self) -> None:
        """Send nothing more behind the object that is sent now."""
        self._stopping.set()
        self._woken.set()

    def cut(self) -> None:
        """End the connection, and open none any more."""
        for one in (self._sender, self._commitment):
            if one is not None:
                one.stop()

    def run(self) -> None:
        """Send until asked to stop; nothing that fails ends this."""
        while not self._stopping.is_set():
            try:
                with self._lock() as is_held:
                    if is_held:
                        self._send_for_ever()
                self._wait(_LOOK_SECONDS)
            except Exception as error:  # the ledger is full, a certificate is gone, a fault
                # Its kind alone: the text may hold what a peer wrote.
                log("outbox fault", destination=self._destination.name, error=type(error).__name__)
                self._tell_of_fault(error)
                self._wait(_AFTER_FAULT_SECONDS)

    def _tell_of_fault(self, error: Exception) -> None:
        """Raise an alert once one fault follows the other; a certificate has one of its own."""
        self._faults += 1
        if self._faults < FAILURES_UNTIL_ALERT or isinstance(error, CertificateError):
            return
        name = self._destination.name
        detail = {"destination": name, "error": type(error).__name__}
        if isinstance(error, OSError) and error.filename:
            detail["file"] = str(error.filename)  # of the cart: no peer names one
        with contextlib.suppress(Exception):  # it may be the ledger that fails
            self._ledger.raise_alert(f"fault:{name}", AlertCode.SENDING_FAILS.code, **detail)

    def _send_for_ever(self) -> None:
        self._last_event = self._newest_event()
        if not self._has_given_up:
            self._give_up_other_kinds()
            self._has_given_up = True  # not after a fault: see `_due`
        self._clear_object_alerts()
        key = f"certificate:{self._destination.name}"
        try:
            sender = make_sender(self._destination, self._ae_title, self._timeouts)
        except CertificateError as error:
            detail = {"destination": self._destination.name, "why": one_line(error)}
            self._ledger.raise_alert(key, AlertCode.CERTIFICATE.code, **detail)
            raise
        self._sender = sender
        if self._destination.commitment:
            self._commitment = CommitmentUser(
                self._destination, self._ae_title, self._deliveries, self._timeouts
            )
        self._ledger.clear_alert(key)
        try:
            while not self._stopping.is_set():
                self._round(sender)
                self._wait(_LOOK_SECONDS)
        finally:
            sender.close()

    def _wait(self, seconds: float) -> None:
        self._woken.wait(seconds)
        if not self._stopping.is_set():
            self._woken.clear()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[bool]:
        """Whether this process alone sends to the destination now."""
        path = self._deliveries.spool.folder / f".outbox-{self._destination.name}.lock"
        with path.open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def _round(self, sender: Sender) -> None:
        """Send what is due, until nothing is or the destination fails."""
        if self._is_asked_for():
            self._held_until, self._uncertain_until = 0.0, {}
            self._write(lambda: self._deliveries.hasten(self._destination.name))
        while not self._stopping.is_set() and time.monotonic() >= self._held_until:
            due = self._due()
            if not due:
                break
            for delivery in due:
                if self._stopping.is_set() or time.monotonic() < self._held_until:
                    break
                self._deliver(sender, delivery)
        sender.close()
        self._clear_object_alerts()
        if self._commitment is not None and time.monotonic() >= self._held_until:
            self._commitment.ask(self._stopping)
        self._faults = 0
        self._ledger.clear_alert(f"fault:{self._destination.name}")

    def _due(self) -> list[Delivery]:
        """What is due. What failed before comes last: it must not hold up the others.

        Left out is what has an uncertain end and waits for its next try, and what is of other
        kinds: a newer configuration may have queued it, for the sender of the next start.
        """
        now = time.monotonic()
        most = _MOST + len(self._failed_tries)
        due = self._deliveries.due(self._destination.name, most, self._destination.objects)
        due = [one for one in due if self._uncertain_until.get(one.object_id, 0.0) <= now]
        return sorted(due, key=lambda one: self._failed_tries.get(one.object_id, 0))[:_MOST]

    def _give_up_other_kinds(self) -> None:
        """Forget objects that wait, of kinds which the destination does not get any more."""
        name, kinds = self._destination.name, self._destination.objects

        def give_up() -> None:
            if count := self._deliveries.give_up(name, but=kinds):
                log("given up", destination=name, objects=count, why="kind")

        self._write(give_up)

    def _deliver(self, sender: Sender, delivery: Delivery) -> None:
        self._write(lambda: self._deliveries.begin(delivery))
        try:
            answer = self._answer(sender, delivery)
        except Exception as error:  # one object that cannot be sent must not hold up the others
            log("send fault", destination=self._destination.name, error=type(error).__name__)
            sender.cut()
            answer = Answer(f"fault: {type(error).__name__}", "uncertain")
        self._settle(delivery, answer)

    def _answer(self, sender: Sender, delivery: Delivery) -> Answer:
        if delivery.is_uncertain and self._destination.find and sender.has(delivery):
            return Answer("found there by C-FIND", "sent")
        return sender.send(delivery)

    def _settle(self, delivery: Delivery, answer: Answer) -> None:
        if answer.kind == "sent":
            self._write(lambda: self._deliveries.sent(delivery, answer.status))
            self._forget(delivery)
            self._succeeded()
        elif answer.kind == "permanent":
            self._write(lambda: self._deliveries.park(delivery, answer.status))
            self._forget(delivery)
            if answer.cause == "file":
                images = self._images(_DAMAGED)
                self._raise_alert("file", AlertCode.FILE_DAMAGED, answer, images=images)
            else:
                self._raise_rejection_alert(answer)
                self._answered()
        else:
            self._put_off(delivery, answer)
            self._failed(answer)
            self._raise_stuck_alert(delivery, answer)

    def _forget(self, delivery: Delivery) -> None:
        self._uncertain_until.pop(delivery.object_id, None)
        self._failed_tries.pop(delivery.object_id, None)
        self._refused.pop(delivery.object_id, None)

    def _put_off(self, delivery: Delivery, answer: Answer) -> None:
        tries = self._failed_tries.get(delivery.object_id, 0)
        self._failed_tries[delivery.object_id] = tries + 1
        is_uncertain = answer.kind == "uncertain" or delivery.is_uncertain
        if not is_uncertain:
            self._write(lambda: self._deliveries.defer(delivery, answer.status))
            return
        # The row stays `sending`: after a restart, too, the end of this object is uncertain.
        wait = self._waits[min(delivery.tries, len(self._waits) - 1)]
        self._uncertain_until[delivery.object_id] = time.monotonic() + wait
        if answer.kind == "uncertain":
            self._write(lambda: self._deliveries.note("uncertain", delivery, answer.status))

    def _failed(self, answer: Answer) -> None:
        self._failures += 1
        self._failing_since = self._failing_since or now_utc()
        name = self._destination.name
        if answer.cause == "destination" or self._failures >= FAILURES_UNTIL_ALERT:
            at = min(self._failures, len(self._waits)) - 1
            wait = with_jitter(self._waits[at])
            self._held_until = time.monotonic() + wait
        if answer.rejects:
            self._raise_rejection_alert(answer)
            self._write(lambda: self._ledger.clear_alert(f"waits:{name}"))
        elif self._failures >= FAILURES_UNTIL_ALERT:
            silent, fails = AlertCode.DESTINATION_SILENT, AlertCode.DESTINATION_FAILS
            code = silent if answer.is_silent else fails
            self._raise_alert("waits", code, answer, since=self._failing_since)

    def _succeeded(self) -> None:
        had_failed = self._failures > 0
        self._answered()
        if had_failed:
            self._write(lambda: self._deliveries.hasten(self._destination.name))

    def _answered(self) -> None:
        """The destination is there: it took an object, or refused one for itself."""
        self._failures, self._failing_since, self._held_until = 0, "", 0.0
        self._write(lambda: self._ledger.clear_alert(f"waits:{self._destination.name}"))
        self._write(lambda: self._ledger.clear_alert(f"rejects cart:{self._destination.name}"))

    def _raise_alert(self, kind: str, code: AlertCode, answer: Answer, **more: object) -> None:
        name = self._destination.name
        detail = {"destination": name, "status": answer.status, **more}
        self._write(lambda: self._ledger.raise_alert(f"{kind}:{name}", code.code, **detail))

    def _raise_rejection_alert(self, answer: Answer) -> None:
        kind = "rejects cart" if answer.rejects else "rejects"
        self._raise_alert(kind, AlertCode.DESTINATION_REJECTS, answer)

    def _raise_stuck_alert(self, delivery: Delivery, answer: Answer) -> None:
        """Tell of an object that was refused after every wait by a destination that answers."""
        if answer.cause != "object":
            return
        self._refused[delivery.object_id] += 1
        is_stuck = self._refused[delivery.object_id] >= len(self._waits)
        if is_stuck and self._failures < FAILURES_UNTIL_ALERT:
            images = self._images(self._stuck)
            self._raise_alert("stuck", AlertCode.RESULT_STUCK, answer, images=images)

    def _images(self, which: str) -> str:
        """The images with such an object for the destination; an empty text where none has."""
        rows = self._ledger.rows(
            "SELECT image_id FROM outbox JOIN object ON object.id = object_id"
            f" JOIN result ON result.id = result_id WHERE destination = ? AND {which}",
            self._destination.name,
        )
        return _named([row["image_id"] for row in rows])

    def _clear_object_alerts(self) -> None:
        """End what was said of single objects, once none is so; name those that are damaged now."""
        for kind, which in (("rejects", _REJECTED), ("file", _DAMAGED), ("stuck", self._stuck)):
            key = f"{kind}:{self._destination.name}"
            alert = self._ledger.row("SELECT code, detail FROM alert WHERE key = ?", key)
            if alert is None:
                continue
            images, detail = self._images(which), json.loads(alert["detail"])
            if not images:
                self._ledger.clear_alert(key)
            elif kind == "file" and detail.get("images") != images:
                self._ledger.raise_alert(key, alert["code"], **{**detail, "images": images})

    def _newest_event(self) -> int:
        row = self._ledger.row("SELECT max(id) AS id FROM event")
        return int(row["id"] or 0) if row else 0

    def _is_asked_for(self) -> bool:
        """Whether a person, in any process, has asked since to send again or to drain."""
        rows = self._ledger.rows("SELECT id, kind FROM event WHERE id > ?", self._last_event)
        self._last_event = max([self._last_event, *(row["id"] for row in rows)])
        return any(row["kind"] in (_SEND_AGAIN, _DRAIN) for row in rows)

    def _write(self, write: Callable[[], Any]) -> None:
        self._deliveries.spool.write_in_reserve(write)


def _named(images: Collection[int]) -> str:
    """Numbers of images, so many as fit into an alert."""
    numbers = sorted({*images})
    more = len(numbers) - _MOST_NAMED
    shown = ", ".join(map(str, numbers[:_MOST_NAMED]))
    return f"{shown} and {more} more" if more > 0 else shown
