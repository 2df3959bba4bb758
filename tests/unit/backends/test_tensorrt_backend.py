"""How an engine is loaded, with stand-ins for TensorRT and the GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.backends.tensorrt import build, cuda
from deepcovid_edge.backends.tensorrt.files import EngineFacts, Fit, Profile, write_engine
from deepcovid_edge.errors import EngineMismatchError, UsageError
from deepcovid_edge.manifest import ModelManifest

MANIFEST = ModelManifest("net", "resnet18", ("non", "covid"), "covid", 0.25)
ORIN = Fit("tensorrt", "10.3.0", ("sm87",), "Orin")
PLAN = b"plan" * 100


class Loaded:
    """What the stand-in of TensorRT has deserialised."""

    num_io_tensors = 0

    def __init__(self) -> None:
        self.plans: list[bytes] = []

    def deserialize_cuda_engine(self, plan: bytes) -> Loaded:
        self.plans.append(plan)
        return self


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(
        tmp_path, "net.engine", PLAN, EngineFacts(MANIFEST, ORIN, Profile(), "", "")
    )


@pytest.fixture
def loaded(engine: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """Another program replaces the engine as soon as the GPU is opened."""
    found = Loaded()

    class Device:
        def __init__(self) -> None:
            engine.write_bytes(b"another plan")

        @contextmanager
        def active(self) -> Iterator[None]:
            yield

    logger: Any = lambda level: None  # noqa: E731 - a class in TensorRT
    logger.ERROR = 1
    library = SimpleNamespace(Logger=logger, Runtime=lambda logger: found)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setattr(build, "device_fit", lambda **_: ORIN)
    monkeypatch.setattr(cuda, "CudaDevice", Device)
    return found


def test_the_bytes_that_are_run_are_those_that_were_checked(engine: Path, loaded: Loaded) -> None:
    with load_backend(engine, backend="tensorrt") as backend:
        assert loaded.plans == [PLAN]
        assert backend.name == "tensorrt-10.3.0"
    assert engine.read_bytes() != PLAN


def test_an_engine_with_other_bytes_is_not_deserialised(engine: Path, loaded: Loaded) -> None:
    engine.write_bytes(PLAN[:-1] + b"m")
    with pytest.raises(EngineMismatchError, match="sha256 differs"):
        load_backend(engine, backend="tensorrt")
    assert loaded.plans == []


def test_threads_inside_a_call_are_refused(engine: Path, loaded: Loaded) -> None:
    with pytest.raises(UsageError, match="threads: got 4, TensorRT has none: expected 1"):
        load_backend(engine, backend="tensorrt", settings=BackendSettings(threads=4))
    assert loaded.plans == []
