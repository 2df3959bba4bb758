"""How a recipe does on a source that it has not seen: choose by this, never by test or external.

    python -m benchmarks.held_out_source --data DATA --source radiopaedia.org --name hidden-lungs \
        --set fit.epochs=12 --set augment.hide=0.25

Patients of the source are held out of `train` (all of them, or `--share 0.5`), the recipe is
trained on the rest, and the checkpoint classifies: `val`; `val` with the lungs hidden and with the
lungs alone; and the held-out images, whose negatives are set against the positives of `val` and
their own. One JSON file a run, in results/choice/.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure.options import parser_of
from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import BackendSettings
from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_export.data.images import TrainingData, training_data
from deepcovid_export.evaluation.metrics import area
from deepcovid_export.evaluation.predictions import classify
from deepcovid_export.evaluation.shortcuts import measure_shortcuts
from deepcovid_export.recipe import Recipe, load_recipe
from deepcovid_export.training.train import RunSettings, Training


def main() -> None:
    """Train without the held-out images, measure, and store the result."""
    parser = parser_of(__doc__, data="images with train and val")
    parser.add_argument("--recipe", default="squeezenet1_1")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--source", required=True, help="part of the source's name")
    parser.add_argument("--share", type=float, default=1.0, help="of its patients")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--name", required=True, help="of the result")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.changes)
    data = training_data(options.data, recipe)
    held = [image for image in data.train if is_held(image, options.source, options.share)]
    kept = replace(data, train=[image for image in data.train if image not in set(held)])
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = fit(kept, recipe, RunSettings(Path(folder), weights=options.weights))
        figures = evaluate(checkpoint, kept, held)
    facts = {"source": options.source, "share": options.share, "changes": options.changes}
    content = dict(sorted({**facts, **figures, "recipe": recipe.as_dict()}.items()))
    measure.write_json(measure.RESULTS / "choice" / f"{options.name}.json", content)
    for name in ("val", "lungs_hidden", "lungs_only", "held_out"):
        print(f"{name}: {figures[name]['auc']:.3f} {figures[name]['auc_interval_95']}")


def is_held(image: LabelledImage, source: str, share: float) -> bool:
    """Whole patients, the same ones whatever the recipe."""
    digest = hashlib.sha256((image.patient or image.path.name).encode()).digest()
    return source in image.source and digest[0] < 256 * share


def fit(data: TrainingData, recipe: Recipe, run: RunSettings) -> Path:
    """Train, and give the checkpoint."""
    training = Training(recipe, data, run)
    while not training.finished:
        figures = training.run_epoch()
        print(f"epoch {figures['epoch'] + 1}: val AUC {figures['val_auc']:.4f}", flush=True)
    return training.finish()


def evaluate(checkpoint: Path, data: TrainingData, held: list[LabelledImage]) -> dict[str, Any]:
    """Areas under the curve on `val`, with and without lungs, and on the held-out images."""
    with load_backend(checkpoint, settings=BackendSettings(threads=measure.CORES)) as backend:
        seen, unseen = classify(backend, data.val), classify(backend, held)
        shortcuts = measure_shortcuts(backend, data.val, seen)
    positives = seen.scores[seen.positive]
    scores = np.concatenate([positives, unseen.scores])
    truth = np.concatenate([np.ones(len(positives), bool), unseen.positive])
    return {
        "val": shortcuts.whole.as_dict(),
        "lungs_hidden": shortcuts.lungs_hidden.as_dict(),
        "lungs_only": shortcuts.lungs_only.as_dict(),
        "held_out": {"held_images": len(held), **area(scores, truth).as_dict()},
    }


if __name__ == "__main__":
    main()
