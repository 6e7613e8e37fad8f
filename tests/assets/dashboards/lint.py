"""What is wrong with dashboards, by named checks, all of it at once. In the spirit of grafana/dashboard-linter, whose rules are
named where a check is one of them; the others hold what this house asks of a panel.

That linter's job and instance variables make no sense here: a run is on any number of machines, and is chosen by its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import yaml

from resmon.catalogue import BY_NAME
from resmon.objectives import generation
from resmon.records import OUTCOMES
from resmon.rules import metrics, nit
from tests.grafana import panels

Json = dict[str, Any]

# Of Grafana's units, packages/grafana-data/src/valueFormats/categories.ts, those that are in use. `none` is a number without one.
UNITS = {"none", "string", "short", "percentunit", "sci", "bytes", "s", "h", "d", "dtdurations", "dateTimeFromNow", "bool_yes_no"}

PROMETHEUS_OWN = {"ALERTS", "ALERTS_FOR_STATE"}

# Series that no run or model is named in.
OF_NOBODY = {name for name, metric in BY_NAME.items() if not {"run", "model"} & set(metric.labels)}

GLOBALS = {"__rate_interval", "__interval", "__range", "__data", "__value", "__url_time_range"}
MADE = re.compile(r',\s*"(\w+)",\s*"[^"]*",\s*"\w*",\s*"')  # a label, by label_replace
REFERENCE = re.compile(r"\$(?:\{(\w+)[^}]*\}|([a-zA-Z_]\w*))")


@dataclass(frozen=True)
class Nit:
    check: str
    where: str  # a dashboard, and a panel of it
    message: str


Found = Iterator[tuple[str, str]]  # where below the dashboard, and what


def lint(dashboards: Iterable[Json]) -> list[Nit]:
    """All that is wrong; dashboards that link to each other are looked at together."""
    together = list(dashboards)
    return [
        Nit(name, f"{dashboard.get('title')}: {where}" if where else str(dashboard.get("title")), message)
        for dashboard in together
        for name, check in CHECKS.items()
        for where, message in check(dashboard, together)
    ]


# ---- the dashboard ---------------------------------------------------------------------------------------------------------


def settings(dashboard: Json, _: Sequence[Json]) -> Found:
    """template-uneditable-rule, dashboard-refresh-interval and their like."""
    wanted = {"editable": False, "timezone": "browser", "schemaVersion": 41}
    for key, value in wanted.items():
        if dashboard.get(key) != value:
            yield "", f"{key} must be {value!r} (is {dashboard.get(key)!r})"
    for key in ("uid", "title", "description", "tags", "refresh", "time", "links"):
        if not dashboard.get(key):
            yield "", f"{key} is missing"
    if dashboard.get("id") is not None:
        yield "", "id is Grafana's to give"


def uids(dashboard: Json, together: Sequence[Json]) -> Found:
    if Counter(each.get("uid") for each in together)[dashboard.get("uid")] > 1:
        yield "", f"another dashboard has the uid {dashboard.get('uid')}"


def datasource_variable(dashboard: Json, _: Sequence[Json]) -> Found:
    """template-datasource-rule."""
    first = next(iter(dashboard["templating"]["list"]), {})
    if (first.get("type"), first.get("name"), first.get("query")) != ("datasource", "datasource", "prometheus"):
        yield "", "the first variable must be the data source, a Prometheus"


def datasources(dashboard: Json, _: Sequence[Json]) -> Found:
    """panel-datasource-rule: the variable everywhere, and the identity of one that somebody had nowhere."""
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    variables = [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
    for what in (*panels(dashboard), *variables, *dashboard["annotations"]["list"]):
        where = what.get("title") or what["name"]
        for each in (what, *what.get("targets", ())):
            if each.get("datasource") != wanted:
                yield where, f"its data source must be the variable's (is {each.get('datasource')})"


def variables(dashboard: Json, _: Sequence[Json]) -> Found:
    """template-on-time-change-reload-rule, template-label-promql-rule; each is used, explained, and none is used that lacks."""
    known = {each["name"]: each for each in dashboard["templating"]["list"]}
    texts = list(_texts({key: value for key, value in dashboard.items() if key != "templating"}))
    texts += [text for each in known.values() for text in _texts(each.get("query"))]
    used = {match[1] or match[2] for text in texts for match in REFERENCE.finditer(text)}
    for name in known.keys() - used:
        yield name, "is a variable that nothing uses"
    for name in used - known.keys() - GLOBALS:
        yield name, "is used and no variable"
    for name, variable in known.items():
        if not variable.get("label") or not variable.get("description"):
            yield name, "needs a label and a description"
        if variable["type"] == "query":
            if variable.get("refresh") != 2:
                yield name, "must be asked for again when the time changes"
            inner = re.fullmatch(r"(?:label_values|query_result)\((.+?)(?:, *\w+)?\)", variable["query"]["query"])
            query = inner[1] if inner else variable["query"]["query"]
            if (wrong := nit(plain(query))) is not None:
                yield name, f"its query does not parse: {wrong}"
            elif strange := _strange(query):
                yield name, f"its query reads what nobody exports: {strange}"


# ---- panels ----------------------------------------------------------------------------------------------------------------


def titles(dashboard: Json, _: Sequence[Json]) -> Found:
    """panel-title-description-rule: a headline of a few words, each once."""
    all_titles = Counter(panel.get("title") for panel in panels(dashboard))
    for panel in panels(dashboard):
        title = panel.get("title") or ""
        if not re.match(r"[A-Z$]", title) or title.endswith(".") or len(title.split()) > 14:
            yield str(panel.get("id")), f"needs a title that reads as a headline (is {title!r})"
        elif all_titles[title] > 1:
            yield title, "another panel has this title"


def descriptions(dashboard: Json, _: Sequence[Json]) -> Found:
    """panel-title-description-rule: what is shown, how it looks when all is well, what to do otherwise."""
    for panel in panels(dashboard):
        if not re.fullmatch(r"\S.+\n\n\*\*Healthy:\*\* \S.+\n\n\*\*Otherwise:\*\* \S.+", panel.get("description") or ""):
            yield panel["title"], "must say what is shown, what is **Healthy:** and what to do **Otherwise:**"


def units(dashboard: Json, _: Sequence[Json]) -> Found:
    """panel-units-rule."""
    for panel in panels(dashboard):
        special = [each for override in panel["fieldConfig"]["overrides"] for each in override["properties"]]
        overrides = [each["value"] for each in special if each["id"] == "unit"]
        usual = panel["fieldConfig"]["defaults"].get("unit")
        for unit in (usual, *overrides):
            if unit not in UNITS:
                yield panel["title"], f"has no unit of Grafana's (has {unit!r})"
        if (panel["type"] == "table") != (usual == "string"):
            yield panel["title"], "is a table whose labels have a unit, or draws texts"


def empties(dashboard: Json, _: Sequence[Json]) -> Found:
    """Where there is nothing to show, a panel says why instead of `No data`."""
    for panel in panels(dashboard):
        text = panel["fieldConfig"]["defaults"].get("noValue") or ""
        if len(text.split()) < 3 or not text.endswith("."):
            yield panel["title"], f"must say in a sentence why it is empty (says {text!r})"


def places(dashboard: Json, _: Sequence[Json]) -> Found:
    """In 24 columns, one beside the other, each with a number of its own."""
    boxes = [(panel.get("title") or panel["type"], panel["gridPos"]) for panel in dashboard["panels"]]
    for title, box in boxes:
        if box["x"] < 0 or box["w"] < 1 or box["h"] < 1 or box["x"] + box["w"] > 24:
            yield title, f"does not lie within 24 columns: {box}"
    for (one, a), (other, b) in combinations(boxes, 2):
        if a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]:
            yield one, f"lies over {other}"
    numbers = Counter(panel.get("id") for panel in (*dashboard["panels"], *panels(dashboard)))
    rows = {panel["id"] for panel in dashboard["panels"] if panel["type"] == "row"}
    for number, times in numbers.items():
        if number is None or times > (1 if number in rows else 2):
            yield str(number), "is the number of several panels, or none"


def decisions(dashboard: Json, _: Sequence[Json]) -> Found:
    """Thresholds live in detectors: a panel may colour what they have said, a count that should be 0, but no measurement."""
    for panel in panels(dashboard):
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
        if [step.get("value") for step in steps] not in ([], [None], [None, 1]):
            yield panel["title"], f"decides by itself what is bad: {steps}"


# ---- queries ---------------------------------------------------------------------------------------------------------------


def queries(dashboard: Json, _: Sequence[Json]) -> Found:
    """target-promql-rule, and every series is one that somebody exports or records."""
    for where, expr in _expressions(dashboard):
        if (wrong := nit(plain(expr))) is not None:
            yield where, f"does not parse: {wrong}: {expr}"
        elif strange := _strange(expr):
            yield where, f"reads what nobody exports: {strange}"


def rates(dashboard: Json, _: Sequence[Json]) -> Found:
    """target-rate-interval-rule: no fixed window, as scrapes may be rarer; over all that is shown for one number."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            for window in re.findall(r"\[([^\]]*)\]", target["expr"]):
                over_all = window.startswith("$__range") and (target.get("instant") or "@ end()" in target["expr"])
                if window not in ("$__rate_interval", "$__interval") and not over_all:
                    yield panel["title"], f"has a window of [{window}] where $__rate_interval belongs"
            for function in re.findall(r"\b(?:rate|irate|increase)\([^\[]*\[\$__interval\]", target["expr"]):
                yield panel["title"], f"takes a rate over $__interval, in which there may be one scrape: {function}"


