"""Steps that are NaN or infinite: noticed at that step, traced to their origin, and training is not changed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import resmon
from benchmarks.faults import injection
from resmon.capture.forensics import references
from resmon.capture.forensics.origin import Origin
from resmon.capture.forensics.replay import refusal
from resmon.capture.loop.session import Session
from resmon.errors import NonFiniteError
from resmon.records import CALM, SEARCH, Incident
from tests.capture import loops, models, spoilt
from tests.ranks import run_ranks

WIDTH = 8


def line_of(mark: str) -> str:
    """The line of this file that ends in the comment `# mark`, as incidents name it."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = (i for i, line in enumerate(lines, 1) if line.endswith(f"# {mark}"))
    return f"{__file__}:{number}: {lines[number - 1].strip()}"


class NaNBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, math.nan)


class Breakable(nn.Module):
    """A pre-norm block whose branch does something at the edge of its domain, where `fault` names it."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.fault = ""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(self.norm(x))
        if self.fault == "log":
            h = h * torch.log(h * 0)  # log of zero
        elif self.fault == "division":
            h = h / (h - h)  # division by zero
        elif self.fault == "exp":
            h = torch.exp(h.abs() * 1e4)  # overflow
        elif self.fault == "sqrt":
            h = h + torch.sqrt((h * 0).abs())  # infinite derivative
        elif self.fault == "zero times infinity":
            h = (h * 0) * (1 / (h * 0)).detach()  # one over zero
        elif self.fault == "function":
            h = NaNBackward.apply(h)  # custom function
        elif self.fault == "norm":
            h = h * 0
            h = h / h.norm(dim=-1, keepdim=True)  # norm of zero
        elif self.fault == "in place":
            h = h.clone()
            h.mul_(1e30).mul_(1e30)  # in place
        elif self.fault == "where":
            h = torch.where(h * 0 > 0, (h * 0).log(), h)  # not stopped by where
        return x + self.fc2(F.gelu(h))


FAULTS = {
    "log": ("forward", "log", "log of zero"),
    "division": ("forward", "div", "division by zero"),
    "exp": ("forward", "exp", "overflow"),
    "sqrt": ("backward", "sqrt", "infinite derivative"),
    "zero times infinity": ("forward", "div", "one over zero"),
    "function": ("backward", "NaNBackward", "custom function"),
    "norm": ("forward", "div", "norm of zero"),
    "in place": ("forward", "mul_", "in place"),
}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), Breakable(), Breakable(), Breakable(), nn.Linear(WIDTH, 4))


def batch(seed: int = 1, rows: int = 6) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def train(
    model: nn.Module,
    *,
    steps: int = 4,
    bad: int = 2,
    before: Callable[[int], None] = lambda step: None,
    inputs: Callable[[int], Tensor] = lambda step: batch(step),
    loss_of: Callable[[Tensor, int], Tensor] = lambda output, step: output.square().mean(),
    watched: bool = True,
    settings: Mapping[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    between: Callable[[torch.optim.Optimizer], None] = lambda optimizer: None,
) -> tuple[Session | None, loops.Memory, list[float]]:
    """`before(step)` comes before each step's forward pass."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-3)
    session, sink = loops.watch(model, optimizer, **(settings or {})) if watched else (None, loops.Memory())
    losses = []
    for step in range(steps):
        before(step)
        optimizer.zero_grad()
        loss = loss_of(model(inputs(step)), step)
        loss.backward()
        between(optimizer)
        optimizer.step()
        losses.append(float(loss.detach()))
    return session, sink, losses


def only(sink: loops.Memory) -> Incident:
    newest = {incident.id: incident for incident in sink.incidents}
    (incident,) = newest.values()
    json.dumps(incident.evidence)
    return incident


def breaking(model: nn.Module, block: str, fault: str, bad: int = 2) -> Callable[[int], None]:
    def before(step: int) -> None:
        model.get_submodule(block).fault = fault if step == bad else ""

    return before


