"""Every command of every runbook, against a run that really failed so: it answers, and prints what the page shows."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from resmon.assets.runs import RUN_ALERTS
from resmon.flight import layout
from resmon.flight.endings import of_attempt
from resmon.flight.frames import load
from resmon.handbook import diagnosis as runbook
from resmon.handbook import pages as handbook
from resmon.handbook.diagnosis import Trouble
from resmon.records import INCIDENT_KINDS

ROOT = Path(__file__).parents[2]
LIVING = ("stalled", "agent-gone", "stale-run")
MODELS = {
    "shape-mismatch": "tests.failing:unfit",
    "out-of-memory": "tests.failing:greedy",
    "memory-headroom": "tests.failing:greedy",
}
NAMES = handbook.names()
# What no flight tells of itself: an alert is what leads here.
TOLD_BY_ALERTS = {row.page for row in RUN_ALERTS if not row.outcome} | {"own-finding"}
COMMANDS = [(name, command) for name in NAMES for command in handbook.runbook(name).commands]
OF_OBJECTIVES = {"error-budget"}  # no run tells of itself that there are too many like it
STATUSES = {
    "nonfinite": 0,  # nobody looked at the loss
    "overfitting": 0,
    "loss-divergence": 0,
    "exploding-gradients": 0,
    "vanishing-gradients": 0,
    "hidden-explosion": 0,
    "rising-learning-rate": 0,
    "spike-warning": 0,
    "oscillation": 0,
    "dead-branch": 0,
    "frozen-block": 0,
    "collapsed-skip": 0,
    "growing-residual": 0,
    "straying-block": 0,
    "stochastic-depth": 0,
    "change": 0,
    "drifting-inputs": 0,
    "drift": 0,
    "batch-norm": 0,
    "monitor-errors": 0,
    "agent-errors": 0,
    "series-budget": 0,
    "slow-steps": 0,
    "memory-headroom": 0,
    "own-finding": 0,
    "failed": 1,
    "out-of-memory": 1,
    "shape-mismatch": 1,
    "killed": -signal.SIGKILL,
    "interrupted": -signal.SIGTERM,
    "error-budget": 1,
}


@dataclass(frozen=True)
class Answer:
    """A command of a page as the run's own page has it."""

    command: str
    printed: str
    status: int


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the runs, each of which failed as its name says; the stalled one stalls while the tests run."""
    folder = tmp_path_factory.mktemp("failures") / "runs"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RESMON_AGENT": "off"}
    command = [sys.executable, "-m", "tests.failing", str(folder)]
    with (
        (folder.parent / "errors.txt").open("w") as errors,
        subprocess.Popen(command, cwd=folder.parent, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as training,
    ):
        assert training.stdout is not None
        statuses = json.loads(training.stdout.readline() or "{}")
        living = [statuses.pop(name) for name in LIVING if name in statuses]
        try:
            assert statuses == STATUSES, (folder.parent / "errors.txt").read_text()
            deadline = time.monotonic() + 30
            while not of_attempt(layout.attempts(folder / "stalled")[1]):
                assert time.monotonic() < deadline, "it does not stall"
                time.sleep(0.1)
            yield folder
        finally:
            for process in living:
                os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def answers(runs: Path) -> dict[str, dict[str, Answer]]:
    """By runbook and command; pages are made two at a time, as most of their time is other processes'."""

    def made(name: str) -> dict[str, Answer]:
        book = handbook.runbook(name)
        more = {"MODEL": MODELS[name]} if name in MODELS else {}
        parts = [part for part in runbook.page(book, Trouble.of(load(runs / name)), more) if part.startswith("```sh")]
        return dict(zip(book.commands, map(answer, parts), strict=True))

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setenv("PYTHONPATH", str(ROOT))
        found = dict(zip(NAMES, pool.map(made, NAMES), strict=True))
        patch.setenv("RESMON_OWN_DETECTORS", "tests.failing:LoudBranch")  # what it finds is of this page alone
        return found | {"own-finding": made("own-finding")}


