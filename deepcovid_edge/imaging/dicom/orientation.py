"""Turn an image upright where its header says without doubt how it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.imaging.radiograph import Grey
from deepcovid_edge.reasons import WarningCode

# Where rows run to (their first letter), where columns run to -> quarter turns counter-clockwise
# that let columns run to the feet (PS3.3, C.7.6.1.1.1).
_TURNS: dict[tuple[str, ...], int] = {
    ("L", "H"): 2,
    ("R", "H"): 2,
    ("F", "L"): 3,
    ("F", "R"): 3,
    ("H", "L"): 1,
    ("H", "R"): 1,
}


def lies_on_its_side(orientation: tuple[str, ...]) -> bool:
    """Whether `upright` makes columns of the rows."""
    return _TURNS.get(orientation, 0) % 2 == 1


def upright(image: Grey, orientation: tuple[str, ...]) -> tuple[Grey, list[WarningCode]]:
    r"""The image with the feet below.

    An image that is stated to be mirrored (`R\F`) is left as it is: consoles mirror the pixels and
    forget the header as often as the other way round, so only a warning is given.

    Args:
        image: Of shape (rows, columns).
        orientation: Patient orientation: where rows and where columns run to, or empty.
    """
    if not orientation or orientation == ("L", "F"):
        return image, []
    turns = _TURNS.get(orientation, 0)
    turned: NDArray[Any] = np.ascontiguousarray(np.rot90(image, turns))
    return turned, [WarningCode.ORIENTATION]
