"""May a model be used at a site? Figures on its own images, a verdict, and its reasons in words.

An acceptance test of the operating point, as a medical physicist would ask for one. The model's own
threshold is kept where it passes; only where it does not is a threshold of the site tried, whose
figures come from images that had no part in choosing it (each patient's from the others).

| own threshold | site threshold | verdict |
| --- | --- | --- |
| passed | not tried | usable, at the model's own |
| failed or open | passed | usable, at the site's |
| failed | failed, or there is none | not usable |
| anything else | | not enough images |

A figure has passed where it reaches what is asked for and its 95 % interval ends at most a margin
below that; it has failed where its whole interval lies below. All else is open. Intervals take
images as independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deepcovid_edge.decision.statistics import Scores, Truth, area_interval, auc, wilson
from deepcovid_edge.decision.thresholds import threshold_for_new_images, threshold_for_new_negatives

USABLE, NOT_USABLE, NOT_ENOUGH = "usable", "not usable", "not enough images"
_PASSED, _FAILED, _OPEN = "passed", "failed", "open"


@dataclass(frozen=True)
class AcceptanceRules:
    """What is asked of a model at a site.

    Attributes:
        sensitivity: Smallest, and `specificity` likewise: what WHO asks at least of a test that
            screens for tuberculosis, computer-aided chest X-rays among them (High-priority target
            product profiles for new tuberculosis diagnostics, 2014; kept as the benchmark in
            Consolidated guidelines on tuberculosis, module 2: screening, 2021, section 3). For
            COVID-19 on chest radiographs there is no such profile.
        specificity: Smallest.
        margin: How far below them the lower end of the 95 % interval may lie. Without it some 150
            images of a class would be needed to accept a model that is five points better.
        aim: Share of new positive images that a site threshold is chosen to find.
        fewest: Patients of each class without which nothing is proved and no site threshold is
            chosen: of fewer than 19 positives none promises to find 95 % of new ones
            (`threshold_for_new_images`).
        max_not_assessed: Largest share of the site's files that may be refused: what is measured on
            the others would else say little of the site.
    """

    sensitivity: float = 0.90
    specificity: float = 0.70
    margin: float = 0.10
    aim: float = 0.95
    fewest: int = 20
    max_not_assessed: float = 0.10


@dataclass(frozen=True)
class SiteImages:
    """What a model says of a site's images.

    Attributes:
        scores: Probability of the positive class, of shape (images,).
        positive: Whether each image is positive by its label, of shape (images,).
        patients: Patient of each image; an image without one counts as a patient of its own.
        not_assessed: How many other files were not assessed.
        synthetic: How many of the images were drawn by `sample`.
    """

    scores: Scores
    positive: Truth
    patients: Sequence[str]
    not_assessed: int = 0
    synthetic: int = 0

    @property
    def owners(self) -> list[str]:
        """A name for each image's patient; none has the same by not being known."""
        return [name or f"\0image {number}" for number, name in enumerate(self.patients)]

    def count(self, positive: bool) -> int:
        """Patients with an image of a class."""
        pairs = zip(self.owners, self.positive, strict=True)
        return len({owner for owner, truth in pairs if truth == positive})


@dataclass(frozen=True)
class Assessment:
    """What came of it.

    Attributes:
        verdict: `usable`, `not usable` or `not enough images`.
        reasons: Sentences that say why.
        threshold: What images of the site would be classified by.
        own: Sensitivity and specificity at the model's own threshold.
        site: Threshold of the site with its cross-fitted sensitivity and specificity; None where
            none was tried, or could be chosen.
        auc: Area under the curve with its interval; None without positive images.
    """

    verdict: str
    reasons: tuple[str, ...]
    threshold: float
    own: dict[str, Any]
    site: dict[str, Any] | None
    auc: dict[str, Any] | None


def assess(
    images: SiteImages, own_threshold: float, name: str, rules: AcceptanceRules | None = None
) -> Assessment:
    """Classify a model by a site's images.

    Args:
        images: At least one of them negative.
        own_threshold: The model's own threshold.
        name: Name of the positive class, for the sentences.
        rules: What is asked for.
    """
    rules = rules or AcceptanceRules()
    own = {"threshold": own_threshold, **_rates(images.scores >= own_threshold, images.positive)}
    site = None if _state(own, rules) == _PASSED else _site_point(images, rules)
    area = _area(images)
    states = _state(own, rules), _state(site, rules) if site else None
    verdict = _verdict(states, area, images, rules)
    reasons = _reasons(own, site, area, images, rules, name)
    return Assessment(
        verdict, tuple(reasons), _threshold(own, site, states, rules), own, site, area
    )


