"""Whose gradients are read when: accumulation, several optimizers and models, frozen, sparse, complex and absent gradients."""

from __future__ import annotations

import copy
import logging
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resmon
from resmon.capture.gradients.reader import Gradients
from resmon.capture.host.placement import Placement
from tests.capture import models
from tests.capture.loops import (
    GRADIENT,
    OUTPUT_GRADIENT,
    Memory,
    Norms,
    assert_gradients,
    assert_same_training,
    network,
    norms,
    watch,
)


def batch(rows: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed))


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


# -- accumulation ------------------------------------------------------------------------------------------------------


def accumulated(sizes: list[int], loss: Callable[[Tensor], Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """The blocks' values of one step in micro-batches of these sizes, and of one step with the whole batch."""
    found = []
    for parts in (sizes, [sum(sizes)]):
        model = network()
        optimizer = sgd(model)
        _, sink = watch(model, optimizer)
        for part in batch(sum(sizes)).split(parts):
            (loss(model(part)) / len(parts)).backward()
        optimizer.step()
        assert len(sink.steps) == 1
        found.append(sink.newest.blocks[:5])
    return found[0], found[1]


def test_four_micro_batches_of_one_size_are_one_batch() -> None:
    """Of a mean loss divided by their number an element's gradient is 1/N of its own loss's, in both ways: so squares add up."""
    parts, whole = accumulated([3, 3, 3, 3], lambda y: y.square().mean())
    assert parts == pytest.approx(whole, rel=1e-5)


def test_micro_batches_of_unequal_size_are_another_training() -> None:
    """Under means of means rows of a small micro-batch weigh more: the activations are the same, the gradients truly are not."""
    parts, whole = accumulated([1, 5, 6], lambda y: y.square().mean())
    assert parts[:3] == pytest.approx(whole[:3], rel=1e-5)
    assert not np.allclose(parts[3], whole[3], rtol=1e-2)
    assert not np.allclose(parts[4], whole[4], rtol=1e-2)


def test_a_sum_that_is_not_divided_adds_up_whatever_the_sizes() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    for part in batch(12).split([1, 5, 6]):
        model(part).square().sum().backward()
    optimizer.step()
    other = network()
    whole = watch(other, sgd_of_other := sgd(other))[1]
    other(batch(12)).square().sum().backward()
    sgd_of_other.step()
    assert sink.newest.blocks[:5] == pytest.approx(whole.newest.blocks[:5], rel=1e-5)


# -- several optimizers and models -------------------------------------------------------------------------------------


def test_each_gradient_is_read_when_its_own_optimizer_steps() -> None:
    """A generator and its critic: the critic steps first, its gradients are then cleared and dirtied by the generator's loss."""
    critic, generator = network(seed=1), network(seed=2)
    generator[3] = nn.Linear(16, 16)
    optimizers = [sgd(critic), sgd(generator, lr=0.2)]
    _, sink = watch({"critic": critic, "generator": generator}, optimizers)
    for i in range(3):
        for _ in range(2):  # the critic steps twice in a step: the newest counts
            optimizers[0].zero_grad()
            (critic(batch()).mean() - critic(generator(batch(seed=i)).detach()).mean()).square().backward()
            of_critic = norms(critic)
            optimizers[0].step()
        assert len(sink.steps) == i
        optimizers[1].zero_grad()
        critic(generator(batch(seed=i))).square().mean().backward()
        of_generator = norms(generator)
        assert norms(critic) != of_critic
        optimizers[1].step()
        assert len(sink.steps) == i + 1
        record = sink.newest
        for j, site in enumerate(sink.now):
            squares = of_critic if site.model == "critic" else of_generator
            assert record.blocks[GRADIENT, j] == pytest.approx(sum(squares[name] for name in site.parameters), rel=1e-5)
        total = sum(of_critic.values()) + sum(of_generator.values())
        assert record.run_value("gradient_square") == pytest.approx(total, rel=1e-5)
        assert record.run_value("learning_rate") == 0.2
    assert {site.model for site in sink.now} == {"critic", "generator"}


def test_an_optimizer_that_does_not_step_leaves_its_gradients_out() -> None:
    slow, fast = network(seed=1), network(seed=2)
    optimizers = [sgd(slow), sgd(fast)]
    _, sink = watch({"slow": slow, "fast": fast}, optimizers)
    for i in range(4):
        slow(fast(batch()).repeat(1, 4)).square().mean().backward()
        if i % 2:
            optimizers[0].step()
        optimizers[1].step()
        present = [sink.newest.blocks_present[GRADIENT, j] for j, site in enumerate(sink.now) if site.model == "slow"]
        assert set(present) == {bool(i % 2)}


def test_parameters_that_no_optimizer_owns_are_read_at_the_end_of_the_step() -> None:
    model = network()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    _, sink = watch(model, optimizer)
    for i in range(2):
        optimizer.zero_grad()
        model(batch(seed=i)).square().mean().backward()
        expected = norms(model)
        optimizer.step()
        assert_gradients(sink.newest, sink.now, expected)


def test_without_an_optimizer_gradients_are_read_when_the_loop_says_so() -> None:
    model = network()
    session, sink = watch(model, None)
    model(batch()).square().mean().backward()
    expected = norms(model)
    session.step()
    assert_gradients(sink.newest, sink.now, expected)
    assert sink.newest.run_value("learning_rate") is None


def test_parameters_that_two_models_share_count_once() -> None:
    trunk = network()
    actor, critic = nn.Sequential(trunk, nn.Linear(4, 2)), nn.Sequential(trunk, nn.Linear(4, 1))
    optimizer = torch.optim.SGD([*actor.parameters(), *critic[1].parameters()], lr=0.1)
    _, sink = watch({"actor": actor, "critic": critic}, optimizer)
    (actor(batch()).square().mean() + critic(batch()).square().mean()).backward()
    expected = sum(norms(actor).values()) + sum(norms(critic[1]).values())
    optimizer.step()
    assert sink.newest.run_value("gradient_square") == pytest.approx(expected, rel=1e-5)
    assert sink.newest.blocks_present[GRADIENT].all()
    assert len(sink.now) == 6


def test_parameters_that_join_the_optimizer_later() -> None:
    model = network()
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)
    model[1].requires_grad_(False)
    _, sink = watch(model, optimizer)
    model(batch()).square().mean().backward()
    optimizer.step()
    assert sink.newest.blocks_present[GRADIENT].tolist() == [False, False, True]
    model[1].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[1].parameters())})
    model.zero_grad()
    model(batch()).square().mean().backward()
    expected = norms(model)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, expected)


