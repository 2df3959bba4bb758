"""A training recipe: one TOML file, read into frozen and checked settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_edge.errors import UsageError
from deepcovid_edge.manifest import InputSpec, ResizeRule
from deepcovid_export.settings import assign, build_settings, check, merge, read_table

SHIPPED = Path(__file__).parent / "recipes"
_SMALL = 5 / 7
"""Sides of the images of the first epochs, as a share of the network's input."""


@dataclass(frozen=True)
class AugmentSettings:
    """How far a training image is changed; 0 switches a change off.

    Attributes:
        flip: Probability of mirroring left and right.
        rotate: Largest rotation either way, degrees.
        crop: Largest share of a side that is cropped away.
        stretch: Largest change of the aspect ratio, as a share.
        distort: Largest shift of a point by the smooth distortion, as a share of the side.
        contrast: Largest change of contrast and brightness, as a share.
        gamma: Largest natural logarithm of the gamma exponent.
        blur: Largest standard deviation of a Gaussian blur, pixels.
        noise: Largest standard deviation of added noise, grey levels.
        jpeg: Lowest quality of a JPEG round trip, 1 to 95; 0 for none.
        resolution: Reduce each image first to a random size, 1.14 to 2 times the network's input;
            else to twice the network's input.
        hide: Probability that the lungs are hidden and all classes are the right answer alike.
        square: Bring each image once to the square that a centre crop sees, at 8/7 of the network's
            input, and keep it in memory. Neither resolution nor shape then tells the source, and no
            epoch waits for files. Replaces `resolution`; needs `input.resize` to be `centre_crop`
            and an input of equal sides.
        zoom: Largest natural logarithm of the scale, either way, of both sides together.
        shift: Largest shift either way, as a share of the side.
        border: Fill what lies beyond the image at random with black, its edge or its mirror image;
            else with black.
        soften: Probability of reducing to 50 to 100 % of the side and enlarging again.
    """

    flip: float = 0.5
    rotate: float = 8.0
    crop: float = 0.12
    stretch: float = 0.1
    distort: float = 0.015
    contrast: float = 0.2
    gamma: float = 0.25
    blur: float = 1.0
    noise: float = 4.0
    jpeg: int = 40
    resolution: bool = True
    hide: float = 0.0
    square: bool = False
    zoom: float = 0.0
    shift: float = 0.0
    border: bool = False
    soften: float = 0.0

    def __post_init__(self) -> None:
        check(
            self,
            "augment.",
            ("flip hide soften", lambda it: 0 <= it <= 1, "a probability, 0 to 1"),
            ("zoom shift", lambda it: 0 <= it <= 0.5, "0 to 0.5"),
            ("crop", lambda it: 0 <= it <= 0.5, "0 to 0.5"),
            ("jpeg", lambda it: 0 <= it <= 95, "a quality, 0 to 95"),
            ("rotate stretch distort contrast gamma blur noise", lambda it: it >= 0, "0 or more"),
        )


@dataclass(frozen=True)
class ImageGroup:
    """Images that are drawn together: some labels of some sources.

    Attributes:
        name: Of the group, for tables.
        labels: Labels of the data set.
        source: Part of the source's name; empty for every source.
        share: Share of an epoch. 0 holds the group out: none of its images is fitted on, and its
            images of `train` help to choose, as those of `val` do.
    """

    name: str
    labels: tuple[str, ...]
    source: str = ""
    share: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        check(self, "data.groups.", ("share", lambda it: 0 <= it <= 1, "0 to 1"))

    def holds(self, label: str, source: str) -> bool:
        """Whether an image of that label and source belongs to the group."""
        return label in self.labels and self.source in source


