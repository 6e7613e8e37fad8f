"""What Grafana 11.6 does with a dashboard before its panels draw: variables, queries, marks. It asks a real Prometheus.

Each rule is that of Grafana's source, named beside it: what a test finds empty here is empty there. Drawing and transformations are
not played; what a panel is given is.
"""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Value = str | list[str]

ALL = "$__all"
POINTS = 600  # of a panel of half a screen's width
MARK_POINTS = 100  # packages/grafana-prometheus/src/datasource.ts, annotationQuery


@dataclass(frozen=True)
class Series:
    """One series of an answer: its labels, and its values at times. A native histogram's value is its count."""

    labels: Mapping[str, str]
    values: tuple[tuple[float, float], ...]

    @property
    def last(self) -> float:
        return self.values[-1][1]


@dataclass(frozen=True)
class Event:
    """A mark, in milliseconds."""

    start: float
    end: float
    title: str
    text: str
    tags: tuple[str, ...]


class QueryError(Exception):
    """What Prometheus says of a query that it does not take."""


@dataclass
class Grafana:
    """One who looks at dashboards from `start` to `end`; `interval` is the data source's scrape interval, in seconds."""

    url: str
    start: float
    end: float
    interval: float = 1.0
    asked: list[str] = field(default_factory=list)  # all queries so far, as they were sent

    # ---- variables ---------------------------------------------------------------------------------------------------------

    def variables(self, dashboard: Json, **chosen: Value) -> dict[str, Value]:
        """The values of all variables: those that are chosen (as an address has them), else the first option, or All."""
        found: dict[str, Value] = {}
        for variable in dashboard["templating"]["list"]:
            name = variable["name"]
            if variable["type"] == "datasource":
                found[name] = "the-real-one"
                continue
            options = self.options(dashboard, variable, found)
            if name in chosen:
                found[name] = chosen[name]
            elif variable.get("includeAll"):
                found[name] = ALL
            elif variable.get("multi"):
                found[name] = options[:1]
            else:
                found[name] = options[0] if options else ""
        return found

    def options(self, dashboard: Json, variable: Json, values: Mapping[str, Value]) -> list[str]:
        """packages/grafana-prometheus/src/metric_find_query.ts, and the scenes' metricNamesToVariableValues."""
        query = interpolated(variable["query"]["query"], dashboard, values)
        query = query.replace("$__range", f"{round(self.end - self.start)}s")
        if match := re.search(r"^label_values\((?:(.+),\s*)?([a-zA-Z_][a-zA-Z0-9_]*)\)\s*$", query):
            parameters = {"start": str(math.floor(self.start)), "end": str(math.ceil(self.end))}
            texts = self._get(f"label/{match[2]}/values", parameters | ({"match[]": match[1]} if match[1] else {}))
        else:
            match = re.search(r"^query_result\((.+)\)\s*$", query)
            # Grafana's regular expression goes over one line only.
            assert match is not None or "\n" in query, query
            texts = [] if match is None else list(map(_text, self._instant(match[1], math.ceil(self.end))))
        if pattern := variable.get("regex"):
            found = (re.search(pattern[1:-1], text) for text in texts)
            texts = [match[1] for match in found if match is not None]
        if variable.get("sort"):
            texts = sorted(texts, key=str.lower)
        return list(dict.fromkeys(texts))

    # ---- panels ------------------------------------------------------------------------------------------------------------

    def panel(self, dashboard: Json, panel: Json, values: Mapping[str, Value]) -> list[list[Series]]:
        """What each query of a panel gives. A panel that is repeated for a variable has been given one of its values."""
        step = _step(self.end - self.start, POINTS, self.interval)
        found = []
        for target in panel["targets"]:
            query = self._filled(interpolated(target["expr"], dashboard, values), step)
            end = math.floor(self.end / step) * step
            if target.get("instant"):
                found.append(self._instant(query, end))
            else:
                found.append(self._range(query, math.floor(self.start / step) * step, end, step))
        return found

    # ---- marks -------------------------------------------------------------------------------------------------------------

    def marks(self, dashboard: Json, annotation: Json, values: Mapping[str, Value]) -> list[Event]:
        """packages/grafana-prometheus/src/annotations.ts, processEvents."""
        step = _step(self.end - self.start, MARK_POINTS, _seconds(annotation["step"]))
        query = self._filled(interpolated(annotation["expr"], dashboard, values), step)
        events: list[Event] = []
        for series in self._range(query, math.floor(self.start / step) * step, math.floor(self.end / step) * step, step):
            title, text = (_legend(annotation[name], series.labels) for name in ("titleFormat", "textFormat"))
            tags = tuple(value for label, value in series.labels.items() if label in annotation["tagKeys"].split(","))
            moments = [value if annotation["useValueForTime"] else 1000 * time for time, value in series.values if value > 0]
            for moment in moments:
                if events and events[-1].title == title and events[-1].text == text and events[-1].end + 1000 * step >= moment:
                    events[-1] = Event(events[-1].start, moment, title, text, tags)
                else:
                    events.append(Event(moment, moment, title, text, tags))
        return events

    # ---- Prometheus --------------------------------------------------------------------------------------------------------

    def _filled(self, query: str, step: float) -> str:
        """pkg/promlib/models/query.go, interpolateVariables and calculateRateInterval."""
        rate = max(step + self.interval, 4 * self.interval)
        for name, value in (("$__interval", step), ("$__range", self.end - self.start), ("$__rate_interval", rate)):
            query = query.replace(name, f"{round(value)}s")
        return query

    def _instant(self, query: str, time: float) -> list[Series]:
        data = self._get("query", {"query": query, "time": str(time)})
        if data["resultType"] == "scalar":
            return [Series({}, (_sample(data["result"]),))]
        return [Series(each["metric"], (_sample(each["value"]),)) for each in data["result"]]

    def _range(self, query: str, start: float, end: float, step: float) -> list[Series]:
        data = self._get("query_range", {"query": query, "start": str(start), "end": str(end), "step": str(step)})
        return [
            Series(
                each["metric"],
                tuple(map(_sample, each.get("values", ())))
                + tuple((time, float(it["count"])) for time, it in each.get("histograms", ())),
            )
            for each in data["result"]
        ]

    def _get(self, path: str, parameters: Mapping[str, str]) -> Any:
        self.asked.append(parameters.get("query", path))
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise QueryError(f"{error.read().decode()}\n{parameters}") from error
        assert answer["status"] == "success" and not answer.get("warnings"), answer
        return answer["data"]


