"""A checkpoint as a backend: how many threads it uses."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs extra export")

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.manifest import ModelManifest
from deepcovid_export.networks import build_network
from deepcovid_export.networks.checkpoint import save_checkpoint


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_uses_as_many_threads_as_are_asked_for(threads: int, tmp_path: Path) -> None:
    manifest = ModelManifest("net", "small_cnn", ("non", "covid"), "covid", 0.5)
    save_checkpoint(build_network("small_cnn", 2), manifest, tmp_path / "net.pt")
    torch.set_num_threads(3)
    with (
        load_backend(tmp_path / "net.pt", settings=BackendSettings(threads=threads)),
        ThreadPoolExecutor(1) as pool,
    ):
        assert torch.get_num_threads() == threads
        assert pool.submit(torch.get_num_threads).result() == threads
