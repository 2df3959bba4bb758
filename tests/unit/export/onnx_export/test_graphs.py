"""Model files: written in one step, and an error names the file that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="the workstation side needs extra export")

from deepcovid_edge.errors import OutputError
from deepcovid_edge.models import find_model
from deepcovid_export.onnx_export.graphs import save


def test_a_folder_that_cannot_be_written_is_told_with_the_file_that_was_asked_for() -> None:
    """Nobody may write into /proc, root neither."""
    model = onnx.load(find_model("squeezenet1_1"))
    with pytest.raises(OutputError, match=r"^/proc/first\.onnx: cannot be written: "):
        save(model, Path("/proc/first.onnx"))
