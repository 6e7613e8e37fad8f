"""Objectives as files say them, in slok/sloth's form `version: "prometheus/v1"`, which is what people already write.

    version: prometheus/v1
    service: digits
    slos:
      - name: training-success
        objective: 95
        sli:
          events:
            error_query: sum(increase(resmon_runs_total{outcome="failed"}[{{.window}}]))
            total_query: sum(increase(resmon_runs_total[{{.window}}]))

The form is slok/sloth's pkg/prometheus/api/v1, and a file may hold several documents. What sloth takes and resmon does not is
said: plugins, which are programs, and an objective of 100, which leaves no budget. `resmon:` in an objective is ours; sloth passes
over it:

        resmon:
          minimum_events: 20  # in the long window; below, no alert fires
          events_query: sum(increase(requests_total[{{.window}}]))  # where the SLI's own queries do not tell their number
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from resmon.errors import ConfigurationError, nearest
from resmon.objectives.query import Query
from resmon.objectives.windows import SEVERITIES, Severity, Windows
from resmon.settings.document import Document, Keys, Nit, read, refused

VERSION = "prometheus/v1"
MINIMUM_EVENTS = 10

# Objectives of served models, which resmon is to bring with the metrics that they read.
RESERVED = {
    "inference-latency": "how long a served model takes to answer",
    "inference-accuracy": "how often a served model is right",
    "canary-delta": "how far a new model's answers are from the old one's",
}

# What rules put on every series and alert themselves.
OWN_LABELS = ("slo", "service")

_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ALERT = re.compile(r"[a-zA-Z_:][-a-zA-Z0-9_:.]*")
_PLUGINS = "plugins are programs that sloth runs, and are not read; write the query out as sli.events or sli.raw"


@dataclass(frozen=True, slots=True)
class Tier:
    """What one of the two alerts carries besides what rules put there."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Events:
    """Bad events among all of them."""

    bad: Query
    total: Query


@dataclass(frozen=True, slots=True)
class Raw:
    """A share of what is bad that somebody else has computed."""

    ratio: Query


@dataclass(frozen=True, slots=True)
class Objective:
    """One service level objective."""

    service: str
    name: str
    percent: Decimal  # of what is good: 99.9
    sli: Events | Raw
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    alert: str = ""  # the name of both alerts
    tiers: Mapping[Severity, Tier] = field(default_factory=dict)  # those that are on
    minimum_events: int | None = None  # in the long window, for an alert to fire; None: MINIMUM_EVENTS, where their number is known
    events: Query | None = None  # how many there were, where that is not the SLI's total
    named: Nit | None = field(default=None, compare=False)  # where its name stands
    place: Nit | None = field(default=None, compare=False)  # where its `objective` does

    @property
    def guard(self) -> int:
        """How many events an alert needs; 0 is none."""
        if self.counted is None:
            return 0
        return MINIMUM_EVENTS if self.minimum_events is None else self.minimum_events

    @property
    def counted(self) -> Query | None:
        """The query that tells how many events there were.

        What is no sum over a window (a recorded rate, say) may be anything: it is taken for a number only where the file gives a
        minimum for it, for an alert with a guard that means something else would never fire.
        """
        if self.events is not None or isinstance(self.sli, Raw):
            return self.events
        return self.sli.total if self.sli.total.is_additive or self.minimum_events is not None else None

    @property
    def grouping(self) -> frozenset[str]:
        """The labels by which its queries tell parts apart, as far as can be seen."""
        queries = [self.sli.bad, self.sli.total] if isinstance(self.sli, Events) else [self.sli.ratio]
        return frozenset(label for query in queries for label in query.labels or ())

    @property
    def budget(self) -> Fraction:
        """The share that may be bad, exactly."""
        return 1 - Fraction(self.percent) / 100


def load(paths: Iterable[Path], windows: Windows | None = None) -> list[Objective]:
    """The objectives of files, in the order in which they stand there.

    Raises ConfigurationError that names all that is wrong with them, in all files; with `windows`, objectives that could not fire
    over those too.
    """
    found: list[Objective] = []
    nits: list[Nit] = []
    unreadable: list[str] = []
    paths = list(dict.fromkeys(paths))
    for path in paths:
        try:
            documents = read(path)
        except ConfigurationError as error:
            unreadable.append(str(error))
            continue
        for document in documents:
            made, wrong = objectives(document)
            found += made
            nits += wrong
    nits += duplicates(found)
    if windows is not None:
        nits += [each for one in found for each in never_firing(one, windows)]
    if nits:
        unreadable.append(str(refused("objectives", nits)))
    if unreadable:
        raise ConfigurationError("\n".join(unreadable))
    return found


