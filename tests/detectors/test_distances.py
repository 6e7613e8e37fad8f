from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.spatial import distance as scipy_distance

from resmon.detectors import distances
from resmon.detectors.drift import by_chance
from resmon.records import Floats

counts = arrays(np.int64, st.integers(2, 12).map(lambda bins: (bins,)), elements=st.integers(0, 200))


def samples(histogram: Floats) -> Floats:
    return np.repeat(np.arange(len(histogram)), histogram)


def pair(seed: int, bins: int = 10, size: int = 400) -> tuple[Floats, Floats]:
    random = np.random.default_rng(seed)
    p, q = random.dirichlet(np.ones(bins), 2)
    return random.multinomial(size, p), random.multinomial(2 * size, q)


@pytest.mark.parametrize("seed", range(5))
def test_values_are_scipys(seed: int) -> None:
    p, q = pair(seed)
    bins = np.arange(len(p))
    assert distances.jensen_shannon(p, q) == pytest.approx(scipy_distance.jensenshannon(p, q, base=2) ** 2, rel=1e-12)
    assert distances.wasserstein(p, q) == pytest.approx(stats.wasserstein_distance(bins, bins, p, q), rel=1e-12)
    tested = stats.ks_2samp(samples(p), samples(q), method="asymp")
    assert distances.kolmogorov_smirnov(p, q) == pytest.approx(tested.statistic, rel=1e-12)
    statistic, degrees = distances.g_test(p, q)
    known = stats.chi2_contingency(np.stack([p, q])[:, p + q > 0], lambda_="log-likelihood", correction=False)
    assert (statistic, degrees) == (pytest.approx(known.statistic, rel=1e-9), known.dof)


def test_the_population_stability_index_is_that_of_its_formula() -> None:
    p, q = np.array([100, 300, 600]), np.array([200, 300, 500])
    a, b = (p + 0.5) / 1001.5, (q + 0.5) / 1001.5
    assert distances.population_stability(p, q) == pytest.approx(np.sum((a - b) * np.log(a / b)), rel=1e-12)
    assert np.isfinite(distances.population_stability(np.array([10, 0]), np.array([0, 10])))


@pytest.mark.parametrize("at", [0.05, 0.1, 0.3])
def test_the_probability_of_a_kolmogorov_distance_is_kolmogorovs(at: float) -> None:
    n, m = 300.0, 700.0
    known = stats.kstwobign.sf(np.sqrt(n * m / (n + m)) * at)
    assert distances.ks_p(np.array(at), np.array(n), np.array(m)) == pytest.approx(known, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("degrees", [4.0, 10.0, 40.0])
def test_a_bound_on_chi_square(degrees: float) -> None:
    for deviations in (2.0, 4.75):
        known = stats.chi2.isf(stats.norm.sf(deviations), degrees)
        assert distances.chi_square_bound(np.array(degrees), deviations) == pytest.approx(known, rel=0.06)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), p=counts)
def test_what_distances_are(data: st.DataObject, p: Floats) -> None:
    """Symmetric, not negative, 0 for the same shares whatever the sizes, within their ranges, unknown without a count."""
    q = data.draw(arrays(np.int64, p.shape, elements=st.integers(0, 200)))
    for each, most in (
        (distances.population_stability, np.inf),
        (distances.jensen_shannon, 1.0),
        (distances.kolmogorov_smirnov, 1.0),
        (distances.wasserstein, len(p) - 1),
    ):
        found = each(p, q)
        if p.sum() == 0 or q.sum() == 0:
            assert np.isnan(found)
            continue
        assert found == pytest.approx(each(q, p), rel=1e-9, abs=1e-15)
        assert -1e-12 <= found <= most + 1e-12
        assert each(p, p) == pytest.approx(0, abs=1e-12)
        if each is not distances.population_stability:
            assert each(p, 3 * p) == pytest.approx(0, abs=1e-9)


def test_many_sites_at_once() -> None:
    pairs = [pair(seed) for seed in range(20)]
    p, q = (np.stack(each) for each in zip(*pairs, strict=True))
    for each in (distances.jensen_shannon, distances.wasserstein, distances.kolmogorov_smirnov, distances.population_stability):
        assert each(p, q) == pytest.approx([float(each(a, b)) for a, b in pairs], rel=1e-12)


def test_chance_is_as_often_as_is_said() -> None:
    """Two samples of one distribution: of 20,000 pairs none is beyond one in a million, and as many as should be beyond 2.33."""
    random = np.random.default_rng(0)
    p = random.dirichlet(np.full(12, 2.0))
    a, b = random.multinomial(4000, p, 20_000), random.multinomial(12_000, p, 20_000)
    statistic, degrees = distances.g_test(a, b)
    assert np.mean(statistic > distances.chi_square_bound(degrees, stats.norm.isf(0.01))) == pytest.approx(0.01, abs=0.003)
    assert not (distances.jensen_shannon(a, b) > by_chance(a, b)).any()
    other = random.multinomial(4000, 0.8 * p + 0.2 * np.roll(p, 1), 100)
    assert (distances.jensen_shannon(other, b[:100]) > by_chance(other, b[:100])).all()
