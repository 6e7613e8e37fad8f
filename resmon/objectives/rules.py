"""The rules of an objective: what is recorded of its error budget, and the two alerts that tell when it burns too fast.

Series have slok/sloth's names; `service` and `slo` say whose they are. Ratios are sums over sums, whatever the window: up to six
hours (one, where they have subqueries) the objective's own queries are asked over the window; what is longer would read too many
samples at every evaluation, and is summed, bad events and all events apart, from what was recorded of the shortest window. A query
whose values cannot be added up (a count of series, say) and a raw ratio are asked over every window.

One burn is one alert: both pairs of windows of a severity are one expression, no label tells which of them it was, and the ticket
is left out while the page fires. Where a window has too few events to tell anything no alert fires.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from resmon.objectives.query import Query
from resmon.objectives.spec import Events, Objective
from resmon.objectives.windows import SEVERITIES, Pair, Severity, Windows
from resmon.rules import Alert, Group, Places, Recording, Rule, durations

# The longest window over which an objective's own queries are asked: 1,440 samples of each series at a scrape every 15 s.
DIRECT = 6 * 3600

# That of one with a subquery, which asks anew for every minute of its window.
DIRECT_NESTED = 3600

# How often the rules are evaluated. Events in longer windows are summed over evaluations, so it is part of the arithmetic.
INTERVAL = 60

RATIO = "slo:sli_error:ratio_rate"  # sloth's names, from here
OBJECTIVE = "slo:objective:ratio"
BUDGET = "slo:error_budget:ratio"
PERIOD = "slo:time_period:days"
CURRENT = "slo:current_burn_rate:ratio"
BURNT = "slo:period_burn_rate:ratio"
LEFT = "slo:period_error_budget_remaining:ratio"
BAD = "slo:sli_error:events"  # ours: how many events there were in the window
TOTAL = "slo:sli_total:events"
COUNTED = "slo:sli_counted:events"  # by a query of its own

RUNBOOK = "error-budget"
DASHBOARD = "resmon-slo"


@dataclass(frozen=True, slots=True)
class Addresses(Places):
    """Where the alerts of an objective lead."""

    def runbook(self) -> str:
        return f"{self.runbooks}/{RUNBOOK}.md"

    def dashboard(self, objective: Objective) -> str:
        return f"{self.dashboards}/{DASHBOARD}?var-service={objective.service}&var-slo={objective.name}"


def number(value: Fraction | float) -> str:
    """As it stands in a query: the shortest that reads as the same float64."""
    return repr(float(value)).removesuffix(".0")


def selector(objective: Objective) -> str:
    # Names are letters, digits and .-_ (spec.py), so there is nothing to escape.
    return f'{{service="{objective.service}",slo="{objective.name}"}}'


def identity(objective: Objective) -> dict[str, str]:
    """The labels of everything that is recorded of it."""
    return {"service": objective.service, "slo": objective.name, **objective.labels}


def group(objective: Objective, windows: Windows, addresses: Addresses | None = None) -> Group:
    """One group, so that alerts see what was recorded in the same evaluation."""
    rules: list[Rule] = [*_shares(objective, windows), *_budget(objective, windows)]
    rules += alerts(objective, windows, addresses or Addresses())
    return Group(f"slo {objective.service}/{objective.name}", rules, interval=durations.written(INTERVAL))


def _shares(objective: Objective, windows: Windows) -> Iterator[Recording]:
    """The share of what is bad in every window, and how many events there were where a guard or a report asks for it."""
    labels, sli, counted = identity(objective), objective.sli, objective.counted
    shortest = windows.lengths[0]
    summed = isinstance(sli, Events) and sli.bad.is_additive and sli.total.is_additive
    asked = {pair.long for severity in objective.tiers for pair in windows.of(severity)} | {windows.period}
    for window in windows.lengths:
        length = durations.written(window)
        if not isinstance(sli, Events):
            yield Recording(RATIO + length, f"({sli.ratio.over(window)})", labels)
        elif summed and window > max(_direct(sli), shortest):
            bad, total = (
                f"sum_over_time({name}{durations.written(shortest)}{selector(objective)}[{length}])" for name in (BAD, TOTAL)
            )
            yield Recording(RATIO + length, f"{bad} / ({total} > 0)", labels)
            if window in asked:
                yield Recording(TOTAL + length, f"{total} * {number(Fraction(INTERVAL, shortest))}", labels)
        else:
            yield Recording(RATIO + length, f"{_bad(sli, window)} / (({sli.total.over(window)}) > 0)", labels)
            if summed and window == shortest:
                yield Recording(BAD + length, _events(_bad(sli, window), sli.bad, window), labels)
            if window in asked or (summed and window == shortest):
                yield Recording(TOTAL + length, _events(f"({sli.total.over(window)})", sli.total, window), labels)
        if counted is not None and counted is objective.events and window in asked:
            yield Recording(COUNTED + length, _events(f"({counted.over(window)})", counted, window), labels)


def _direct(sli: Events) -> int:
    """The longest window over which these are asked themselves."""
    return DIRECT_NESTED if sli.bad.is_nested or sli.total.is_nested else DIRECT


def _bad(sli: Events, window: int) -> str:
    """Where events are counted and no bad one was ever seen, there are 0 of them."""
    return f"(({sli.bad.over(window)}) or 0 * ({sli.total.over(window)}))"


def _events(expression: str, query: Query, window: int) -> str:
    return f"{expression} * {window}" if query.is_per_second else expression


def _budget(objective: Objective, windows: Windows) -> Iterator[Recording]:
    labels, budget, mine = identity(objective), objective.budget, selector(objective)
    yield Recording(OBJECTIVE, f"vector({number(1 - budget)})", labels)
    yield Recording(BUDGET, f"vector({number(budget)})", labels)
    yield Recording(PERIOD, f"vector({number(Fraction(windows.period, 86400))})", labels)
    yield Recording(CURRENT, f"{RATIO}{durations.written(windows.lengths[0])}{mine} / {number(budget)}", labels)
    yield Recording(BURNT, f"{RATIO}{durations.written(windows.period)}{mine} / {number(budget)}", labels)
    yield Recording(LEFT, f"1 - {BURNT}{mine}", labels)


def alerts(objective: Objective, windows: Windows, addresses: Addresses) -> Iterator[Alert]:
    for severity in SEVERITIES:
        if severity in objective.tiers:
            yield Alert(
                objective.alert,
                _condition(objective, windows, severity),
                alert_labels(objective, severity),
                alert_annotations(objective, windows, severity, addresses),
            )


def _condition(objective: Objective, windows: Windows, severity: Severity) -> str:
    mine = _either(objective, windows.of(severity))
    if severity == "ticket" and "page" in objective.tiers:
        return f"(\n{mine}\n)\nunless\n(\n{_either(objective, windows.of('page'))}\n)\n"
    return f"{mine}\n"


def _either(objective: Objective, pairs: Iterable[Pair]) -> str:
    return "\nor\n".join(_burns(objective, pair) for pair in pairs)


def _burns(objective: Objective, pair: Pair) -> str:
    mine, budget = selector(objective), number(objective.budget)
    parts = [f"{RATIO}{durations.written(window)}{mine} / {budget} > {number(pair.factor)}" for window in (pair.long, pair.short)]
    text = f"  {parts[0]}\n  and\n  {parts[1]}"
    if objective.guard:
        # One number for all that the objective tells apart, where it is asked for by a query of its own without labels.
        on = " on (service, slo)" if objective.events is not None and objective.events.labels == () else ""
        text += f"\n  and{on}\n  {guarding(objective)}{durations.written(pair.long)}{mine} >= {objective.guard}"
    return f"(\n{text}\n)"


def guarding(objective: Objective) -> str:
    """The series that the guard reads, without its window."""
    return TOTAL if objective.events is None else COUNTED


def alert_labels(objective: Objective, severity: Severity) -> dict[str, str]:
    """`tier` is one for all, so that a burn is one alert; an objective that has such a label keeps its own, which is as stable."""
    own = {} if "tier" in objective.labels else {"tier": "slo"}
    return (
        {"severity": severity, "service": objective.service, "slo": objective.name} | own | dict(objective.tiers[severity].labels)
    )


def alert_annotations(objective: Objective, windows: Windows, severity: Severity, addresses: Addresses) -> dict[str, str]:
    told = " or ".join(
        f"{number(pair.factor)} over the last {durations.written(pair.long)} and {durations.written(pair.short)}"
        for pair in windows.of(severity)
    )
    percent, period = number(Fraction(objective.percent)), durations.written(windows.period)
    about = f"{plain(objective.description.strip())} " if objective.description.strip() else ""
    pace = '{{ printf "%.3g" $value }}'
    return {
        "summary": f"{objective.service}/{objective.name} burns its error budget {pace} times as fast as it may.",
        "description": f"{about}The objective is {percent} % over {period}, so that {number(100 * objective.budget)} % may be bad. "
        f"A {severity} is sent above a burn rate of {told}. What is left of the budget: resmon slo report.",
        "runbook_url": addresses.runbook(),
        "dashboard_url": addresses.dashboard(objective),
    } | dict(objective.tiers[severity].annotations)


def plain(text: str) -> str:
    """A text that Prometheus does not take for a template, in one line."""
    return " ".join(text.split()).replace("{{", '{{ "{{" }}')
