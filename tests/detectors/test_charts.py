"""The charts: their recursions against a plain one, absent and odd streams, what they promise about false alarms and delay."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import exp, isfinite, log, nan, sqrt
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, stats

from resmon.detectors import charts
from resmon.detectors.charts import (
    CALIBRATION,
    CHARTS,
    FIELDS,
    GAIN,
    HINGES,
    LEARNING,
    LEAST,
    MOST,
    RARE,
    ROWS,
    SMOOTHING,
    SUMS,
    WARM_UP,
    WINDOWS,
    Charts,
    e_value,
    probability,
)

Floats = NDArray[np.float64]


def normal(steps: int, streams: int, correlation: float = 0.0, seed: int = 0) -> Floats:
    noise = np.random.default_rng(seed).normal(size=(steps, streams))
    for step in range(1, steps):
        noise[step] = correlation * noise[step - 1] + sqrt(1 - correlation**2) * noise[step]
    return noise


# -- the same by plain Python, one stream at a time ------------------------------------------------------------------------

SCORES = (-1.8, -1.2, -0.6, 0.0, 0.6, 1.2, 1.8)
BELOW = tuple(float(stats.norm.cdf(z)) for z in SCORES)
INCREMENTS = [charts._increments(chart.odds) if chart.odds else np.zeros(0) for chart in CHARTS]
PACES = tuple(1 / float(stats.norm.pdf(z)) for z in SCORES)


def bounded(value: float, most: float) -> float:
    return max(-most, min(most, value))


@dataclass
class Plain:
    """What Charts' docstring says."""

    warm_up: int
    first: list[float] = field(default_factory=list)
    count: int = 0
    evidence: float = 0.0

    def calibrate(self) -> None:
        n, half = CALIBRATION, CALIBRATION // 2
        before, after = median(self.first[:half]), median(self.first[half:])
        self.slope = (after - before) / half
        errors = [y - (before + after) / 2 - self.slope * (i - (n - 1) / 2) for i, y in enumerate(self.first)]
        most = 3 * sum(map(abs, errors)) / n
        near = [bounded(e, most) for e in errors]
        square = sum(e * e for e in near)
        phi = bounded(sum(a * b for a, b in pairwise(near)) / square, 0.9) if square else 0.0
        phi = max(phi, 0.0)
        self.level = (before + after) / 2 + self.slope * (n - 1) / 2
        self.error, self.product, self.square, self.mean = errors[-1], phi, 1.0, 0.0
        rest = sorted([errors[0], *(e - phi * b for b, e in pairwise(errors))])
        self.quantiles = []
        for below in BELOW:
            i = int(below * n - 0.5)
            self.quantiles.append(rest[i] + (below * n - 0.5 - i) * (rest[i + 1] - rest[i]))
        self.scale = (self.quantiles[4] - self.quantiles[2]) / 1.2
        self.slow, self.wander, self.energy, self.unrest = 0.0, 1.0, 1.0, 1.0
        self.sums, self.since = [0.0] * SUMS, [0] * SUMS
        self.newest: list[tuple[int, float]] = []  # number and score of each value since the charts began

    def score(self, u: float, scale: float) -> float:
        side = 1 if u > self.quantiles[3] else -1
        q = [side * each for each in self.quantiles][::side]  # rising, the ones on the side of u last
        left, z = side * u - q[3], 0.0
        for a, b in pairwise(q[3:]):
            width = max(b - a, 0.5 * 0.6 * scale)
            z += 0.6 * min(left, width) / width
            left = max(left - width, 0)
        z = side * (z + 0.6 * left / width)
        return bounded(z, MOST)

    def feed(self, y: float) -> float:
        if not isfinite(y):
            return self.evidence
        self.count += 1
        if self.count <= CALIBRATION:
            self.first.append(y)
            if self.count == CALIBRATION:
                self.calibrate()
            return self.evidence
        n, e = self.count, y - self.level - self.slope
        phi = max(min(self.product / max(self.square, 0.25), 0.9), 0.0)
        scale = max(self.scale, LEAST)
        wide = scale / sqrt(1 - phi**2)
        u = e - phi * bounded(self.error, 2.5 * wide)
        w = self.score(u, scale)
        learning, near, then = max(LEARNING, 1 / n), bounded(e, 2.5 * wide), bounded(self.error / wide, 2.5)
        gain = GAIN * min(sqrt(max(self.wander, 1)), 4)
        self.level += self.slope + max(gain, 4 / n) * near
        self.slope += max(gain**2 / 25, 6 / n**2) * near
        now, mean = near / wide, self.mean
        self.product += learning * ((now - mean) * (then - mean) - self.product)
        self.square += learning * ((now - mean) ** 2 - self.square)
        self.mean += 0.03 * (now - mean)
        self.error = e
        self.moves = self.scale >= LEAST
        self.scale += learning * (1.2567 * min(abs(u), 3 * scale) - self.scale)
        q = [a + learning * scale * pace * (below - (u < a)) for a, below, pace in zip(self.quantiles, BELOW, PACES, strict=True)]
        for k in (4, 5, 6):
            q[k] = max(q[k], q[k - 1])
        for k in (2, 1, 0):
            q[k] = min(q[k], q[k + 1])
        self.quantiles = q
        independent = SMOOTHING / (2 - SMOOTHING)
        self.wander += learning * (min(self.slow**2 / independent, 4 * max(self.wander, 1)) - self.wander)
        self.slow += SMOOTHING * (w - self.slow)
        self.unrest += learning * (min((self.energy - 1) ** 2 / independent / 2, 4 * max(self.unrest, 1)) - self.unrest)
        self.energy += SMOOTHING * (min(w * w, 9) - self.energy)
        if n > self.warm_up:
            self.newest.append((n, w))
            self.evidence = max(self.told(k, n, w) for k in range(len(CHARTS)))
        return self.evidence

    def told(self, k: int, n: int, w: float) -> float:
        chart = CHARTS[k]
        if k < SUMS:
            if chart.odds is None:
                increment = chart.move * w - chart.move**2 / 2
            else:
                c = INCREMENTS[k]
                increment = c[0] + sum(a * max(abs(w) - hinge, 0) for a, hinge in zip(c[1:], HINGES, strict=True))
            if chart.odds and not self.moves:
                return 0.0
            if self.sums[k] <= 0:
                self.since[k] = n
            self.sums[k] = statistic = max(self.sums[k], 0) + increment
        elif chart.name == "window":
            length = WINDOWS[k - SUMS] + n % WINDOWS[k - SUMS]
            statistic = sum(w for number, w in self.newest if number > n - length) ** 2 / (2 * length)
        else:
            statistic = self.slow**2 * (2 - SMOOTHING) / SMOOTHING / 2
        if chart.wanders:
            statistic /= max(self.unrest if chart.odds else self.wander, 1)
        return float(log(RARE) / chart.usual * statistic)