@pytest.mark.parametrize("block", ["1", "2", "3"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_birth_is_named_with_block_module_operation_and_line(fault: str, block: str) -> None:
    model = network()
    _, sink, _ = train(model, before=breaking(model, block, fault))
    found = only(sink)
    origin, operation, mark = FAULTS[fault]
    assert (found.origin, found.block, found.module, found.operation, found.line) == (
        origin,
        block,
        block,
        operation,
        line_of(mark),
    )
    assert (found.step, found.since, found.confidence, found.kind) == (2, 2, "bit-exact", "nonfinite")
    assert found.runbook == "nonfinite" and operation in found.summary and found.advice
    assert found.evidence["dtype"] == "float32"


def test_an_operation_tells_how_large_what_it_read_was() -> None:
    for fault, largest in (("log", 0.0), ("division", None), ("in place", None)):
        model = network()
        seen: list[float] = []
        model.get_submodule("2").fc1.register_forward_hook(lambda _, __, output, seen=seen: seen.append(float(output.abs().max())))
        _, sink, _ = train(model, before=breaking(model, "2", fault), steps=3)
        told = only(sink).evidence.get("largest_read")
        # What is written in place is gone, and nothing is told of it. A pass done again runs the hook once more, with the same.
        assert told == (largest if fault == "log" else pytest.approx(seen[2]) if fault == "division" else None), (fault, told, seen)


def test_where_does_not_stop_nan_on_its_way_back() -> None:
    model = network()
    _, sink, _ = train(model, before=breaking(model, "2", "where"))
    found = only(sink)
    assert (found.origin, found.operation, found.block) == ("backward", "log", "2") and found.line == line_of(
        "not stopped by where"
    )


def test_the_loss_is_named_with_output_and_rows() -> None:
    def loss_of(output: Tensor, step: int) -> Tensor:
        weights = torch.ones(6)
        if step == 2:
            weights[[1, 4]] = math.inf
        return (output.square().sum(-1) * weights).sum()

    _, sink, _ = train(network(), loss_of=loss_of)
    found = only(sink)
    assert (found.origin, found.block, found.confidence) == ("loss", "", "bit-exact")
    assert found.evidence["rows"] == [1, 4] and found.evidence["output"] == 0
    assert "rows 1, 4 of the batch" in found.summary and not found.capsule


def test_data_are_named_with_argument_and_rows() -> None:
    def inputs(step: int) -> Tensor:
        x = batch(step)
        if step == 2:
            x[3, 1] = math.nan
        return x

    _, sink, _ = train(network(), inputs=inputs)
    found = only(sink)
    assert (found.origin, found.confidence) == ("data", "bit-exact")
    assert found.evidence["rows"] == [3] and "args[0], row 3 of the batch" in found.summary


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_were_broken_before_the_step_are_named(value: float) -> None:
    model = network()

    def before(step: int) -> None:
        if step == 2:
            with torch.no_grad():
                model[2].fc1.weight[0, 0] = value

    _, sink, _ = train(model, before=before)
    found = only(sink)
    assert (found.origin, found.module, found.block) == ("parameters", "2.fc1", "2")
    assert "2.fc1.weight" in found.summary and found.evidence["nonfinite"] == 1


def test_an_update_that_is_not_finite_is_the_optimizers() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def before(step: int) -> None:
        optimizer.param_groups[0]["lr"] = math.inf if step == 1 else 0.1

    _, sink, _ = train(model, before=before, optimizer=optimizer)
    found = only(sink)
    assert (found.origin, found.step, found.since) == ("optimizer", 2, 1)
    assert "update of step 1" in found.summary


def test_weights_that_were_all_written_between_two_steps_are_not_the_optimizers() -> None:
    """As where an average of weights that has no samples yet is loaded into the model."""
    model = network()
    average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}

    def before(step: int) -> None:
        if step == 2:
            model.load_state_dict({name: value / 0 for name, value in average.items()})

    _, sink, _ = train(model, before=before)
    found = only(sink)
    assert (found.origin, found.step, found.since) == ("parameters", 2, 2)


def test_a_loop_that_always_writes_its_weights_between_steps_may_still_have_an_optimizer_at_fault() -> None:
    """Weights that are scaled after each step, and a learning rate that is infinite once."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def before(step: int) -> None:
        optimizer.param_groups[0]["lr"] = math.inf if step == 2 else 0.1
        with torch.no_grad():
            for each in model.parameters():
                each.mul_(0.99)

    _, sink, _ = train(model, before=before, optimizer=optimizer)
    found = only(sink)
    assert (found.origin, found.step, found.since) == ("optimizer", 3, 2)
    assert ".data" in found.advice


class Masks(nn.Module):
    """Healthy, and full of infinities that are meant: attention with masked scores, where, logits that are ruled out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.register_buffer("causal", torch.triu(torch.full((6, 6), -math.inf), 1))
        self.fault = ""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = q @ k.T + self.causal
        weights = scores.masked_fill(torch.eye(6, dtype=torch.bool).roll(1, 0), -math.inf).softmax(-1)
        if self.fault:
            weights = weights / (weights * 0)  # in attention
        x = x + weights @ v
        reciprocal = torch.where(x.abs() > 0, 1 / x.detach(), math.inf)
        return torch.minimum(x, torch.full_like(x, math.inf)) + 0 * reciprocal.clamp(-1, 1)


def test_masks_raise_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Masks(), Masks(), nn.Linear(WIDTH, 4))
    _, sink, losses = train(model, steps=5)
    assert all(map(math.isfinite, losses)) and not sink.incidents


