"""Prometheus rules as values: what is generated is written from them, checked and tested."""

from resmon.rules.places import Places
from resmon.rules.promql import metrics, nit
from resmon.rules.rule import Alert, Group, Recording, Rule, rule_file
from resmon.rules.unit_tests import AlertTest, Case, Firing, QueryTest, Sample, Series, unit_test_file

__all__ = [
    "Alert",
    "AlertTest",
    "Case",
    "Firing",
    "Group",
    "Places",
    "QueryTest",
    "Recording",
    "Rule",
    "Sample",
    "Series",
    "metrics",
    "nit",
    "rule_file",
    "unit_test_file",
]
