"""How many children are recognised: counted on children that had no part, patient by patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

for needed in ("onnx", "torch"):
    pytest.importorskip(needed, reason=f"{needed} (extra export) is needed to make models")

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.errors import DataError
from deepcovid_edge.models import find_model
from deepcovid_export.decision import fit_ood
from deepcovid_export.decision.fit_ood import LIMIT, count_recognised, draw_folds, unit_factor


def children(*patients: str) -> list[LabelledImage]:
    return [
        LabelledImage(Path(f"{number}.png"), "normal", patient=patient, is_child=True)
        for number, patient in enumerate(patients)
    ]


def test_children_who_score_lower_than_those_who_chose_the_unit_are_not_counted() -> None:
    """In the unit that all five fifths choose, 95 of these 100 would be, whatever they score."""
    folds = np.arange(100) % 5
    scores = np.where(folds == 0, np.linspace(4, 6, 100), 10.0)
    assert int((scores * unit_factor(scores) > LIMIT).sum()) == 95
    assert count_recognised(scores, folds) == 80


@pytest.mark.parametrize("count", [16, 20, 41, 81, 100, 101])
def test_the_unit_lets_at_least_95_in_a_hundred_lie_above_the_limit(count: int) -> None:
    """Of 81 the 5 % quantile is a child itself, which then lay on the limit: 76 are 93.8 %."""
    different = np.random.default_rng(count).permutation(np.linspace(4, 12, count))
    above = int((different * unit_factor(different) > LIMIT).sum())
    assert 0.95 <= above / count < 0.95 + 1 / count
    alike = np.full(count, 7.0)
    assert (alike * unit_factor(alike) > LIMIT).all()


def test_children_who_score_alike_are_counted_as_they_are_wherever_they_are() -> None:
    scores = np.random.default_rng(1).normal(8, 1, 400)
    assert count_recognised(scores, np.arange(400) % 5) == pytest.approx(380, abs=6)


def test_scores_below_the_limit_are_never_raised() -> None:
    assert count_recognised(np.full(20, 0.9 * LIMIT), np.arange(20) % 5) == 0


def test_all_images_of_a_patient_are_in_one_fold() -> None:
    names = [f"p{number % 7}" for number in range(21)]
    folds, patients = draw_folds(children(*names, "", "", ""))
    assert patients == 10  # an image without a patient has one of its own
    assert {len({folds[at] for at in range(21) if names[at] == name}) for name in names} == {1}
    assert set(folds) == set(range(5))


def test_too_few_patients_to_hold_some_out_are_an_error() -> None:
    with pytest.raises(DataError, match=r"got images of 4 patients .* expected at least 5"):
        draw_folds(children(*"abcdabcdabcdabcd"))


@pytest.mark.parametrize("marked", ["in the fit", "by a copy among the children"])
def test_no_marked_image_counts_as_an_adult(
    marked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, young = ["path,label,split,paediatric"], ["path,label,split,paediatric"]
    for split in ("train", "val"):
        for number in range(20):
            is_child = number < 3
            (tmp_path / f"{split}{number}.png").write_text(f"{split}{number}")
            mark = "1" if is_child and marked == "in the fit" else ""
            rows.append(f"{split}{number}.png,non,{split},{mark}")
            if is_child:
                (tmp_path / f"copy-{split}{number}.png").write_text(f"{split}{number}")
                young.append(f"copy-{split}{number}.png,non,train,1")
    for number in range(16):
        (tmp_path / f"child{number}.png").write_text(f"child{number}")
        young.append(f"child{number}.png,non,train,1")
    (tmp_path / "fit.csv").write_text("\n".join(rows))
    (tmp_path / "children.csv").write_text("\n".join(young))
    seen: list[list[LabelledImage]] = []

    def note(_: object, train: list[LabelledImage], val: list[LabelledImage], *__: object) -> None:
        seen.extend((train, val))
        raise InterruptedError

    monkeypatch.setattr(fit_ood, "fit", note)
    children_file = None if marked == "in the fit" else tmp_path / "children.csv"
    with pytest.raises(InterruptedError):
        fit_ood.fit_model(
            find_model("squeezenet1_1"),
            tmp_path / "fit.csv",
            tmp_path / "x.onnx",
            children=children_file,
        )
    assert [len(images) for images in seen] == [17, 17]