def test_masks_do_not_hide_what_is_born_among_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Masks(), Masks(), nn.Linear(WIDTH, 4))
    _, sink, _ = train(model, before=breaking(model, "2", "yes"))
    found = only(sink)
    assert (found.block, found.operation, found.line) == ("2", "div", line_of("in attention"))


def test_a_norm_that_overflows_is_no_fault() -> None:
    model = network().double()
    _, sink, _ = train(
        model,
        inputs=lambda step: batch(step).double(),
        loss_of=lambda output, step: output.mean() * (1e170 if step == 2 else 1),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
    )
    assert not sink.incidents


def test_one_incident_an_episode_and_it_says_when_it_was_over() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def before(step: int) -> None:
        model[1].fault = "log" if step in (2, 3, 30) else ""

    session, sink, _ = train(model, steps=32, before=before, settings={"on_nonfinite": "skip_step"}, optimizer=optimizer)
    assert [incident.step for incident in sink.incidents] == [2, 2, 30]
    assert sink.incidents[1].evidence["nonfinite_steps"] == 2
    assert sink.incidents[1].evidence["finite_again_from"] == 4
    assert CALM == 20
    assert session is not None and not session.is_nonfinite


def test_skip_step_leaves_parameters_and_state_alone() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    kept: dict[int, Any] = {}

    def before(step: int) -> None:
        model[1].fault = "log" if step == 2 else ""
        kept[step] = (
            [p.detach().clone() for p in model.parameters()],
            [{k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters() if p in optimizer.state],
        )

    gradients: list[bool] = []
    session, sink, losses = train(
        model,
        before=before,
        optimizer=optimizer,
        settings={"on_nonfinite": "skip_step"},
        between=lambda _: gradients.append(all(p.grad is not None for p in model.parameters())),
    )
    assert all(torch.equal(a, b) for a, b in zip(kept[2][0], kept[3][0], strict=True))
    assert all(torch.equal(a[k], b[k]) for a, b in zip(kept[2][1], kept[3][1], strict=True) for k in a)
    assert not all(torch.equal(a, b) for a, b in zip(kept[1][0], kept[2][0], strict=True))
    assert math.isfinite(losses[3]) and [record.skipped for record in sink.steps] == [False, False, True, False]
    assert all(p.grad is not None for p in model.parameters())
    assert session is not None and not session.is_nonfinite


def test_raise_raises_where_the_loop_stands_and_nothing_has_been_updated() -> None:
    model = network()
    weights: list[Tensor] = []

    def before(step: int) -> None:
        model[3].fault = "exp" if step == 1 else ""
        weights[:] = [p.detach().clone() for p in model.parameters()]

    with pytest.raises(NonFiniteError, match="exp in module 3 made Inf") as caught:
        train(model, before=before, settings={"on_nonfinite": "raise"})
    assert any("optimizer.step()" in str(entry.statement) for entry in caught.traceback)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_a_loop_may_go_on_after_it() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session, sink = loops.watch(model, optimizer, on_nonfinite="raise")
    raised = []
    for step in range(5):
        model[1].fault = "log" if step in (1, 3) else ""
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        try:
            optimizer.step()
        except NonFiniteError:
            raised.append(step)
    assert raised == [1, 3] and len({incident.id for incident in sink.incidents}) == 1
    assert all(bool(p.isfinite().all()) for p in model.parameters()) and not session.is_nonfinite


# -- training is not changed -----------------------------------------------------------------------------------------------


class Busy(nn.Module):
    """Dropout, batch norm, a cache, a counter, a spectral norm; in a checkpoint, where `kind` says so."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.3))
        self.out = nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH))
        self.kind = kind
        self.fault = ""
        self.seen: list[Tensor] = []
        self.count = 0
        self.cache: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().sum())
        self.count += 1
        self.cache.setdefault("calls", []).append(self.count)
        branch = checkpoint(self.branch, x, use_reentrant=self.kind == "reentrant") if self.kind else self.branch(x)
        return x + branch

    def branch(self, x: Tensor) -> Tensor:
        h = self.out(self.body(x))
        if self.fault:
            h = h / (h * 0)  # in a checkpoint
        return h


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, dropout=0.2)
        self.fault = ""

    def forward(self, x: Tensor) -> Tensor:
        h = self.lstm(x[:, None])[0][:, 0]
        if self.fault:
            h = torch.log(h - h)  # after the LSTM
        return x + h


class Whole(nn.Sequential):
    """Breaks its block where the call says so, so that a pass done again does, too."""

    def forward(self, x: Tensor, *, fault: str = "") -> Tensor:
        self[1].fault = fault
        y: Tensor = super().forward(x)
        return y


def busy(kind: str) -> Whole:
    block = Recurrent() if kind == "lstm" else Busy("" if kind in ("plain", "autocast") else kind)
    return Whole(nn.Linear(WIDTH, WIDTH), block, nn.Linear(WIDTH, 4))


@pytest.mark.parametrize("kind", ["plain", "reentrant", "non-reentrant", "lstm", "autocast"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_training_goes_on_bit_identical(kind: str, accumulation: int) -> None:
    """Also what modules hold beside their parameters is as it would be."""
    confidences = []

    def run(model: nn.Module, watched: bool) -> list[object]:
        # The loop skips such a step by itself, so that there is something to go on with.
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        _, sink = loops.watch(model, optimizer) if watched else (None, None)
        said: list[object] = []
        for step in range(6):
            for part in range(accumulation):
                fault = "yes" if (step, part) == (3, accumulation // 2) else ""
                with torch.autocast("cpu", enabled=kind == "autocast"):
                    output = model(batch(10 * step + part), fault=fault)
                loss = output.float().square().mean()
                loss.backward()
                said.append(str(float(loss)))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if step == 3:
                said.append([str(p.grad.tolist()) for p in model.parameters()])
                said.append([(p.grad._version, p._version) for p in model.parameters()])
                for p in model.parameters():
                    p.grad = None
            optimizer.step()
            optimizer.zero_grad()
            said.append([b._version for b in model.buffers()])
        block = model[1]
        if isinstance(block, Busy):
            said += [str(block.seen), block.count, str(block.cache)]
        if sink is not None:
            found = only(sink)
            confidences.append(found.confidence)
            assert (found.origin, found.block, found.operation) == ("forward", "1", "log" if kind == "lstm" else "div")
            assert found.evidence.get("pass", 0) == accumulation // 2
        return said

    loops.assert_same_training(run, lambda: busy(kind))
    assert confidences[0] in ("bit-exact", "consistent")


def test_what_goes_wrong_while_a_pass_is_done_again_does_not_reach_the_loop() -> None:
    class OnlyOnce(Breakable):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            OnlyOnce.calls += 1
            if OnlyOnce.calls > 3:
                torch.rand(1)
                self.fc1.eval()
                self.late = 1
                with torch.no_grad():
                    self.fc1.weight.zero_()
                raise ValueError("not again")
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), OnlyOnce(), nn.Linear(WIDTH, 4))
    state: list[Any] = []
    weights: list[Tensor] = []

    def before(step: int) -> None:
        model[1].fault = "log" if step == 2 else ""
        weights[:] = [p.detach().clone() for p in model.parameters()]

    def between(_: Any) -> None:
        state.append(torch.get_rng_state())

    _, sink, _ = train(
        model,
        steps=3,
        before=before,
        between=between,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        settings={"on_nonfinite": "skip_step"},
    )
    found = only(sink)
    assert (found.origin, found.confidence, found.block) == ("", "not reproduced", "1")
    assert "not again" in found.evidence["replay"] and found.evidence["direction"] == "forward"
    assert torch.equal(torch.get_rng_state(), state[-1])
    assert model[1].fc1.training and not hasattr(model[1], "late")
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_inputs_that_changed_since_are_not_used() -> None:
    model = network()
    data = batch()

    def between(_: Any) -> None:
        data.add_(1)

    _, sink, _ = train(model, inputs=lambda step: data, between=between, before=breaking(model, "2", "log"))
    found = only(sink)
    assert (found.confidence, found.origin) == ("not reproduced", "")
    assert "changed in place" in found.evidence["replay"]
    assert found.block == "2" and found.evidence["direction"] == "forward"


def test_a_pass_that_cannot_come_again_names_no_origin() -> None:
    class Once(Breakable):
        left = 1

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if self.fault and Once.left:
                Once.left -= 1
                y = y * math.nan
            return y

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Once(), nn.Linear(WIDTH, 4))
    _, sink, _ = train(model, steps=3, before=breaking(model, "1", "once"))
    found = only(sink)
    assert (found.origin, found.operation, found.confidence) == ("", "", "not reproduced")
    assert "done again" in found.summary


def test_a_loss_of_derivatives_is_told_to_be_looked_at() -> None:
    """The root of a penalty on gradients, which the loop takes outside of the pass."""
    model = loops.network()
    _, sink = loops.watch(model, optimizer := torch.optim.SGD(model.parameters(), lr=0.01))
    for i in range(3):
        x = torch.randn(6, 16, requires_grad=True)
        scores = model(x)
        (steepness,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        penalty = (steepness.norm(dim=1) - 1).square().mean()
        optimizer.zero_grad()
        (scores.mean() + (penalty if i < 2 else torch.sqrt(-penalty))).backward()
        optimizer.step()
    (incident,) = sink.incidents
    assert incident.step == 2 and incident.confidence == "not reproduced"
    assert "the loss takes derivatives of it (torch.autograd.grad with create_graph=True)" in incident.summary


def test_a_loss_of_derivatives_alone_is_told_likewise() -> None:
    """Of that pass nothing comes to the outputs themselves."""
    model = loops.network()
    _, sink = loops.watch(model, optimizer := torch.optim.SGD(model.parameters(), lr=0.01))
    x = torch.randn(6, 16, requires_grad=True)
    (steepness,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    optimizer.zero_grad()
    torch.sqrt(-steepness.square().sum()).backward()
    optimizer.step()
    (incident,) = sink.incidents
    assert incident.confidence == "not reproduced"
    assert "the loss takes derivatives of it (torch.autograd.grad with create_graph=True)" in incident.summary


def test_gradients_that_go_by_the_outputs_are_told_to_be_looked_for_elsewhere() -> None:
    """The norm of weights that are 0, as a penalty has it: the pass and all that came to its outputs were finite."""
    model = network()
    with torch.no_grad():
        model[2].fc2.weight.zero_()
    _, sink, _ = train(model, loss_of=lambda y, step: y.square().mean() + model[2].fc2.weight.square().sum().sqrt(), steps=1)
    found = only(sink)
    assert (found.origin, found.confidence, found.evidence["parameters_nonfinite"]) == ("", "not reproduced", ["2.fc2.weight"])
    assert "a term of the loss that reads weights itself" in found.summary


def test_gradients_of_no_backward_pass_are_not_laid_to_the_pass() -> None:
    """As torch.func gives them: the pass beside them came out as before."""
    model = loops.network()
    _, sink = loops.watch(model, optimizer := torch.optim.SGD(model.parameters(), lr=0.01))
    model(torch.randn(6, 16))
    for each in model.parameters():
        each.grad = torch.full_like(each, math.nan)
    optimizer.step()
    (incident,) = sink.incidents
    assert incident.confidence == "not reproduced"
    assert "no gradient had come to its outputs" in incident.summary and "differently" not in incident.summary


def test_a_models_own_generators_are_put_back() -> None:
    class Draws(Breakable):
        def __init__(self) -> None:
            super().__init__()
            self.torch, self.numpy, self.python = torch.Generator(), np.random.default_rng(3), random.Random(4)

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.randn(x.shape, generator=self.torch) + self.numpy.normal() + self.python.random()
            y: Tensor = super().forward(x + 0.01 * noise)
            return y

    def run(watched: bool) -> list[str]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Draws(), nn.Linear(WIDTH, 4))
        before = breaking(model, "1", "sqrt", bad=1)
        _, sink, losses = train(
            model, before=before, watched=watched, steps=2, optimizer=torch.optim.SGD(model.parameters(), lr=0.0)
        )
        assert not watched or only(sink).operation == "sqrt"
        return [str(p.grad.tolist()) if p.grad is not None else "" for p in model.parameters()] + list(map(str, losses))

    assert run(True) == run(False)


def test_the_guilty_pass_of_many_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MOST", 4)
    torch.manual_seed(0)
    model = busy("plain")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    _, sink = loops.watch(model, optimizer)
    for part in range(12):
        model(batch(part), fault="yes" if part == 5 else "").square().mean().backward()
    optimizer.step()
    found = only(sink)
    assert (found.origin, found.operation, found.evidence["pass"], found.evidence["passes"]) == ("forward", "div", 5, 12)


def test_passes_that_were_let_go_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MOST", 2)

    def no_sign(self: Origin) -> None:
        return None

    monkeypatch.setattr(Origin, "first_sign", no_sign)
    torch.manual_seed(0)
    model = busy("plain")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    _, sink = loops.watch(model, optimizer)
    for part in range(6):
        model(batch(part), fault="yes" if part == 1 else "").square().mean().backward()
    optimizer.step()
    assert only(sink).confidence == "not reproduced" and "were let go" in only(sink).summary


class WithLoss(nn.Module):
    """As the models of transformers: they are given labels, and return a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor, labels: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        logits = self.body(x)
        probabilities = logits.softmax(-1) * (scale > 0)
        loss = -torch.log(probabilities[torch.arange(len(x)), labels]).mean()  # the model's own loss
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("where", ["loss", "body"])
def test_a_loss_that_the_model_computes_itself(where: str) -> None:
    torch.manual_seed(0)
    model = WithLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    _, sink = loops.watch(model, optimizer)
    for step in range(3):
        bad = step == 1
        model.body[2].fault = "log" if bad and where == "body" else ""
        optimizer.zero_grad()
        model(batch(step), torch.zeros(6, dtype=torch.long), scale=float(not (bad and where == "loss")))["loss"].backward()
        optimizer.step()
        if bad:
            break
    found = only(sink)
    assert found.origin == "forward" and found.operation == "log"
    assert found.line == line_of("the model's own loss" if where == "loss" else "log of zero")


def broken_compiled(after: Callable[[Tensor], object] = lambda x: None) -> Incident:
    """What is said of a compiled model that breaks in step 3; `after` has the batch between backward pass and step."""
    torch.manual_seed(0)
    inner = busy("plain")
    model = torch.compile(inner, backend="eager")
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.0)
    _, sink = loops.watch(inner, optimizer)
    for step in range(4):
        x = batch(step)
        optimizer.zero_grad()
        model(x, fault="yes" if step == 3 else "").square().mean().backward()
        after(x)
        optimizer.step()
    return only(sink)


