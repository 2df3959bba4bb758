"""Recipes: what ships is valid, and a wrong setting is named."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the workstation side needs extra export")

from deepcovid_edge.errors import UsageError
from deepcovid_edge.manifest import ResizeRule
from deepcovid_export.recipe import SHIPPED, Recipe, load_recipe


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.toml")))
def test_shipped_recipes_are_valid_and_named_after_their_file(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert Recipe.from_dict(recipe.as_dict()) == recipe
    assert recipe.input.resize is ResizeRule.CENTRE_CROP


def test_labels_are_grouped_into_classes() -> None:
    recipe = load_recipe("squeezenet1_1")
    indices = [recipe.class_of(label) for label in ("normal", "pneumonia", "covid", "fracture")]
    assert indices == [0, 0, 1, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("\n[fit]\nepochs = 0", r"fit\.epochs: got 0"),
        ("\n[fit]\nspeed = 3", r"fit\.speed: no such setting; expected one of average"),
        ('\n[fit]\nprecision = "fp8"', r"fit\.precision: got 'fp8'"),
        ("\n[augment]\nflip = 2.0", r"augment\.flip: got 2\.0"),
        ("\n[augment]\njpeg = 500", r"augment\.jpeg: got 500"),
        ('\n[input]\nresize = "melt"', "melt"),
        ("\nsensitivity = ", "sensitivity|Invalid"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "r.toml"
    head = 'name = "r"\narchitecture = "resnet18"\npositive_class = "a"\n'
    classes = '[classes]\na = ["a"]\nb = ["b"]\n'
    path.write_text(head + classes + change)
    with pytest.raises(UsageError, match=message):
        load_recipe(str(path))


def test_a_positive_class_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        'name = "r"\narchitecture = "resnet18"\npositive_class = "x"\n[classes]\na = ["a"]\n'
    )
    with pytest.raises(UsageError, match="positive_class: got 'x', expected one of"):
        load_recipe(str(path))


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(UsageError, match="expected a TOML file or resnet18, squeezenet1_1"):
        load_recipe("alexnet")
