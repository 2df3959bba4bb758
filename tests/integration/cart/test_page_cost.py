"""What the page costs, on a smaller ledger than `make campaigns` measures."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")

from campaigns.page_cost import median_interval, page_cost


@pytest.mark.slow  # a quiet machine measures it
def test_the_page_is_small_and_quick(tmp_path: Path) -> None:
    """The limits are wide: a core may be busy with other tests."""
    found = page_cost(tmp_path, rounds=0, seed=1, images=2000)
    assert found["idle"]["rss_mib"] < 60
    assert found["busy"]["rss_mib"] < found["idle"]["rss_mib"] + 12
    assert found["home_ms"]["median"] < 250


def test_the_interval_of_a_median_holds_it_and_shrinks_with_samples() -> None:
    few, many = [0.9, 1.0, 1.1] * 3, [0.9, 1.0, 1.1] * 100
    low, high = median_interval(few, 1)
    assert low <= 1.0 <= high
    assert median_interval(many, 1)[1] - median_interval(many, 1)[0] < high - low