def test_a_compiled_model_is_done_again_uncompiled() -> None:
    found = broken_compiled()
    assert (found.step, found.origin, found.block, found.operation) == (3, "forward", "1", "div")
    assert found.confidence == "consistent" and "eager approximation" in found.evidence["replay"]


def test_a_compiled_models_blocks_say_which_was_first_where_nothing_can_be_done_again() -> None:
    found = broken_compiled(Tensor.zero_)
    assert (found.step, found.block, found.evidence["direction"]) == (3, "1", "forward")
    assert "changed in place" in found.summary


def test_what_would_ask_other_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not refusal(network())
    monkeypatch.setattr("resmon.capture.forensics.replay.rank_and_world", lambda: (0, 2))
    model = nn.Sequential(*network(), nn.SyncBatchNorm(4))
    assert "synchronised" in refusal(model)
    monkeypatch.setattr("resmon.capture.forensics.origin.refusal", refusal)
    model = nn.Sequential(*network())
    monkeypatch.setattr("resmon.capture.forensics.origin.refusal", lambda model: "its parameters are sharded")
    _, sink, _ = train(model, before=breaking(model, "2", "log"))
    found = only(sink)
    assert (found.origin, found.block, found.evidence["direction"]) == ("", "2", "forward")
    assert "sharded" in found.summary


