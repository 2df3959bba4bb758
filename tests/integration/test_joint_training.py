"""Two processes that torchrun started make one run: the same steps, one checkpoint, one voice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the workstation side needs extra export")
if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)

from drawn_once import drawn_phantom

from deepcovid_edge.imaging.synthetic.phantom import save_phantom
from deepcovid_export.data.images import training_data
from deepcovid_export.networks.checkpoint import load_checkpoint
from deepcovid_export.recipe import load_recipe
from deepcovid_export.training.train import RunSettings, Training

pytestmark = pytest.mark.slow  # several processes train several times

# Uneven classes and smoothing, so that a mean over each process's share would be another loss; 14
# images in batches of 8, so that the last is smaller.
PLAIN = """
name = "plain"
architecture = "small_cnn"
positive_class = "hazy"
[classes]
clear = ["clear"]
hazy = ["hazy"]
[input]
height = 64
width = 64
[fit]
epochs = 3
batch_size = 8
start = "scratch"
optimiser = "adam"
learning_rate = 1e-3
label_smoothing = 0.1
clip = 1.0
average = 0.5
precision = "fp32"
"""
NORMALISED = 'base = "plain"\nname = "normalised"\narchitecture = "resnet18"\n[fit]\nepochs = 1\n'
BOTH = ("plain", "normalised")


class Joint(NamedTuple):
    """What the runs of two processes left, and what they printed."""

    folder: Path
    output: str
    messages: str

    def end(self, name: str, rank: int) -> dict[str, Any]:
        path = self.folder / name / f"rank-{rank}.pt"
        state: dict[str, Any] = torch.load(path, weights_only=True)
        return state


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Joint:
    folder = tmp_path_factory.mktemp("joint")
    for seed in range(20):
        split = "val" if seed >= 14 else "train"
        label = "hazy" if seed % 3 else "clear"
        place = folder / "data" / split / label
        place.mkdir(parents=True, exist_ok=True)
        image = drawn_phantom(seed, opacities=6 if label == "hazy" else 0)
        small = np.asarray(cv2.resize(image, (128, 128)), np.uint8)
        save_phantom(small, place / f"{seed:02d}.png")
    for name, text in (("plain", PLAIN), ("normalised", NORMALISED)):
        (folder / f"{name}.toml").write_text(text)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    driver = Path(__file__).with_name("joint_training.py")
    recipes = [folder / f"{name}.toml" for name in BOTH]
    command = [*torchrun, "--nproc-per-node", 2, driver, folder / "data", *recipes]
    pipe = subprocess.PIPE
    run = subprocess.Popen(
        [*map(str, command)], stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        output, messages = run.communicate(timeout=250)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, messages
    return Joint(folder, output, messages)


@pytest.mark.parametrize("name", BOTH)
def test_all_processes_end_with_the_same_weights_and_the_same_best_epoch(
    name: str, joint: Joint
) -> None:
    first, second = (joint.end(name, rank) for rank in (0, 1))
    for kind in ("network", "classified"):
        assert [*first[kind]] == [*second[kind]]
        for key, value in first[kind].items():
            assert torch.equal(value, second[kind][key]), f"{kind} {key}"
    assert first["losses"] == second["losses"]
    assert first["best"]["epoch"] == second["best"]["epoch"]


def test_two_processes_make_the_steps_of_one_on_the_joint_batches(
    joint: Joint, tmp_path: Path
) -> None:
    recipe = load_recipe(str(joint.folder / "plain.toml"))
    alone = Training(
        recipe, training_data(joint.folder / "data", recipe), RunSettings(tmp_path, workers=0)
    )
    while not alone.finished:
        alone.run_epoch()
    together = joint.end("plain", 0)
    for (expected_train, expected_val), (train, val) in zip(
        [(epoch["train_loss"], epoch["val_loss"]) for epoch in alone.history],
        together["losses"],
        strict=True,
    ):
        assert train == pytest.approx(expected_train, rel=1e-4)
        assert val == pytest.approx(expected_val, rel=1e-4)
    for key, value in alone.network.state_dict().items():
        torch.testing.assert_close(together["network"][key], value, rtol=1e-3, atol=1e-5)


def test_the_command_speaks_with_one_voice_and_writes_one_valid_checkpoint(joint: Joint) -> None:
    assert joint.messages.count("14 images to fit on, 6 to choose on") == len(BOTH)
    assert joint.messages.count("epoch 1/3") == 1
    path, _ = joint.output.split()
    assert path == str(joint.folder / "plain/checkpoint.pt")
    network, manifest = load_checkpoint(Path(path))
    assert manifest.training["processes"] == 2
    assert manifest.threshold_origin["images"] == 6
    best = joint.end("plain", 1)["best"]["state"]  # the process that did not write it
    assert all(torch.equal(value, best[key]) for key, value in network.state_dict().items())
