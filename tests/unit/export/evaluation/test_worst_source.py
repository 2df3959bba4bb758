"""Thresholds and ranges of the worst source, and what a range costs each source."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the workstation side needs extra export")

from deepcovid_edge.decision.thresholds import threshold_for_new_images
from deepcovid_export.decision.conformal import conformal_range
from deepcovid_export.evaluation.metrics import Scores, Truth
from deepcovid_export.evaluation.worst_source import highest_threshold, lowest_threshold
from deepcovid_export.recipe import RangeSettings


def two_sources(few: int = 0) -> tuple[Scores, Truth, list[str]]:
    """An easy large source, a hard small one, and perhaps a tiny one that is worst of all."""
    draw = np.random.default_rng(0)
    parts = [("easy", 400, 0.8, 0.2), ("hard", 60, 0.55, 0.45), ("tiny", few, 0.1, 0.9)]
    scores, positive, sources = [], [], []
    for name, count, high, low in parts:
        scores += [draw.normal(high, 0.1, count), draw.normal(low, 0.1, count)]
        positive += [np.ones(count, bool), np.zeros(count, bool)]
        sources += [name] * 2 * count
    return np.concatenate(scores).clip(0, 1), np.concatenate(positive), sources


def test_the_source_that_asks_most_sets_the_threshold() -> None:
    scores, positive, sources = two_sources()
    found = lowest_threshold(scores, positive, sources, 0.9)
    assert (found.source, set(found.by_source)) == ("hard", {"easy", "hard"})
    names = np.array(sources)
    for name in ("easy", "hard"):
        own = (names == name) & positive
        assert (scores[own] >= found.threshold).mean() >= 0.9
    pooled, _ = threshold_for_new_images(scores, positive, 0.9)
    assert (scores[(names == "hard") & positive] >= pooled).mean() < 0.9  # what pooling hides


def test_a_source_with_too_few_images_has_no_vote() -> None:
    plain, with_tiny = two_sources(), two_sources(few=5)
    for found, again in (
        (lowest_threshold(*plain, 0.9), lowest_threshold(*with_tiny, 0.9)),
        (highest_threshold(*plain, 0.1), highest_threshold(*with_tiny, 0.1)),
    ):
        assert found is not None
        assert again is not None
        assert found.by_source == again.by_source


def three_small_sources() -> tuple[Scores, Truth, list[str]]:
    """8 positive and 8 negative images each: all 24 together promise 24 / 25."""
    draw = np.random.default_rng(3)
    positive = np.arange(48) % 2 == 0
    scores = np.where(positive, 0.8, 0.2) + draw.normal(0, 0.1, 48)
    return scores, positive, [name for name in "abc" for _ in range(16)]


def test_where_no_source_has_a_vote_all_are_pooled_and_the_expectation_is_theirs() -> None:
    scores, positive, sources = three_small_sources()
    found = lowest_threshold(scores, positive, sources, 0.98)
    assert (found.source, found.by_source) == ("", {})
    assert (found.threshold, found.expected) == threshold_for_new_images(scores, positive, 0.98)
    assert found.expected == pytest.approx(24 / 25)
    assert found.where == "over all sources together, as none has enough images"
    assert highest_threshold(scores[:3], positive[:3] & False, sources[:3], 0.1) is None


def test_the_expectation_is_the_least_of_the_sources_with_a_vote() -> None:
    scores, positive, sources = two_sources(few=5)
    found = lowest_threshold(scores, positive, sources, 0.9)
    assert found.expected == pytest.approx(min(361 / 401, 55 / 61))
    assert found.where == "at each of easy, hard"


def test_a_range_names_the_sources_that_it_promises_something_for() -> None:
    scores, positive, sources = two_sources(few=5)
    span = conformal_range(scores, positive, sources, 0.5, RangeSettings(0.05, 0.1))
    assert span is not None
    assert span.origin["rule"] == (
        "at most 5% of new positive images lie below, at each of easy, hard; at most 10% of new "
        "negative images lie above, at each of easy, hard (split conformal)"
    )


def test_a_range_of_pooled_sources_promises_what_they_carry_and_only_of_them_together() -> None:
    span = conformal_range(*three_small_sources(), 0.5, RangeSettings(0.02, 0.1))
    assert span is not None
    pooled = "over all sources together, as none has enough images"
    assert span.origin["rule"] == (
        f"at most 4% of new positive images lie below, {pooled}; at most 10% of new negative "
        f"images lie above, {pooled} (split conformal)"
    )


@pytest.mark.parametrize("names", [["one"] * 160, ["one"] * 100 + ["other"] * 60])
def test_a_range_ends_at_1_where_too_many_negatives_lie_there_and_says_what_it_promises(
    names: list[str],
) -> None:
    """No threshold spares them; the other source alone would have one."""
    scores, positive = np.linspace(0, 0.9, 160), np.arange(160) % 2 == 0
    scores[1:60:2] = 1.0
    assert highest_threshold(scores[100:], positive[100:], names[100:], 0.1) is not None
    found = highest_threshold(scores, positive, names, 0.1)
    assert found is not None
    assert found.threshold == 1
    assert found.expected > (scores[1::2] == 1).mean() > 0.1
    span = conformal_range(scores, positive, names, 0.5, RangeSettings(0.05, 0.1))
    assert span is not None
    assert span.high == 1
    assert f"at most {100 * found.expected:.3g}% of new negative images" in span.origin["rule"]


def test_a_range_keeps_its_promise_at_every_source_and_states_its_cost() -> None:
    scores, positive, sources = two_sources()
    span = conformal_range(scores, positive, sources, 0.5, RangeSettings(0.05, 0.1))
    assert span is not None
    assert span.low <= 0.5 <= span.high
    names, costs = np.array(sources), span.origin["cost_by_source"]
    for name in ("easy", "hard"):
        own = names == name
        assert (scores[own & positive] < span.low).mean() <= 0.05
        assert (scores[own & ~positive] >= span.high).mean() <= 0.1
        held = (scores[own] >= span.low) & (scores[own] < span.high)
        assert costs[name] == {"images": int(own.sum()), "indeterminate": int(held.sum())}
    assert costs["hard"]["indeterminate"] / 120 > 3 * costs["easy"]["indeterminate"] / 800


def test_a_range_holds_the_threshold_and_promises_shares() -> None:
    scores, positive, sources = two_sources()
    span = conformal_range(scores, positive, sources, 0.01)
    assert span is not None
    assert span.low == 0.01
    with pytest.raises(ValueError, match="expected between 0 and 1"):
        RangeSettings(0.0, 0.1)
