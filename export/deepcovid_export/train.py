"""Fine-tune a network on films: one readable loop, resumable at every epoch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from deepcovid_edge import __version__
from deepcovid_edge.dataset import dataset_sha256
from deepcovid_edge.errors import ModelFileError, UsageError
from deepcovid_edge.manifest import ModelManifest
from deepcovid_export.checkpoint import save_atomically, save_checkpoint
from deepcovid_export.data import FilmDataset, TrainingData, one_thread_each
from deepcovid_export.metrics import Scores, Truth, at_threshold, auc, operating_point
from deepcovid_export.networks import Classifier, build_network, load_imagenet
from deepcovid_export.recipe import Recipe

STATE_NAME = "state.pt"
CHECKPOINT_NAME = "checkpoint.pt"
HISTORY_NAME = "history.json"


@dataclass(frozen=True)
class RunSettings:
    """Where and on what a run happens, and from which weights it starts.

    Attributes:
        folder: Folder of the run: its state, its history and its checkpoint.
        device: `cpu`, `cuda` or `cuda:N`.
        workers: Processes that read and change films.
        weights: File of ImageNet weights, or None for torchvision's own.
        from_scratch: Start from random weights.
        resume: Weights come from the folder's state; none are loaded to start from.
    """

    folder: Path
    device: str = "cpu"
    workers: int = 2
    weights: Path | None = None
    from_scratch: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError(f"--device: got {self.device}, but torch sees no CUDA device: use cpu")
        if self.from_scratch and self.weights:
            raise UsageError("--from-scratch and --weights exclude each other: give one of them")


class Training:
    """A run in progress: the network, its optimiser and schedule, and the best epoch so far."""

    def __init__(self, recipe: Recipe, data: TrainingData, run: RunSettings) -> None:
        self.recipe, self.data, self.run = recipe, data, run
        torch.manual_seed(recipe.fit.seed)
        self.network = build_network(recipe.architecture, len(recipe.classes))
        self.start = "random"
        self.films = {
            "train_sha256": dataset_sha256(data.train),
            "val_sha256": dataset_sha256(data.val),
        }
        if not (run.from_scratch or run.resume):
            self.start = load_imagenet(self.network, recipe.architecture, run.weights)
        self.device = torch.device(run.device)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = self._averaged()
        self.train_set = FilmDataset(data.train, recipe, training=True)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=recipe.fit.learning_rate,
            weight_decay=recipe.fit.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser,
            max_lr=recipe.fit.learning_rate,
            total_steps=recipe.fit.epochs * self.steps_per_epoch,
            pct_start=0.2,
        )
        self.class_weights = self._class_weights()
        self.loss = nn.CrossEntropyLoss(
            weight=self.class_weights, label_smoothing=recipe.fit.label_smoothing
        )
        self.epoch = 0
        self.best: dict[str, Any] = {"epoch": -1, "loss": float("inf")}
        self.history: list[dict[str, Any]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training films."""
        return -(-len(self.train_set) // self.recipe.fit.batch_size)

    @property
    def judged(self) -> Classifier:
        """The network whose weights are judged and kept."""
        return cast(Classifier, self.averaged.module) if self.averaged else self.network

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or no better one came for long enough."""
        waited = self.epoch - 1 - int(self.best["epoch"])
        return self.epoch >= self.recipe.fit.epochs or (
            self.best["epoch"] >= 0 and waited >= self.recipe.fit.patience
        )

    def run_epoch(self, advance: Callable[[], object] = lambda: None) -> dict[str, Any]:
        """Fit on every training film once, judge the validation films, save the state.

        Args:
            advance: Called after every step.

        Returns:
            The epoch's figures.
        """
        started = time.monotonic()
        train_loss = self._fit_epoch(advance)
        scores, positive, loss = self.judge_validation()
        figures = {
            "epoch": self.epoch,
            "train_loss": train_loss,
            "val_loss": loss,
            "val_auc": auc(scores, positive),
            "seconds": round(time.monotonic() - started, 1),
        }
        self.history.append(figures)
        if loss < self.best["loss"]:
            state = {name: value.clone() for name, value in self.judged.state_dict().items()}
            self.best = {"epoch": self.epoch, "loss": loss, "state": state}
        self.epoch += 1
        self.save()
        return figures

    def judge_validation(self) -> tuple[Scores, Truth, float]:
        """Probabilities and truth of the validation films, and their mean balanced loss."""
        films = FilmDataset(self.data.val, self.recipe, training=False)
        logits, targets = [], []
        network = self.judged.eval()
        with torch.inference_mode():
            for images, labels in self._loader(films, shuffle=False):
                logits.append(network(images.to(self.device))[0].float().cpu())
                targets.append(labels)
        all_logits, all_targets = torch.cat(logits), torch.cat(targets)
        loss = float(nn.functional.cross_entropy(all_logits, all_targets, self.class_weights.cpu()))
        positive_index = [*self.recipe.classes].index(self.recipe.positive_class)
        scores = all_logits.softmax(dim=1)[:, positive_index].numpy()
        return scores, (all_targets == positive_index).numpy(), loss

    def save(self) -> None:
        """Write the state from which `restore` goes on."""
        state = {
            "recipe": json.dumps(self.recipe.as_dict(), sort_keys=True),
            "films": self.films,
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

    def restore(self) -> None:
        """Go on from the state in the run's folder.

        Raises:
            ModelFileError: The state cannot be read.
            UsageError: The state was made by another recipe or of other films.
        """
        path = self.run.folder / STATE_NAME
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises many types on a torn file
            raise ModelFileError(f"{path}: cannot be read; start in another folder") from error
        if state.get("films", self.films) != self.films:
            raise UsageError(f"--resume: {path} was made of other films: choose another folder")
        if state["recipe"] != json.dumps(self.recipe.as_dict(), sort_keys=True):
            raise UsageError(f"--resume: {path} was made by another recipe: choose another folder")
        self.network.load_state_dict(state["network"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.best, self.start = state["epoch"], state["best"], state["start"]
        self.history = json.loads(state["history"])

    def finish(self) -> Path:
        """Take the best epoch's weights, choose the threshold on val, write the checkpoint."""
        self.judged.load_state_dict(self.best["state"])
        scores, positive, _ = self.judge_validation()
        threshold = operating_point(scores, positive, self.recipe.sensitivity)
        manifest = self._manifest(threshold, scores, positive)
        path = self.run.folder / CHECKPOINT_NAME
        save_checkpoint(self.judged, manifest, path)
        history = json.dumps(self.history, indent=1) + "\n"
        (self.run.folder / HISTORY_NAME).write_text(history, encoding="utf-8")
        return path

    def _manifest(self, threshold: float, scores: Scores, positive: Truth) -> ModelManifest:
        figures = {"auc": auc(scores, positive), **at_threshold(scores, positive, threshold)}
        return ModelManifest(
            name=self.recipe.name,
            architecture=self.recipe.architecture,
            classes=tuple(self.recipe.classes),
            positive_class=self.recipe.positive_class,
            threshold=threshold,
            threshold_origin={
                "rule": f"midway between the highest threshold with sensitivity >= "
                f"{self.recipe.sensitivity} and the next lower score",
                "split": "val",
                "films": len(scores),
                "positives": int(positive.sum()),
            },
            input=self.recipe.input,
            training={
                "recipe": self.recipe.as_dict(),
                "start": self.start,
                "epochs_run": self.epoch,
                "best_epoch": self.best["epoch"],
                "train_films": len(self.data.train),
                **self.films,
                "val": figures,
            },
            license=self.recipe.license,
            created_with={"deepcovid-edge": __version__, "torch": torch.__version__},
        )

    def _fit_epoch(self, advance: Callable[[], object]) -> float:
        self.train_set.epoch = self.epoch
        torch.manual_seed(self.recipe.fit.seed * 100_003 + self.epoch)  # order and dropout
        self.network.train()
        losses = []
        for images, targets in self._loader(self.train_set, shuffle=True):
            with self._autocast():
                logits, _ = self.network(images.to(self.device))
                loss = self.loss(logits, targets.to(self.device))
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.schedule.step()
            if self.averaged:
                self.averaged.update_parameters(self.network)
            losses.append(float(loss.detach()))
            advance()
        return float(np.mean(losses))

    def _loader(self, films: FilmDataset, *, shuffle: bool) -> Iterable[tuple[Tensor, Tensor]]:
        return DataLoader(
            films,
            batch_size=self.recipe.fit.batch_size,
            shuffle=shuffle,
            num_workers=self.run.workers,
            worker_init_fn=one_thread_each,
        )

    def _autocast(self) -> AbstractContextManager[None]:
        mixed = self.recipe.fit.precision == "bf16"
        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, torch.bfloat16, enabled=mixed
        )
        return context

    def _averaged(self) -> AveragedModel | None:
        decay = self.recipe.fit.average
        if not decay:
            return None
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        return AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)

    def _class_weights(self) -> Tensor:
        counts = np.bincount(self.train_set.targets, minlength=len(self.recipe.classes))
        weights = len(self.train_set) / (len(counts) * counts)
        if not self.recipe.fit.balance:
            weights = np.ones_like(weights)
        return torch.tensor(weights, dtype=torch.float32, device=self.device)
