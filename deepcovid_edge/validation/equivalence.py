"""The rules of the equivalence check: when a candidate counts as unchanged."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from deepcovid_edge.errors import UsageError
from deepcovid_edge.manifest import ModelManifest


@dataclass(frozen=True)
class EquivalenceRules:
    """When a candidate counts as unchanged. A manifest's `equivalence` may set other values.

    Attributes:
        max_flips: Largest share of images whose decision turns, and of those that the
            out-of-distribution limits of one model alone reject.
        max_auc_change: Largest change of the area under the curve, either way.
        smallest_change: Largest share of its class that one image may be, more than 0: a smaller
            change of sensitivity or specificity cannot show.
        paired_interval: Whether the paired 95 % intervals of the changes of sensitivity and
            specificity must hold zero.
        margin: How far sensitivity and specificity may be lower, by the lower ends of these
            intervals; else there are too few images (a non-inferiority margin).
        min_heatmap_correlation: Smallest median of the rank correlations of heat maps, where maps
            were compared.
    """

    max_flips: float = 0.01
    max_auc_change: float = 0.003
    smallest_change: float = 0.01
    paired_interval: bool = True
    margin: float = 0.05
    min_heatmap_correlation: float = 0.95

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise UsageError(f"equivalence.{name}: got {value}, expected 0 to 1")
        if not self.smallest_change:
            raise UsageError("equivalence.smallest_change: got 0, expected more than 0")

    @classmethod
    def of(cls, manifest: ModelManifest, **changes: Any) -> EquivalenceRules:
        """The rules of a model's manifest, with changes; None changes nothing."""
        known = {item.name for item in fields(cls)}
        stated = {name: value for name, value in manifest.equivalence.items() if name in known}
        given = {name: value for name, value in changes.items() if value is not None}
        return cls(**{**stated, **given})
