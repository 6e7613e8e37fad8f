"""How far two binned distributions are from each other, of many sites at once.

Counts are [..., B], the bins in order, in the same edges for both. All distances are of the shares, and are 0 where the shares are
the same; NaN where one side has no count. They do not know how large the samples were: `g_test` and `ks_p` do.

- Population stability index: sum (p - q) ln(p / q), the symmetric Kullback-Leibler divergence. Industry's rule is that 0.1 is a
  small shift and 0.25 a large one. Half a count is added to each bin, so that an empty one is not infinitely far away.
- Jensen-Shannon divergence, in bits: 0 to 1, finite where bins are empty; its root is a metric (Lin 1991, Endres and Schindelin
  2003).
- Kolmogorov-Smirnov: the largest difference of the cumulative shares. On bins it is at most that of the values themselves.
- Wasserstein-1, in bins: the sum of the differences of the cumulative shares, which is how far a count has to travel on average.
  Bins that are powers of 2 make it a mean difference in doublings.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from resmon.records import Floats

Counts = npt.NDArray[np.float64] | npt.NDArray[np.int64]
LN2 = float(np.log(2.0))
_TERMS = 100  # of the Kolmogorov distribution's series


def shares(counts: Counts) -> Floats:
    total = counts.sum(axis=-1, keepdims=True, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(total > 0, counts / total, np.nan)
    return found


def population_stability(counts: Counts, reference: Counts) -> Floats:
    p, q = (
        (each + 0.5) / (each.sum(axis=-1, keepdims=True, dtype=np.float64) + 0.5 * each.shape[-1]) for each in (counts, reference)
    )
    known = (counts.sum(axis=-1) > 0) & (reference.sum(axis=-1) > 0)
    found: Floats = np.where(known, ((p - q) * np.log(p / q)).sum(axis=-1), np.nan)
    return found


def jensen_shannon(counts: Counts, reference: Counts) -> Floats:
    p, q = shares(counts), shares(reference)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(p > 0, p * np.log2(p / middle), 0.0) + np.where(q > 0, q * np.log2(q / middle), 0.0)
    found: Floats = np.where(np.isnan(middle).any(axis=-1), np.nan, np.maximum(parts.sum(axis=-1) / 2, 0.0))
    return found


def kolmogorov_smirnov(counts: Counts, reference: Counts) -> Floats:
    found: Floats = np.abs(np.cumsum(shares(counts) - shares(reference), axis=-1)).max(axis=-1)
    return found


def wasserstein(counts: Counts, reference: Counts) -> Floats:
    found: Floats = np.abs(np.cumsum(shares(counts) - shares(reference), axis=-1)[..., :-1]).sum(axis=-1)
    return found


def g_test(counts: Counts, reference: Counts) -> tuple[Floats, Floats]:
    """The likelihood-ratio statistic of "both are samples of one distribution", and its degrees of freedom (Wilks 1938).

    For independent counts it has about a chi-square distribution; where samples come in groups it is larger by the groups' design
    effect (Rao and Scott 1981).
    """
    both = counts + reference
    total = both.sum(axis=-1, keepdims=True, dtype=np.float64)
    statistic = np.zeros(both.shape[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        for each in (counts, reference):
            expected = both * (each.sum(axis=-1, keepdims=True, dtype=np.float64) / total)
            statistic = statistic + 2 * np.where(each > 0, each * np.log(each / expected), 0.0).sum(axis=-1)
    empty = (counts.sum(axis=-1) == 0) | (reference.sum(axis=-1) == 0)
    degrees = np.maximum(1.0, np.count_nonzero(both > 0, axis=-1) - 1.0)
    return np.where(empty, np.nan, np.maximum(statistic, 0.0)), degrees


def chi_square_bound(degrees: Floats, deviations: float) -> Floats:
    """What a chi-square statistic exceeds with the probability of so many standard deviations (Wilson and Hilferty 1931)."""
    spread = 2.0 / (9.0 * degrees)
    found: Floats = degrees * (1.0 - spread + deviations * np.sqrt(spread)) ** 3
    return found


def ks_p(distance: Floats, size: Floats, reference: Floats) -> Floats:
    """The probability of so large a Kolmogorov-Smirnov distance by chance, at most: on bins the truth is below it."""
    at = np.sqrt(size * reference / (size + reference)) * distance
    k = np.arange(1, _TERMS + 1).reshape(-1, *([1] * np.ndim(at)))
    with np.errstate(under="ignore"):
        series = 2 * ((-1.0) ** (k - 1) * np.exp(-2 * k**2 * np.asarray(at)[None] ** 2)).sum(axis=0)
    found: Floats = np.where(at < 0.2, 1.0, np.clip(series, 0.0, 1.0))  # the series needs more terms below, and is 1 there
    return found