def described(rules: AcceptanceRules | None = None) -> dict[str, Any]:
    """The rules as plain values."""
    return asdict(rules or AcceptanceRules())


def rate(successes: int, trials: int) -> dict[str, Any]:
    """A proportion with Wilson's 95 % interval; None without trials."""
    known = trials > 0
    return {
        "value": successes / trials if known else None,
        "successes": successes,
        "trials": trials,
        "interval_95": list(wilson(successes, trials)) if known else None,
    }


def _rates(called: Truth, positive: Truth) -> dict[str, Any]:
    return {
        "sensitivity": rate(int((called & positive).sum()), int(positive.sum())),
        "specificity": rate(int((~called & ~positive).sum()), int((~positive).sum())),
    }


def _area(images: SiteImages) -> dict[str, Any] | None:
    if images.positive.all() or not images.positive.any():
        return None
    interval = area_interval(images.scores, images.positive)
    return {"value": auc(images.scores, images.positive), "interval_95": list(interval)}


def _site_point(images: SiteImages, rules: AcceptanceRules) -> dict[str, Any] | None:
    """A threshold of the site, or None where its images are too few."""
    if not images.positive.any() and images.count(positive=False) >= rules.fewest:
        return _by_normals(images, rules)
    if _too_few(images, rules):
        return None
    threshold, expected = threshold_for_new_images(images.scores, images.positive, rules.aim)
    return {
        "threshold": threshold,
        "rule": f"the highest threshold that finds {rules.aim:.0%} of new positive images, as is "
        "to "
        "be expected (split conformal); figures by leaving out one patient at a time",
        "expected_sensitivity": expected,
        **_rates(_cross_fitted(images, rules), images.positive),
    }


def _by_normals(images: SiteImages, rules: AcceptanceRules) -> dict[str, Any] | None:
    alarms = 1 - rules.specificity
    threshold = threshold_for_new_negatives(images.scores, alarms)
    if threshold is None:
        return None
    return {
        "threshold": threshold,
        "rule": f"the lowest threshold that calls at most {alarms:.0%} of new negative images "
        "positive, as is to be expected (split conformal); how many positive images it finds is "
        "not "
        "known",
        "expected_sensitivity": None,
        **_rates(images.scores >= threshold, images.positive),
    }


def _cross_fitted(images: SiteImages, rules: AcceptanceRules) -> Truth:
    """Whether each image is called positive at the threshold of all other patients' images."""
    owners = np.array(images.owners)
    called = np.zeros(len(owners), np.bool_)
    for owner in np.unique(owners):
        own = owners == owner
        rest = images.scores[~own], images.positive[~own]
        called[own] = images.scores[own] >= threshold_for_new_images(*rest, rules.aim)[0]
    return called


def _state(point: dict[str, Any], rules: AcceptanceRules) -> str:
    states = [
        _compared(point[name], getattr(rules, name), rules.margin)
        for name in ("sensitivity", "specificity")
    ]
    if _FAILED in states:
        return _FAILED
    return _PASSED if states == [_PASSED] * 2 else _OPEN


def _compared(figure: dict[str, Any], least: float, margin: float) -> str:
    if figure["value"] is None:
        return _OPEN
    low, high = figure["interval_95"]
    if high < least:
        return _FAILED
    return _PASSED if figure["value"] >= least and low >= least - margin else _OPEN


def _verdict(
    states: tuple[str, str | None],
    area: dict[str, Any] | None,
    images: SiteImages,
    rules: AcceptanceRules,
) -> str:
    own, site = states
    if _PASSED in states:
        doubts = images.synthetic, _too_many_refused(images, rules), _too_few(images, rules)
        return NOT_ENOUGH if any(doubts) else USABLE
    nothing_mends = site in (None, _FAILED) or area is None  # None: positives are missing
    if own == _FAILED and (nothing_mends or _cannot_tell_apart(area, rules)):
        return NOT_USABLE
    return NOT_ENOUGH


def _threshold(
    own: dict[str, Any],
    site: dict[str, Any] | None,
    states: tuple[str, str | None],
    rules: AcceptanceRules,
) -> float:
    """The model's own, unless it failed or the site's passed; of normals alone never a lower."""
    threshold: float = own["threshold"]
    if site is None or states[0] == _PASSED or states[1] == _FAILED:
        return threshold
    if site["sensitivity"]["value"] is None:
        alarms = _compared(own["specificity"], rules.specificity, rules.margin)
        return threshold if alarms == _PASSED else max(threshold, float(site["threshold"]))
    chosen = states[0] == _FAILED or states[1] == _PASSED
    return float(site["threshold"]) if chosen else threshold


