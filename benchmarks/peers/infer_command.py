"""`deepcovid-edge infer`, as a user types it, without the start of Python."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import RUNS_THROUGH
from deepcovid_edge.cli.main import run


def make(folder: Path, model: Path, *options: str) -> Callable[[], None]:
    """The command over a folder, from listing it to the written file of records."""

    def classify() -> None:
        with tempfile.TemporaryDirectory() as place:
            infer(folder, model, Path(place, "out.jsonl"), *options)

    return classify


def infer(folder: Path, model: Path, output: Path, *options: str) -> None:
    """Run the command once.

    Raises:
        RuntimeError: It did not classify the images; some may not be assessed.
    """
    code = run(["infer", str(folder), "--model", str(model), "-o", str(output), *options])
    if code not in RUNS_THROUGH:
        raise RuntimeError(f"infer exited with {code}")
