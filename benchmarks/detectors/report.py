"""The page that a person reads, and the JSON beside it that has every figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from benchmarks.detectors.contenders import GIVEN, Ours
from benchmarks.detectors.scoring import TARGET
from benchmarks.detectors.streams import AFTER, CORRELATION, JUDGED, LEAD, SCENARIOS, SPIKE, Recording, Scenario
from benchmarks.detectors.trial import CLOCKED, EVERY, Result, Tuning
from benchmarks.report import Circumstances

WINS = 9  # scenarios of ten in which ours should have the shortest delay
OURS = Ours().name


def markdown(tunings: Sequence[Tuning], results: Sequence[Result], clocks: dict[str, float], how: Circumstances) -> str:
    names = list(clocks)
    parts = [
        _introduction(),
        "## Delay at equal false alarms",
        _goal(results, names, "tuned"),
        _delays(results, names, "tuned"),
        "By size, steps of delay and share of trials that were missed:",
        _sizes(results, names),
        "## Limits that give the same false alarms on the scored streams",
        _level(results, names),
        _delays(results, names, "level"),
        "## river's detectors on our scores",
        _given(results),
        "## False alarms and settings",
        _settings(results, [*names, *_those_given(results)]),
        "## By default",
        _DEFAULT,
        _delays(results, names, "default"),
        "## What an update costs",
        _costs(clocks),
        "## What each chart earns",
        _ablation(tunings),
        _made(how),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction() -> str:
    tuning, scoring = Recording.load("tuning"), Recording.load("scoring")
    runs = {use: ", ".join(dict.fromkeys(name.partition("/")[0] for name in each.names)) for use, each in _uses(tuning, scoring)}
    return f"""# The detector bench

Streams with known changes, put into noise that was recorded from healthy training: how soon `resmon.detectors.charts`, and
`river`'s PageHinkley, ADWIN and KSWIN say so, when all of them are set to the same rate of false alarms. `make bench-detectors`
measures all of this anew and writes this page.

The noise: the middle block's RMS, ratio and gradient norms, the loss and the global gradient norm of healthy runs of the fault
bench, as logarithms, {len(tuning.values)} steps each. {len(tuning.names)} streams ({runs["tuning"]}) are there to tune on,
{len(scoring.names)} of other runs ({runs["scoring"]}) to score on. `python -m benchmarks.detectors.record` made them; it left out
convnext, whose noise grows threefold in the middle: a change of its own that is not known to the bench.

A trial is {LEAD} steps as recorded and {JUDGED} after the change. *Delay* is the mean of the steps to the first alarm from the
change on; an alarm that does not come within the trial is *missed* and counts as long as the trial lasts. An alarm in the lead is
not counted, the detector begins anew and goes on. A *false alarm* is the first one in the second part of a trial without a change;
*run length* is all steps until then over the number of alarms. Limits are those with which the tuning streams give a run length of
{TARGET}, for noise as recorded and for the correlated one each. Sizes are in robust standard deviations of the stream's noise
around its trend. The spike is one value, {SPIKE:g} noises high, {AFTER} steps before a level that lasts; an alarm before that
level makes the trial a missed one. Correlated noise is what was recorded, through an autoregression of {CORRELATION}.

