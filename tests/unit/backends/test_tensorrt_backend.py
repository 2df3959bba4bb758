"""How an engine is loaded, with stand-ins for TensorRT and the GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.backends.tensorrt import build, cuda
from deepcovid_edge.backends.tensorrt.backend import TensorRtBackend, find_verified
from deepcovid_edge.backends.tensorrt.files import EngineFacts, Fit, Profile, write_engine
from deepcovid_edge.cli.build import summary
from deepcovid_edge.device import gpu
from deepcovid_edge.device.gpu import GpuFacts
from deepcovid_edge.errors import EngineMismatchError, UsageError
from deepcovid_edge.files import file_sha256
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


OWN_FILE, FP32_FILE = "ab" * 32, "cd" * 32
FP16 = replace(MANIFEST, precision="fp16", parent_sha256=FP32_FILE)
PROVED_FP16 = replace(FP16, quantization={"verified": {"verdict": "unchanged"}})


def facts_of(manifest: ModelManifest, verdict: str, reference: str) -> EngineFacts:
    verification = {"verdict": verdict, "reference": {"sha256": reference}}
    return EngineFacts(manifest, ORIN, Profile(), OWN_FILE, "", verification=verification)


@pytest.mark.parametrize(
    ("manifest", "verdict", "reference", "is_proved"),
    [
        (MANIFEST, "unchanged", OWN_FILE, True),
        (MANIFEST, "insufficient", OWN_FILE, False),
        (FP16, "unchanged", OWN_FILE, False),
        (FP16, "unchanged", FP32_FILE, True),
        (PROVED_FP16, "unchanged", OWN_FILE, True),
        (PROVED_FP16, "changed", OWN_FILE, False),
    ],
)
def test_an_engine_is_no_better_proved_than_what_it_was_compared_with(
    manifest: ModelManifest, verdict: str, reference: str, is_proved: bool
) -> None:
    facts = facts_of(manifest, verdict, reference)
    backend = TensorRtBackend(cast("Any", None), facts)
    assert [code.code for code in backend.warnings] == ([] if is_proved else ["W_UNVERIFIED"])
    assert EngineFacts.from_json(facts.to_json()).is_proved is is_proved


def test_a_build_from_a_file_without_proof_says_so() -> None:
    said = summary(Path("net.engine"), facts_of(FP16, "unchanged", OWN_FILE))
    assert "accuracy: unchanged against its fp16 file, which was not verified itself" in said
    assert "W_UNVERIFIED" in said
    proved = summary(Path("net.engine"), facts_of(PROVED_FP16, "unchanged", OWN_FILE))
    assert "accuracy: unchanged. Research use only." in proved


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file on a machine with both libraries; its cache has no engine."""
    monkeypatch.setenv("DEEPCOVID_EDGE_CACHE", str(tmp_path / "cache"))
    libraries = {"tensorrt": "10.3.0", "tensorrt_rtx": "1.7.1"}
    monkeypatch.setattr(build, "installed_libraries", lambda: libraries)
    monkeypatch.setattr(gpu, "find_gpu", lambda: GpuFacts("Orin", "sm87"))
    path = tmp_path / "net.onnx"
    path.write_bytes(b"net")
    return path


def cached(model: Path, profile: Profile, **changes: Any) -> Path:
    """A verified engine of the model in the cache, with other facts if they are given."""
    own = file_sha256(model)
    facts = replace(facts_of(MANIFEST, "unchanged", own), profile=profile, parent_sha256=own)
    name = f"b{profile.min}-{profile.opt}-{profile.max}.engine"
    return write_engine(model.parent / "cache", name, PLAN, replace(facts, **changes))


@pytest.mark.parametrize(
    ("best", "others"),
    [
        (Profile(1, 8, 32), [Profile(1, 1, 1), Profile(1, 32, 32), Profile(16, 16, 16)]),
        (Profile(4, 4, 4), [Profile(1, 1, 1), Profile(2, 2, 2)]),
        (Profile(1, 1, 1), []),
    ],
)
def test_of_several_engines_that_runs_which_suits_usual_batches(
    model: Path, best: Profile, others: list[Profile]
) -> None:
    wanted, *_ = [cached(model, profile) for profile in (best, *others)]
    assert find_verified(model) == wanted


def test_an_engine_of_either_library_is_found(model: Path) -> None:
    engine = cached(model, Profile(), fit=Fit("tensorrt_rtx", "1.7.1", ("sm87",)))
    assert find_verified(model) == engine


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest": FP16},
        {"verification": None},
        {"parent_sha256": OWN_FILE},
        {"fit": replace(ORIN, gpu="Orin NX")},
        {"fit": Fit("tensorrt_rtx", "1.6.0", ("sm87",))},
    ],
    ids=["unproved file", "not verified", "other model", "other GPU", "other version"],
)
def test_an_engine_without_proof_or_of_another_device_is_passed_over(
    model: Path, changes: dict[str, Any]
) -> None:
    cached(model, Profile(), **changes)
    assert find_verified(model) is None


def test_without_a_gpu_no_engine_is_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(model, Profile())
    monkeypatch.setattr(gpu, "find_gpu", lambda: None)
    assert find_verified(model) is None