@dataclass(frozen=True)
class DataSettings:
    """Which images of a data set are used, and how a data set without splits is split.

    Attributes:
        groups: Which images an epoch draws how often. An image belongs to the first group that
            holds it; one that no group holds is excluded. Empty: each image once.
        views: Use only images of these views, such as `PA`, and an empty text for images of
            unknown view. Without any: every view.
        shares: Split to share of the patients, where the data set names no splits; they sum to 1,
            and 0 is for no such split.
        visible: Exclude images of the positive class on which a reader saw no abnormality (column
            `no_visible_abnormality` of a manifest), from fitting and choosing: for a model that
            claims an appearance, not the outcome of a test.
    """

    views: tuple[str, ...] = ()
    visible: bool = False
    shares: Mapping[str, float] = field(default_factory=lambda: {"train": 0.85, "val": 0.15})
    groups: tuple[ImageGroup, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "shares", {name: it for name, it in self.shares.items() if it})
        total = sum(group.share for group in self.groups)
        if self.groups and abs(total - 1) > 1e-6:
            raise ValueError(f"data.groups: got shares that sum to {total:g}, expected 1")
        if len({group.name for group in self.groups}) < len(self.groups):
            raise ValueError("data.groups: got a name twice, expected a name for each")
        if not {"train", "val"} <= set(self.shares) <= {"train", "val", "test"}:
            raise ValueError(
                f"data.shares: got {[*self.shares]}, expected train, val and perhaps test"
            )
        if min(self.shares.values()) <= 0 or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(
                f"data.shares: got {dict(self.shares)}, expected shares of 0 or more that sum to 1"
            )

    def group_of(self, label: str, source: str) -> int | None:
        """Index of the group of an image, or None."""
        holders = (at for at, group in enumerate(self.groups) if group.holds(label, source))
        return next(holders, None)

    def split_of(self, image: LabelledImage) -> str:
        """The split of an image in a run: one of a group without a share is never fitted on."""
        group = self.group_of(image.label, image.source)
        held_out = group is not None and self.groups[group].share == 0
        return "val" if held_out and image.split == "train" else image.split

    def why_excluded(self, image: LabelledImage, *, positive: bool) -> str:
        """Why a run does not use an image whose label the recipe knows; empty where it does."""
        if self.groups and self.group_of(image.label, image.source) is None:
            return f"label {image.label}: no group of the recipe holds its source"
        if self.visible and image.clear and positive:
            return f"label {image.label} without a visible abnormality"
        if self.views and image.view.casefold() not in {view.casefold() for view in self.views}:
            known = f"view {image.view}" if image.view else "unknown view"
            taken = ", ".join(view or "unknown" for view in self.views)
            return f"{known}; the recipe takes {taken}"
        return ""


@dataclass(frozen=True)
class RangeSettings:
    """What the indeterminate range of a model that was chosen on several sources promises.

    Attributes:
        missed: Share of a source's new positives that may lie below the range.
        alarms: Share of a source's new negatives that may lie above it.
    """

    missed: float = 0.05
    alarms: float = 0.1

    def __post_init__(self) -> None:
        check(self, "range.", ("missed alarms", lambda it: 0 < it < 1, "between 0 and 1"))


@dataclass(frozen=True)
class FindSettings:
    """The learning-rate range test (Smith 2017, arXiv 1506.01186, section 3.3).

    Attributes:
        lowest: Learning rate of the first step.
        highest: Learning rate of the last step; it grows by a constant factor.
        steps: Most steps; the test ends early where the loss has grown fourfold.
    """

    lowest: float = 1e-6
    highest: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        check(
            self,
            "find.",
            ("lowest", lambda it: 0 < it < self.highest, "above 0, below find.highest"),
            ("steps", lambda it: it >= 2, "2 or more"),
        )


