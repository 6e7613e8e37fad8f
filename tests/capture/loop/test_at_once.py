"""What else goes on with a watched model while it trains: other threads that call it, transformations, copies and traces of it."""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._functorch.aot_autograd import aot_module
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from resmon.capture.discovery.sites import discover
from tests.capture import models
from tests.capture.loop.test_session import GRADIENT, OUTPUT_GRADIENT, Watched, assert_operands, square

STEPS = 3  # the first of which is traced


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 16), models.TwoAdds(16), models.Alpha(16), models.FunctionalDropout(16), nn.Linear(16, 4)
    ).eval()


class Meanwhile:
    """A hook that does `act`, and that a copy of its model does not have."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __call__(self, *_: object) -> None:
        self.act()

    def __deepcopy__(self, memo: object) -> Callable[..., None]:
        return lambda *_: None


class Kept:
    """A hook that keeps what modules give, for the gradient that comes to it."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []

    def __call__(self, module: nn.Module, args: object, output: torch.Tensor) -> None:
        output.retain_grad()
        self.tensors.append(output)


def others(model: nn.Module, act: Callable[[], object]) -> None:
    """Have another thread do `act`, from its beginning to its end, in the middle of each pass of this one."""
    here = threading.get_ident()

    def meanwhile() -> None:
        if threading.get_ident() == here:
            thread = threading.Thread(target=act)
            thread.start()
            thread.join()

    for module in model[1:4]:
        module.register_forward_hook(Meanwhile(meanwhile))


def train(watched: Watched, meanwhile: Callable[[int], object] = lambda step: None) -> None:
    """`STEPS` steps, whose operands and gradients are those of the training passes, to the last one."""
    twin = copy.deepcopy(watched.model)
    for i in range(STEPS):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(i))
        twin.load_state_dict(watched.model.state_dict())
        outputs = Kept()
        handles = [block.register_forward_hook(outputs) for block in twin[1:4]]
        models.kept(twin)
        twin.zero_grad()
        twin(x).square().mean().backward()
        for handle in handles:
            handle.remove()
        operands = models.kept(twin)
        meanwhile(i)
        record = watched.step(x)
        assert record is not None
        assert_operands(record, operands)
        sites = [site.name for site in watched.sink.now]
        for block, output in zip("123", outputs.tensors, strict=True):
            last = max(j for j, name in enumerate(sites) if name.split(".")[0] == block)
            assert output.grad is not None
            assert record.blocks[OUTPUT_GRADIENT, last] == pytest.approx(square(output.grad), rel=1e-4)
        assert record.blocks_present[GRADIENT].all()
        total = sum(square(p.grad) for p in twin.parameters() if p.grad is not None)
        assert record.run_value("gradient_square") == pytest.approx(total, rel=1e-4)
        assert record.errors_total == 0
    assert torch._C._len_torch_function_stack() == 0


def test_threads_that_act_while_another_trains(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(blocks())
    acted = []

    def act() -> None:
        with torch.no_grad():
            acted.append(watched.model(torch.randn(2, 16)))

    others(watched.model, act)
    with caplog.at_level(logging.WARNING, "resmon"):
        train(watched)
    assert len(acted) >= 3 * STEPS
    assert not caplog.records


def test_of_passes_at_the_same_time_the_first_is_observed_and_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(blocks())
    others(watched.model, lambda: watched.model(torch.randn(2, 16)))
    with caplog.at_level(logging.WARNING, "resmon"):
        train(watched)
    assert caplog.text.count("another thread called the model with gradients") == 1


def test_a_model_may_be_looked_at_while_it_is_watched() -> None:
    """Before its first pass, which is traced, too; and the pass that looks is none of the training's."""
    watched = Watched(blocks())

    def look(step: int) -> None:
        assert [site.name for site in discover(watched.model, torch.randn(2, 16))] == ["1.attn", "1.mlp", "2", "3"]
        assert torch._C._len_torch_function_stack() == 0

    train(watched, look)


def test_a_thread_that_died_in_the_middle_of_a_pass_is_waited_for_no_longer() -> None:
    watched = Watched(blocks())

    def dies() -> None:
        handle = watched.model[0].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(SystemExit))
        with contextlib.suppress(SystemExit):  # which no hook hears of
            watched.model(torch.randn(2, 16))
        handle.remove()

    def meanwhile(step: int) -> None:
        thread = threading.Thread(target=dies)
        thread.start()
        thread.join()

    train(watched, meanwhile)


