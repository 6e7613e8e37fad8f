"""Who is named: the worst, and as few as can be over time."""

from __future__ import annotations

import numpy as np
import pytest

from resmon.exporters.worst import HOLD, Worst
from resmon.records import Floats
from resmon.statistics import Column


class Run:
    """A thousand blocks whose ratio and gradient norm are noise around 1; a step takes ten seconds."""

    def __init__(self, count: int, blocks: int = 1000, levels: float = 0.0, seed: int = 0, pace: float = 10.0) -> None:
        self.worst = Worst(np.zeros(blocks, np.int64))
        self.count, self.pace, self.now = count, pace, 1000.0
        self.random = np.random.default_rng(seed)
        self.levels = self.random.normal(0, levels, blocks)
        self.nonfinite = np.zeros(blocks, np.int64)
        self.found = np.zeros(blocks, bool)
        self.ever: set[int] = set()

    @property
    def named(self) -> set[int]:
        return set(np.flatnonzero(self.worst.named).tolist())

    def step(
        self, ratio: dict[int, float] | None = None, gradient: dict[int, float] | None = None, wait: float | None = None
    ) -> None:
        self.now += self.pace if wait is None else wait
        columns = {}
        for name, values in (("branch_skip_ratio", ratio), ("gradient_norm", gradient)):
            noise: Floats = np.exp(self.levels + self.random.normal(0, 0.3, len(self.levels)))
            for i, value in (values or {}).items():
                noise[i] = value
            columns[name] = Column(noise, np.ones(len(noise), bool))
        self.worst.step(self.now, columns, self.nonfinite)
        self.worst.choose(self.count, self.found)
        assert len(self.named) == min(self.count, len(self.levels))
        named = self.named
        self.worst.choose(self.count, self.found)
        assert self.named == named  # asked again, it says the same
        self.ever |= self.named


@pytest.mark.parametrize("levels", [0.0, 1.0])
@pytest.mark.parametrize("count", [5, 200])
def test_noise_does_not_change_the_names(count: int, levels: float) -> None:
    """Three hours of a healthy run. By rank alone, nearly every block would have been named."""
    run = Run(count, levels=levels)
    for _ in range(1200):
        run.step()
    assert len(run.ever) <= 1.2 * count


def test_heavy_noise_changes_few() -> None:
    """Blocks that now and then jump for one step, by a factor of up to 20 and each at its own time."""
    run = Run(50)
    for _ in range(1200):
        run.step(gradient={int(i): 20 ** run.random.uniform(-1, 1) for i in run.random.integers(0, 1000, 3)})
    assert len(run.ever) <= 200


@pytest.mark.parametrize("value", [100.0, 0.01, 0.0, float("inf"), float("nan")])
@pytest.mark.parametrize("what", ["ratio", "gradient"])
def test_a_block_that_goes_astray_is_named_at_once(what: str, value: float) -> None:
    run = Run(5)
    for _ in range(100):
        run.step()
    assert 777 not in run.named
    run.step({777: value} if what == "ratio" else None, {777: value} if what == "gradient" else None)
    assert 777 in run.named


def test_non_finite_is_worse_than_any_distance_and_a_finding_worse_than_that() -> None:
    run = Run(2)
    run.step(ratio={1: 1e9, 2: 1e8})
    assert run.named == {1, 2}
    run.nonfinite[[3, 4, 5]] += 1
    run.step(ratio={1: 1e9, 2: 1e8})
    assert run.named == {3, 4}  # the first in order of execution
    run.found[9] = True
    run.step(ratio={1: 1e9, 2: 1e8})
    assert 9 in run.named
    assert len(run.named & {3, 4}) == 1


def test_all_blocks_non_finite_does_not_change_the_names() -> None:
    run = Run(20)
    for _ in range(50):
        run.step()
    run.nonfinite[30:60] += 1
    run.step()
    named = run.named
    for _ in range(500):
        run.nonfinite += 1
        run.step()
    assert run.named == named