@pytest.mark.parametrize(
    ("way", "born", "block", "elsewhere"),
    [("ddp", "data", "", "another rank's gradients"), ("fsdp", "", "1", "communicates with the other ranks")],
)
def test_the_rank_in_which_it_was_born_is_told_first(tmp_path: Path, way: str, born: str, block: str, elsewhere: str) -> None:
    """FSDP's ranks cannot do a pass again alone: what the probes saw stands."""
    run_ranks(2, "tests.capture.spoilt", str(tmp_path), way)
    mine, other = resmon.load(tmp_path / way).incidents().itertuples()
    assert (mine.rank, mine.step, mine.origin, mine.block) == (1, spoilt.STEP, born, block)
    if born:
        assert mine.confidence == "bit-exact" and json.loads(mine.evidence)["rows"] == [spoilt.ROW]
    assert (other.rank, other.step, other.origin, other.block) == (0, spoilt.STEP, "", "")
    assert elsewhere in other.summary and "other ranks" in other.advice


class Body(nn.Module):
    """Blocks between a stem and a norm that are of no block, all inside of one module of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Breakable(), models.PreActivation(1, 2)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        x = self.blocks[1](x[:, None, None])
        return self.norm(x.mean((1, 2)))


@pytest.mark.parametrize(
    ("module", "operation", "block"),
    [
        ("body.stem", "linear", ""),
        ("body.norm", "layer_norm", ""),
        ("body.blocks.0.norm", "layer_norm", "body.blocks.0"),
        ("body.blocks.1.norm1", "batch_norm", "body.blocks.1"),
    ],
)
def test_what_stands_beside_the_blocks_is_of_none_of_them(module: str, operation: str, block: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.body = Body()
    fault = injection.Fault(model, injection.Place(module, operation, 0), "forward")

    def before(step: int) -> None:
        fault.on = step == 1

    _, sink, _ = train(model, steps=2, before=before, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    found = only(sink)
    assert (found.module, found.operation, found.block) == (module, operation, block)


class Heads(nn.Module):
    """Adds in its own forward, and goes on there with what is of no block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.branch(torch.tanh(x))
        return (self.head(x) * 1e30).exp()  # of the head


