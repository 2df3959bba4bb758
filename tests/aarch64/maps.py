"""Heat maps of some images, kept as the floats that they are, to be compared with other ones.

    PYTHONPATH=tests python tests/aarch64/maps.py DATA --variant int8-cpu --most 4 -o FOLDER

Like `classify`, this runs on both processors on the product alone. The windows of an occlusion are
large and few: an emulated processor takes seconds for each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from aarch64.classify import loaded, spread
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.decision.out_of_distribution import WARN
from deepcovid_edge.model import Model
from deepcovid_edge.models import DEFAULT_MODEL
from deepcovid_edge.pipeline.pipeline import PredictSettings

WINDOW, STRIDE = 64, 32
METHODS = ("activation", "occlusion")


def main() -> None:
    """Run as a script; see the module's description."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--variant", choices=["fp32", "int8-cpu"], required=True)
    parser.add_argument("--most", type=int, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    images = sorted(load_dataset(options.data, split="test"), key=lambda one: one.path)
    settings = PredictSettings(batch_size=1, workers=1, ood=WARN)
    with (
        loaded(DEFAULT_MODEL, options.variant, 1) as backend,
        Model.of(backend, settings) as model,
    ):
        for image in spread(images, options.most):
            for method in METHODS:
                found = model.explain(image.path, method=method, window=WINDOW, stride=STRIDE)
                np.save(options.output / f"{image.path.stem}-{method}.npy", found.values)


if __name__ == "__main__":
    main()
