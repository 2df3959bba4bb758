"""`cart work`: judges films one after another, and sends what came of them.

The judge is a child process. A film that ends it is tried again, three times in all; then it is
refused, kept aside and told of. Results, their objects and the outbox are one transaction, so a
film is judged once whatever happens in between.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.cart.model_pointer import model_in_use
from deepcovid_edge.cart.process import log, notify
from deepcovid_edge.cart.store.films import MOST_TRIES, ClaimedFilm, Films, Settled
from deepcovid_edge.cart.store.ledger import Ledger, LedgerBusyError
from deepcovid_edge.cart.store.rebuild import RECORD_NAME, settled_text
from deepcovid_edge.cart.store.spool import Spool, SpoolFullError
from deepcovid_edge.cart.work.judge import Judge, JudgeCrashedError, JudgeFailedError
from deepcovid_edge.errors import DeepCovidEdgeError, one_line
from deepcovid_edge.files import Closing
from deepcovid_edge.reasons import Reason

_LOOK_SECONDS = 0.1
"""Between two looks for a film: a look takes some microseconds."""
_RESTART_SECONDS = (1.0, 5.0, 30.0, 120.0)
"""Waits before a judge that cannot be loaded is started again; the last is repeated."""
ALIVE_KEY = "work alive"
_ALIVE_SECONDS = 5.0


class Worker(Closing):
    """Judges the films of a spool. All of it runs in the thread that calls `run`.

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
        self.films = Films(ledger, spool)
        self.destinations: Mapping[str, Sequence[str]] = {
            one.name: one.objects for one in config.destinations
        }
        self._judge: Judge | None = None
        self._failures = 0
        self._alive = 0.0

    def run(self) -> None:
        """Judge films until the stop."""
        if found := self.films.release():
            log("films given back", films=found)
        was_full = False
        while not self.stop.is_set():
            try:
                self._note_alive()
                if was_full:  # a film that could not even be given back
                    self.films.release(counts=False)
                    was_full = False
                if self._ready() is None or not self.judge_next():
                    self.stop.wait(_LOOK_SECONDS)
            except (LedgerBusyError, SpoolFullError) as error:
                log("disk", error=one_line(error))
                self.spool.drop_ballast()
                was_full = True
                self.stop.wait(1.0)

    def _note_alive(self) -> None:
        if time.monotonic() - self._alive < _ALIVE_SECONDS:
            return
        self._alive = time.monotonic()
        self.ledger.set_meta(ALIVE_KEY, f"{time.time():.0f}")
        notify("WATCHDOG=1", f"STATUS={self.films.waiting()} films wait")

    def _ready(self) -> Judge | None:
        """The judge with the model in use; None while it cannot be loaded."""
        model, site = model_in_use(self.config, self.ledger)
        if self._judge and (self._judge.model, self._judge.site) != (model, site):
            self._end_judge()  # films in work are finished: one is judged at a time
        if self._judge is None:
            self._judge = self._start(model, site)
        return self._judge

    def _start(self, model: str, site: Path | None) -> Judge | None:
        try:
            judge = Judge(self.config, model, site)
        except (JudgeFailedError, JudgeCrashedError) as error:
            failed = isinstance(error, JudgeFailedError)
            code = AlertCode.MODEL if failed else AlertCode.JUDGE_STOPPED
            self.ledger.raise_alert("judge", code.code, why=str(error), model=model)
            log("no judge", why=str(error))
            self._wait_to_restart()
            return None
        self._failures = 0
        self.ledger.clear_alert("judge")
        self.ledger.event("judge started", model=model, sha256=judge.template["model_sha256"])
        log("judge started", model=model, backend=judge.backend)
        notify("READY=1")
        return judge

    def _wait_to_restart(self) -> None:
        """Wait, longer each time; what is asked meanwhile is noticed."""
        seconds = _RESTART_SECONDS[min(self._failures, len(_RESTART_SECONDS) - 1)]
        self._failures += 1
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and not self.stop.wait(0.2):
            self._note_alive()

    def judge_next(self) -> bool:
        """Judge the film that has waited longest; whether there was one."""
        if not self.films.waiting():
            return False
        film = self.films.claim()
        if film is None:
            return False
        try:
            self._judge_film(film)
        except JudgeCrashedError as error:
            self._end_judge()
            self._crashed(film, str(error))
        except (LedgerBusyError, SpoolFullError):
            self.films.give_back(film, "no room", counts=False)
            raise
        except (DeepCovidEdgeError, OSError) as error:
            self._crashed(film, one_line(error))
        return True

    def _judge_film(self, film: ClaimedFilm) -> None:
        assert self._judge is not None
        started = time.monotonic()
        settled = self._judge.judge(film, self.destinations)
        self._settle(film, settled)
        record = settled.record
        log(
            "judged",
            film=film.film_id,
            decision=record["decision"],
            reason=record["reason"],
            seconds=round(time.monotonic() - started, 3),
        )

    def _settle(self, film: ClaimedFilm, settled: Settled) -> None:
        """Write the result beside its objects, for a ledger that is lost, then into the ledger."""
        place = self.spool.results(film.content_sha256) / RECORD_NAME
        self.spool.store([settled_text(settled).encode()], place)
        self.films.settle(film, settled)
        self._settled()

    def _crashed(self, film: ClaimedFilm, why: str) -> None:
        log("judge crashed", film=film.film_id, why=why, tries=film.tries)
        if self.stop.is_set():
            self.films.give_back(film, "stopped", counts=False)
        elif film.tries < MOST_TRIES:
            self.films.give_back(film, why)
        else:
            self._refuse(film, why)

    def _refuse(self, film: ClaimedFilm, why: str) -> None:
        """Refuse a film that no judge survives, and keep it aside."""
        self.spool.quarantine(film.content_sha256, film.path.suffix)
        judge = self._ready()
        if judge is None:  # the model is gone too: judged again when there is one
            self.films.give_back(film, why, counts=False)
            return
        self._settle(film, self._refusal(judge, film))
        self.ledger.raise_alert(
            f"quarantined {film.film_id}", AlertCode.QUARANTINED.code, film=film.film_id, why=why
        )

    def _refusal(self, judge: Judge, film: ClaimedFilm) -> Settled:
        try:
            return judge.judge(film, self.destinations, refuse=Reason.DECODE)
        except JudgeCrashedError:
            self._end_judge()
            return judge.refusal(film, Reason.DECODE)

    def _end_judge(self) -> None:
        if self._judge:
            self._judge.close()
            self._judge = None

    def close(self) -> None:
        """End the judge."""
        self._end_judge()
