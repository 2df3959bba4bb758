"""Repositories of `export --triton`: what is in them, and that Triton's own schema takes them."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from triton_server import PYTHON, needs_triton

from deepcovid_edge.backends.tensorrt.files import EngineFacts, Fit, Profile, write_engine
from deepcovid_edge.errors import UsageError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import ModelManifest, read_manifest
from deepcovid_edge.models import find_model
from deepcovid_export.onnx_export.triton_repository import write_repository
from deepcovid_export.onnx_export.triton_settings import PLATFORMS, RepositorySettings

MODEL = find_model("squeezenet1_1")
PARSE = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
for path in sys.argv[1:]:
    config = text_format.Parse(open(path).read(), ModelConfig())
    print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))
"""


def test_a_repository_has_reader_model_and_warm_up(tmp_path: Path) -> None:
    (config,) = write_repository(MODEL, tmp_path, RepositorySettings(instances=3))
    assert config == tmp_path / "squeezenet1_1/config.pbtxt"
    assert "count: 3" in config.read_text()
    assert "ot executed" not in config.read_text()
    assert file_sha256(tmp_path / "squeezenet1_1/1/model.onnx") == file_sha256(MODEL)
    warm_up = (tmp_path / "squeezenet1_1/warmup/synthetic.png").read_bytes()
    assert int.from_bytes(warm_up[:4], "little") == len(warm_up) - 4
    assert warm_up[4:8] == b"\x89PNG"
    compile((tmp_path / "squeezenet1_1/1/model.py").read_text(), "model.py", "exec")


def test_a_network_apart_has_batches_and_is_said_not_to_have_run(tmp_path: Path) -> None:
    reader, network = write_repository(MODEL, tmp_path, RepositorySettings("onnxruntime_onnx"))
    for config in (reader, network):
        assert "# Not executed" in config.read_text()
    assert 'key: "network" value { string_value: "squeezenet1_1-network" }' in reader.read_text()
    assert (tmp_path / "squeezenet1_1-network/1/model.onnx").is_file()
    assert not (tmp_path / "squeezenet1_1/1/model.onnx").exists()


def test_a_platform_takes_its_own_files() -> None:
    with pytest.raises(UsageError, match=r"expected an \.engine"):
        write_repository(MODEL, Path("x"), RepositorySettings("tensorrt_plan"))
    with pytest.raises(UsageError, match="expected one of"):
        RepositorySettings("ensemble")
    with pytest.raises(UsageError, match="instances"):
        RepositorySettings(instances=0)


def engine_of(folder: Path, manifest: ModelManifest, profile: Profile) -> Path:
    """An engine of the shipped model that was found unchanged; its plan is none."""
    own = file_sha256(MODEL)
    facts = EngineFacts(manifest, Fit("tensorrt", "10.9", ("sm86",)), profile, own, "")
    verification = {"verdict": "unchanged", "reference": {"sha256": own}}
    return write_engine(folder, "a.engine", b"no plan", replace(facts, verification=verification))


@pytest.mark.parametrize(
    ("profile", "most", "preferred", "warm_up"),
    [
        (Profile(1, 1, 1), 1, [1], 1),
        (Profile(1, 4, 6), 6, [4], 4),
        (Profile(1, 8, 32), 32, [8, 16], 8),
    ],
)
def test_batches_are_those_that_the_engine_takes(
    tmp_path: Path, profile: Profile, most: int, preferred: list[int], warm_up: int
) -> None:
    engine = engine_of(tmp_path, read_manifest(MODEL), profile)
    _, network = write_repository(engine, tmp_path / "r", RepositorySettings("tensorrt_plan"))
    text = network.read_text()
    assert re.findall(r"max_batch_size: (\d+)", text) == [str(most)]
    assert re.findall(r"preferred_batch_size: (\d+)", text) == [str(size) for size in preferred]
    assert re.findall(r"^  batch_size: (\d+)", text, re.MULTILINE) == [str(warm_up)]


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [({}, []), ({"precision": "int8", "parent_sha256": "ab" * 32}, ["W_UNVERIFIED"])],
)
def test_an_engine_of_an_unproved_file_has_the_warning(
    tmp_path: Path, changes: dict[str, Any], warnings: list[str]
) -> None:
    engine = engine_of(tmp_path, replace(read_manifest(MODEL), **changes), Profile())
    reader, _ = write_repository(engine, tmp_path / "r", RepositorySettings("tensorrt_plan"))
    stated = re.search(r'"deepcovid_edge" value \{ string_value: (".*") \} \}', reader.read_text())
    assert stated
    assert json.loads(json.loads(stated[1]))["warnings"] == warnings


@needs_triton
def test_triton_s_schema_takes_every_configuration(tmp_path: Path) -> None:
    sha256 = file_sha256(MODEL)
    engine = engine_of(tmp_path, read_manifest(MODEL), Profile(1, 8, 32))
    configs = []
    for platform in PLATFORMS:
        model = engine if platform == "tensorrt_plan" else MODEL
        place = tmp_path / platform
        configs += write_repository(model, place, RepositorySettings(platform))
    done = subprocess.run(
        [PYTHON, "-c", PARSE, *configs], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["name"] for one in found] == [
        "squeezenet1_1",
        *("squeezenet1_1", "squeezenet1_1-network") * 2,
    ]
    for one in (found[2], found[4]):
        assert one["input"] == [
            {"name": "images", "data_type": "TYPE_UINT8", "dims": ["224", "224"]}
        ]
        assert one["dynamic_batching"]["preferred_batch_size"] == [8, 16]
    written = json.loads(found[3]["parameters"]["deepcovid_edge"]["string_value"])
    assert sha256 in written["parents"]
