"""Is an image like those that a model learned from? Limits on its out-of-distribution scores.

A model with out-of-distribution limits has one output more, `ood_scores` of shape (batch, parts):
for each way of being unlike, 0 for the median image of `val` and 1 for its 99th percentile. The
manifest's `ood` says which parts these are and from where on an image is not assessed.
`deepcovid_export.decision.fit_ood` fits them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.manifest import NUMBER, ModelManifest, check_kind
from deepcovid_edge.reasons import Reason, WarningCode

if TYPE_CHECKING:  # the command line reads the choices of `--ood` here, without numpy
    import numpy as np
    from numpy.typing import NDArray

OUTPUT = "ood_scores"
_VIEW_IN_DOUBT = frozenset({WarningCode.NO_VIEW.code, WarningCode.NOT_UNDERSTOOD.code})
PARTS = {"turned": Reason.TURNED, "unrecognisable": Reason.OOD, "child": Reason.AGE}
"""Ways of being unlike, and the reason that each one gives."""
_NEVER_STRICT = ("child",)
"""Whose limit does not depend on what is known of the view."""
REJECT, WARN = "reject", "warn"
CHOICES = (REJECT, WARN)
"""Values of `--ood`: what becomes of an image beyond the limit."""


@dataclass(frozen=True)
class OodLimits:
    """The limits of a model.

    Attributes:
        parts: Names of the columns of `ood_scores`, of `PARTS`.
        limit: An image with a part above it is not assessed.
        strict_limit: The same for an image whose header does not say that it is a frontal chest
            radiograph.
    """

    parts: tuple[str, ...]
    limit: float
    strict_limit: float

    def __post_init__(self) -> None:
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise ValueError(f"parts: got {self.parts}, expected some of {tuple(PARTS)}")
        if not (0 < self.strict_limit <= self.limit and math.isfinite(self.limit)):
            raise ValueError(
                f"limits: got {self.strict_limit} and {self.limit}, expected 0 < strict <= limit"
            )

    @classmethod
    def of(cls, manifest: ModelManifest) -> OodLimits | None:
        """The out-of-distribution limits of a model, or None for one that classifies any image.

        Raises:
            ModelFileError: The manifest's `ood` is not what this version knows.
        """
        stated = manifest.ood
        if not stated:
            return None
        try:
            check_kind("parts", stated["parts"], (list, tuple))
            parts = tuple(stated["parts"])
            for name in ("limit", "strict_limit"):
                check_kind(name, stated[name], NUMBER)
            return cls(parts, float(stated["limit"]), float(stated["strict_limit"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelFileError(f"{manifest.name}: ood: {error}") from error

    def reason(self, ood_scores: Sequence[float], warnings: Collection[str] = ()) -> Reason | None:
        """Why an image is not like those that the model learned from, or None.

        Args:
            ood_scores: What the graph says of the image, a number for each part.
            warnings: Codes of what is known of the image.

        Returns:
            The reason of the highest part that is above its limit.

        Raises:
            ModelFileError: The graph gives another number of scores than the manifest names.
        """
        if len(ood_scores) != len(self.parts):
            raise ModelFileError(
                f"ood: the graph gives {len(ood_scores)} scores, its manifest names "
                f"{', '.join(self.parts)}: export the model again"
            )
        if not all(map(math.isfinite, ood_scores)):
            return Reason.RESULT
        in_doubt = not _VIEW_IN_DOUBT.isdisjoint(warnings)
        beyond = [
            (score, part)
            for score, part in zip(ood_scores, self.parts, strict=True)
            if score > (self.strict_limit if in_doubt and part not in _NEVER_STRICT else self.limit)
        ]
        return PARTS[max(beyond, key=itemgetter(0))[1]] if beyond else None

    def beyond(self, ood_scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether images lie above the limit; `ood_scores` is of shape (N, parts)."""
        within: NDArray[np.bool_] = ood_scores.max(axis=1) <= self.limit
        return ~within  # NaN compares false, so it lies beyond the limit


def check_output(manifest: ModelManifest, outputs: Iterable[str], source: object) -> None:
    """Check that a model whose manifest states out-of-distribution limits has its output.

    Raises:
        ModelFileError: It has not, or the manifest's limits are none.
    """
    if OodLimits.of(manifest) and OUTPUT not in outputs:
        raise ModelFileError(
            f"{source}: no output {OUTPUT}, although its manifest states out-of-distribution "
            "limits: export the model again"
        )
