"""Train in the processes of torchrun and store what each of them ends with.

    torchrun --standalone --nproc-per-node 2 joint_training.py DATA FOLDER RECIPE ...

First `deepcovid-edge train` runs as a user runs it, on the first recipe; then each recipe runs in
this process, whose weights go into FOLDER/<name>-<rank>.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from deepcovid_edge.cli.main import run as run_command
from deepcovid_export.data import training_data
from deepcovid_export.processes import joined
from deepcovid_export.recipe import load_recipe
from deepcovid_export.train import RunSettings, Training


def main(data: str, folder: str, *recipes: str) -> None:
    options = ["-o", f"{folder}/command", "--workers", "0"]
    if code := run_command(["train", data, "--recipe", recipes[0], *options]):
        sys.exit(code)
    with joined("cpu") as (processes, device):
        for name in recipes:
            recipe = load_recipe(name)
            place = Path(folder) / recipe.name
            place.mkdir(exist_ok=True)
            run = RunSettings(place, device, workers=0, processes=processes)
            training = Training(recipe, training_data(Path(data), recipe), run)
            while not training.finished:
                training.run_epoch()
            training.finish()
            end = {
                "network": training.network.state_dict(),
                "judged": training.judged.state_dict(),
                "best": training.best,
                "losses": [[epoch["train_loss"], epoch["val_loss"]] for epoch in training.history],
            }
            torch.save(end, Path(folder) / f"{recipe.name}-{processes.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
