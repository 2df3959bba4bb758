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
below that. It has failed where its whole interval lies below, and a model just as good as is asked
for would do no better in at most 2.5 of 100 such checks (binomial). The second is for few images:
the interval of a single one that is missed ends at 79 %. All else is open. Where patients have
several images, both take these as fewer (`PatientRate`), and all rounding is against the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from deepcovid_edge.decision.site_file import (
    FAILED,
    NONE_CAN_PASS,
    NOT_ENOUGH,
    NOT_USABLE,
    USABLE,
)
from deepcovid_edge.decision.statistics import (
    Estimate,
    PatientRate,
    Scores,
    Truth,
    area_interval,
    auc,
    newcombe,
)
from deepcovid_edge.decision.thresholds import (
    OperatingPoint,
    threshold_for_new_images,
    threshold_for_new_negatives,
)
from deepcovid_edge.device.progress import number_of

_PASSED, _FAILED, _OPEN = "passed", FAILED, "undecided"
_CHANCE = 0.025
"""Beyond either end of a 95 % interval."""


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
        margin: How far below these the lower end of the 95 % interval may lie. Without it about
            150 images of a class would be needed to accept a model that is five points better.
        aim: Share of new positive images that a site threshold is chosen to find.
        fewest: Patients of each class that `usable`, a site threshold and a conclusion from the
            area under the curve need: no threshold chosen on fewer than 19 positives promises to
            find 95 % of new ones (`threshold_for_new_images`).
        max_not_assessed: Largest share of the site's files that may not be assessed: figures of the
            others would otherwise say little about the site.
    """

    sensitivity: float = 0.90
    specificity: float = 0.70
    margin: float = 0.10
    aim: float = 0.95
    fewest: int = 20
    max_not_assessed: float = 0.10


RULES = AcceptanceRules()
"""The same for every site."""


@dataclass(frozen=True)
class SiteImages:
    """What a model makes of a site's images.

    Attributes:
        scores: Probability of the positive class, of shape (images,).
        positive: Whether each image is positive by its label, of shape (images,).
        patients: Patient of each image; an image without one counts as a patient of its own.
        uncounted: How many other images have a soft label, which no figure counts.
        not_assessed: How many other files, of whatever label, were not assessed.
        synthetic: How many of the images were drawn by `sample`.
    """

    scores: Scores
    positive: Truth
    patients: Sequence[str]
    uncounted: int = 0
    not_assessed: int = 0
    synthetic: int = 0

    @property
    def files(self) -> int:
        """All files of the site, each content once."""
        return len(self.scores) + self.uncounted + self.not_assessed

    @property
    def owners(self) -> list[str]:
        """A name for each image's patient; images of unknown patients get one each."""
        return [name or f"\0image {number}" for number, name in enumerate(self.patients)]

    def count(self, positive: bool) -> int:
        """Patients with an image of a class."""
        pairs = zip(self.owners, self.positive, strict=True)
        return len({owner for owner, truth in pairs if truth == positive})


@dataclass(frozen=True)
class Assessment:
    """The verdict on a model at a site, with its figures.

    Attributes:
        verdict: `usable`, `not usable` or `not enough images`.
        reasons: Sentences that say why.
        threshold: The threshold to use at the site.
        own: What the model's own threshold achieves.
        site: The site's threshold with cross-fitted figures; None where none was tried, or could be
            chosen.
        auc: Area under the curve; None without positive images.
    """

    verdict: str
    reasons: tuple[str, ...]
    threshold: float
    own: OperatingPoint
    site: OperatingPoint | None
    auc: Estimate | None


def assess(images: SiteImages, own_threshold: float, name: str) -> Assessment:
    """Assess a model by a site's images.

    Args:
        images: At least one of them negative.
        own_threshold: The model's own threshold.
        name: Name of the positive class, for the sentences.
    """
    called = images.scores >= own_threshold
    own = OperatingPoint.of(own_threshold, called, images.positive, images.patients)
    site = None if _state(own) == _PASSED else _site_point(images)
    area = _area(images, own)
    states = _state(own), _state(site) if site else None
    return Assessment(
        _verdict(states, area, images),
        tuple(_reasons(own, site, area, images, name)),
        _threshold(own, site, states),
        own,
        site,
        area,
    )


