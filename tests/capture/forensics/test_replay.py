"""What a pass that is done again leaves behind: nothing, whatever the model does to itself."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resmon.capture.forensics.references import References, given, keep
from resmon.capture.forensics.replay import ReplayError, repeated, same, untouched


class Stats:
    def __init__(self) -> None:
        self.calls = 0
        self.values: list[float] = []


class Hidden:
    """What a model may keep that is no module."""

    def __init__(self) -> None:
        self.stats = Stats()


class Untidy(nn.Module):
    """Changes everything that a forward pass may get at."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.register_buffer("count", torch.zeros(2))
        self.register_buffer("optional", None)
        self.attribute = torch.ones(3)
        self.hidden = Hidden()
        self.seen: list[Any] = [1, [2, 3]]
        self.names = {"a": {"b": 1}}
        self.parts = {1, 2}
        self.queue = deque([1, 2], maxlen=2)
        self.counter = Counter("aab")
        self.default = defaultdict(list, {"x": [1]})
        self.number = 3

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.count.data.mul_(7)
        self.optional = torch.ones(1)
        self.attribute.add_(1)
        self.hidden.stats.calls += 1
        self.hidden.stats.values.append(1.0)
        self.seen[1].append(4)
        self.seen.append(5)
        self.names["a"]["c"] = 2
        self.names["d"] = {}
        self.parts.add(3)
        self.queue.append(3)
        self.counter["a"] += 1
        self.default["y"].append(1)
        self.number += 1
        self.new = 1
        self.fc.weight.data.add_(1)
        self.eval()
        self.register_parameter("late", nn.Parameter(torch.ones(1)))
        random.random()
        np.random.rand()
        torch.rand(1)
        y: Tensor = self.fc(x)
        return y


def state(model: Untidy) -> Any:
    tensors = {name: (tensor.tolist(), tensor._version) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    rest = {key: repr(value) for key, value in vars(model).items() if not key.startswith("_")}
    hidden = (model.hidden.stats.calls, list(model.hidden.stats.values))
    draws = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    return tensors, rest, hidden, draws, model.fc.training, list(model._modules), list(model._parameters), list(model._buffers)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    model = Untidy()
    before = state(model)
    identities = [id(each) for each in (model.seen, model.seen[1], model.names, model.queue, model.counter, model.default)]
    try:
        with untouched(model):
            model(torch.ones(2, 3))
            assert state(model) != before
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert state(model) == before
    assert identities == [id(each) for each in (model.seen, model.seen[1], model.names, model.queue, model.counter, model.default)]


def test_arguments_are_given_again_as_they_were() -> None:
    x = torch.ones(2, requires_grad=True)
    inner = x * 2
    tree = ({"a": [x, 3], "b": (inner, None)}, "word")
    kept = keep(tree)
    tree[0].pop("b")
    again = given(kept)
    assert again[1] == "word" and again[0]["a"][1] == 3 and again[0]["b"][1] is None
    leaf, other = again[0]["a"][0], again[0]["b"][0]
    assert leaf is not x and leaf.is_leaf and leaf.requires_grad and leaf.data_ptr() == x.data_ptr()
    assert not other.is_leaf and other.requires_grad and torch.equal(other, inner)


def test_what_is_not_there_any_more_is_refused() -> None:
    model = nn.Linear(2, 2)
    references = References()
    x = torch.ones(1, 2)
    references.begin("", model, (x,), {})
    references.end("", model(x))
    made = references.passes[0]
    model.eval()
    with pytest.raises(ReplayError, match="switched"), repeated(made, ()):
        pass
    model.train()
    x.add_(1)
    with pytest.raises(ReplayError, match="changed in place"), repeated(made, ()):
        pass
    references.clear()
    with pytest.raises(ReplayError, match="let go"), repeated(made, ()):
        pass


def test_no_graph_and_no_gradient_is_kept_alive_after_the_step() -> None:
    model = nn.Linear(2, 2)
    references = References()
    x = torch.ones(1, 2)
    references.begin("", model, (x,), {})
    output = model(x)
    references.end("", output)
    made = references.passes[0]
    output.sum().backward()
    assert made.gradients and made.outputs
    references.clear()
    assert not made.gradients and not made.outputs and made.arguments is None and not references.passes


def test_no_hook_stays_on_a_parameter_that_a_model_returns() -> None:
    model = nn.Linear(2, 2)
    references = References()
    for _ in range(3):
        references.begin("", model, (), {})
        references.end("", (model.weight, model.weight * 2))
        references.clear()
    assert not model.weight._backward_hooks


def test_equality_to_the_last_bit_knows_nan() -> None:
    a = torch.tensor([1.0, float("nan"), float("inf")])
    assert same(a, a.clone()) and not same(a, a.nan_to_num()) and not same(a, a.double()) and not same(a, a[:2])
