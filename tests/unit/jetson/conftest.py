"""A fake root of a Jetson, and its installer run on it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from jetson_roots import Install, Root

INSTALL = Path(__file__).parents[3] / "jetson/install.sh"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


@pytest.fixture
def install(tmp_path: Path, root: Root) -> Install:
    """Runs the installer on the fake root; the environment goes below tmp_path."""

    def run(
        *options: str, script: Path = INSTALL, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        unset = ("CUDA_ROOT", "DEEPCOVID_EDGE_JETSON_INDEX", "SUDO_USER")
        base = {name: value for name, value in os.environ.items() if name not in unset}
        return subprocess.run(
            [str(script), "--root", str(root.folder), *options],
            env={**base, "HOME": str(tmp_path / "home"), **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
