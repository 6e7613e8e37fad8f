"""Which module a loop trains, without being told."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import resmon
from resmon.integrations.attachment import Attachment
from resmon.monitor.watch import Monitor, watch
from tests.integrations.networks import Block, batch, network

CALL, INIT = nn.Module.__call__, Optimizer.__init__


class Waiting:
    """An attachment, and what it began to watch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: Any = None
        self.optimizers: Sequence[Optimizer] = ()
        self.attachment = Attachment(self._watch)
        self.attachment.wait()

    def _watch(self, models: nn.Module | Mapping[str, nn.Module], optimizers: Sequence[Optimizer], step: int) -> Monitor:
        self.models, self.optimizers = models, optimizers
        return watch(models, optimizers, run="run", directory=self.folder, agent="off", start_step=step)

    @property
    def monitor(self) -> Monitor:
        assert self.attachment.monitor is not None
        return self.attachment.monitor

    def flight(self) -> resmon.Flight:
        self.monitor.close()
        return resmon.load(self.folder / "run")


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    made = Waiting(tmp_path)
    yield made
    if made.attachment.monitor is not None:
        made.attachment.monitor.close()
    made.attachment.leave()
    assert nn.Module.__call__ is CALL, "a trace is left"
    assert Optimizer.__init__ is INIT, "a trace is left"


def train(model: Any, optimizer: Optimizer, steps: int = 3, begin: int = 0) -> None:
    for step in range(begin, begin + steps):
        x, y = batch(step)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def test_the_outermost_module_is_watched_from_the_first_step_on(waiting: Waiting) -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    train(model, optimizer)
    assert waiting.models is model
    assert list(waiting.optimizers) == [optimizer]
    assert nn.Module.__call__ is CALL, "nothing is wrapped any more"
    assert Optimizer.__init__ is INIT
    flight = waiting.flight()
    assert flight.steps()["step"].tolist() == [0, 1, 2]
    assert flight.blocks().groupby("step").size().tolist() == [2, 2, 2]


def test_it_is_the_flight_that_watch_records(waiting: Waiting, tmp_path: Path) -> None:
    model = network()
    train(model, SGD(model.parameters(), 0.1))
    found = waiting.flight().blocks()
    other = network()
    optimizer = SGD(other.parameters(), 0.1)
    with watch(other, optimizer, run="other", directory=tmp_path, agent="off"):
        train(other, optimizer)
    expected = resmon.load(tmp_path / "other").blocks()
    assert found.equals(expected)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_what_comes_before_is_let_by(waiting: Waiting) -> None:
    """A dry run, a teacher, an evaluation, and a module that no optimizer owns."""
    model, teacher = network(), network(seed=1)
    x, _ = batch()
    model(x)  # there is no optimizer yet
    optimizer = SGD(model.parameters(), 0.1)
    with torch.no_grad():
        teacher(x)
        model(x)
    nn.Linear(8, 8)(x)
    assert waiting.models is None
    train(model, optimizer)
    assert waiting.models is model
    assert waiting.flight().steps()["step"].tolist() == [0, 1, 2]


def test_frozen_parameters_are_nobodys(waiting: Waiting) -> None:
    model = network()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    train(model, SGD([p for p in model.parameters() if p.requires_grad], 0.1))
    assert waiting.models is model


def test_all_optimizers_of_the_module_are_given(waiting: Waiting) -> None:
    model = network()
    first, second, other = SGD(model[:2].parameters(), 0.1), SGD(model[2:].parameters(), 0.1), SGD(network().parameters(), 0.1)
    x, y = batch()
    (model(x) - y).square().mean().backward()
    assert set(waiting.optimizers) == {first, second} != {other}


def test_parts_that_one_optimizer_owns_are_watched_by_name_from_the_second_step_on(waiting: Waiting) -> None:
    class Encoder(nn.Sequential): ...

    encoder, head = Encoder(nn.Linear(8, 16), Block(), Block()), nn.Sequential(Block(), nn.Linear(16, 1))
    twin = nn.Sequential(nn.Identity())
    optimizer = SGD([*encoder.parameters(), *head.parameters()], 0.1)
    train(lambda x: head(encoder(twin(x))), optimizer, 4)
    assert waiting.models == {"Encoder": encoder, "Sequential": head}
    flight = waiting.flight()
    assert flight.steps()["step"].tolist() == [1, 2, 3]
    assert set(flight.blocks()["model"]) == {"Encoder", "Sequential"}


def test_parts_keep_their_names_within_a_module(tmp_path: Path) -> None:
    whole = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(8, 16), Block()), "head": nn.Sequential(Block(), nn.Linear(16, 1))})
    optimizer = SGD(whole.parameters(), 0.1)
    found: list[Any] = []

    def begin(models: Any, optimizers: Any, step: int) -> Monitor:
        found.append(models)
        return watch(models, optimizers, run="run", directory=tmp_path, agent="off", start_step=step)

    attachment = Attachment(begin, [optimizer], within=whole)
    attachment.wait()
    train(lambda x: whole["head"](whole["encoder"](x)), optimizer)
    assert [list(each) for each in found] == [["encoder", "head"]]
    assert attachment.monitor is not None
    attachment.monitor.close()


def test_a_model_that_the_script_watches_is_left_alone(waiting: Waiting, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    with watch(model, optimizer, run="own", directory=tmp_path, agent="off"):
        train(model, optimizer)
    assert waiting.models is None
    assert waiting.attachment.is_watched_by_others
    assert "watched already" in caplog.text
    assert len(resmon.load(tmp_path / "own").steps()) == 3


def test_the_call_may_be_inside_of_the_optimizers_closure(waiting: Waiting) -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    for step in range(3):
        x, y = batch(step)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    steps = waiting.flight().steps()
    assert steps["step"].tolist() == [0, 1, 2], "the step in whose middle watching began is one"
    assert steps["gradient_norm"].notna().all()


def test_a_compiled_model(waiting: Waiting) -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(batch()[0])
    train(compiled, SGD(model.parameters(), 0.1))
    assert len(waiting.flight().blocks()) == 6


def test_what_goes_wrong_in_it_costs_the_watching_only(waiting: Waiting, caplog: pytest.LogCaptureFixture) -> None:
    def refuses(*_: Any) -> Monitor:
        raise RuntimeError("it cannot")

    waiting.attachment._watch = refuses
    model = network()
    before = copy.deepcopy(model.state_dict())
    train(model, SGD(model.parameters(), 0.1))
    assert not torch.equal(before["0.weight"], model.state_dict()["0.weight"]), "the training goes on"
    assert "not watched: it cannot" in caplog.text