def plainly(values: Floats, warm_up: int) -> Floats:
    streams = [Plain(warm_up) for _ in range(values.shape[1])]
    return np.array([[stream.feed(float(y)) for stream, y in zip(streams, row, strict=True)] for row in values])


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([64, 70, 100]),
    st.floats(0, 0.95),
    st.sampled_from([1e-4, 1.0, 1e6]),
    st.floats(0, 0.3),
)
def test_every_recursion_is_the_plain_one(seed: int, warm_up: int, correlation: float, scale: float, absent: float) -> None:
    generator = np.random.default_rng(seed)
    steps, streams = 260, 5
    values = normal(steps, streams, correlation, seed) + np.arange(steps)[:, None] * generator.normal(0, 0.05, streams)
    values[:, 1] = np.exp(values[:, 1])  # skewed
    values[180:, 2] += 3
    values[200:, 3] *= 4
    values[150, 4] = 1e3
    values *= scale
    values[generator.random(values.shape) < absent] = nan
    mine = Charts(streams, warm_up=warm_up)
    found = mine.block(values)
    assert found == pytest.approx(plainly(values, warm_up), rel=1e-6, abs=1e-9)
    assert found.max() > 0


def test_the_rows_of_the_state_have_names() -> None:
    assert len(FIELDS) == ROWS == len(set(FIELDS))


@pytest.mark.parametrize("chart", [chart for chart in CHARTS if chart.odds], ids=lambda chart: f"{chart.name}-{chart.usual}")
def test_increments_of_spread_and_shape_add_up_to_a_test_martingale(chart: charts.Chart) -> None:
    assert chart.odds is not None
    c = charts._increments(chart.odds)

    def increment(w: float) -> float:
        a = min(abs(w), MOST)
        return float(c[0] + sum(b * max(a - hinge, 0) for b, hinge in zip(c[1:], HINGES, strict=True)))

    expectation, _ = integrate.quad(lambda w: exp(increment(w)) * stats.norm.pdf(w), -9, 9, limit=200, points=(-MOST, 0, MOST))
    assert expectation == pytest.approx(1, abs=2e-3)
    usual = np.linspace(-2.5, 2.5, 51)
    assert [increment(w) for w in usual] == pytest.approx(chart.odds(usual).tolist(), abs=0.35)  # hinges are near the ratio itself


# -- streams as they are ---------------------------------------------------------------------------------------------------


def odd_streams() -> Floats:
    values = normal(900, 40, seed=3)
    values[:300, 0] = nan  # starts late
    values[500:, 1] = nan  # ends
    values[::3, 2] = nan
    values[:, 3] = nan
    values[:, 4] = 2.5
    values[:, 5] = np.where(np.arange(900) < 600, 2.5, 9.0)  # constant, then another constant
    values[700, 6] = np.inf
    values[600:, 7] += 20
    return values