def duplicates(found: Iterable[Objective]) -> Iterator[Nit]:
    """Two of one name in one service would be one series."""
    seen: dict[tuple[str, str], Objective] = {}
    for each in found:
        first = seen.setdefault((each.service, each.name), each)
        if first is not each and each.named is not None and first.named is not None:
            where = "" if first.named.path == each.named.path else f"{first.named.path}, "
            taken = f"{each.service} has an objective {each.name!r} already"
            yield each.named._replace(message=f"{taken}, in {where}line {first.named.line}; give it another name")


def never_firing(objective: Objective, windows: Windows) -> Iterator[Nit]:
    """An alert needs a share of bad events of factor x budget; from 1 on there is no such share, and nobody is ever told."""
    for severity in SEVERITIES:
        pairs = windows.of(severity)
        if severity not in objective.tiers or objective.place is None or not pairs:
            continue
        pair = max(pairs, key=lambda each: each.factor)  # what lets this one fire lets all of them
        needed = pair.factor * objective.budget
        if needed >= 1:
            least = _above(100 * (1 - 1 / pair.factor))
            yield objective.place._replace(
                message=f"{pair} could never fire: a burn rate of {float(pair.factor):.4g} with a budget of "
                f"{float(100 * objective.budget):.4g} % needs {float(100 * needed):.4g} % of bad events. "
                f"Set the objective to {least} or more, take a policy with lower burn rates (--policy burn-rate-2), "
                f"or switch that alert off (alerting.{severity}_alert.disable: true)"
            )


