"""Triton for real, with the Python backend and a repository of `export --triton`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="`export` needs extra export")

from cart_peers import HOST
from commands import command as in_this_process
from serving import ChangingProxy, essence
from triton_server import Triton, needs_triton

from deepcovid_edge import Model
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.errors import ServerMismatchError
from deepcovid_edge.imaging.synthetic.clinic_folder import write_clinic_folder

pytestmark = [needs_triton, pytest.mark.slow]
NETWORK = '''"""The network as a model of its own, where no other backend than Python is."""

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        path = f"{args['model_repository']}/{args['model_version']}/model.onnx"
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        answers = []
        for request in requests:
            images = triton.get_input_tensor_by_name(request, "images").as_numpy()
            names = ["logits", "ood_scores"]
            found = self._session.run(names, {"images": images})
            tensors = [triton.Tensor(name, value) for name, value in zip(names, found)]
            answers.append(triton.InferenceResponse(output_tensors=tensors))
        return answers
'''


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clinic")
    write_clinic_folder(folder, 4)
    return folder


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """The model that holds its network, and another that calls it as a model of its own."""
    repository, apart = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("apart")
    for place, options in ((repository, ()), (apart, ("--platform", "onnxruntime_onnx"))):
        done = in_this_process("export", "squeezenet1_1", "--triton", place, *options)
        assert done.returncode == 0, done.stderr
    # The second set, under another name, with a network that the Python backend runs.
    shutil.copytree(apart / "squeezenet1_1", repository / "apart")
    shutil.copytree(apart / "squeezenet1_1-network", repository / "squeezenet1_1-network")
    text = (repository / "apart/config.pbtxt").read_text()
    (repository / "apart/config.pbtxt").write_text(
        text.replace('name: "squeezenet1_1"\n', 'name: "apart"\n', 1)
    )
    network = repository / "squeezenet1_1-network"
    text = (network / "config.pbtxt").read_text()
    for old, new in (
        ('platform: "onnxruntime_onnx"', 'backend: "python"'),
        ("KIND_GPU", "KIND_CPU"),
    ):
        assert old in text
        text = text.replace(old, new)
    (network / "config.pbtxt").write_text(text)
    (network / "1/model.py").write_text(NETWORK)
    with Triton(repository, tmp_path_factory.mktemp("triton")) as running:
        yield running


def essences(found: Iterator[Prediction]) -> list[dict[str, object]]:
    return [essence(one.as_dict()) for one in found]


def test_records_are_those_of_infer(clinic: Path, triton: Triton) -> None:
    with Model(variant="fp32") as model:
        here = essences(model.predict(clinic))
    with Model(backend=f"triton://{HOST}:{triton.port}", workers=2) as model:
        there = essences(model.predict(clinic))
    assert there == here
    assert {one["status"] for one in there} == {"assessed", "not_assessed"}


def test_the_network_may_be_a_model_of_its_own(clinic: Path, triton: Triton) -> None:
    """As with `onnxruntime_onnx`, whose backend is not here: the call to it is executed."""
    from deepcovid_edge.backends.remote.client import Address, Client

    image = (clinic / "phantom_001.png").read_bytes()
    with Client(Address.of(f"triton://{HOST}:{triton.port}"), "apart", patience=5) as client:
        record = dict(client.record(image, "image.png"))
    with Model(variant="fp32") as model:
        here = model.predict_one(clinic / "phantom_001.png").as_dict()
    assert record["backend"] == "triton-onnxruntime"
    assert record["probability"] == pytest.approx(here["probability"], abs=2e-6)
    assert record["decision"] == here["decision"]


def test_bytes_that_change_on_the_way_give_no_record(clinic: Path, triton: Triton) -> None:
    """All equal to the first, as its Python backend reads tensors of a newer NumPy."""
    with (
        ChangingProxy(triton.port, lambda image: image[:1] * len(image)) as proxy,
        Model(backend=f"triton://{HOST}:{proxy.port}") as model,
        pytest.raises(ServerMismatchError, match="received other bytes than were sent"),
    ):
        model.predict_one(clinic / "phantom_001.png")
