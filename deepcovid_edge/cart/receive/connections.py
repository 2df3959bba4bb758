"""What one TCP connection of the DICOM port may do: how much, how fast and for how long.

A PDU is read here, by length, before pynetdicom sees any of it. The rules know nothing of
pynetdicom; `guards` puts them in its place.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

P_DATA = 0x04
_KINDS = range(0x01, 0x08)
_LAST = (0x05, 0x07)
"""A-RELEASE-RQ and A-ABORT: whoever sends one asks for nothing more (PS3.8, 9.3.6 and 9.3.8)."""
_ABORT = bytes.fromhex("07 00 00000004 00 00 02 06")
"""A-ABORT by the service provider: invalid value of a PDU parameter (PS3.8, section 9.3.8)."""
_MIB = 1 << 20
TOO_LARGE = "message of more than"
"""How the reason begins for which an image is cut off that is larger than any may be."""


@dataclass(frozen=True)
class Limits:
    """What a connection may do.

    Attributes:
        most_pdu_bytes: Longest PDU, bytes; an honest one is at most what was negotiated.
        most_message_bytes: Longest DIMSE message with all of its PDUs, bytes.
        set_up_seconds: From the connection to the association.
        stall_seconds: From one whole PDU to the next, within a PDU or a message.
        message_seconds: From the first PDU of a message to its last.
        crowded_seconds: A connection that has been for so long in its set-up, or within a PDU or a
            message, gives way when its address asks for one more than it may.
        crowded_idle_seconds: Likewise one that asks for nothing.
        idle_seconds: An association without a message.
        per_address: Connections of one address at once.
        associations: Associations at once.
        waiting: Whole messages that wait for their answer; no more may be sent then.
    """

    most_pdu_bytes: int = _MIB
    most_message_bytes: int = 65 * _MIB
    set_up_seconds: float = 5.0
    stall_seconds: float = 15.0
    message_seconds: float = 120.0
    crowded_seconds: float = 3.0
    crowded_idle_seconds: float = 5.0
    idle_seconds: float = 60.0
    per_address: int = 4
    associations: int = 8
    waiting: int = 16

    @property
    def connections(self) -> int:
        """TCP connections at once: some more, so that they get a rejection that says why."""
        return self.associations + self.per_address


class Connection:
    """A TCP connection with its progress. Times are `time.monotonic`, seconds."""

    def __init__(self, sock: socket.socket, address: str, limits: Limits) -> None:
        self.socket, self.address, self._limits = sock, address, limits
        self.thread: threading.Thread | None = None
        self.association: Any = None
        self.ended_why: str | None = None
        """Why it was ended from this side; None as long as it was not."""
        self.is_noted = False
        self._opened = self._last_whole = time.monotonic()
        self._is_set_up = self._is_over = False
        self._kind = 0
        self._in_body = False
        self._pdu_since: float | None = None
        self._message_since: float | None = None
        self._message_bytes = 0
        self._answers_owed = 0
        self._waiting: deque[int] = deque()

    @property
    def has_thread(self) -> bool:
        """Whether a thread still works for it, or will begin to."""
        if self.thread is None or self.thread.is_alive():
            return True
        return self.association is not None and bool(self.association.is_alive())

    @property
    def is_live(self) -> bool:
        """Whether it counts: somebody works for it, and neither side has ended it.

        The threads of an association that was released go on for some milliseconds; what they
        still have to store or to answer counts.
        """
        has_work = self._answers_owed > 0 or self._message_since is not None
        is_over = self._is_over and not has_work
        return self.ended_why is None and not is_over and self.has_thread

    def established(self) -> None:
        """Its association was accepted."""
        self._is_set_up = True
        self._last_whole = time.monotonic()

    def read(self, count: int) -> bytearray:
        """Read the next header or body of a PDU.

        Args:
            count: Bytes that pynetdicom asks for: those of a header, then of that PDU's body.

        Returns:
            The bytes; fewer where the connection was closed, or ended for breaking a rule.
        """
        is_body, self._in_body = self._in_body, False
        if is_body and (broken := self._rule_broken(count)):
            self.end(broken)
            return bytearray()
        data = self._receive(count)
        if len(data) < count:
            self._pdu_since, self._is_over = None, True
        elif is_body:
            self._pdu_since, self._last_whole = None, time.monotonic()
            self._is_over |= self._kind in _LAST
        else:
            self._kind = data[0]
            self._in_body = self._kind in _KINDS
        return data

    def _rule_broken(self, count: int) -> str | None:
        """What a body of that length would break; nothing of it has been read."""
        if count > self._limits.most_pdu_bytes:
            return f"PDU of more than {self._limits.most_pdu_bytes // _MIB} MiB"
        if self._kind != P_DATA:
            return None
        waiting = self._still_waiting()
        if len(waiting) > self._limits.waiting:
            return f"more than {self._limits.waiting} messages sent without an answer"
        whole = sum(waiting) + self._message_bytes + count
        if whole > self._limits.most_message_bytes:
            return f"{TOO_LARGE} {self._limits.most_message_bytes // _MIB} MiB"
        if self._message_since is None:
            self._message_since = time.monotonic()
        self._message_bytes += count
        return None

    def _still_waiting(self) -> deque[int]:
        """Bytes of whole messages that pynetdicom has queued and not begun to answer."""
        queued = self.association.dimse.msg_queue.qsize() if self.association else 0
        while len(self._waiting) > queued:
            self._waiting.popleft()
        return self._waiting

    def _receive(self, count: int) -> bytearray:
        data = bytearray(count)
        view, done = memoryview(data), 0
        with contextlib.suppress(OSError):  # reset, or timed out: shorter than asked for
            while done < count:
                got = self.socket.recv_into(view[done:])
                if not got:
                    break
                if self._pdu_since is None:
                    self._pdu_since = time.monotonic()
                done += got
        view.release()
        del data[done:]
        return data

    def message_is_whole(self) -> None:
        """A message has come to its end."""
        self._waiting.append(self._message_bytes)
        self._message_bytes, self._message_since = 0, None
        self._answers_owed += 1

    def answered(self) -> None:
        """An answer was sent."""
        self._answers_owed -= 1
        self._last_whole = time.monotonic()

    def stuck_seconds(self, now: float) -> float:
        """How long it has kept a place without progress; 0 while it waits for this side."""
        if not self._is_set_up:
            return now - self._opened
        if self._pdu_since is not None:
            return now - self._pdu_since
        if self._message_since is not None:
            return now - self._last_whole
        return 0.0

    def gives_way(self, now: float) -> float:
        """How long its place has been of no use; 0 while it may keep it though others wait."""
        if stuck := self.stuck_seconds(now):
            return stuck if stuck >= self._limits.crowded_seconds else 0.0
        idle = 0.0 if self._answers_owed > 0 else now - self._last_whole
        return idle if idle >= self._limits.crowded_idle_seconds else 0.0

    def overdue(self, now: float) -> str | None:
        """Which time it has exceeded, in words; None if none."""
        limits, stuck = self._limits, self.stuck_seconds(now)
        if not self._is_set_up:
            late = stuck > limits.set_up_seconds
            return f"no association within {limits.set_up_seconds:g} s" if late else None
        if stuck > limits.stall_seconds:
            return f"no whole PDU for {limits.stall_seconds:g} s"
        since = self._message_since
        if since is not None and now - since > limits.message_seconds:
            return f"message not whole after {limits.message_seconds:g} s"
        return None

    def end(self, why: str) -> None:
        """End it from this side; the thread that reads sees the end of the stream."""
        if self.ended_why is None:
            self.ended_why = why
        with contextlib.suppress(OSError, ValueError):  # TLS takes no flags: it goes without
            self.socket.send(_ABORT, socket.MSG_DONTWAIT)  # a peer may not read
        with contextlib.suppress(OSError):  # not that of ssl: another thread may be within it
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Free what it held, once no thread works for it: it is in a circle of references."""
        self.socket.close()
        if self.association is not None:
            self.association.dimse.message = None
            self.association = None
