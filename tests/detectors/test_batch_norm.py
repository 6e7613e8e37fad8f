"""What is said of batch norms, of trainings that really go wrong and of healthy ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resmon.detectors.batch_norm import BatchNorm, BatchNormOptions
from resmon.detectors.options import Tuned
from resmon.records import Columns, Finding
from tests.capture import loops
from tests.detectors.course import Alone, course, said

WIDTH, CLASSES = 24, 4


class Block(nn.Module):
    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.norm1, self.fc1 = nn.BatchNorm1d(WIDTH, momentum=momentum), nn.Linear(WIDTH, WIDTH)
        self.norm2, self.fc2 = nn.BatchNorm1d(WIDTH, momentum=momentum), nn.Linear(WIDTH, WIDTH)
        self.open = torch.ones(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.fc2(F.relu(self.norm2(self.open * self.fc1(F.relu(self.norm1(x))))))
        return y


def network(momentum: float | None = 0.1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), Block(momentum), Block(momentum), nn.Linear(WIDTH, CLASSES))


Batch = Callable[[int, Tensor], Tensor]  # of the step and its inputs


def trained(
    model: nn.Module,
    steps: int,
    rows: int = 48,
    change: Callable[[int, nn.Module], None] = lambda *_: None,
    batch: Batch = lambda _, x: x,
) -> list[Finding]:
    """What is said of a training, in the end too. `change` may do something to the model before a step."""
    torch.manual_seed(0)
    centres = torch.randn(CLASSES, WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    session, sink = loops.watch(model, optimizer)
    for step in range(steps):
        change(step, model)
        labels = torch.randint(CLASSES, (rows,))
        loss = F.cross_entropy(model(batch(step, centres[labels] + torch.randn(rows, WIDTH))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    session.detach()
    return said(BatchNorm(), [Columns(sink.now)], sink.steps, end=True)


def opened(events: list[Finding]) -> list[tuple[str, str, str]]:
    return [(event.kind, event.severity, event.block) for event in events if event.state == "opened"]


@pytest.mark.parametrize("momentum", [0.1, 0.01, 0.003, None])
def test_healthy_trainings(momentum: float | None) -> None:
    """Also while statistics of a small momentum still settle; they are far from the batches for long, and come nearer."""
    assert trained(network(momentum), 640) == []


@pytest.mark.parametrize("after", [0, 320])
def test_batches_too_small_for_the_momentum(after: int) -> None:
    def change(step: int, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d) and step == after:
                module.momentum = 1.0

    events = trained(network(), 640, 3, change) if not after else trained(network(), 800, 6, change)
    (finding,) = [event for event in events if event.state == "opened"]
    assert (finding.kind, finding.severity) == ("batch_norm_gap", "ticket")
    assert finding.evidence["norm_gap"] >= 0.6
    assert after + 48 <= finding.opened_step <= after + 336
    assert events[-1].state == "closed" and "the run ended" in events[-1].summary


def test_statistics_that_never_catch_up() -> None:
    """A momentum of 1e-4: in a thousand steps they are a tenth of the way."""
    events = trained(network(1e-4), 400)
    assert [kind for kind, _, _ in opened(events)] == ["batch_norm_gap"]
    assert events[0].evidence["followers_count"] == 1


def test_batches_of_two_kinds_in_turn() -> None:
    """Each is normalised by its own statistics in training, and by their mixture in evaluation. The stem is frozen."""
    model = network()
    model[0].requires_grad_(False)
    events = trained(model, 500, batch=lambda step, x: x + (4.0 if step % 3 else -4.0))
    assert [kind for kind, _, _ in opened(events)] == ["batch_norm_gap"]


def test_channels_that_come_to_be_constant() -> None:
    def change(step: int, model: nn.Module) -> None:
        if step == 200:
            model[2].open[:16] = 0.0  # type: ignore[index, union-attr]

    events = trained(network(), 480, change=change)
    assert opened(events) == [("batch_norm_collapse", "ticket", "2")]
    finding = events[0]
    assert 200 < finding.evidence["since"] <= finding.opened_step <= 200 + 11 / 0.1 + 5 * 16  # the variance has to fade first
    assert finding.evidence["norm_collapsed_ratio"] == pytest.approx(16 / 48)
    assert finding.seen == "33.3 %" and finding.expected == "0 %, as at the beginning"


def test_one_batch_that_is_far_off() -> None:
    """Training has normalised it away at the next step; evaluation divides by it for long."""
    events = trained(network(), 600, batch=lambda step, x: x * 1e7 if step == 303 else x)
    kinds = {kind for kind, _, _ in opened(events)}
    assert "batch_norm_variance" in kinds and "batch_norm_nonfinite" not in kinds
    finding = next(event for event in events if event.kind == "batch_norm_variance")
    assert 303 < finding.opened_step <= 303 + 6 * 16
    (closed,) = [event for event in events if event.kind == "batch_norm_variance" and event.state == "closed"]
    assert "the running variance was usual" in closed.summary


def test_one_batch_that_is_infinite() -> None:
    """The loop skips it, and the statistics keep it."""

    def change(step: int, model: nn.Module) -> None:
        if step == 205:
            with torch.no_grad():
                model[1](torch.full((8, WIDTH), torch.inf))  # type: ignore[index]

    events = trained(network(), 320, change=change)
    assert opened(events) == [("batch_norm_nonfinite", "page", "1")]
    assert 205 < events[0].opened_step <= 205 + 3 * 16
    assert events[0].confidence == 1.0


def test_a_model_without_batch_norms() -> None:
    events = trained(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), *(loops.models.Alpha(WIDTH) for _ in range(2)), nn.Linear(WIDTH, CLASSES)), 96
    )
    assert events == []


def test_limits_are_options_of_each_block() -> None:
    gap = np.where(np.arange(600)[:, None] < 300, 0.2, 0.5) * np.ones((1, 4))
    items = course(600, 4, norm_gap=gap, norm_variance=1.0, norm_collapsed=0.0)
    assert said(BatchNorm(), items) == []
    tuned = Tuned(BatchNormOptions(), {"h.2": {"gap": 0.4}, "h.3": {"gap": 0.4, "enabled": False}})
    (finding,) = said(BatchNorm(tuned), items)
    assert (finding.kind, finding.block, finding.evidence["blocks_count"]) == ("batch_norm_gap", "h.2", 1)


def test_a_gap_that_goes_is_closed_and_one_that_wavers_is_told_once() -> None:
    """Once it is open, coming nearer is no reason to close it; being near is."""
    step = np.arange(1600)[:, None]
    wavering = 1.0 + 0.3 * np.sin(2 * np.pi * step / 400)
    gap = np.where((step < 400) | (step >= 1200), 0.2, wavering) * np.ones((1, 2))
    alone = Alone(BatchNorm())
    events = alone.take(course(1600, 2, norm_gap=gap, norm_variance=1.0, norm_collapsed=0.0))
    assert [event.state for event in events] == ["opened", "closed"]
    assert 400 < events[0].step <= 400 + 8 * 16 and 1200 < events[1].step <= 1200 + 10 * 16
    assert "running statistics fit the batches" in events[1].summary


def test_channels_that_were_constant_when_the_run_began_are_not_told() -> None:
    """As those of weights that were trained before."""
    items = course(320, 3, norm_gap=0.2, norm_variance=1.0, norm_collapsed=np.where(np.arange(320)[:, None] < 200, 0.4, 0.6))
    assert said(BatchNorm(), items, end=True) == []
