"""docs/numbers.md: its two runs are as it tells them, and its pictures are those that are taken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import resmon
from resmon.replay.detection import replay
from tests.page.numbers import AT, DEAD, LOUD, ROOT, train

PAGE = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")


def test_its_pictures_are_those_that_are_taken() -> None:
    shown = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE))
    program = (ROOT / "tests" / "page" / "numbers.py").read_text(encoding="utf-8")
    assert shown == {f"numbers-{each}.png" for each in ("loss", "branch", "depth", "gradient", "block", "events")}
    assert all(f"numbers-{each}" in program for each in ("loss", "depth", "block", "events", "{quantity.split('_')[0]}"))
    assert all((ROOT / "docs" / picture).read_bytes().startswith(b"\x89PNG") for picture in shown)
    assert "python -m tests.page.numbers" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"at step {AT} of the second run" in PAGE and f"`{LOUD}`" in PAGE and f"`{DEAD}`" in PAGE


@pytest.mark.slow
def test_the_runs_are_as_the_page_tells_them(tmp_path: Path) -> None:
    found = {run: replay(train(tmp_path, run) / "attempt-0001", [{}]).findings() for run in ("well", "sick")}
    well, sick = (resmon.load(tmp_path / "runs" / run) for run in ("well", "sick"))
    before = [flight.blocks().query(f"step < {AT}")["branch_skip_ratio"].tolist() for flight in (well, sick)]
    assert before[0] == before[1], "the same batches"
    assert not {each.kind for each in found["well"]} & {"straying_block", "dead_branch"}
    said = {(each.kind, each.block) for each in found["sick"]}
    assert {("straying_block", LOUD), ("dead_branch", DEAD)} <= said
    losses = {run: flight.steps().set_index("step")["loss"] for run, flight in (("well", well), ("sick", sick))}
    assert losses["sick"][AT] > 10 * losses["well"][AT]
    assert losses["sick"].tail(100).median() < 3 * losses["well"].tail(100).median(), "which forgets"
    ratio = sick.blocks().query("step == step.max()").set_index("block")["branch_skip_ratio"]
    healthy = well.blocks().query("step == step.max()").set_index("block")["branch_skip_ratio"]
    assert ratio[DEAD] == 0 and ratio[LOUD] > 3 * healthy[LOUD] and ratio["stages.1.2"] < healthy["stages.1.2"] / 2