def test_optimizers_that_cannot_be_used_are_named() -> None:
    model = network()
    with pytest.raises(resmon.ConfigurationError, match="optimizer 2 of 2 owns none"):
        watch(model, [sgd(model), sgd(nn.Linear(2, 2))])
    with pytest.raises(resmon.ConfigurationError, match="optimizer 1 of 2 is a str"):
        watch(model, ["sgd", sgd(model)])

    bare = type("Bare", (torch.optim.Optimizer,), {"__init__": lambda self, params: setattr(self, "param_groups", params)})
    with pytest.raises(resmon.ConfigurationError, match=r"a Bare that has not called .* call monitor.step\(\)"):
        watch(model, bare([{"params": list(model.parameters())}]))
    masters = [each.detach().double().requires_grad_() for each in model.parameters()]
    with pytest.raises(resmon.ConfigurationError, match=r"\(master weights\), pass none and call monitor.step\(\)"):
        watch(model, torch.optim.SGD(masters, lr=0.1))


class Lookahead(torch.optim.Optimizer):
    """As it is often written: it has no hooks, for it never calls its base class's __init__, and its steps are the other's."""

    def __init__(self, base_optimizer: torch.optim.Optimizer) -> None:
        self.base_optimizer = base_optimizer
        self.param_groups = base_optimizer.param_groups
        self.slow = [[each.detach().clone() for each in group["params"]] for group in self.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = self.base_optimizer.step(closure)
        with torch.no_grad():
            for group, slow in zip(self.param_groups, self.slow, strict=True):
                for fast, far in zip(group["params"], slow, strict=True):
                    fast.copy_(far.lerp_(fast, 0.5))
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base_optimizer.zero_grad(set_to_none)


def test_an_optimizer_around_another_without_hooks_of_its_own() -> None:
    def train(model: nn.Module, watched: bool) -> list[object]:
        optimizer = Lookahead(sgd(model))
        sink = watch(model, optimizer)[1] if watched else None
        said: list[object] = []
        for i in range(4):
            optimizer.zero_grad()
            loss = model(batch(seed=i)).square().mean()
            loss.backward()
            expected = norms(model)
            optimizer.step()
            said.append(loss.item())
            if sink is not None:
                assert len(sink.steps) == i + 1
                assert_gradients(sink.newest, sink.now, expected)
        return said

    assert_same_training(train)


# -- gradients that are not as usual -----------------------------------------------------------------------------------


def test_frozen_blocks_have_no_gradient_and_adapters_have_theirs() -> None:
    class Adapted(nn.Module):
        """A frozen layer with a low-rank adapter beside it."""

        def __init__(self, base: nn.Linear, rank: int = 2) -> None:
            super().__init__()
            self.base = base.requires_grad_(False)
            self.down = nn.Linear(base.in_features, rank, bias=False)
            self.up = nn.Linear(rank, base.out_features, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))

    model = network().requires_grad_(False)
    model[1].attn = Adapted(model[1].attn)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    _, sink = watch(model, optimizer)
    for i in range(3):
        optimizer.zero_grad()
        model(batch(seed=i)).square().mean().backward()
        expected = norms(model)
        assert set(expected) == {"1.attn.down.weight", "1.attn.up.weight"}
        optimizer.step()
        assert_gradients(sink.newest, sink.now, expected)
        names = [site.name for site in sink.now]
        assert sink.newest.blocks_present[GRADIENT].tolist() == ["attn" in name for name in names]
        assert sink.newest.blocks_present[OUTPUT_GRADIENT].all()


