"""Recording and alerting rules, in groups, and the file that Prometheus reads.

A file is the same for the same groups, so that one which was generated can be told from one that was not made anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that Prometheus computes at every evaluation; `record` is level:metric:operations."""

    record: str
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        return _without_empty({"record": self.record, "expr": self.expr, "labels": dict(self.labels)})


@dataclass(frozen=True, slots=True)
class Alert:
    """Each series that `expr` gives, pending for `lasts` and firing from then on; `keep` is `keep_firing_for` (Prometheus 2.42)."""

    alert: str
    expr: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    lasts: str = ""  # a duration as Prometheus writes it: 5m; "" fires at once
    keep: str = ""

    def as_dict(self) -> dict[str, object]:
        return _without_empty(
            {
                "alert": self.alert,
                "expr": self.expr,
                "for": self.lasts,
                "keep_firing_for": self.keep,
                "labels": dict(self.labels),
                "annotations": dict(self.annotations),
            }
        )


Rule = Recording | Alert


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated one after the other; `interval` "" is the server's."""

    name: str
    rules: Sequence[Rule]
    interval: str = ""

    def as_dict(self) -> dict[str, object]:
        rules = [rule.as_dict() for rule in self.rules]
        return _without_empty({"name": self.name, "interval": self.interval, "rules": rules})


def rule_file(groups: Sequence[Group], header: str) -> str:
    """The YAML of a rule file, below a comment that says where it comes from."""
    from resmon.rules.yaml import document

    return document({"groups": [group.as_dict() for group in groups]}, header)


def _without_empty(values: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if value not in ("", {})}