def _area(images: SiteImages, point: OperatingPoint) -> Estimate | None:
    """The area; where patients have several images, its interval is that of the fewer images."""
    if images.positive.all() or not images.positive.any():
        return None
    both = images.scores, images.positive
    area, rates = auc(*both), (point.sensitivity, point.specificity)
    if not any(rate.is_of_fewer for rate in rates):
        return Estimate(area, area_interval(*both))
    return Estimate(area, newcombe(area, *(rate.effective_trials for rate in rates)))


def _site_point(images: SiteImages) -> OperatingPoint | None:
    """A threshold of the site, or None where its images are too few."""
    if not images.positive.any() and images.count(positive=False) >= RULES.fewest:
        return _by_normals(images)
    if _too_few(images):
        return None
    threshold, expected = threshold_for_new_images(images.scores, images.positive, RULES.aim)
    return OperatingPoint.of(
        threshold,
        _cross_fitted(images),
        images.positive,
        images.patients,
        rule=f"the highest threshold that is expected to find {RULES.aim:.0%} of new positive "
        "images (split conformal); figures by leaving out one patient at a time",
        expected=expected,
    )


def _by_normals(images: SiteImages) -> OperatingPoint | None:
    alarms = 1 - RULES.specificity
    threshold = threshold_for_new_negatives(images.scores, alarms)
    if threshold is None:
        return None
    return OperatingPoint.of(
        threshold,
        images.scores >= threshold,
        images.positive,
        images.patients,
        rule=f"the lowest threshold that is expected to call at most {alarms:.0%} of new negative "
        "images positive (split conformal); how many positive images it finds is not known",
    )


def _cross_fitted(images: SiteImages) -> Truth:
    """Whether each image is called positive at the threshold of all other patients' images."""
    owners = np.array(images.owners)
    called = np.zeros(len(owners), np.bool_)
    for owner in np.unique(owners):
        own = owners == owner
        rest = images.scores[~own], images.positive[~own]
        called[own] = images.scores[own] >= threshold_for_new_images(*rest, RULES.aim)[0]
    return called


def _state(point: OperatingPoint) -> str:
    states = [
        _compared(point.sensitivity, RULES.sensitivity),
        _compared(point.specificity, RULES.specificity),
    ]
    if _FAILED in states:
        return _FAILED
    return _PASSED if states == [_PASSED] * 2 else _OPEN


def _compared(rate: PatientRate, least: float) -> str:
    low, high = rate.interval_95
    if rate.value is None:
        return _OPEN
    if high < least:
        return _FAILED if _chance_of(rate, least) <= _CHANCE else _OPEN
    return _PASSED if rate.value >= least and low >= least - RULES.margin else _OPEN


def _chance_of(rate: PatientRate, least: float) -> float:
    """Probability of so few successes, or fewer, where the true rate is `least` (binomial)."""
    share, trials = Decimal(least), rate.effective_trials
    chance = term = (1 - share) ** trials
    for successes in range(rate.effective_successes[1]):
        term *= (trials - successes) * share / ((successes + 1) * (1 - share))
        chance += term
    return float(chance)


def _verdict(states: tuple[str, str | None], area: Estimate | None, images: SiteImages) -> str:
    own, site = states
    if _PASSED in states:
        doubts = images.synthetic, _too_many_not_assessed(images), _too_few(images)
        return NOT_ENOUGH if any(doubts) else USABLE
    no_other = site in (None, _FAILED) or area is None  # None: positives are missing
    if own == _FAILED and (no_other or _no_threshold_can_pass(area, images)):
        return NOT_USABLE
    return NOT_ENOUGH


def _threshold(
    own: OperatingPoint, site: OperatingPoint | None, states: tuple[str, str | None]
) -> float:
    """The model's own, unless it failed or the site's passed; never lower by normals alone."""
    if site is None or states[0] == _PASSED or states[1] == _FAILED:
        return own.threshold
    if site.sensitivity.value is None:
        alarms = _compared(own.specificity, RULES.specificity)
        return own.threshold if alarms == _PASSED else max(own.threshold, site.threshold)
    chosen = states[0] == _FAILED or states[1] == _PASSED
    return site.threshold if chosen else own.threshold


