"""The patient bootstrap: against scikit-learn on the images drawn, and that patients count."""

from __future__ import annotations

import numpy as np
import pytest

metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn (extra export) is compared")

from deepcovid_edge.decision.statistics import area_interval
from deepcovid_edge.errors import UsageError
from deepcovid_export.evaluation.bootstrap import (
    FEWEST_PATIENTS,
    BootstrapSettings,
    bootstrap,
    has_few_patients,
)
from deepcovid_export.evaluation.results import PatientIntervals


def images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    positive = np.arange(count) % 3 == 0
    scores = np.round(1 / (1 + np.exp(-draw.normal(size=count) - 1.2 * positive)), 2)
    return scores, positive


def test_figures_are_scikit_learns_on_the_images_that_were_drawn() -> None:
    """The same draws, one by one, with every image repeated as often as its patient was drawn."""
    scores, positive = images(60)
    patients = [f"p{index // 2}" for index in range(60)]
    owner = np.unique(patients, return_inverse=True)[1]
    draw = np.random.default_rng(3)
    expected: dict[str, list[float]] = {"auc": [], "average_precision": [], "sensitivity": []}
    for times in draw.multinomial(30, np.full(30, 1 / 30), size=200)[:, owner]:
        drawn, truth = np.repeat(scores, times), np.repeat(positive, times)
        expected["auc"].append(metrics.roc_auc_score(truth, drawn))
        expected["average_precision"].append(metrics.average_precision_score(truth, drawn))
        expected["sensitivity"].append((drawn[truth] >= 0.5).mean())
    found = bootstrap(scores, positive, patients, 0.5, BootstrapSettings(200, seed=3))
    assert found is not None
    assert found.patients == 30
    for name, values in expected.items():
        assert getattr(found, name) == pytest.approx(np.quantile(values, [0.025, 0.975]))


def test_images_of_one_patient_add_no_certainty() -> None:
    scores, positive = images(60)
    alone = bootstrap(scores, positive, [f"p{i}" for i in range(60)], 0.5)
    often, truth = np.repeat(scores, 8), np.repeat(positive, 8)
    same = bootstrap(often, truth, [f"p{i // 8}" for i in range(480)], 0.5)
    others = bootstrap(often, truth, [f"p{i}" for i in range(480)], 0.5)
    assert alone is not None
    assert same is not None
    assert others is not None

    def width(found: PatientIntervals) -> float:
        assert found.auc is not None
        return found.auc[1] - found.auc[0]

    assert width(same) == pytest.approx(width(alone), rel=0.15)
    assert width(others) < 0.5 * width(same)


def test_interval_over_patients_without_repeats_is_near_that_over_images() -> None:
    scores, positive = images(300)
    found = bootstrap(scores, positive, [f"p{i}" for i in range(300)], 0.5)
    assert found is not None
    assert found.auc == pytest.approx(area_interval(scores, positive), abs=0.02)


def test_the_same_seed_gives_the_same_interval() -> None:
    scores, positive = images(40)
    patients = [f"p{i}" for i in range(40)]
    assert bootstrap(scores, positive, patients, 0.5) == bootstrap(scores, positive, patients, 0.5)


def test_unknown_patients_are_patients_of_their_own_and_are_counted() -> None:
    scores, positive = images(40)
    assert bootstrap(scores, positive, [""] * 40, 0.5) is None
    found = bootstrap(scores, positive, ["p1"] * 10 + [""] * 30, 0.5)
    assert found is not None
    assert found.patients == 31
    assert found.images_without_patient == 30


def test_one_class_alone_has_a_rate_and_no_area() -> None:
    scores, _ = images(12)
    found = bootstrap(scores, np.zeros(12, bool), [f"p{i}" for i in range(12)], 0.5)
    assert found is not None
    assert found.auc is found.sensitivity is found.average_precision is None
    assert found.specificity is not None


@pytest.mark.parametrize("threshold", [0.0, 1.1], ids=["all called positive", "none"])
def test_draws_that_all_agree_give_no_interval(threshold: float) -> None:
    """All or none of n: an interval of no width would promise what n images cannot."""
    scores, positive = images(60)
    found = bootstrap(scores, positive, [f"p{i}" for i in range(60)], threshold)
    assert found is not None
    assert found.sensitivity is found.specificity is None
    assert found.auc is not None
    perfect = bootstrap(positive * 0.5, positive, [f"p{i}" for i in range(60)], threshold)
    assert perfect is not None
    assert perfect.auc is perfect.average_precision is None


@pytest.mark.parametrize("count", [FEWEST_PATIENTS - 1, FEWEST_PATIENTS])
def test_a_class_of_few_patients_has_no_interval_however_many_images_it_has(count: int) -> None:
    scores, positive = images(300)
    patients = [f"p{i % count}" if is_it else f"n{i}" for i, is_it in enumerate(positive)]
    found = bootstrap(scores, positive, patients, 0.5)
    assert found is not None
    assert found.specificity is not None
    enough = count == FEWEST_PATIENTS
    for interval in (found.sensitivity, found.auc, found.average_precision):
        assert (interval is not None) is enough
    assert has_few_patients(positive, patients) is not enough
    assert not has_few_patients(positive[:4], [""] * 4)


def test_too_few_replicates_are_refused() -> None:
    with pytest.raises(UsageError, match="expected 100 or more"):
        BootstrapSettings(replicates=10)