def narrowed(dashboard: Json, _: Sequence[Json]) -> Found:
    """target-required-matchers-rule: what belongs to runs is that of the run, the model or the objective which is chosen."""
    for where, expr in _expressions(dashboard):
        read = metrics(plain(expr)) if nit(plain(expr)) is None else frozenset()
        if read - OF_NOBODY and not re.search(r"\$\{(run|run_b|model|slo):(raw|regex)\}", expr):
            yield where, f"is of all runs, whatever is chosen: {expr}"


def quoting(dashboard: Json, _: Sequence[Json]) -> Found:
    """Names are anything: they stand between backticks, by a format that Grafana does not escape for quotes."""
    names = {each["name"] for each in dashboard["templating"]["list"]} - {"datasource"}
    inner = [(each["name"], each["query"]["query"]) for each in dashboard["templating"]["list"] if each["type"] == "query"]
    for where, expr in (*_expressions(dashboard), *inner):
        for match in REFERENCE.finditer(expr):
            if (match[1] or match[2]) in names:
                before, form = expr[: match.start()], match[0].rpartition(":")[2].rstrip("}")
                equals = re.search(r"(=~|!~|!=|=)`[^`]*$", before)
                if equals is None or form != ("regex" if "~" in equals[1] else "raw"):
                    yield where, f"has {match[0]} where a name may end the query"