def test_no_gradient_at_all() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    model(batch())
    optimizer.step()
    assert sink.newest.run_value("gradient_square") is None
    assert not sink.newest.blocks_present[[GRADIENT, OUTPUT_GRADIENT]].any()


class Lookup(nn.Module):
    """A block behind an embedding whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 16, sparse=True)
        self.block = models.Alpha(16)

    def forward(self, i: Tensor) -> Tensor:
        return self.block(self.table(i).sum(1))


def test_sparse_gradients_are_read_and_left_as_they_are() -> None:
    model = Lookup()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    for i in range(2):
        optimizer.zero_grad()
        for seed in range(2):  # twice, so that they are accumulated and not coalesced
            model(torch.randint(10, (5, 7), generator=torch.Generator().manual_seed(seed + i))).square().mean().backward()
        gradient = model.table.weight.grad
        assert gradient is not None and gradient.is_sparse and not gradient.is_coalesced()
        expected = norms(model)
        optimizer.step()
        assert model.table.weight.grad is gradient and not gradient.is_coalesced()
        assert sink.newest.run_value("gradient_square") == pytest.approx(sum(expected.values()), rel=1e-5)
        assert sink.newest.errors_total == 0


def test_complex_parameters() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(9, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) * self.weight)

    model = nn.Sequential(Spectral())
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    model(batch()).square().mean().backward()
    gradient = model[0].weight.grad
    expected = float(gradient.abs().double().square().sum())
    optimizer.step()
    assert sink.newest.errors_total == 0
    assert sink.newest.run_value("gradient_square") == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_rows() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    for rows in (4, 0, 0, 4):
        optimizer.zero_grad()
        model(batch(rows)).square().sum().backward()
        expected = norms(model)
        optimizer.step()
        record = sink.newest
        assert record.errors_total == 0
        assert_gradients(record, sink.now, expected)  # all zero, which is a value
        assert record.counts[1:].sum() == 0
        assert np.isfinite(record.blocks[record.blocks_present]).all()
        assert (record.counts[0] > 0).tolist() == [rows > 0] * 3
        assert record.blocks_present[:3].all() == bool(rows)
    empty = sink.steps[1]
    assert (empty.blocks[GRADIENT] == 0).all() and empty.run_value("gradient_square") == 0


def test_a_first_batch_without_rows() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    for rows in (0, 4):
        model(batch(rows)).square().sum().backward()
        optimizer.step()
    assert sink.newest.errors_total == 0
    assert sink.newest.blocks_present[:5].all()


# -- optimizers that are not as usual ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3), lambda p: torch.optim.Adam(p, lr=0.1)])
def test_an_optimizer_with_a_closure(make: Callable[[object], torch.optim.Optimizer]) -> None:
    """The gradients are those of the closure's last call."""
    model = network()
    optimizer = make(model.parameters())
    _, sink = watch(model, optimizer)
    last = {}

    def closure() -> float:
        nonlocal last
        optimizer.zero_grad()
        loss = model(batch()).square().mean()
        loss.backward()
        last = norms(model)
        return loss.item()

    for i in range(3):
        optimizer.step(closure)  # type: ignore[arg-type]
        assert len(sink.steps) == i + 1
        assert_gradients(sink.newest, sink.now, last)


