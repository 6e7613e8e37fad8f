"""Rules as values: what is written, what a query reads, and what promtool makes of both."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from resmon.rules import (
    Alert,
    AlertTest,
    Case,
    Firing,
    Group,
    QueryTest,
    Recording,
    Sample,
    Series,
    metrics,
    nit,
    rule_file,
    unit_test_file,
)
from tests.programs import program

TALL = Alert(
    "Tall",
    "run:tree_height:max > 3",
    {"severity": "page"},
    {"summary": "{{ $labels.run }} is {{ $value }} tall", "description": "Two\nlines: of text"},
    lasts="2m",
    keep="5m",
)
HEIGHT = Recording("run:tree_height:max", "max by (run) (tree_height)", {"of": "trees"})
GROUPS = [Group("trees", [HEIGHT, TALL], interval="30s"), Group("none", [])]


def test_a_rule_file_says_what_the_rules_say() -> None:
    text = rule_file(GROUPS, "Made by hand.\n\nNot to be edited.")
    assert text.startswith("# Made by hand.\n#\n# Not to be edited.\ngroups:\n")
    recording, alert = yaml.safe_load(text)["groups"][0]["rules"]
    assert recording == {"record": "run:tree_height:max", "expr": "max by (run) (tree_height)", "labels": {"of": "trees"}}
    assert alert == {
        "alert": "Tall",
        "expr": "run:tree_height:max > 3",
        "for": "2m",
        "keep_firing_for": "5m",
        "labels": {"severity": "page"},
        "annotations": dict(TALL.annotations),
    }
    assert yaml.safe_load(text)["groups"][0]["interval"] == "30s"
    assert yaml.safe_load(text)["groups"][1] == {"name": "none", "rules": []}


@pytest.mark.parametrize("text", ["yes", "1e3", "a: b", "# no", "{{ $value }}", "x > 3", "", "ends\n", '"', "é"])
def test_any_text_comes_back(text: str) -> None:
    labels = yaml.safe_load(rule_file([Group("g", [Alert("A", "x", {"l": text}, {})])], ""))["groups"][0]["rules"][0]["labels"]
    assert labels == {"l": text}


def test_the_metrics_of_a_query() -> None:
    query = 'sum by (run) (increase(a_total{b!="c_total"}[5m])) / on (run) group_left () last_over_time(x:y[1h:1m]) > vector(0)'
    assert metrics(query) == {"a_total", "x:y"}
    assert metrics('{__name__="a"}') == {""}  # a name that is not written as one is none


def test_a_query_that_does_not_parse_says_why() -> None:
    assert nit("a > 0") is None
    assert "parenthesis" in (nit("sum(a") or "")
    with pytest.raises(ValueError, match="parenthesis"):
        metrics("sum(a")


def test_promtool_reads_and_runs_them(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(rule_file(GROUPS, ""))
    growing = Case(
        "a tree that grows by one a minute is tall two minutes after it was higher than three",
        [Series('tree_height{run="a"}', "0+1x10")],
        [
            AlertTest("5m", "Tall"),
            AlertTest(
                "6m",
                "Tall",
                [
                    Firing(
                        {"run": "a", "severity": "page", "of": "trees"},
                        {"summary": "a is 6 tall", "description": "Two\nlines: of text"},
                    )
                ],
            ),
        ],
        [QueryTest("3m", "run:tree_height:max", [Sample('run:tree_height:max{of="trees",run="a"}', 3)])],
    )
    (tmp_path / "tests.yaml").write_text(unit_test_file(["rules.yaml"], [growing], ""))
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        found = subprocess.run([program("promtool"), *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr


def test_groups_are_evaluated_in_the_order_that_is_asked_for() -> None:
    made = yaml.safe_load(unit_test_file(["rules.yaml"], [], "", order=["b", "a"]))
    assert made == {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "group_eval_order": ["b", "a"], "tests": []}
    assert "group_eval_order" not in yaml.safe_load(unit_test_file(["rules.yaml"], [], ""))
