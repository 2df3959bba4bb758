"""Who may see the page: a PIN, delays after wrong ones, sessions that only this process knows."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from deepcovid_edge.errors import NotThereError, UsageError
from deepcovid_edge.files import write_atomically

SESSION_SECONDS = 12 * 3600
LONGEST_DELAY, LONGEST_TOTAL_DELAY = 900.0, 60.0
"""After wrong PINs of one address, and of all together, seconds."""
_FREE_TOTAL = 4
"""Wrong PINs of all addresses that delay nobody else."""
_FORGET_SECONDS = 3600.0
_MOST_DOUBLINGS = 16
_MOST_SESSIONS, _MOST_ADDRESSES = 256, 4096
_LEAST_DIGITS, _MOST_DIGITS = 6, 64
_N, _R, _P, _BYTES = 1 << 14, 8, 1, 32
"""Cost of scrypt (RFC 7914): 16 MiB and about 0.2 s on a small machine."""


@dataclass(frozen=True)
class Pin:
    """The hash of a PIN: scrypt, with a random salt."""

    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, digits: str) -> Pin:
        """The hash of new digits.

        Raises:
            UsageError: They are too few, or not only digits.
        """
        if not (digits.isascii() and digits.isdigit()):
            raise UsageError("pin: got other letters, expected digits alone")
        if not _LEAST_DIGITS <= len(digits) <= _MOST_DIGITS:
            raise UsageError(f"pin: got {len(digits)} digits, expected {_LEAST_DIGITS} or more")
        salt = secrets.token_bytes(16)
        return cls(salt, _scrypt(digits, salt))

    @classmethod
    def read(cls, path: Path) -> Pin:
        """The hash that a file holds.

        Raises:
            NotThereError: It cannot be read, or is not such a file.
        """
        try:
            kind, salt, digest = path.read_text("ascii").split()
            if kind != "scrypt":
                raise ValueError(kind)
            return cls(bytes.fromhex(salt), bytes.fromhex(digest))
        except (OSError, ValueError) as error:
            raise NotThereError(
                f"page.pin_file: {path}: no hash of a PIN: write it with `cart set-pin`"
            ) from error

    def write(self, path: Path) -> None:
        """Write the hash; nobody else may read it.

        Raises:
            OutputError: It cannot be written.
        """
        text = f"scrypt {self.salt.hex()} {self.digest.hex()}\n"
        write_atomically(path, text.encode(), sync=True)
        path.chmod(0o600)

    def fits(self, digits: str) -> bool:
        """Whether these are the digits."""
        if len(digits) > _MOST_DIGITS:
            return False
        return hmac.compare_digest(_scrypt(digits, self.salt), self.digest)


def _scrypt(digits: str, salt: bytes) -> bytes:
    return hashlib.scrypt(digits.encode(), salt=salt, n=_N, r=_R, p=_P, dklen=_BYTES)


@dataclass
class _Tries:
    wrong: int = 0
    until: float = 0.0
    last: float = 0.0


@dataclass
class Delays:
    """How long an address must wait after wrong PINs: twice as long after each.

    All addresses together are slowed too, so that many of them gain nothing. An address that has
    given the right PIN is slowed by its own mistakes alone: others cannot lock it out.
    """

    clock: Callable[[], float] = time.monotonic
    _by_address: dict[str, _Tries] = field(default_factory=dict)
    _total: _Tries = field(default_factory=_Tries)
    _trusted: set[str] = field(default_factory=set)

    def left(self, address: str) -> float:
        """Seconds until an address may try; 0 for now."""
        own = self._by_address.get(address, _Tries())
        until = own.until if address in self._trusted else max(own.until, self._total.until)
        return max(0.0, until - self.clock())

    def begin(self, address: str) -> None:
        """Count a try as wrong before it is looked at: a second one at once gains nothing."""
        now = self.clock()
        if len(self._by_address) >= _MOST_ADDRESSES:
            self._forget(now)
        own = self._by_address.setdefault(address, _Tries())
        for tries, free, longest in (
            (own, 0, LONGEST_DELAY),
            (self._total, _FREE_TOTAL, LONGEST_TOTAL_DELAY),
        ):
            if now - tries.last > _FORGET_SECONDS:
                tries.wrong = 0
            tries.wrong, tries.last = tries.wrong + 1, now
            if tries.wrong > free:
                doublings = min(tries.wrong - free - 1, _MOST_DOUBLINGS)
                tries.until = now + min(longest, 2.0**doublings)

    def right(self, address: str) -> None:
        """The try that was begun was right."""
        self._by_address.pop(address, None)
        self._total.wrong = max(0, self._total.wrong - 1)
        self._trusted.add(address)

    def _forget(self, now: float) -> None:
        """Keep the addresses that must wait; the total delay holds for all others anyway."""
        kept = {name: one for name, one in self._by_address.items() if one.until > now}
        oldest = sorted(kept, key=lambda name: kept[name].last)[: _MOST_ADDRESSES // 2]
        for name in oldest:
            del kept[name]
        self._by_address = kept


class Sessions:
    """Who has given the PIN. Nothing of it is on the disk: a restart asks for the PIN again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: dict[bytes, float] = {}

    def open(self) -> str:
        """A new session; the value of its cookie."""
        now = self._clock()
        self._ends = {name: end for name, end in self._ends.items() if end > now}
        while len(self._ends) >= _MOST_SESSIONS:
            del self._ends[next(iter(self._ends))]
        cookie = new_cookie()
        self._ends[_hashed(cookie)] = now + SESSION_SECONDS
        return cookie

    def holds(self, cookie: str) -> bool:
        """Whether a cookie is that of a session."""
        return self._ends.get(_hashed(cookie), 0.0) > self._clock()

    def close(self, cookie: str) -> None:
        """End a session."""
        self._ends.pop(_hashed(cookie), None)


def new_cookie() -> str:
    """A cookie's value that nobody can guess."""
    return secrets.token_urlsafe(32)


def _hashed(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()


class Access:
    """All of it together.

    Args:
        pin: The PIN's hash; None where everybody at this machine may look.
    """

    def __init__(self, pin: Pin | None) -> None:
        self.pin, self.delays, self.sessions = pin, Delays(), Sessions()
        self._secret = secrets.token_bytes(32)
        self._one_at_a_time = threading.Lock()

    def is_in(self, cookie: str) -> bool:
        """Whether a browser with this cookie may see the page."""
        return self.pin is None or self.sessions.holds(cookie)

    def token_for(self, cookie: str) -> str:
        """What a form must carry that a browser with this cookie sends."""
        return hmac.new(self._secret, cookie.encode(), "sha256").hexdigest()

    def log_in(self, address: str, digits: str) -> tuple[str | None, float]:
        """Try a PIN; slow, so it is called in a thread.

        Returns:
            The cookie of a new session or None, and the seconds until the next try may be made.
        """
        with self._one_at_a_time:  # scrypt takes 16 MiB
            if self.pin is None or (wait := self.delays.left(address)):
                return None, 0.0 if self.pin is None else wait
            self.delays.begin(address)
            if not self.pin.fits(digits):
                return None, self.delays.left(address)
            self.delays.right(address)
            return self.sessions.open(), 0.0
