"""Commands of the workstation that classify images keep OpenCV's threads out of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from commands import command

for needed in ("sklearn", "torch", "onnx"):
    pytest.importorskip(needed, reason=f"{needed} (extra export) is needed by these commands")

import torch


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    yield
    cv2.setNumThreads(before)


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "squeezenet1_1", "none"),
        ("quantize", "squeezenet1_1", "--calibration", "none", "--precision", "int8"),
        ("export", "none.pt"),
    ],
    ids=lambda words: words[0],
)
def test_opencv_has_one_thread_and_torch_its_own(words: tuple[str, ...], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    assert command(*words, cwd=tmp_path).returncode != 0, "there are no such files"
    assert cv2.getNumThreads() == 1
    assert torch.get_num_threads() == before
