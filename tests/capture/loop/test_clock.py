"""Where the time of a step goes: each part of a loop takes a known time, by a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from resmon.capture.loop import clock, session
from resmon.records import PHASES, RUN_VALUES, StepRecord
from tests.capture import loops

SHORT = 0.125


class Time:
    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


time = Time()


@pytest.fixture(autouse=True)
def _by_our_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (clock, session):
        monkeypatch.setattr(module, "perf_counter", lambda: time.now)


def phases(record: StepRecord) -> dict[str, float]:
    return {phase: value for phase in PHASES if (value := record.run_value(f"{phase}_seconds")) is not None}


class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        time.sleep(2 * SHORT)
        return gradient


class Sleeper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(SHORT)
        return Slow.apply(x + self.linear(x))  # type: ignore[no-any-return]


class SlowSGD(torch.optim.SGD):
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        time.sleep(3 * SHORT)
        return super().step(closure)  # type: ignore[return-value]


def units(record: StepRecord) -> dict[str, float]:
    return {phase: seconds / SHORT for phase, seconds in phases(record).items()}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_each_phase_has_its_own_time(micro_batches: int) -> None:
    model = nn.Sequential(nn.Identity(), Sleeper())
    optimizer = SlowSGD(model.parameters(), lr=0.1)
    watching, sink = loops.watch(model, optimizer)
    for step in range(3):
        for _ in range(micro_batches):
            if step:
                time.sleep(4 * SHORT)  # the data
            loss = model(torch.randn(5, 4)).sum()
            time.sleep(SHORT)  # in no phase
            loss.backward()
        time.sleep(SHORT)
        optimizer.step()
    many = micro_batches
    assert units(sink.newest) == {"data": 4 * many, "forward": many, "backward": 2 * many, "optimizer": 3}
    duration, samples = sink.newest.run_value("duration"), sink.newest.run_value("samples")
    assert duration == (8 * many + 4) * SHORT
    assert samples == 5 * many and sink.newest.samples_total == 15 * many
    totals = sum(sum(phases(record).values()) for record in sink.steps)
    assert sink.newest.phase_totals.sum() == pytest.approx(totals)
    watching.detach()
    assert torch.autograd.backward.__module__ == "torch.autograd"


def test_an_evaluation_is_no_part_of_a_step_s_phases() -> None:
    model = nn.Sequential(nn.Identity(), Sleeper())
    optimizer = SlowSGD(model.parameters(), lr=0.1)
    _, sink = loops.watch(model, optimizer)
    for _ in range(2):
        model(torch.randn(5, 4)).sum().backward()
        optimizer.step()
        time.sleep(SHORT)
        with torch.no_grad():
            model(torch.randn(50, 4))
        time.sleep(2 * SHORT)
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    assert units(sink.newest) == {"data": 2, "forward": 1, "backward": 2, "optimizer": 3}
    assert sink.newest.run_value("samples") == 5


def test_what_a_closure_does_is_not_the_optimizer_s() -> None:
    model = nn.Sequential(nn.Identity(), Sleeper())
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1)
    _, sink = loops.watch(model, optimizer)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(5, 4)).square().sum()
        loss.backward()
        return float(loss)

    optimizer.step(closure)
    assert units(sink.newest) == {"forward": 1, "backward": 2}  # the clock stands while it does the rest


def test_an_exception_in_a_pass_leaves_no_phase_behind() -> None:
    model = nn.Sequential(nn.Identity(), Sleeper())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, sink = loops.watch(model, optimizer)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            model(torch.randn(5, 3))
        time.sleep(3 * SHORT)
        model(torch.randn(5, 4)).sum().backward()
        optimizer.step()
    assert units(sink.newest) == {"forward": 2, "backward": 2}
    assert all(name in RUN_VALUES for name in (f"{phase}_seconds" for phase in PHASES))
