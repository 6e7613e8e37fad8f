"""Unit tests of an objective's rules, made together with them, for `promtool test rules`.

Of every objective: each pair of windows fires by itself just above its burn rate and is silent just below, where only one of the
windows burns, and where there were too few events; while the page fires there is no ticket. These cases say what the windows
hold, so that a pair of three days is tried in a minute. Of the objectives that resmon brings there are cases from the metrics
themselves as well: healthy, just below and just above, too little traffic, and a moment at which a fault begins, with the last
minute before the alert and the first with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from resmon.objectives import rules
from resmon.objectives.rules import Addresses, number, selector
from resmon.objectives.spec import Objective
from resmon.objectives.windows import SEVERITIES, Pair, Severity, Windows
from resmon.rules import AlertTest, Case, Firing, QueryTest, Sample, Series, durations, unit_test_file

NEAR = Fraction(1, 1000)  # how far below and above a burn rate is tried
AT = "1m"
LAST = 2  # minutes of a case whose windows are given
STEADY = 12  # minutes of a case with a steady share of bad events

Course = Callable[[Sequence[int], int], list[Series]]


def file(objectives: Sequence[Objective], windows: Windows, addresses: Addresses, rule_files: Sequence[str], header: str) -> str:
    """The test file of the rule file of these objectives."""
    found = [case for each in objectives for case in cases(each, windows, addresses)]
    return unit_test_file(rule_files, found, header, durations.written(rules.INTERVAL))


def cases(objective: Objective, windows: Windows, addresses: Addresses) -> Iterator[Case]:
    scene = Scene(objective, windows, addresses)
    for severity in SEVERITIES:
        if severity in objective.tiers:
            for pair in windows.of(severity):
                yield from scene.of_pair(pair)
    if len(objective.tiers) == len(SEVERITIES):
        yield scene.everything_burns()
    if objective.service == SERVICE and objective.name in COURSES:
        yield from _FromMetrics(scene, *COURSES[objective.name]).cases()


@dataclass(frozen=True)
class Scene:
    """What is recorded of an objective, as a case gives it."""

    objective: Objective
    windows: Windows
    addresses: Addresses

    def firing(self, severity: Severity, burn: float) -> Firing:
        """The alert as it is sent with that burn rate."""
        annotations = rules.alert_annotations(self.objective, self.windows, severity, self.addresses)
        burnt = {key: filled(text, burn) for key, text in annotations.items()}
        return Firing(rules.identity(self.objective) | rules.alert_labels(self.objective, severity), burnt)

    def silent(self, at: str) -> AlertTest:
        return AlertTest(at, self.objective.alert)

    def fires(self, at: str, severity: Severity, burn: float) -> AlertTest:
        """That one, and no other."""
        return AlertTest(at, self.objective.alert, [self.firing(severity, burn)])

    def recorded(self, shares: Mapping[int, float], events: int | None = None) -> list[Series]:
        """The windows in which there were bad events, 0 in all others; and how many events there were."""
        labels = ",".join(f'{name}="{escaped(value)}"' for name, value in rules.identity(self.objective).items())
        pairs = [pair for severity in self.objective.tiers for pair in self.windows.of(severity)]
        lengths = sorted({length for pair in pairs for length in (pair.short, pair.long)})
        made = []
        for length in lengths:
            name = f"{rules.RATIO}{durations.written(length)}{{{labels}}}"
            made.append(Series(name, f"{shares.get(length, 0.0)!r}x{LAST}"))
        if self.objective.guard:
            enough = self.objective.guard if events is None else events
            name = rules.guarding(self.objective)
            made += [
                Series(f"{name}{durations.written(length)}{{{labels}}}", f"{enough}x{LAST}")
                for length in sorted({pair.long for pair in pairs})
            ]
        return made

    def of_pair(self, pair: Pair) -> Iterator[Case]:
        objective = self.objective
        named = f"{objective.service}/{objective.name}, {pair}"
        needed = pair.factor * objective.budget
        above, below = float(min(needed * (1 + NEAR), Fraction(1))), float(needed * (1 - NEAR))
        both = {pair.long: above, pair.short: above}
        burn = above / float(objective.budget)
        fires = self.fires(AT, pair.severity, burn)
        yield Case(f"{named}: fires above a burn rate of {number(pair.factor)}", self.recorded(both), [fires])
        silences = {
            f"silent below a burn rate of {number(pair.factor)}": {pair.long: below, pair.short: below},
            f"silent once the last {durations.written(pair.short)} are well": {pair.long: above, pair.short: below},
            f"silent while it has not lasted in {durations.written(pair.long)}": {pair.long: below, pair.short: above},
        }
        # A window that two pairs share burns for the other one too, and what burns slower than this may be enough for that.
        for what, shares in silences.items():
            if not self._others_fire(pair, shares):
                yield Case(f"{named}: {what}", self.recorded(shares), [self.silent(AT)])
        if objective.guard:
            few = self.recorded(both, objective.guard - 1)
            yield Case(f"{named}: silent with {objective.guard - 1} events", few, [self.silent(AT)])

    def _others_fire(self, pair: Pair, shares: Mapping[int, float]) -> bool:
        budget = float(self.objective.budget)
        return any(
            all(shares.get(length, 0.0) / budget > float(each.factor) for length in (each.short, each.long))
            for severity in self.objective.tiers
            for each in self.windows.of(severity)
            if each != pair
        )

    def everything_burns(self) -> Case:
        """From all windows one alert: the page."""
        shares = dict.fromkeys(self.windows.lengths, 1.0)
        alert = self.fires(AT, "page", 1 / float(self.objective.budget))
        return Case(
            f"{self.objective.service}/{self.objective.name}: where everything burns there is one page, and no ticket beside it",
            self.recorded(shares),
            [alert],
        )


def filled(template: str, burn: float) -> str:
    """An annotation of ours as Prometheus fills it in."""
    return template.replace('{{ printf "%.3g" $value }}', f"{burn:.3g}").replace('{{ "{{" }}', "{{")


def escaped(value: str) -> str:
    """A label's value in quotes."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# From the metrics: what a course gives for so many bad events, of `whole`, in each minute. Where a metric tells of runs or agents
