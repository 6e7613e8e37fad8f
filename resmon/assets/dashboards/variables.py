"""The dashboards' variables. One that several dashboards have is the same in all, as links carry it from one to the next."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import DatasourceVariable, QueryVariable
from grafana_foundation_sdk.models.dashboard import VariableOption, VariableRefresh, VariableSort

from resmon.assets.dashboards.panel import DATASOURCE
from resmon.assets.dashboards.query import MODEL, RUN, newest

ANYTHING = ".*"
_ALL = VariableOption(selected=True, text="All", value="$__all")

# Of what query_result gives, {run="digits"} 1.7 1700000000000: the name, whatever is in it.
_NAME = r"/^\{%s=\"([\s\S]*)\"\} \S+ \S+$/"


def datasource() -> DatasourceVariable:
    return DatasourceVariable("datasource").label("Data source").description("The Prometheus of the agents.").type("prometheus")


def model() -> QueryVariable:
    made = _query("model", "Model", "Runs of this model.", "label_values(resmon_run_blocks, model)")
    return made.sort(VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC).include_all(True).all_value(ANYTHING).current(_ALL)


def run() -> QueryVariable:
    """The newest is first, and chosen where none is named."""
    return _named("run", "Run", "The newest is first.", "run", _newest_runs(""))


def other_run() -> QueryVariable:
    return _named("run_b", "Against run", "To compare with.", "run", _newest_runs(RUN.replace("=", "!=", 1)))


def block() -> QueryVariable:
    """In the order in which they run."""
    places = f"sort(max by (block) ({newest(f'resmon_block_depth{{{RUN},{MODEL}}}')}))"
    return _named("block", "Blocks", "In the order in which they run.", "block", places).multi(True)


def score() -> QueryVariable:
    made = _query("score", "Score", "What trainings log besides their loss.", "label_values(resmon_score, score)")
    return made.sort(VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)


def service() -> QueryVariable:
    made = _query("service", "Service", "Whose objectives.", "label_values(slo:objective:ratio, service)")
    return made.sort(VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC).include_all(True).all_value(ANYTHING).current(_ALL)


def objective() -> QueryVariable:
    made = _query("slo", "Objective", "Of that service.", "label_values(slo:objective:ratio{service=~`${service:regex}`}, slo)")
    return made.sort(VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC).include_all(True).all_value(ANYTHING).current(_ALL)


def _newest_runs(but: str) -> str:
    started = newest(f"resmon_run_start_timestamp_seconds{{{but}}}" if but else "resmon_run_start_timestamp_seconds")
    return f"sort_desc(max by (run) ({started}) and on (run) max by (run) ({newest(f'resmon_run_blocks{{{MODEL}}}')}))"


def _named(name: str, label: str, description: str, names: str, query: str) -> QueryVariable:
    return _query(name, label, description, f"query_result({query})").sort(VariableSort.DISABLED).regex(_NAME % names)


def _query(name: str, label: str, description: str, query: str) -> QueryVariable:
    made = QueryVariable(name).label(label).description(description).datasource(DATASOURCE)
    return made.query({"query": query, "refId": name}).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