def test_who_is_better_stays_until_another_has_been_worse_for_as_long() -> None:
    run = Run(1, levels=0.0)
    run.step(ratio={10: 1e3})
    assert run.named == {10}
    steps = int(HOLD / run.pace)
    # Block 10 is well again, block 20 ill, but not so much that it needs the name at once.
    for _ in range(steps - 1):
        run.step(ratio={10: 1.0, 20: 200.0}, gradient={10: 1.0})
    assert run.named == {10}
    for _ in range(2):
        run.step(ratio={10: 1.0, 20: 200.0}, gradient={10: 1.0})
    assert run.named == {20}


def test_who_is_next_to_the_worst_stays() -> None:
    run = Run(1, levels=0.0)
    run.step(ratio={10: 200.0})
    for _ in range(3 * int(HOLD / run.pace)):
        run.step(ratio={10: 200.0, 20: 300.0})
    assert run.named == {10}


def test_a_clock_that_jumps_ends_no_hold() -> None:
    run = Run(5)
    for _ in range(20):
        run.step()
    named = run.named
    for wait in (1e9, -2e9, 0.0, 1e7, -5.0):
        run.step(wait=wait)
        assert run.named == named
    run.step(ratio={777: 1e6}, wait=-1e5)
    assert 777 in run.named


def test_twins_are_not_far_apart() -> None:
    """Without a least spread, blocks that agree to the last digits would be at infinite distance from one another."""
    run = Run(1)
    columns = {name: Column(np.linspace(1.0, 1.0001, 1000), np.ones(1000, bool)) for name in ("branch_skip_ratio", "gradient_norm")}
    run.worst.step(0.0, columns, run.nonfinite)
    run.worst.choose(1, run.found)
    first = run.named
    for _ in range(100):
        run.worst.step(0.0, {name: Column(values[::-1], present) for name, (values, present) in columns.items()}, run.nonfinite)
        run.worst.choose(1, run.found)
    assert run.named == first


def test_what_is_absent_is_not_far() -> None:
    worst = Worst(np.zeros(4, np.int64))
    column = Column(np.array([1.0, 1.1, 1.3, 1e9]), np.array([True, True, True, False]))
    nothing = Column(np.full(4, np.nan), np.zeros(4, bool))
    worst.step(0.0, {"branch_skip_ratio": column, "gradient_norm": nothing}, np.zeros(4, np.int64))
    worst.choose(3, np.zeros(4, bool))
    assert not worst.named[3] or worst.named.sum() == 4


def test_peers_are_compared_with_their_own() -> None:
    """The second group's values lie far from the first's, and yet its own outlier is the worst."""
    worst = Worst(np.repeat([0, 1], 50))
    values = np.concatenate((np.linspace(1, 2, 50), np.linspace(1e6, 2e6, 50)))
    values[70] = 1.5  # usual in the first group
    column = Column(values, np.ones(100, bool))
    worst.step(0.0, {"branch_skip_ratio": column, "gradient_norm": column}, np.zeros(100, np.int64))
    worst.choose(1, np.zeros(100, bool))
    assert np.flatnonzero(worst.named).tolist() == [70]


def test_blocks_that_appear_take_nothing_from_those_that_were_there() -> None:
    run = Run(5, blocks=20)
    run.nonfinite[3] = 7
    run.step(ratio={12: 1e6})
    places = np.concatenate((np.arange(10), [-1], np.arange(10, 20)))  # a new block in the middle
    other = run.worst.over(places, np.zeros(21, np.int64))
    assert set(np.flatnonzero(other.named).tolist()) == {i + (i >= 10) for i in run.named}
    nonfinite = np.insert(run.nonfinite, 10, 0)
    ones = Column(np.ones(21), np.ones(21, bool))
    other.step(run.now + 1, {"branch_skip_ratio": ones, "gradient_norm": ones}, nonfinite)
    other.choose(5, np.zeros(21, bool))
    assert other.named[[3, 13]].all()
    assert not other.named[10]
