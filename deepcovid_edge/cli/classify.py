"""What `infer` and `heatmap` share: one run in the terminal, and how to stop it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.device.streams import drop_if_stuck
from deepcovid_edge.errors import BackendUnavailableError

if TYPE_CHECKING:
    from deepcovid_edge.decision.record import Prediction
    from deepcovid_edge.run import Run, RunSettings

_STOPS = (signal.SIGINT, signal.SIGTERM)


def classify_images(settings: RunSettings, **model: Any) -> ExitCode:
    """Classify images and write their records.

    Args:
        settings: The images and the records.
        model: Keywords of `Model`.
    """
    from deepcovid_edge.device.process import set_up
    from deepcovid_edge.run import Run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service's stop is a Ctrl-C
    set_up()
    with _on_stop(_stop_at_once):
        run = Run(settings, **model)
    code = _drain(run)  # closes the run, its model too
    for line in run.notes():
        click.echo(line, err=True)
    return code


@contextmanager
def _on_stop(handler: Callable[..., None]) -> Iterator[None]:
    """Have a stop call a function while the block runs.

    A stop that is ignored, as in a shell's background job, stays ignored.
    """
    before = {kind: signal.getsignal(kind) for kind in _STOPS}
    _call_on_stop(handler)
    try:
        yield
    finally:
        for kind, known in before.items():
            signal.signal(kind, known)


def _call_on_stop(handler: Callable[..., None]) -> None:
    for kind in _STOPS:
        if signal.getsignal(kind) is not signal.SIG_IGN:
            signal.signal(kind, handler)


def _stop_at_once(*_: object) -> None:
    """End the process at once on a stop: there is no record to keep yet.

    An interrupt in the middle of an import may leave Python's import lock taken (CPython 3.11).
    Threads that read images also import modules; they would wait for the lock for ever, and the
    process for them.
    """
    with suppress(OSError):  # a full or closed stderr
        os.write(2, b"Stopped.\n")
    os._exit(ExitCode.INTERRUPTED)


def _drain(run: Run) -> ExitCode:
    from deepcovid_edge.backends.base import AssessesFiles

    def leave_reader(*_: object) -> None:
        """Nobody waits for a pipe's reader that has stopped."""
        if run.file:
            run.file.drop_if_stuck()
        else:
            drop_if_stuck(sys.stdout)

    def stop(*_: object) -> None:
        # Another stop must not come in between, nor end the wait for the threads: a runtime whose
        # threads are still at work when the process ends aborts it.
        _call_on_stop(leave_reader)
        leave_reader()
        # The pipeline passes the interrupt on when its threads have ended. The server may have
        # stopped: threads that wait for its answer end when their connections are closed.
        if isinstance(run.model.backend, AssessesFiles):
            run.model.close()
        raise KeyboardInterrupt

    records = run.records()
    try:
        with _on_stop(stop), closing(_shown(records, _total(run))) as shown:
            for ready in shown:
                run.write(ready)
    except (KeyboardInterrupt, BackendUnavailableError):  # the server of a run has gone
        _tell(run, "written; --resume goes on" if run.can_resume else "written")
        raise
    finally:
        with _on_stop(leave_reader), closing(run):  # what is done is written, whoever hurries
            records.close()
    _tell(run, f"done on {run.model.backend.name}")
    return ExitCode.NOT_ASSESSED if run.not_assessed else ExitCode.DONE


def _tell(run: Run, how: str) -> None:
    click.echo(f"{run.summary(how)}. Research use only.", err=True)


def _total(run: Run) -> int | None:
    """Number of images, or None if no progress bar is shown."""
    shown_on_terminal = run.file is None and sys.stdout.isatty()
    return None if shown_on_terminal or not sys.stderr.isatty() else run.count()


def _shown(records: Generator[list[Prediction]], total: int | None) -> Generator[list[Prediction]]:
    """Pass the groups on and show a progress bar, if a total is given."""
    if total is None:
        yield from records
        return
    from deepcovid_edge.device.progress import progress_bar

    with progress_bar(total) as progress:
        for ready in records:
            yield ready
            progress(len(ready))
