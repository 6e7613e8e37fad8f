"""The alerts as they are committed: every one is tested, leads somewhere, reads what is exported, and none of them lacks."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from resmon.assets.findings import TOLD
from resmon.assets.machines import MERGED
from resmon.assets.runs import NUMBERS, RUN_ALERTS
from resmon.catalogue import BY_NAME, CATALOGUE
from resmon.detectors import DETECTORS
from resmon.handbook import pages as handbook
from resmon.records import INCIDENT_KINDS, OUTCOMES
from resmon.rules import metrics, nit
from tests.programs import program

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "alerts").glob("*.yaml"))
TESTS = sorted((ROOT / "alerts" / "tests").glob("*.yaml"))
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((ROOT / "alerts" / "resmon.yaml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDINGS = {rule["record"]: rule for rule in RULES if "record" in rule}
alerts = pytest.mark.parametrize("alert", ALERTS)
QUERY = re.compile(r'printf "((?:[^"\\]|\\.)*)"[^|}]*\| query')


def cases() -> Iterator[dict[str, Any]]:
    for path in TESTS:
        content = yaml.safe_load(path.read_text())
        if content["rule_files"] == ["../resmon.yaml"]:
            yield from content["tests"]


CASES = list(cases())


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_promtool_accepts_the_rules(file: Path) -> None:
    found = subprocess.run([program("promtool"), "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.name)
def test_promtool_runs_the_unit_tests(file: Path) -> None:
    command = [program("promtool"), "test", "rules", file.name]
    found = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def minutes(duration: str) -> int:
    assert duration.endswith("m"), duration
    return int(duration.removesuffix("m"))


def courses_of(alert: str) -> list[list[tuple[int, bool]]]:
    """Of each case with this alert, when it is looked at and whether it fires then, in the order of time."""
    return [
        sorted(
            (minutes(each["eval_time"]), bool(each["exp_alerts"]))
            for each in case.get("alert_rule_test", ())
            if each["alertname"] == alert
        )
        for case in CASES
        if any(each["alertname"] == alert for each in case.get("alert_rule_test", ()))
    ]


@alerts
def test_an_alert_is_tested_just_before_and_just_after_and_where_it_must_not_fire(alert: str) -> None:
    courses = courses_of(alert)
    steps = [pair for course in courses for pair in pairwise(course)]
    assert any(after == before + 1 and (was, now) == (False, True) for (before, was), (after, now) in steps), "silent, then firing"
    others = [course for course in courses if not any(fires for _, fires in course)]
    assert others, "a course in which it must not fire"
    if "resmon_finding_active" in ALERTS[alert]["expr"] or "resmon_run_outcome" in ALERTS[alert]["expr"]:
        assert any(after == before + 1 and (was, now) == (True, False) for (before, was), (after, now) in steps), "and it ends"


@alerts
def test_what_is_expected_has_every_label_and_annotation(alert: str) -> None:
    expected = [
        fired
        for case in CASES
        for each in case.get("alert_rule_test", ())
        if each["alertname"] == alert
        for fired in each["exp_alerts"]
    ]
    assert expected
    for fired in expected:
        assert {"instance" if alert == "ResmonAgentErrors" else "run", "severity"} <= fired["exp_labels"].keys()
        assert fired["exp_labels"]["severity"] in ("page", "ticket")
        assert fired["exp_annotations"].keys() == ALERTS[alert]["annotations"].keys()
        assert not any("{{" in text or "<no value>" in text for text in fired["exp_annotations"].values())


@pytest.mark.parametrize("record", RECORDINGS)
def test_a_recording_is_tested_over_two_machines(record: str) -> None:
    asked = {name for case in CASES for each in case.get("promql_expr_test", ()) for name in metrics(each["expr"])}
    assert record in asked
    assert re.fullmatch(r"[a-z_]+:resmon_[a-z_]+:[a-z0-9_]+", record)


def kinds() -> Iterator[tuple[str, str]]:
    """Every kind of finding and its runbook, as the detectors' source has them."""
    files = {kind.__module__: kind.name for kind in DETECTORS}
    for module, name in files.items():
        tree = ast.parse((ROOT / Path(*module.split("."))).with_suffix(".py").read_text())
        texts: dict[str, Any] = {}
        for node in ast.walk(tree):
            for target in node.targets if isinstance(node, ast.Assign) else ():
                both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs = zip(target.elts, node.value.elts, strict=True) if both else [(target, node.value)]
                texts |= {to.id: value.value for to, value in pairs if isinstance(to, ast.Name) and isinstance(value, ast.Constant)}

        def text(node: ast.expr | None, name: str = name, texts: dict[str, Any] = texts) -> str:
            if isinstance(node, ast.Constant):
                return str(node.value)
            return str(texts[node.id]) if isinstance(node, ast.Name) else name  # self.name

        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Episodes", "Finding.opened"):
                page = next((each.value for each in node.keywords if each.arg == "runbook"), None)
                yield text(node.args[0]), text(page if page is not None else node.args[1])


def test_every_kind_of_finding_has_its_alert_with_its_runbook_and_no_other_has() -> None:
    assert sorted(set(kinds())) == sorted((told.finding, told.runbook) for told in TOLD)
    assert {told.alert for told in TOLD} <= ALERTS.keys()


