from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from resmon.detectors.history import EVERY, History, Usual
from resmon.detectors.window import median
from tests import synthetic


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 33), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_medians_are_numpys(rows: int, seed: int, missing: float) -> None:
    random = np.random.default_rng(seed)
    values = np.where(random.random((rows, 7)) < missing, np.nan, random.normal(0, 1, (rows, 7)))
    there = (~np.isnan(values)).sum(axis=0)
    meant = [np.median(column[~np.isnan(column)]) if count >= 3 else np.nan for column, count in zip(values.T, there, strict=True)]
    assert np.allclose(median(values, 3), meant, equal_nan=True)


def test_a_history_holds_the_newest_and_keeps_what_it_is_told_to() -> None:
    history, sites = History(4), synthetic.sites(2)
    history.arrange(sites)
    for i in range(6):
        history.push(np.array([i, 10.0 * i]))
    assert history.newest(3).tolist() == [[3, 30], [4, 40], [5, 50]]
    for i in range(6, 20):
        history.push(np.array([i, 1e9]), keep=np.array([False, True]))
    assert history.median().tolist() == [17.5, 35.0]  # of the second site nothing has changed
    assert history.count().tolist() == [4, 4]


def test_a_history_rounds_to_single_precision_and_no_number_of_a_double_becomes_infinite() -> None:
    history, sites = History(2), synthetic.sites(3)
    history.arrange(sites)
    for _ in range(2):
        history.push(np.array([1 / 3, 1e300, np.nan]))
    third, large, missing = history.newest(1)[0]
    assert third == np.float32(1 / 3) and large > 1e38 and np.isnan(missing)
    assert history.median().dtype == np.float64 and np.isfinite(history.median()[:2]).all()
    assert history.spread().tolist()[:2] == [0.0, 0.0]


def test_what_is_usual_is_the_median_and_the_robust_deviation() -> None:
    usual, sites = Usual(length=32, least=8), synthetic.sites(3)
    usual.arrange(sites)
    values = np.random.default_rng(0).normal(5.0, 2.0, (64, 3))
    values[:, 2] = np.nan
    for i, row in enumerate(values):
        assert np.isnan(usual.level).all() == (i < 8)
        usual.push(row)
    newest = values[32:, :2]
    assert usual.level[:2] == pytest.approx(np.median(newest, axis=0))
    assert usual.spread[:2] == pytest.approx(stats.median_abs_deviation(newest, scale="normal", axis=0), rel=1e-3)
    assert np.isnan([usual.level[2], usual.spread[2]]).all()


def test_what_is_usual_is_at_most_some_windows_old() -> None:
    usual = Usual(length=8, least=2)
    usual.arrange(synthetic.sites(1))
    for _ in range(8):
        usual.push(np.ones(1))
    for i in range(8 + EVERY):
        usual.push(np.full(1, 2.0))
        assert usual.level[0] == (1.0 if i < 4 else 2.0) or 4 - EVERY <= i < 4 + EVERY
    assert usual.level[0] == 2.0


def test_what_is_usual_stays_with_its_site() -> None:
    usual, sites = Usual(length=8, least=2), synthetic.sites(3)
    usual.arrange(sites)
    for _ in range(4):
        usual.push(np.array([1.0, 2.0, 3.0]))
    usual.arrange(sites[::-1][:2])
    assert usual.level.tolist() == [3.0, 2.0]
    usual.arrange(sites)
    assert np.isnan(usual.level).tolist() == [True, False, False]
