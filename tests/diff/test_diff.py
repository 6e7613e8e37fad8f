"""`resmon diff`: its statistics against scipy's, how often it is wrong over many trainings, and what it says of bad input."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from torch import nn

import resmon
from resmon.cli import main
from resmon.commands.runs import find_runs
from resmon.diff.comparison import GROUPS, Comparison, Row, compare
from resmon.diff.effects import benjamini_hochberg, effect, holm, noise
from resmon.diff.report import as_json, render
from resmon.errors import FlightError, ResmonError
from resmon.flight.layout import claim
from resmon.flight.writer import FlightWriter
from resmon.records import Floats, RunEnd, ScalarRecord
from resmon.scores.directions import HIGHER, LOWER, NEITHER, direction
from tests.synthetic import Training, info, run_values, sites

ROOT = Path(__file__).parents[2]


def record(
    directory: Path,
    run: str,
    losses: Sequence[float],
    *,
    seed: int = 0,
    scores: Mapping[str, Mapping[int, float]] | None = None,
    durations: Sequence[float] | None = None,
    first: int = 0,
    blocks: int = 2,
    scale: float = 1.0,
    end: bool = True,
    budget: int = 16 << 20,
    **values: float,
) -> Path:
    """A flight by the real writer, with these losses; `scale` multiplies what the branches add."""
    folder, attempt = claim(directory, run, f"{run}-{np.random.default_rng().integers(1 << 40)}", 0)
    writer = FlightWriter(folder, info(run=run, attempt=attempt, seed=seed), budget)
    training = Training(sites(blocks), seed)
    writer.sites(training.sites)
    for i, loss in enumerate(losses):
        made = training.step()
        made.blocks[1] *= scale**2
        usual = {"gradient_square": 4.0 + seed * 0.01 + i * 0.001, "memory_peak": 1e9, "samples": 8.0}
        duration = durations[i] if durations is not None else 0.25
        made = replace(made, step=first + i, run=run_values(**(usual | values | {"duration": duration})))
        writer.step(made)
        logged = {name: at[first + i] for name, at in (scores or {}).items() if first + i in at}
        writer.scalars(ScalarRecord(first + i, made.time, {"loss": loss} | logged))
    if end:
        writer.end(RunEnd("finished", 2000.0, None))
    else:
        _writers.append(writer)
    return folder.parent.parent


_writers: list[FlightWriter] = []  # of runs that are still under way, as long as the tests run


def wavering(seed: int, level: float = 1.0, steps: int = 120, spread: float = 0.05) -> Floats:
    """A loss whose steps resemble each other, around a level that is the seed's own."""
    random = np.random.default_rng(seed)
    values = np.empty(steps)
    state = 0.0
    for i in range(steps):
        state = 0.9 * state + random.normal(0, 0.02)
        values[i] = state
    return level + random.normal(0, spread) + values


def row(comparison: Comparison, name: str, block: str | None = None, at: str = "shared") -> Row:
    (found,) = [row for row in comparison.rows if (row.name, row.block, row.at) == (name, block, at)]
    return found


def printed(comparison: Comparison, everything: bool = False) -> str:
    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(render(comparison, everything))
    return capture.get()


level = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
levels = st.lists(level, min_size=2, max_size=8).map(np.array)
many = st.lists(level, min_size=3, max_size=8).map(np.array)


@given(many, many)
def test_the_test_is_welchs(a: Floats, b: Floats) -> None:
    made = effect(a, b)
    assert made is not None
    # Where a kind has no spread to speak of scipy warns of lost precision; that case has a test of its own.
    if min(a.std(), b.std()) < 1e-6 * max(np.abs(a).max(), np.abs(b).max(), 1.0):
        return
    reference = stats.ttest_ind(b, a, equal_var=False)
    interval = reference.confidence_interval()
    scale = float(np.abs([*a, *b]).max())
    assert made.p == pytest.approx(reference.pvalue, rel=1e-9, abs=1e-12)
    assert (made.low, made.high) == pytest.approx((interval.low, interval.high), rel=1e-9, abs=1e-9 * scale)


