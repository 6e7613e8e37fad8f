from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from resmon.detectors.history import History, Register
from resmon.detectors.window import Window, Windows, median, rearranged
from resmon.records import MAGNITUDE_COLUMNS, Columns, Floats, ResidualSite, ScalarRecord, StepRecord
from tests import synthetic
from tests.detectors.course import Item, course

NAN = float("nan")


def windows_of(*stretches: list[Item]) -> list[Window]:
    gathering, made = Windows(), []
    sites: tuple[ResidualSite, ...] = ()
    for item in (item for stretch in stretches for item in stretch):
        if isinstance(item, Columns):
            sites = item.sites
        elif isinstance(item, StepRecord):
            made += gathering.add(item, sites)
        else:
            gathering.log(item)
    return [*made, *gathering.flush()]


def test_steps_come_in_sixteens_and_the_rest_at_the_end() -> None:
    found = windows_of(course(40))
    assert [(window.first_step, window.step, len(window)) for window in found] == [(0, 15, 16), (16, 31, 16), (32, 39, 8)]
    assert found[1].steps.tolist() == list(range(16, 32))
    assert found[1].time == 1031.0


def test_a_window_is_given_when_the_step_behind_it_comes_with_all_that_was_logged() -> None:
    gathering, items = Windows(), course(17, scalars={"loss": np.arange(17.0), "late": np.where(np.arange(17) == 15, 3.0, np.nan)})
    columns, *others = items
    assert isinstance(columns, Columns)
    given: list[Window] = []
    for item in others:
        if isinstance(item, StepRecord):
            now = list(gathering.add(item, columns.sites))
            assert bool(now) == (item.step == 16)
            given += now
        elif isinstance(item, ScalarRecord):
            gathering.log(item)
    (window,) = given
    np.testing.assert_array_equal(window.scalars["loss"], np.arange(16.0))
    np.testing.assert_array_equal(window.scalars["late"], [*[NAN] * 15, 3.0])


def test_missing_steps_and_other_sites_end_a_window_early() -> None:
    few, many = synthetic.sites(2), synthetic.sites(4)
    found = windows_of(course(5, few), course(5, few, first=100), course(20, many, first=105))
    assert [(w.first_step, len(w), len(w.sites)) for w in found] == [(0, 5, 2), (100, 5, 2), (105, 16, 4), (121, 4, 4)]
    assert found[2].blocks("skip_rms").shape == (16, 4)


def test_steps_that_go_back_begin_a_window_of_their_own() -> None:
    found = windows_of(course(20), course(20, first=8))
    assert [(w.first_step, w.step, len(w)) for w in found] == [(0, 15, 16), (16, 19, 4), (8, 23, 16), (24, 27, 4)]


def test_statistics_are_those_of_the_records_and_absent_or_infinite_is_nan() -> None:
    ratio = np.full((16, 3), 0.25)
    ratio[3, 1], ratio[4, 2] = NAN, np.inf
    (window,) = windows_of(course(16, 3, jitter=0.0, skip_rms=2.0, branch_rms=2.0 * ratio))
    expected = ratio.copy()
    expected[4, 2] = NAN
    np.testing.assert_allclose(window.blocks("branch_skip_ratio"), expected, rtol=1e-12)
    np.testing.assert_allclose(window.median("branch_skip_ratio"), 0.25)
    np.testing.assert_allclose(window.median("skip_rms"), 2.0)
    assert np.isnan(window.median("headroom")).all()
    assert window.run("learning_rate").tolist() == [0.1] * 16


def test_a_level_needs_half_of_the_steps() -> None:
    branch = np.full((16, 2), 0.3)
    branch[:9, 0], branch[:8, 1] = NAN, NAN
    (window,) = windows_of(course(16, 2, branch_rms=branch))
    assert np.isnan(window.median("branch_rms")[0]) and not np.isnan(window.median("branch_rms")[1])