river's detectors take one stream each. A threshold that serves streams of every scale needs streams that are alike, so tuning
chose the best for each of them among: the logarithms in units of their noise, and the errors of the charts' forecasts in units of
theirs, which are free of trends, with the charts' gain and a smaller one. It chose their other settings too, by the mean delay
over the scenarios at middle size. The settings of ours were found on the tuning streams by hand, but
the streams to score on were looked at while the set was designed. KSWIN takes so long that it was
tried on one trial in {EVERY}, with the windows that it has by default; the grids of the other two were tuned so."""


def _uses(tuning: Recording, scoring: Recording) -> list[tuple[str, Recording]]:
    return [("tuning", tuning), ("scoring", scoring)]


def _result(results: Sequence[Result], name: str, how: str) -> Result:
    return next(each for each in results if each.name == name and each.how == how)


def wins(results: Sequence[Result], names: Sequence[str], how: str) -> list[Scenario]:
    """The scenarios in which ours has the shortest mean delay."""
    found = []
    for scenario in SCENARIOS:
        delays = {name: _result(results, name, how).delay(scenario.name) for name in names}
        if delays[OURS] < min(delay for name, delay in delays.items() if name != OURS):
            found.append(scenario)
    return found


def _goal(results: Sequence[Result], names: Sequence[str], how: str) -> str:
    won = wins(results, names, how)
    lost = [scenario.title for scenario in SCENARIOS if scenario not in won]
    verdict = "met" if len(won) >= WINS else "**missed**"
    return (
        f"resmon's set has the shortest mean delay in {len(won)} of {len(SCENARIOS)} scenarios, aimed at {WINS}: {verdict}"
        + (f"; not in {', '.join(lost)}" if lost else "")
        + ". Mean over the sizes, in steps:"
    )


def _delays(results: Sequence[Result], names: Sequence[str], how: str) -> str:
    rows = []
    for scenario in SCENARIOS:
        mine = {name: _result(results, name, how) for name in names}
        delays = {name: each.delay(scenario.name) for name, each in mine.items()}
        shortest = min(delays.values())
        cells = [f"**{delay:.1f}**" if delay == shortest else f"{delay:.1f}" for delay in delays.values()]
        rows.append([scenario.title, *cells])
    if how != "tuned":
        rows.append(["*run length*", *(_steps(_result(results, name, how).run_length[False]) for name in names)])
        rows.append(["*run length, correlated*", *(_steps(_result(results, name, how).run_length[True]) for name in names)])
    return table(["scenario", *names], rows)


def _sizes(results: Sequence[Result], names: Sequence[str]) -> str:
    rows = []
    for scenario in SCENARIOS:
        for size in scenario.sizes:
            scores = [_result(results, name, "tuned").scores[scenario.name][size] for name in names]
            cells = [
                f"{each.delay:.1f}, {each.missed:.0%}" + (f" ({each.early:.0%} at the spike)" if each.early else "")
                for each in scores
            ]
            rows.append([scenario.title, f"{size:g} {scenario.unit}", *cells])
    return table(["scenario", "size", *names], rows)


def _level(results: Sequence[Result], names: Sequence[str]) -> str:
    return (
        "Limits from other runs do not give everyone the same false alarms here. With limits that give a run length of "
        f"{TARGET} on the scored streams themselves, settings as above: " + _goal(results, names, "level")
    )


def _those_given(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(each.name for each in results if each.name.endswith(GIVEN)))


def _given(results: Sequence[Result]) -> str:
    names = [OURS, *_those_given(results)]
    won, level = wins(results, names, "tuned"), wins(results, names, "level")
    return (
        "What the charts do to a stream before they add anything up (the forecast, the part of an error that the one before tells, "
        "the normal score) is worth as much as the charts. river's detectors, given these scores: resmon's set is soonest in "
        f"{len(won)} of {len(SCENARIOS)} scenarios with the limits of the tuning streams, and in {len(level)} with those of the "
        "scored streams, where theirs, which look for changes of the level alone, spend nothing on the others.\n\n"
        + _delays(results, names, "tuned")
        + "\n\nWith the limits of the scored streams:\n\n"
        + _delays(results, names, "level")
    )


def _settings(results: Sequence[Result], names: Sequence[str]) -> str:
    rows = []
    for name in names:
        each = _result(results, name, "tuned")
        settings = ", ".join(f"{key} {value}" for key, value in each.settings.items()) or "as they are"
        limits = f"{each.limits[False]:.4g}, {each.limits[True]:.4g}"
        rows.append([name, settings, limits, _steps(each.run_length[False]), _steps(each.run_length[True])])
    head = ["", "settings", "limit, and for correlated noise", "run length, scored streams", "correlated"]
    return f"Tuned to a run length of {TARGET}; what it is on the streams of the other runs:\n\n" + table(head, rows)


_DEFAULT = """Each with the limit and the settings that it has by default, river's on the logarithms as they are. The delays cannot
be compared, as the run lengths differ; a detector that alarms at every turn is soon at every change."""


def _costs(clocks: dict[str, float]) -> str:
    ours, others = clocks[OURS], {name: each for name, each in clocks.items() if name != OURS}
    met = "met" if ours < min(others.values()) else "**missed**"
    rows = [[name, f"{each:.3f}", f"{each * CLOCKED / 1000:.2f}"] for name, each in clocks.items()]
    return (
        f"One process. Ours is the whole set on {CLOCKED:,} streams, one step at a time (in blocks of 16, half as long); "
        f"river's on one stream after the other, the numbers taken from a list. Aimed at: less than any of them, {met}; "
        f"{CLOCKED:,} streams in 0.5 ms, {'met' if ours * CLOCKED / 1000 <= 0.5 else '**missed**'}.\n\n"
        + table(["", "µs an update", f"ms for {CLOCKED:,} streams"], rows)
    )


def _ablation(tunings: Sequence[Tuning]) -> str:
    mine = [each for each in tunings if each.name == OURS]
    whole = next(each for each in mine if not each.settings)
    rows = [["none", f"{whole.delay:.1f}", ""]]
    for each in mine:
        if each.settings:
            slower = {name: each.delays[name] / whole.delays[name] - 1 for name in whole.delays}
            most = max(slower, key=lambda name: slower[name])
            title = next(scenario.title for scenario in SCENARIOS if scenario.name == most)
            rows.append([", ".join(each.settings["without"]), f"{each.delay:.1f}", f"{title}, {slower[most]:+.0%}"])
    return (
        "The set without one of its charts, at equal false alarms, on the tuning streams at the middle sizes. Fewer charts have "
        "lower limits, so that one that earns nothing costs.\n\n"
        + table(["left out", "mean delay", "where it is missed most"], rows)
    )


def _made(how: Circumstances) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in how.versions.items())
    load = " ".join(f"{each:.2f}" for each in how.load)
    return (
        f"Made by `{how.command}` on {how.date}. {how.cpu}, {how.cores} cores; {packages}. "
        f"Load average before (1, 5, 15 min) {load}."
    )


def _steps(length: float) -> str:
    return f"{length:,.0f}" if isfinite(length) else "no alarm"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def write_json(
    path: Path, tunings: Sequence[Tuning], results: Sequence[Result], clocks: dict[str, float], how: Circumstances
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "circumstances": asdict(how),
        "microseconds": clocks,
        "results": [_plain(asdict(each)) for each in results],
        "tunings": [_plain({**asdict(each), "delay": each.delay}) for each in tunings],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """Names of limits that say what they are of, digits that mean something, and nothing that JSON does not know."""
    if isinstance(value, dict):
        names = {True: "correlated", False: "recorded"}
        return {names[key] if isinstance(key, bool) else str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if isfinite(value) else None
    return value
