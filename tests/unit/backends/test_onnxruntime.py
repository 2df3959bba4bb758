"""The options of ONNX Runtime's providers: what they keep between runs is of one model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepcovid_edge.backends import onnxruntime as module
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.errors import OutputError
from deepcovid_edge.files import CACHE_VARIABLE, file_sha256


class _Options:
    pass


class _Session:
    def get_providers(self) -> list[str]:
        return list(module._PROVIDERS.values())


class _Runtime:
    """Notes the options that a session gets, as the GPU's provider gets them."""

    SessionOptions = _Options

    def __init__(self, provider: str) -> None:
        self.provider, self.options = module._PROVIDERS[provider], dict[str, str]()

    def get_available_providers(self) -> list[str]:
        return [self.provider]

    def InferenceSession(self, _: object, __: object, providers: Any) -> Any:
        ((_, self.options),) = providers
        session = _Session()
        session.get_providers = lambda: [self.provider]  # type: ignore[method-assign]
        return session


def options_of(provider: str, path: Path) -> dict[str, str]:
    runtime = _Runtime(provider)
    module._session(runtime, path, BackendSettings(provider=provider))
    return runtime.options


@pytest.mark.parametrize(
    ("provider", "name"), [("tensorrt", "trt_engine_cache_path"), ("rtx", "nv_runtime_cache_path")]
)
def test_a_model_of_the_same_graph_gets_no_engine_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str, name: str
) -> None:
    """ONNX Runtime hashes the graph and not its weights."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_RTX_PLUGIN", "no_such_plug_in")
    found = []
    for weights in (b"one", b"two"):
        path = tmp_path / "m.onnx"
        path.write_bytes(weights)
        found.append(options_of(provider, path)[name])
        assert found[-1] == str(tmp_path / "cache/onnxruntime" / file_sha256(path))
    assert len(set(found)) == 2
    assert all(Path(one).is_dir() for one in found), (
        "ONNX Runtime makes one folder, not those around"
    )


def test_the_times_of_layers_are_kept_for_all_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "m.onnx").touch()
    options = options_of("tensorrt", tmp_path / "m.onnx")
    assert options["trt_timing_cache_path"] == str(tmp_path / "cache/onnxruntime")
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    assert not options_of("cpu", tmp_path / "m.onnx")


def test_a_cache_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(OutputError, match=f"set {CACHE_VARIABLE} to a folder"):
        options_of("tensorrt", tmp_path / "file")