def _too_few(images: SiteImages, rules: AcceptanceRules) -> bool:
    return min(images.count(positive=True), images.count(positive=False)) < rules.fewest


def _too_many_refused(images: SiteImages, rules: AcceptanceRules) -> bool:
    return images.not_assessed > rules.max_not_assessed * (images.not_assessed + len(images.scores))


def _cannot_tell_apart(area: dict[str, Any] | None, rules: AcceptanceRules) -> bool:
    """Whether no threshold can pass: a curve through a point covers the rectangle below it."""
    return bool(area and area["interval_95"][1] < rules.sensitivity * rules.specificity)


def _reasons(
    own: dict[str, Any],
    site: dict[str, Any] | None,
    area: dict[str, Any] | None,
    images: SiteImages,
    rules: AcceptanceRules,
    name: str,
) -> list[str]:
    """What was found, one sentence each."""
    place = f"at the model's own threshold ({own['threshold']:.4f})"
    said = _about_point(own, place, rules, name)
    if area:
        said.append(_about_area(area, rules, name))
    if site:
        said += _about_site(site, rules, name)
    if _too_few(images, rules):
        counts = images.count(positive=True), images.count(positive=False)
        said.append(
            f"there are {counts[0]} patients with and {counts[1]} without {name}: {rules.fewest} "
            "of each are needed for a proof, or for a threshold of the site"
        )
    if images.not_assessed:
        whole = images.not_assessed + len(images.scores)
        said.append(f"{images.not_assessed} of {whole} files were not assessed")
        if _too_many_refused(images, rules):
            said[-1] += f": more than {rules.max_not_assessed:.0%}, look at the reasons"
    if images.synthetic:
        said.append(f"{images.synthetic} images are drawn, not of patients: they prove nothing")
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in said]


def _about_point(point: dict[str, Any], place: str, rules: AcceptanceRules, name: str) -> list[str]:
    alarms, found = point["specificity"], point["sensitivity"]
    positive = alarms["trials"] - alarms["successes"]
    said = [
        f"{place}, {positive} of {alarms['trials']} images without {name} are called positive: "
        f"specificity {figure_text(alarms)}, {_asked(alarms, rules.specificity, rules.margin)}"
    ]
    if found["value"] is None:
        return [*said, f"there are no images with {name}: how many it finds here is not known"]
    return [
        *said,
        f"{place}, {found['successes']} of {found['trials']} images with {name} are found: "
        f"sensitivity {figure_text(found)}, {_asked(found, rules.sensitivity, rules.margin)}",
    ]


def _asked(figure: dict[str, Any], least: float, margin: float) -> str:
    wanted = f"at least {least:.0%} is asked for"
    state = _compared(figure, least, margin)
    if state == _PASSED:
        return f"{wanted}: passed"
    if state == _FAILED:
        return f"{wanted}: failed"
    return f"{wanted}, with an interval from {least - margin:.0%} on: open"


def _about_area(area: dict[str, Any], rules: AcceptanceRules, name: str) -> str:
    low, high = area["interval_95"]
    said = f"images with and without {name} are told apart with AUC {area['value']:.3f} "
    said += f"[{low:.3f}, {high:.3f}]"
    if _cannot_tell_apart(area, rules):
        return f"{said}: no threshold can reach what is asked for"
    return f"{said}, which may be chance" if low <= 0.5 else said


def _about_site(site: dict[str, Any], rules: AcceptanceRules, name: str) -> list[str]:
    if site["sensitivity"]["value"] is None:
        share = rules.specificity
        return [
            f"a threshold of {site['threshold']:.4f} would leave some {share:.0%} of the images "
            f"without {name} negative, but nobody could say how many with {name} it misses"
        ]
    place = f"at the threshold chosen on these images ({site['threshold']:.4f})"
    return _about_point(site, place, rules, name)


def figure_text(figure: dict[str, Any]) -> str:
    """Such as `98.0% [93.1%, 99.5%]`; `-` where there is none."""
    if figure["value"] is None:
        return "-"
    low, high = figure["interval_95"]
    return f"{figure['value']:.1%} [{low:.1%}, {high:.1%}]"
