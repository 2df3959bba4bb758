"""Fine-tune a network on images: one readable loop, resumable at every epoch."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, DistributedSampler

from deepcovid_edge.datasets.dataset import dataset_sha256, sources_and_boxes_sha256
from deepcovid_edge.decision.thresholds import threshold_for_new_images
from deepcovid_edge.errors import ModelFileError, UsageError
from deepcovid_edge.manifest import VERSION, ModelManifest
from deepcovid_export.data.balance import (
    draw_epoch,
    images_of_an_epoch,
    known_classes,
    loss_weights,
    validation_weights,
)
from deepcovid_export.data.images import TrainingData
from deepcovid_export.data.training_set import ImageDataset, Sample, one_thread_each
from deepcovid_export.evaluation.metrics import Scores, Truth, at_threshold, auc
from deepcovid_export.evaluation.worst_source import lowest_threshold
from deepcovid_export.networks import (
    Classifier,
    build_network,
    load_imagenet,
    map_shape,
    scale_logits,
    train_only,
)
from deepcovid_export.networks.checkpoint import save_atomically, save_checkpoint
from deepcovid_export.recipe import Recipe, smaller
from deepcovid_export.training.loss import map_loss, summed_loss
from deepcovid_export.training.optimisers import build_optimiser, build_schedule
from deepcovid_export.training.processes import Processes, check_device
from deepcovid_export.training.temperature import fit_temperature

STATE_NAME = "state.pt"
CHECKPOINT_NAME = "checkpoint.pt"
HISTORY_NAME = "history.json"
_BATCH_SECONDS = 600.0
"""Longest wait for a batch: each compressed image may take its decoder's 20 seconds."""


@dataclass(frozen=True)
class RunSettings:
    """Folder and device of a run, and the weights that it starts from.

    Attributes:
        folder: Folder of the run: its state, its history and its checkpoint.
        device: `cpu`, `cuda` or `cuda:N`.
        workers: Processes that read and change images, beside each training process.
        weights: File of ImageNet weights, or None for torchvision's own.
        from_scratch: Start from random weights, whatever the recipe says.
        resume: Weights come from the state in the folder; no others are loaded.
        processes: This process among those of the run.
    """

    folder: Path
    device: str = "cpu"
    workers: int = 2
    weights: Path | None = None
    from_scratch: bool = False
    resume: bool = False
    processes: Processes = field(default_factory=Processes)

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.from_scratch and self.weights:
            raise UsageError("--from-scratch and --weights exclude each other: give one of them")