@given(levels, st.lists(level, min_size=2, max_size=2).map(np.array))
def test_the_test_of_two_runs_is_students(a: Floats, b: Floats) -> None:
    made = effect(a, b)
    assert made is not None
    if min(a.std(), b.std()) < 1e-6 * max(np.abs(a).max(), np.abs(b).max(), 1.0):
        return
    reference = stats.ttest_ind(b, a)
    interval = reference.confidence_interval()
    scale = float(np.abs([*a, *b]).max())
    assert made.p == pytest.approx(reference.pvalue, rel=1e-9, abs=1e-12)
    assert (made.low, made.high) == pytest.approx((interval.low, interval.high), rel=1e-9, abs=1e-9 * scale)


@given(levels, st.floats(-1e6, 1e6))
def test_one_run_against_several_is_a_single_case_against_a_sample(a: Floats, b: float) -> None:
    if a.std() < 1e-6 * max(np.abs(a).max(), abs(b), 1.0):
        return
    made = effect(a, np.array([b]))
    other = effect(np.array([b]), a)
    assert made is not None and other is not None
    t = (b - a.mean()) / (a.std(ddof=1) * math.sqrt(1 + 1 / len(a)))  # Crawford and Howell 1998
    assert made.p == pytest.approx(2 * stats.t.sf(abs(t), len(a) - 1), rel=1e-9, abs=1e-12)
    assert other.p == pytest.approx(made.p) and other.difference == pytest.approx(-made.difference)


@given(levels, levels, st.floats(0.01, 100), st.floats(-100, 100))
def test_units_and_order_do_not_matter(a: Floats, b: Floats, unit: float, shift: float) -> None:
    if min(a.std(), b.std()) < 1e-3 * max(np.abs(a).max(), np.abs(b).max(), 1.0):
        return
    made, scaled, swapped = effect(a, b), effect(a * unit + shift, b * unit + shift), effect(b, a)
    assert made is not None and scaled is not None and swapped is not None
    assert scaled.p == pytest.approx(made.p, rel=1e-5) and scaled.size == pytest.approx(made.size, rel=1e-5, abs=1e-6)
    assert swapped.p == pytest.approx(made.p) and swapped.difference == pytest.approx(-made.difference)
    assert (made.size is None) == (len(a) + len(b) < 4)
    if made.size is not None and swapped.size is not None:
        assert made.size_low is not None and made.size_high is not None
        assert made.size_low <= made.size <= made.size_high and swapped.size == pytest.approx(-made.size)


def test_the_interval_of_hedges_g_holds_what_it_promises() -> None:
    """Of simulated kinds that lie 1.5 spreads apart 95 % of the intervals hold 1.5, and the sizes' mean is 1.5."""
    random = np.random.default_rng(0)
    made = [effect(random.normal(0, 1, 4), random.normal(1.5, 1, 3)) for _ in range(2000)]
    sizes = np.array([(e.size, e.size_low, e.size_high) for e in made if e is not None and e.size is not None], float)
    assert len(sizes) == 2000
    assert sizes[:, 0].mean() == pytest.approx(1.5, abs=0.08)
    unbiased = math.gamma(2.5) / math.gamma(2) / math.sqrt(2.5)  # the interval is g's, so it carries g's correction
    inside = (sizes[:, 1] / unbiased <= 1.5) & (sizes[:, 2] / unbiased >= 1.5)
    assert 0.93 < inside.mean() < 0.97


def test_losses_that_nearly_overflow_are_no_reason_to_see_no_difference() -> None:
    small, large = np.array([1.0, 1.1, 0.9]), np.array([5.0, 5.1, 4.9])
    usual, huge = effect(small, large), effect(small * 1e300, large * 1e300)
    assert usual is not None and huge is not None and huge.p == pytest.approx(usual.p) and huge.p < 0.001
    assert huge.low == pytest.approx(usual.low * 1e300) and huge.size == pytest.approx(usual.size)