def test_a_step_that_calls_its_base_class_is_one() -> None:
    class Louder(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            super().step()

    model = network()
    torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)  # from now on torch hooks SGD.step, besides Louder.step
    optimizer = Louder(model.parameters(), lr=0.1)
    _, sink = watch(model, optimizer)
    for i in range(3):
        optimizer.zero_grad()
        model(batch()).square().mean().backward()
        expected = norms(model)
        optimizer.step()
        assert len(sink.steps) == i + 1
        assert_gradients(sink.newest, sink.now, expected)


class Sharpness(torch.optim.Optimizer):
    """As sharpness-aware minimisation is written everywhere: it holds the optimizer that steps."""

    def __init__(self, parameters: Any, **settings: Any) -> None:
        super().__init__(parameters, settings)
        self.base_optimizer = torch.optim.SGD(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["moved"] = 0.05 * parameter.grad
            parameter += self.state[parameter]["moved"]
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter -= self.state[parameter]["moved"]
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


def outputs_of(model: nn.Module) -> dict[str, Tensor]:
    """Where the blocks' newest outputs are put, which are the sums of their last additions."""
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            found[name] = output

    for name in ("1", "2"):
        model.get_submodule(name).register_forward_hook(lambda _, args, output, name=name: keep(name, output))
    return found


def assert_output_gradients(sink: Memory, outputs: dict[str, Tensor]) -> None:
    """Those of the newest outputs, and of no pass before."""
    names = [site.name for site in sink.now]
    for block, output in outputs.items():
        last = max(i for i, name in enumerate(names) if name.split(".")[0] == block)
        assert output.grad is not None
        expected = float(output.grad.double().square().sum())
        assert sink.newest.blocks[OUTPUT_GRADIENT, last] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("way", ["two calls", "closure"])
def test_sharpness_aware_minimisation_is_one_step_with_the_gradients_of_its_second_pass(way: str) -> None:
    model = network()
    optimizer = Sharpness(model.parameters(), lr=0.1)
    outputs = outputs_of(model)
    _, sink = watch(model, optimizer)
    for i in range(3):
        expected: Norms = {}

        def evaluate(i: int = i, expected: Norms = expected) -> None:
            model(batch(seed=i)).square().mean().backward()
            expected.update(norms(model))

        evaluate()
        if way == "closure":
            optimizer.step(evaluate)
        else:
            optimizer.first_step()
            evaluate()
            optimizer.second_step()
        assert len(sink.steps) == i + 1
        assert_gradients(sink.newest, sink.now, expected)
        assert_output_gradients(sink, outputs)
        assert sink.newest.run_value("learning_rate") == 0.1
        assert sink.newest.run_value("samples") == 2 * len(batch())


def test_an_optimizer_that_evaluates_several_times_in_a_step() -> None:
    """The gradients are those of the last evaluation."""
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    outputs = outputs_of(model)
    _, sink = watch(model, optimizer)
    for i in range(3):

        def evaluate(i: int = i) -> Tensor:
            optimizer.zero_grad()
            loss = model(batch(seed=i)).square().mean()
            loss.backward()
            return loss

        optimizer.step(evaluate)
        assert_gradients(sink.newest, sink.now, norms(model))
        assert_output_gradients(sink, outputs)


@pytest.mark.parametrize("clear", ["optimizer", "model", "zeros"])
def test_a_batch_that_is_given_up_in_the_middle_of_a_step(clear: str) -> None:
    model = network()
    optimizer = sgd(model)
    outputs = outputs_of(model)
    _, sink = watch(model, optimizer)
    for i in range(3):
        for part in range(2):
            model(batch(seed=10 * i + part)).square().mean().backward()
            if part == 0 and clear == "model":
                model.zero_grad()
            elif part == 0:
                optimizer.zero_grad(set_to_none=clear != "zeros")
        expected = norms(model)
        optimizer.step()
        assert_gradients(sink.newest, sink.now, expected)
        assert_output_gradients(sink, outputs)
        optimizer.zero_grad()


def test_a_critic_that_steps_several_times_in_a_step() -> None:
    """Its gradients are those of its newest step, whatever the order of pass and clearing."""
    for clears_first in (True, False):
        critic, actor = network(seed=1), nn.Linear(16, 16)
        its, others = sgd(critic), sgd(actor)
        outputs = outputs_of(critic)
        _, sink = watch({"critic": critic, "actor": actor}, [its, others])
        for i in range(2):
            for k in range(3):
                if clears_first:
                    its.zero_grad()
                loss = critic(batch(seed=10 * i + k)).square().mean()
                if not clears_first:
                    its.zero_grad()
                loss.backward()
                its.step()
            expected = norms(critic)
            others.zero_grad()
            actor(batch(seed=i)).square().mean().backward()
            others.step()
            assert_gradients(sink.newest, sink.now, expected | norms(actor))
            assert_output_gradients(sink, outputs)


def test_what_one_of_two_optimizers_clears_takes_nothing_of_the_other() -> None:
    """Between its forward and its backward pass, as many loops do, and between two micro-batches."""
    model = network()
    first, second = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[:2], model[2:]))
    outputs = outputs_of(model)
    _, sink = watch(model, [first, second])
    for i in range(3):
        y = model(batch(seed=i))
        first.zero_grad()
        second.zero_grad()
        y.square().mean().backward()
        first.step()
        first.zero_grad()
        second.step()
        assert_output_gradients(sink, outputs)


