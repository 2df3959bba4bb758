"""The heat maps that the documentation shows: of a synthetic image, by occlusion and by activation.

    python -m benchmarks.heatmaps.pictures

This writes `results/heatmap/synthetic.jpg`. The image is `phantom_005.png` of `deepcovid-edge
sample`. It is synthetic, so the map carries no meaning. No patient's image may stand here.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measure import RESULTS
from benchmarks.measure.options import parser_of
from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend
from deepcovid_edge.heatmaps.heatmap import of_activation, regions
from deepcovid_edge.heatmaps.occlusion import Occluder, of_occlusion
from deepcovid_edge.heatmaps.overlay import draw_overlay
from deepcovid_edge.heatmaps.windows import OcclusionSettings
from deepcovid_edge.imaging.phantom import write_samples
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.model import Model
from deepcovid_edge.models import find_model
from deepcovid_edge.pipeline.pipeline import PredictSettings
from deepcovid_edge.reasons import NOTICE

SAMPLES = 6
WIDTH = 1400
QUALITY = 72


def main() -> None:
    """Draw, and write the picture."""
    parser = parser_of(__doc__, model="one")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "heatmap/synthetic.jpg")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, load_backend(find_model(options.model)) as backend:
        image = write_samples(Path(place), count=SAMPLES)[-1]
        picture = Image.fromarray(np.vstack(pictures(image, backend)))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    size = (WIDTH, round(picture.height * WIDTH / picture.width))
    picture.resize(size, Image.Resampling.LANCZOS).save(
        options.output, quality=QUALITY, optimize=True, comment=f"Synthetic image. {NOTICE}"
    )
    print(f"{options.output}: {options.output.stat().st_size / 1000:.0f} kB")


def pictures(path: Path, backend: Backend) -> list[NDArray[np.uint8]]:
    """The image's overlay by occlusion, and by activation."""
    settings, spec = PredictSettings(), backend.manifest.input
    record = Model.of(backend, settings).predict_one(path)
    image = read_radiograph(path)
    prepared = prepare(image, spec)
    hidden = OcclusionSettings()
    with Occluder(backend, hidden) as occluder:
        occlusion = of_occlusion(occluder.explain(prepared), asdict(hidden))
    maps = backend.infer(prepared[None], activation_maps=True).activation_maps
    if maps is None:
        raise SystemExit(f"{backend.manifest.name}: has no activation maps")
    activation = of_activation(maps[0, backend.manifest.positive_index], spec)
    return [
        draw_overlay(
            image, spec, found, regions(found, image.pixels.shape, spec, image.box_shape), record
        )
        for found in (occlusion, activation)
    ]


if __name__ == "__main__":
    main()