def test_two_against_one_have_a_test_and_no_size() -> None:
    made = effect(np.array([1.0, 1.2]), np.array([1.5]))
    assert made is not None and made.size is None and 0.05 < made.p < 1


def test_runs_that_agree_exactly() -> None:
    same, apart = effect(np.full(3, 2.0), np.full(3, 2.0)), effect(np.full(3, 2.0), np.full(3, 3.0))
    assert same is not None and (same.p, same.size, same.difference) == (1.0, 0.0, 0.0)
    assert apart is not None and (apart.p, apart.size, apart.difference) == (0.0, math.inf, 1.0)
    assert effect(np.array([1.0]), np.array([2.0])) is None
    rounding = effect(np.array([0.1 + 0.2, 0.3]), np.array([0.3, 0.3]))
    assert rounding is not None and rounding.p == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array))
def test_adjusted_p_values(p: Floats) -> None:
    """Benjamini and Hochberg's as scipy's; Holm's as the procedure says it: step down until one fails."""
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p), abs=1e-12)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for passed, i in enumerate(np.argsort(p, kind="stable").tolist()):
            if p[i] * (len(p) - passed) > level:
                break
            rejected.add(i)
        assert set(np.flatnonzero(holm(p) <= level).tolist()) == rejected


def test_the_noise_of_steps_that_resemble_each_other() -> None:
    """Of an autoregressive series the standard error of the mean is known; the naive one is four times too small."""
    random = np.random.default_rng(1)
    steps, estimates, naive = 4000, [], []
    for _ in range(40):
        values = np.empty(steps)
        state = 0.0
        for i, push in enumerate(random.normal(0, 1, steps).tolist()):
            state = 0.9 * state + push
            values[i] = state
        estimate = noise(values + 0.01 * np.arange(steps), lambda part: float(part.mean()))  # a trend is no noise
        assert estimate is not None
        estimates.append(estimate)
        naive.append(values.std() / math.sqrt(steps))
    truth = 1 / (1 - 0.9) / math.sqrt(steps)
    assert np.mean(estimates) == pytest.approx(truth, rel=0.15)
    assert np.mean(naive) < truth / 4
    assert noise(np.arange(15.0), lambda part: float(part.mean())) is None
    assert noise(np.array([]), lambda part: float(part.mean())) is None


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("loss", "lower"),
        ("val/loss", "lower"),
        ("valLoss", "lower"),
        ("loss_epoch_1", "neither"),
        ("top1_error", "lower"),
        ("error_rate", "lower"),
        ("accuracy", "higher"),
        ("val_top5_accuracy", "higher"),
        ("accuracy_loss", "lower"),
        ("eval/F1", "higher"),
        ("tokens_per_second", "higher"),
        ("perplexity", "lower"),
        ("learning_rate", "neither"),
        ("loss_scale", "neither"),
        ("glossary", "neither"),
        ("temperature", "neither"),
        ("", "neither"),
    ],
)
def test_which_way_is_better(name: str, better: str) -> None:
    assert direction(name) == better
    assert direction(name, lower=[name]) == "lower" and direction(name, higher=[name]) == "higher"


def test_no_word_stands_in_two_tables() -> None:
    assert not LOWER & HIGHER and not LOWER & NEITHER and not HIGHER & NEITHER