def test_optimizers_that_step_inside_of_the_backward_pass_are_told_what_that_costs(caplog: pytest.LogCaptureFixture) -> None:
    """Gradients are gone before the step ends; or the step ends before they have all come."""
    for given, words in ((False, "no watched parameter had a gradient"), (True, "has stepped inside of the backward pass")):
        model = network()
        optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}

        def step(parameter: Tensor, optimizers: Any = optimizers) -> None:
            optimizers[parameter].step()
            parameter.grad = None

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        session, sink = watch(model, list(optimizers.values()) if given else None)
        with caplog.at_level(logging.WARNING, "resmon"):
            for i in range(3):
                model(batch(seed=i)).square().mean().backward()
                if not given:
                    session.step()
        assert len(sink.steps) == 3
        assert caplog.text.count(words) == 1
        caplog.clear()


def test_a_gradient_that_does_not_come_to_its_sum_is_told_with_its_block(caplog: pytest.LogCaptureFixture) -> None:
    class InView(models.Alpha):
        def forward(self, x: Tensor) -> Tensor:
            total = x.clone()
            view = total[:]
            view += self.act(self.fc(x))
            return total

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), InView(16), models.Alpha(16))
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    with caplog.at_level(logging.WARNING, "resmon"):
        for i in range(4):
            optimizer.zero_grad()
            model(batch(seed=i)).square().mean().backward()
            expected = norms(model)
            optimizer.step()
            assert_gradients(sink.newest, sink.now, expected)
    assert sink.newest.blocks_present[OUTPUT_GRADIENT].tolist() == [False, True]
    assert [[why.partition(":")[0] for why in site.absent] for site in sink.now] == [["output_gradient_norm"], []]
    assert caplog.text.count("block 1: output_gradient_norm: no gradient came to its sum") == 1


def test_an_optimizer_without_a_learning_rate() -> None:
    class Sign(torch.optim.Optimizer):
        def __init__(self, parameters: object) -> None:
            super().__init__(parameters, {})  # type: ignore[arg-type]

        def step(self, closure: object = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter -= 0.001 * parameter.grad.sign()

    model = network()
    optimizer = Sign(model.parameters())
    _, sink = watch(model, optimizer)
    model(batch()).square().mean().backward()
    expected = norms(model)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, expected)
    assert sink.newest.run_value("learning_rate") is None
    assert sink.newest.errors_total == 0