@dataclass(frozen=True)
class FitSettings:
    """How the network is fitted.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in a step, over all processes.
        start: Weights to start from, except the class maps: `imagenet`, or `scratch` for random.
        layers: Layers that are fitted: `last` (only the class maps), `last_stage` or `all`.
        optimiser: `adamw`, `adam` or `sgd`.
        learning_rate: Constant, or the peak of the one-cycle schedule (Smith and Topin 2018, arXiv
            1708.07120); `find` for the suggestion of the range test.
        schedule: `one_cycle` or `constant`.
        warm_up: Share of the steps in which the one-cycle schedule rises.
        momentum: Momentum of `sgd`.
        weight_decay: Decoupled with `adamw`; added to the gradient with the others.
        clip: Largest norm of a step's gradient; 0 for any.
        label_smoothing: As in torch's cross-entropy.
        balance: Against rare classes: `weights` weighs images by the inverse of their class's
            frequency, `upsample` draws images of rare classes more often, each changed differently.
        repeat: With `upsample`: class to times an epoch that each of its images is drawn; once for
            a class that is not named. Empty makes all classes equally frequent.
        repeat_sources: Part of a source's name to times an epoch that each of its images is drawn,
            whatever `balance` is: for a rare source of a class that comes mostly from elsewhere.
        images: Images in an epoch, drawn by `data.groups`; without groups each image is drawn once.
        map_weight: Weight of the loss of the activation map against readers' boxes, beside that of
            the classes; 0 for none. See `training.loss.map_loss`.
        map_positive: Weight of what lies in a box in that loss.
        map_offset: Value of the difference map that stands for a probability of one half. The mean
            of the map is the logit, and most of a positive image lies outside its boxes: without an
            offset the two losses pull the map's mean apart.
        small_epochs: First epochs that are fitted at 5/7 of the input's sides, in half the time.
        average: Decay of the exponential moving average of the weights, per step; 0 for none.
        patience: Epochs without a better validation loss before training stops.
        precision: `fp32`, or `bf16` for mixed precision.
        seed: Seed of weights, order and augmentation.
    """

    epochs: int = 24
    batch_size: int = 32
    start: Literal["imagenet", "scratch"] = "imagenet"
    layers: Literal["all", "last_stage", "last"] = "all"
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float | Literal["find"] = 5e-4
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    warm_up: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 0.02
    clip: float = 0.0
    label_smoothing: float = 0.0
    balance: Literal["weights", "upsample", "none"] = "weights"
    repeat: Mapping[str, int] = field(default_factory=dict)
    repeat_sources: Mapping[str, int] = field(default_factory=dict)
    images: int = 0
    map_weight: float = 0.0
    map_positive: float = 2.0
    map_offset: float = 0.0
    small_epochs: int = 0
    average: float = 0.0
    patience: int = 12
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 1

    def __post_init__(self) -> None:
        check(
            self,
            "fit.",
            ("epochs batch_size patience", lambda it: it >= 1, "1 or more"),
            ("momentum label_smoothing average", lambda it: 0 <= it < 1, "0 to below 1"),
            (
                "weight_decay clip seed images map_weight small_epochs",
                lambda it: it >= 0,
                "0 or more",
            ),
            ("map_positive", lambda it: it > 0, "above 0"),
            ("warm_up", lambda it: 0 < it < 1, "between 0 and 1"),
            ("learning_rate", lambda it: it == "find" or it > 0, "above 0"),
            (
                "repeat repeat_sources",
                lambda it: all(times >= 1 for times in it.values()),
                "1 or more for each",
            ),
        )
        if self.repeat and self.balance != "upsample":
            raise ValueError(
                f"fit.repeat: got {dict(self.repeat)} with balance = {self.balance!r}, expected "
                'balance = "upsample"'
            )


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run, except the images.

    Attributes:
        name: Name of the model that it makes.
        architecture: Name of the network.
        positive_class: The class that is looked for.
        classes: Class name to labels of the data set that belong to it.
        soft_labels: Label of the data set to the probability of the positive class that a training
            image of it is fitted to. Such labels are in no class: they are never counted right or
            wrong, neither in choosing nor in `evaluate`.
        sensitivity: Share of new positive images that the threshold, chosen on the validation
            images, is expected to find.
        temperature: Divide the logits by the temperature that fits the validation images best, so
            that probabilities are calibrated; maps are divided too.
        license: Terms of use of the trained weights.
        range: What the indeterminate range promises, where several sources have enough images.
        data: Which images are used.
        input: Shape and resize rule.
        find: How a learning rate is found, where `fit.learning_rate` is `find`.
        fit: How the network is fitted.
        augment: How far training images are changed.
    """

    name: str
    architecture: str
    positive_class: str
    classes: dict[str, list[str]]
    soft_labels: Mapping[str, float] = field(default_factory=dict)
    sensitivity: float = 0.98
    temperature: bool = False
    license: str = "research use only"
    range: RangeSettings = field(default_factory=RangeSettings)
    data: DataSettings = field(default_factory=DataSettings)
    input: InputSpec = field(default_factory=InputSpec)
    find: FindSettings = field(default_factory=FindSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)

    def __post_init__(self) -> None:
        self._check_classes()
        if self.positive_class not in self.classes:
            raise ValueError(
                f"positive_class: got {self.positive_class!r}, expected one of {[*self.classes]}"
            )
        check(
            self,
            "",
            ("sensitivity", lambda it: 0 < it <= 1, "0 to 1"),
            ("soft_labels", lambda it: all(0 <= p <= 1 for p in it.values()), "0 to 1 for each"),
        )
        self._check_groups()
        self._check_square()
        self._check_small_epochs()
        if unknown := sorted(set(self.fit.repeat) - set(self.classes)):
            raise ValueError(f"fit.repeat: got {unknown[0]!r}, expected one of {[*self.classes]}")

    def _check_classes(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(f"classes: got {[*self.classes]}, expected two or more")
        owners: dict[str, str] = {}
        for name, labels in self.classes.items():
            if not labels:
                raise ValueError(f"classes.{name}: got no labels, expected one or more")
            for label in labels:
                if owners.setdefault(label, name) != name:
                    raise ValueError(
                        f"classes.{name}: {label!r} is a label of {owners[label]!r} already"
                    )

    def _check_groups(self) -> None:
        owned = {label for labels in self.classes.values() for label in labels}
        if twice := sorted(owned & set(self.soft_labels)):
            raise ValueError(f"soft_labels: {twice[0]!r} is a label of a class already")
        if self.soft_labels and len(self.classes) > 2:
            raise ValueError(f"soft_labels: got {len(self.classes)} classes, expected two")
        asked = {label for group in self.data.groups for label in group.labels}
        if unknown := sorted(asked - owned - set(self.soft_labels)):
            raise ValueError(f"data.groups: {unknown[0]!r} is in no class and no soft label")
        if bool(self.data.groups) != bool(self.fit.images):
            raise ValueError(
                f"fit.images: got {self.fit.images} with {len(self.data.groups)} groups of "
                "data.groups, expected both or neither"
            )

    def _check_square(self) -> None:
        """`augment.square` is a centre crop: other inputs would show `infer` other pictures."""
        spec = self.input
        is_square = spec.resize is ResizeRule.CENTRE_CROP and spec.height == spec.width
        if self.augment.square and not is_square:
            raise ValueError(
                f"augment.square: got true with input.resize = {spec.resize.value!r} and an input "
                f"of {spec.height} x {spec.width}, expected {ResizeRule.CENTRE_CROP.value!r} and "
                "equal sides: set augment.square to false"
            )

    def _check_small_epochs(self) -> None:
        if not self.fit.small_epochs:
            return
        try:
            smaller(self.input)
        except ValueError as error:
            raise ValueError(
                f"fit.small_epochs: got {self.fit.small_epochs}, whose input of 5/7 of the sides "
                f"is too small ({error}): set it to 0, or a larger input"
            ) from error

    @property
    def positive_index(self) -> int:
        """Index of the positive class."""
        return [*self.classes].index(self.positive_class)

    def class_of(self, label: str) -> int | None:
        """Index of the class that a data set's label belongs to, or None."""
        owners = (at for at, labels in enumerate(self.classes.values()) if label in labels)
        return next(owners, None)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values for JSON and checkpoints."""
        values = asdict(self)
        values["input"]["resize"] = self.input.resize.value
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Build a recipe from plain values.

        Raises:
            ValueError: A setting is unknown, missing, of another type or out of range.
        """
        return build_settings(cls, values)


