"""`infer` beside what a user writes for DICOM, file to decision, over each kind of compression.

Each side is a process of its own. They run in turn over the same files: images of `val`, enlarged
to 3000 pixels, with 16 bits. A peer that is missing, or whose plug-ins do not read a kind, is
stored with the reason. MONAI and pydicom's plug-ins are not installed with this project:
`pip install monai pylibjpeg[all] pyjpegls python-gdcm`.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.halved import enlarged
from benchmarks.measure.options import parser_of
from benchmarks.measure.programs import Programs
from benchmarks.speed.dicom import BITS, ENCODERS, write
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES
from deepcovid_edge.models import find_model

SIDE = 3000
NATIVE = "1.2.840.10008.1.2.1"
READERS = ("pydicom", "monai")
PLUGINS = ("monai", "pydicom", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm")
GOALS = {NATIVE: 3.0, "1.2.840.10008.1.2.4.90": 3.0}
"""Times as fast as the faster reader; 1.5 for the others."""
OTHER_GOAL = 1.5


def main() -> None:
    """Measure all kinds, and store the result."""
    parser = parser_of(__doc__, data="folder with val/", model="one", rounds=5)
    parser.add_argument("--images", type=int, default=8, help="[default: 8]")
    options = parser.parse_args()
    model, found = find_model(options.model), load_dataset(options.data, split="val")
    images = [one.path for one in found[:: len(found) // options.images]][: options.images]
    load = os.getloadavg()[0]
    kinds: dict[str, Any] = {}
    for uid in (NATIVE, *ENCODERS):
        with tempfile.TemporaryDirectory() as place:
            paths = [Path(place, f"{number}.dcm") for number in range(len(images))]
            for path, image in zip(paths, images, strict=True):
                write(path, enlarged(image, SIDE), uid)
            kinds[SYNTAXES[uid].name] = compare(paths, model, options.rounds, uid)
            measure.print_medians(SYNTAXES[uid].name, kinds[SYNTAXES[uid].name]["ratios"])
    figures = {
        "side": SIDE,
        "bits": BITS,
        "images": options.images,
        "load_average": {"before": load, "after": os.getloadavg()[0], "cores": measure.CORES},
        "plugins": {name: version(name) for name in PLUGINS},
        "kinds": kinds,
    }
    measure.store("dicom-peers", figures)


def compare(paths: list[Path], model: Path, rounds: int, uid: str) -> dict[str, Any]:
    """Seconds and ratios of all sides for one kind of compression."""
    missing: dict[str, str] = {}
    with Programs() as sides:
        sides.add("infer", "benchmarks.peers.infer_command:make", paths[0].parent, model)
        for reader in READERS:
            try:
                sides.add(
                    reader, "benchmarks.peers:over", paths, "dicom_loop", model, reader=reader
                )
            except RuntimeError as error:
                missing[reader] = str(error)
        seconds = measure.in_turn(sides, repeat((), rounds + 1), pause=measure.PAUSE)
    per_image = {name: [1e3 * one / len(paths) for one in spent] for name, spent in seconds.items()}
    return {
        "goal": GOALS.get(uid, OTHER_GOAL),
        "missing": missing,
        "ms": measure.summaries(per_image),
        "ratios": measure.ratios_to(seconds, ["infer"], READERS),
    }


def version(name: str) -> str | None:
    """Version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