@pytest.mark.parametrize("blocks", [3, 300])  # of many, those in between are let go
def test_the_histogram_is_that_of_the_window_alone(blocks: int) -> None:
    training = synthetic.Training(synthetic.sites(blocks))
    records = [training.step() for _ in range(40)]
    gathering, found = Windows(), []
    for record in records:
        found += gathering.add(record, training.sites)
    first, second = found
    assert second.histogram.shape == (blocks, MAGNITUDE_COLUMNS)
    np.testing.assert_array_equal(first.histogram, records[15].magnitude_buckets - records[0].magnitude_buckets)
    np.testing.assert_array_equal(second.histogram, records[31].magnitude_buckets - records[15].magnitude_buckets)


def test_of_many_blocks_a_window_holds_the_histograms_of_two_steps() -> None:
    training = synthetic.Training(synthetic.sites(300))
    gathering = Windows()
    for _ in range(12):
        assert not list(gathering.add(training.step(), training.sites))
    held = [len(record.magnitude_buckets) > 0 for record in gathering._records]
    assert held == [True] + [False] * 10 + [True]


def test_values_logged_without_steps_do_not_pile_up() -> None:
    gathering = Windows()
    for step in range(20_000):
        gathering.log(ScalarRecord(step, 0.0, {"loss": 1.0}))
    assert len(gathering._scalars) < 5000


@given(arrays.arrays(float, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-9, 9) | st.just(NAN)))
def test_median_is_numpys(values: Floats) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = np.nanmedian(values, axis=0)
    np.testing.assert_array_equal(median(values), expected)
    enough = (~np.isnan(values)).sum(axis=0) >= 3
    np.testing.assert_array_equal(median(values, 3), np.where(enough, expected, NAN))


def test_what_is_known_of_a_site_stays_with_it() -> None:
    old = synthetic.sites(3)
    new = (old[2], synthetic.sites(5)[4], old[0])
    np.testing.assert_array_equal(rearranged(np.arange(6.0).reshape(2, 3), old, new, NAN), [[2, NAN, 0], [5, NAN, 3]])
    assert rearranged(np.arange(3), old, (), 0).shape == (0,)


def test_history_is_the_newest_values_of_each_site() -> None:
    history, sites = History(4), synthetic.sites(2)
    history.arrange(sites)
    for i in range(6):
        history.push(np.array([float(i), NAN if i < 4 else 10.0 * i]))
    assert history.count().tolist() == [4, 2]
    np.testing.assert_array_equal(history.median(), [3.5, 45.0])
    np.testing.assert_array_equal(history.median(3), [3.5, NAN])
    np.testing.assert_array_equal(history.newest(2), [[4.0, 40.0], [5.0, 50.0]])
    assert history.spread()[0] == pytest.approx(1.4826 * 1.0)
    history.arrange((sites[1],))
    np.testing.assert_array_equal(history.newest(1), [[50.0]])
    history.forget([0])
    assert history.count().tolist() == [0]


def test_one_number_stays_with_its_site() -> None:
    many = synthetic.sites(4)
    register = Register(0.0)
    register.arrange(many)
    assert register.values.tolist() == [0, 0, 0, 0]
    register.values = np.array([1.0, 2.0, 3.0, 4.0])
    register.arrange(many[2:] + synthetic.sites(1, "other"))
    assert register.values.tolist() == [3, 4, 0]
    register.arrange(many)
    assert register.values.tolist() == [0, 0, 3, 4]


def test_what_is_there_and_not_finite_is_present() -> None:
    gradient = np.full((16, 3), 0.1)
    gradient[:, 1], gradient[:, 2] = NAN, 1e200  # whose square is infinite
    with np.errstate(over="ignore"):
        (window,) = windows_of(course(16, 3, gradient_norm=gradient))
    assert window.present("gradient_norm").all(axis=0).tolist() == [True, False, True]
    assert np.isnan(window.blocks("gradient_norm")).all(axis=0).tolist() == [False, True, True]
