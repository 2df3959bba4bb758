"""The figures that docs/physicists.md states by hand are those of the result files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import find_model

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"


def stored(place: str) -> Any:
    return json.loads((RESULTS / f"{place}.json").read_text("utf-8"))


def figures_of(data: str) -> Any:
    return stored(f"accuracy/squeezenet1_1-{data}")


def called(data: str, label: str) -> str:
    rate = figures_of(data)["by_label"][label]["called_positive"]
    return f"{rate['successes']} of {rate['trials']}"


def differing(data: str) -> str:
    report = stored(f"verify/squeezenet1_1-int8-cpu-onnxruntime-{data}")
    return f"{report['decisions']['differ']} of {report['images']}"


def at_the_screening() -> str:
    data = stored("site/tb-normal")["data"]
    rate = data["by_label"]["normal"]["called_positive"]
    positive = f"{rate['successes']} of {rate['trials']} reach the threshold"
    return f"{positive}, and {data['indeterminate']} are too close to call"


def at_site(data: str, rate: str) -> str:
    return f"{rate} {stored(f'site/{data}')['own'][rate]['value']:.1%}".replace("%", " %")


def verdict(data: str) -> str:
    return f"`{stored(f'site/{data}')['verdict']}`"


def alarms(data: str) -> str:
    spared = stored(f"site/{data}")["own"]["specificity"]
    return f"{spared['trials'] - spared['successes']} of {spared['trials']} called positive"


SENTENCES: dict[str, Callable[[], str]] = {
    "hospital": lambda: f"has never seen the verdict is {verdict('actualmed')}",
    "screening": lambda: f"TB screening it is {verdict('tb-normal')}: {at_the_screening()}",
    "external": lambda: (
        f"On `external` it is {verdict('external')} ({at_site('external', 'specificity')}"
    ),
    "SIIM, FP32": lambda: (
        f"FP32 is {verdict('siim-test')}, but barely ({at_site('siim-test', 'specificity')}: "
        f"{alarms('siim-test')})"
    ),
    "SIIM, INT8": lambda: (
        f"gets {verdict('siim-test-int8')} there ({at_site('siim-test-int8', 'specificity')})"
    ),
    "test": lambda: (
        f"misses a rule ({at_site('test', 'sensitivity')}; at least 90 % is required). The "
        f"verdict is {verdict('test')}"
    ),
    "pneumonia": lambda: f"it calls {called('external', 'pneumonia')} such images positive",
    "no opacity": lambda: f"calls {called('siim-test', 'no_pneumonia')} of them in SIIM `test`",
    "INT8": lambda: (
        f"decision of {differing('test')} images of `test` and of "
        f"{differing('external')} of `external`"
    ),
}


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
def test_a_figure_is_that_of_its_file(sentence: Callable[[], str]) -> None:
    page = " ".join((ROOT / "docs/physicists.md").read_text("utf-8").split())
    assert sentence() in page


@pytest.mark.parametrize(
    ("data", "precision"), [("siim-test", "fp32"), ("siim-test-int8", "int8"), ("test", "fp32")]
)
def test_a_figure_is_that_of_the_variant_that_the_page_names(data: str, precision: str) -> None:
    assert stored(f"site/{data}")["model"]["precision"] == precision


def test_the_page_lists_the_folders_of_a_site_check() -> None:
    page = " ".join((ROOT / "docs/physicists.md").read_text("utf-8").split())
    manifest = read_manifest(find_model("squeezenet1_1"))
    listed = page.split("names of the folders are")[1].split(" go into ")
    named, soft = (set(re.findall("`([a-z_]+)/?`", text)) for text in (listed[0], listed[1][:60]))
    assert named == manifest.known_labels
    assert soft == manifest.soft_labels
