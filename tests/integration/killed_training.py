"""Train in child processes of which all but the last die by SIGKILL, each at its own moment.

    python killed_training.py RECIPE DATA FOLDER [DEATH ...]

A DEATH is a number of steps after which the process dies; or `torn`, when half of the state is in
its file; or `unrenamed`, when the state is whole but not yet in its place; or `saved`, right after
that. Each process resumes what the one before left. Every child is a fork of this process, which
has imported torch and computed nothing with it.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from deepcovid_export.data.images import training_data
from deepcovid_export.recipe import load_recipe
from deepcovid_export.training.train import STATE_NAME, RunSettings, Training


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_saving(death: str) -> None:
    """Prepare the death of this process in or after the next `save_atomically`."""
    whole, rename = torch.save, Path.replace

    def tear(content: Any, path: Path) -> None:
        buffer = io.BytesIO()
        whole(content, buffer)
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        die()

    def rename_and_die(source: Path, target: Path) -> None:
        rename(source, target)
        die()

    if death == "torn":
        torch.save = tear  # type: ignore[assignment]
    else:
        Path.replace = die if death == "unrenamed" else rename_and_die  # type: ignore[assignment]


def train(recipe_path: str, data: Path, folder: Path, death: str) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe(recipe_path)
    going_on = (folder / STATE_NAME).exists()
    run = RunSettings(folder, workers=0, from_scratch=not going_on, resume=going_on)
    training = Training(recipe, training_data(data, recipe), run)
    if going_on:
        training.restore()
    steps_left = [int(death)] if death.isdigit() else []

    def advance() -> None:
        if steps_left:
            steps_left[0] -= 1
            if steps_left[0] <= 0:
                die()

    if death and not steps_left:
        die_in_saving(death)
    while not training.finished:
        training.run_epoch(advance)
    if not death:
        training.finish()


def main(recipe: str, data: str, folder: str, *deaths: str) -> None:
    Path(folder).mkdir(exist_ok=True)
    for death in (*deaths, ""):
        child = os.fork()
        if child == 0:
            train(recipe, Path(data), Path(folder), death)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        print(f"{death or 'to the end'}: {code}")
        if code != (-signal.SIGKILL if death else 0):
            sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
