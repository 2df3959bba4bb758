"""Speed of `deepcovid-edge infer` beside the published loop and beside the machine's roof.

Each side is a process of its own. They run in turn, several rounds, after a pause in which the
threads of the one before fall asleep. Ratios are taken round by round and their median is quoted.

- `infer`: the command itself, from listing the folder to the written file of records, model
  loading included; Python's own start is not (see footprint.py). As a user types it, so the fastest
  verified variant of the model runs (`variant` names it); `infer_fp32` runs the model's own file.
- `published_loop`: peers/published_loop.py over the same files, as published, and without the
  gradients that it records for nothing.
- `roof`: the least work there is, see roof.py, with the same variant of the network.
  `roof_of_libraries` resizes with OpenCV, whose INTER_AREA takes longer.
  `roof_arithmetic` is cores over the sum of the two times that one thread takes for an image alone
  on the machine.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure.options import parser_of
from benchmarks.measure.programs import Programs
from benchmarks.speed import roof
from deepcovid_edge.backends import fastest_verified
from deepcovid_edge.datasets.dataset import walk_files
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import find_model

LOOPS = ("published_loop", "published_loop_without_gradients")
OTHERS = (*LOOPS, "roof", "roof_of_libraries", "infer_fp32")
ROOF = "benchmarks.speed.roof:make"


def main() -> None:
    """Measure, and store the result."""
    parser = parser_of(__doc__, data="folder that holds test/", model="one", rounds=11)
    options = parser.parse_args()
    folder, model = options.data / "test", find_model(options.model)
    images = list(walk_files(folder))
    variant, manifest = fastest_verified(model), read_manifest(model)
    loop = ("benchmarks.peers:over", images, "published_loop", manifest.architecture)
    with Programs() as sides:
        sides.add_infer(folder, model)
        sides.add("published_loop", *loop)
        sides.add("published_loop_without_gradients", *loop, gradients=False)
        sides.add("roof", ROOF, variant, images)
        sides.add("roof_of_libraries", ROOF, variant, images, libraries=True)
        sides.add("roof_fp32", ROOF, model, images)
        seconds = measure.in_turn(sides, repeat((), options.rounds + 1), pause=measure.PAUSE)
    decode, network = roof.parts(variant, images)
    arithmetic = measure.CORES / (decode + network)
    ours = [len(images) / value / arithmetic for value in seconds["infer"]]
    figures: dict[str, Any] = {
        "model": manifest.name,
        "variant": read_manifest(variant).name,
        "images": len(images),
        "seconds": measure.summaries(seconds),
        "images_per_second": {
            name: len(images) / float(np.median(values)) for name, values in seconds.items()
        },
        "one_thread_ms": {"decode_and_resize": decode * 1e3, "network": network * 1e3},
        "roof_arithmetic_images_per_second": arithmetic,
        "ratios": measure.ratios_to(seconds, ["infer"], OTHERS)
        | measure.ratios_to(seconds, ["infer_fp32"], (*LOOPS, "roof_fp32"))
        | {"infer_to_roof_arithmetic": measure.summary(ours)},
    }
    measure.print_medians(manifest.name, figures["ratios"])
    measure.store(f"infer-speed-{manifest.name}", figures)


if __name__ == "__main__":
    main()
