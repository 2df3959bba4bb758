"""Settings of the server: where it listens, whom it lets in, and what a request may cost."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from deepcovid_edge.errors import UsageError
from deepcovid_edge.imaging.files import MAX_FILE_BYTES
from deepcovid_edge.serve.protocol import MOST_HEADER

BASE64_COST = 2
"""Bytes of memory for each byte of a request in base64: the text, and the image of its digits."""
_TRIES = 4
"""Times `image_seconds` within `answer_seconds`: two for the group of an image that takes too long,
one to start its process again, and one for its second try."""


@dataclass(frozen=True)
class ServeSettings:
    """How the server serves.

    Attributes:
        host: Address that it listens on. One beyond this machine needs `keys`, and `certificate`
            with `key` or `no_tls`.
        port: Port.
        certificate: Certificate of TLS, PEM.
        key: Its private key, PEM.
        no_tls: Others may reach the port without TLS, as where a proxy ends it.
        keys: File of the callers' API keys; None where everybody who reaches the port may call.
        assessors: Processes that assess; None for one a core, on a GPU one.
        group: Images that wait and that a process takes at once; None for what suits the backend.
        max_image_mib: Largest image.
        memory_mib: Images that are in memory at once, half of it for each caller; more are
            answered 429.
        waiting: Images that wait or are assessed at once; more are answered 429.
        waiting_a_caller: The same for each caller.
        connections: Most connections; a new one then ends the oldest that has sent no whole
            request.
        header_seconds: Longest time until a request's header is there.
        body_seconds: Longest time until its body is there.
        image_seconds: Longest time to assess an image; its process is ended and started again.
        answer_seconds: Longest time from a whole request to its answer, at least four times
            `image_seconds`: an image that takes too long is tried twice.
        check_seconds: From one readiness check, with a synthetic image, to the next.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    key: Path | None = None
    no_tls: bool = False
    keys: Path | None = None
    assessors: int | None = None
    group: int | None = None
    max_image_mib: int = 256
    memory_mib: int = 1024
    waiting: int = 64
    waiting_a_caller: int = 48
    connections: int = 256
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    image_seconds: float = 30.0
    answer_seconds: float = 120.0
    check_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"{name}: got {value}, expected {least} to {most}")
        if self.answer_seconds < _TRIES * self.image_seconds:
            raise UsageError(
                f"answer_seconds: got {self.answer_seconds:g}, expected at least {_TRIES} times "
                f"image_seconds ({self.image_seconds:g}): an image that takes too long is tried "
                "twice"
            )
        if (self.certificate is None) != (self.key is None):
            raise UsageError("certificate: got it or key alone, expected both or neither")
        if self.no_tls and self.certificate is not None:
            raise UsageError("no_tls: got certificate and key too, expected one of both")
        if self.is_local:
            return
        if self.keys is None:
            raise UsageError(
                f"host: got {self.host} without keys, expected API keys beyond this machine: "
                "make one with --add-key NAME"
            )
        if self.certificate is None and not self.no_tls:
            raise UsageError(
                f"host: got {self.host} without certificate and key, expected TLS beyond this "
                "machine, or --no-tls where a proxy ends it"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the port."""
        return is_loopback(self.host)

    @property
    def memory_a_caller(self) -> int:
        """Bytes that one caller may have in memory: half, so that nobody holds all of it."""
        return self.memory_mib << 19

    @property
    def most_bytes(self) -> int:
        """Of an image: with its request's header it fits into what its caller may have."""
        room = self.memory_a_caller - MOST_HEADER
        return min(self.max_image_mib << 20, room, MAX_FILE_BYTES)

    @property
    def most_base64_bytes(self) -> int:
        """Of an image that comes in base64, four bytes for three."""
        room = self.memory_a_caller // BASE64_COST - MOST_HEADER
        return min(self.most_bytes, room * 3 // 4)


_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "assessors": (1, 256),
    "group": (1, 64),
    "max_image_mib": (1, MAX_FILE_BYTES >> 20),
    "memory_mib": (1, 1 << 20),
    "waiting": (1, 65536),
    "waiting_a_caller": (1, 65536),
    "connections": (2, 65536),
    "header_seconds": (0.1, 3600),
    "body_seconds": (0.1, 86400),
    "image_seconds": (0.1, 86400),
    "answer_seconds": (0.1, 86400),
    "check_seconds": (0.1, 3600),
}


def is_loopback(address: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
