"""A process that assesses images for the server: what ends a decoder ends this one alone.

It takes frames of names and images from a socket, and answers each with a frame of records, each
with its decision or its reason, so that the server need not read the record. Its
first frame has what every record has in common, what clients check, and the synthetic image of the
readiness check with its record; or why the model cannot be loaded.

Its arguments are the file descriptor of the socket, keywords of `Model` as JSON, and the most bytes
of address space, which hold where no GPU is used.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from deepcovid_edge.backends.base import Backend
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.device.process import limit_address_space, set_up, write_no_core_file
from deepcovid_edge.errors import DeepCovidEdgeError, ModelFileError, one_line
from deepcovid_edge.imaging.files import ImageBytes
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom, save_phantom
from deepcovid_edge.manifest import VERSION
from deepcovid_edge.model import Model
from deepcovid_edge.serve.assessors.frames import receive, send

CHECK_NAME = "synthetic.png"
"""Of the synthetic image."""
_CPU_GROUP = 8
"""A group is prepared before it is classified: code and weights of one step push those of the other
out of a core's cache. The inference calls have one image each."""


def main() -> None:
    """Answer frames until the server closes the socket."""
    set_up()
    write_no_core_file()
    channel = socket.socket(fileno=int(sys.argv[1]))
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        model = Model(**json.loads(sys.argv[2]), workers=1)
        if model.backend.on_cpu:
            limit_address_space(int(sys.argv[3]))
        send(channel, first_frame(model))
    except (DeepCovidEdgeError, OSError, MemoryError) as error:
        send(channel, [json.dumps({"failed": one_line(error)}).encode()])
        sys.exit(1)
    while parts := receive(channel):
        images = [
            ImageBytes(name.decode(), data)
            for name, data in zip(parts[::2], parts[1::2], strict=True)
        ]
        records = model.predict_together(images)
        send(channel, [part for record in records for part in answer_of(record)])


def answer_of(record: Prediction) -> tuple[bytes, bytes]:
    """The record as JSON, and its decision or its reason."""
    return record.as_json().encode(), str(record.decision or record.reason).encode()


def first_frame(model: Model) -> list[bytes]:
    """What the server must know of a loaded model, and the synthetic image with its record.

    Raises:
        ModelFileError: The synthetic image is not assessed.
    """
    image = synthetic_image()
    (record,) = model.predict_together([ImageBytes(CHECK_NAME, image)])
    if record.probabilities is None:
        raise ModelFileError(f"self-test: the synthetic image is not assessed: {record.message}")
    known = {
        "template": Prediction("", model.facts).as_dict(),
        "facts": client_facts(model),
        "on_cpu": model.backend.on_cpu,
        "suits": _CPU_GROUP if model.backend.on_cpu else model.batch_size,
    }
    return [json.dumps(known).encode(), image, record.as_json().encode()]


def client_facts(model: Model) -> dict[str, Any]:
    """What a client checks before it sends an image: version, hash, manifest, who is rejected."""
    backend = model.backend
    return {
        "version": VERSION,
        "model_sha256": backend.sha256,
        "parents": _parents(backend),
        "backend": backend.name,
        "warnings": [warning.code for warning in backend.warnings],
        "run_warnings": list(model.facts.warnings),
        "ood": model.settings.ood,
        "manifest": json.loads(backend.manifest.to_json()),
    }


def _parents(backend: Backend) -> list[str]:
    """SHA-256 of the files that a model's was made from; an engine knows its .onnx."""
    of_engine = getattr(getattr(backend, "facts", None), "parent_sha256", None)
    return [one for one in (of_engine, backend.manifest.parent_sha256) if one]


def synthetic_image() -> bytes:
    """A drawn chest, as a PNG file that is marked as synthetic."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CHECK_NAME
        save_phantom(draw_phantom(7, opacities=9), path)
        return path.read_bytes()


if __name__ == "__main__":
    main()