class Training:
    """A run in progress: the network, its optimiser and schedule, and the best epoch so far."""

    def __init__(self, recipe: Recipe, data: TrainingData, run: RunSettings) -> None:
        self.recipe, self.data, self.run = recipe, data, run
        self.device = torch.device(run.device)
        self.share = run.processes.share_of(recipe.fit.batch_size)
        self.images = {
            "train_sha256": dataset_sha256(data.train),
            "val_sha256": dataset_sha256(data.val),
        }
        self.network, self.start = self._first_network()
        self.averaged = self._averaged()
        self.joint = run.processes.joint(self.network)
        drawn = data.train if recipe.data.groups else images_of_an_epoch(data.train, recipe)
        self.train_set = ImageDataset(drawn, recipe, training=True)
        self._start_epoch(0)
        self.order: DistributedSampler[Any] = DistributedSampler(
            self.train_set, run.processes.count, run.processes.rank, seed=recipe.fit.seed
        )
        self.optimiser = build_optimiser(self.network, recipe.fit)
        steps = recipe.fit.epochs * self.steps_per_epoch
        self.schedule = build_schedule(self.optimiser, recipe.fit, steps)
        self.class_weights, self.val_weights = self._weights()
        self.epoch = 0
        self.best: dict[str, Any] = {"epoch": -1, "loss": float("inf")}
        self.history: list[dict[str, Any]] = []
        self.temperature = 1.0

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training images."""
        return -(-len(self.order) // self.share) - self.drops_last

    @property
    def drops_last(self) -> bool:
        """Whether an epoch's last batch is dropped: one image, and layers that normalise a batch.

        Every process has a batch of the same size, so all drop it or none. Each epoch has another
        order, so it is not always the same image.
        """
        layers = (nn.BatchNorm2d, nn.SyncBatchNorm)
        parts = (part for part in self.network.modules() if isinstance(part, layers))
        is_alone = len(self.order) > len(self.order) % self.share == 1
        return is_alone and any(part.weight.requires_grad for part in parts)

    @property
    def kept_network(self) -> Classifier:
        """The network that is validated and kept."""
        return cast(Classifier, self.averaged.module) if self.averaged else self.network

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the loss has not improved for `patience` epochs."""
        waited = self.epoch - 1 - int(self.best["epoch"])
        return self.epoch >= self.recipe.fit.epochs or (
            self.best["epoch"] >= 0 and waited >= self.recipe.fit.patience
        )

    def run_epoch(self, progress: Callable[[], object] = lambda: None) -> dict[str, Any]:
        """Fit on every training image once, classify the validation images, save the state.

        `progress` is called after every step. Returns the figures of the epoch.
        """
        started = time.monotonic()
        train_loss = self._fit_epoch(progress)
        scores, positive, loss = self.classify_validation()
        figures = {
            "epoch": self.epoch,
            "train_loss": train_loss,
            "val_loss": loss,
            "val_auc": auc(scores, positive),
            "seconds": round(time.monotonic() - started, 1),
        }
        self.history.append(figures)
        if loss < self.best["loss"]:
            state = {name: value.clone() for name, value in self.kept_network.state_dict().items()}
            self.best = {"epoch": self.epoch, "loss": loss, "state": state}
        self.epoch += 1
        self.save()
        return figures

    def classify_validation(self) -> tuple[Scores, Truth, float]:
        """Probabilities and truth of the validation images, and their mean balanced loss.

        Each process classifies its share and has all results.
        """
        logits, targets = self.validation_logits()
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        loss = float((losses * self.val_weights).sum() / self.val_weights.sum())
        positive = self.recipe.positive_index
        scores = logits.softmax(dim=1)[:, positive].numpy()
        return scores, (targets == positive).numpy(), loss

    def validation_logits(self) -> tuple[Tensor, Tensor]:
        """Logits of shape (images, classes) and class indices of the validation images."""
        rank, count = self.run.processes.rank, self.run.processes.count
        images = ImageDataset(self.data.val[rank::count], self.recipe, training=False)
        logits = [torch.empty(0, len(self.recipe.classes))]
        network = self.kept_network.eval()
        with torch.inference_mode():
            for batch in DataLoader(images, **self._reading()):
                logits.append(network(batch.pixels.to(self.device))[0].float().cpu())
        gathered = self.run.processes.gathered((torch.cat(logits), torch.tensor(images.targets)))
        found = torch.empty(len(self.data.val), len(self.recipe.classes))
        targets = torch.empty(len(self.data.val), dtype=torch.long)
        for place, (part, truth) in enumerate(gathered):
            found[place::count], targets[place::count] = part, truth.long()
        return found, targets

    def save(self) -> None:
        """Write the state for `restore`; only the first process does."""
        if not self.run.processes.is_first:
            return
        state = {
            **self._origin(),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "best": self.best,
            "history": json.dumps(self.history),
            "start": self.start,
        }
        save_atomically(state, self.run.folder / STATE_NAME)

    def _origin(self) -> dict[str, Any]:
        """What a state is made of: a run continues only from a state of the same."""
        return {
            # In the recipe's own order: that of the classes is that of the logits.
            "recipe": json.dumps(self.recipe.as_dict()),
            "images": self.images,
            "sources_and_boxes": [
                sources_and_boxes_sha256(images) for images in (self.data.train, self.data.val)
            ],
        }

    def restore(self) -> None:
        """Continue from the state in the run's folder.

        Raises:
            ModelFileError: The state cannot be read.
            UsageError: The state is from another recipe or from other images.
        """
        path = self.run.folder / STATE_NAME
        own = self._origin()
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            found = {name: state[name] for name in own}
        except Exception as error:  # torch raises many types on a torn file
            raise ModelFileError(f"{path}: cannot be read; start in another folder") from error
        for name, what in (
            ("recipe", "by another recipe"),
            ("images", "of other images"),
            ("sources_and_boxes", "of images with other sources or boxes"),
        ):
            if found[name] != own[name]:
                raise UsageError(f"--resume: {path} was made {what}: choose another folder")
        self.network.load_state_dict(state["network"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.best, self.start = state["epoch"], state["best"], state["start"]
        self.history = json.loads(state["history"])

    def finish(self) -> Path:
        """Take the best epoch's weights, choose the threshold on val, write the checkpoint.

        All processes classify; the first writes.

        Raises:
            UsageError: No epoch had a finite validation loss.
        """
        if "state" not in self.best:
            raise UsageError(
                f"fit.learning_rate: got {self.recipe.fit.learning_rate}, and the validation loss "
                "was finite in no epoch: set a lower rate"
            )
        self.kept_network.load_state_dict(self.best["state"])
        if self.recipe.temperature:
            found = fit_temperature(*self.validation_logits(), self.val_weights)
            scale_logits(self.kept_network, found)
            self.temperature = found
        scores, positive, _ = self.classify_validation()
        path = self.run.folder / CHECKPOINT_NAME
        if not self.run.processes.is_first:
            return path
        save_checkpoint(self.kept_network, _manifest(self, scores, positive), path)
        history = json.dumps(self.history, indent=1) + "\n"
        (self.run.folder / HISTORY_NAME).write_text(history, encoding="utf-8")
        return path

    def batches(self) -> Iterable[Sample]:
        """This process's share of each batch of the current epoch, in training mode."""
        self._start_epoch(self.epoch)
        self.order.set_epoch(self.epoch)
        # So that dropout differs between epochs and between processes.
        torch.manual_seed(
            (self.run.processes.rank << 40) + self.recipe.fit.seed * 100_003 + self.epoch
        )
        self.joint.train()
        return DataLoader(
            self.train_set, sampler=self.order, drop_last=self.drops_last, **self._reading()
        )

    def fit_batch(self, batch: Sample) -> float:
        """Make one step on this process's share of a batch.

        Returns:
            The loss of the whole batch, weighted as the recipe says.
        """
        fit, processes = self.recipe.fit, self.run.processes
        batch = Sample(*(part.to(self.device) for part in batch))
        with self._autocast():
            logits, maps = self.joint(batch.pixels)
            loss, weight = summed_loss(
                logits, batch.target, batch.likely, self.class_weights, fit.label_smoothing
            )
        # Each share counts by its weight in the whole batch; torch averages over processes.
        loss = loss * (processes.count / processes.total(weight))
        if fit.map_weight:
            drawn, images = map_loss(maps, batch.grid, self.recipe.positive_index, fit)
            whole = processes.total(images).clamp(min=1)
            loss = loss + fit.map_weight * drawn * (processes.count / whole)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if fit.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), fit.clip)
        self.optimiser.step()
        self.schedule.step()
        if self.averaged:
            self.averaged.update_parameters(self.network)
        return float(processes.total(loss.detach().clone())) / processes.count

    def _fit_epoch(self, progress: Callable[[], object]) -> float:
        losses = []
        for batch in self.batches():
            losses.append(self.fit_batch(batch))
            progress()
        for network in (self.network, self.averaged):
            self.run.processes.average_buffers(network)
        return float(np.mean(losses))

    def _start_epoch(self, epoch: int) -> None:
        """Choose the images of an epoch and their size."""
        recipe, images = self.recipe, self.train_set
        images.epoch = epoch
        if recipe.data.groups:
            images.order = draw_epoch(images.images, recipe, epoch)
        small = epoch < recipe.fit.small_epochs
        images.input = smaller(recipe.input) if small else recipe.input
        images.cells = map_shape(self.network, images.input) if recipe.fit.map_weight else (1, 1)

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Weights of the classes in the training loss, and of the validation images."""
        recipe, val = self.recipe, self.data.val
        if recipe.data.groups:
            even = torch.ones(len(recipe.classes)).to(self.device)
            return even, validation_weights(val, recipe)
        fit, of_classes = loss_weights(self.data.train, recipe)
        return fit.to(self.device), of_classes[known_classes(val, recipe)]

    def _reading(self) -> dict[str, Any]:
        return {
            "batch_size": self.share,
            "num_workers": self.run.workers,
            "worker_init_fn": one_thread_each,
            "timeout": _BATCH_SECONDS if self.run.workers else 0,  # torch takes none without them
        }

    def _autocast(self) -> AbstractContextManager[None]:
        mixed = self.recipe.fit.precision == "bf16"
        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, torch.bfloat16, enabled=mixed
        )
        return context

    def _first_network(self) -> tuple[Classifier, str]:
        """The network that the run starts with, and the origin of its weights."""
        recipe, run, start = self.recipe, self.run, "random"
        torch.manual_seed(recipe.fit.seed)
        network = build_network(recipe.architecture, len(recipe.classes))
        scratch = run.from_scratch or (recipe.fit.start == "scratch" and not run.weights)
        if not (scratch or run.resume):
            start = load_imagenet(network, recipe.architecture, run.weights)
        if run.processes.count > 1 and self.device.type == "cuda":
            # torch has it only for CUDA; on CPUs each process normalises by its own share.
            convert = nn.SyncBatchNorm.convert_sync_batchnorm
            network = convert(network)  # type: ignore[no-untyped-call]
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        train_only(network, recipe.fit.layers)
        return network, start

    def _averaged(self) -> AveragedModel | None:
        decay = self.recipe.fit.average
        if not decay:
            return None
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        return AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)


def _counts_by_source(data: TrainingData) -> dict[str, dict[str, int]]:
    """Images of each source in `train` and in `val`."""
    return {
        split: dict(sorted(Counter(image.source or "not stated" for image in images).items()))
        for split, images in (("train", data.train), ("val", data.val))
    }


def _operating_point(
    training: Training, scores: Scores, positive: Truth
) -> tuple[float, dict[str, Any]]:
    """The threshold and its origin: of all validation images, or of the worst of their sources.

    A recipe whose groups name sources asks that every source be served.
    """
    sensitivity = training.recipe.sensitivity
    facts = {"split": "val", "images": len(scores), "positives": int(positive.sum())}
    if not training.recipe.data.groups:
        threshold, expected = threshold_for_new_images(scores, positive, sensitivity)
        rule = _threshold_rule(sensitivity, expected)
        return threshold, {"rule": rule, **facts, "expected_sensitivity": round(expected, 4)}
    sources = [image.source for image in training.data.val]
    found = lowest_threshold(scores, positive, sources, sensitivity)
    taken = "; the lowest is taken" if found.by_source else ""
    return found.threshold, {
        "rule": f"{_threshold_rule(sensitivity, found.expected)}, {found.where}{taken}",
        **facts,
        "expected_sensitivity": round(found.expected, 4),
        "source": found.source,
        "by_source": {name: round(value, 6) for name, value in found.by_source.items()},
    }


def _threshold_rule(sensitivity: float, expected: float) -> str:
    """How the threshold was chosen; with too few positives it finds less than is asked for."""
    return (
        f"midway between the highest threshold that finds {100 * min(sensitivity, expected):.3g}% "
        "of new positive images, as is to be expected (split conformal), and the next lower score"
    )


def _manifest(training: Training, scores: Scores, positive: Truth) -> ModelManifest:
    recipe = training.recipe
    threshold, origin = _operating_point(training, scores, positive)
    accuracy = at_threshold(scores, positive, threshold)
    return ModelManifest(
        name=recipe.name,
        architecture=recipe.architecture,
        classes=tuple(recipe.classes),
        positive_class=recipe.positive_class,
        threshold=threshold,
        threshold_origin=origin,
        input=recipe.input,
        training={
            "recipe": recipe.as_dict(),
            "start": training.start,
            "processes": training.run.processes.count,
            "epochs_run": training.epoch,
            "best_epoch": training.best["epoch"],
            "temperature": training.temperature,
            "train_images": len(training.data.train),
            "repeated": dict(training.data.repeated),
            "sources": _counts_by_source(training.data),
            "leaks_allowed": len(training.data.leaks),
            **training.images,
            "val": {"auc": auc(scores, positive), **accuracy.as_dict()},
        },
        license=recipe.license,
        created_with={"deepcovid-edge": VERSION, "torch": torch.__version__},
    )