def test_a_difference_beyond_the_spread_is_found(tmp_path: Path) -> None:
    a = [record(tmp_path, f"a{i}", wavering(i), seed=i) for i in range(4)]
    b = [record(tmp_path, f"b{i}", wavering(10 + i, 2.0), seed=10 + i, scale=3.0) for i in range(4)]
    made = compare(a, b)
    loss = row(made, "loss")
    assert (made.verdicts["scores"], loss.verdict, made.worse) == ("worse", "worse", True)
    assert (loss.steps, loss.first, loss.last) == (30, 90, 119)
    # By hand: the means of the last 30 steps, and scipy.
    means = [np.array([resmon.load(run).steps()["loss"].to_numpy(float)[90:].mean() for run in kind]) for kind in (a, b)]
    assert loss.difference == pytest.approx(means[1].mean() - means[0].mean())
    assert loss.effect is not None and loss.effect.p == pytest.approx(stats.ttest_ind(*means, equal_var=False).pvalue)
    pooled = math.sqrt((means[0].var(ddof=1) + means[1].var(ddof=1)) / 2)
    assert loss.effect.size == pytest.approx(loss.difference / pooled * (1 - 3 / (4 * 6 - 1)), rel=0.01)
    assert compare(b, a).verdicts["scores"] == "better" and not compare(b, a).worse
    # The branches are three times as large, and only what knows them has changed.
    changed = {(r.block, r.name) for r in made.of("blocks") if r.verdict == "changed"}
    assert {("h.0", "branch_rms"), ("h.1", "branch_rms"), ("h.0", "branch_skip_ratio")} <= changed
    assert ("h.0", "output_peak") not in changed
    assert made.rows[0].verdict == "worse"  # the worst stands first
    assert "scores  worse: loss" in printed(made)


@pytest.mark.parametrize(("of_a", "of_b"), [(3, 3), (5, 3), (10, 2), (4, 1), (2, 2)])
def test_false_alarms_are_as_rare_as_promised(of_a: int, of_b: int) -> None:
    """Kinds that differ by their seeds only, of four scores that go together: any false alarm in 5 % of the comparisons at most."""
    random = np.random.default_rng(5)
    wrong = 0
    for _ in range(1500):
        scores = random.normal(0, 1, (4, of_a + of_b)) + random.normal(0, 1, of_a + of_b)
        made = [effect(of_run[:of_a], of_run[of_a:]) for of_run in scores]
        wrong += bool((holm(np.array([e.p for e in made if e is not None])) < 0.05).any())
    assert wrong / 1500 < 0.062  # two standard errors above 5 %


def test_kinds_that_do_not_differ_are_seldom_said_to(tmp_path: Path) -> None:
    """The same from flights to verdicts, of scores and of blocks."""
    runs = [record(tmp_path, f"r{i}", wavering(i, steps=16), seed=i) for i in range(24)]
    random = np.random.default_rng(2)
    wrong = dict.fromkeys(("scores", "blocks"), 0)
    for _ in range(20):
        chosen = random.permutation(len(runs))[:6]
        made = compare([runs[i] for i in chosen[:3]], [runs[i] for i in chosen[3:]], groups=["scores", "blocks"])
        for group in wrong:
            wrong[group] += made.verdicts[group] != "no difference"
    assert max(wrong.values()) <= 4  # more than 4 of 20 at 5 %: 0.3 %


def test_one_run_of_each_cannot_tell(tmp_path: Path) -> None:
    a, b = record(tmp_path, "a", wavering(0), seed=0), record(tmp_path, "b", wavering(1, 5.0), seed=1)
    made = compare([a], [b])
    loss = row(made, "loss")
    assert made.verdicts["scores"] == loss.verdict == "cannot tell" and not made.worse
    assert loss.effect is None and loss.p_adjusted is None
    assert loss.noise is not None and loss.difference is not None and loss.difference > 5 * loss.noise
    shown = printed(made)
    assert "one run of each cannot tell a change from another seed" in shown
    assert "times the noise within the runs" in shown


def test_one_new_run_against_several(tmp_path: Path) -> None:
    a = [record(tmp_path, f"a{i}", wavering(i), seed=i) for i in range(5)]
    assert compare(a, [record(tmp_path, "like", wavering(7), seed=7)]).verdicts["scores"] == "no difference"
    assert compare(a, [record(tmp_path, "far", wavering(8, 3.0), seed=8)]).verdicts["scores"] == "worse"


