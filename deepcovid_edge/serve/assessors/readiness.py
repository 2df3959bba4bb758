"""Readiness: a synthetic image goes the way of every other, again and again.

It goes before the images that wait: a full queue makes no server unready.

A process may live and answer nothing, or answer wrongly. So the server is ready while the last
synthetic image came back with the record that it had when the model was loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

from deepcovid_edge.device.service import log
from deepcovid_edge.serve.assessors.pool import Assessors

_MISSED = 3
"""Checks that may be late before the server counts as not ready."""


class Readiness:
    """Whether the server assesses images."""

    def __init__(self, assessors: Assessors, seconds: float) -> None:
        self._assessors, self._seconds = assessors, seconds
        self._right = time.monotonic()  # the model was loaded with such an image just now
        self._is_right = True

    @property
    def is_ready(self) -> bool:
        """Whether the last check came back, with the right record, and not too long ago."""
        late = time.monotonic() - self._right > (_MISSED + 1) * self._seconds
        return self._is_right and not late

    async def watch(self) -> None:
        """Check until the task is cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.check(), _MISSED * self._seconds)

    async def check(self) -> bool:
        """Have the synthetic image assessed once."""
        known = self._assessors.known
        answer = await self._assessors.assess(known.record["path"], known.image, is_next=True)
        record = json.loads(answer.record)
        was_right, self._is_right = self._is_right, known.is_right(record)
        if self._is_right:
            self._right = time.monotonic()
        if was_right != self._is_right:
            log("readiness", is_right=self._is_right)
        return self._is_right
