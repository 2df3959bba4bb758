"""A shift of a site's logits: it does what its name says, and never changes their order."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the shifts of benchmarks need extra export")

from benchmarks.site_shift import in_pieces, logit, rates, shifts_to

DRAW = np.random.default_rng(3)
POSITIVE, NEGATIVE = DRAW.normal(2.0, 1.0, 500), DRAW.normal(-2.0, 1.0, 300)
SHIFTS = shifts_to(POSITIVE, NEGATIVE)
SITE = np.concatenate([POSITIVE, NEGATIVE]) * 0.5 + 7.0


@pytest.mark.parametrize("name", SHIFTS)
def test_the_order_stays_and_so_does_the_area_under_the_curve(name: str) -> None:
    moved = SHIFTS[name](SITE)
    assert np.array_equal(np.argsort(moved), np.argsort(SITE))


def test_each_shift_meets_what_val_has() -> None:
    known = np.concatenate([POSITIVE, NEGATIVE])
    assert np.median(SHIFTS["centre"](SITE)) == pytest.approx(np.median(known))
    quartiles = np.percentile(SHIFTS["spread"](SITE), (25, 50, 75))
    assert quartiles == pytest.approx(np.percentile(known, (25, 50, 75)))
    mostly_negative = np.concatenate([POSITIVE[:50], NEGATIVE]) + 7.0
    assert SHIFTS["modes"](mostly_negative) == pytest.approx(mostly_negative - 7.0, abs=0.2)


def test_rates_count_both_appearances_and_lack_what_is_not_there() -> None:
    none = SHIFTS["none"]
    site = {"covid": np.array([1.0, -1.0]), "normal": np.array([-1.0, -2.0, 3.0, -4.0])}
    assert rates(site, none, 0.0) == {"sensitivity": 0.5, "specificity": 0.75}
    assert rates({"normal": site["normal"]}, none, 0.0)["sensitivity"] is None
    pieces = in_pieces({"covid": POSITIVE, "no_pneumonia": NEGATIVE}, 0.5, none, logit(0.5))
    assert pieces["sensitivity"] == pytest.approx(np.mean(POSITIVE >= 0), abs=0.03)
