"""A post-mortem, a replay and an export of a run whose ranks lie on several machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from resmon.cli import application
from resmon.errors import FlightError
from resmon.records import Incident, RunEnd
from tests import synthetic
from tests.flight.flights import begin, write

STEPS = 20


@pytest.fixture
def machines(tmp_path: Path) -> list[str]:
    """Three of one rank each; that of the second failed."""
    for rank, machine in enumerate("abc"):
        _, writer = begin(tmp_path / machine / "runs", rank=rank, world_size=3, local_world_size=1, host=f"host-{machine}")
        write(writer, synthetic.Training(synthetic.sites(3), seed=rank), STEPS)
        if machine == "b":
            writer.incident(Incident("failed-19", "failed", 5.0, STEPS - 1, "it failed", runbook="failed"))
        writer.end(RunEnd("failed" if machine == "b" else "finished", 9.0, STEPS - 1))
    return [part for machine in "abc" for part in ("-d", str(tmp_path / machine / "runs"))]


def call(*arguments: str) -> str:
    result = CliRunner().invoke(application(), list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_a_post_mortem_is_of_all_ranks(machines: list[str], tmp_path: Path) -> None:
    report = json.loads(call("postmortem", "digits", "--format", "json", *machines))
    text = json.dumps(report)
    assert "it failed" in text
    assert "ranks are here" not in text, "none is missing"
    alone = json.dumps(json.loads(call("postmortem", "digits", "--format", "json", *machines[:2])))
    assert "1 of 3 ranks are here" in alone
    assert "it failed" not in alone
    assert report == json.loads(call("postmortem", "digits", "--format", "json", "-d", f"{tmp_path}/[abc]/runs")) | {
        key: report[key] for key in ("made", "folder") if key in report
    }


def test_replay_and_export_are_of_all_ranks(machines: list[str], tmp_path: Path) -> None:
    assert json.loads(call("replay", "digits", "--json", *machines))["ranks"] == [0, 1, 2]
    said = call("export", "digits", "--to", "tensorboard", "-o", str(tmp_path / "out"), *machines)
    assert f"{STEPS} steps" in said


def test_a_run_that_none_has_is_told(machines: list[str]) -> None:
    with pytest.raises(FlightError, match="no folder is called"):
        call("postmortem", "other", *machines)