def test_severities_are_those_that_the_detectors_give() -> None:
    page = (ROOT / "docs" / "detectors.md").read_text()
    said = dict(re.findall(r"^\| `(\w+)` \| [^|]+(?:\\\|[^|]*)*\| (page|ticket|page or ticket) \|", page, re.MULTILINE))
    for told in TOLD:
        detector = next(kind.name for kind in DETECTORS if told.finding.startswith(kind.name))
        assert told.severity == said[detector].split(" ")[0], told.finding


def test_every_outcome_that_somebody_must_act_on_has_its_alert() -> None:
    assert {row.outcome for row in RUN_ALERTS} - {""} == set(OUTCOMES) - {"finished", "interrupted", "unknown"}


@alerts
def test_an_alert_leads_to_a_runbook_that_is_there(alert: str) -> None:
    rule = ALERTS[alert]
    page = rule["annotations"]["runbook_url"].rpartition("/")[2].removesuffix(".md")
    assert page in handbook.names()
    assert rule["annotations"]["dashboard_url"].startswith("http://localhost:3000/d/resmon-")
    assert re.fullmatch(r"Resmon([A-Z][a-z]+)+", alert)
    assert rule["labels"].get("severity") in ("page", "ticket") if "labels" in rule else "severity" in rule["expr"]


def test_every_runbook_is_that_of_an_alert_or_a_failure() -> None:
    led_to = {rule["annotations"]["runbook_url"].rpartition("/")[2].removesuffix(".md") for rule in ALERTS.values()}
    for file in FILES:  # other files' alerts, too
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                led_to.add(rule.get("annotations", {}).get("runbook_url", "").rpartition("/")[2].removesuffix(".md"))
    failures = {kind.replace("_", "-") for kind in INCIDENT_KINDS}
    assert set(handbook.names()) == (led_to | failures) - {""}


def exported(metric: str) -> bool:
    family = re.sub(r"_(bucket|sum|count)$", "", metric)
    return metric in BY_NAME or (family in BY_NAME and BY_NAME[family].kind == "histogram")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_only_what_the_catalogue_has(rule: dict[str, Any]) -> None:
    for metric in metrics(rule["expr"]):
        assert metric in RECORDINGS or exported(metric), metric


def queries(rule: dict[str, Any]) -> list[str]:
    """The queries in an alert's annotations, with a text for each label."""
    found = []
    for text in rule["annotations"].values():
        matches = QUERY.findall(text)
        assert len(matches) == text.count("| query"), text  # none is written otherwise
        found += [match.replace(r"\"", '"').replace("%q", '"x"') for match in matches]
    return found


@alerts
def test_an_annotation_asks_only_for_what_the_catalogue_has(alert: str) -> None:
    for query in queries(ALERTS[alert]):
        assert nit(query) is None, query
        # When an alert began, for its dashboard, Prometheus records itself.
        assert all(metric in {*RECORDINGS, "ALERTS_FOR_STATE"} or exported(metric) for metric in metrics(query)), query


def test_annotations_ask_for_values_at_all() -> None:
    assert all(len(queries(ALERTS[told.alert])) == 2 for told in TOLD)  # for the value, and for when it began


DIFFERENCES = {"rate", "irate", "increase", "delta", "idelta", "deriv", "changes", "resets", "predict_linear"}


def differences(query: str) -> Iterator[str]:
    """The metrics of which a query takes differences over time."""
    found: list[str] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.Call) and node.func.name in DIFFERENCES:
            found.extend(metrics(str(node)))
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    yield from found


def test_no_alert_depends_on_a_counter_that_is_born_at_one() -> None:
    """An increase to a counter's first value is not seen. Rates are recorded of what goes on for as long as a run does."""
    assert list(differences("increase(a_total[5m]) > 0 or sum(rate(b_total[1m]))")) == ["a_total", "b_total"]
    assert not [alert for alert, rule in ALERTS.items() if list(differences(rule["expr"]))]
    going_on = {"resmon_steps_total", "resmon_samples_total"}
    for rule in RECORDINGS.values():
        assert {name for name in differences(rule["expr"]) if "step_duration" not in name} <= going_on
    compared = {name for rule in ALERTS.values() for name in metrics(rule["expr"]) if name.endswith("_total")}
    assert compared == {"resmon_monitor_errors_total"}  # the count of an attempt, looked at as it is


def test_numbers_that_are_no_detectors_have_their_reason() -> None:
    assert all(len(number.reason) > 60 for number in NUMBERS.values())
    allowed = {f"{number.value:g}" for number in NUMBERS.values()}
    for alert, rule in ALERTS.items():
        bare = re.sub(r"\[[^\]]*\]|offset \w+|\"[^\"]*\"|\(\s*[01](\.5)?,", "", rule["expr"])
        assert set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", bare)) <= allowed | {"0"}, alert


def test_what_is_merged_is_right() -> None:
    """An average of ratios is no ratio, and a sum of norms no norm."""
    for merged in MERGED:
        assert not re.search(r"avg by \([^)]*\) \(resmon_\w*ratio", merged.expr), merged.record
        if "gradient_norm" in merged.record:
            assert "^ 2" in merged.expr and merged.expr.startswith("sqrt(sum by"), merged.record
    names = {metric.name for metric in CATALOGUE}
    assert all(
        merged.record.split(":")[1].removesuffix("_bucket") in names | {"resmon_steps", "resmon_samples"} for merged in MERGED
    )
