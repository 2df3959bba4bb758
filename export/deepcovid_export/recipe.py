"""A training recipe: one TOML file, read into frozen and checked settings."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from deepcovid_edge.errors import UsageError
from deepcovid_edge.manifest import InputSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).parent / "recipes"
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class AugmentSettings:
    """How far a training film is changed; 0 switches a change off.

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
        jpeg: Lowest quality of a JPEG round trip, 1 to 100; 0 for none.
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

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augment.flip: got {self.flip}, expected a probability, 0 to 1")
        if not 0 <= self.crop <= 0.5:
            raise ValueError(f"augment.crop: got {self.crop}, expected 0 to 0.5")
        if not 0 <= self.jpeg <= 100:
            raise ValueError(f"augment.jpeg: got {self.jpeg}, expected a quality, 0 to 100")


@dataclass(frozen=True)
class DataSettings:
    """Which films of a data set are used, and how a data set without splits is split.

    Attributes:
        views: Keep films of these views alone, such as `PA`; empty for every view.
        shares: Split -> share of the patients, where the data set names no splits; they sum to 1.
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
class FitSettings:
    """How the network is fitted.

    Attributes:
        epochs: Passes over the training films.
        batch_size: Films a step.
        learning_rate: Peak of the one-cycle schedule (Smith and Topin 2018).
        weight_decay: AdamW's decoupled weight decay.
        label_smoothing: As in torch's cross-entropy.
        balance: Weigh classes by the inverse of their frequency.
        average: Decay of the exponential moving average of the weights, a step; 0 for none.
        patience: Epochs without a better validation loss before training stops.
        precision: `fp32`, or `bf16` for mixed precision.
        seed: Seed of weights, order and augmentation.
    """

    epochs: int = 24
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.02
    label_smoothing: float = 0.0
    balance: bool = True
    average: float = 0.0
    patience: int = 12
    precision: str = "bf16"
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"fit.{name}: got {getattr(self, name)}, expected 1 or more")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"fit.precision: got {self.precision!r}, expected 'fp32' or 'bf16'")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run makes, apart from the films.

    Attributes:
        name: Name of the model that it makes.
        architecture: Name of the network.
        positive_class: The class that is looked for.
        classes: Class name -> labels of the data set that belong to it.
        sensitivity: Sensitivity on the validation films at which the threshold is set.
        license: Terms of use that the trained weights carry.
        data: Which films are used.
        input: Shape and resize rule.
        fit: How the network is fitted.
        augment: How far training films are changed.
    """

    name: str
    architecture: str
    positive_class: str
    classes: dict[str, list[str]]
    sensitivity: float = 0.98
    license: str = "research use only"
    data: DataSettings = field(default_factory=DataSettings)
    input: InputSpec = field(default_factory=InputSpec)
    fit: FitSettings = field(default_factory=FitSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)

    def __post_init__(self) -> None:
        if self.positive_class not in self.classes:
            raise ValueError(
                f"positive_class: got {self.positive_class!r}, expected one of {[*self.classes]}"
            )
        if not 0 < self.sensitivity <= 1:
            raise ValueError(f"sensitivity: got {self.sensitivity}, expected 0 to 1")

    def class_of(self, label: str) -> int | None:
        """Index of the class that a data set's label belongs to, or None."""
        for index, labels in enumerate(self.classes.values()):
            if label in labels:
                return index
        return None

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values for JSON and checkpoints."""
        values = asdict(self)
        values["input"]["resize"] = self.input.resize.value
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Build a recipe from plain values.

        Raises:
            ValueError: A setting is unknown, missing or out of range.
        """
        nested = {
            "data": DataSettings,
            "input": InputSpec,
            "fit": FitSettings,
            "augment": AugmentSettings,
        }
        plain = dict(values)
        for name, kind in nested.items():
            plain[name] = _settings(kind, plain.get(name, {}), f"{name}.")
        return _settings(cls, plain)


def _settings(kind: type[Settings], values: dict[str, Any], prefix: str = "") -> Settings:
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"{prefix}{unknown[0]}: no such setting; expected one of {', '.join(sorted(known))}"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(str(error)) from error


def load_recipe(name: str) -> Recipe:
    """Read a recipe that ships with the package, or a TOML file.

    Raises:
        UsageError: There is no such recipe, or one of its settings is wrong.
    """
    shipped = sorted(path.stem for path in SHIPPED.glob("*.toml"))
    path = SHIPPED / f"{name}.toml" if name in shipped else Path(name)
    if not path.is_file():
        raise UsageError(f"--recipe: got {name!r}, expected a TOML file or {', '.join(shipped)}")
    try:
        return Recipe.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError) as error:
        raise UsageError(f"{path}: {error}") from error
