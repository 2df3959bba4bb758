"""What a model file says about itself: classes, threshold, input and where it came from.

The manifest is JSON in `metadata_props["deepcovid_edge"]` of the ONNX file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.files import read_named
from deepcovid_edge.models.graph.protobuf import blocks, text

VERSION = "0.1.0"
"""Of this software; models and results name it (`created_with`)."""
METADATA_KEY = "deepcovid_edge"
SCHEMA_VERSION = 1

# Field numbers of onnx.proto: ModelProto.metadata_props, StringStringEntryProto.key and .value.
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2


class ResizeRule(str, Enum):
    """How an image of any shape becomes the network's rectangle."""

    CENTRE_CROP = "centre_crop"
    """Shorter side to the network's size, then the centre (the published Deep-COVID code)."""
    SQUASH = "squash"
    """Both sides to the network's size; the aspect ratio is lost."""
    LETTERBOX = "letterbox"
    """Longer side to the network's size; the rest stays black."""


@dataclass(frozen=True)
class InputSpec:
    """The network's input.

    Attributes:
        height: Rows, pixels.
        width: Columns, pixels.
        resize: How an image is brought to that shape.
        interpolation: Always `area` (OpenCV's INTER_AREA), stated because it decides pixels.
    """

    height: int = 224
    width: int = 224
    resize: ResizeRule = ResizeRule.CENTRE_CROP
    interpolation: str = "area"

    def __post_init__(self) -> None:
        object.__setattr__(self, "resize", ResizeRule(self.resize))
        if not (32 <= self.height <= 4096 and 32 <= self.width <= 4096):
            raise ValueError(f"input: got {self.height} x {self.width}, expected 32 to 4096")
        if self.interpolation != "area":
            raise ValueError(f"input.interpolation: got {self.interpolation!r}, expected 'area'")


@dataclass(frozen=True)
class IndeterminateRange:
    """Probabilities too close to the threshold to call.

    Attributes:
        low: Images below it are negative.
        high: Images from it on are positive; those from `low` on and below `high` are
            indeterminate.
        origin: Rule, data and figures by which it was chosen.
    """

    low: float
    high: float
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(
                f"indeterminate_range: got {self.low} to {self.high}, "
                "expected 0 <= low <= high <= 1"
            )

    def holds(self, probability: float) -> bool:
        """Whether an image of that probability is too close to call."""
        return self.low <= probability < self.high


def limits_of(threshold: float, span: IndeterminateRange | None) -> dict[str, float]:
    """What decides: an indeterminate range as `low` and `high`, or else the `threshold`."""
    return {"low": span.low, "high": span.high} if span else {"threshold": threshold}