def smaller(spec: InputSpec) -> InputSpec:
    """The input of the first, quicker epochs (`fit.small_epochs`).

    Raises:
        ValueError: It is smaller than a network takes.
    """
    return replace(spec, height=round(spec.height * _SMALL), width=round(spec.width * _SMALL))


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe that ships with the package, or a TOML file.

    Args:
        name: Name of a shipped recipe, or a file.
        changes: Settings to change, such as `fit.epochs=1`.

    Raises:
        UsageError: There is no such recipe, or one of its settings is wrong.
    """
    path = _recipe_file(name)
    try:
        values = _read(path)
        recipe = Recipe.from_dict(values)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    try:
        for change in changes:
            values = assign(Recipe, values, change)
        return Recipe.from_dict(values) if changes else recipe
    except ValueError as error:
        raise UsageError(f"--set: {error}") from error


def _recipe_file(name: str) -> Path:
    shipped = sorted(path.stem for path in SHIPPED.glob("*.toml"))
    path = SHIPPED / f"{name}.toml" if name in shipped else Path(name)
    if not path.is_file():
        raise UsageError(f"--recipe: got {name!r}, expected a TOML file or {', '.join(shipped)}")
    return path


def _read(path: Path) -> dict[str, Any]:
    """A recipe's values on top of those of its `base`, which has no base itself."""
    values = read_table(path)
    if "base" not in values:
        return values
    base = path.parent / f"{values.pop('base')}.toml"
    if not base.is_file():
        base = SHIPPED / base.name
    if not base.is_file():
        raise ValueError(
            f"base: got {base.stem!r}, expected a recipe beside this one or a shipped one"
        )
    below = read_table(base)
    if "base" in below:
        raise ValueError(f"base: {base.stem} has itself a base; expected a recipe without one")
    return merge(Recipe, below, values)
