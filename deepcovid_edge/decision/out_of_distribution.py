"""Is a film like those that a model learned from? The gate for what is out of distribution.

A model with a gate has one output more, `unlikeness` of shape (batch, parts): for each way of being
unlike, 0 for the median film of `val` and 1 for its 99th percentile. The manifest's `familiarity`
says which parts these are and from where on a film is not judged.
`deepcovid_export.decision.fit_ood` fits them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.errors import ModelFileError
from deepcovid_edge.manifest import ModelManifest
from deepcovid_edge.reasons import Caution, Reason

OUTPUT = "unlikeness"
PARTS = {"turned": Reason.TURNED, "foreign": Reason.OOD}
"""Ways of being unlike, and the reason that each one gives."""
REFUSE, WARN = "refuse", "warn"
CHOICES = (REFUSE, WARN)
"""Values of `--ood`: what becomes of a film beyond the limit."""


@dataclass(frozen=True)
class FamiliarityGate:
    """The limits of a model.

    Attributes:
        parts: Names of the columns of `unlikeness`, of `PARTS`.
        limit: A film with a part above it is not judged.
        strict_limit: The same for a film whose header does not say that it is a frontal chest film.
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
    def of(cls, manifest: ModelManifest) -> FamiliarityGate | None:
        """The gate of a model, or None for one that judges any film.

        Raises:
            ModelFileError: The manifest's `familiarity` is not what this version knows.
        """
        stated = manifest.familiarity
        if not stated:
            return None
        try:
            parts = tuple(stated["parts"])
            return cls(parts, float(stated["limit"]), float(stated["strict_limit"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{manifest.name}: familiarity: {error}") from error

    def reason(self, unlikeness: Sequence[float], warnings: Collection[str] = ()) -> Reason | None:
        """Why a film is not like those that the model learned from, or None.

        Args:
            unlikeness: What the graph says of the film, a number for each part.
            warnings: Codes of what is known of the film.

        Returns:
            The reason of the part that is highest, if it is above the limit.
        """
        if not all(map(math.isfinite, unlikeness)):
            return Reason.RESULT
        limit = self.strict_limit if Caution.NO_VIEW.code in warnings else self.limit
        highest, part = max(zip(unlikeness, self.parts, strict=True), key=itemgetter(0))
        return PARTS[part] if highest > limit else None

    def beyond(self, unlikeness: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether films lie above the limit; `unlikeness` is of shape (N, parts)."""
        within: NDArray[np.bool_] = unlikeness.max(axis=1) <= self.limit
        return ~within  # what is no number is not within


def check_output(manifest: ModelManifest, outputs: Iterable[str], source: object) -> None:
    """Check that a model whose manifest states a gate has its output.

    Raises:
        ModelFileError: It has not, or the manifest's limits are none.
    """
    if FamiliarityGate.of(manifest) and OUTPUT not in outputs:
        raise ModelFileError(
            f"{source}: no output {OUTPUT}, its manifest states an out-of-distribution gate: "
            "export the model again"
        )
