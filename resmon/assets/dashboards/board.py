"""What all dashboards have in common: their addresses, the links between them, and the file that Grafana reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    Panel,
    VariableModel,
)

from resmon.assets.findings import OWN, TOLD
from resmon.assets.links import BLOCK_BOARD, RUN_BOARD, Links
from resmon.assets.runs import RUN_ALERTS
from resmon.assets.wording import name

TAG = "resmon"
REFRESH = ["5s", "10s", "30s", "1m", "5m", "15m", "30m", "1h"]


@dataclass(frozen=True, slots=True)
class Row:
    """Panels below a headline."""

    title: str
    panels: Sequence[Builder[Panel]]


def board(
    uid: str,
    title: str,
    says: str,
    *,
    variables: Sequence[Builder[VariableModel]],
    marks: Sequence[Builder[AnnotationQuery]],
    rows: Sequence[Row],
    since: str,
    refresh: str,
) -> Dashboard:
    """A dashboard of these rows."""
    made = dashboard.Dashboard(title).uid(uid).description(says).tags([TAG]).readonly().timezone("browser")
    made.time(since, "now").refresh(refresh).timepicker(dashboard.TimePicker().refresh_intervals(REFRESH))
    made.tooltip(DashboardCursorSync.CROSSHAIR).variables(list(variables)).annotations(list(marks))
    made.link(_others())
    for row in rows:
        made.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            made.with_panel(panel)
    found = made.build()
    for number, panel_or_row in zip(count(1), found.panels or (), strict=False):
        panel_or_row.id_val = number
    return found


def text(made: Dashboard) -> str:
    """The file of a dashboard."""
    return JSONEncoder(indent=2, ensure_ascii=False, sort_keys=True).encode(made) + "\n"


def parsed(content: str) -> Dashboard:
    """A dashboard from its file. What the SDK does not know is dropped."""
    register_default_plugins()
    read: dict[str, Any] = json.loads(content)
    return Dashboard.from_json(read)


def _others() -> dashboard.DashboardLink:
    """To the other dashboards, with the same variables over the same time."""
    link = dashboard.DashboardLink("resmon").type(DashboardLinkType.DASHBOARDS).tags([TAG]).as_dropdown(False)
    return link.include_vars(True).keep_time(True)


def _to(uid: str, **values: str) -> str:
    chosen = "".join(f"&var-{variable}={value}" for variable, value in values.items())
    return f"/d/{uid}?${{datasource:queryparam}}{chosen}"


RUN_FIELD = "${__data.fields.run:percentencode}"


def to_run(time: str = "${__url_time_range}") -> tuple[str, str]:
    """What leads from the column `run` to that run."""
    return "Look at this run", f"{_to(RUN_BOARD, run=RUN_FIELD)}&{time}"


def to_block() -> tuple[str, str]:
    """What leads from the column `block` to that block of the row's run."""
    block = "${__data.fields.block:percentencode}"
    return "Look at this block", f"{_to(BLOCK_BOARD, run=RUN_FIELD, block=block)}&${{__url_time_range}}"


def runbook(links: Links) -> tuple[str, str]:
    """What leads from a column that has a runbook's name as its text to that runbook."""
    return "Open the runbook", links.runbook("${__value.text}")


def runbooks_of_findings() -> Mapping[str, str]:
    """The runbook's name of each kind of finding; any other is of a detector of the user's own."""
    return {told.finding: told.runbook for told in TOLD} | {"/.+/": "own-finding"}


def runbooks_of_alerts() -> Mapping[str, str]:
    found = {told.alert: told.runbook for told in TOLD} | {row.alert: row.page for row in RUN_ALERTS}
    return found | {name(OWN): "own-finding", "/ResmonSlo.+/": "error-budget"}


def runbooks_of_outcomes() -> Mapping[str, str]:
    return {row.outcome: row.page for row in RUN_ALERTS if row.outcome}
