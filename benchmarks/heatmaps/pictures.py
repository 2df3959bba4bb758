"""The heat maps that the documentation shows: of a synthetic image, by occlusion and by activation.

    python -m benchmarks.heatmaps.pictures

This writes `results/heatmap/synthetic.jpg`. The image is `phantom_003.png` of `deepcovid-edge
sample`. It is synthetic, so the map carries no meaning. No patient's image may stand here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measure import RESULTS
from benchmarks.measure.options import parser_of
from deepcovid_edge.heatmaps.heatmap import METHODS
from deepcovid_edge.heatmaps.overlay import draw_overlay
from deepcovid_edge.imaging.synthetic.clinic_folder import write_phantoms
from deepcovid_edge.model import Model
from deepcovid_edge.reasons import NOTICE

SAMPLES = 4
WIDTH = 1400
QUALITY = 72


def main() -> None:
    """Draw, and write the picture."""
    parser = parser_of(__doc__, model="one")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "heatmap/synthetic.jpg")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Model(options.model, variant="fp32") as model:
        image = write_phantoms(Path(place), count=SAMPLES)[-1]
        picture = Image.fromarray(np.vstack([overlay(model, image, one) for one in METHODS]))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    size = (WIDTH, round(picture.height * WIDTH / picture.width))
    picture.resize(size, Image.Resampling.LANCZOS).save(
        options.output, quality=QUALITY, optimize=True, comment=f"Synthetic image. {NOTICE}"
    )
    print(f"{options.output}: {options.output.stat().st_size / 1000:.0f} kB")


def overlay(model: Model, image: Path, method: str) -> NDArray[np.uint8]:
    """The image with its heat map over it."""
    found = model.explain(image, method=method)
    return draw_overlay(
        found.radiograph, found.input, found.heatmap, found.regions, found.prediction
    )


if __name__ == "__main__":
    main()
