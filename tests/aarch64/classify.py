"""Classify images and write, for each, all that may differ between two processors.

    python classify.py DATA --split test --variant fp32 -o OUT.jsonl

This program runs on both processors and needs the product alone. Started again, it goes on where it
was ended. Of the pixels that the network gets, the SHA-256 is written, and files beside OUT hold
them; logits and scores are the 32-bit floats themselves. No time is written: that of an emulator
says nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import deepcovid_edge
from deepcovid_edge.backends import INT8_CPU_SUFFIX
from deepcovid_edge.backends.base import Backend, Inference
from deepcovid_edge.backends.onnxruntime import CpuBackend
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.decision.out_of_distribution import WARN
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.files import write_atomically
from deepcovid_edge.manifest import limits_of, read_manifest
from deepcovid_edge.model import Model
from deepcovid_edge.models import DEFAULT_MODEL, find_model
from deepcovid_edge.pipeline.pipeline import PredictSettings

LIBRARIES = ("numpy", "opencv-python-headless", "pillow", "simplejpeg", "onnxruntime")


@dataclass
class Recorded:
    """What went into a backend last, and what came out; everything else is the backend's own."""

    backend: Backend
    seen: dict[str, Any] = field(default_factory=dict)
    pixels: NDArray[np.uint8] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        """See `Backend.infer`."""
        found = self.backend.infer(batch, activation_maps=activation_maps)
        scores, self.pixels = found.ood_scores, batch[0]
        self.seen = {
            "pixels": hashlib.sha256(batch.tobytes()).hexdigest(),
            "logits": [float(value) for value in found.logits[0]],
            "ood_scores": None if scores is None else [float(value) for value in scores[0]],
        }
        return found


def loaded(name: str, variant: str, threads: int) -> CpuBackend:
    """The shipped model in ONNX Runtime, as the product runs it."""
    path = find_model(name)
    if variant == "int8-cpu":
        path = path.with_name(f"{path.stem}{INT8_CPU_SUFFIX}.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    settings = BackendSettings(provider="cpu", threads=threads)
    return CpuBackend(session, read_manifest(path), path, settings)


def described(record: Prediction, seen: dict[str, Any], name: str) -> dict[str, Any]:
    """One image's result."""
    content = record.as_dict()
    kept = ("status", "reason", "warnings", "decision", "probability")
    return {"image": name, **{key: content[key] for key in kept}, **seen}


def spread(images: list[LabelledImage], most: int | None) -> list[LabelledImage]:
    """Images from the first to the last at equal steps, always the same; all of them for None."""
    if most is None or most >= len(images):
        return images
    return [images[place] for place in np.linspace(0, len(images) - 1, most).astype(int)]


def product_digest() -> str:
    """SHA-256 of the product's modules: results of other ones are not gone on with."""
    (package,) = deepcovid_edge.__path__
    whole = hashlib.sha256()
    for path in sorted(Path(package).rglob("*.py")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def facts(backend: CpuBackend, variant: str) -> dict[str, Any]:
    """What made the results: another line in front means other results."""
    manifest = backend.manifest
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "processor": os.environ.get("QEMU_CPU", ""),
        "libraries": {name: version(name) for name in LIBRARIES},
        "product": product_digest(),
        "model_sha256": backend.sha256,
        "variant": variant,
        "limits": limits_of(manifest.threshold, manifest.indeterminate_range),
    }


def known(output: Path, made_by: str) -> list[str]:
    """Lines of an earlier run that was ended; none where something else made them."""
    text = output.read_text("utf-8") if output.is_file() else ""
    lines = text.rpartition("\n")[0].splitlines()  # the last one may have been broken off
    return lines if lines and lines[0] == made_by else [made_by]


def pixels_file(output: Path, image: str) -> Path:
    """Where the pixels of an image lie, beside the results."""
    folder = output.with_name(f"{output.stem}-pixels")
    folder.mkdir(exist_ok=True)
    return folder / f"{Path(image).stem}.npy"


def classify(data: Path, images: list[LabelledImage], backend: CpuBackend, output: Path) -> None:
    """Classify what the output does not hold yet; every line is written as it is ready."""
    network = Recorded(backend)
    settings = PredictSettings(batch_size=1, workers=1, ood=WARN)
    done = {json.loads(line).get("image") for line in output.read_text("utf-8").splitlines()}
    with Model.of(network, settings) as model, output.open("a", encoding="utf-8") as stream:
        for image in images:
            name = str(image.path.relative_to(data))
            if name not in done:
                network.seen, network.pixels = {}, None
                record = model.predict_one(image.path)
                if network.pixels is not None:
                    np.save(pixels_file(output, name), network.pixels)
                stream.write(json.dumps(described(record, network.seen, name)) + "\n")
                stream.flush()


def main() -> None:
    """Run as a script; see the module's description."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--variant", choices=["fp32", "int8-cpu"], default="fp32")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--most", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    images = sorted(load_dataset(options.data, split=options.split), key=lambda one: one.path)
    with loaded(options.model, options.variant, options.threads) as backend:
        lines = known(options.output, json.dumps(facts(backend, options.variant)))
        write_atomically(options.output, ("\n".join(lines) + "\n").encode())
        classify(options.data, spread(images, options.most), backend, options.output)


if __name__ == "__main__":
    main()
