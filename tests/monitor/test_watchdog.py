from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import resmon
from resmon.flight.endings import of_attempt
from resmon.flight.layout import STACK
from resmon.flight.reader import read_stack
from resmon.monitor.watchdog import Watchdog
from resmon.records import Incident, StackDump
from tests.monitor import hanging
from tests.ranks import environment, run_ranks
from tests.waiting import wait_for

SEEN = StackDump(7, 1.0, 1.0, "data", "train.py:3: x", "", "", "", ("train.py:3 in main",))
ELSEWHERE = replace(SEEN, calls=("train.py:4 in main",))
NAME = "resmon-watchdog"


class Training:
    """What a watchdog sees of one: it is at `places`, one after the other, and steps once it was seen at the last of them."""

    def __init__(self, *places: StackDump | Exception | None) -> None:
        self.places = list(places)
        self.told: list[StackDump] = []
        self.done = threading.Event()
        self.moved = time.monotonic()
        with_ten_looks_a_second = 0.25
        self.dog = Watchdog(with_ten_looks_a_second, lambda: self.moved, self.look, self.told.append)

    def look(self, seconds: float) -> StackDump | None:
        place = self.places.pop(0) if self.places else None
        if not self.places:
            self.moved = time.monotonic()
            self.done.set()
        if isinstance(place, Exception):
            raise place
        return place if place is None else replace(place, seconds=seconds, since=seconds)

    def over(self) -> list[StackDump]:
        assert self.done.wait(60)
        self.dog.close()
        return self.told


def dogs() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == NAME]


def test_it_looks_where_no_step_comes_and_less_and_less_often() -> None:
    first, second, third = Training(SEEN, SEEN, SEEN).over()
    assert 0.1 <= first.seconds < second.seconds < third.seconds
    assert second.seconds >= 0.2 and third.seconds >= 0.4
    assert first.since == second.since == third.since == first.seconds  # in one place


def test_being_in_another_place_is_told() -> None:
    first, second, third = Training(SEEN, ELSEWHERE, ELSEWHERE).over()
    assert first.since == first.seconds and second.since == second.seconds and third.since == second.since


def test_after_a_step_it_begins_anew() -> None:
    training = Training(SEEN, SEEN)
    assert training.done.wait(60)
    training.done.clear()
    training.places = [SEEN, SEEN]  # the very place, in a later step
    told = training.over()
    assert [each.since == each.seconds for each in told] == [True, False, True, False]


def test_a_look_that_fails_does_not_end_it() -> None:
    assert len(Training(RuntimeError("dictionary changed size during iteration"), None, SEEN).over()) == 1


def test_steps_that_come_are_not_looked_at() -> None:
    training = Training(SEEN)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        training.moved = time.monotonic()
        time.sleep(0.001)
    training.dog.close()
    assert training.told == []


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.wait: Callable[[], object] | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        if self.wait is not None:
            self.wait()  # for ever
        return x + h


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(2, 4)).square().mean().backward()
    optimizer.step()


def test_a_training_that_hangs_in_a_block_says_so_itself(tmp_path: Path) -> None:
    model = nn.Sequential(Block(), Block())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = dogs()
    monitor = resmon.watch(model, optimizer, run="hang", directory=tmp_path, agent="off", stall_after=0.5)
    assert len(dogs()) == len(before) + 1
    for _ in range(3):
        train(model, optimizer)
    assert monitor.last_step == 2
    folder = monitor.directory / "attempt-0001" / "rank-00000"

    def until_seen() -> None:
        until = time.monotonic() + 60
        while (seen := read_stack(folder)) is None or seen.step != 2 or seen.since == seen.seconds:
            assert time.monotonic() < until
            time.sleep(1)  # where it stands

    model[1].wait = until_seen  # type: ignore[union-attr]
    train(model, optimizer)
    seen = read_stack(folder)
    assert seen is not None and (seen.step, seen.doing, seen.module, seen.block) == (2, "forward", "1", "1")
    assert seen.line.startswith(f"{__file__}:") and seen.line.endswith("# where it stands")
    assert any(call.endswith(" in until_seen") for call in seen.calls)
    ours = str(Path(resmon.__file__).parent)
    assert not any(call.startswith(ours) for call in seen.calls)
    monitor.close()
    assert dogs() == before
    assert monitor.last_step == 3 and (folder / STACK).exists()


def test_who_wants_no_stalls_has_no_thread(tmp_path: Path) -> None:
    model = nn.Sequential(Block())
    before = dogs()
    with resmon.watch(model, run="calm", directory=tmp_path, agent="off", stall_after=0):
        assert dogs() == before


def test_where_no_thread_can_be_started_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    model = nn.Sequential(Block())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with resmon.watch(model, optimizer, run="full", directory=tmp_path, agent="off") as monitor:
        train(model, optimizer)
    assert monitor.last_step == 0
    assert "will not be looked at if no step comes: can't start new thread" in caplog.text


@pytest.mark.parametrize("content", ["", "[]", '{"step": "x"}', json.dumps({"step": 1, "seconds": float("nan")})])
def test_a_damaged_stack_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / STACK).write_text(content)
    assert read_stack(tmp_path) is None


@pytest.mark.slow
def test_of_ranks_that_hang_the_one_that_the_others_wait_for_is_named(tmp_path: Path) -> None:
    attempt = tmp_path / "hang" / "attempt-0001"

    def stalls() -> dict[int, Incident]:
        """Of each rank, once it was seen in one place twice."""
        found = {each.rank: each for each in of_attempt(attempt) if "For " in each.summary}
        return found if len(found) == 2 else {}

    with ThreadPoolExecutor(1) as pool:
        ranks = pool.submit(run_ranks, 2, "tests.monitor.hanging", str(tmp_path), STALL_AFTER="1.5")
        try:
            found = wait_for(stalls, 120)
            assert [found[rank].step for rank in (0, 1)] == [hanging.HANGS - 1] * 2
            assert [found[rank].evidence["doing"] for rank in (0, 1)] == ["backward", "data"]
            assert found[0].line.endswith(": model(x).square().mean().backward()")
            assert found[1].line.endswith(": time.sleep(0.2)  # where it hangs")
            said = subprocess.run(
                [sys.executable, "-m", "resmon", "incidents", "hang", "-d", str(tmp_path)],
                env=environment(COLUMNS="200"),
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        finally:
            (tmp_path / "go").touch()
        ranks.result()
    assert said.splitlines()[-1] == "Look first at rank 1, which did not wait for others: rank 0 probably waits for it."
    assert resmon.load(tmp_path / "hang").outcome == "finished"
