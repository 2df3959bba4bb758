"""The figures that docs/physicists.md states by hand are those of the result files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"


def stored(place: str) -> Any:
    return json.loads((RESULTS / f"{place}.json").read_text("utf-8"))


def figures_of(data: str) -> Any:
    return stored(f"accuracy/squeezenet1_1-{data}")


def percent(rate: dict[str, Any]) -> str:
    return f"{rate['value']:.0%}".replace("%", " %")


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


def overall(data: str, rate: str) -> str:
    return percent(figures_of(data)["overall"][rate])


SENTENCES: dict[str, Callable[[], str]] = {
    "screening": at_the_screening,
    "test": lambda: f"`test` too (sensitivity {overall('test', 'sensitivity')}",
    "SIIM": lambda: f"on SIIM `test` (specificity {overall('siim-test', 'specificity')}",
    "external": lambda: f"on `external` ({overall('external', 'specificity')}",
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
