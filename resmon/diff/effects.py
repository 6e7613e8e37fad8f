"""How far two kinds of runs lie apart, measured by the spread between runs of one kind.

Levels are one number a run. With three runs or more of both kinds the difference of the means is tested by Welch's t (Welch 1947;
the kinds may spread differently, and a permutation test could never give less than p = 0.1 for three runs against three). Of fewer
runs the spread is hardly known (Welch's test of ten runs against two raises a false alarm in one of ten cases), so the pooled
spread stands for both kinds: Student's t, which for one run against several is the test of a single case against a small sample
(Crawford and Howell 1998). It is as good as the assumption that both kinds spread alike. The effect size is Hedges' g (1981), the
difference in units of the pooled standard deviation between runs, corrected for its bias with few runs (with three runs in all it
cannot be); its interval inverts the noncentral t, which is exact where both kinds spread alike. With one run of each there is no
spread and no effect, only `noise`: what the steps of one run say about the accuracy of its own level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from resmon.records import Floats

CONFIDENCE = 0.95
SIGNIFICANCE = 1 - CONFIDENCE
# Runs of each kind from which on each has a spread of its own.
LEAST_RUNS = 3
# Differences and spreads below this part of the level are rounding.
ROUNDING = 1e-12
# Beyond this t the noncentral t is followed by its limit, in which the interval grows with t.
LARGEST_T = 100.0
# Fewer batches than this, or of fewer steps, say nothing about the noise.
LEAST = 4


@dataclass(frozen=True, slots=True)
class Effect:
    """B minus A: the difference of the means, the same as Hedges' g, each with its interval, and how often chance alone would make
    a difference as large.
    """

    difference: float
    low: float
    high: float
    size: float | None
    size_low: float | None
    size_high: float | None
    p: float


def effect(a: Floats, b: Floats) -> Effect | None:
    """The effect between the finite levels of two kinds; None with one run of each."""
    from scipy.special import gammaln, stdtr, stdtrit

    total = len(a) + len(b) - 2  # degrees of freedom of the pooled spread
    if total < 1 or not len(a) or not len(b):
        return None
    # In units of the largest level, so that no square overflows or vanishes.
    scale = max(float(np.abs(a).max()), float(np.abs(b).max())) or 1.0
    a, b = a / scale, b / scale
    difference = float(b.mean() - a.mean())
    pooled = math.sqrt((_squares(a) + _squares(b)) / total)
    if abs(difference) <= ROUNDING:
        difference = 0.0
    if pooled <= ROUNDING:  # the runs of each kind agree, as counts and memory may
        size = math.copysign(math.inf, difference) if difference else 0.0
        apart = difference * scale
        return Effect(apart, apart, apart, size, size, size, 0.0 if difference else 1.0)
    unit = math.sqrt(1 / len(a) + 1 / len(b))
    if min(len(a), len(b)) >= LEAST_RUNS:
        of_a, of_b = _squares(a) / (len(a) - 1) / len(a), _squares(b) / (len(b) - 1) / len(b)
        error = math.sqrt(of_a + of_b)
        freedom = 1 / ((of_a / (of_a + of_b)) ** 2 / (len(a) - 1) + (of_b / (of_a + of_b)) ** 2 / (len(b) - 1))
    else:
        error, freedom = pooled * unit, float(total)
    reach = float(stdtrit(freedom, 1 - SIGNIFICANCE / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(difference) / error))
    apart, least, most = (scale * (difference + move) for move in (0.0, -reach, reach))
    if total == 1:  # the estimate has no mean, so nothing frees it of its bias
        return Effect(apart, least, most, None, None, None, p)
    unbiased = math.exp(float(gammaln(total / 2) - gammaln((total - 1) / 2))) / math.sqrt(total / 2)
    low, high = _noncentrality(difference / (pooled * unit), total)
    size, size_unit = unbiased * difference / pooled, unbiased * unit
    return Effect(apart, least, most, size, size_unit * low, size_unit * high, p)


def _squares(levels: Floats) -> float:
    return float(((levels - levels.mean()) ** 2).sum())


def _noncentrality(t: float, freedom: int) -> tuple[float, float]:
    """The interval of the noncentrality that makes `t` neither too large nor too small."""
    from scipy.special import nctdtrinc

    within = min(max(t, -LARGEST_T), LARGEST_T)
    stretch = t / within if within else 1.0
    low, high = (float(nctdtrinc(freedom, p, within)) * stretch for p in (1 - SIGNIFICANCE / 2, SIGNIFICANCE / 2))
    return low, high


def holm(p: Floats) -> Floats:
    """Adjusted p-values that hold the chance of even one false alarm among all (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def benjamini_hochberg(p: Floats) -> Floats:
    """Adjusted p-values that hold the share of false alarms among those raised (Benjamini and Hochberg 1995)."""
    order = np.argsort(p, kind="stable")[::-1]
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def noise(values: Floats, level: Callable[[Floats], float]) -> float | None:
    """The standard error of `level(values)`, of values that follow on each other and so resemble each other.

    By batch means (Flegal and Jones 2010): levels of some sqrt(n) consecutive batches of sqrt(n) steps each are nearly independent
    where single steps are not. A straight trend is taken out first. None where the steps are too few.
    """
    size = math.isqrt(len(values))
    if size < LEAST:
        return None
    count = len(values) // size
    batches = values[len(values) - count * size :].reshape(count, size)
    levels = np.array([level(batch) for batch in batches])
    place = np.arange(count) - (count - 1) / 2
    levels -= levels.mean()
    rest = levels - place * (place @ levels) / (place @ place)
    return math.sqrt(float(rest @ rest) / (count - 2) / count)
