"""Unit tests of rules, as `promtool test rules` reads them: series as they come in, and what fires or is computed when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Series:
    """Samples at every interval of the case, in promtool's notation: `0+1x10` counts, `_x3` is absent, `stale` is an end."""

    series: str
    values: str


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert that fires, with all its labels (but for alertname) and annotations."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AlertTest:
    """All that fires of an alert at a moment of the case, `14m`; nothing where `firing` is empty."""

    at: str
    alert: str
    firing: Sequence[Firing] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    labels: str  # as in a query: resmon_loss{run="a"}
    value: float


@dataclass(frozen=True, slots=True)
class QueryTest:
    """What a query gives at a moment of the case."""

    at: str
    query: str
    samples: Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Case:
    """One course of series, and what is expected of it. `name` reads as a sentence."""

    name: str
    series: Sequence[Series]
    alerts: Sequence[AlertTest] = ()
    queries: Sequence[QueryTest] = ()
    interval: str = "1m"

    def as_dict(self) -> dict[str, object]:
        made: dict[str, object] = {
            "name": self.name,
            "interval": self.interval,
            "input_series": [{"series": each.series, "values": each.values} for each in self.series],
        }
        if self.alerts:
            made["alert_rule_test"] = [
                {
                    "eval_time": each.at,
                    "alertname": each.alert,
                    "exp_alerts": [
                        {"exp_labels": dict(one.labels), "exp_annotations": dict(one.annotations)} for one in each.firing
                    ],
                }
                for each in self.alerts
            ]
        if self.queries:
            made["promql_expr_test"] = [
                {
                    "expr": each.query,
                    "eval_time": each.at,
                    "exp_samples": [{"labels": one.labels, "value": one.value} for one in each.samples],
                }
                for each in self.queries
            ]
        return made


def unit_test_file(
    rule_files: Sequence[str], cases: Sequence[Case], header: str, interval: str = "1m", order: Sequence[str] = ()
) -> str:
    """The YAML of a test file; `rule_files` are paths relative to it, `interval` is how often rules are evaluated.

    `order` names groups in the order in which they are evaluated; without it promtool takes any, a different one each time.
    """
    content: dict[str, object] = {"rule_files": list(rule_files), "evaluation_interval": interval}
    if order:
        content["group_eval_order"] = list(order)
    from resmon.rules.yaml import document

    return document(content | {"tests": [case.as_dict() for case in cases]}, header)
