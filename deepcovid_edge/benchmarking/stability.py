"""Did the machine hold its speed while it was measured? If not, why not.

The samples of a run are cut, in their order, into ten windows of equal size. Windows are assessed
rather than single samples, because a single late answer belongs to the tail of the percentiles and
is no reason to distrust the rest. No sample is discarded.

| assessed | limit | after |
| --- | --- | --- |
| drift: the line through the windows (Theil 1950, Sen 1968), end to end | 5 % | |
| coefficient of variation of the windows | 10 % | Triton Model Navigator's stability window |
| coefficient of variation of `compute` by CUDA events | 2.5 % | trtexec |
| change of the CPU's or GPU's clock, lowest to highest | 5 % | |
| rise of a temperature | 15 K | |
| the GPU lowered its clock for heat or power | never | |
| share of the cores used by others, or stolen by the host | 10 % | |

Images differ, so each sample is first divided by the median of its own image. That needs images
that come again: divided by itself, an image that was measured once is 1 at any speed. Where most
images were measured fewer than `FEWEST_VISITS` times, the times themselves are assessed, and
differences between images count as instability. Fewer images or a longer run avoid that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcovid_edge.benchmarking.samples import Samples, Values
from deepcovid_edge.benchmarking.settings import OFFLINE
from deepcovid_edge.decision.results import PlainResult

WINDOWS = 10
SMALLEST_COUNT = 3 * WINDOWS
FEWEST_VISITS = 4
"""With 2 visits an image's median hides a third of a drift, with 4 a tenth. With one visit in each
process that measured, it hides a drift that all of them have."""
_DRIFT, _VARIATION, _DEVICE_VARIATION, _CLOCK, _OTHERS = 0.05, 0.10, 0.025, 0.05, 0.10
"""Above them a run is unstable; shares, in the order of the module's table."""
_KELVIN = 15.0
_SMALLEST_SECONDS = 1.0
"""Shortest run in which `_OTHERS` is assessed: the kernel counts in ticks."""


@dataclass(frozen=True)
class Verdict(PlainResult):
    """Whether a run was stable.

    Attributes:
        stable: False where a limit was exceeded, or the samples are too few to tell.
        reasons: Why not; empty where stable.
        windows: Level of each window over the level of all.
        drift: Change of the level over the run, share; None where the samples are too few.
        variation: Coefficient of variation of the windows, or None.
        sample_variation: Coefficient of variation of the samples, or None; reported, not assessed.
    """

    stable: bool
    reasons: tuple[str, ...]
    windows: tuple[float, ...] = ()
    drift: float | None = None
    variation: float | None = None
    sample_variation: float | None = None


def assess_stability(
    samples: Samples,
    scenario: str,
    parts: Mapping[str, Values],
    watched: Mapping[str, Any],
) -> Verdict:
    """Assess a run.

    Args:
        samples: In the order of their results.
        scenario: `offline` is assessed by the time between results, others by the time of work.
        parts: Parts of a call by CUDA events, milliseconds; empty where there are none.
        watched: From `watch.Watch.facts`.
    """
    machine = _machine_reasons(samples.seconds, watched)
    if len(samples) < SMALLEST_COUNT:
        few = f"{len(samples)} samples are too few: {SMALLEST_COUNT} are needed"
        return Verdict(False, (few, *machine))
    levels = window_levels(samples, scenario)
    drift, variation = _drift(levels), float(np.std(levels) / np.mean(levels))
    reasons = []
    if abs(drift) > _DRIFT:
        reasons.append(f"drift: {drift:+.1%} from beginning to end, allowed {_DRIFT:.0%}")
    if variation > _VARIATION:
        reasons.append(f"variation: {variation:.1%} between windows, allowed {_VARIATION:.0%}")
    reasons += _device_reasons(parts)
    whole = samples.gaps_ms if scenario == OFFLINE else samples.service_ms
    return Verdict(
        stable=not reasons and not machine,
        reasons=(*reasons, *machine),
        windows=tuple(float(level) for level in levels),
        drift=drift,
        variation=variation,
        sample_variation=float(np.std(whole) / np.mean(whole)),
    )


def window_levels(samples: Samples, scenario: str) -> Values:
    """Level of each window over the median of all windows, of shape (WINDOWS,).

    The mean time between results for `offline`, the median time of work for the others, beside that
    of the same image where the images were measured often enough.
    """
    if scenario == OFFLINE:
        total = samples.gaps_ms * samples.images
        cut = zip(
            np.array_split(total, WINDOWS), np.array_split(samples.images, WINDOWS), strict=True
        )
        levels = np.array([times.sum() / images.sum() for times, images in cut])
    else:
        windows = np.array_split(_comparable_times(samples), WINDOWS)
        levels = np.array([np.median(window) for window in windows])
    scaled: Values = levels / np.median(levels)
    return scaled


def _comparable_times(samples: Samples) -> Values:
    """Time of work over the median of the same image's, if images were measured often enough."""
    values = samples.service_ms
    _, owner, visits = np.unique(samples.image, return_inverse=True, return_counts=True)
    if np.median(visits) < FEWEST_VISITS:
        return values
    order = np.argsort(owner, kind="stable")
    groups = np.split(order, np.cumsum(visits)[:-1])
    beside = np.empty_like(values)
    for group in groups:
        beside[group] = values[group] / np.median(values[group])
    return beside


def _drift(levels: Values) -> float:
    """Rise of the Theil-Sen line over the windows: the median of the slopes of all pairs."""
    first, second = np.triu_indices(len(levels), 1)
    slopes = (levels[second] - levels[first]) / (second - first)
    return float(np.median(slopes) * (len(levels) - 1))


def _device_reasons(parts: Mapping[str, Values]) -> list[str]:
    compute = parts.get("compute")
    if compute is None or len(compute) < SMALLEST_COUNT:
        return []
    variation = float(np.std(compute) / np.mean(compute))
    if variation <= _DEVICE_VARIATION:
        return []
    return [
        f"variation of compute on the GPU: {variation:.1%}, allowed {_DEVICE_VARIATION:.1%}: "
        "lock its clocks (jetson_clocks, nvidia-smi -lgc)"
    ]


def _machine_reasons(seconds: float, watched: Mapping[str, Any]) -> list[str]:
    reasons: list[str] = []
    for kind in ("CPU", "GPU"):
        clock = watched.get(f"{kind.lower()}_mhz")
        if clock and clock["max"] > 0 and clock["min"] < clock["max"] * (1 - _CLOCK):
            reasons.append(f"clock of the {kind}: {clock['min']:.0f} to {clock['max']:.0f} MHz")
        heat = watched.get(f"{kind.lower()}_celsius")
        if heat and heat["last"] - heat["first"] > _KELVIN:
            reasons.append(
                f"temperature of the {kind}: {heat['first']:.0f} to {heat['last']:.0f} Celsius"
            )
    reasons += [f"the GPU lowered its clock: {why}" for why in watched.get("slowed", ())]
    if seconds >= _SMALLEST_SECONDS:
        for name, who in (("others_share", "other processes"), ("stolen_share", "the host")):
            if (share := watched.get(name, 0.0)) > _OTHERS:
                reasons.append(f"{who} used {share:.0%} of the cores, allowed {_OTHERS:.0%}")
    return reasons
