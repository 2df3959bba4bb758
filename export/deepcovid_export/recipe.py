"""A training recipe: one TOML file, read into frozen and checked settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from deepcovid_edge.errors import UsageError
from deepcovid_edge.manifest import InputSpec
from deepcovid_export.settings import build_settings, check, merge, parse_assignment, read_table

SHIPPED = Path(__file__).parent / "recipes"


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

    def __post_init__(self) -> None:
        check(
            self,
            "augment.",
            ("flip hide", lambda it: 0 <= it <= 1, "a probability, 0 to 1"),
            ("crop", lambda it: 0 <= it <= 0.5, "0 to 0.5"),
            ("jpeg", lambda it: 0 <= it <= 95, "a quality, 0 to 95"),
            ("rotate stretch distort contrast gamma blur noise", lambda it: it >= 0, "0 or more"),
        )


@dataclass(frozen=True)
class DataSettings:
    """Which images of a data set are used, and how a data set without splits is split.

    Attributes:
        views: Use only images of these views, such as `PA`; empty for every view.
        shares: Split to share of the patients, where the data set names no splits; they sum to 1.
    """

    views: tuple[str, ...] = ()
    shares: Mapping[str, float] = field(default_factory=lambda: {"train": 0.85, "val": 0.15})

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        if not {"train", "val"} <= set(self.shares) <= {"train", "val", "test"}:
            raise ValueError(
                f"data.shares: got {[*self.shares]}, expected train, val and perhaps test"
            )
        if min(self.shares.values()) <= 0 or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(
                f"data.shares: got {dict(self.shares)}, expected shares above 0 that sum to 1"
            )


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
            ("weight_decay clip seed", lambda it: it >= 0, "0 or more"),
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
        sensitivity: Share of new positive images that the threshold, chosen on the validation
            images, is expected to find.
        license: Terms of use of the trained weights.
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
    sensitivity: float = 0.98
    license: str = "research use only"
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
        check(self, "", ("sensitivity", lambda it: 0 < it <= 1, "0 to 1"))
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
            values = merge(values, parse_assignment(change))
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
    if "classes" in values:
        below.pop("classes", None)  # the classes of two recipes are never mixed
    return merge(below, values)