def test_a_compiled_step() -> None:
    """What is clipped inside of a graph is not seen: the gradients are as stepped."""
    torch.compiler.reset()  # where much has been compiled before, the compiler gives up and runs it eagerly
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    _, sink = watch(model, optimizer)

    @torch.compile(backend="eager")
    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()

    for i, step in enumerate((torch.compile(optimizer.step, backend="eager"), clip_and_step) * 2):
        optimizer.zero_grad()
        model(batch(seed=i)).square().mean().backward()
        step()
        assert len(sink.steps) == i + 1
        assert_gradients(sink.newest, sink.now, norms(model))
        assert sink.newest.run_value("stepped_square") is None


def test_copies_of_an_optimizer_are_not_watched() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    model(batch()).square().mean().backward()
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        twin.step()
    assert sink.steps == []


def test_an_optimizer_that_is_swapped_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    first, second = sgd(model), sgd(model)
    session, sink = watch(model, first)
    with caplog.at_level(logging.WARNING, "resmon"):
        for optimizer in (first, second):
            for _ in range(200):
                optimizer.zero_grad()
                model(batch()).square().mean().backward()
                optimizer.step()
    said = [
        record.message for record in caplog.records if "close this monitor and watch the model with the new one" in record.message
    ]
    assert len(said) == 1
    assert len(sink.steps) == 200
    session.finish()
    assert (sink.newest.complete, sink.newest.step) == (False, 200)


def test_the_same_accumulation_for_ever_is_no_swap(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    optimizer = sgd(model)
    watch(model, optimizer)
    with caplog.at_level(logging.WARNING, "resmon"):
        for _ in range(2):
            for _ in range(100):
                model(batch()).square().mean().backward()
            optimizer.step()
    assert not caplog.records


def test_parameters_that_were_replaced_are_known_from_the_next_trace_on() -> None:
    model = network()
    gradients = Gradients({"": model}, Placement([model]))
    gradients.group([[("", "3.weight")]])
    model[3] = nn.Linear(16, 4)
    gradients.group([[("", "3.weight")]])
    model(batch()).square().mean().backward()
    gradients.read(gradients.everything)
    measured = gradients.end_step()
    squares, present = measured.of(measured.groups)
    assert present.tolist() == [True]
    assert squares[0] == pytest.approx(norms(model)["3.weight"], rel=1e-5)


def test_a_fault_while_reading_gradients_never_reaches_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(tensors: object) -> object:
        raise RuntimeError("injected")

    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    monkeypatch.setattr("resmon.capture.gradients.reader.Gradients._take", broken)
    for _ in range(3):
        model(batch()).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert [record.errors_total for record in sink.steps] == [1, 1, 1]
    assert sink.newest.run_value("gradient_square") is None
    assert len(sink.steps) == 3


@pytest.mark.parametrize("closure", [False, True])
def test_training_with_several_optimizers_is_the_same_to_the_last_bit(closure: bool) -> None:
    def train(model: nn.Module, watched: bool) -> list[object]:
        assert isinstance(model, nn.Sequential)
        body, head = sgd(model[:3]), torch.optim.AdamW(model[3].parameters(), lr=0.01)
        session = watch(model, [body, head])[0] if watched else None
        said: list[object] = []

        def loss() -> float:
            model.zero_grad()
            for _ in range(2):
                value = model(torch.randn(6, 16)).square().mean() / 2
                value.backward()
            said.append(value.item())
            return value.item()

        for _ in range(30):
            if closure:
                body.step(loss)
            else:
                loss()
                body.step()
            head.step()
        if session is not None:
            session.detach()
        return said

    assert_same_training(train)


def test_a_copy_of_a_watched_model_is_not_watched() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    model(batch()).square().mean().backward()
    twin = copy.deepcopy(model)
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 1e-3)
    expected = norms(model)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, expected)
    assert sink.newest.run_value("stepped_square") is None
    assert not math.isnan(sink.newest.run_value("gradient_square") or math.nan)
