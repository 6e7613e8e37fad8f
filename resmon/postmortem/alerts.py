"""Which alerts fired when, while a run was under way and a while after: what Prometheus kept, and what Alertmanager silenced.

Alertmanager forgets an alert when it is over. Prometheus keeps the series ALERTS: one for each alert, with the alert's labels and
with alertstate, pending or firing, for as long as it is so. That is asked for at equal steps; a state that came and went between
two steps is seen all the same. What nobody can say any more is said to be so: a server that is down, or that has kept nothing of
that time, makes a sentence in the report and no failure.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from resmon.errors import ConfigurationError, ResmonError, ServerError
from resmon.postmortem.case import Case
from resmon.quantities import duration, moment
from resmon.servers.alertmanager import Alertmanager, Silence, matches
from resmon.servers.prometheus import Course, Prometheus, quoted

AFTER = 900.0  # seconds after the end of a run in which an alert may still be about it
POINTS = 4000  # steps into which the time is divided
FINEST = 1.0  # seconds of a step
MOST = 200  # alerts that are listed
SKEW = 5.0  # seconds that clocks may differ by without a word about it


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert, in Unix seconds. `fired` is None where it was only pending, `until` None where it went on when the asking ended."""

    name: str
    severity: str
    block: str
    labels: Mapping[str, str]
    pending: float | None
    fired: float | None
    until: float | None
    silenced: tuple[str, ...]  # why and by whom


@dataclass(frozen=True, slots=True)
class Alerts:
    """All of them in the order in which they began, and what is to be said of them."""

    alerts: tuple[Alert, ...]
    notes: tuple[str, ...]


def asked(prometheus: str, alertmanager: Sequence[str]) -> Callable[[Case], Alerts]:
    """How a case's alerts are found at these addresses. Raises ConfigurationError where credentials contradict each other."""
    server = Prometheus.of(prometheus, attempts=2)
    other = Alertmanager.of(alertmanager, attempts=2) if alertmanager else None

    def ask(case: Case) -> Alerts:
        try:
            return history(case, server, other)
        finally:
            server.close()
            if other is not None:
                other.close()

    return ask


def history(case: Case, prometheus: Prometheus, alertmanager: Alertmanager | None = None) -> Alerts:
    """The alerts of a run, and those of resmon's that are about no single run, from its beginning until a while after its end."""
    span = _span(case)
    if span is None:
        return Alerts((), ("When the run was under way is not known, so nothing was asked about alerts.",))
    start, end, step = span
    run = quoted(case.name)
    selectors = (f"ALERTS{{run={run}}}", 'ALERTS{alertname=~"Resmon.+",run=""}')
    window = f"{math.ceil(step)}s"
    # The newest state at each step, and what there was since the step before, though it be over.
    query = " or ".join(f"last_over_time({each}[{window}]) or {each}" for each in selectors)
    try:
        # The last step may end in the future: what came and went since the one before is in it.
        courses = prometheus.courses(query, start, start + _steps(start, end, step) * step, step)
    except ResmonError as error:
        return Alerts((), (f"Which alerts fired is not known: {error}",))
    silences, notes = _silences(alertmanager)
    found = sorted(_alerts(courses, start, step, end, silences), key=lambda alert: (_began(alert), alert.name, alert.block))
    if step > FINEST:
        notes.append(f"Times are those of steps of {duration(step)}.")
    if any(alert.until is None for alert in found):
        notes.append(f"What goes on did so at {moment(end)}, when the asking ended.")
    if abs(prometheus.skew) > SKEW:
        side = "ahead of" if prometheus.skew > 0 else "behind"
        notes.append(
            f"Prometheus' clock is at least {duration(abs(prometheus.skew))} {side} this machine's; times are by its clock."
        )
    if len(found) > MOST:
        notes.append(f"{len(found) - MOST:,} more followed.")
    if not found:
        notes.insert(0, "Prometheus has no alert of this run, nor one of resmon's that is about no single run, from that time.")
    return Alerts(tuple(found[:MOST]), tuple(notes))


def _span(case: Case) -> tuple[float, float, float] | None:
    """From when to when, and in which steps."""
    started = case.info.get("started")
    if not isinstance(started, (int, float)) or not math.isfinite(started):
        return None
    now = time.time()
    last = case.time_of(case.last_step) if case.last_step is not None else None
    ended = max((end.time for end in case.ends.values()), default=last or started)
    end = now if case.outcome == "running" else min(now, ended + AFTER)
    if end <= started:
        return None
    step = max(FINEST, math.ceil((end - started) / POINTS))
    return float(started), float(end), float(step)


def _steps(start: float, end: float, step: float) -> int:
    return math.ceil((end - start) / step - 1e-6)


def _silences(alertmanager: Alertmanager | None) -> tuple[tuple[Silence, ...], list[str]]:
    if alertmanager is None:
        return (), ["Which of them were silenced is not known: no Alertmanager is named."]
    try:
        return alertmanager.silences(), []
    except ServerError as error:
        return (), [f"Which of them were silenced is not known: {error}"]


def _alerts(courses: Iterable[Course], start: float, step: float, end: float, silences: Sequence[Silence]) -> Iterator[Alert]:
    states: dict[tuple[tuple[str, str], ...], dict[int, str]] = defaultdict(dict)
    for course in courses:
        labels = {name: value for name, value in course.labels.items() if name not in ("__name__", "alertstate")}
        state = course.labels.get("alertstate", "firing")
        known = states[tuple(sorted(labels.items()))]
        for at, _ in course.samples:
            place = round((at - start) / step)
            # At the change from one to the other both were there since the step before.
            known[place] = "firing" if "firing" in (state, known.get(place)) else state
    last = _steps(start, end, step)
    for key, known in states.items():
        labels = dict(key)
        for pending, fired, over in _episodes(known):
            began, fires = (None if place is None else min(end, start + place * step) for place in (pending, fired))
            yield _alert(labels, began, fires, None if over >= last else start + over * step, silences)


def _episodes(states: Mapping[int, str]) -> Iterator[tuple[int | None, int | None, int]]:
    """First place of pending, first place of firing, and the last place of each stretch without a gap."""
    pending: int | None = None
    fired: int | None = None
    before: int | None = None
    for place in sorted(states):
        # What was firing and is pending is a new one.
        again = fired is not None and states[place] == "pending"
        if before is not None and (place > before + 1 or again):
            yield pending, fired, before
            pending = fired = None
        if states[place] == "firing":
            fired = place if fired is None else fired
        elif pending is None:
            pending = place
        before = place
    if before is not None:
        yield pending, fired, before


def _alert(
    labels: Mapping[str, str], pending: float | None, fired: float | None, until: float | None, silences: Sequence[Silence]
) -> Alert:
    began = fired if fired is not None else math.inf
    silenced = [
        f"{silence.comment} ({silence.author})"
        for silence in silences
        if silence.ends.timestamp() > began and (until is None or silence.starts.timestamp() < until) and _covers(silence, labels)
    ]
    return Alert(
        name=labels.get("alertname", ""),
        severity=labels.get("severity", ""),
        block=labels.get("block", ""),
        labels=labels,
        pending=pending,
        fired=fired,
        until=until,
        silenced=tuple(dict.fromkeys(silenced)),
    )


def _covers(silence: Silence, labels: Mapping[str, str]) -> bool:
    try:
        return matches(silence.matchers, labels)
    except ConfigurationError:  # an expression of the server's language that cannot be read here
        return False


def _began(alert: Alert) -> float:
    return min(each for each in (alert.pending, alert.fired) if each is not None)
