"""Decode compressed pixels in child processes of limited time and memory.

A codestream comes from outside, and its decoder is C: a poisoned file may crash it, keep it busy
or make it eat the memory of the cart. Here that costs one child and one reason.

A child is started when the first compressed image is met and used again for the next one; there are
never more than there are threads that decode. Requests and replies are lines of JSON on pipes;
codestream and words stand in memory that both processes see, so nothing large is piped. A child
ends when its parent does, and by itself when a decoder outlasts its parent. Nothing is waited for
without an end, whatever a child does with its pipes.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import mmap
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.device import child_process
from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.reasons import Reason

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from deepcovid_edge.imaging.dicom.decoding.worker import main; main(sys.argv[2:])"
)
_EXIT_SECONDS = 1.0
"""A child that closed its pipe is on its way out, unless its decoder closed it."""
# NumPy's BLAS would reserve memory for a thread a core, of which no decoder needs one.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Limits:
    """What decoding one image may take.

    Attributes:
        seconds: Longest time.
        base_bytes: Address space of an idle child with its libraries, bytes.
        bytes_per_pixel: More of it for each pixel and channel by the header; JPEG 2000 takes 4
            for its coefficients, 4 for their copy and 2 for the result.
    """

    seconds: float = 20.0
    base_bytes: int = 1 << 30
    bytes_per_pixel: int = 16


@dataclass(frozen=True)
class Request:
    """A frame to decode, by its header.

    Attributes:
        syntax: Transfer syntax UID.
        rows: Height, pixels.
        columns: Width, pixels.
        samples: Channels.
        allocated: Bits a sample takes, 8 or 16.
        stored: Bits of it that mean something.
        signed: Whether samples are in two's complement.
        photometric: Photometric interpretation.
        halvings: How often both sides are to be halved, where the codestream has that resolution.
    """

    syntax: str
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    signed: bool
    photometric: str
    halvings: int = 0

    @property
    def whole(self) -> Request:
        """The same without halving."""
        return replace(self, halvings=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the decoded words."""
        rows, columns = (-(-side >> self.halvings) for side in (self.rows, self.columns))
        plane = (rows, columns)
        return plane if self.samples == 1 else (*plane, self.samples)

    @property
    def size(self) -> int:
        """Size of the decoded words, bytes."""
        return math.prod(self.shape) * self.allocated // 8


class Sandbox:
    """A pool of child processes that decode."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._idle: list[_Child] = []
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def decode(self, request: Request, codestream: bytes) -> NDArray[Any]:
        """Decode a frame.

        Returns:
            Words of `request.shape`, uint8 or uint16; of `request.whole.shape` where the
            resolution that is asked for cannot be decoded.

        Raises:
            NotAssessedError: The codestream is broken, took too long or too much memory, killed
                its decoder, or needs one that is not installed.
        """
        with self._child() as child:
            return child.decode(request, codestream, self.limits)

    @contextlib.contextmanager
    def _child(self) -> Iterator[_Child]:
        """An idle child, else a new one; it returns to the others if it is well afterwards."""
        child = None
        with self._lock:
            while self._idle and child is None:
                child = self._idle.pop()
                if not child.is_alive:
                    child.end()
                    child = None
        child = child or _Child()
        try:
            yield child
        except BaseException:
            if not child.is_ready:
                child.end()
                raise
            self._give_back(child)
            raise
        self._give_back(child)

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            self._idle.append(child)

    def close(self) -> None:
        """End the idle children."""
        if os.getpid() != self._owner:  # a process that was forked off leaves them alone
            return
        with self._lock:
            for child in self._idle:
                child.end()
            self._idle.clear()


def sandbox() -> Sandbox:
    """The children of this process; one that was forked off has its own."""
    return _sandbox_of(os.getpid())


@cache
def _sandbox_of(_process: int) -> Sandbox:
    # Of the process and not of a run: a child costs 0.2 s to start, and images are read one by one
    # from several places. Children end by themselves when their pipe closes.
    pool = Sandbox(Limits())
    atexit.register(pool.close)
    return pool


class _Child:
    """One child process with the memory that it shares with this one.

    Raises:
        NotAssessedError: It cannot be started.
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as opened:
            try:
                self._start(opened)
            except OSError as error:
                detail = f"no process for the decoder ({error.strerror}): end other programs"
                raise NotAssessedError(Reason.DECODE, detail) from error
            opened.pop_all()
        self.is_ready = True

    def _start(self, opened: contextlib.ExitStack) -> None:
        self._memory = os.memfd_create("deepcovid-edge-image")
        opened.callback(os.close, self._memory)
        self._reply, reply_end = os.pipe()
        opened.callback(os.close, self._reply)
        path = json.dumps([os.path.abspath(place or ".") for place in sys.path])  # noqa: PTH100
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, path, str(self._memory), str(reply_end)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(self._memory, reply_end),
                env={**os.environ, **_ONE_THREAD},
                cwd="/",
            )
        finally:
            os.close(reply_end)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def decode(self, request: Request, codestream: bytes, limits: Limits) -> NDArray[Any]:
        """See `Sandbox.decode`."""
        self.is_ready = False
        size = max(len(codestream), request.whole.size)
        os.ftruncate(self._memory, size)
        try:
            with mmap.mmap(self._memory, size) as shared:
                shared[: len(codestream)] = codestream
                return self._reply_to(request, len(codestream), limits, shared)
        finally:
            os.ftruncate(self._memory, 0)

    def _reply_to(
        self, request: Request, length: int, limits: Limits, shared: mmap.mmap
    ) -> NDArray[Any]:
        reply = self._asked(
            {
                "codestream": length,
                "seconds": limits.seconds,
                "memory": limits.base_bytes
                + limits.bytes_per_pixel * request.rows * request.columns * request.samples,
                **asdict(request),
            },
            limits.seconds,
        )
        self.is_ready = True
        if reason := reply.get("reason"):
            raise NotAssessedError(Reason[reason], reply["detail"])
        request = replace(request, halvings=reply["halvings"])
        kind = np.uint8 if request.allocated == 8 else np.uint16
        words: NDArray[Any] = np.empty(request.shape, kind)
        words.reshape(-1).view(np.uint8)[:] = np.frombuffer(shared, np.uint8, request.size)
        return words

    def _asked(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            self._gone()
        reply: dict[str, Any] = json.loads(self._line(seconds))
        return reply

    def _line(self, seconds: float) -> bytes:
        """The child's next line, which may come in pieces, or never whole."""
        ends = time.monotonic() + seconds
        waiting = select.poll()  # not select(): a cart's process may have more than 1024 files
        waiting.register(self._reply, select.POLLIN)
        line = b""
        while not line.endswith(b"\n") and len(line) <= select.PIPE_BUF:
            if not waiting.poll(max(0.0, ends - time.monotonic()) * 1000):
                raise NotAssessedError(Reason.DECODE, f"took longer than {seconds:g} s")
            block = os.read(self._reply, select.PIPE_BUF)
            if not block:
                self._gone()
            line += block
        return line

    def _gone(self) -> NoReturn:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)
        raise NotAssessedError(Reason.DECODE, f"the decoder died ({self._process.returncode})")

    def end(self) -> None:
        """Kill the process, whatever it does, and let go of what is shared."""
        child_process.end(self._process)
        os.close(self._reply)
        os.close(self._memory)
