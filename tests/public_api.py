"""What a user may write against the Python interface; mypy checks it, strictly."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from deepcovid_edge.backends import load_backend
from deepcovid_edge.bench.compare import compare
from deepcovid_edge.bench.measure import bench, bench_images
from deepcovid_edge.bench.results import read_result
from deepcovid_edge.bench.settings import BenchSettings
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.decision.site_file import read_site, write_site
from deepcovid_edge.heatmaps.heatmap import of_occlusion, regions
from deepcovid_edge.heatmaps.occlusion import Occluder
from deepcovid_edge.heatmaps.windows import OcclusionSettings
from deepcovid_edge.imaging.pictures import read_radiograph
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.models import find_model
from deepcovid_edge.pipeline.pipeline import PredictSettings, predict, run_facts
from deepcovid_edge.validation.site_check import site_check


def classify_one(image: Path) -> dict[str, float]:
    path = find_model("squeezenet1_1")
    with load_backend(path) as backend:
        pixels = prepare(read_radiograph(image), backend.manifest.input)
        logits = backend.infer(pixels[None]).logits
    return {
        name: float(value) for name, value in zip(backend.manifest.classes, logits[0], strict=True)
    }


def classify_folder(folder: Path) -> Iterator[tuple[str, float | None]]:
    path = find_model("squeezenet1_1")
    settings = PredictSettings(batch_size=4)
    with load_backend(path) as backend:
        run = run_facts(backend, settings)
        for record in predict(sorted(folder.iterdir()), backend, run, settings):
            yield record.path, record.probability


def may_be_used_here(images: Path, site_file: Path) -> bool:
    with load_backend(find_model("squeezenet1_1")) as backend:
        report = site_check(backend, load_dataset(images), name="ward 3")
    write_site(site_file, report.as_dict())
    return report.verdict == "usable"


def classify_as_the_site_does(image: Path, site_file: Path) -> str | None:
    settings = PredictSettings(site=read_site(site_file))
    with load_backend(find_model("squeezenet1_1")) as backend:
        (record,) = predict([image], backend, run_facts(backend, settings), settings)
    return record.decision


def where_it_looked(image: Path) -> list[dict[str, Any]]:
    with load_backend(find_model("squeezenet1_1")) as backend:
        read, spec = read_radiograph(image), backend.manifest.input
        with Occluder(backend, OcclusionSettings(window=32, stride=16)) as occluder:
            found = of_occlusion(occluder.explain(prepare(read, spec)), {})
        return [place.as_dict() for place in regions(found, read.pixels.shape, spec)]


def measure(images: Path, output: Path) -> bool:
    result = bench(
        partial(load_backend, find_model("squeezenet1_1")),
        partial(bench_images, sorted(images.iterdir()), name=images.name),
        BenchSettings(seconds=2.0),
    )
    output.write_text(result.to_json(), encoding="utf-8")
    return not result.unstable()


def slower(before: Path, after: Path) -> list[str]:
    compared = compare(read_result(before), read_result(after), (before.name, after.name))
    return [f"{ratio.run}: {ratio.ratio:.2f}" for ratio in compared.slower_than(0.05)]
