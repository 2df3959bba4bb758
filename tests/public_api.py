"""Python as a user writes it, in documents too: checked by mypy, run by test_model.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepcovid_edge import ImageBytes, Model, read_radiograph
from deepcovid_edge.imaging.prepare import prepare


def classify_one(image: Path) -> str | None:
    with Model("squeezenet1_1") as model:
        return model.predict_one(image).decision


def classify_folder(folder: Path) -> Iterator[tuple[str, float | None]]:
    with Model("squeezenet1_1") as model:
        for prediction in model.predict(folder):
            yield prediction.path, prediction.probability


def classify_what_a_peer_sent(name: str, content: bytes) -> str | None:
    with Model("squeezenet1_1") as model:
        return model.predict_one(ImageBytes(name, content)).reason


def logits_of(image: Path) -> list[float]:
    with Model("squeezenet1_1") as model:
        pixels = prepare(read_radiograph(image), model.manifest.input)
        return [float(value) for value in model.infer(pixels[None])[0]]


def where_it_looked(image: Path, picture: Path) -> list[dict[str, Any]]:
    with Model("squeezenet1_1") as model:
        found = model.explain(image, method="occlusion", stride=16)
        found.save(picture)
        return [region.as_dict() for region in found.regions]


def classify_as_the_site_does(image: Path, site_file: Path) -> str | None:
    with Model("squeezenet1_1", site=site_file) as model:
        return model.predict_one(image).decision
