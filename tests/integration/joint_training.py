"""`deepcovid-edge train` in one of torchrun's processes, which also stores what it ends with.

    torchrun --standalone --nproc-per-node 2 joint_training.py DATA RECIPE ...

Each recipe's run gets a folder beside it, which also gets each process's weights, `rank-N.pt`.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from deepcovid_edge.cli.main import run
from deepcovid_export.training import processes
from deepcovid_export.training.train import Training

finish = Training.finish


def finish_and_tell(training: Training) -> Path:
    path = finish(training)
    end = {
        "network": training.network.state_dict(),
        "classified": training.kept_network.state_dict(),
        "best": training.best,
        "losses": [[epoch["train_loss"], epoch["val_loss"]] for epoch in training.history],
    }
    torch.save(end, training.run.folder / f"rank-{training.run.processes.rank}.pt")
    return path


def main(data: str, *recipes: str) -> None:
    Training.finish = finish_and_tell  # type: ignore[assignment, method-assign]
    with processes.joined("cpu") as joined:
        # One group for all runs: torchrun's store does not serve a second.
        processes.joined = lambda device: nullcontext(joined)  # type: ignore[assignment, return-value]
        for recipe in recipes:
            folder = recipe.removesuffix(".toml")
            if code := run(["train", data, "--recipe", recipe, "-o", folder, "--workers", "0"]):
                sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
