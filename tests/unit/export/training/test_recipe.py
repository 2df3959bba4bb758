"""Recipes: what ships is valid and says what its source says; a wrong setting is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the workstation side needs extra export")

from deepcovid_edge.errors import UsageError
from deepcovid_edge.manifest import ResizeRule
from deepcovid_export.recipe import SHIPPED, DataSettings, FitSettings, Recipe, load_recipe

NAMES = sorted(path.stem for path in SHIPPED.glob("*.toml"))
PAPER = [name for name in NAMES if name.startswith("paper_")]
FOUR_CLASS = [name for name in NAMES if name.startswith("four_class_")]
HEAD = 'name = "r"\narchitecture = "resnet18"\npositive_class = "a"\n'
CLASSES = '[classes]\na = ["a"]\nb = ["b"]\n'


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipes_are_valid_and_named_after_their_file(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert Recipe.from_dict(recipe.as_dict()) == recipe
    assert recipe.input.resize in ResizeRule


def test_the_papers_recipes_say_what_the_paper_says() -> None:
    """Minaee et al. 2020, arXiv 2004.09363, section on model hyper-parameters."""
    architectures = {load_recipe(name).architecture for name in PAPER}
    assert architectures == {
        "squeezenet1_0",
        "squeezenet1_1",
        "resnet18",
        "resnet50",
        "densenet121",
    }
    for name in PAPER:
        recipe = load_recipe(name)
        fit = recipe.fit
        assert (fit.epochs, fit.batch_size, fit.optimiser) == (100, 20, "adam")
        assert (fit.learning_rate, fit.schedule, fit.layers) == (1e-4, "constant", "last")
        assert (fit.start, fit.balance, dict(fit.repeat)) == ("imagenet", "upsample", {"covid": 5})
        assert (recipe.input.height, recipe.input.width) == (224, 224)


def test_four_class_recipes_differ_in_what_their_names_say() -> None:
    recipes = {name.removeprefix("four_class_"): load_recipe(name) for name in FOUR_CLASS}
    assert {*recipes} == {"resnet18", "resnet18_scratch", "small_cnn", "small_cnn_plain"}
    for recipe in recipes.values():
        assert [*recipe.classes] == ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]
        assert recipe.data.shares == {"train": 0.7, "val": 0.15, "test": 0.15}
    starts = [recipes[name].fit.start for name in ("resnet18", "resnet18_scratch")]
    assert starts == ["imagenet", "scratch"]
    assert recipes["resnet18"].fit.learning_rate == 3e-5
    cnn = recipes["small_cnn"].fit
    assert (cnn.optimiser, cnn.learning_rate, cnn.momentum) == ("sgd", 0.01, 0.9)
    assert recipes["small_cnn"].input.height == 128
    assert recipes["small_cnn"].augment.rotate > 0 == recipes["small_cnn_plain"].augment.rotate


def test_the_one_cycle_recipe_finds_its_rate_on_large_pa_images() -> None:
    recipe = load_recipe("one_cycle_resnet50")
    assert (recipe.architecture, recipe.input.height) == ("resnet50", 512)
    assert recipe.data.views == ("PA",)
    assert (recipe.fit.learning_rate, recipe.fit.schedule) == ("find", "one_cycle")
    assert recipe.fit.balance == "upsample"


def test_labels_are_grouped_into_classes() -> None:
    recipe = load_recipe("plain_squeezenet1_1")
    indices = [recipe.class_of(label) for label in ("normal", "pneumonia", "covid", "fracture")]
    assert indices == [0, 0, 1, None]


@pytest.mark.parametrize("name", ["plain_squeezenet1_1", "resnet18", "resnet50", "densenet121"])
def test_a_recipe_for_images_of_whatever_source_takes_covid_xray_5k(name: str) -> None:
    """Its folders are called `covid` and `non`."""
    recipe = load_recipe(name)
    assert [recipe.class_of(label) for label in ("non", "covid")] == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("\n[fit]\nepochs = 0", r"fit\.epochs: got 0"),
        ("\n[fit]\nepochs = 1.5", r"fit\.epochs: got 1\.5, expected an integer"),
        ("\n[fit]\nepochs = true", r"fit\.epochs: got True, expected an integer"),
        ("\n[fit]\nspeed = 3", r"fit\.speed: no such setting; expected one of average"),
        ('\n[fit]\nprecision = "fp8"', r"fit\.precision: got 'fp8', expected 'fp32' or 'bf16'"),
        ('\n[fit]\noptimiser = "lion"', r"expected 'adamw' or 'adam' or 'sgd'"),
        ('\n[fit]\nlearning_rate = "guess"', r"learning_rate: got 'guess', .* number or 'find'"),
        ("\n[fit]\nlearning_rate = 0", r"fit\.learning_rate: got 0, expected above 0"),
        ("\n[fit]\nmomentum = 1.0", r"fit\.momentum: got 1\.0"),
        ("\n[fit]\nwarm_up = 0.0", r"fit\.warm_up: got 0\.0"),
        ("\n[fit]\nclip = -1", r"fit\.clip: got -1"),
        ("\n[fit]\nrepeat = {a = 2}", r'fit\.repeat: .* balance = "upsample"'),
        ("\n[fit]\nrepeat_sources = {a = 0}", r"fit\.repeat_sources: got .* expected 1 or more"),
        ("\n[augment]\nhide = 2.0", r"augment\.hide: got 2\.0, expected a probability"),
        (
            '\n[augment]\nsquare = true\n[input]\nresize = "letterbox"',
            r"augment\.square: got true with input\.resize = 'letterbox' .* set augment\.square to",
        ),
        (
            "\n[augment]\nsquare = true\n[input]\nheight = 256\nwidth = 192",
            r"augment\.square: .* an input of 256 x 192, expected 'centre_crop' and equal sides",
        ),
        (
            "\n[fit]\nsmall_epochs = 1\n[input]\nheight = 40\nwidth = 64",
            r"fit\.small_epochs: got 1, .* got 29 x 46, expected 32 to 4096\): set it to 0",
        ),
        ('\n[fit]\nbalance = "upsample"\nrepeat = {x = 2}', r"fit\.repeat: got 'x', expected one"),
        ('\n[fit]\nbalance = "upsample"\nrepeat = {a = "x"}', r"a table, each value an integer"),
        ("\n[find]\nlowest = 2.0", r"find\.lowest: got 2\.0"),
        ("\n[find]\nsteps = 1", r"find\.steps: got 1"),
        ('\n[data]\nviews = "PA"', r"data\.views: got 'PA', expected a list, each a text"),
        ("\n[data]\nshares = {train = 1.0}", r"data\.shares: got \['train'\]"),
        ("\n[data]\nshares = {train = 0.5, val = 0.2}", r"shares of 0 or more that sum to 1"),
        ("\n[augment]\nflip = 2.0", r"augment\.flip: got 2\.0"),
        ("\n[augment]\njpeg = 96", r"augment\.jpeg: got 96, expected a quality, 0 to 95"),
        ("\n[augment]\nrotate = -1.0", r"augment\.rotate: got -1\.0, expected 0 or more"),
        ("\n[fit]\nseed = -1", r"fit\.seed: got -1, expected 0 or more"),
        ("\n[fit]\nlearning_rate = nan", r"fit\.learning_rate: got nan, expected"),
        ("\n[fit]\nweight_decay = inf", r"fit\.weight_decay: got inf, expected"),
        ("\n[augment]\njpeg = 500", r"augment\.jpeg: got 500"),
        ('\n[input]\nresize = "melt"', "melt"),
        ("\nsensitivity = ", "sensitivity|Invalid"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(HEAD + CLASSES + change)
    with pytest.raises(UsageError, match=message):
        load_recipe(str(path))


def test_a_positive_class_that_is_none_or_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(HEAD.replace('"a"', '"x"') + CLASSES)
    with pytest.raises(UsageError, match="positive_class: got 'x', expected one of"):
        load_recipe(str(path))
    path.write_text('name = "r"\narchitecture = "resnet18"\n' + CLASSES)
    with pytest.raises(UsageError, match="positive_class: is missing"):
        load_recipe(str(path))


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(
        UsageError, match=r"expected a TOML file or .*resnet18, resnet50, squeezenet1_1"
    ):
        load_recipe("alexnet")


def test_a_base_gives_what_the_recipe_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "below.toml").write_text(HEAD + CLASSES + "[fit]\nepochs = 7\nbatch_size = 5\n")
    above = tmp_path / "above.toml"
    above.write_text('base = "below"\nname = "above"\n[fit]\nepochs = 2\n')
    recipe = load_recipe(str(above))
    assert (recipe.name, recipe.architecture) == ("above", "resnet18")
    assert (recipe.fit.epochs, recipe.fit.batch_size) == (2, 5)
    above.write_text('base = "below"\npositive_class = "c"\n[classes]\nc = ["a"]\nd = ["b"]\n')
    assert [*load_recipe(str(above)).classes] == ["c", "d"]  # classes are never mixed
    above.write_text(
        'base = "plain_squeezenet1_1"\nname = "mine"\n'
    )  # shipped ones can be built on
    assert load_recipe(str(above)).classes == load_recipe("plain_squeezenet1_1").classes


def test_a_base_that_is_not_there_or_has_a_base_is_named(tmp_path: Path) -> None:
    above = tmp_path / "above.toml"
    above.write_text('base = "nowhere"\n')
    with pytest.raises(UsageError, match="base: got 'nowhere', expected a recipe beside this one"):
        load_recipe(str(above))
    (tmp_path / "middle.toml").write_text('base = "plain_squeezenet1_1"\n')
    above.write_text('base = "middle"\n')
    with pytest.raises(UsageError, match="middle has itself a base"):
        load_recipe(str(above))


def test_changes_reach_any_field_with_its_own_type() -> None:
    changes = [
        "fit.epochs=3",
        "fit.optimiser=sgd",
        "fit.learning_rate = find",
        "input.height=64",
        'data.views=["PA", "AP"]',
        "data.shares.val=0.3",
        "data.shares.train=0.7",
        "data.shares.test=0",
        "name=mine",
    ]
    recipe = load_recipe("plain_squeezenet1_1", changes)
    assert (recipe.name, recipe.fit.epochs, recipe.fit.optimiser) == ("mine", 3, "sgd")
    assert (recipe.fit.learning_rate, recipe.input.height) == ("find", 64)
    assert recipe.data.views == ("PA", "AP")
    assert recipe.data.shares == {"train": 0.7, "val": 0.3}
    assert recipe.fit.batch_size == load_recipe("plain_squeezenet1_1").fit.batch_size


def test_a_table_is_replaced_and_an_entry_of_it_added(tmp_path: Path) -> None:
    changes = ["fit.repeat_sources={}", "fit={epochs=3}", 'classes={well=["a"], sick=["b"]}']
    recipe = load_recipe("plain_squeezenet1_1", [*changes, "positive_class=sick"])
    assert recipe.fit.repeat_sources == {}
    assert recipe.classes == {"well": ["a"], "sick": ["b"]}
    assert recipe.fit == replace(
        load_recipe("plain_squeezenet1_1").fit, repeat_sources={}, epochs=3
    )
    one = ["soft_labels={a = 0.5}"]
    assert load_recipe("plain_squeezenet1_1", [*one, "soft_labels={}"]).soft_labels == {}
    more = load_recipe("plain_squeezenet1_1", ["fit.repeat_sources.NIH=2"]).fit.repeat_sources
    assert more == {"radiopaedia.org": 5, "NIH": 2}
    weights = ["fit.balance=weights", "fit.repeat={}"]
    assert load_recipe("paper_squeezenet1_1", weights).fit.repeat == {}
    above = tmp_path / "above.toml"
    above.write_text('base = "plain_squeezenet1_1"\n[fit.repeat_sources]\n')
    assert load_recipe(str(above)).fit.repeat_sources == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fit.epochs", "--set: got 'fit.epochs', expected NAME=VALUE"),
        ("fit..epochs=1", "expected NAME=VALUE"),
        ("fit.epochs=many", r"--set: fit\.epochs: got 'many', expected an integer"),
        ("fit.epoch=1", r"--set: fit\.epoch: no such setting"),
        ("fit=1", "--set: fit: got 1, expected a table"),
        ("positive_class=cat", "--set: positive_class: got 'cat'"),
    ],
)
def test_a_wrong_change_is_named(change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe("plain_squeezenet1_1", [change])


def test_every_setting_has_its_line_in_the_docstring() -> None:
    for kind in (Recipe, FitSettings, DataSettings):
        for name in kind.__dataclass_fields__:
            assert f"        {name}: " in (kind.__doc__ or ""), name


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ('a = ["a"]', r"classes: got \['a'\], expected two or more"),
        ('a = ["a"]\nb = []', r"classes\.b: got no labels"),
        ('a = ["a", "x"]\nb = ["x"]', r"classes\.b: 'x' is a label of 'a' already"),
    ],
)
def test_classes_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, classes: str, message: str
) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f"{HEAD}\n[classes]\n{classes}\n")
    with pytest.raises(UsageError, match=message):
        load_recipe(str(path))


def test_the_default_recipe_draws_a_test_split_and_splits_train_as_the_others_do() -> None:
    """Its first evaluation is on `test`; data that has `train` alone gets the same `val`."""
    shares = load_recipe("plain_squeezenet1_1").data.shares
    assert set(shares) == {"train", "val", "test"}
    others = DataSettings().shares
    assert shares["val"] / (shares["train"] + shares["val"]) == pytest.approx(others["val"])
