"""The benchmarks do what they say: peers do the same work, cost grows what it names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the peers need extra export")

import cv2
import numpy as np
from drawn_once import drawn_phantom, phantom_files

from deepcovid_edge.backends import load_backend, openvino
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.imaging.synthetic.phantom import save_phantom
from deepcovid_edge.manifest import InputSpec, read_manifest
from deepcovid_edge.model import Model
from deepcovid_edge.models import find_model
from deepcovid_edge.pipeline.pipeline import PredictSettings

MODEL = find_model("squeezenet1_1")
POSITIVE = read_manifest(MODEL).positive_index


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return phantom_files(tmp_path_factory.mktemp("images"), count=4)


@pytest.fixture(scope="module")
def whole_areas(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of four times the network's side: peers resize with OpenCV, whose pixels are ours."""
    folder = tmp_path_factory.mktemp("whole")
    paths = [folder / f"{seed}.png" for seed in range(4)]
    for seed, path in enumerate(paths):
        save_phantom(cv2.resize(drawn_phantom(seed), (896, 896)).astype(np.uint8), path)
    return paths


@pytest.fixture(scope="module")
def expected(whole_areas: list[Path]) -> list[float]:
    """Probabilities of the first class as `infer` gives them."""
    settings = PredictSettings()
    with load_backend(MODEL, backend="onnxruntime") as backend:
        first = backend.manifest.classes[0]
        records = list(Model.of(backend, settings).predict(whole_areas))
    return [record.probabilities[first] for record in records if record.probabilities]


@pytest.mark.parametrize(
    ("peer", "settings", "tolerance"),
    [
        ("onnxruntime_loop", {}, 1e-5),
        ("onnxruntime_loop", {"threads": 2}, 1e-5),
        ("openvino_loop", {}, 1e-4),
        ("torchvision_loop", {}, 0.1),  # another filter makes other pixels
    ],
)
def test_a_peer_classifies_the_images_that_infer_classifies(
    peer: str,
    settings: dict[str, Any],
    tolerance: float,
    whole_areas: list[Path],
    expected: list[float],
) -> None:
    if peer == "openvino_loop" and not openvino.is_available():
        pytest.skip("openvino (extra openvino) is not installed")
    from importlib import import_module

    classify = import_module(f"benchmarks.peers.{peer}").make(MODEL, **settings)
    assert classify(whole_areas) == pytest.approx(expected, abs=tolerance)