def _too_few(images: SiteImages) -> bool:
    return min(images.count(positive=True), images.count(positive=False)) < RULES.fewest


def _too_many_not_assessed(images: SiteImages) -> bool:
    return images.not_assessed > RULES.max_not_assessed * images.files


def _no_threshold_can_pass(area: Estimate | None, images: SiteImages) -> bool:
    """Whether the curve is too low: one through a point covers the rectangle below it."""
    if area is None or _too_few(images):
        return False
    return area.interval_95[1] < RULES.sensitivity * RULES.specificity


def _reasons(
    own: OperatingPoint,
    site: OperatingPoint | None,
    area: Estimate | None,
    images: SiteImages,
    name: str,
) -> list[str]:
    """What was found, one sentence each."""
    place = f"at the model's own threshold ({own.threshold:.4f})"
    found = _about_point(own, place, name)
    if area:
        found.append(_about_area(area, name, _no_threshold_can_pass(area, images)))
    if site:
        found += _about_site(site, name)
    if own.sensitivity.is_of_fewer or own.specificity.is_of_fewer:
        found.append(_about_several(own, name))
    if _too_few(images):
        counts = images.count(positive=True), images.count(positive=False)
        found.append(
            f"patients: {counts[0]} with and {counts[1]} without {name}; at least "
            f"{RULES.fewest} patients of each are needed for the verdict `usable` or for a site "
            "threshold"
        )
    if images.not_assessed:
        were = "was" if images.not_assessed == 1 else "were"
        found.append(f"{images.not_assessed} of {images.files} files {were} not assessed")
        if _too_many_not_assessed(images):
            found[-1] += f": more than {RULES.max_not_assessed:.0%}, look at the reasons"
    if images.synthetic:
        found.append(
            f"{number_of(images.synthetic, 'image is', 'images are')} synthetic, not of patients, "
            "which proves nothing"
        )
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in found]


def _about_point(point: OperatingPoint, place: str, name: str) -> list[str]:
    spared, found = point.specificity, point.sensitivity
    alarms = (
        f"{place}, {spared.trials - spared.successes} of {spared.trials} images without {name} are "
        f"called positive: specificity {spared.text()}, "
        f"{_asked(spared, RULES.specificity)}"
    )
    if not found.trials:
        return [alarms, f"there are no images with {name}: how many it finds here is not known"]
    return [
        alarms,
        f"{place}, {found.successes} of {found.trials} images with {name} are found: "
        f"sensitivity {found.text()}, {_asked(found, RULES.sensitivity)}",
    ]


def _about_several(point: OperatingPoint, name: str) -> str:
    counted = [
        f"{rate.trials} {which} {name} count as {rate.effective_trials}"
        for which, rate in (("with", point.sensitivity), ("without", point.specificity))
        if rate.is_of_fewer
    ]
    return (
        "patients have several images, which are not independent: in the intervals and in what may "
        f"be chance, {' and '.join(counted)}"
    )


def _asked(rate: PatientRate, least: float) -> str:
    state = _compared(rate, least)
    required = f"required: at least {least:.0%}"
    if state != _OPEN:
        return f"{required}: {state}"
    if rate.interval_95[1] < least:
        return f"{required}: {state}, as with so few images this may be chance"
    lower = least - RULES.margin
    return f"{required}, with the lower end of the interval at {lower:.0%} or more: {state}"


def _about_area(area: Estimate, name: str, none_can_pass: bool) -> str:
    low, high = area.interval_95
    found = f"images with and without {name} are told apart with AUC {area.value:.3f} "
    found += f"[{low:.3f}, {high:.3f}]"
    if none_can_pass:
        return f"{found}: {NONE_CAN_PASS}"
    return f"{found}, which may be chance" if low <= 0.5 else found


def _about_site(site: OperatingPoint, name: str) -> list[str]:
    if not site.sensitivity.trials:
        return [
            f"a threshold of {site.threshold:.4f} would leave about {RULES.specificity:.0%} of the "
            f"images without {name} negative, but how many images with {name} it misses is unknown"
        ]
    place = f"at the threshold chosen on these images ({site.threshold:.4f})"
    return _about_point(site, place, name)