def test_gradients_of_single_samples_between_the_steps(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(nn.Sequential(nn.Linear(16, 16), *(models.Alpha(16) for _ in range(3)), nn.Linear(16, 4)))
    norms = []

    def meanwhile(step: int) -> None:
        weights = {name: p.detach() for name, p in watched.model.named_parameters()}

        def loss(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = torch.func.functional_call(watched.model, weights, (x[None],))
            return output.square().mean()

        found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, torch.randn(5, 16))
        norms.append(found["0.weight"].flatten(1).norm(dim=1))

    with caplog.at_level(logging.WARNING, "resmon"):
        train(watched, meanwhile)
    assert all((each > 0).all() for each in norms)
    assert caplog.text.count("passes inside of torch.func's transformations") == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_that_is_traced_in_the_middle_of_training() -> None:
    def traced(model: nn.Module) -> list[str]:
        graph = torch.jit.trace(model, torch.ones(2, 16)).inlined_graph
        return [node.kind() for node in graph.nodes()]

    bare = traced(blocks())
    watched = Watched(blocks())
    found = []
    train(watched, lambda step: (found.append(traced(watched.model)), models.kept(watched.model)))
    assert found == [bare] * STEPS


def written(mode: str) -> Callable[[nn.Module], list[str]]:
    def trace(model: nn.Module) -> list[str]:
        graph = make_fx(model, tracing_mode=mode, _allow_non_fake_inputs=True)(torch.ones(2, 16)).graph
        return [str(node.target) for node in graph.nodes]

    return trace


def compiled_ahead(model: nn.Module) -> list[str]:
    found: list[str] = []

    def keep(graph: GraphModule, _: object) -> GraphModule:
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    aot_module(model, fw_compiler=keep)(torch.ones(2, 16)).sum().backward()
    return found


def estimated(model: nn.Module) -> list[str]:
    """As what a step will take is estimated without computing it."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        output = model(torch.ones(2, 16))
        output.sum().backward()
    return [str(output.shape)]


PLAYED = {**{f"written, {mode}": written(mode) for mode in ("real", "fake", "symbolic")}, "compiled": compiled_ahead}


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("first", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["after the first step", "before"])
@pytest.mark.parametrize("play", [estimated, *(pytest.param(PLAYED[how], id=how, marks=pytest.mark.slow) for how in PLAYED)])
def test_a_model_that_is_only_played_through(
    play: Callable[[nn.Module], list[str]], first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bare = play(blocks())
    watched = Watched(blocks())
    found = []

    def meanwhile(step: int) -> None:
        found.append(play(watched.model))
        watched.model.zero_grad()
        models.kept(watched.model)

    with caplog.at_level(logging.WARNING, "resmon"):
        if first:
            meanwhile(-1)
        train(watched, meanwhile)
    assert found == [bare] * (STEPS + first)
    assert not [record for record in caplog.records if record.name == "resmon"]
    assert len(watched.sink.steps) == STEPS


def test_a_model_that_is_copied_in_the_middle_of_a_pass() -> None:
    watched = Watched(blocks())
    copies: list[nn.Module] = []

    def meanwhile() -> None:
        if len(copies) < 2 * STEPS:
            copies.append(copy.deepcopy(watched.model))

    for block in (1, 3):
        watched.model[block].register_forward_hook(Meanwhile(meanwhile))
    train(watched)
    assert len(copies) == 2 * STEPS
    before = len(watched.sink.steps)
    for each in copies:
        each(torch.randn(2, 16)).sum().backward()
    assert len(watched.sink.steps) == before
    assert watched.step(torch.randn(2, 16)) is not None
