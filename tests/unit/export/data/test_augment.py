"""Hidden lungs: what is covered, with what, how often, and the same again after a resume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs extra export")

from drawn_once import drawn_phantom

from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_export.data.augment import augment_with_mask, hide_centre, hides_lungs
from deepcovid_export.recipe import AugmentSettings

IMAGE = np.ascontiguousarray(drawn_phantom(3)[:224, :224])


def test_the_centre_is_one_grey_and_the_frame_is_untouched() -> None:
    for seed in range(50):
        hidden = hide_centre(IMAGE, np.random.default_rng(seed))
        middle = hidden[39:185, 39:185]
        assert middle.min() == middle.max()
        frame = np.ones_like(IMAGE, bool)
        frame[11:213, 11:213] = False
        assert np.array_equal(hidden[frame], IMAGE[frame])


def test_the_grey_is_mostly_that_of_what_is_left_to_see() -> None:
    image = np.full((200, 200), 180, np.uint8)
    image[50:150, 50:150] = 20  # never tells how dark the lungs were
    greys = [int(hide_centre(image, np.random.default_rng(seed))[100, 100]) for seed in range(200)]
    assert 0.6 < np.mean(np.array(greys) == 180) < 0.8


def test_the_image_that_is_handed_in_is_not_changed() -> None:
    before = IMAGE.copy()
    hide_centre(IMAGE, np.random.default_rng(0))
    assert np.array_equal(IMAGE, before)


def test_one_in_four_is_hidden_and_none_where_the_recipe_says_so() -> None:
    draw = np.random.default_rng(1)
    share = np.mean([hides_lungs(AugmentSettings(hide=0.25), draw) for _ in range(4000)])
    assert share == pytest.approx(0.25, abs=0.03)
    before = draw.bit_generator.state
    assert not hides_lungs(AugmentSettings(), draw)
    assert draw.bit_generator.state == before  # recipes without it draw what they always drew


def test_an_image_that_no_change_touches_keeps_its_grey_levels() -> None:
    """Cut off instead of rounded, 40 of the 256 levels would be one too dark."""
    levels = np.arange(256, dtype=np.uint8).repeat(16).reshape(64, 64)
    still = AugmentSettings(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, resolution=False)
    image = Radiograph(levels, 255, "", "PNG")
    changed, _ = augment_with_mask(image, None, still, 64, np.random.default_rng(1))
    assert np.array_equal(changed.pixels, levels)


def test_noise_makes_an_image_neither_darker_nor_brighter() -> None:
    grey = Radiograph(np.full((448, 448), 100, np.uint8), 255, "", "PNG")
    noisy = AugmentSettings(0, 0, 0, 0, 0, 0, 0, 0, 4.0, 0, resolution=False)
    found = [
        augment_with_mask(grey, None, noisy, 224, np.random.default_rng(seed))[0].pixels
        for seed in range(10)
    ]
    assert max(int(np.ptp(pixels)) for pixels in found) > 5
    assert [float(pixels.mean()) for pixels in found] == pytest.approx([100.0] * 10, abs=0.1)


def test_resolution_varies_with_the_network_and_only_where_the_recipe_says_so() -> None:
    image = Radiograph(drawn_phantom(3), 255, "", "PNG")
    still = AugmentSettings(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)

    def shape(how: AugmentSettings, side: int, seed: int) -> tuple[int, ...]:
        draw = np.random.default_rng(seed)
        return augment_with_mask(image, None, how, side, draw)[0].pixels.shape

    for side in (128, 224):
        sides = {min(shape(still, side, seed)) for seed in range(40)}
        assert len(sides) > 10
        assert 8 / 7 * side - 1 <= min(sides) < max(sides) <= 2 * side
        fixed = replace(still, resolution=False)
        assert {min(shape(fixed, side, seed)) for seed in range(5)} == {2 * side}
