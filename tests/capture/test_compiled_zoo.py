"""The zoo under torch.compile: no graph more, no break, the same losses, and the values of eager mode."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters

from resmon.capture.discovery.dataflow import leaves
from tests.capture.discovery.test_sites import HUGGING
from tests.capture.loops import Memory, watch
from tests.capture.test_compiled import counted
from tests.zoo import HANDWRITTEN
from tests.zoo.case import Case

# Warnings are the models' own.
pytestmark = [pytest.mark.usefixtures("fresh_compiler"), pytest.mark.filterwarnings("ignore")]

STEPS = 3
# Those of the zoo's hand-written models that differ most for the compiler; of the published ones all, but most only as slow tests.
QUICK = """transformers-opt mlp_mixer stochastic_depth_per_batch
multiplying layer_drop_skipping super_resolution time_shift functional_root_twice nested_residuals
checkpointed_branch_non_reentrant custom_function_inline low_rank_adapter""".split()
NAMED = {f"transformers-{case.name}": case for case in HUGGING} | {case.name: case for case in HANDWRITTEN if case.name in QUICK}
CASES = [pytest.param(case, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, case in NAMED.items()]


def without_dropout(model: nn.Module) -> nn.Module:
    """Random numbers are others in a graph than without one."""
    for module in model.modules():
        for thing in (module, getattr(module, "config", None)):
            for name, value in list(vars(thing or object).items()):
                if isinstance(value, float) and (
                    "drop" in name or (name == "p" and isinstance(module, nn.modules.dropout._DropoutNd))
                ):
                    setattr(thing, name, 0.0)
    return model


def loss_of(output: Any) -> Tensor:
    parts = [tensor.float().square().mean() for _, tensor in leaves(output) if tensor.requires_grad]
    return torch.stack(parts).sum()


class Training:
    """Trains a model; `call` is what the loop calls. The first step is eager in every training, as it is in a watched one."""

    def __init__(self, model: nn.Module, call: Callable[..., Any], *, watched: bool) -> None:
        self.model, self.call = model, call
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        self.sink = watch(model, self.optimizer)[1] if watched else Memory()
        self.watched = watched
        self.losses: list[float] = []

    def step(self, case: Case) -> None:
        call = self.call if self.watched or self.losses else self.model
        self.optimizer.zero_grad()
        seed(len(self.losses))
        loss = loss_of(call(*case.inputs(), **case.keywords()))
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def compiled(model: nn.Module, *, watched: bool) -> Training:
    torch._dynamo.reset()
    counters.clear()
    return Training(model, torch.compile(model, backend="aot_eager"), watched=watched)


@pytest.mark.parametrize("case", CASES)
def test_no_graph_more_and_the_values_of_eager_mode(case: Case) -> None:
    seed(0)
    model = without_dropout(case.build())
    bare = compiled(copy.deepcopy(model), watched=False)
    for _ in range(STEPS):
        bare.step(case)
    without = counted()

    twin = copy.deepcopy(model)
    eager = Training(twin, twin, watched=True)
    ours = compiled(model, watched=True)
    for _ in range(STEPS):
        twin.load_state_dict(model.state_dict())
        eager.step(case)
        ours.step(case)
    with_us = counted()

    assert (with_us["graphs"], with_us["breaks"]) == (without["graphs"], without["breaks"])
    assert ours.losses == bare.losses
    assert all(torch.equal(weight, bare.model.state_dict()[name]) for name, weight in model.state_dict().items())
    assert [site.name for site in ours.sink.now] == [site.name for site in eager.sink.now]
    assert len(ours.sink.now) >= len(case.sites)
    for record, expected in zip(ours.sink.steps, eager.sink.steps, strict=True):
        np.testing.assert_allclose(record.blocks[:5], expected.blocks[:5], rtol=1e-3, atol=1e-30)
        np.testing.assert_array_equal(record.blocks_present[:5], expected.blocks_present[:5])
        np.testing.assert_array_equal(record.counts, expected.counts)
        assert record.errors_total == 0
