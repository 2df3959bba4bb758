"""The picture in the documentation is what this code draws of a synthetic image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
SHOWN = ROOT / "benchmarks/results/heatmap/synthetic.jpg"


def test_picture_in_the_documentation_is_up_to_date_small_and_marked(tmp_path: Path) -> None:
    drawn = tmp_path / "synthetic.jpg"
    command = [sys.executable, "-m", "benchmarks.heatmaps.pictures", "-o", str(drawn)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert SHOWN.stat().st_size <= 150_000
    with Image.open(SHOWN) as shown, Image.open(drawn) as now:
        assert b"Synthetic image" in shown.info["comment"]
        assert shown.size == now.size
        # Processors differ in a float's last bits, versions of libjpeg in a grey level or two.
        apart = np.abs(np.asarray(shown).astype(int) - np.asarray(now))
    assert apart.mean() < 1, "stale: python -m benchmarks.heatmaps.pictures"
    assert (apart > 64).mean() < 0.001, "stale: python -m benchmarks.heatmaps.pictures"
