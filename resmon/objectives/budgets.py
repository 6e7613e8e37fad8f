"""What is left of each error budget, asked of a Prometheus that has the rules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from resmon.errors import ServerError
from resmon.objectives import rules
from resmon.servers.prometheus import Prometheus

# What is asked for, and the field that it becomes.
QUERIES = {
    "objective": rules.OBJECTIVE,
    "budget": rules.BUDGET,
    "period_days": rules.PERIOD,
    "current_burn_rate": rules.CURRENT,
    "period_burn_rate": rules.BURNT,
    "budget_left": rules.LEFT,
}
FIRING = 'ALERTS{alertstate="firing",slo!="",service!=""}'

# Labels that say which alert it is and not which part of an objective.
_OF_ALERTS = ("__name__", "alertname", "alertstate", "severity", "tier")


@dataclass(frozen=True, slots=True)
class Standing:
    """How an objective stands, or one of the parts that its queries tell apart by `labels`. None is what nobody knows."""

    service: str
    slo: str
    labels: Mapping[str, str]
    objective: float | None = None
    budget: float | None = None
    period_days: float | None = None
    current_burn_rate: float | None = None
    period_burn_rate: float | None = None
    budget_left: float | None = None
    firing: tuple[str, ...] = ()  # severities, page first


def standings(server: Prometheus) -> list[Standing]:
    """Of every objective whose rules the server has, by name. Raises ServerError, also where there is none."""
    values: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for name, query in QUERIES.items():
        for sample in server.vector(query):
            if "service" in sample.labels and "slo" in sample.labels:
                key = tuple(sorted((label, text) for label, text in sample.labels.items() if label != "__name__"))
                values.setdefault(key, {})[name] = sample.value
    firing = server.vector(FIRING)
    # What is the same for the whole objective stands without the labels that its queries tell parts apart by.
    whole = {key: found for key, found in values.items() if "objective" in found}
    parts = {key: found for key, found in values.items() if key not in whole}
    with_parts = {_name(key) for key in parts}
    made = []
    for key, found in [*((k, f) for k, f in whole.items() if _name(k) not in with_parts), *parts.items()]:
        same = next((other for of, other in whole.items() if _name(of) == _name(key)), {})
        own = set(key) - {pair for of in whole if _name(of) == _name(key) for pair in of}
        known = {name: value for name, value in (same | found).items() if math.isfinite(value)}
        alerts = {each.labels.get("severity", "") for each in firing if _is_of(each.labels, _name(key), own)}
        service, slo = _name(key)
        ordered = tuple(sorted(alerts, key=lambda severity: (severity != "page", severity)))
        made.append(Standing(service, slo, dict(sorted(own)), **known, firing=ordered))
    if not made:
        raise ServerError(
            f"Prometheus at {server.url} has no objective. `resmon slo generate` writes the rules; name the file under rule_files "
            "in prometheus.yml, reload, and wait for a minute."
        )
    return sorted(made, key=lambda each: (each.service, each.slo, sorted(each.labels.items())))


def _name(key: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    labels = dict(key)
    return labels["service"], labels["slo"]


def _is_of(labels: Mapping[str, str], name: tuple[str, str], own: set[tuple[str, str]]) -> bool:
    return (labels.get("service"), labels.get("slo")) == name and own <= {
        pair for pair in labels.items() if pair[0] not in _OF_ALERTS
    }