@dataclass(frozen=True)
class ModelManifest:
    """Everything a runtime must know of a model beyond its graph.

    Attributes:
        name: Name of the model, such as `squeezenet1_1`.
        architecture: Name of the network in the field, such as `resnet18`.
        classes: Class names in the order of the logits.
        positive_class: The class whose probability is compared with the threshold.
        threshold: Probability from which an image is called positive, 0 to 1.
        threshold_origin: Rule, data and figures by which the threshold was chosen.
        indeterminate_range: Probabilities too close to the threshold to call; None for none.
        input: Shape and resize rule.
        precision: `fp32`, `fp16` or `int8`.
        variant: What `quantize` made of the model: `fp32`, `fp16`, `int8-cpu`, `int8-tensorrt`;
            the precision where it is not given.
        training: Recipe, data description, metrics and seed.
        quantization: Library, calibration images, layers left in higher precision, the verdict of
            the equivalence check and of `verify`; empty for fp32.
        equivalence: Rules of `verify` that differ from its defaults.
        ood: Limits on how unlike its training images an image may be (see
            `decision.out_of_distribution`), and how they were found; empty for a model that
            classifies any image.
        parent_sha256: SHA-256 of the file this one was made from.
        license: Terms of use of the weights.
        created_with: Versions of the software that wrote the file.
        schema_version: Version of this structure.
    """

    name: str
    architecture: str
    classes: tuple[str, ...]
    positive_class: str
    threshold: float
    threshold_origin: Mapping[str, Any] = field(default_factory=dict)
    indeterminate_range: IndeterminateRange | None = None
    input: InputSpec = field(default_factory=InputSpec)
    precision: str = "fp32"
    variant: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    equivalence: Mapping[str, Any] = field(default_factory=dict)
    ood: Mapping[str, Any] = field(default_factory=dict)
    parent_sha256: str | None = None
    license: str = ""
    created_with: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "variant", self.variant or self.precision)
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: got {self.classes}, expected two or more different names")
        if self.positive_class not in self.classes:
            raise ValueError(
                f"positive_class: got {self.positive_class!r}, expected one of {self.classes}"
            )
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold: got {self.threshold}, expected 0 to 1")
        if (
            self.indeterminate_range
            and not self.indeterminate_range.low <= self.threshold <= self.indeterminate_range.high
        ):
            raise ValueError(
                f"indeterminate_range: got {self.indeterminate_range.low} to "
                f"{self.indeterminate_range.high}, expected to hold the threshold {self.threshold}"
            )
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version: got {self.schema_version}, this version reads {SCHEMA_VERSION}: "
                "install the deepcovid-edge that wrote the model, or newer"
            )

    @property
    def positive_index(self) -> int:
        """Index of the positive class among the logits."""
        return self.classes.index(self.positive_class)

    @property
    def is_derived(self) -> bool:
        """Whether it is a variant of another model, in lower precision."""
        return self.precision != "fp32" and self.parent_sha256 is not None

    @property
    def is_verified(self) -> bool:
        """Whether a variant in lower precision was found to decide as its parent does.

        On images that had no part in making it (`quantize --verify`).
        """
        return bool(self.quantization.get("verified", {}).get("verdict") == "unchanged")

    @property
    def is_proved(self) -> bool:
        """Whether its file needs no `W_UNVERIFIED`: it is no variant, or a verified one."""
        return self.is_verified or not self.is_derived

    @property
    def positive_labels(self) -> frozenset[str]:
        """Labels of a data set that belong to the positive class, by the training recipe."""
        grouped = self.training.get("recipe", {}).get("classes", {})
        return frozenset({self.positive_class, *grouped.get(self.positive_class, ())})

    @property
    def known_labels(self) -> frozenset[str]:
        """Labels of a data set that belong to a class, by the training recipe."""
        grouped = self.training.get("recipe", {}).get("classes", {})
        return frozenset(self.classes).union(*grouped.values())

    @property
    def soft_labels(self) -> frozenset[str]:
        """Labels that the model was trained with and that are never counted right or wrong."""
        return frozenset(self.training.get("recipe", {}).get("soft_labels", ()))

    def to_json(self) -> str:
        """The manifest as JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, content: str) -> ModelManifest:
        """Parse and check a manifest.

        Raises:
            ModelFileError: The text is no JSON, or a field is missing or out of range.
        """
        try:
            values = json.loads(content)
            known = {item.name for item in fields(cls)}
            values = {name: value for name, value in values.items() if name in known}
            spec, span = values["input"], values["indeterminate_range"]
            _check_kinds(values)
            values["input"] = InputSpec(**spec)
            values["indeterminate_range"] = None if span is None else IndeterminateRange(**span)
            _check_stated(spec, InputSpec, "input.")
            return cls(**values)
        except KeyError as error:
            raise ModelFileError(f"manifest: no {error}") from error
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ModelFileError(f"manifest: {error}") from error


def _check_kinds(values: Mapping[str, Any]) -> None:
    """Reject what would pass as something else: `true` as 1, a word as a list of letters."""
    for name, value in values.items():
        check_kind(name, value, _KINDS[name])
    for name in values["classes"]:
        check_kind("classes", name, (str,))
    for name in ("low", "high") if values["indeterminate_range"] else ():
        check_kind(f"indeterminate_range.{name}", values["indeterminate_range"][name], NUMBER)
    for name in {"height", "width"} & values["input"].keys():
        check_kind(f"input.{name}", values["input"][name], (int,))
    _check_stated(values, ModelManifest, "")


def check_kind(name: str, value: object, kinds: tuple[type, ...]) -> None:
    """Check the type of a value of a JSON document.

    Raises:
        ValueError: It is of none of these; `true` and `false` are no numbers.
    """
    if not isinstance(value, kinds) or isinstance(value, bool):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name}: got {str(value)[:40]!r}, expected {expected}")


def _check_stated(values: Mapping[str, Any], kind: type, prefix: str) -> None:
    """Check that what decides is there: a default would stand for what is missing."""
    needed = [item.name for item in fields(kind) if item.name not in _OPTIONAL]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"no {prefix}{missing[0]}")


NUMBER = (int, float)
_TEXT, _FACTS, _NONE = (str,), (dict,), type(None)
_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "architecture", "positive_class", "precision"), _TEXT),
    **dict.fromkeys(("variant", "license"), _TEXT),
    **dict.fromkeys(("threshold_origin", "input", "training", "quantization"), _FACTS),
    **dict.fromkeys(("equivalence", "ood", "created_with"), _FACTS),
    "classes": (list,),
    "threshold": NUMBER,
    "indeterminate_range": (dict, _NONE),
    "parent_sha256": (str, _NONE),
    "schema_version": (int,),
}
_OPTIONAL = {"license", "created_with", "training", "threshold_origin", "parent_sha256"}
"""Fields that say where a model came from, and decide nothing."""


def read_manifest(path: Path) -> ModelManifest:
    """Read the manifest inside an ONNX file.

    Raises:
        NotThereError: The file cannot be opened.
        ModelFileError: The file is no ONNX model, or carries no valid manifest.
    """
    data = memoryview(read_named(path))
    try:
        metadata = dict(_metadata_props(data))
    except ValueError as error:
        raise ModelFileError(
            f"{path}: not an ONNX model ({error}), expected a file of `deepcovid-edge export`"
        ) from error
    if METADATA_KEY not in metadata:
        raise ModelFileError(
            f"{path}: ONNX model without a deepcovid_edge manifest, so classes, threshold and "
            "input are unknown: make it with `deepcovid-edge export`"
        )
    try:
        return ModelManifest.from_json(metadata[METADATA_KEY])
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _metadata_props(model: memoryview) -> Iterator[tuple[str, str]]:
    for entry in blocks(model, _METADATA_PROPS):
        pair = [next((text(value) for value in blocks(entry, part)), "") for part in (_KEY, _VALUE)]
        yield pair[0], pair[1]