def _above(percent: Fraction) -> str:
    """The first objective of as few decimals as are needed that lies above."""
    for decimals in range(1, 10):
        scaled = percent * 10**decimals
        least = Fraction(scaled.numerator // scaled.denominator + 1, 10**decimals)
        if least < 100:
            return f"{float(least):.{decimals}f}".rstrip("0").rstrip(".")
    return "99.9999999999"


def objectives(document: Document) -> tuple[list[Objective], list[Nit]]:
    """What one document says, and all that is wrong with it. Nothing is given of an objective that has something wrong."""
    nits = list(document.nits)
    content = document.content
    if not isinstance(content, dict):
        return [], [*nits, document.nit((), f'must be a specification that begins with version: "{VERSION}"')]
    if content.get("kind") == "PrometheusServiceLevel" or "apiVersion" in content:
        message = f'is a Kubernetes object or another form; resmon reads version: "{VERSION}", which says the same'
        return [], [*nits, document.nit(("apiVersion",), message)]
    slos = content.get("slos")
    try:
        head = _Head.model_validate({key: value for key, value in content.items() if key != "slos"})
    except ValidationError as error:
        head = None
        nits += _told(document, (), error, _Head)
    made: list[tuple[int, _Slo]] = []
    if not isinstance(slos, list) or not slos:
        nits.append(document.nit(("slos",), "must be a list of at least one objective"))
        slos = []
    for i, each in enumerate(slos):
        try:
            made.append((i, _Slo.model_validate(each)))
        except ValidationError as error:
            nits += _told(document, ("slos", i), error, _Slo)
    if head is None:
        return [], nits
    found = []
    for i, slo in made:
        objective = _objective(document, head, i, slo)
        both = sorted(objective.grouping & {*OWN_LABELS, *objective.labels})
        if both:
            message = f"tells parts apart by {both[0]}, and that label is the objective's own here; it would make them one"
            nits.append(document.nit(("slos", i, "sli"), message))
        else:
            found.append(objective)
    return found, nits


def _objective(document: Document, head: _Head, i: int, slo: _Slo) -> Objective:
    alerting = slo.alerting
    metas: dict[Severity, _Meta] = {"page": alerting.page_alert, "ticket": alerting.ticket_alert}
    return Objective(
        service=head.service,
        name=slo.name,
        percent=slo.objective,
        sli=slo.sli.chosen,
        description=slo.description,
        labels=head.labels | slo.labels,
        alert=alerting.name or alert_name(slo.name),
        tiers={
            severity: Tier(alerting.labels | meta.labels, alerting.annotations | meta.annotations)
            for severity, meta in metas.items()
            if not meta.disable
        },
        minimum_events=slo.resmon.minimum_events,
        events=slo.resmon.events_query,
        named=document.nit(("slos", i, "name"), ""),
        place=document.nit(("slos", i, "objective"), ""),
    )


def alert_name(name: str) -> str:
    """Of an objective that does not say one: ResmonSloTrainingSuccess of training-success."""
    return "ResmonSlo" + "".join(part[:1].upper() + part[1:] for part in re.split(r"[-_.]+", name))


# What the file may say. Values come as text (resmon/settings/document.py).


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{message}", {"message": message})


def _empty_table(value: Any) -> Any:
    return {} if value is None else value  # `labels:` with nothing below


def _no_text(value: Any) -> Any:
    return "" if value is None else value


def _named(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise _wrong(f"must begin and end with a letter or digit, with only letters, digits and .-_ between (got {value!r:.60})")
    return value


def _unreserved(value: str) -> str:
    if value in RESERVED:
        raise _wrong(
            f"{value!r} is reserved for an objective that resmon is to bring ({RESERVED[value]}) and is not there yet; "
            "give yours another name"
        )
    return value


def _version(value: str) -> str:
    if value != VERSION:
        raise _wrong(f"must be {VERSION} (got {value!r:.40})")
    return value


def _percent(value: Any) -> Decimal:
    got = f"(got {value!r:.40})"
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if number == 100:
        raise _wrong(f"100 leaves no error budget, so there is nothing that could burn; take 99.9 or another below 100 {got}")
    if not number.is_finite() or not 0 < number < 100 or number.adjusted() < -9 or len(number.as_tuple().digits) > 15:
        raise _wrong(f"must be a number of percent above 0 and below 100, such as 99.9 {got}")
    if Decimal("0.5") < number < 1:
        raise _wrong(f"is in percent; is {(number * 100).normalize():f} meant? {got}")
    return number


def _query(value: str) -> Query:
    made = Query(value)
    for message in made.nits:
        raise _wrong(message)
    return made


def _alert(value: str) -> str:
    if value and (len(value) > 200 or not _ALERT.fullmatch(value)):
        raise _wrong(f"must be one word of letters, digits and _, such as MyServiceErrors (got {value!r:.60})")
    return value


def _labels(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        if not _LABEL.fullmatch(name) or name == "__name__":
            raise _wrong(f"{name!r:.60} is no name of a label; take letters, digits and _")
        if name in OWN_LABELS:
            raise _wrong(f"{name!r} is a label that says which objective it is; take another name")
        if not value:
            raise _wrong(f"{name} has no value; leave it out, or give it one")
    return values


def _annotations(values: dict[str, str]) -> dict[str, str]:
    for name in values:
        if not _LABEL.fullmatch(name):
            raise _wrong(f"{name!r:.60} is no name of an annotation; take letters, digits and _")
    return _templates(values)


def _templates(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        if value.count("{{") != value.count("}}"):
            raise _wrong(f"{name} has not as many {{{{ as }}}}; Prometheus fills labels and annotations of alerts in as templates")
    return values


def _no_plugins(_: Any) -> Any:
    raise _wrong(_PLUGINS)


_Text = Annotated[str, BeforeValidator(_no_text)]
_Name = Annotated[str, AfterValidator(_named)]
_Percent = Annotated[Decimal, BeforeValidator(_percent)]
_Query = Annotated[Query, BeforeValidator(lambda value: _query("" if value is None else str(value)))]
_Table = Annotated[dict[str, str], BeforeValidator(_empty_table)]
_Labels = Annotated[_Table, AfterValidator(_labels)]
_AlertLabels = Annotated[_Labels, AfterValidator(_templates)]
_Annotations = Annotated[_Table, AfterValidator(_annotations)]
_Plugins = Annotated[Any, BeforeValidator(_no_plugins)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class _Head(_Model):
    version: Annotated[str, AfterValidator(_version)]
    service: _Name
    labels: _Labels = Field(default_factory=dict)
    slo_plugins: _Plugins = None


class _Events(_Model):
    error_query: _Query
    total_query: _Query

    @model_validator(mode="after")
    def _fit(self) -> _Events:
        bad, total = self.error_query, self.total_query
        if bad.over("5m") == total.over("5m"):
            raise _wrong("error_query and total_query are the same, so everything would be bad")
        if bad.is_additive and total.is_additive and bad.is_per_second != total.is_per_second:
            raise _wrong("one of error_query and total_query is a rate and the other a number; take rate or increase in both")
        if bad.labels is not None and total.labels is not None and bad.labels != total.labels:
            sides = [", ".join(each.labels or ()) or "nothing" for each in (bad, total)]
            raise _wrong(f"error_query is grouped by {sides[0]} and total_query by {sides[1]}; their ratio needs the same labels")
        return self


class _Raw(_Model):
    error_ratio_query: _Query


class _Sli(_Model):
    events: _Events | None = None
    raw: _Raw | None = None
    plugin: _Plugins = None

    @property
    def chosen(self) -> Events | Raw:
        if self.events is not None:
            return Events(self.events.error_query, self.events.total_query)
        if self.raw is not None:
            return Raw(self.raw.error_ratio_query)
        raise AssertionError  # the validator below sees to it

    @model_validator(mode="after")
    def _one_kind(self) -> _Sli:
        if (self.events is None) == (self.raw is None):
            raise _wrong("must be one of events (error_query, total_query) and raw (error_ratio_query)")
        return self


class _Meta(_Model):
    disable: bool = False
    labels: _AlertLabels = Field(default_factory=dict)
    annotations: _Annotations = Field(default_factory=dict)


class _Alerting(_Model):
    name: Annotated[_Text, AfterValidator(_alert)] = ""
    labels: _AlertLabels = Field(default_factory=dict)
    annotations: _Annotations = Field(default_factory=dict)
    page_alert: Annotated[_Meta, BeforeValidator(_empty_table)] = Field(default_factory=_Meta)
    ticket_alert: Annotated[_Meta, BeforeValidator(_empty_table)] = Field(default_factory=_Meta)


class _Extension(_Model):
    minimum_events: Annotated[int, Field(ge=0, le=10**12)] | None = None
    events_query: _Query | None = None


class _Slo(_Model):
    name: Annotated[_Name, AfterValidator(_unreserved)]
    objective: _Percent
    sli: _Sli
    description: _Text = ""
    labels: _Labels = Field(default_factory=dict)
    alerting: Annotated[_Alerting, BeforeValidator(_empty_table)] = Field(default_factory=_Alerting)
    plugins: _Plugins = None
    resmon: Annotated[_Extension, BeforeValidator(_empty_table)] = Field(default_factory=_Extension)


# What pydantic says, as one would say it to who writes YAML.
_SAID = {
    "missing": "is missing",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "string_type": "must be a text",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
}


def _told(document: Document, keys: Keys, error: ValidationError, model: type[BaseModel]) -> Iterator[Nit]:
    for each in error.errors():
        place = (*keys, *(str(key) if not isinstance(key, int) else key for key in each["loc"]))
        kind = each["type"]
        if kind == "extra_forbidden":
            message = f"there is no such key{nearest(str(place[-1]), _keys_at(model, each['loc'][:-1]))}"
        elif kind == "wrong":
            message = each["msg"]
        else:
            got = "" if kind == "missing" else f" (got {each['input']!r:.60})"
            message = _SAID.get(kind, each["msg"]) + got
        yield document.nit(place, message)


def _keys_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> Iterable[str]:
    """The keys that a mapping may have there."""
    for key in loc:
        kind = model.model_fields[str(key)].annotation
        inner = [each for each in getattr(kind, "__args__", (kind,)) if isinstance(each, type) and issubclass(each, BaseModel)]
        model = inner[0]
    return (name for name in model.model_fields if name not in ("plugin", "plugins", "slo_plugins"))


def remarks(objective: Objective) -> Iterator[str]:
    """What is allowed, and whoever wrote it may want to know."""
    where = f"{objective.service}/{objective.name}"
    if not objective.tiers:
        yield f"{where}: both alerts are off; its budget is recorded, and nobody is told"
    elif objective.counted is None:
        yield (
            f"{where}: its queries do not say how many events there were, so its alerts have no guard against few of them; "
            "resmon.events_query says it"
        )