# and not of events, it is so many of them, and their number is the same in every minute.

SERVICE = "resmon"


@dataclass(frozen=True)
class _Counters:
    """Counters that grow by a part of every minute's events: bad ones, good ones, all, or what is neither."""

    bad: Sequence[str] = ()
    good: Sequence[str] = ()
    all: Sequence[str] = ()
    besides: Sequence[str] = ()

    def __call__(self, bad: Sequence[int], whole: int) -> list[Series]:
        parts = [(self.bad, bad), (self.good, [whole - each for each in bad])]
        parts += [(self.all, [whole] * len(bad)), (self.besides, [whole] * len(bad))]
        return [Series(name, counting(each)) for names, each in parts for name in names]


def counting(increments: Sequence[int]) -> str:
    """A counter that begins at 0 and grows so in each minute."""
    found, value, i = ["0"], 0, 0
    while i < len(increments):
        alike = next((j for j in range(i, len(increments)) if increments[j] != increments[i]), len(increments)) - i
        found.append(f"{value + increments[i]}+{increments[i]}x{alike - 1}" if alike > 1 else f"{value + increments[i]}")
        value += increments[i] * alike
        i += alike
    return " ".join(found)


# A run: the seconds of training after which its target was met, those that it trained in all, how it ended.
_Run = tuple[int | None, int, str | None]
_MET: _Run = (7_200, 7_300, "finished")
_MISSES: tuple[_Run, ...] = ((20_000, 20_000, "finished"), (None, 20_000, None), (None, 7_300, "finished"))


def _targets(bad: Sequence[int], whole: int) -> list[Series]:
    """Runs with a target: of those that miss it one is late, one is over time, one finishes early without it, and so on."""
    ways = [_MISSES[i % len(_MISSES)] if i < bad[0] else _MET for i in range(whole)]
    runs = [(f"r{i:02d}", *way) for i, way in enumerate(ways)]
    # Neither late nor at their end: they do not count.
    runs += [("young", None, 60, None), ("broken", None, 60, "failed")]
    made = []
    for name, met, trained, outcome in runs:
        target = f'run="{name}",target="accuracy >= 0.9"'
        made.append(Series(f"resmon_target_reached{{{target}}}", f"{int(met is not None)}x{len(bad)}"))
        made.append(Series(f'resmon_step_duration_seconds_sum{{run="{name}",rank="0"}}', f"{trained}x{len(bad)}"))
        if met is not None:
            made.append(Series(f"resmon_target_seconds{{{target}}}", f"{met}x{len(bad)}"))
        if outcome is not None:
            made.append(Series(f'resmon_run_outcome{{run="{name}",model="Net",outcome="{outcome}"}}', f"1x{len(bad)}"))
    return made


def _agents(bad: Sequence[int], whole: int) -> list[Series]:
    """Agents with a run each, whose newest step is old in those that are bad."""
    made, minutes = [], len(bad)
    for i in range(whole):
        where = f'job="resmon",instance="a{i:02d}:9699"'
        newest = f"-10000x{minutes}" if i < bad[0] else f"0+60x{minutes}"
        made.append(Series(f"resmon_runs_active{{{where}}}", f"1x{minutes}"))
        made.append(Series(f'resmon_last_step_timestamp_seconds{{{where},run="r",rank="0"}}', newest))
    idle = 'job="resmon",instance="idle:9699"'  # nothing is under way there
    return [*made, Series(f"resmon_runs_active{{{idle}}}", f"0x{minutes}")]