def test_what_the_model_does_itself_behind_its_last_block_is_of_none() -> None:
    torch.manual_seed(0)
    _, sink, _ = train(Heads(), steps=1)
    found = only(sink)
    assert (found.operation, found.line, found.block) == ("exp", line_of("of the head"), "")


def test_a_parameter_in_front_of_a_blocks_fork_is_of_the_block() -> None:
    """Its branch and its projection both begin behind it."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.body = Body()

    def before(step: int) -> None:
        if step == 2:
            with torch.no_grad():
                model.body.blocks[1].norm1.weight[0] = math.nan

    _, sink, _ = train(model, before=before)
    assert (only(sink).origin, only(sink).module, only(sink).block) == ("parameters", "body.blocks.1.norm1", "body.blocks.1")


# -- scalers ---------------------------------------------------------------------------------------------------------------


def scaled(steps: int, *, scale: float, fault: Callable[[int], str] = lambda step: "", backoff: float = 0.5) -> loops.Memory:
    """A float16-like loop whose gradients overflow as long as the scale is above 1."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=backoff, growth_interval=10**6)
    _, sink = loops.watch(model, optimizer)
    for step in range(steps):
        model[2].fault = fault(step)
        optimizer.zero_grad()
        output = model(batch(step))
        scaler.scale(output.square().mean() * 1e30).backward()
        scaler.step(optimizer)
        scaler.update()
    return sink