def test_a_block_is_the_same_as_its_steps() -> None:
    values = odd_streams()
    blocks, steps = Charts(40), Charts(40)
    by_block = np.concatenate([blocks.block(values[i : i + 16]) for i in range(0, 900, 16)])
    by_step = np.stack([steps.step(row) for row in values])
    assert np.array_equal(by_block, by_step)
    assert np.array_equal(blocks.state, steps.state)


def test_streams_do_not_know_of_each_other() -> None:
    values = odd_streams()
    together = Charts(40).block(values)
    order = np.random.default_rng(1).permutation(40)
    assert np.array_equal(Charts(40).block(values[:, order]), together[:, order])
    assert np.array_equal(Charts(3).block(values[:, 5:8]), together[:, 5:8])


def test_an_absent_value_leaves_a_stream_as_it_is() -> None:
    values = normal(700, 2, seed=4)
    sparse = np.full((1400, 2), nan)
    sparse[::2] = values
    whole, holey = Charts(2), Charts(2)
    assert np.array_equal(whole.block(values), holey.block(sparse)[::2])
    assert np.array_equal(whole.state, holey.state)
    before = holey.state.copy()
    holey.step([nan, np.inf])
    assert np.array_equal(holey.state, before)


def test_a_stream_that_never_comes_a_constant_one_and_one_that_is_too_short_say_nothing() -> None:
    found = Charts(40).block(odd_streams())
    assert np.isfinite(found).all()
    assert not found[:, 3].any()
    assert found[:, 4].max() < 1e-3
    assert not found[: WARM_UP + 300, 0].any()
    assert found[:, [0, 1, 2, 6]].max() < 10


def test_a_constant_stream_that_jumps_is_told_within_some_steps() -> None:
    found = Charts(40).block(odd_streams())[:, 5]
    assert found[:600].max() < 1e-3
    assert (found > charts.LIMIT).argmax() in range(601, 608)


def test_scores_are_standard_normal_whatever_the_stream() -> None:
    generator = np.random.default_rng(5)
    noise = normal(6000, 200, 0.5, seed=5)
    values = np.concatenate([noise[:, :100] * 1e-2 - 3, np.exp(noise[:, 100:])], axis=1) + np.arange(6000)[:, None] * 1e-3
    values[:, ::2] *= generator.uniform(1, 100, 100)
    scores = np.empty_like(values)
    Charts(200).block(values, scores)
    late = scores[2000:]
    assert np.isnan(scores[:CALIBRATION]).all()
    assert abs(late.mean()) < 0.02
    assert late.std() == pytest.approx(1, abs=0.03)
    assert abs(stats.skew(late, axis=None)) < 0.2
    assert abs((late[1:] * late[:-1]).mean()) < 0.05  # the streams' own correlation is 0.5


def test_a_stream_that_was_reset_begins_anew_and_the_others_go_on() -> None:
    values = normal(800, 3, seed=6)
    mine, untouched, fresh = Charts(3), Charts(3), Charts(3)
    mine.block(values[:400])
    untouched.block(values[:400])
    mine.reset(np.array([False, True, False]))
    found, kept, anew = (each.block(values[400:]) for each in (mine, untouched, fresh))
    assert np.array_equal(found[:, 1], anew[:, 1])
    assert np.array_equal(found[:, [0, 2]], kept[:, [0, 2]])
    assert mine.ready.tolist() == [True, True, True]


def test_a_stream_that_was_rearmed_keeps_its_noise_and_forgets_what_its_charts_had_added_up() -> None:
    values = normal(600, 2, seed=7)
    values[550:] += 3
    mine = Charts(2)
    mine.block(values)
    level, scale = mine.row("level").copy(), mine.row("scale").copy()
    assert (mine.evidence > mine.limit).all()
    mine.rearm([0])
    assert mine.evidence[0] == 0
    assert mine.evidence[1] > mine.limit
    assert np.array_equal(mine.row("level"), level)
    assert np.array_equal(mine.row("scale"), scale)


def test_the_state_can_be_saved_and_put_back() -> None:
    values = odd_streams()
    mine = Charts(40)
    mine.block(values[:350])
    state, first = mine.state.copy(), mine.first.copy()
    expected = mine.block(values[350:])
    other = Charts(40)
    other.state, other.first = state, first
    assert np.array_equal(other.block(values[350:]), expected)


def test_what_is_not_an_array_of_the_streams_is_refused() -> None:
    mine = Charts(3)
    with pytest.raises(ValueError, match=r"not \[steps, 3\]"):
        mine.block(np.zeros((5, 4)))
    mine.state = mine.state.T.copy().T
    with pytest.raises(ValueError, match="dense"):
        mine.step(np.zeros(3))
    with pytest.raises(ValueError, match="calibrated by its first 64"):
        Charts(3, warm_up=63)