_RANK = 'run="digits",rank="0"'
MANY = 1_000_000

# name -> the course, how many events a minute or units there are, whether they are events that are counted
COURSES: dict[str, tuple[Course, int, bool]] = {
    "training-success": (
        _Counters(
            bad=['resmon_runs_total{outcome="out_of_memory"}'],
            good=['resmon_runs_total{outcome="finished"}'],
            besides=['resmon_runs_total{outcome="interrupted"}'],
        ),
        MANY,
        True,
    ),
    "step-time": (
        _Counters(
            good=[f'resmon_step_duration_seconds_bucket{{{_RANK},le="8.0"}}'],
            all=[f'resmon_step_duration_seconds_bucket{{{_RANK},le="16.0"}}', f"resmon_step_duration_seconds_count{{{_RANK}}}"],
        ),
        MANY,
        True,
    ),
    "finite-steps": (
        _Counters(bad=[f"resmon_nonfinite_steps_total{{{_RANK}}}"], all=[f"resmon_steps_total{{{_RANK}}}"]),
        MANY,
        True,
    ),
    "convergence": (_targets, 20, False),
    "telemetry-freshness": (_agents, 100, False),
}


@dataclass(frozen=True)
class _FromMetrics:
    scene: Scene
    course: Course
    whole: int
    counted: bool

    def cases(self) -> Iterator[Case]:
        objective = self.scene.objective
        named = f"{objective.service}/{objective.name}"
        yield self._steady(f"{named}: a healthy course is silent, and its budget is whole", 0, None)
        # Steadily so much of it is bad, in every window: the least burn rate of a severity decides.
        least: dict[Severity, Fraction] = {s: min(p.factor for p in self.scene.windows.of(s)) for s in objective.tiers}
        for severity, factor in least.items():
            edge = factor * objective.budget * self.whole
            below, above = ceil(edge) - 1, floor(edge) + 1
            is_ticket = "ticket" in least and Fraction(below, self.whole) / objective.budget > least["ticket"]
            too_few = f"{named}: {below:,} of {self.whole:,} are just too few for a {severity}"
            yield self._steady(too_few, below, "ticket" if is_ticket else None)
            yield self._steady(f"{named}: {above:,} of {self.whole:,} are just enough for a {severity}", above, severity)
        if not self.counted:
            return
        if objective.guard > 1:
            alone = [
                Series(each.series, "0 1+0x60" if each.values.startswith("0 1") else "0x61")
                for each in self.course([1] + [0] * STEADY, 1)
            ]
            silences = [self.scene.silent(f"{minute}m") for minute in (2, 5, STEADY)]
            yield Case(f"{named}: one event, a bad one, tells nothing", alone, silences)
        if "page" in objective.tiers:
            yield self._outage(named)

    def _steady(self, name: str, bad: int, severity: Severity | None) -> Case:
        share = bad / self.whole
        at, objective = f"{STEADY}m", self.scene.objective
        burn = share / float(objective.budget)
        alert = self.scene.silent(at) if severity is None else self.scene.fires(at, severity, burn)
        labels = ",".join(f'{name}="{escaped(value)}"' for name, value in sorted(rules.identity(objective).items()))
        left = QueryTest(
            at, f"round({rules.LEFT}{selector(objective)}, 0.0001)", [Sample(f"{{{labels}}}", round((1 - burn) / 1e-4) * 1e-4)]
        )
        return Case(name, self.course([bad] * STEADY, self.whole), [alert], [left] if bad == 0 else [])

    def _outage(self, named: str) -> Case:
        """Hours in which all is well, and from one minute on nothing is."""
        windows, objective = self.scene.windows, self.scene.objective
        pairs = windows.of("page")
        well = min(pair.long for pair in pairs) // 60
        # Bad minutes are a share of the long window, or of as much of it as there is: the first pair whose factor that passes.
        minutes = 0
        burning: list[Fraction] = []
        while not burning:
            minutes += 1
            burns = {pair: Fraction(minutes, min(well + minutes, pair.long // 60)) / objective.budget for pair in pairs}
            burning = [burn for pair, burn in burns.items() if burn > pair.factor]
        first = f"{well + minutes}m"
        pages = f'ALERTS{{alertname="{objective.alert}",severity="page"}}'
        return Case(
            f"{named}: after {well} good minutes nothing but bad events page in minute {minutes}, and not in the one before",
            self.course([0] * well + [self.whole] * (minutes + 2), self.whole),
            [self.scene.fires(first, "page", float(burning[0]))],
            [QueryTest(f"{well + minutes - 1}m", pages, [])],
        )
