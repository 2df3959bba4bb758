"""`deepcovid-edge train`: fine-tune a network on images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepcovid_edge.cli.options import NamedPath, path_option
from deepcovid_edge.datasets.dataset import check_not_read
from deepcovid_edge.device.progress import number_of, progress_bar
from deepcovid_edge.errors import UsageError, require
from deepcovid_edge.files import check_not_input

if TYPE_CHECKING:
    from deepcovid_export.data.images import TrainingData
    from deepcovid_export.recipe import Recipe
    from deepcovid_export.training.lr_finder import RangeTest
    from deepcovid_export.training.train import RunSettings, Training


@click.command(
    epilog="Example: deepcovid-edge train --recipe plain_squeezenet1_1 images/ -o runs/first",
)
@click.argument("data", type=NamedPath(), nargs=-1, required=True)
@click.option(
    "--recipe", "name", default="plain_squeezenet1_1", show_default=True, help="Name or TOML."
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a setting of the recipe, such as fit.batch_size=16; may be repeated.",
)
@click.option("--epochs", type=click.IntRange(1), help="Short for --set fit.epochs=.")
@click.option("--seed", type=int, help="Short for --set fit.seed=.")
@path_option("-o", "--output", help="Folder of the run.  [default: runs/RECIPE]")
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True),
    help="File of weights to start from.  [default: ImageNet weights, downloaded]",
)
@click.option("--from-scratch", is_flag=True, help="Start from random weights.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(0, 64), default=2, show_default=True)
@click.option("--check-data", is_flag=True, help="Only read DATA and search for leaks.")
@path_option("--leaks", help="File that lists what splits share, .json or .csv.")
@click.option("--allow-leaks", is_flag=True, help="Continue if splits share a patient or an image.")
@click.option(
    "--exclude-leaks", is_flag=True, help="Exclude from train and val what another split shares."
)
@click.option("--resume", is_flag=True, help="Continue after the last epoch in the folder.")
@click.option("--find-lr", is_flag=True, help="Only suggest a learning rate, by a range test.")
def command(
    data: tuple[Path, ...],
    name: str,
    changes: tuple[str, ...],
    epochs: int | None,
    seed: int | None,
    output: Path | None,
    weights: Path | None,
    from_scratch: bool,
    device: str,
    workers: int,
    check_data: bool,
    leaks: Path | None,
    allow_leaks: bool,
    exclude_leaks: bool,
    resume: bool,
    find_lr: bool,
) -> None:
    """Fine-tune a network on DATA and write a checkpoint with its threshold.

    DATA is a manifest CSV, a folder per split and class (`train/covid`, `val/covid`, ...), or a
    folder per class. Without splits, a share of the patients is kept for validation. Several data
    sets are used together; the recipe says what a label means and how often a source is drawn. If
    two splits share a patient or an image, the run does not start. The epoch with the lowest
    validation loss is kept, and the threshold is chosen on the validation images.

    On several GPUs: torchrun --nproc-per-node 2 -m deepcovid_edge train --device cuda ...
    """
    require("torch", extra="export")
    from deepcovid_export.data.images import training_data
    from deepcovid_export.recipe import load_recipe
    from deepcovid_export.training.processes import joined
    from deepcovid_export.training.train import RunSettings

    short = {"fit.epochs": epochs, "fit.seed": seed}
    given = [f"{field}={value}" for field, value in short.items() if value is not None]
    recipe = load_recipe(name, [*changes, *given])
    folder = output or Path("runs") / recipe.name
    files = [Path(name), *filter(None, [weights])]
    started = not check_data and _is_started(folder, data, files, resume=resume, find_lr=find_lr)
    with joined(device) as (processes, own_device):
        run = RunSettings(
            folder, own_device, workers, weights, from_scratch, started and resume, processes
        )
        leaks_file = leaks if processes.is_first else None
        images = training_data(
            data,
            recipe,
            allow_leaks=allow_leaks,
            exclude_leaks=exclude_leaks,
            leaks_file=leaks_file,
        )
        if processes.is_first:
            _report(images, recipe)
        if check_data:
            return
        _prepare_folder(folder, recipe, images, run)
        result = _suggest(recipe, images, run) if find_lr else _train(recipe, images, run)
        if processes.is_first:
            click.echo(result)


def _is_started(
    folder: Path, data: Sequence[Path], files: Sequence[Path], *, resume: bool, find_lr: bool
) -> bool:
    """Whether a folder holds a run that is to be continued; else a run may begin there.

    Raises:
        UsageError: It holds a run that is not to be continued, or cannot be.
        OutputError: The run would write over DATA or over another file that it reads.
    """
    from deepcovid_export.training.train import CHECKPOINT_NAME, STATE_NAME

    started = (folder / STATE_NAME).exists()
    if not started and (folder / CHECKPOINT_NAME).exists():
        raise UsageError(
            f"{folder}: holds {CHECKPOINT_NAME} of a run without its {STATE_NAME}, so it cannot be "
            "continued and would be lost: choose another with -o"
        )
    if started and find_lr:
        raise UsageError(f"--find-lr: {folder} holds a run already: choose another with -o")
    if started and not resume:
        raise UsageError(f"{folder}: holds a run already: add --resume, or choose another with -o")
    if not started:
        _check_written(folder, data, files)
    return started


def _check_written(folder: Path, data: Sequence[Path], files: Sequence[Path]) -> None:
    """Check that a run writes over nothing that it reads."""
    from deepcovid_export.data.confounders import CONFOUNDERS_NAME
    from deepcovid_export.data.images import SPLITS_NAME
    from deepcovid_export.training.lr_finder import CURVE_NAME
    from deepcovid_export.training.train import HISTORY_NAME

    for name in (SPLITS_NAME, CONFOUNDERS_NAME, CURVE_NAME, HISTORY_NAME):
        check_not_read(folder / name, *data)
        for file in files:
            check_not_input(folder / name, file)


def _report(images: TrainingData, recipe: Recipe) -> None:
    from deepcovid_export.data.balance import absent_groups, unknown_sources

    click.echo(f"{len(images.train)} images to fit on, {len(images.val)} to choose on", err=True)
    if repeated := images.repeated.get("train"):
        click.echo(
            f"{repeated} of those to fit on have the content of an earlier one: each is fitted on",
            err=True,
        )
    for reason, count in images.excluded.items():
        click.echo(f"excluded: {number_of(count, 'image')}: {reason}", err=True)
    for name in absent_groups(images.train, recipe):
        click.echo(f"data.groups: no image to fit on is of group {name!r}", err=True)
    for name in unknown_sources(images.train, recipe):
        click.echo(
            f"fit.repeat_sources: the recipe repeats images of {name!r}, but the training images "
            "have none: ignored",
            err=True,
        )
    for leak in images.leaks:
        click.echo(f"allowed: {leak}", err=True)


def _prepare_folder(folder: Path, recipe: Recipe, images: TrainingData, run: RunSettings) -> None:
    from deepcovid_export.data.images import SPLITS_NAME, write_splits

    folder.mkdir(parents=True, exist_ok=True)
    if run.processes.is_first and not run.resume:  # resuming may still fail
        write_splits(images, folder / SPLITS_NAME)
        _measure_confounders(folder, images, recipe)


def _measure_confounders(folder: Path, images: TrainingData, recipe: Recipe) -> None:
    """Say how well the files alone tell the classes, before anything is trained."""
    from deepcovid_export.data.confounders import (
        CONFOUNDERS_NAME,
        find_confounders,
        warnings_of,
        write_confounders,
    )

    fitted = [image for image in images.train if recipe.class_of(image.label) is not None]
    positive = [recipe.class_of(image.label) == recipe.positive_index for image in fitted]
    found = find_confounders(fitted, images.facts, positive)
    write_confounders(found, folder / CONFOUNDERS_NAME)
    for warning in warnings_of(found):
        click.echo(f"warning: {warning}", err=True)


def _suggest(recipe: Recipe, images: TrainingData, run: RunSettings) -> str:
    return f"{_range_test(recipe, images, run).suggestion:g}"


def _range_test(recipe: Recipe, images: TrainingData, run: RunSettings) -> RangeTest:
    from deepcovid_export.training.lr_finder import find_learning_rate

    with _bar(run, "range test", recipe.find.steps) as step:
        found = find_learning_rate(recipe, images, run, step)
    if run.processes.is_first:
        path = found.write(run.folder)
        click.echo(f"learning rate {found.suggestion:g}: {found.rule} ({path})", err=True)
    return found


def _train(recipe: Recipe, images: TrainingData, run: RunSettings) -> Path:
    from deepcovid_export.training.lr_finder import RangeTest
    from deepcovid_export.training.train import Training

    if recipe.fit.learning_rate == "find":
        found = RangeTest.read(run.folder) if run.resume else _range_test(recipe, images, run)
        recipe = replace(recipe, fit=replace(recipe.fit, learning_rate=found.suggestion))
    training = Training(recipe, images, run)
    if run.resume:
        training.restore()
        if run.processes.is_first:
            click.echo(f"resumed after epoch {training.epoch}", err=True)
    _run(training)
    return training.finish()


def _run(training: Training) -> None:
    while not training.finished:
        epoch = training.epoch + 1
        with _bar(training.run, f"epoch {epoch}", training.steps_per_epoch) as step:
            figures = training.run_epoch(step)
        if training.run.processes.is_first:
            click.echo(
                f"epoch {epoch}/{training.recipe.fit.epochs}  "
                f"train loss {figures['train_loss']:.4f}  val loss {figures['val_loss']:.4f}  "
                f"val AUC {figures['val_auc']:.4f}  {figures['seconds']:.0f} s",
                err=True,
            )


@contextmanager
def _bar(run: RunSettings, what: str, steps: int) -> Iterator[Callable[[], object]]:
    """A bar on the terminal of the first process; to be called after every step."""
    if not run.processes.is_first:
        yield lambda: None
        return
    with progress_bar(steps, what) as progress:
        yield lambda: progress(1)