def test_times_leave_out_the_first_step_and_one_long_one(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def durations(usual: float, first: float) -> list[float]:
        return [first, *(usual + random.normal(0, 0.001, 38)), 10.0]

    a = [record(tmp_path, f"a{i}", [1.0] * 40, seed=i, durations=durations(0.1, 90.0)) for i in range(3)]
    b = [record(tmp_path, f"b{i}", [1.0] * 40, seed=i + 5, durations=durations(0.2, 1.0), memory_peak=3e9) for i in range(3)]
    made = compare(a, b)
    duration, throughput, memory = row(made, "duration"), row(made, "samples_per_second"), row(made, "memory_peak")
    assert (
        duration.steps == 39 and duration.mean_a == pytest.approx(0.1, rel=0.02) and duration.mean_b == pytest.approx(0.2, rel=0.02)
    )
    assert throughput.mean_a == pytest.approx(39 * 8 / (38 * 0.1 + 10), rel=0.02)  # all samples over all seconds
    assert (duration.verdict, memory.verdict) == ("worse", "worse")
    assert (memory.mean_a, memory.mean_b) == (1e9, 3e9)


def test_the_gradients_norm_has_no_better_side(tmp_path: Path) -> None:
    a = [record(tmp_path, f"a{i}", wavering(i), seed=i) for i in range(3)]
    b = [record(tmp_path, f"b{i}", wavering(9 + i), seed=i, gradient_square=100.0 + i) for i in range(3)]
    made = compare(a, b)
    assert made.verdicts["gradients"] == "changed" and not made.worse
    assert compare(a, b, lower=["gradient_norm"]).verdicts["gradients"] == "worse"
    assert compare(a, b, higher=["gradient_norm"]).verdicts["gradients"] == "better"


def test_validation_scores_are_compared_where_all_logged_them(tmp_path: Path) -> None:
    runs = {}
    for kind, level, every in (("a", 0.9, 10), ("b", 0.7, 20)):
        for i in range(3):
            accuracy = {step: level + 0.001 * i + step * 1e-5 for step in range(every - 1, 120, every)}
            extra = {"only_here": {5: 1.0}} if kind == "a" else {}
            scores = {"val_accuracy": accuracy, "duration": dict.fromkeys(range(120), 7.0 + i)} | extra
            runs.setdefault(kind, []).append(
                record(tmp_path, f"{kind}{i}", wavering(i), seed=i + 10 * (kind == "b"), scores=scores)
            )
    made = compare(runs["a"], runs["b"])
    accuracy = row(made, "val_accuracy")
    assert (accuracy.steps, accuracy.first, accuracy.last) == (2, 99, 119)
    assert accuracy.verdict == "worse" and made.verdicts["scores"] == "worse"
    assert row(made, "logged_duration").mean_a == pytest.approx(8.0)  # what was logged, beside what was measured
    assert row(made, "duration").mean_a == pytest.approx(0.25)
    assert "only_here was logged in A only" in made.notes


def test_runs_of_different_lengths(tmp_path: Path) -> None:
    """Compared over what they share; their own ends are shown beside it, and decide nothing."""
    falling = 2.0 - np.arange(200) / 100
    a = [record(tmp_path, f"a{i}", falling[:100] + i / 1000, seed=i) for i in range(3)]
    b = [record(tmp_path, f"b{i}", falling + i / 1000, seed=i + 5) for i in range(3)]
    made = compare(a, b)
    shared, final = row(made, "loss"), row(made, "loss", at="final")
    assert len(made.steps) == 100 and shared.last == 99
    assert made.verdicts["scores"] in ("no difference", "equal") and shared.difference == pytest.approx(0, abs=1e-9)
    assert final.difference == pytest.approx(-1.0) and final.p_adjusted is None
    assert not [r for r in compare(a, a[:0] + b, last=99).rows if r.at == "final"]
    assert any("a0 ends at step 99, b" in note for note in made.notes)
    assert "loss, final" in printed(made)


def test_a_range_of_steps(tmp_path: Path) -> None:
    a, b = record(tmp_path, "a", np.arange(50.0)), record(tmp_path, "b", np.arange(50.0) + 1, seed=1)
    loss = row(compare([a], [b], first=10, last=19), "loss")
    assert (loss.steps, loss.first, loss.last, loss.mean_a) == (10, 10, 19, 14.5)


def test_values_that_are_not_finite_are_counted_and_in_no_mean(tmp_path: Path) -> None:
    losses = np.ones(40)
    losses[[30, 35]] = np.nan, np.inf
    made = compare([record(tmp_path, "a", np.ones(40))], [record(tmp_path, "b", losses, seed=1)])
    loss = row(made, "loss")
    assert loss.mean_b == 1.0 and sum(level.nonfinite for level in loss.b) == 2
    assert any(note.startswith("loss: 0 values of A and 2 of B are NaN or infinite, at 10 steps") for note in made.notes)


def test_a_run_that_blew_up_is_not_better_for_it(tmp_path: Path) -> None:
    ended = np.r_[np.full(30, 0.1), np.full(10, np.nan)]
    a = [record(tmp_path, f"a{i}", wavering(i, steps=40), seed=i) for i in range(3)]
    b = [record(tmp_path, f"b{i}", ended if i else wavering(9, steps=40), seed=i + 5) for i in range(3)]
    made = compare(a, b)
    assert made.verdicts["scores"] == row(made, "loss").verdict == "b not finite" and made.worse
    assert row(made, "loss").effect is None  # no mean of those that are left
    assert compare(b, a).verdicts["scores"] == "a not finite" and not compare(b, a).worse
    assert "in 2 of 3 runs of B and 0 of 3 runs of A" in printed(made)
    assert json.loads(json.dumps(as_json(made), allow_nan=False))["rows"][0]["b"][1] is None


def test_blocks_that_only_one_model_has(tmp_path: Path) -> None:
    a, b = record(tmp_path, "a", wavering(0), blocks=2), record(tmp_path, "b", wavering(1), seed=1, blocks=4)
    made = compare([a], [b])
    assert (made.only_a, made.only_b) == ((), ("h.2", "h.3"))
    assert {r.block for r in made.of("blocks")} == {"h.0", "h.1"}
    assert "blocks in B only: h.2, h.3" in printed(made)


def test_a_model_without_blocks(tmp_path: Path) -> None:
    a, b = record(tmp_path, "a", wavering(0), blocks=0), record(tmp_path, "b", wavering(1), seed=1, blocks=0)
    made = compare([a], [b])
    assert "blocks" not in made.verdicts and "scores" in made.verdicts
    assert any("no run has residual blocks" in note for note in made.notes)


def test_the_newest_attempt_is_compared_unless_one_is_named(tmp_path: Path) -> None:
    record(tmp_path, "a", np.full(20, 5.0))
    run = record(tmp_path, "a", np.full(20, 7.0))
    b = record(tmp_path, "b", np.full(20, 6.0), seed=1)
    made = compare([run], [b])
    assert row(made, "loss").mean_a == 7.0
    assert any(note.startswith("a: attempt 2 of 2, steps 0 to 19") for note in made.notes)
    assert row(compare([run / "attempt-0001"], [b]), "loss").mean_a == 5.0


def test_the_same_seed_twice_is_no_spread(tmp_path: Path) -> None:
    a = [record(tmp_path, f"a{i}", wavering(3), seed=3, durations=0.1 + wavering(i) / 100) for i in range(3)]
    b = [record(tmp_path, f"b{i}", wavering(4), seed=4, durations=0.2 + wavering(9 + i) / 100) for i in range(3)]
    made = compare(a, b)
    assert made.verdicts["scores"] == "cannot tell"  # one seed of each
    assert made.verdicts["speed"] == "worse"  # three measurements of each
    assert any("a1 has the scores of a0 to the last bit" in note for note in made.notes)


def test_the_same_training_on_both_sides_is_equal(tmp_path: Path) -> None:
    a, b = record(tmp_path, "a", wavering(3)), record(tmp_path, "b", wavering(3))
    made = compare([a], [b])
    assert made.verdicts["scores"] == made.verdicts["blocks"] == "equal"
    assert "a run of B has the scores of a run of A to the last bit: the same training" in made.notes


def test_a_run_named_twice_counts_once_and_never_against_itself(tmp_path: Path) -> None:
    a, b = record(tmp_path, "a", wavering(0)), record(tmp_path, "b", wavering(1), seed=1)
    made = compare([a, a / "attempt-0001", a], [b])
    assert len(made.a) == 1 and "a was named twice in A; it counts once" in made.notes
    with pytest.raises(FlightError, match="a would be compared with itself"):
        compare([a], [b, a])


def test_no_step_in_common(tmp_path: Path) -> None:
    a, b = record(tmp_path, "a", wavering(0)), record(tmp_path, "b", wavering(1), first=500)
    with pytest.raises(FlightError, match=r"no step in common.*a has steps 0 to 119; b has steps 500 to 619"):
        compare([a], [b])
    with pytest.raises(FlightError, match="no step in common from 30 to 20"):
        compare([a], [record(tmp_path, "c", wavering(2), seed=2)], first=30, last=20)


def test_a_thinned_flight_is_compared_where_it_is_full(tmp_path: Path) -> None:
    steps = 2500
    a = record(tmp_path, "a", np.ones(steps), budget=2 << 20)
    b = record(tmp_path, "b", np.ones(steps), seed=1, budget=64 << 20)
    full = resmon.load(a).steps()
    kept = len(full[full["complete"].notna()])
    assert kept < steps
    made = compare([a], [b], groups=["scores", "speed"])
    assert len(made.steps) == kept
    assert any(note.startswith(f"a lacks {steps - kept:,} of its steps in full") for note in made.notes)


def test_a_run_under_way_a_damaged_one_and_one_that_is_empty(tmp_path: Path) -> None:
    a = record(tmp_path, "a", wavering(0), end=False)
    damaged = record(tmp_path, "damaged", wavering(1), seed=1)
    file = max((damaged / "attempt-0001" / "rank-00000").glob("steps-*.arrow"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    empty = tmp_path / "empty" / "attempt-0001" / "rank-00000"
    empty.mkdir(parents=True)
    made = compare([a], [damaged, tmp_path / "empty"])
    assert len(made.steps) == 119 and len(made.b) == 1
    for said in ("a is still running", "damaged: 1 damaged places were skipped", "left out of B: the flight in"):
        assert any(said in note for note in made.notes), made.notes
    with pytest.raises(FlightError, match="is empty"):
        compare([a], [tmp_path / "empty"])
    with pytest.raises(FlightError, match="names no run"):
        compare([a], [])


def test_names_from_files_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    score = {"[bold]\x1b[31mevil": dict.fromkeys(range(120), 1.0)}
    a, b = record(tmp_path, "a", wavering(0), scores=score), record(tmp_path, "b", wavering(1), seed=1, scores=score)
    shown = printed(compare([a], [b]))
    assert "\x1b" not in shown and "[bold]\\x1b[31mevil" in shown


def test_runs_are_named_by_name_list_pattern_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    for name in ("base-1", "base-2", "new", "odd,name*"):
        record(runs, name, [1.0])
    (odd,) = (path for path in runs.iterdir() if path.name.startswith("odd"))

    def found(text: str) -> list[str]:
        return [path.parent.name for path in find_runs(text, runs)]

    assert found("base-*") == ["base-1", "base-2"]
    assert found("base-1, new") == ["base-1", "new"]
    assert found("base-[2],new") == ["base-2", "new"]
    assert found("odd,name*") == [odd.name]  # a run that is called so
    monkeypatch.chdir(tmp_path)
    assert [path.parent.name for path in find_runs("runs/base-*,runs/new", Path("elsewhere"))] == ["base-1", "base-2", "new"]
    for wrong in ("nothing-*", "base-1,absent", "", ","):
        with pytest.raises(ResmonError):
            find_runs(wrong, runs)


def command(monkeypatch: pytest.MonkeyPatch, directory: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["resmon", "diff", "-d", str(directory), *arguments])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of a kind, three that are worse, one that has no step in common with them."""
    made = tmp_path_factory.mktemp("runs")
    for i in range(3):
        record(made, f"base-{i}", wavering(i), seed=i)
        record(made, f"worse-{i}", wavering(20 + i, 3.0), seed=20 + i)
    record(made, "late", wavering(7), first=1000)
    return made


def test_the_exit_status(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, folder, "base-*", "worse-*") == 0
    assert command(monkeypatch, folder, "base-*", "worse-*", "--fail-if-worse") == 1
    assert command(monkeypatch, folder, "worse-*", "base-*", "--fail-if-worse") == 0
    assert command(monkeypatch, folder, "base-*", "worse-*", "--fail-if-worse", "--only", "memory") == 0
    assert command(monkeypatch, folder, "base-*", "worse-*", "--fail-if-worse", "--higher", "loss") == 0
    assert "scores  worse: loss" in capsys.readouterr().out


def test_json_has_fixed_keys(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, folder, "base-0,base-1,base-2", "worse-*", "--json") == 0
    made = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(made) == ("format worse a b steps groups rows blocks_only_in_a blocks_only_in_b structure divergence notes".split())
    assert made["format"] == 1 and made["worse"] is True
    assert [run["run"] for run in made["b"]] == ["worse-0", "worse-1", "worse-2"]
    assert made["steps"] == {"shared": 120, "first": 0, "last": 119}
    assert set(made["groups"]) <= set(GROUPS) and made["groups"]["scores"]["verdict"] == "worse"
    loss = next(row for row in made["rows"] if row["quantity"] == "loss")
    assert set(loss) == set(
        "group quantity block at statistic better verdict steps first_step last_step a b nonfinite_a nonfinite_b mean_a mean_b "
        "difference relative low high effect_size effect_size_low effect_size_high p p_adjusted noise".split()
    )
    assert len(loss["a"]) == 3 and loss["low"] < loss["difference"] < loss["high"]
    assert {row["block"] for row in made["rows"] if row["group"] == "blocks"} == {"h.0", "h.1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base-0", "nobody"], "there is no run 'nobody'"),
        (["nobody-*", "base-0"], "matches 'nobody-*'"),
        (["base-*", "base-0"], "base-0 would be compared with itself"),
        (["base-0", "late"], "no step in common"),
        (["base-0", "base-1", "--steps", "many"], "write FIRST:LAST"),
        (["base-0", "base-1", "--only", "colour"], "There are: scores, speed, memory, gradients, blocks"),
        (["base-0", "base-1", "--lower", "los"], "no run has a score called 'los'. They logged: loss."),
        (["base-0", "base-1", "--lower", "loss", "--higher", "loss"], "Name it once"),
    ],
)
def test_what_cannot_be_compared_is_said(
    arguments: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, folder, *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.relu(self.inner(self.norm(x))))


def train(directory: Path, run: str, seed: int, learning_rate: float, steps: int = 60) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(Block(), Block(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    direction = torch.linspace(-1, 1, 8)
    with resmon.watch(model, optimizer, run=run, directory=directory, agent="off") as monitor:
        for _ in range(steps):
            x = torch.randn(32, 8, generator=generator)
            loss = (model(x).squeeze(1) - (x @ direction).sin()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss)
        return Path(monitor.directory)


def test_real_trainings_of_several_seeds(tmp_path: Path) -> None:
    """A learning rate that hardly learns is found to be worse; other seeds of the same are not, in most trials."""
    usual = [train(tmp_path, f"usual-{seed}", seed, 0.05) for seed in range(8)]
    slow = [train(tmp_path, f"slow-{seed}", 100 + seed, 0.0005) for seed in range(3)]
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(12):
        chosen = random.permutation(8)[:6]
        made = compare([usual[i] for i in chosen[:3]], [usual[i] for i in chosen[3:]], groups=["scores"])
        wrong += made.verdicts["scores"] != "no difference"
    assert wrong <= 3  # more than 3 of 12 at 5 %: 0.2 %
    made = compare(usual[:5], slow)
    assert made.verdicts["scores"] == "worse"
    assert row(made, "loss").steps == 15 and {r.block for r in made.of("blocks")} == {"0", "1"}
