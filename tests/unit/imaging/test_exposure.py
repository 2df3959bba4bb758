"""Images that are blank, or nearly all black or white."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging import radiograph
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason

Decode = Callable[..., Radiograph]


@pytest.mark.parametrize("border", [0, 255])
def test_a_border_lends_no_contrast_to_an_image_without(
    border: int, pictures: Any, decode: Decode
) -> None:
    pixels = np.random.default_rng(0).integers(120, 131, (300, 300)).astype(np.uint8)
    pixels[:30] = border
    with pytest.raises(NotAssessedError, match=r"contrast 2\.\d of 255") as caught:
        decode(pictures.encode(pixels, "PNG"))
    assert caught.value.reason is Reason.BLANK


@pytest.mark.parametrize("white", [255, 1023, 65535])
def test_exposure_is_told_by_the_pixels_at_both_ends(white: int) -> None:
    """Whether they must be counted at all is told from mean and deviation; here they always are."""
    random = np.random.default_rng(white)
    level = white / 255
    ends = [0, round(2.4 * level), white - round(2.4 * level), white]
    refused = 0
    for _ in range(2000):
        low, high = np.sort(random.integers(0, white + 1, 2))
        at_an_end = random.random(400) < random.uniform(0.4, 0.8)
        sample = np.where(at_an_end, random.choice(ends, 400), random.integers(low, high + 1, 400))
        saturated = ((sample < 2.5 * level) | (sample > 252.5 * level)).mean()
        margin = 2.5 * level
        inner = sample[(sample >= sample.min() + margin) & (sample <= sample.max() - margin)]
        contrasts = [sample.std(), *([inner.std()] if inner.size >= 0.4 * sample.size else [])]
        blank = (
            min(contrasts) < radiograph.MIN_CONTRAST * level or saturated > radiograph.MAX_SATURATED
        )
        with pytest.raises(NotAssessedError) if blank else nullcontext():
            radiograph.check_exposure(sample.astype(np.uint8 if white == 255 else np.uint16), white)
        refused += blank
    assert 500 < refused < 1900