def test_cost_grows_one_thing_at_a_time_and_draws_each(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.speed import cost

    for name, value in (("IMAGES", (2, 5)), ("MEGAPIXELS", (0.5, 2)), ("SHARE", 3)):
        monkeypatch.setattr(cost, name, value)
    steps = list(cost.steps(images, 5, tmp_path))
    assert [count for growth, _, count, _ in steps if growth == "images"] == [2, 5]
    for _, megapixels, count, (_, folder, *_more) in [
        step for step in steps if step[0] == "megapixels"
    ]:
        (image, *_rest) = sorted(Path(folder).rglob("0*.jpg"))
        read = cv2.imread(str(image))
        assert read is not None
        assert read.shape[:2] == pytest.approx([(megapixels * 1e6) ** 0.5] * 2, rel=0.1)
        assert len(list(Path(folder).rglob("0*.jpg"))) == count
    assert {growth for growth, *_ in steps} == set(cost.GROWTHS)
    assert [value for growth, value, *_ in steps if growth == "windows"] == [49, 169, 625, 2401]
    run = {"median": 1.0, "samples": [1.0, 1.1], "min": 1.0, "max": 1.1}
    grown = {"images": 3, "seconds": run, "peak_mib": run, "ms_an_image": 1.0}
    figures = {"start": grown, **{growth: {"1": grown, "2": grown} for growth in cost.GROWTHS}}
    cost.draw(json.loads(json.dumps(figures)), tmp_path)
    drawn = sorted(path.name for path in tmp_path.glob("cost-*.svg"))
    assert drawn == sorted(f"cost-{growth}.svg" for growth in cost.GROWTHS)


@pytest.fixture(scope="module")
def pixels(images: list[Path]) -> list[np.ndarray]:
    return [prepare(read_radiograph(path), InputSpec()) for path in images]


@pytest.mark.parametrize("peer", ["pytorch_grad_cam", "captum_layer_grad_cam"])
def test_a_peer_of_class_activation_draws_the_map_that_the_network_gives(
    peer: str, pixels: list[np.ndarray]
) -> None:
    package = "captum" if peer.startswith("captum") else peer
    if find_spec(package) is None:
        pytest.skip(f"{package} (extra dev) is not installed")
    from benchmarks.heatmaps.activation import agree, ours
    from benchmarks.peers.captum_occlusion import torch_network
    from benchmarks.peers.grad_cam import PEERS

    network = torch_network(MODEL, np.stack(pixels))
    other = PEERS[peer](network, POSITIVE, threads=1)
    with ExitStack() as opened:
        own = ours(MODEL, opened, as_peers=True)
        assert agree(own, other, pixels) > 0.999
        whole = ours(MODEL, opened)(pixels[0])
    assert whole.min() < 0


@pytest.mark.parametrize("way", ["published", "present"])
def test_torchvision_prepares_nearly_the_same_image(way: str, images: list[Path]) -> None:
    from benchmarks.peers import torchvision_prepare

    other = torchvision_prepare.make(way)(images[0])
    own = prepare(read_radiograph(images[0]), InputSpec())
    assert other.shape == own.shape
    assert other.dtype == np.uint8
    assert np.abs(other.astype(int) - own).mean() < 2


def test_preparing_is_compared_in_time_pixels_and_decisions(images: list[Path]) -> None:
    from benchmarks.speed import prepare as prepare_speed

    with load_backend(MODEL, backend="onnxruntime") as backend:
        figures = prepare_speed.compare(backend, images[:2], rounds=1)
    peers = {"opencv", "torchvision_published", "torchvision_present"}
    assert set(figures["moved"]) == peers
    assert all(len(ms["samples"]) == 2 for ms in figures["ms"].values())
    assert figures["moved"]["opencv"]["grey_levels_median"] < 0.01
    assert 0 < figures["moved"]["torchvision_present"]["grey_levels_median"] < 2


def test_sections_of_a_profile_add_up_and_are_all_still_there(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails for a function that was renamed: name it in infer_profile.SECTIONS."""
    from benchmarks.speed import infer_profile

    (tmp_path / "images").mkdir()
    for path in images:
        (tmp_path / "images" / path.name).symlink_to(path)
    asked = ["--data", str(tmp_path), "--folder", "images", "--rounds", "2", "--cores", "1"]
    monkeypatch.setattr(infer_profile, "store", lambda name, _: tmp_path / f"{name}.json")
    monkeypatch.setattr("sys.argv", ["infer_profile", *asked])
    infer_profile.main()
    (written,) = tmp_path.glob("profile-infer-squeezenet1_1*-images.txt")
    text = written.read_text("utf-8")
    assert "no longer there" not in text
    for section in ("network", "resize", "decode PNG L", "write the record", "SHA-256", "idle"):
        assert f"\n{section} " in text
    shares = [float(value) for value in re.findall(r"(-?\d+\.\d)%", text)]
    assert sum(shares) == pytest.approx(100, abs=1)


def test_a_section_is_timed_without_the_sections_within_it() -> None:
    from benchmarks.speed.infer_profile import Probes

    probes = Probes()
    inner = probes.wrap("inner", lambda: busy(0.02))

    def both() -> None:
        busy(0.01)
        inner()
        inner()

    outer = probes.wrap("outer", both)
    outer()
    ms = {name: section["cpu_ns"] / 1e6 for name, section in probes.sections.items()}
    assert probes.sections["inner"]["calls"] == 2
    assert ms["inner"] == pytest.approx(40, abs=4)
    assert ms["outer"] == pytest.approx(10, abs=2)


def busy(seconds: float) -> None:
    """Compute for so long on this thread, however often it is interrupted."""
    started = time.thread_time()
    while time.thread_time() - started < seconds:
        pass


def test_the_roof_counts_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.speed import gpu_roof
    from deepcovid_export.networks import build_network

    for name in ("squeezenet1_1", "resnet18", "resnet50", "densenet121"):
        network = build_network(name, 2)
        parameters = sum(one.numel() for one in network.parameters() if one.ndim > 1)
        found = gpu_roof.layers(network)
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros((1, 224, 224), dtype=torch.uint8, device="meta"))
        assert sum(layer.operations for layer in found) == counter.get_total_flops()
        assert 0 <= sum(layer.weights for layer in found) - parameters < 0.01 * parameters


def test_the_roof_is_the_longer_of_computing_and_moving_layer_by_layer() -> None:
    from benchmarks.speed.gpu_roof import Layer, roof_ms

    computes, moves = Layer(4_000_000, 10, 10), Layer(10, 500, 1_000)
    ceilings = {"fp16_operations_per_second": 1e9, "bytes_per_second": 1e6}
    assert roof_ms([computes], 1, "fp16", ceilings) == pytest.approx(4)
    assert roof_ms([moves], 1, "fp16", ceilings) == pytest.approx(3)  # 1,500 numbers of 2 bytes
    assert roof_ms([moves], 8, "fp16", ceilings) == pytest.approx(17)  # the weights move once
    assert roof_ms([computes, moves], 8, "fp16", ceilings) == pytest.approx(32 + 17)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU: benchmarks/speed/gpu.py measures"
)
def test_without_a_gpu_nothing_is_executed_or_stored() -> None:
    command = [sys.executable, "-m", "benchmarks.speed.gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "not executed: no GPU\n"


def test_torch_beside_ours_is_timed_host_to_host_also_without_cuda() -> None:
    from benchmarks.speed import gpu

    name, side = next(gpu.torch_sides("squeezenet1_1", 2, "cpu"))
    images = np.zeros((2, 224, 224), np.uint8)
    rows = gpu.time_sides({name: side}, images, 3)
    assert name == "torch_eager_fp32"
    assert len(rows[name]["host_ms"]["samples"]) == 3
    assert rows[name]["graph"] == "neither"
    assert side.run(images).shape == (2, 2)


def test_an_engine_s_network_alone_is_not_called_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host to host it is a graph with its copies, which events cannot part."""
    from benchmarks.speed import gpu

    class Engine(nullcontext[Any]):
        def __enter__(self) -> Engine:
            return self

        def infer(self, batch: np.ndarray) -> np.ndarray:
            return batch

        def infer_in_parts(self, batch: np.ndarray) -> dict[str, float]:
            return {"host_to_device": 1.0, "compute": 2.0, "device_to_host": 3.0}

    monkeypatch.setattr(gpu, "file_for", lambda *_: (MODEL, "tensorrt", None))
    monkeypatch.setattr(gpu, "load_backend", lambda *_, **__: Engine())
    with ExitStack() as opened:
        side = gpu.our_side(MODEL, "fp16", 1, None, opened)
        rows = gpu.time_sides({"tensorrt_fp16": side}, np.zeros((1, 2, 2), np.uint8), 1)
    assert rows["tensorrt_fp16"]["device_ms"]["median"] == 2.0
    assert rows["tensorrt_fp16"]["graph"] == "host to host"


TRTEXEC = """#!/bin/sh
if [ "$1" = --help ]; then echo "$HELP"; exit 0; fi
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v101300]"
for option in "$@"; do case $option in --exportTimes=*) place=${option#*=};; esac; done
[ "$FAILS" ] && { echo "[E] no such network"; exit 1; }
echo '[{"h2dMs": 0.1, "computeMs": 1.0, "d2hMs": 0.05}, {"h2dMs": 0.3, "computeMs": 3.0,
"d2hMs": 0.05}, {"h2dMs": 0.2, "computeMs": 2.0, "d2hMs": 0.05}]' > "$place"
"""
"""Stands in for trtexec: what it exports, in the format of its samples' `exportTimes`."""


@pytest.mark.parametrize(
    ("help_text", "expected"),
    [
        ("--useCudaGraph --stronglyTyped", ["--stronglyTyped", "--useCudaGraph"]),
        ("--includeTransfers --useCudaGraph", ["--includeTransfers"]),
    ],
    ids=["10", "11"],
)
def test_trtexec_of_each_version_gets_the_options_that_it_knows(
    help_text: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.peers import trtexec

    program = tmp_path / "trtexec"
    program.write_text(TRTEXEC, encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HELP", help_text)
    found = trtexec.measure(MODEL, 8)
    assert found["ms"]["compute"] == 2.0
    assert found["ms"]["host_to_host"] == pytest.approx(2.25)
    assert found["options"][-len(expected) :] == expected
    assert "--shapes=images:8x224x224" in found["options"]
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(RuntimeError, match="no such network"):
        trtexec.measure(MODEL, 8)


def test_sides_take_turns_and_neither_warm_up_nor_pause_is_counted() -> None:
    from benchmarks.measure import in_turn

    called = []

    def side(name: str, seconds: float) -> Any:
        def run(number: int) -> None:
            called.append((name, number))
            time.sleep(seconds if number else 0.3)

        return run

    sides = {"one": side("one", 0.01), "other": side("other", 0.03)}
    found = in_turn(sides, ((number,) for number in range(3)), pause=0.3)
    assert called == [(name, number) for number in range(3) for name in sides]
    for name, least in {"one": 0.01, "other": 0.03}.items():
        assert len(found[name]) == 2
        assert all(least <= seconds < least + 0.25 for seconds in found[name])


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("2-core-amd-epyc", "AMD EPYC, 2 cores"),
        ("2-core-amd-epyc-busy-host", "AMD EPYC, 2 cores, busy host"),
        ("archive", "AMD EPYC, 2 cores"),
    ],
)
def test_a_table_names_the_device_and_what_its_folder_adds(
    folder: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / folder / "speed.json"
    path.parent.mkdir()
    facts = {"processor": "AMD EPYC", "cores": 2, "gpus": []}
    path.write_text(json.dumps({"device": facts}), "utf-8")
    from benchmarks.tables import table

    assert table.load(path)["on"] == expected