def panels(dashboard: Json) -> Iterator[Json]:
    """Those that draw something."""
    for panel in dashboard["panels"]:
        yield from (each for each in (panel, *panel.get("panels", ())) if each["type"] != "row")


def interpolated(text: str, dashboard: Json, values: Mapping[str, Value]) -> str:
    """With the values of variables in their places, as packages/scenes/src/variables/interpolation/formatRegistry.ts writes them.

    A value for all is written as it is (MultiValueVariable.ts, CustomAllValue). What is no variable stays.
    """
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}

    def value(match: re.Match[str]) -> str:
        name, form = match[1] or match[2], match[3] or ""
        if name not in values:
            return match[0]
        chosen = values[name]
        if chosen in (ALL, [ALL]):
            return str(variables[name]["allValue"])
        if form == "regex":
            escaped = [
                re.sub(r"[\\^$*+?.()|\[\]{}/]", r"\\\g<0>", each) for each in ([chosen] if isinstance(chosen, str) else chosen)
            ]
            return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"
        assert form == "raw" or not form, form
        return chosen if isinstance(chosen, str) else ",".join(chosen)

    return re.sub(r"\$(\w+)|\$\{(\w+)(?::(\w+))?\}", value, text)


def names(panel: Json, answers: Sequence[Sequence[Series]]) -> list[list[str]]:
    """What legends call each series."""
    return [
        [_legend(target.get("legendFormat") or "", series.labels) for series in answer]
        for target, answer in zip(panel["targets"], answers, strict=True)
    ]


def _legend(text: str, labels: Mapping[str, str]) -> str:
    """packages/grafana-data/src/utils/legend.ts, renderLegendFormat."""
    return re.sub(r"\{\{\s*(.+?)\s*\}\}", lambda match: labels.get(match[1], match[1]), text)


def _text(series: Series) -> str:
    labels = ",".join(f'{label}="{value}"' for label, value in series.labels.items() if label != "__name__")
    time, value = series.values[0]
    return f"{series.labels.get('__name__', '')}{{{labels}}} {value} {1000 * time}"


def _sample(pair: Sequence[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


def _step(length: float, points: int, least: float) -> float:
    """A whole number of seconds."""
    return max(1.0, least, float(math.ceil(length / points)))


def _seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])