def targets(dashboard: Json, _: Sequence[Json]) -> Found:
    """panel-no-targets-rule: each query has a letter of its own, is of one moment or of all, in a form that is drawn."""
    tables = {"table", "barchart"}
    for panel in panels(dashboard):
        letters = [target.get("refId") for target in panel.get("targets", ())]
        if not letters or len(set(letters)) < len(letters) or None in letters:
            yield panel["title"], f"needs queries with a letter each (has {letters})"
        for target in panel.get("targets", ()):
            if bool(target.get("instant")) == bool(target.get("range")):
                yield panel["title"], f"query {target.get('refId')} must be of one moment or of all"
            if (target.get("format") == "table") != (panel["type"] in tables):
                yield (
                    panel["title"],
                    f"query {target.get('refId')} has the form {target.get('format')}, which a {panel['type']} does not take",
                )


def legends(dashboard: Json, _: Sequence[Json]) -> Found:
    """The legend rule: every series has a name, by labels that the query leaves."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            if target.get("format") == "table":
                continue
            legend = target.get("legendFormat") or ""
            if not legend or legend == "__auto":
                yield panel["title"], f"query {target['refId']} needs a legend"
            grouped = {label.strip() for by in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for label in by.split(",")}
            for label in set(re.findall(r"\{\{(\w+)\}\}", legend)) - grouped - set(MADE.findall(target["expr"])):
                yield panel["title"], f"query {target['refId']} has no label {label}, which its legend shows"


def fields(dashboard: Json, _: Sequence[Json]) -> Found:
    """What is said of a column or a series is said of one that is there."""
    for panel in panels(dashboard):
        there = {"Value", *(f"Value #{target['refId']}" for target in panel["targets"])}
        for target in panel["targets"]:
            there |= {label.strip() for by in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for label in by.split(",")}
            there |= set(MADE.findall(target["expr"]))
            there |= {target.get("legendFormat")}
            if nit(plain(target["expr"])) is None and PROMETHEUS_OWN & metrics(plain(target["expr"])):
                there |= {"alertname", "run", "model", "block", "severity", "slo"}
            there |= set(OUTCOMES) if "{{outcome}}" in (target.get("legendFormat") or "") else set()
        there |= {step["options"].get("alias") for step in panel.get("transformations", ())}
        for matcher in (override["matcher"] for override in panel["fieldConfig"]["overrides"]):
            name = matcher["options"]
            if matcher["id"] == "byName" and name not in there:
                yield panel["title"], f"says something of {name}, which no query gives"


def links(dashboard: Json, together: Sequence[Json]) -> Found:
    """To dashboards that are there, with variables that they have; or to a runbook."""
    boards = {each["uid"]: {variable["name"] for variable in each["templating"]["list"]} for each in together}
    for panel in panels(dashboard):
        for override in panel["fieldConfig"]["overrides"]:
            for one in (one for each in override["properties"] if each["id"] == "links" for one in each["value"]):
                url = one["url"]
                board = re.match(r"/d/([\w-]+)\?", url)
                if board is None:
                    if not re.fullmatch(r"https?://.+/runbooks/\$\{__value\.text\}\.md", url):
                        yield panel["title"], f"links to nothing that is known: {url}"
                elif board[1] not in boards:
                    yield panel["title"], f"links to a dashboard that is not there: {board[1]}"
                elif lacking := set(re.findall(r"&var-(\w+)=", url)) - boards[board[1]]:
                    yield panel["title"], f"hands {sorted(lacking)} to {board[1]}, which has no such variable"


def marks(dashboard: Json, _: Sequence[Json]) -> Found:
    """Annotations have a title, a query that both kinds of Grafana find, and a step."""
    for each in dashboard["annotations"]["list"]:
        if not each.get("titleFormat") or not each.get("textFormat") or not each.get("step"):
            yield each["name"], "needs a title, a text and a step"
        if each.get("target", {}).get("expr") != each.get("expr"):
            yield each["name"], "asks one thing of Grafana 11 and another of 12"


CHECKS: Mapping[str, Callable[[Json, Sequence[Json]], Found]] = {
    check.__name__.replace("_", "-"): check
    for check in (
        settings,
        uids,
        datasource_variable,
        datasources,
        variables,
        titles,
        descriptions,
        units,
        empties,
        places,
        decisions,
        queries,
        rates,
        narrowed,
        quoting,
        targets,
        legends,
        fields,
        links,
        marks,
    )
}


def plain(query: str) -> str:
    """A query as Prometheus would be given it, with some value for each variable."""
    query = re.sub(r"\$\{\w+:\w+\}", "x", query)
    return re.sub(r"\$__(rate_interval|interval|range)\b", "5m", query)


def _texts(what: Any) -> Iterator[str]:
    if isinstance(what, str):
        yield what
    elif isinstance(what, dict):
        for value in what.values():
            yield from _texts(value)
    elif isinstance(what, list):
        for value in what:
            yield from _texts(value)


def _expressions(dashboard: Json) -> Iterator[tuple[str, str]]:
    for panel in panels(dashboard):
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from ((each["name"], each["expr"]) for each in dashboard["annotations"]["list"])


def _strange(query: str) -> list[str]:
    known = set(BY_NAME) | PROMETHEUS_OWN | _recorded()
    families = [name for name, metric in BY_NAME.items() if metric.kind == "histogram"]
    histograms = {f"{name}_{part}" for name in families for part in ("bucket", "sum", "count")}
    return sorted(metrics(plain(query)) - known - histograms)


def _recorded() -> set[str]:
    """What the objectives that resmon brings record."""
    if not _RECORDED:
        rules = yaml.safe_load(generation.make(None).files[generation.RULES])
        _RECORDED.update(rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule)
    return _RECORDED


_RECORDED: set[str] = set()
