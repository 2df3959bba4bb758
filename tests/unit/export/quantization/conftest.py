"""What the tests of the quantiser share: a tiny network, its images and its variants, made once.

Imported when they are asked for: without extra `export` these tests are skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tiny_network import Made


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images to calibrate and to classify on, as folders of splits."""
    from tiny_network import draw_data

    return draw_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def parent(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network in FP32."""
    from tiny_network import fitted, graph, saved, weights

    path = tmp_path_factory.mktemp("parent") / "tiny.onnx"
    return saved(path, graph(fitted(weights(), data)))


@pytest.fixture(scope="session")
def made(parent: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """The network in each variant."""
    from tiny_network import VARIANTS, make

    folder = tmp_path_factory.mktemp("made")
    return {
        name: make(parent, data, variant, folder / f"tiny-{name}.onnx")
        for name, variant in VARIANTS.items()
    }
