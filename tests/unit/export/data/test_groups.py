"""Groups of sources and labels: what an epoch is made of, what is held out, what counts in val."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs extra export")

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_export.data.balance import absent_groups, draw_epoch, validation_weights
from deepcovid_export.data.confounders import ImageFacts, find_confounders, warnings_of
from deepcovid_export.data.leaks import Leak, shared_images
from deepcovid_export.recipe import DataSettings, FitSettings, ImageGroup, Recipe, load_recipe

GROUPS = (
    ImageGroup("held", ("normal",), "Radiography", 0.0),
    ImageGroup("hazy", ("covid",), "hospital", 0.5),
    ImageGroup("clear", ("normal",), "hospital", 0.25),
    ImageGroup("elsewhere", ("normal", "covid"), "", 0.25),
)
RECIPE = Recipe(
    *("r", "squeezenet1_1", "covid", {"non": ["normal"], "covid": ["covid"]}),
    data=DataSettings(groups=GROUPS),
    fit=FitSettings(images=40),
)


def images(**counts: int) -> list[LabelledImage]:
    return [
        LabelledImage(Path(f"{name}{number}.png"), name.split("_")[1], "", "", name.split("_")[0])
        for name, count in counts.items()
        for number in range(count)
    ]


MIXED = images(
    hospital_covid=30, hospital_normal=6, web_covid=20, web_normal=4, Radiography_normal=9
)


def test_an_epoch_has_the_shares_of_the_recipe_and_nothing_that_is_held_out() -> None:
    drawn = [MIXED[place] for place in draw_epoch(MIXED, RECIPE, 0)]
    assert Counter((it.source, it.label) for it in drawn if it.source == "hospital") == {
        ("hospital", "covid"): 20,
        ("hospital", "normal"): 10,
    }
    assert Counter(it.source for it in drawn) == {"hospital": 30, "web": 10}


def test_over_the_epochs_all_images_of_a_group_are_seen_equally_often() -> None:
    times = Counter(place for epoch in range(6) for place in draw_epoch(MIXED, RECIPE, epoch))
    assert {times[place] for place in range(30)} == {4}  # 6 x 20 of 30
    assert draw_epoch(MIXED, RECIPE, 3) == draw_epoch(MIXED, RECIPE, 3)
    assert draw_epoch(MIXED, RECIPE, 3) != draw_epoch(MIXED, RECIPE, 4)


def test_a_group_without_images_leaves_its_share_to_the_others_and_is_named() -> None:
    few = images(hospital_covid=3, hospital_normal=3)
    assert absent_groups(few, RECIPE) == ["elsewhere"]
    drawn = Counter(few[place].label for place in draw_epoch(few, RECIPE, 0))
    assert drawn == {"covid": 4, "normal": 2}  # no more than there are images


def test_every_group_counts_alike_in_the_validation_loss() -> None:
    weights = validation_weights(MIXED, RECIPE).numpy()
    sums = {"hospital_covid": weights[:30].sum(), "hospital_normal": weights[30:36].sum(),
            "elsewhere": weights[36:60].sum(), "held": weights[60:].sum()}  # fmt: skip
    assert np.allclose(list(sums.values()), len(MIXED) / 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DataSettings(groups=GROUPS), "fit": FitSettings()}, r"fit\.images: got 0 with 4"),
        ({"data": DataSettings(), "fit": FitSettings(images=3)}, r"fit\.images: got 3 with 0"),
        ({"soft_labels": {"normal": 0.5}}, "'normal' is a label of a class already"),
        ({"soft_labels": {"hazy": 1.5}}, r"soft_labels: got .* expected 0 to 1"),
        ({"classes": {"non": ["no"], "covid": ["covid"]}}, r"data\.groups: 'normal' is in no"),
    ],
)
def test_groups_and_soft_labels_that_do_not_fit_are_named(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **changes)


def test_shares_sum_to_one() -> None:
    with pytest.raises(ValueError, match=r"data\.groups: got shares that sum to 0.5"):
        DataSettings(groups=GROUPS[:2])


def test_the_recipe_of_both_appearances_survives_json_and_takes_data_of_unknown_source() -> None:
    recipe = load_recipe("squeezenet1_1")
    assert Recipe.from_dict(recipe.as_dict()) == recipe
    for labels in recipe.classes.values():
        assert all(recipe.data.group_of(label, "") is not None for label in labels)
    assert recipe.class_of("indeterminate") is None
    assert recipe.class_of("no_pneumonia") == recipe.class_of("normal") == 0


def test_what_the_files_alone_tell_is_measured_over_all_and_within_sources() -> None:
    shown = images(web_covid=10, nih_normal=10, both_covid=5, both_normal=5)
    facts = {
        it.path: ImageFacts(100, 150 if it.label == "covid" else 100 + number % 7, 4.0)
        for number, it in enumerate(shown)
    }
    found = find_confounders(shown, facts, [it.label == "covid" for it in shown])
    areas = {(it.among, it.property): it.auc for it in found}
    assert areas["both", "aspect"] == 1.0
    assert areas["all", "quantisation"] == 0.5
    assert areas["all", "source"] > 0.8
    assert "nih" not in {it.among for it in found}  # one class alone
    assert any(text.startswith("aspect alone tells") for text in warnings_of(found))


@pytest.mark.parametrize("count", [5, 50, 500])
@pytest.mark.parametrize(
    ("sources", "area"),
    [
        ({"covid": ("",), "normal": ("",)}, 0.5),
        ({"covid": ("one",), "normal": ("one",)}, 0.5),
        ({"covid": ("one", "two"), "normal": ("one", "two")}, 0.5),
        ({"covid": ("one",), "normal": ("two",)}, 1.0),
    ],
    ids=["none", "one", "balanced", "telling"],
)
def test_a_source_is_named_only_if_it_tells_the_classes(
    sources: dict[str, tuple[str, ...]], area: float, count: int
) -> None:
    shown = [
        LabelledImage(Path(f"{label}{number}.png"), label, source=names[number % len(names)])
        for label, names in sources.items()
        for number in range(count)
    ]
    facts = {it.path: ImageFacts(100, 100, 4.0) for it in shown}
    found = find_confounders(shown, facts, [it.label == "covid" for it in shown])
    assert {it.property: it.auc for it in found if it.among == "all"}["source"] == area
    assert len(warnings_of(found)) == (area == 1.0)


def test_train_gives_way_to_val_and_both_to_other_splits() -> None:
    shown = [
        LabelledImage(Path(f"{at}.png"), "covid", split, patient)
        for at, (split, patient) in enumerate(
            [("train", "p"), ("train", "p"), ("val", "p"), ("val", ""), ("test", ""), ("train", "")]
        )
    ]
    leaks = [
        Leak("0.png", "train", "2.png", "val", "same patient", "p"),
        Leak("3.png", "val", "4.png", "test", "near-duplicate"),
        Leak("4.png", "test", "9.png", "external", "near-duplicate"),
    ]
    assert shared_images(shown, leaks) == {0, 1, 3}
