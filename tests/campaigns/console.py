"""A console that sends one image after another, each again and again until it is acknowledged."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from typing import Any

from cart_peers import HOST
from dicom_files import DX, EXPLICIT
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode

from campaigns.images import DrawnImages
from deepcovid_edge.cart.send.association import Associator
from deepcovid_edge.cart.store.intake import content_hash

_MOST_A_LINE = 5
"""Most images over one association."""
_AGAIN_SECONDS = 0.2
_STALL_SECONDS = 5.0
NO_ANSWER = "no answer"


class Console(threading.Thread):
    """Sends images by a thread of its own until `finish`.

    Args:
        images: What it sends, from number 0 on.
        port: Port of the cart, which may change.
        seed: Decides how many images go over one association.
        pause: Seconds between two images.

    Attributes:
        port: Port of the cart.
        pause: Seconds between two images.
        acknowledged: SOP instance UID of each image that got 0x0000 -> hash of its content.
        answers: How often each status came; `no answer` where the connection ended before.
        sent: Images that were sent at least once.
        most_now: Images that it may have sent by now; None for no limit.
    """

    def __init__(self, images: DrawnImages, port: int, *, seed: int, pause: float) -> None:
        super().__init__(name="console", daemon=True)
        self.port, self.pause = port, pause
        self.acknowledged: dict[str, str] = {}
        self.answers: Counter[str] = Counter()
        self.sent = 0
        self.most_now: int | None = None
        self._images, self._draw = images, random.Random(seed)
        self._most: int | None = None
        self._most_a_line = _MOST_A_LINE
        self._finishing = threading.Event()
        self._entity = AE("CONSOLE")
        self._entity.add_requested_context(DX, EXPLICIT)
        self._entity.connection_timeout, self._entity.acse_timeout = 2.0, 5.0
        self._entity.dimse_timeout = self._entity.network_timeout = 15.0
        # pynetdicom leaves the socket of a refused connection open.
        closing = Associator._socket_that_closes
        self._entity._create_socket = closing(  # type: ignore[method-assign]
            self._entity._create_socket
        )
        self._association: Any = None
        self._left = 0

    def run(self) -> None:
        """Send until `finish`; the image that is under way then is sent until acknowledged."""
        while not self._finishing.is_set() and self.sent != self._most:
            if self.most_now is not None and self.sent >= self.most_now:
                self._close()
                self._finishing.wait(_AGAIN_SECONDS)
                continue
            image = self._images.image(self.sent)
            self.sent += 1
            while not self._send(image):
                self._close()
                time.sleep(_AGAIN_SECONDS)
            self._finishing.wait(self.pause)
        self._close()

    def send(self, images: int, most_a_line: int = _MOST_A_LINE) -> None:
        """Send so many images in all, and then end; to be called before `start`.

        Args:
            images: How many.
            most_a_line: Most of them over one association.
        """
        self._most, self._most_a_line = images, most_a_line

    def _send(self, image: Dataset) -> bool:
        """Whether an image was acknowledged."""
        if self._left == 0 or not self._association.is_established:
            self._close()
            self._association = self._entity.associate(
                HOST,
                self.port,
                ae_title="CART",
                evt_handlers=[(evt.EVT_CONN_OPEN, _have_limits)],
            )
            self._left = self._draw.randint(1, self._most_a_line)
        if not self._association.is_established:
            self.answers["no association"] += 1
            self._left = 0
            return False
        self._left -= 1
        try:
            status = self._association.send_c_store(image).get("Status")
        except (RuntimeError, ValueError):  # the association ended just now
            status = None
        self.answers[NO_ANSWER if status is None else f"0x{status:04X}"] += 1
        if status == 0:
            data = encode(image, is_implicit_vr=False, is_little_endian=True)
            assert data is not None
            self.acknowledged[str(image.SOPInstanceUID)] = content_hash(EXPLICIT, data)
        return bool(status == 0)

    def _close(self) -> None:
        association, self._association, self._left = self._association, None, 0
        if association is not None and association.is_established:
            with contextlib.suppress(RuntimeError):
                association.release()

    def finish(self, seconds: float = 240.0) -> None:
        """Send no new image, wait until the one under way is acknowledged, and end."""
        self._finishing.set()
        self.join(seconds)
        if self.is_alive():
            raise TimeoutError(f"no image is acknowledged any more: {dict(self.answers)}")


def _have_limits(event: Any) -> None:
    """Have a connection on which nothing moves end: pynetdicom would wait for ever."""
    event.assoc.dul.socket.socket.settimeout(_STALL_SECONDS)
