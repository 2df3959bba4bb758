"""What the tests of the quantiser share: a tiny network, its films and its forms, made once.

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
    """Films to calibrate and to judge on, as folders of splits."""
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
    """The network in each flavour."""
    from tiny_network import FLAVOURS, make

    folder = tmp_path_factory.mktemp("made")
    return {
        name: make(parent, data, lowered, folder / f"tiny-{name}.onnx")
        for name, lowered in FLAVOURS.items()
    }
