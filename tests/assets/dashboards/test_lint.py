"""Each check finds what it is for, and only that, in dashboards that are otherwise ours; all nits come at once."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.assets.dashboards.lint import CHECKS, lint
from tests.assets.dashboards.test_boards import FILES

Json = dict[str, Any]
TOGETHER = [json.loads(path.read_text()) for path in FILES.values()]
EXECUTIVE, ONCALL, DEBUG = range(3)


def panel(dashboard: Json, title: str) -> Json:
    (found,) = (each for each in dashboard["panels"] if each.get("title") == title)
    assert isinstance(found, dict)
    return found


def variable(dashboard: Json, name: str) -> Json:
    (found,) = (each for each in dashboard["templating"]["list"] if each["name"] == name)
    assert isinstance(found, dict)
    return found


def expr(dashboard: Json, title: str, old: str, new: str) -> None:
    for target in panel(dashboard, title)["targets"]:
        target["expr"] = target["expr"].replace(old, new)


def override(dashboard: Json, title: str, name: str) -> Json:
    overrides = panel(dashboard, title)["fieldConfig"]["overrides"]
    (found,) = (each for each in overrides if each["matcher"]["options"] == name)
    return {each["id"]: each for each in found["properties"]} | {"matcher": found["matcher"]}


LOSS, RATIO, ALERTS, STEPS = (
    "Does the loss still fall?",
    "Does the ratio leave what is usual?",
    "What fires, and since when",
    "How long do steps take?",
)

# What somebody might write: the check that must say so, the dashboard, and what is done to it.
BROKEN: list[tuple[str, int, Callable[[Json], object]]] = [
    ("settings", ONCALL, lambda board: board.update(editable=True)),
    ("settings", ONCALL, lambda board: board.update(timezone="utc")),
    ("settings", ONCALL, lambda board: board.update(schemaVersion=30)),
    ("settings", ONCALL, lambda board: board.update(refresh="")),
    ("settings", ONCALL, lambda board: board.update(tags=[])),
    ("settings", ONCALL, lambda board: board.update(id=7)),
    ("uids", ONCALL, lambda board: board.update(uid="resmon-block")),
    ("datasource-variable", ONCALL, lambda board: variable(board, "datasource").update(query="loki")),
    ("datasources", ONCALL, lambda board: panel(board, LOSS).update(datasource={"type": "prometheus", "uid": "PBFA97CFB590B2093"})),
    ("datasources", ONCALL, lambda board: panel(board, LOSS)["targets"][0].pop("datasource")),
    ("datasources", ONCALL, lambda board: variable(board, "run").update(datasource=None)),
    ("datasources", ONCALL, lambda board: board["annotations"]["list"][0].update(datasource="Prometheus")),
    ("variables", ONCALL, lambda board: board["templating"]["list"].append(variable(board, "run") | {"name": "nobody"})),
    ("variables", ONCALL, lambda board: panel(board, LOSS).update(title="The loss of $rum")),
    ("variables", ONCALL, lambda board: variable(board, "run").update(description="")),
    ("variables", ONCALL, lambda board: variable(board, "run").update(refresh=1)),
    ("variables", ONCALL, lambda board: variable(board, "model")["query"].update(query="label_values(resmon_run_block, model)")),
    ("variables", ONCALL, lambda board: variable(board, "run")["query"].update(query="query_result(sum(resmon_loss)")),
    ("titles", ONCALL, lambda board: panel(board, LOSS).update(title="")),
    ("titles", ONCALL, lambda board: panel(board, LOSS).update(title=STEPS)),
    ("titles", ONCALL, lambda board: panel(board, LOSS).update(title="loss")),
    ("descriptions", ONCALL, lambda board: panel(board, LOSS).update(description="The loss.")),
    ("descriptions", ONCALL, lambda board: panel(board, LOSS).pop("description")),
    ("units", ONCALL, lambda board: panel(board, LOSS)["fieldConfig"]["defaults"].pop("unit")),
    ("units", ONCALL, lambda board: panel(board, LOSS)["fieldConfig"]["defaults"].update(unit="seconds")),
    ("units", ONCALL, lambda board: override(board, ALERTS, "Value")["unit"].update(value="ago")),
    ("units", ONCALL, lambda board: panel(board, ALERTS)["fieldConfig"]["defaults"].update(unit="dateTimeFromNow")),
    ("empties", ONCALL, lambda board: panel(board, LOSS)["fieldConfig"]["defaults"].update(noValue="")),
    ("places", ONCALL, lambda board: panel(board, LOSS)["gridPos"].update(w=25)),
    ("places", ONCALL, lambda board: panel(board, LOSS).update(gridPos=panel(board, STEPS)["gridPos"])),
    ("places", ONCALL, lambda board: panel(board, LOSS).update(id=panel(board, STEPS)["id"])),
    ("places", ONCALL, lambda board: panel(board, LOSS).update(id=None)),
    (
        "decisions",
        ONCALL,
        lambda board: panel(board, LOSS)["fieldConfig"]["defaults"]["thresholds"]["steps"].append({"value": 5, "color": "red"}),
    ),
    ("queries", ONCALL, lambda board: expr(board, LOSS, "resmon_loss", "resmon_los")),
    ("queries", ONCALL, lambda board: expr(board, LOSS, "}", "")),
    ("rates", ONCALL, lambda board: expr(board, STEPS, "$__rate_interval", "5m")),
    ("rates", ONCALL, lambda board: expr(board, STEPS, "$__rate_interval", "$__range")),
    ("rates", ONCALL, lambda board: expr(board, STEPS, "$__rate_interval", "$__interval")),
    ("narrowed", ONCALL, lambda board: expr(board, LOSS, "{run=`${run:raw}`}", "")),
    ("quoting", ONCALL, lambda board: expr(board, LOSS, "`${run:raw}`", '"${run:raw}"')),
    ("quoting", ONCALL, lambda board: expr(board, LOSS, "${run:raw}", "${run:regex}")),
    ("quoting", DEBUG, lambda board: expr(board, RATIO, "${block:regex}", "$block")),
    ("quoting", DEBUG, lambda board: variable(board, "block")["query"].update(query='label_values(a{run="$run"}, run)')),
    ("targets", ONCALL, lambda board: panel(board, LOSS)["targets"][0].update(refId="B")),
    ("targets", ONCALL, lambda board: panel(board, LOSS).update(targets=[])),
    ("targets", ONCALL, lambda board: panel(board, LOSS)["targets"][0].update(instant=True)),
    ("targets", ONCALL, lambda board: panel(board, ALERTS)["targets"][0].update(format="time_series", legendFormat="all")),
    ("legends", ONCALL, lambda board: panel(board, STEPS)["targets"][0].update(legendFormat="__auto")),
    ("legends", DEBUG, lambda board: panel(board, RATIO)["targets"][0].update(legendFormat="{{rank}}")),
    ("fields", ONCALL, lambda board: override(board, ALERTS, "Value")["matcher"].update(options="Value #B")),
    ("fields", ONCALL, lambda board: override(board, LOSS, "largest of 60 s")["matcher"].update(options="largest")),
    ("links", ONCALL, lambda board: override(board, ALERTS, "run")["links"]["value"][0].update(url="/d/resmon-runs?x")),
    ("links", ONCALL, lambda board: override(board, ALERTS, "run")["links"]["value"][0].update(url="/d/resmon-run?x&var-rum=1")),
    ("links", ONCALL, lambda board: override(board, ALERTS, "runbook")["links"]["value"][0].update(url="https://x/wiki")),
    ("marks", ONCALL, lambda board: board["annotations"]["list"][0].update(titleFormat="")),
    ("marks", ONCALL, lambda board: board["annotations"]["list"][0]["target"].update(expr="up")),
]  # fmt: skip


@pytest.mark.parametrize(("check", "which", "harm"), BROKEN, ids=[f"{check}-{i}" for i, (check, _, _) in enumerate(BROKEN)])
def test_a_check_finds_what_it_is_for(check: str, which: int, harm: Callable[[Json], object]) -> None:
    together = copy.deepcopy(TOGETHER)
    assert not list(CHECKS[check](together[which], together))
    harm(together[which])
    found = list(CHECKS[check](together[which], together))
    assert found and all(message for _, message in found)


def test_every_check_is_tried() -> None:
    assert {check for check, _, _ in BROKEN} == CHECKS.keys()


def test_all_that_is_wrong_is_told_at_once_and_where() -> None:
    together = copy.deepcopy(TOGETHER)
    panel(together[ONCALL], LOSS)["fieldConfig"]["defaults"].pop("unit")
    expr(together[DEBUG], RATIO, "resmon_block_branch_rms", "resmon_block_branch")
    together[EXECUTIVE].update(editable=True)
    found = [(nit.check, nit.where) for nit in lint(together)]
    assert ("units", f"resmon / On-call: {LOSS}") in found
    assert ("queries", f"resmon / Debug: {RATIO}") in found
    assert ("settings", "resmon / Executive") in found
