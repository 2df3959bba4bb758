"""The benchmarks do what they say: peers do the same work, cost grows what it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the peers need extra export")

import cv2

from deepcovid_edge.backends import load_backend, openvino
from deepcovid_edge.models import find_model
from deepcovid_edge.phantom import write_samples
from deepcovid_edge.predict import PredictSettings, predict, run_facts

ROOT = Path(__file__).parent.parent
MODEL = find_model("squeezenet1_1")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_samples(tmp_path_factory.mktemp("films"), count=4)


@pytest.fixture(scope="module")
def expected(films: list[Path]) -> list[float]:
    """Probabilities of the first class as `infer` gives them."""
    settings = PredictSettings()
    with load_backend(MODEL, backend="onnxruntime") as backend:
        first = backend.manifest.classes[0]
        records = list(predict(films, backend, run_facts(backend, settings), settings))
    return [record.probabilities[first] for record in records if record.probabilities]


@pytest.mark.parametrize(
    ("peer", "settings", "tolerance"),
    [
        ("onnxruntime_loop", {}, 1e-5),
        ("onnxruntime_loop", {"threads": 2}, 1e-5),
        ("openvino_loop", {}, 1e-4),
        ("torchvision_loop", {}, 0.1),  # another filter makes other pixels
    ],
)
def test_a_peer_judges_the_films_that_infer_judges(
    peer: str,
    settings: dict[str, Any],
    tolerance: float,
    films: list[Path],
    expected: list[float],
) -> None:
    if peer == "openvino_loop" and not openvino.is_available():
        pytest.skip("openvino (extra openvino) is not installed")
    from importlib import import_module

    judge = import_module(f"peers.{peer}").make(MODEL, **settings)
    assert judge(films) == pytest.approx(expected, abs=tolerance)


def test_cost_grows_one_thing_at_a_time_and_draws_each(
    films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cost

    for name, value in (("FILMS", (2, 5)), ("MEGAPIXELS", (0.5, 2)), ("SHARE", 3)):
        monkeypatch.setattr(cost, name, value)
    steps = list(cost.steps(films, 5, tmp_path))
    assert [count for growth, _, count, _ in steps if growth == "films"] == [2, 5]
    for _, megapixels, count, (_, folder, *_more) in [
        step for step in steps if step[0] == "megapixels"
    ]:
        (film, *_rest) = sorted(Path(folder).rglob("0*.jpg"))
        assert cv2.imread(str(film)).shape[:2] == pytest.approx(
            [(megapixels * 1e6) ** 0.5] * 2, rel=0.1
        )
        assert len(list(Path(folder).rglob("0*.jpg"))) == count
    assert {growth for growth, *_ in steps} == set(cost.GROWTHS)
    assert [value for growth, value, *_ in steps if growth == "windows"] == [49, 169, 625, 2401]
    run = {"median": 1.0, "samples": [1.0, 1.1], "min": 1.0, "max": 1.1}
    grown = {"films": 3, "seconds": run, "peak_mib": run, "ms_a_film": 1.0}
    figures = {"start": grown, **{growth: {"1": grown, "2": grown} for growth in cost.GROWTHS}}
    cost.draw(json.loads(json.dumps(figures)), tmp_path)
    drawn = sorted(path.name for path in tmp_path.glob("cost-*.svg"))
    assert drawn == sorted(f"cost-{growth}.svg" for growth in cost.GROWTHS)
