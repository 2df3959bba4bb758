"""`deepcovid-edge train`: fine-tune a network on films."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepcovid_edge.errors import UsageError, require

if TYPE_CHECKING:
    from deepcovid_export.data import TrainingData
    from deepcovid_export.train import Training


@click.command(
    epilog="Example: deepcovid-edge train --recipe squeezenet1_1 films/ -o runs/first",
)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--recipe", "name", default="squeezenet1_1", show_default=True, help="Name or TOML.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--weights", type=click.Path(path_type=Path, exists=True), help="ImageNet weights.")
@click.option("--from-scratch", is_flag=True, help="Start from random weights.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipe's.")
@click.option("--seed", type=int, help="Instead of the recipe's.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(0, 64), default=2, show_default=True)
@click.option("--resume", is_flag=True, help="Go on after the last epoch in the folder.")
def command(
    data: Path,
    name: str,
    output: Path | None,
    weights: Path | None,
    from_scratch: bool,
    epochs: int | None,
    seed: int | None,
    device: str,
    workers: int,
    resume: bool,
) -> None:
    """Fine-tune a network on DATA and write a checkpoint with its threshold.

    DATA is a manifest CSV with splits `train` and `val`, a folder of such folders, or a folder
    with one folder per class, of which a share is kept for validation. The epoch with the lowest
    validation loss is kept, and the threshold is chosen on the validation films.
    """
    require("torch", extra="export")
    from dataclasses import replace

    from deepcovid_export.data import training_data
    from deepcovid_export.recipe import load_recipe
    from deepcovid_export.train import STATE_NAME, RunSettings, Training

    recipe = load_recipe(name)
    fit = recipe.fit
    recipe = replace(
        recipe,
        fit=replace(fit, epochs=epochs or fit.epochs, seed=fit.seed if seed is None else seed),
    )
    folder = output or Path("runs") / recipe.name
    going_on = resume and (folder / STATE_NAME).exists()
    settings = RunSettings(folder, device, workers, weights, from_scratch, resume=going_on)
    if (folder / STATE_NAME).exists() and not resume:
        raise UsageError(f"{folder}: holds a run already: add --resume, or choose another with -o")
    films = training_data(data, recipe)
    _report(films)
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(recipe, films, settings)
    if going_on:
        training.restore()
        click.echo(f"resumed after epoch {training.epoch}", err=True)
    _run(training)
    click.echo(training.finish())


def _report(films: TrainingData) -> None:
    click.echo(f"{len(films.train)} films to fit on, {len(films.val)} to choose on", err=True)
    for reason, count in films.dropped.items():
        click.echo(f"left out: {count} film{'s' * (count > 1)}: {reason}", err=True)


def _run(training: Training) -> None:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        while not training.finished:
            epoch = training.epoch + 1
            task = progress.add_task(f"epoch {epoch}", total=training.steps_per_epoch)
            figures = training.run_epoch(lambda task=task: progress.advance(task))  # type: ignore[misc]
            progress.remove_task(task)
            progress.print(
                f"epoch {epoch}/{training.recipe.fit.epochs}  "
                f"train loss {figures['train_loss']:.4f}  val loss {figures['val_loss']:.4f}  "
                f"val AUC {figures['val_auc']:.4f}  {figures['seconds']:.0f} s",
                highlight=False,
            )