def test_a_search_for_the_scale_is_no_fault() -> None:
    sink = scaled(12, scale=2.0**36)
    assert any(record.skipped for record in sink.steps) and not sink.steps[-1].skipped
    assert not sink.incidents


def test_what_the_forward_pass_makes_no_scale_can_help() -> None:
    found = only(scaled(12, scale=2.0**36, fault=lambda step: "log" if step == 2 else ""))
    assert (found.origin, found.step, found.operation) == ("forward", 2, "log")
    assert found.evidence["loss_scale"] == 2.0**34


def test_a_search_without_end_is_a_fault() -> None:
    sink = scaled(SEARCH + 2, scale=2.0**60, backoff=0.99)
    assert only(sink).step == SEARCH


# -- the run ---------------------------------------------------------------------------------------------------------------


def test_closures_are_too_late_to_do_a_pass_again() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    _, sink = loops.watch(model, optimizer)
    for step in range(3):
        model[2].fault = "log" if step == 1 else ""

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(batch(1)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        if step == 1:
            break
    found = only(sink)
    assert found.confidence == "not reproduced" and "closure" in found.summary and found.block == "2"


def test_a_loop_without_an_optimizer_is_looked_at_when_it_says_that_the_step_is_over() -> None:
    model = network()
    session, sink = loops.watch(model, None)
    for step in range(3):
        model[2].fault = "sqrt" if step == 1 else ""
        model.zero_grad()
        model(batch(step)).square().mean().backward()
        session.step()
    assert (only(sink).origin, only(sink).operation, only(sink).block) == ("backward", "sqrt", "2")


def test_of_several_models_the_one_that_made_it_is_named() -> None:
    generator, critic = network(1), network(2)
    first = torch.optim.SGD(critic.parameters(), lr=1e-3)
    second = torch.optim.SGD(generator.parameters(), lr=1e-3)
    adapter = nn.Linear(4, WIDTH)
    for guilty, fault, origin in (("critic", "sqrt", "backward"), ("generator", "log", "forward")):
        session, sink = loops.watch({"generator": generator, "critic": critic}, [first, second])
        for step in range(2):
            {"critic": critic, "generator": generator}[guilty][2].fault = fault if step == 1 else ""
            generator.zero_grad()
            critic.zero_grad()
            critic(adapter(generator(batch(step)))).square().mean().backward()
            if step == 1:
                for p in (*generator.parameters(), *critic.parameters()):
                    assert p.grad is not None
            first.step()
            second.step()
        found = only(sink)
        assert (found.model, found.origin, found.block) == (guilty, origin, "2")
        session.detach()
        generator, critic = network(1), network(2)
        first = torch.optim.SGD(critic.parameters(), lr=1e-3)
        second = torch.optim.SGD(generator.parameters(), lr=1e-3)


def test_a_logged_loss_that_no_gradient_explains() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    session, sink = loops.watch(model, optimizer)
    for step in range(3):
        optimizer.zero_grad()
        loss = model(batch(step)).square().mean()
        loss.backward()
        optimizer.step()
        session.log({"loss": loss.detach() + (math.inf if step == 1 else 0)})
    found = only(sink)
    assert (found.origin, found.step) == ("loss", 1) and "Inf" in found.summary


def test_on_an_accelerator_the_record_tells_it_and_nothing_waits(elsewhere: None) -> None:
    model = network()
    session, sink, _ = train(model, before=breaking(model, "2", "log"), steps=3)
    found = only(sink)
    assert (found.step, found.block, found.evidence["direction"]) == (2, "2", "forward")
    assert found.origin == "" and "nothing waits for the accelerator" in found.summary
    assert session is not None and session.is_nonfinite


# -- injected at a place ---------------------------------------------------------------------------------------------------


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return models.mixed()


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_place_of_a_mixed_model(direction: injection.Direction, every: int) -> None:
    """The module and the operation are named wherever it is put."""
    model = mixed()
    missed, told = [], 0
    chosen = injection.places(model, (models.images(),), {})
    models.kept(model)
    for place in chosen[::every]:
        model = mixed()
        fault = injection.Fault(model, place, direction)

        def before(step: int, fault: injection.Fault = fault) -> None:
            fault.on = step == 1

        _, sink, _ = train(
            model,
            steps=2,
            before=before,
            inputs=lambda step: models.images(),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        )
        while loops.watching:
            loops.watching.pop().detach()
        if not sink.incidents:
            # Where nobody used the value, or ReLU let nothing through, nothing was broken.
            if any(p.grad is not None and not p.grad.isfinite().all() for p in model.parameters()):
                missed.append((place, "no incident"))
            continue
        told += 1
        found = only(sink)
        named = (found.module, found.operation, found.origin) == (place.module, place.operation, direction)
        # The gradient that comes to the model's own output is the loss's.
        if not named and (direction, place.module, found.origin) != ("backward", "9", "loss"):
            missed.append((place, (found.module, found.operation, found.origin, found.summary)))
    assert told > 20 // every
    assert not missed
