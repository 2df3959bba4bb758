"""`cart work`: assesses images one after another, and sends what came of them.

The assessor is a child process, which has the next image while the result of the last one is
written. An image that ends it is tried again, three times in all; then it is not assessed, it is
kept aside, and an alert names it. That the cart itself is ended is seldom the image's fault, so it
costs an image one of more tries; one that was tried before is assessed while no other is written. A
server that does not answer costs none. Results, their objects and the outbox are one transaction,
so an image is assessed once whatever happens in between. One that is assessed again has its objects
made at the time of the first ones, so that their bytes are the same.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.cart.heartbeat import WORKER, Heartbeat
from deepcovid_edge.cart.model_pointer import ModelChoice, model_in_use, note_running
from deepcovid_edge.cart.store.clock import now_utc
from deepcovid_edge.cart.store.images import ClaimedImage, Images, Settled
from deepcovid_edge.cart.store.ledger import Ledger, LedgerBusyError, LedgerFullError
from deepcovid_edge.cart.store.rebuild import RECORD_NAME, settled_text
from deepcovid_edge.cart.store.schema import ASSESSOR_ALERT, ASSESSOR_KEY, HAS_NONE
from deepcovid_edge.cart.store.spool import Spool, SpoolFullError
from deepcovid_edge.cart.work.assessor import (
    AssessorCrashedError,
    AssessorFailedError,
    AssessorProcess,
    NotBuiltError,
    ServerAwayError,
)
from deepcovid_edge.device.service import beat_seconds, log, notify
from deepcovid_edge.errors import DeepCovidEdgeError, one_line
from deepcovid_edge.files import Closing
from deepcovid_edge.reasons import Reason

_LOOK_SECONDS = 0.1
"""Between two looks for an image: a look takes some microseconds."""
_RESTART_SECONDS = (1.0, 5.0, 30.0, 120.0)
"""Waits before an assessor that cannot be loaded is started again; the last is repeated."""
_MOST_CRASHES = 3
"""Assessors that an image may end."""
_MOST_TRIES = 10
"""Tries of an image, those included in which the cart itself was ended: it may be why. Likewise
times that a server which was there gave no answer for it."""
_FINISH_SECONDS = 5.0
"""Longest wait for the image in work once the cart is to stop; then it is given back."""


class Worker(Closing):
    """Assesses the images of a spool. All of it runs in the thread that calls `run`.

    Args:
        config: The configuration.
        ledger: The ledger.
        spool: The spool folder.
        stop: Ends `run` when it is set.
        settled: Called when there is something to send.
    """

    def __init__(
        self,
        config: CartConfig,
        ledger: Ledger,
        spool: Spool,
        stop: threading.Event,
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        self._settled = settled
        self.config, self.ledger, self.spool, self.stop = config, ledger, spool, stop
        self.images = Images(ledger, spool)
        self.destinations: Mapping[str, Sequence[str]] = {
            one.name: one.objects for one in config.destinations
        }
        self._assessor: AssessorProcess | None = None
        self._ahead: ClaimedImage | None = None
        self._asked = 0.0
        self._stopped: float | None = None
        self._lacks_room = self._must_release = False
        self._crashes: Counter[int] = Counter()
        self._unanswered: Counter[int] = Counter()
        self._made: dict[int, str] = {}
        self._failures = 0
        self._heart = Heartbeat(ledger, WORKER)
        self._fed = 0.0
        self._beat = beat_seconds()

    def run(self) -> None:
        """Assess images until the stop, or until the ledger is of no use any more."""
        if found := self.images.release():
            log("images given back", images=found)
        notify("READY=1")  # results are sent, and the page answers, while a model is loaded
        while not self.stop.is_set():
            if self.ledger.is_of_no_use():
                log("work ends", why="the ledger is damaged, or was made again")
                return
            try:
                self._feed_watchdog()
                self._note_alive()
                self._release()
                if self._ready() is None or not self.assess_next():
                    self.stop.wait(_LOOK_SECONDS)
            except (LedgerBusyError, SpoolFullError) as error:
                log("disk", error=one_line(error))
                if isinstance(error, LedgerFullError | SpoolFullError):
                    self.spool.drop_ballast()
                self._lacks_room = self._must_release = True
                self.stop.wait(1.0)
        with suppress(LedgerBusyError, SpoolFullError):
            if self._ahead:
                self.assess_next()
            self._release()

    def _release(self) -> None:
        """Give back what could not even be given back when it failed; no try counts."""
        if self._must_release:
            self._drop_ahead()
            self.images.release(counts=False)
            self._must_release = False

    def _note_alive(self) -> None:
        if self._heart.beat():
            notify(f"STATUS=Images that wait: {self.images.waiting()}")

    def _feed_watchdog(self) -> None:
        """Tell systemd that the loop turns: every wait within it has an end of its own."""
        if time.monotonic() - self._fed >= self._beat:
            self._fed = time.monotonic()
            notify("WATCHDOG=1")

    def _while_waiting(self) -> None:
        """What is done each second while the assessor is waited for.

        Raises:
            AssessorCrashedError: The cart is to stop, and does not wait any longer.
        """
        self._feed_watchdog()
        with suppress(LedgerBusyError):  # the answer is still to be read
            self._note_alive()
        if not self.stop.is_set():
            return
        self._stopped = self._stopped or time.monotonic()
        if self._assessor is None or time.monotonic() - self._stopped > _FINISH_SECONDS:
            raise AssessorCrashedError("the cart stops")

    def _ready(self) -> AssessorProcess | None:
        """The assessor with the model in use; None while it cannot be loaded."""
        if self._ahead:
            return self._assessor
        model, site = model_in_use(self.config, self.ledger)
        if not self._has(model, site):
            self._end_assessor()
            self._assessor = self._start(model, site)
        return self._assessor

    def _has(self, model: str, site: Path | None) -> bool:
        """Whether the assessor is there, and has this model."""
        known = self._assessor
        return known is not None and (known.model, known.site) == (model, site)

    def _start(self, model: str, site: Path | None) -> AssessorProcess | None:
        try:
            assessor = AssessorProcess(self.config, model, site, self._while_waiting)
        except (AssessorFailedError, AssessorCrashedError) as error:
            if self.stop.is_set():
                return None
            self.ledger.set_meta(ASSESSOR_KEY, HAS_NONE)
            failed = isinstance(error, AssessorFailedError)
            code = AlertCode.MODEL if failed else AlertCode.ASSESSOR_STOPPED
            self.ledger.raise_alert(ASSESSOR_ALERT, code.code, why=str(error), model=model)
            log("no assessor", why=str(error))
            self._wait_to_restart()
            return None
        self._failures = 0
        self.ledger.set_meta(ASSESSOR_KEY, "started")
        note_running(self.ledger, ModelChoice(model, site), assessor.template)
        self.ledger.clear_alert(ASSESSOR_ALERT)
        self.ledger.event("assessor started", model=model, sha256=assessor.template["model_sha256"])
        log("assessor started", model=model, backend=assessor.backend)
        return assessor

    def _wait_to_restart(self) -> None:
        """Wait, longer each time; what is asked meanwhile is noticed."""
        seconds = _RESTART_SECONDS[min(self._failures, len(_RESTART_SECONDS) - 1)]
        self._failures += 1
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and not self.stop.wait(0.2):
            self._feed_watchdog()
            self._note_alive()

    def assess_next(self) -> bool:
        """Assess the image that has waited longest; whether there was one."""
        if (image := self._ahead or self._claimed()) is None:
            return False
        try:
            if image.tries > _MOST_TRIES:
                self._give_up(image, "the cart ended each time")
            else:
                self._assess_image(image)
        except AssessorCrashedError as error:
            self._end_assessor()
            self._crashed(image, str(error), by_server=isinstance(error, ServerAwayError))
        except (LedgerBusyError, SpoolFullError):
            self._drop_ahead()
            self.images.give_back(image, "no room", counts=False)
            raise
        except (DeepCovidEdgeError, OSError) as error:
            self._drop_ahead()
            self._crashed(image, one_line(error))
        return True

    def _claimed(self) -> ClaimedImage | None:
        return self.images.claim() if self.images.waiting() else None

    def _assess_image(self, image: ClaimedImage) -> None:
        assert self._assessor is not None
        if self._ahead is None:
            self._ask(self._assessor, image)
        started, self._ahead = self._asked, None
        try:
            settled, lacks = self._assessor.answer(self.destinations), ""
        except NotBuiltError as error:
            settled, lacks = error.settled, str(error)
        self._ask_ahead(self._assessor)
        self._settle(image, settled)
        record = settled.record
        if lacks and record["reason"] != Reason.UNREADABLE.code:
            self._keep_aside(image)
            self._tell_of(image, lacks)
        log(
            "assessed",
            image=image.image_id,
            decision=record["decision"],
            reason=record["reason"],
            seconds=round(time.monotonic() - started, 3),
        )

    def _ask(self, assessor: AssessorProcess, image: ClaimedImage) -> None:
        self._asked = time.monotonic()
        assessor.ask(image, made=self._time_of(image, assessor))

    def _time_of(self, image: ClaimedImage, assessor: AssessorProcess) -> str:
        """When the objects of an image are made: as long ago as those of its earlier result.

        One that is tried again keeps its time: its objects have their names by it, and those of
        each try would stay on a disk that may be full.
        """
        made_by = assessor.template
        known = self.ledger.row(
            "SELECT made_utc FROM result WHERE image_id = ? AND model_sha256 = ? AND"
            " site_sha256 = ? AND json_extract(record, '$.reason') IS NOT ?",
            *(image.image_id, made_by["model_sha256"], (made_by["site"] or {}).get("sha256") or ""),
            Reason.UNREADABLE.code,
        )
        if known:
            return str(known["made_utc"])
        return self._made.setdefault(image.image_id, now_utc())

    def _ask_ahead(self, assessor: AssessorProcess) -> None:
        """Have the assessor begin with the next image, if it is its model that is in use.

        What fails here is not the fault of the image whose result is there.
        """
        if self._lacks_room or self.stop.is_set():
            return
        try:
            if not self._has(*model_in_use(self.config, self.ledger)):
                return
            # The one whose result is there still counts.
            if self.images.waiting() > 1 and (image := self.images.claim(untried=True)):
                self._ask(assessor, image)
                self._ahead = image
        except DeepCovidEdgeError as error:
            self._must_release = True
            if isinstance(error, AssessorCrashedError):
                self._end_assessor()

    def _drop_ahead(self) -> None:
        """Wait for the image that the assessor has, and give it back: it is assessed again."""
        if (image := self._ahead) is None:
            return
        assert self._assessor is not None
        self._ahead = None
        try:
            self._assessor.answer(self.destinations)
        except AssessorCrashedError:
            self._end_assessor()
        except DeepCovidEdgeError:  # its result could not be written either
            pass
        self.images.give_back(image, "another one could not be written", counts=False)

    def _settle(self, image: ClaimedImage, settled: Settled) -> None:
        """Write the result beside its objects, for a ledger that is lost, then into the ledger."""
        place = self.spool.results(image.content_sha256) / RECORD_NAME
        self.spool.store([settled_text(settled).encode()], place)
        self.images.delete_unnamed(image, settled)
        key = f"file {image.image_id}"
        with self.ledger.transaction():
            self.images.settle(image, settled)
            if settled.record["reason"] == Reason.UNREADABLE.code:
                code = AlertCode.FILE_DAMAGED.code
                self.ledger.raise_alert(key, code, image=image.image_id)
            else:
                self.ledger.clear_alert(key)
        self._lacks_room = False
        self._crashes.pop(image.image_id, None)
        self._unanswered.pop(image.image_id, None)
        self._made.pop(image.image_id, None)
        self._settled()

    def _crashed(self, image: ClaimedImage, why: str, *, by_server: bool = False) -> None:
        what = "server away" if by_server else "assessor crashed"
        log(what, image=image.image_id, why=why, tries=image.tries)
        if self.stop.is_set():
            self.images.give_back(image, "stopped", counts=False)
            return
        if by_server:
            self.ledger.set_meta(ASSESSOR_KEY, HAS_NONE)  # until one starts, and the server with it
        failed, most = (
            (self._unanswered, _MOST_TRIES) if by_server else (self._crashes, _MOST_CRASHES)
        )
        failed[image.image_id] += 1
        if failed[image.image_id] < most:
            self.images.give_back(image, why, counts=not by_server)
        else:
            self._give_up(image, why)

    def _give_up(self, image: ClaimedImage, why: str) -> None:
        """Give up an image that no assessor survives, and keep it aside."""
        self._keep_aside(image)
        assessor = self._ready()
        if assessor is None:  # the model is gone too: assessed again when there is one
            self.images.give_back(image, why, counts=False)
            return
        settled = self._not_assessed(assessor, image)
        self._settle(image, settled)
        if settled.record["reason"] != Reason.UNREADABLE.code:
            self._tell_of(image, why)

    def _keep_aside(self, image: ClaimedImage) -> None:
        try:
            self.spool.quarantine(image.content_sha256, image.path.suffix)
        except OSError as error:
            log("not kept aside", image=image.image_id, why=one_line(error))

    def _tell_of(self, image: ClaimedImage, why: str) -> None:
        self.ledger.raise_alert(
            f"quarantined {image.image_id}",
            AlertCode.QUARANTINED.code,
            image=image.image_id,
            why=why,
        )

    def _not_assessed(self, assessor: AssessorProcess, image: ClaimedImage) -> Settled:
        made = self._time_of(image, assessor)
        try:
            return assessor.assess(image, self.destinations, made=made, reason=Reason.DECODE)
        except NotBuiltError as error:
            return error.settled
        except AssessorCrashedError:
            self._end_assessor()
            return assessor.not_assessed(image, Reason.DECODE)

    def _end_assessor(self) -> None:
        if self._assessor:
            self._assessor.close()
            self._assessor = None

    def close(self) -> None:
        """End the assessor."""
        self._end_assessor()
