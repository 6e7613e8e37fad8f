"""The dashboards as they are committed: nothing is wrong with them, and the SDK reads in them what it wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resmon.assets.dashboards import BOARDS, parsed, text
from resmon.assets.dashboards.board import runbooks_of_alerts, runbooks_of_findings, runbooks_of_outcomes
from resmon.assets.dashboards.marks import BESIDES
from resmon.assets.dashboards.query import RUN, over_machines
from resmon.assets.findings import TOLD
from resmon.assets.links import BLOCK_BOARD, RUN_BOARD, SLO_BOARD, Links
from resmon.assets.machines import MERGED
from resmon.assets.runs import RUN_ALERTS
from resmon.handbook.diagnosis import names
from resmon.objectives import rules
from resmon.rules import metrics, nit
from tests.assets.dashboards.lint import lint, plain
from tests.grafana import panels

ROOT = Path(__file__).parent.parent.parent.parent
FILES = {name: ROOT / "dashboards" / f"resmon-{name}.json" for name in BOARDS}
boards = pytest.mark.parametrize("name", BOARDS)


def committed(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(FILES[name].read_text())
    return read


def test_nothing_is_wrong_with_them() -> None:
    assert lint([committed(name) for name in BOARDS]) == []


@boards
def test_the_sdk_reads_what_it_wrote_and_knows_every_field(name: str) -> None:
    """A field that it does not know it drops; of those it has not, marks need some (marks.py)."""
    written = committed(name)
    again = json.loads(text(parsed(FILES[name].read_text())))
    for dashboard in (written, again):
        for mark in dashboard["annotations"]["list"]:
            for field in BESIDES:
                mark.pop(field, None)
    assert again == written


def test_alerts_lead_to_them() -> None:
    assert {committed(name)["uid"] for name in BOARDS} == {SLO_BOARD, RUN_BOARD, BLOCK_BOARD}
    assert rules.DASHBOARD == SLO_BOARD
    chosen = {board["uid"]: {each["name"] for each in board["templating"]["list"]} for board in map(committed, BOARDS)}
    assert {"run", "model", "block"} <= chosen[BLOCK_BOARD]
    assert {"run", "model"} <= chosen[RUN_BOARD]
    assert {"service", "slo"} <= chosen[SLO_BOARD]


def test_variables_that_links_carry_are_the_same_everywhere() -> None:
    """Else a value of one dashboard would be none of the other's."""
    seen: dict[str, Any] = {}
    for name in BOARDS:
        for variable in committed(name)["templating"]["list"]:
            assert seen.setdefault(variable["name"], variable) == variable


def test_every_alert_finding_and_outcome_leads_to_a_runbook_that_is_there() -> None:
    for found in (runbooks_of_alerts(), runbooks_of_findings(), runbooks_of_outcomes()):
        assert set(found.values()) <= set(names())
    assert {told.alert for told in TOLD} | {row.alert for row in RUN_ALERTS} <= runbooks_of_alerts().keys()
    assert {told.finding for told in TOLD} <= runbooks_of_findings().keys()


def test_runbooks_are_where_they_are_said_to_be() -> None:
    made = text(BOARDS["oncall"](Links(runbooks="https://wiki.example/runbooks")))
    assert "https://wiki.example/runbooks/${__value.text}.md" in made
    assert "github.com" not in made


@pytest.mark.parametrize("record", [merged.record for merged in MERGED])
@pytest.mark.parametrize("newest", [False, True])
def test_what_rules_record_is_asked_for_without_them(record: str, newest: bool) -> None:
    """Every series is the run's, where it has such a label, and none is one that a rule records."""
    query = over_machines(record, RUN, newest=newest)
    assert nit(plain(query)) is None, query
    assert all(name.startswith("resmon_") for name in metrics(plain(query))), query
    selected = query.count(RUN)
    if record.startswith("run"):
        assert selected >= 1
    assert selected == plain(query).count("{")


def test_a_panel_cannot_be_made_without_what_it_says() -> None:
    from resmon.assets.dashboards.panel import lines

    with pytest.raises(TypeError, match="says"):
        lines("A title", unit="short", queries=[])  # type: ignore[call-arg]


@boards
def test_they_are_small_enough_to_be_read(name: str) -> None:
    """A screen is a question; who asks thirty finds no answer."""
    assert 10 <= len(list(panels(committed(name)))) <= 25


def test_importing_the_assets_does_not_import_the_sdk(tmp_path: Path) -> None:
    code = "import sys, resmon.assets; print([name for name in sys.modules if 'grafana' in name])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
