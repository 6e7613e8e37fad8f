"""The objectives that resmon brings: what they read, and what they count."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from resmon.catalogue import BY_NAME
from resmon.objectives import generation, proofs, rules, windows
from resmon.objectives.rules import Addresses
from resmon.objectives.spec import RESERVED, Events, Objective
from resmon.records import DURATION_EDGES, OUTCOMES
from resmon.rules import Alert, Case, QueryTest, Recording, Sample, Series, metrics, rule_file, unit_test_file
from tests.programs import program

OBJECTIVES = {each.name: each for each in generation.make(None).objectives}
WORKBOOK = windows.policy().windows()


def test_they_are_the_ones_that_are_promised() -> None:
    assert list(OBJECTIVES) == ["training-success", "step-time", "finite-steps", "convergence", "telemetry-freshness"]
    assert not set(OBJECTIVES) & set(RESERVED)
    for each in OBJECTIVES.values():
        assert each.alert == "ResmonSlo" + "".join(part.title() for part in each.name.split("-"))
        assert each.description and each.guard


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_rules_read_what_the_catalogue_has_and_what_they_record(objective: Objective) -> None:
    group = rules.group(objective, WORKBOOK)
    recorded = {rule.record for rule in group.rules if isinstance(rule, Recording)}
    read = {name for rule in group.rules for name in metrics(rule.expr)}
    for name in read - recorded:
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        assert name in BY_NAME or BY_NAME[family].kind == "histogram"
    alerts = [rule for rule in group.rules if isinstance(rule, Alert)]
    assert {name for alert in alerts for name in metrics(alert.expr)} <= recorded


def test_labels_in_queries_have_values_that_there_are() -> None:
    text = (generation.shipped()[0]).read_text()
    (bucket,) = set(re.findall(r'le="([^"]+)"', text))
    assert bucket in {repr(float(edge)) for edge in DURATION_EDGES}
    named = {outcome for match in re.findall(r'outcome[=!~]+"([^"]+)"', text) for outcome in match.split("|")}
    assert named == {"finished", "interrupted"} <= set(OUTCOMES)


def test_every_shipped_objective_is_tried_from_its_metrics() -> None:
    assert list(proofs.COURSES) == list(OBJECTIVES)
    for name, objective in OBJECTIVES.items():
        assert isinstance(objective.sli, Events)
        read = metrics(objective.sli.bad.over("5m")) | metrics(objective.sli.total.over("5m"))
        course, whole, _ = proofs.COURSES[name]
        given = {each.series.split("{")[0] for each in course([1, 1], whole)}
        assert read <= given


def check(folder: Path, *cases: Case) -> None:
    groups = [rules.group(objective, WORKBOOK) for objective in OBJECTIVES.values()]
    (folder / "rules.yaml").write_text(rule_file(groups, ""))
    (folder / "tests.yaml").write_text(unit_test_file(["rules.yaml"], cases, ""))
    found = subprocess.run(
        [program("promtool"), "test", "rules", "tests.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def share(name: str, at: str, value: float | None, window: str = "5m") -> QueryTest:
    labels = f'{{service="resmon",slo="{name}"}}'
    expected = [] if value is None else [Sample(labels, value)]
    return QueryTest(at, f"round(slo:sli_error:ratio_rate{window}{labels}, 0.0001)", expected)


def test_every_outcome_counts_as_it_should(tmp_path: Path) -> None:
    """Each alone, beside as many finished runs: a failure is half of them, an interrupted run is none."""
    cases = [
        Case(
            f"{outcome} beside finished",
            [
                Series('resmon_runs_total{outcome="finished"}', "0+1x20"),
                *([] if outcome == "finished" else [Series(f'resmon_runs_total{{outcome="{outcome}"}}', "0+1x20")]),
            ],
            queries=[share("training-success", "15m", 0.0 if outcome in ("finished", "interrupted") else 0.5)],
        )
        for outcome in OUTCOMES
    ]
    nothing = Case(
        "no run has ended",
        [Series('resmon_runs_total{outcome="failed"}', "0x20")],
        queries=[share("training-success", "15m", None)],
    )
    check(tmp_path, *cases, nothing)


def test_one_failed_run_is_seen_in_every_window_and_pages_nobody(tmp_path: Path) -> None:
    """Whatever the moment at which it fails, and though it was the only one."""
    cases = []
    for minute in range(20, 27):
        at = f"{minute + 2}m"
        series = [Series('resmon_runs_total{outcome="killed"}', f"0x{minute - 1} 1x40")]
        seen = [share("training-success", at, 1, window) for window in ("5m", "1h", "6h", "1d", "30d")]
        left = QueryTest(
            at,
            'slo:period_error_budget_remaining:ratio{slo="training-success"} < 0',
            [Sample('slo:period_error_budget_remaining:ratio{service="resmon",slo="training-success"}', 1 - 1 / 0.05)],
        )
        cases.append(Case(f"a run is killed in minute {minute}", series, queries=[*seen, left, QueryTest(at, "ALERTS", [])]))
    check(tmp_path, *cases)


AGENT = 'job="resmon",instance="a:9699"'
OTHER = 'job="resmon",instance="b:9699"'


def steps(where: str, values: str, run: str = "r") -> Series:
    return Series(f'resmon_last_step_timestamp_seconds{{{where},run="{run}",rank="0"}}', values)


def test_telemetry_is_fresh_while_its_agent_answers_and_steps_come(tmp_path: Path) -> None:
    name = "telemetry-freshness"
    beside = [Series(f"resmon_runs_active{{{OTHER}}}", "1x100"), steps(OTHER, "0+60x100")]
    active = Series(f"resmon_runs_active{{{AGENT}}}", "1x60")
    killed = [Series(f"resmon_runs_active{{{AGENT}}}", "1x10 stale"), steps(AGENT, "0+60x10 stale")]
    cases = [
        Case("both are well", [*beside, active, steps(AGENT, "0+60x60")], queries=[share(name, "40m", 0)]),
        Case(
            "one agent is killed while a run is under way",
            [*beside, *killed],
            queries=[share(name, "10m", 0), share(name, "30m", 0.5)],
        ),
        Case("alone it is missed, too", killed, queries=[share(name, "30m", 1)]),
        Case("an hour later it is not waited for any more", [*beside, *killed], queries=[share(name, "90m", 0)]),
        Case(
            "an agent leaves, and nothing is under way",
            [*beside, Series(f"resmon_runs_active{{{AGENT}}}", "1x5 0x5 stale"), steps(AGENT, "0+60x5 stale")],
            queries=[share(name, "30m", 0)],
        ),
        Case(
            "no step for ten minutes",
            [*beside, active, steps(AGENT, "0+60x5 300x55")],
            queries=[share(name, "14m", 0), share(name, "25m", 0.5)],
        ),
        Case(
            "of two runs of an agent one makes no step",
            [*beside, active, steps(AGENT, "0+60x60"), steps(AGENT, "0x60", "old")],
            queries=[share(name, "9m", 0), share(name, "25m", 0.5)],
        ),
        Case("a run that has made no step is no news", [*beside, active], queries=[share(name, "30m", 0)]),
        Case("nothing is under way", [Series(f"resmon_runs_active{{{AGENT}}}", "0x60")], queries=[share(name, "30m", None)]),
    ]
    check(tmp_path, *cases)


def test_a_target_is_missed_late_or_not_at_all(tmp_path: Path) -> None:
    def run(name: str, seconds: int | None, trained: int, outcome: str | None = None) -> list[Series]:
        labels = f'run="{name}",target="accuracy >= 0.9"'
        ends = f'resmon_run_outcome{{run="{name}",model="Net",outcome="{outcome}"}}'
        ended = [] if outcome is None else [Series(ends, "_x2 1x28")]
        reached = [] if seconds is None else [Series(f"resmon_target_seconds{{{labels}}}", f"{seconds}x30")]
        return [
            *reached,
            Series(f"resmon_target_reached{{{labels}}}", f"{int(seconds is not None)}x30"),
            *(Series(f'resmon_step_duration_seconds_sum{{run="{name}",rank="{rank}"}}', f"{trained}x30") for rank in (0, 1)),
            *ended,
        ]

    good, late = run("good", 14_400, 20_000), run("late", 14_401, 14_500)
    over, young = run("over", None, 14_401), run("young", None, 14_400)
    cases = [
        Case("in time", [*good, *young], queries=[share("convergence", "20m", 0)]),
        Case("late", [*good, *late], queries=[share("convergence", "20m", 0.5)]),
        Case("not within the time", [*good, *over, *young], queries=[share("convergence", "20m", 0.5, "30d")]),
        Case("still on the way", young, queries=[share("convergence", "20m", None)]),
        Case("finished early without it", [*good, *run("early", None, 60, "finished")], queries=[share("convergence", "20m", 0.5)]),
        Case("nothing but that", run("early", None, 60, "finished"), queries=[share("convergence", "20m", 1, "30d")]),
        Case("finished with it", run("good", 60, 90, "finished"), queries=[share("convergence", "20m", 0)]),
        Case(
            "one late, one over time, both finished: each counts once",
            [*good, *run("late", 14_401, 14_500, "finished"), *run("over", None, 14_500, "finished")],
            queries=[share("convergence", "20m", 0.6667)],
        ),
        *(
            Case(f"{outcome} before", [*good, *run("broken", None, 60, outcome)], queries=[share("convergence", "20m", 0)])
            for outcome in OUTCOMES
            if outcome != "finished"
        ),
    ]
    check(tmp_path, *cases)


def test_an_address_is_no_part_of_the_arithmetic() -> None:
    one, other = (
        [rule for rule in rules.group(OBJECTIVES["step-time"], WORKBOOK, Addresses(runbooks)).rules if isinstance(rule, Recording)]
        for runbooks in ("https://a", "https://b")
    )
    assert one == other
