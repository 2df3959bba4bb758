"""The assessor as the worker sees it: a child process that has one image at a time."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepcovid_edge.backends.settings import is_address
from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.cart.store.images import BuiltObject, ClaimedImage, Settled
from deepcovid_edge.cart.store.spool import SpoolFullError
from deepcovid_edge.cart.toml_tables import settings_text
from deepcovid_edge.device.child_process import Patience, StalledError, end, ending_with_this
from deepcovid_edge.errors import (
    BackendUnavailableError,
    DeepCovidEdgeError,
    NotThereError,
    OutputError,
    one_line,
)
from deepcovid_edge.files import Closing, file_sha256
from deepcovid_edge.reasons import Reason

START_SECONDS = 300.0
"""Longest time to load a model: an engine is built once, a large network takes minutes."""
_STALL_SECONDS = 20.0
"""Longest time in which the process of an assessor does nothing while an image waits for it."""
_BLOCK = 1 << 16
_LONGEST_ANSWER = 1 << 26


class AssessorCrashedError(DeepCovidEdgeError):
    """Raised when the assessor ended, or gave no answer in time; it is started again."""


class ServerAwayError(AssessorCrashedError):
    """Raised when the server that runs the model gave no answer of use: no image is at fault."""


class AssessorFailedError(DeepCovidEdgeError):
    """Raised when the model cannot be loaded."""


class NotBuiltError(DeepCovidEdgeError):
    """Raised when an object of a result cannot be built; carries the result as far as it goes."""

    def __init__(self, settled: Settled, detail: str) -> None:
        self.settled = settled
        super().__init__(detail)


class AssessorProcess(Closing):
    """An assessor process. The thread that makes it must stay: the kernel ends the child with it.

    Args:
        config: The configuration.
        model: Name or file of the model.
        site: Site file, or None.
        waiting: Called every second while an answer is waited for; what it raises ends the wait.

    Raises:
        AssessorFailedError: The model cannot be loaded.
        ServerAwayError: The server that runs the model does not answer.
        AssessorCrashedError: The process ended before it said anything, or took too long.
    """

    def __init__(
        self,
        config: CartConfig,
        model: str,
        site: Path | None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.site, self._waiting = model, site, waiting
        self._seconds = config.cart.assess_seconds
        self._is_remote = is_address(config.cart.backend)
        self._process = subprocess.Popen(
            ending_with_this(
                [
                    *(sys.executable, "-m", "deepcovid_edge.cart.work.assessor_child"),
                    *(settings_text(config.cart), model, str(site or "")),
                ]
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._rest, self._asked, self._made = b"", "", ""
        try:
            first = self._answer(START_SECONDS)
            if "failed" in first:
                is_away = self._is_remote and first["failed"] == BackendUnavailableError.__name__
                raise (ServerAwayError if is_away else AssessorFailedError)(first["why"])
            self.template: Mapping[str, Any] = first["ready"]
            self.backend = str(first["backend"])
        except BaseException:
            self.close()
            raise

    def assess(
        self,
        image: ClaimedImage,
        destinations: Mapping[str, Any],
        *,
        made: str,
        reason: Reason | None = None,
    ) -> Settled:
        """Have an image assessed; see `ask` and `answer`."""
        self.ask(image, made=made, reason=reason)
        return self.answer(destinations)

    def ask(self, image: ClaimedImage, *, made: str, reason: Reason | None = None) -> None:
        """Begin with an image; `answer` is called before the next one.

        Args:
            image: The image.
            made: When its objects are made, ISO 8601.
            reason: Do not assess it, for this reason.

        Raises:
            AssessorCrashedError: The process has ended.
        """
        self._asked, self._made = image.content_sha256, made
        request = {
            "path": str(image.path),
            "content_sha256": image.content_sha256,
            "is_dicom": image.is_dicom,
            "reason": reason and reason.code,
            "made": made,
        }
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # a pipe that is closed here is the latter
            raise AssessorCrashedError(self._end_in_words()) from error

    def answer(self, destinations: Mapping[str, Any]) -> Settled:
        """What became of the image that was asked for.

        Args:
            destinations: Name of each destination, with the kinds of objects it gets.

        Raises:
            AssessorCrashedError: The process ended, gave no answer in time, or that of another
                image.
            ServerAwayError: The server that runs the model gave none.
            NotBuiltError: The result lacks an object.
            SpoolFullError: The disk has no room for the result.
            OutputError: The result cannot be written for another reason.
        """
        answer = self._answer(self._seconds, is_at_work=True)
        if answer.get("content_sha256") != self._asked:
            self.close()
            raise AssessorCrashedError("the answer is not of the image that was asked for")
        if "away" in answer:
            raise ServerAwayError(answer["away"])
        if "full" in answer:
            raise SpoolFullError(f"no room for a result: {answer['full']}")
        if "not_written" in answer:
            raise OutputError(answer["not_written"])
        objects = [BuiltObject(**{**one, "path": Path(one["path"])}) for one in answer["objects"]]
        settled = Settled(answer["record"], objects, destinations, self._made)
        if answer["missing"]:
            raise NotBuiltError(settled, f"objects not built: {', '.join(answer['faults'])}")
        return settled

    def not_assessed(self, image: ClaimedImage, reason: Reason) -> Settled:
        """A record without objects, of an image that ends every assessor, even unread."""
        sha256, reason = hash_unless_unreadable(image.path, reason)
        record = {
            **self.template,
            "path": str(image.path),
            "sha256": sha256,
            "reason": reason.code,
            "message": reason.sentence,
        }
        return Settled(record)

    def _answer(self, seconds: float, *, is_at_work: bool = False) -> dict[str, Any]:
        """The next answer; without one the process is ended, so that it never comes later.

        Args:
            seconds: Longest wait.
            is_at_work: Whether a process that does nothing at all is not waited for so long; one
                that waits for a server does nothing.
        """
        try:
            line = self._line(seconds, is_at_work=is_at_work)
            answer: dict[str, Any] = json.loads(line)
        except (OSError, ValueError) as error:
            self.close()
            raise AssessorCrashedError(f"not an answer: {one_line(error)}") from error
        except BaseException:
            self.close()
            raise
        return answer

    def _line(self, seconds: float, *, is_at_work: bool) -> bytes:
        assert self._process.stdout
        handle = self._process.stdout.fileno()
        ends = time.monotonic() + seconds
        patience: Patience | None = None
        while b"\n" not in self._rest:
            left = ends - time.monotonic()
            if left <= 0:
                late = ServerAwayError if self._is_remote else AssessorCrashedError
                raise late(f"no answer in {seconds:g} s")
            if not select.select([handle], [], [], min(left, 1.0))[0]:
                self._waiting()
                if is_at_work and not self._is_remote:
                    patience = patience or Patience(self._process.pid, _STALL_SECONDS, None)
                    self._check(patience)
                continue
            block = self._process.stdout.read1(_BLOCK)  # type: ignore[attr-defined]
            if not block or len(self._rest) > _LONGEST_ANSWER:
                raise AssessorCrashedError(self._end_in_words())
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    @staticmethod
    def _check(patience: Patience) -> None:
        try:
            patience.check()
        except StalledError as error:
            raise AssessorCrashedError(str(error)) from error

    def _end_in_words(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "the assessor answers no more"
        return f"the assessor ended with code {code}"

    def close(self) -> None:
        """End the process."""
        end(self._process)


def hash_unless_unreadable(path: Path, reason: Reason) -> tuple[str | None, Reason]:
    """SHA-256 of an image that is not assessed, and why: a file that cannot be read has none."""
    try:
        return file_sha256(path), reason
    except NotThereError:
        return None, Reason.UNREADABLE
