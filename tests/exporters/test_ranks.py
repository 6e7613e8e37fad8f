"""Merging against a float64 reference that is computed on the elements themselves, not on sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.exporters.ranks import Ranks
from resmon.records import BLOCK_COUNTS, BLOCK_VALUES, MAGNITUDE_COLUMNS, RUN_VALUES, Columns, Floats, StepRecord
from resmon.statistics import STATISTICS
from tests.synthetic import Training, run_values, sites

BLANK = Training(sites(1)).step()


def record(values: dict[str, float], elements: int, step: int = 0, nonfinite: int = 0, seed: int = 0) -> StepRecord:
    """A record of one site; what is not in `values` is absent."""
    counts = np.zeros((len(BLOCK_COUNTS), 1), np.int64)
    counts[0] = elements
    return replace(
        BLANK,
        step=step,
        blocks=np.array([[values.get(name, 12345.0)] for name in BLOCK_VALUES]),
        blocks_present=np.array([[name in values] for name in BLOCK_VALUES]),
        counts=counts,
        nonfinite_steps=np.array([nonfinite]),
        magnitude_buckets=np.random.default_rng(seed).integers(0, 9, (1, MAGNITUDE_COLUMNS)),
        magnitude_sum=np.array([float(seed)]),
    )


def gauge(records: list[StepRecord], name: str) -> float | None:
    site = Columns(sites(1))
    values, present = Ranks().step([(site, each) for each in records]).gauges[name]
    return float(values[0]) if present[0] else None


batches = st.lists(
    st.tuples(st.integers(1, 50), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1)), min_size=1, max_size=4
)


@given(batches)
@settings(max_examples=200, deadline=None)
def test_merged_values_equal_those_of_all_elements_together(shapes: list[tuple[int, float, float, int]]) -> None:
    skips: list[Floats] = []
    branches: list[Floats] = []
    gradients: list[Floats] = []
    records = []
    for elements, skip_scale, branch_scale, seed in shapes:
        random = np.random.default_rng(seed)
        skip, branch = random.normal(0, skip_scale, elements), random.normal(0, branch_scale, elements)
        gradient = random.normal(0, 1, 3)
        skips.append(skip)
        branches.append(branch)
        gradients.append(gradient)
        squares = {"skip_square": skip @ skip, "branch_square": branch @ branch, "output_square": (skip + branch) @ (skip + branch)}
        shares = {"gradient_square": gradient @ gradient, "output_gradient_square": 4 * gradient @ gradient}
        records.append(record({**squares, **shares}, elements))
    skip, branch, gradient = (np.concatenate(parts) for parts in (skips, branches, gradients))
    rms = {"skip_rms": skip, "branch_rms": branch, "output_rms": skip + branch}
    for name, every in rms.items():
        assert gauge(records, name) == pytest.approx(np.sqrt(np.mean(every**2)), rel=1e-9)
    ratio = np.sqrt(np.mean(branch**2)) / np.sqrt(np.mean(skip**2))
    assert gauge(records, "branch_skip_ratio") == pytest.approx(ratio, rel=1e-9)
    assert gauge(records, "gradient_norm") == pytest.approx(np.linalg.norm(gradient), rel=1e-9)
    assert gauge(records, "output_gradient_norm") == pytest.approx(2 * np.linalg.norm(gradient), rel=1e-9)


@given(st.permutations(range(3)))
@settings(deadline=None)
def test_the_order_of_ranks_does_not_matter(order: list[int]) -> None:
    parts = [record({"skip_square": 1.0 + i, "branch_square": 2.0 * i + 1}, 10 * (i + 1)) for i in range(3)]
    assert gauge([parts[i] for i in order], "branch_skip_ratio") == pytest.approx(gauge(parts, "branch_skip_ratio"), rel=1e-12)


def test_a_rank_without_a_value_takes_no_part() -> None:
    here = record({"skip_square": 40.0, "branch_square": 10.0}, 10)
    assert gauge([here, record({"branch_square": 1e6}, 10)], "skip_rms") == 2.0
    assert gauge([here, record({}, 0)], "branch_rms") == 1.0


def test_absence_is_absence_and_zero_is_a_value() -> None:
    nothing = record({}, 0)
    assert all(gauge([nothing, nothing], name) is None for name in STATISTICS)
    fixup = record({"skip_square": 10.0, "branch_square": 0.0, "gradient_square": 0.0}, 10)
    assert gauge([fixup], "branch_rms") == 0.0
    assert gauge([fixup], "branch_skip_ratio") == 0.0
    assert gauge([fixup], "gradient_norm") == 0.0
    assert gauge([fixup], "output_gradient_norm") is None
    dead_skip = record({"skip_square": 0.0, "branch_square": 5.0}, 10)
    assert gauge([dead_skip], "skip_rms") == 0.0
    assert gauge([dead_skip], "branch_skip_ratio") is None


def test_a_nan_on_one_rank_is_a_nan() -> None:
    healthy, sick = (record({"skip_square": 4.0, "branch_square": value}, 4) for value in (4.0, float("nan")))
    value = gauge([healthy, sick], "branch_rms")
    assert value is not None
    assert np.isnan(value)
    assert gauge([healthy, sick], "skip_rms") == 1.0


def test_ranks_of_a_pipeline_hold_different_blocks() -> None:
    first, second = sites(3)[:2], sites(3)[1:]  # one block on both
    one, two = Training(first, seed=1).step(), Training(second, seed=2).step()
    ranks, front, back = Ranks(), Columns(first), Columns(second)
    merged = ranks.step([(front, one), (back, two)])
    assert [site.name for site in merged.sites] == ["h.0", "h.1", "h.2"]
    gradient = BLOCK_VALUES.index("gradient_square")
    shares = [one.blocks[gradient, 0], one.blocks[gradient, 1] + two.blocks[gradient, 0], two.blocks[gradient, 1]]
    assert merged.gauges["gradient_norm"].values == pytest.approx(np.sqrt(shares))
    again = ranks.step([(back, two), (front, one)])
    assert [site.name for site in again.sites] == ["h.1", "h.2", "h.0"]
    assert again.gauges["gradient_norm"].values == pytest.approx(np.sqrt([shares[1], shares[2], shares[0]]))
    sites_, nonfinite, buckets, sums = ranks.counters([(front, one), (back, two)])
    assert len(sites_) == len(nonfinite) == 3
    assert (buckets[1] == one.magnitude_buckets[1] + two.magnitude_buckets[0]).all()
    assert sums[2] == two.magnitude_sum[1]


def test_one_rank_speaks_for_those_that_hold_the_same_gradients() -> None:
    site = Columns(sites(1))
    shares = {"gradient_square": 4.0, "output_gradient_square": 1.0}
    for replicas, norm in ((4.0, 4.0), (2.0, None), (1.0, None)):
        one = replace(record(shares, 10), run=run_values(replicas=replicas, gradient_square=9.0))
        merged = Ranks().step([(site, one)], expected=4)
        values, present = merged.gauges["gradient_norm"]
        assert (float(values[0]) if present[0] else None) == norm
        assert merged.gradient_norm == (None if norm is None else 6.0)
        assert not merged.gauges["output_gradient_norm"].present[0]
        everybody = Ranks().step([(site, one)] * 4, expected=4)
        assert everybody.gauges["gradient_norm"].values[0] == 4.0
        assert everybody.gauges["output_gradient_norm"].values[0] == 2.0


def test_ranks_that_know_a_block_speak_for_those_that_do_not_where_gradients_are_the_same() -> None:
    """A rank that has left a block out so far knows nothing of it, and yet holds the same gradient."""
    both, one = sites(2), sites(1)
    for replicas, factor in ((2.0, 2.0), (1.0, 1.0)):  # alike on all ranks, and parameters of their own, as a pipeline's
        first, second = Training(both, seed=1).step(), Training(one, seed=2).step()
        records = [
            (Columns(known), replace(record, run=run_values(replicas=replicas))) for known, record in ((both, first), (one, second))
        ]
        gradient = BLOCK_VALUES.index("gradient_square")
        shares = [first.blocks[gradient, 0] + second.blocks[gradient, 0], factor * first.blocks[gradient, 1]]
        merged = Ranks().step(records, expected=2).gauges
        assert merged["gradient_norm"].values == pytest.approx(np.sqrt(shares))
        assert merged["gradient_norm"].present.all()
        assert merged["output_gradient_norm"].present.all()
        # A launcher that does not say how many ranks are here.
        assert Ranks().step(records).gauges["gradient_norm"].values == pytest.approx(np.sqrt(shares))


def test_a_rank_that_has_stepped_aside_tells_no_gradients() -> None:
    """Its step is recorded without blocks: of shards the sum would be too small, and of what all hold the others speak for it."""
    site = Columns(sites(1))
    shares = {"gradient_square": 4.0, "output_gradient_square": 1.0}
    silent = record({}, 0)
    there = silent.run_present.copy()
    there[[RUN_VALUES.index(name) for name in ("replicas", "gradient_square", "stepped_square")]] = False
    silent = replace(silent, run_present=there)
    for replicas, norm in ((2.0, np.sqrt(8.0)), (1.0, None)):
        speaks = replace(record(shares, 10), run=run_values(replicas=replicas, gradient_square=9.0))
        merged = Ranks().step([(site, speaks), (site, silent)], expected=2)
        values, present = merged.gauges["gradient_norm"]
        assert (float(values[0]) if present[0] else None) == norm
        assert merged.gradient_norm == (None if norm is None else pytest.approx(np.sqrt(18.0)))
        assert not merged.gauges["output_gradient_norm"].present[0]


def test_samples_add_up_over_ranks_and_steps_do_not() -> None:
    site = Columns(sites(1))
    one, two = record({}, 1, nonfinite=3, seed=1), record({}, 1, nonfinite=2, seed=2)
    _, nonfinite, buckets, sums = Ranks().counters([(site, one), (site, two)])
    assert nonfinite.tolist() == [3]
    assert (buckets == one.magnitude_buckets + two.magnitude_buckets).all()
    assert sums.tolist() == [3.0]


def test_the_runs_gradient_norm_is_of_the_shares() -> None:
    site = Columns(sites(1))
    one, two = (Training(site.sites, seed).step() for seed in (1, 2))
    assert Ranks().step([(site, one), (site, two)]).gradient_norm == pytest.approx(np.sqrt(4.0 + 4.0))
    absent = replace(one, run_present=np.zeros_like(one.run_present))
    assert Ranks().step([(site, absent)]).gradient_norm is None
