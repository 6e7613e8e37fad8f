"""The unit tests that are made with the rules: they pass on the rules as they are, and fail on others."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from resmon.objectives import generation, proofs, rules, windows
from resmon.objectives.rules import Addresses
from resmon.objectives.windows import SEVERITIES
from resmon.rules import Case, QueryTest, Sample, Series, durations, rule_file, unit_test_file
from tests.objectives.specs import load, service, slo, written
from tests.programs import program

WORKBOOK = windows.policy().windows()


def promtool(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [program("promtool"), "test", "rules", "tests/slo.yaml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def tried(folder: Path, made: generation.Made) -> None:
    generation.write(made.files, folder)
    found = subprocess.run(
        [program("promtool"), "check", "rules", "slo.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    found = promtool(folder)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("policy", "period"),
    [
        ("workbook", "30d"),
        pytest.param("burn-rate-2", "30d", marks=pytest.mark.slow),
        pytest.param("workbook", "7d", marks=pytest.mark.slow),
        pytest.param("workbook", "28d", marks=pytest.mark.slow),
        pytest.param("burn-rate-2", "90d", marks=pytest.mark.slow),
    ],
)
def test_of_what_resmon_brings_everything_passes(policy: str, period: str, tmp_path: Path) -> None:
    tried(tmp_path, generation.make(None, policy, period))


MIXED = service(
    slo(),
    slo("part", "99", "events:\n  error_query: sum(increase(bad[{{.window}}]))\n  total_query: sum(increase(all[{{.window}}]))\n"),
    slo("raw", "95", "raw: {error_ratio_query: 'errors:ratio{{.window}}'}\n"),
    slo("ticket", "80", more="alerting: {name: Slow, page_alert: {disable: true}}\n"),
    slo("page", "99.99", more="alerting: {ticket_alert: {disable: true}}\n"),
    slo("quiet", "95.5", more="alerting: {page_alert: {disable: true}, ticket_alert: {disable: true}}\n"),
    more='labels: {tier: "2", quote: "\\"\\\\ b"}\n',
)


@pytest.mark.parametrize("period", ["30d", "40d"])
def test_of_anybodys_objectives_everything_passes(period: str, tmp_path: Path) -> None:
    tried(tmp_path, generation.make([written(tmp_path, MIXED)], "workbook", period))


def test_every_pair_of_every_objective_is_tried(tmp_path: Path) -> None:
    objectives = [*load(tmp_path, MIXED, WORKBOOK), *generation.make(None).objectives]
    for objective in objectives:
        names = [case.name for case in proofs.cases(objective, WORKBOOK, Addresses())]
        assert len(names) == len(set(names))
        for severity in SEVERITIES:
            for pair in WORKBOOK.of(severity):
                of_pair = [name for name in names if f"{objective.name}, {pair}:" in name]
                if severity not in objective.tiers:
                    assert not of_pair
                    continue
                what = ["fires above", "silent below", "silent once", "silent while"] + ["silent with"] * bool(objective.guard)
                assert len(of_pair) == len(what) and all(each in name for each, name in zip(what, of_pair, strict=True))
        assert any("one page, and no ticket" in name for name in names) == (len(objective.tiers) == 2)


def test_every_shipped_objective_is_tried_healthy_and_at_every_edge() -> None:
    for objective in generation.make(None).objectives:
        names = [case.name for case in proofs.cases(objective, WORKBOOK, Addresses())]
        for severity in objective.tiers:
            assert sum(f"just too few for a {severity}" in name for name in names) == 1
            assert sum(f"just enough for a {severity}" in name for name in names) == 1
        assert sum("a healthy course is silent" in name for name in names) == 1
        counted = proofs.COURSES[objective.name][2]
        assert sum("and not in the one before" in name for name in names) == (counted and "page" in objective.tiers)
        assert sum("one event, a bad one, tells nothing" in name for name in names) == counted


def expected(shares: dict[int, float], events: dict[int, int], factors: list[tuple[str, int, int, float]], budget: float) -> str:
    """Who is told, by arithmetic of its own."""
    burning = {
        severity
        for severity, short, long, factor in factors
        if shares[short] > factor * budget and shares[long] > factor * budget and events[long] >= 10
    }
    return "page" if "page" in burning else "ticket" if "ticket" in burning else ""


WORKBOOKS = [
    ("page", 300, 3600, 14.4),
    ("page", 1800, 21_600, 6.0),
    ("ticket", 7200, 86_400, 3.0),
    ("ticket", 21_600, 259_200, 1.0),
]
TWICE = [("page", 300, 3600, 2.0), ("page", 1800, 21_600, 2.0), ("ticket", 7200, 86_400, 1.5), ("ticket", 21_600, 259_200, 1.0)]


@pytest.mark.parametrize(("policy", "factors"), [("workbook", WORKBOOKS), ("burn-rate-2", TWICE)])
def test_whatever_the_windows_hold_the_right_one_alert_fires_or_none(
    policy: str, factors: list[tuple[str, int, int, float]], tmp_path: Path
) -> None:
    over = windows.policy(policy).windows()
    (objective,) = load(tmp_path, service(slo()), over)
    scene, chance, told = proofs.Scene(objective, over, Addresses()), random.Random(policy), Counter[str]()
    cases = []
    for i in range(150):
        usual = 10 ** chance.uniform(-4, -1.5)
        shares = {length: usual * 10 ** chance.uniform(-0.4, 0.4) for length in (300, 1800, 3600, 7200, 21_600, 86_400, 259_200)}
        events = {length: chance.choice((9, 10, 10_000)) for length in (3600, 21_600, 86_400, 259_200)}
        who = expected(shares, events, factors, 0.001)
        told[who] += 1
        series = [each for each in scene.recorded(shares) if "events" not in each.series]
        labels = 'service="shop",slo="availability"'
        series += [Series(f"slo:sli_total:events{durations.written(length)}{{{labels}}}", f"{n}x2") for length, n in events.items()]
        fires = [Sample(f'{{severity="{who}"}}', 1)] if who else []
        cases.append(Case(f"case {i}", series, queries=[QueryTest("1m", "count by (severity) (ALERTS)", fires)]))
    assert min(told.values()) > 10 and set(told) == {"page", "ticket", ""}
    (tmp_path / "tests").mkdir()
    (tmp_path / "slo.yaml").write_text(rule_file([rules.group(objective, over)], ""))
    (tmp_path / "tests" / "slo.yaml").write_text(unit_test_file(["../slo.yaml"], cases, ""))
    found = promtool(tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr


BROKEN: dict[str, Callable[[str], str]] = {
    "a factor that is too high": lambda text: text.replace("> 14.4", "> 14.5"),
    "a factor that is too low": lambda text: text.replace("> 14.4", "> 14.3"),
    "the slow pair's": lambda text: text.replace("> 6\n", "> 6.1\n"),
    "the ticket's": lambda text: text.replace("> 3\n", "> 2.9\n"),
    "a wrong budget": lambda text: text.replace("/ 0.001 >", "/ 0.0011 >"),
    "no short window": lambda text: text.replace(
        'ratio_rate5m{service="shop",slo="a"} / 0.001', 'ratio_rate1h{service="shop",slo="a"} / 0.001'
    ),
    "no guard": lambda text: text.replace(">= 10", ">= 0"),
    "a ticket beside the page": lambda text: text.replace("unless", "or"),
    "another severity": lambda text: text.replace("severity: page", "severity: ticket"),
    "another link": lambda text: text.replace("error-budget.md", "budget.md"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_rules_that_are_broken_do_not_pass(what: str, tmp_path: Path) -> None:
    made = generation.make([written(tmp_path, service(slo("a")))])
    tried(tmp_path, made)
    text = made.files[generation.RULES]
    broken = BROKEN[what](text)
    assert broken != text
    (tmp_path / "slo.yaml").write_text(broken)
    assert promtool(tmp_path).returncode == 1


def test_counting_is_what_increments_make() -> None:
    assert proofs.counting([2, 2, 2]) == "0 2+2x2"
    assert proofs.counting([0, 0, 5]) == "0 0+0x1 5"
    assert proofs.counting([1]) == "0 1"


def test_a_test_file_is_evaluated_as_often_as_the_rules_are() -> None:
    made = generation.make(None)
    assert yaml.safe_load(made.files[generation.TESTS])["evaluation_interval"] == "1m"
    groups = yaml.safe_load(made.files[generation.RULES])["groups"]
    assert {group["interval"] for group in groups} == {"1m"} and rules.INTERVAL == 60