# -- what they promise -----------------------------------------------------------------------------------------------------


def crossings(evidence: Floats, limit: float) -> int:
    return int(((evidence[1:] > limit) & (evidence[:-1] <= limit)).sum())


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_false_alarms_are_as_rare_as_promised(correlation: float) -> None:
    evidence = Charts(500).block(normal(4000, 500, correlation, seed=8))[500:]
    for limit, at_least in ((10, 1500), (12, 6000), (15, 40_000), (charts.LIMIT, 150_000)):
        alarms = crossings(evidence, limit)
        assert alarms * at_least <= evidence.size, f"{alarms} crossings of {limit} in {evidence.size} values"
        assert alarms <= evidence.size * probability(limit, 1)
    assert crossings(evidence, 8) > 0  # what is counted can happen


def test_a_trend_and_heavy_tails_are_no_change() -> None:
    generator = np.random.default_rng(9)
    noise = generator.standard_t(3, size=(3000, 300)) * 0.1
    steps = np.arange(3000)[:, None]
    values = 3 * np.exp(-steps / 800) + noise
    assert (Charts(300).block(values) > charts.LIMIT).any(axis=0).mean() < 0.08


@pytest.mark.parametrize(
    ("change", "direction", "within"),
    [
        (lambda noise: noise + 8, "up", 4),
        (lambda noise: noise - 3, "down", 15),
        (lambda noise: noise + 1.5, "up", 60),
        (lambda noise: noise * 3, "wider", 25),
        (lambda noise: noise * 0.3, "narrower", 40),
        (lambda noise: np.sign(noise) + noise * 0.1, "shape", 60),
    ],
    ids=["large", "down", "small", "wider", "narrower", "shape"],
)
def test_a_change_is_told_in_time_and_described(change: object, direction: str, within: int) -> None:
    values = normal(1200, 60, seed=10)
    values[1000:] = change(values[1000:])  # type: ignore[operator]
    mine = Charts(60)
    quiet = mine.block(values[:1000])
    assert crossings(quiet, charts.LIMIT) == 0
    found = mine.block(values[1000:])
    delays = (found > charts.LIMIT).argmax(axis=0)
    assert (found > charts.LIMIT).any(axis=0).all()
    assert np.median(delays) + 1 <= within
    again = Charts(60)
    again.block(values[: 1000 + int(np.median(delays)) + 1])
    said = [again.change(stream) for stream in range(60) if again.evidence[stream] > charts.LIMIT]
    assert np.mean([each.direction == direction for each in said]) > 0.8
    right = [each for each in said if each.direction == direction]
    onsets = [each.ago - int(np.median(delays)) - 1 for each in right]
    assert abs(np.median(onsets)) <= max(4, within / 4)  # the change began at the first value of them
    assert all(each.statistic > 0 and each.evidence > charts.LIMIT for each in said)
    if direction in ("up", "down"):
        size = np.median([each.size for each in right])
        assert size == pytest.approx(np.mean(values[1000:1100] - normal(1200, 60, seed=10)[1000:1100]), rel=0.6)


def test_one_value_is_never_a_change_but_two_far_ones_and_more_are() -> None:
    values = normal(1000, 200, seed=11)
    values[900] += 1000.0
    assert Charts(200).block(values)[900:910].max() < charts.LIMIT
    values[901:905] += 1000.0
    assert (Charts(200).block(values)[904] > charts.LIMIT).all()


def test_a_chart_that_is_left_out_says_nothing() -> None:
    values = normal(1000, 20, seed=12)
    values[800:] *= 3
    mine, without = Charts(20), Charts(20, without=("spread", "shape"))
    mine.block(values[:850])
    without.block(values[:850])
    assert {mine.change(i).direction for i in range(20)} == {"wider"}
    assert not {without.change(i).chart for i in range(20)} & {"spread", "shape"}
    assert (without.evidence < mine.evidence).all()


@given(st.floats(0, 60), st.floats(0, 60), st.integers(1, 10**9))
def test_probability_and_e_value_go_with_the_evidence(less: float, more: float, values: int) -> None:
    less, more = sorted((less, more))
    assert 0 <= probability(more, values) <= probability(less, values) <= 1
    assert e_value(probability(less, values)) <= e_value(probability(more, values)) * (1 + 1e-6) + 1e-3


def test_an_e_value_of_a_uniform_probability_has_expectation_one() -> None:
    # by parts on a logarithmic scale, as nearly all of it comes from small probabilities: p e(p) = integral of kappa p^kappa
    found, _ = integrate.quad(lambda t: e_value(exp(-t)) * exp(-t), 1e-6, 680, limit=500)
    assert found == pytest.approx(1 - 1 / 680, abs=5e-3)
