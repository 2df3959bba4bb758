"""Peers: small programs that do the same work with what a user would write or pick instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any


def over(images: Sequence[Path], peer: str, what: Any, **settings: Any) -> Callable[[], object]:
    """A peer's loop over images, tried on one of them: what it lacks shows at once.

    Args:
        images: What it classifies.
        peer: Name of its module here.
        what: The architecture or the file that the peer takes.
        settings: The peer's own.
    """
    import cv2

    cv2.setNumThreads(1)
    classify = import_module(f"benchmarks.peers.{peer}").make(what, **settings)
    classify(images[:1])
    return partial(classify, images)
