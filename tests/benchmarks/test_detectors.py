"""The harness of `make bench-detectors`: trials are what they are said to be, scoring is right, river's detectors are river's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import drift

from benchmarks.detectors import record, report
from benchmarks.detectors.contenders import GRIDS, Ints, Ours, adwin, kswin, page_hinkley, prepared
from benchmarks.detectors.scoring import Score, limit_for, run_length, score
from benchmarks.detectors.streams import (
    AFTER,
    CORRELATION,
    JUDGED,
    LEAD,
    SCENARIOS,
    SPIKE,
    Floats,
    Noise,
    Recording,
    Scenario,
    changed,
    correlated,
    stretches,
)
from benchmarks.detectors.trial import Result, Tuning, candidates, contender
from benchmarks.report import Circumstances

STEPS = LEAD + JUDGED


def noise(trials: int = 6, seed: int = 0) -> Noise:
    residuals = np.random.default_rng(seed).normal(size=(STEPS, trials))
    trend = np.linspace(0, 1, STEPS)[:, None] * np.ones(trials)
    return Noise(trend, residuals, np.full(trials, 0.1))


def named(name: str) -> Scenario:
    return next(each for each in SCENARIOS if each.name == name)


# -- scoring ---------------------------------------------------------------------------------------------------------------


def test_the_run_length_is_all_steps_until_an_alarm_over_the_alarms() -> None:
    assert run_length(np.array([99, JUDGED, JUDGED])) == 100 + 2 * JUDGED
    assert run_length(np.array([99, 199])) == 150
    assert run_length(np.array([JUDGED])) == float("inf")


def test_a_miss_counts_as_long_as_the_trial_and_an_alarm_before_the_change_is_one() -> None:
    first = np.array([0, 9, JUDGED, 99])
    assert score(first, 0) == Score(4, (1 + 10 + JUDGED + 100) / 4, 0.25, 0.0)
    lasts = JUDGED - 50
    assert score(first, 50) == Score(4, (lasts + lasts + lasts + 50) / 4, 0.75, 0.5)


@dataclass
class Threshold:
    """Alarms where a value is above the limit."""

    name: str = "threshold"
    settings: dict[str, Any] = field(default_factory=dict)
    default: float = 1.0
    span: tuple[float, float] = (0.01, 100.0)

    def first_alarms(self, values: Floats, limit: float) -> Ints:
        above = values[LEAD:] > limit
        return np.where(above.any(axis=0), above.argmax(axis=0), JUDGED)

    def run(self, values: Floats) -> None:
        raise NotImplementedError


def test_the_limit_is_the_lowest_that_gives_the_run_length() -> None:
    values = np.random.default_rng(1).normal(size=(STEPS, 400))
    limit = limit_for(Threshold(), values, target=1000)
    reached = run_length(Threshold().first_alarms(values, limit))
    assert 1000 <= reached < 1050
    assert run_length(Threshold().first_alarms(values, limit * 0.999)) <= reached
    assert 2.8 < limit < 3.4  # a normal value is above 3.09 once in 1000


# -- streams ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["tuning", "scoring"])
def test_recordings_are_small_plain_and_whole(use: str) -> None:
    recording = Recording.load(use)
    assert recording.values.shape == (record.STEPS, len(recording.names))
    assert len(recording.names) >= 50
    assert np.isfinite(recording.values).all()
    assert (record.noise(recording.values) > record.LEAST_NOISE / 2).all()


def test_no_run_is_both_tuned_on_and_scored() -> None:
    runs = [{name.partition("/")[0] for name in Recording.load(use).names} for use in ("tuning", "scoring")]
    assert not runs[0] & runs[1]
    assert not set(record.TUNING) & set(record.SCORING)
    assert sum(path.stat().st_size for path in record.FOLDER.iterdir()) < 300_000


def test_what_is_written_is_what_was_recorded_to_a_sixth_of_its_noise(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=(record.STEPS, 3)) * [1, 0.01, 5] + [0, 7, -3]
    record.write(tmp_path / "tuning.npz", {f"run/{i}": values[:, i] for i in range(3)})
    kept = Recording.load("tuning", tmp_path)
    assert kept.names == ("run/0", "run/1", "run/2")
    assert (np.abs(kept.values - values) <= record.noise(values) / record.PARTS * 1.001 + 1e-6).all()


def test_the_judged_parts_of_a_streams_trials_do_not_overlap() -> None:
    values = np.arange(record.STEPS, dtype=float)[:, None] + np.random.default_rng(3).normal(size=(record.STEPS, 1)) * 1e-3
    judged = stretches(Recording(("a",), values)).values[LEAD:]
    assert judged.shape == (JUDGED, 3)
    assert len(np.unique(np.rint(judged))) == judged.size


def test_a_change_begins_at_its_step_and_has_its_size() -> None:
    of = noise()
    for scenario in SCENARIOS:
        for size in scenario.sizes:
            moved = (changed(of, scenario, size) - of.values) / of.scale
            assert np.allclose(moved[:LEAD], 0)
            assert not np.allclose(moved[LEAD:], 0)
    up = (changed(of, named("level-up"), 2) - of.values) / of.scale
    assert np.allclose(up[LEAD:], 2)
    slope = (changed(of, named("slope"), 4) - of.values) / of.scale
    assert np.allclose(slope[[LEAD, LEAD + 99]], [[0.04], [4]])
    wider = changed(of, named("spread-up"), 2.5)[LEAD:] - of.trend[LEAD:]
    assert np.allclose(wider, 2.5 * of.residuals[LEAD:] * of.scale)
    spike = (changed(of, named("spike"), 1) - of.values) / of.scale
    assert np.allclose(spike[LEAD], SPIKE)
    assert np.allclose(spike[LEAD + 1 : LEAD + AFTER], 0)
    assert np.allclose(spike[LEAD + AFTER :], 1)
    assert named("spike").begins == AFTER


def test_another_shape_has_the_same_mean_and_variance() -> None:
    of = noise(300)
    other = (changed(of, named("shape"), 0.9)[LEAD:] - of.trend[LEAD:]) / of.scale
    assert other.mean() == pytest.approx(0, abs=0.02)
    assert other.var() == pytest.approx(1, abs=0.02)
    assert (other**4).mean() == pytest.approx(3 - 2 * 0.9**4, abs=0.05)  # a normal distribution's is 3


def test_correlated_noise_is_as_wide_as_before() -> None:
    of = correlated(noise(100))
    assert of.residuals.std() == pytest.approx(1, abs=0.01)
    assert (of.residuals[1:] * of.residuals[:-1]).mean() == pytest.approx(CORRELATION, abs=0.02)


# -- contenders ------------------------------------------------------------------------------------------------------------


def trials(size: float = 2.0) -> Floats:
    return changed(noise(), named("level-up"), size) / 0.1


@pytest.mark.parametrize(
    ("mine", "limit", "theirs"),
    [
        (page_hinkley(delta=0.2), 15.0, lambda: drift.PageHinkley(delta=0.2, threshold=15.0)),
        (adwin(clock=4), 1e-4, lambda: drift.ADWIN(delta=1e-4, clock=4)),
    ],
    ids=["PageHinkley", "ADWIN"],
)
def test_rivers_alarm_as_they_do_alone(mine: Any, limit: float, theirs: Any) -> None:
    values = trials()
    expected = []
    for stream in values.T:
        detector, first = theirs(), JUDGED
        for step, value in enumerate(stream):
            detector.update(float(value))
            if step >= LEAD and detector.drift_detected:
                first = step - LEAD
                break
        expected.append(first)
    assert mine.first_alarms(values, limit).tolist() == expected
    assert max(expected) < JUDGED


def test_a_kept_p_value_alarms_where_kswin_itself_does() -> None:
    values, limit = trials(3.0)[:, :3], 1e-4
    mine = kswin()
    expected = []
    for stream in values[LEAD - mine.memory :].T:
        detector, first = drift.KSWIN(alpha=limit, seed=1), JUDGED
        for step, value in enumerate(stream):
            detector.update(float(value))
            if step >= mine.memory and detector.drift_detected:
                first = step - mine.memory
                break
        expected.append(first)
    assert mine.first_alarms(values, limit).tolist() == expected
    assert max(expected) < JUDGED


def test_ours_finds_a_level_and_goes_on_after_an_alarm_in_the_lead() -> None:
    values = trials(5.0)
    assert (Ours().first_alarms(values, 18.0) < 10).all()
    assert (Ours().first_alarms(noise().values, 18.0) == JUDGED).all()
    disturbed = values.copy()
    disturbed[500:505] += 50 * np.array([1, -1, 1, -1, 1])[:, None]
    assert (Ours().first_alarms(disturbed, 18.0) < 20).all()


def test_what_rivers_are_offered_is_free_of_scale_and_trend() -> None:
    values = noise(30).values * np.linspace(1, 50, 30)
    for how in ("standardised", "errors", "slow errors", "scores"):
        offered = prepared(values, how)[300:]
        spread = offered.std(axis=0)
        assert spread.max() < 2 * spread.min()
    assert abs(prepared(values, "errors")[300:].mean()) < 0.1
    assert prepared(values, "raw") is values


def test_every_candidate_can_be_made_by_its_name_and_settings() -> None:
    for name, settings in candidates():
        made = contender(name, settings)
        assert (made.name, made.settings) == (name, settings)
    assert {name for name, _ in candidates()} == {"resmon", *GRIDS}


# -- the page --------------------------------------------------------------------------------------------------------------


def result(name: str, how: str, delay: float, length: float = 5000.0) -> Result:
    scores = {each.name: {size: Score(10, delay, 0.1, 0.0) for size in each.sizes} for each in SCENARIOS}
    return Result(name, how, {}, {False: 1.0, True: 2.0}, {False: length, True: float("inf")}, scores)


HOW = Circumstances("command", "2026-01-01 00:00 UTC", "a processor", 2, 1, {"river": "1"}, (0.0, 0.0, 0.0))
NAMES = ("resmon", "PageHinkley", "ADWIN", "KSWIN", "PageHinkley on our scores", "ADWIN on our scores")


def results() -> list[Result]:
    found = [result(name, how, 20.0 + i) for how in ("tuned", "level", "default") for i, name in enumerate(NAMES)]
    found[0].scores["slope"] = {size: Score(10, 30.0, 0.0, 0.0) for size in named("slope").sizes}
    return found


def test_a_scenario_is_won_by_the_shortest_mean_delay() -> None:
    won = report.wins(results(), NAMES[:4], "tuned")
    assert [each.name for each in won] == [each.name for each in SCENARIOS if each.name != "slope"]
    assert len(report.wins(results(), NAMES[:4], "level")) == 10


def tunings() -> list[Tuning]:
    delays = {each.name: 10.0 for each in SCENARIOS}
    return [
        Tuning("resmon", {}, {False: 1.0, True: 1.0}, delays),
        Tuning("resmon", {"without": ("cusum",)}, {False: 1.0, True: 1.0}, delays | {"slope": 15.0}),
    ]


def test_the_page_says_what_was_missed() -> None:
    page = report.markdown(tunings(), results(), {"resmon": 0.03, "PageHinkley": 0.5, "ADWIN": 0.1, "KSWIN": 200.0}, HOW)
    assert "9 of 10 scenarios, aimed at 9: met; not in slope." in page
    assert "| cusum | 10.5 | slope, +50% |" in page
    assert "less than any of them, met" in page
    slow = report.markdown(tunings(), results(), {"resmon": 0.6, "PageHinkley": 0.5, "ADWIN": 0.1, "KSWIN": 200.0}, HOW)
    assert "less than any of them, **missed**" in slow
    assert "10,000 streams in 0.5 ms, **missed**" in slow


def test_the_json_has_every_figure_and_is_plain(tmp_path: Path) -> None:
    report.write_json(tmp_path / "results" / "a.json", tunings(), results(), {"resmon": 0.03}, HOW)
    content = json.loads((tmp_path / "results" / "a.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["results"][0]["run_length"] == {"recorded": 5000.0, "correlated": None}
    assert content["results"][0]["scores"]["level-up"]["0.5"]["delay"] == 20.0
    assert content["circumstances"]["versions"] == {"river": "1"}