def answer(part: str) -> Answer:
    found = re.fullmatch(r"```sh\n(.+)\n```\n\n(`{3,})text\n(.*)\n\2\n(?:\n\(exit status (\d+)\)\n)?", part, re.DOTALL)
    assert found, part
    return Answer(found[1], found[3], int(found[4] or 0))


def as_printed(example: str) -> re.Pattern[str]:
    """What an example stands for: its words in this order, with any numbers; … is anything."""
    number = r"([-+]?\d[\d.,:]*(?:e[-+]\d+)?)"
    pieces = re.split(number, plain(example))
    return re.compile("".join(r"[-+\d.,:e]+" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)).replace("…", ".*?"))


def plain(text: str) -> str:
    """Without what depends on the terminal's width: frames, and where a line or a word is broken."""
    return "".join(re.sub(r"[│╭╮╰╯─]", "", text).split())


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=lambda text: text.replace("resmon ", ""))
def test_a_command_prints_what_its_page_shows(name: str, command: str, answers: dict[str, dict[str, Answer]], runs: Path) -> None:
    example, status = handbook.runbook(name).commands[command], 0
    if ended := re.search(r"\(exit status (\d+)\)\n$", example):
        example, status = example[: ended.start()], int(ended[1])
    got = answers[name][command]
    assert got.status == status, got.printed
    assert as_printed(example).search(plain(got.printed)), got.printed
    assert not re.search(r"\b(RUN|RUNS|CAPSULE|CHECKPOINT|MODEL)\b", got.command), "a value was not filled in"
    assert "Traceback" not in got.printed


@pytest.mark.parametrize("name", sorted(set(NAMES) - TOLD_BY_ALERTS - OF_OBJECTIVES))
def test_a_run_that_failed_so_asks_for_the_page_and_fills_it_in(name: str, runs: Path) -> None:
    trouble = Trouble.of(load(runs / name))
    assert trouble.runbook == name
    known = trouble.values(name)
    assert known["RUN"] == str(runs / name / "attempt-0001") and known["RUNS"] == str(runs)
    if "CHECKPOINT" in handbook.runbook(name).text:
        assert Path(known["CHECKPOINT"]).stem.startswith(name) and Path(known["CHECKPOINT"]).exists()


def test_the_best_checkpoint_is_advised_and_not_the_last(runs: Path) -> None:
    """Of sixteen the one from the best validation; what was named after the loss rose is no good."""
    best = Trouble.of(load(runs / "overfitting")).values("overfitting")["CHECKPOINT"]
    assert best.endswith(("overfitting-1.pt", "overfitting-2.pt"))
    before = Trouble.of(load(runs / "loss-divergence")).values("loss-divergence")["CHECKPOINT"]
    assert before.endswith("loss-divergence.pt")


def test_an_example_is_compared_word_by_word() -> None:
    example = as_printed("│ log in module 2 made -Inf, at ….py:40: x │\n│ … │\n│ confidence bit-exact │")
    assert example.search(plain("╭─ a ─╮\n│ log in module 17 made -I │\n│ nf, at /a.py:7: x │\n│ c │\n│ confidence  bit-exact │"))
    assert not example.search(plain("│ log in module 2 made NaN, at a.py:40: x │\n│ confidence bit-exact │"))
    assert not example.search(plain("│ confidence bit-exact │\n│ log in module 2 made -Inf, at a.py:40: x │"))


def test_every_failure_has_its_page_and_every_page_its_failure() -> None:
    named = {kind.replace("_", "-") for kind in INCIDENT_KINDS} | TOLD_BY_ALERTS | OF_OBJECTIVES
    for path in (ROOT / "resmon").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "runbook" and isinstance(node.value, ast.Constant):
                named |= {str(node.value.value)}
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Episodes":
                named |= {str(each.value) for each in node.args[1:2] if isinstance(each, ast.Constant)}
    assert named - {""} == set(NAMES)
