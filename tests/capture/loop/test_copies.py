"""Models that are wrapped, saved or copied under watch: adapters, whole-model checkpoints, averages of weights."""

from __future__ import annotations

import copy
import importlib.util
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.capture.loops import GRADIENT, Memory, watch
from tests.capture.test_compiled import Net, batch

Compile = Callable[[nn.Module], Callable[..., Any]]
WAYS: dict[str, Compile] = {"eager": lambda model: model, "compiled": lambda model: torch.compile(model, backend="aot_eager")}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


class Adapter(nn.Module):
    """LoRA: a frozen projection and a low-rank map beside it."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + 0.5 * self.up(self.down(x))


def adapted_gpt2(layers: int = 2, width: int = 16) -> nn.Module:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=30, n_positions=16, n_embd=width, n_layer=layers, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    model.requires_grad_(requires_grad=False)
    for block in model.transformer.h:  # type: ignore[union-attr]
        block.attn.c_attn = Adapter(block.attn.c_attn, width, 3 * width)
        block.mlp.c_proj = Adapter(block.mlp.c_proj, 4 * width, width)
    return model.train()


def truth_of_gpt2(model: nn.Module, tokens: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[skip, branch, sum, gradients of the adapters, gradient of the sum] squared, by site, from the same weights in float64."""
    model = copy.deepcopy(model).double()
    seen: list[Tensor] = []  # per block: skip, branch, skip, branch; at last the stream's end
    gpt2: Any = model.transformer

    def takes(tensor: Tensor) -> None:
        if tensor.requires_grad:
            tensor.retain_grad()
        seen.append(tensor)

    for block in gpt2.h:
        block.ln_1.register_forward_pre_hook(lambda _, args: takes(args[0]))
        block.attn.register_forward_hook(lambda _, args, out: takes(out[0]))
        block.ln_2.register_forward_pre_hook(lambda _, args: takes(args[0]))
        block.mlp.register_forward_hook(lambda _, args, out: takes(out))
    gpt2.ln_f.register_forward_pre_hook(lambda _, args: takes(args[0]))
    model(input_ids=tokens).logits.square().mean().backward()

    def square(tensor: Tensor | None) -> float:
        return 0.0 if tensor is None else float(tensor.detach().square().sum())

    parts = [part for block in gpt2.h for part in (block.attn, block.mlp)]
    rows = []
    for i, part in enumerate(parts):
        skip, branch, total = seen[2 * i], seen[2 * i + 1], seen[2 * i + 2]
        adapters = sum(square(p.grad) for name, p in part.named_parameters() if ".base." not in name)
        rows.append([square(skip), square(branch), square(total), adapters, square(total.grad)])
    return np.array(rows).T


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("way", WAYS)
def test_low_rank_adapters_around_the_projections_of_a_frozen_model(way: str) -> None:
    model = adapted_gpt2()
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained, lr=0.5)
    _, sink = watch(model, optimizer)
    call = WAYS[way](model)
    for i in range(3):
        tokens = torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(i))
        plain.load_state_dict(model.state_dict())
        expected = truth_of_gpt2(plain, tokens)
        optimizer.zero_grad()
        call(input_ids=tokens).logits.square().mean().backward()
        optimizer.step()
        np.testing.assert_allclose(sink.newest.blocks[:5], expected, rtol=1e-4)
        assert sink.newest.blocks_present[:5].all() and sink.newest.errors_total == 0
        total = sink.newest.run_value("gradient_square")
        assert total == pytest.approx(sum(float(p.grad.double().square().sum()) for p in trained if p.grad is not None), rel=1e-5)
    assert [site.name for site in sink.now] == [f"transformer.h.{i}.{part}" for i in range(2) for part in ("attn", "mlp")]
    assert (sink.newest.blocks[GRADIENT] > 0).all()
    assert any(".base." in name for name in sink.now[0].parameters)  # frozen, and so without a share in the norm


# -- copies --------------------------------------------------------------------------------------------------------------


class Training:
    """A watched model that has been trained for two steps."""

    def __init__(self, way: str) -> None:
        self.model = Net(2, functional=True)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.sink: Memory = watch(self.model, self.optimizer)[1]
        self.call = WAYS[way](self.model)
        self.step()
        self.step()

    def step(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.optimizer.zero_grad()
        loss = self.call(batch()).square().mean()
        meanwhile()
        loss.backward()
        meanwhile()
        self.optimizer.step()

    def assert_one_pass_was_seen(self) -> None:
        record = self.sink.newest
        assert record.counts[0].tolist() == [batch().numel()] * 2
        assert record.blocks_present[:5].all() and record.errors_total == 0


def trains(model: Callable[[Tensor], Tensor]) -> None:
    model(batch(seed=9)).sum().backward()


@pytest.mark.parametrize("way", WAYS)
def test_a_whole_watched_model_is_saved_and_loaded(way: str) -> None:
    training = Training(way)
    buffer = io.BytesIO()
    torch.save(training.call, buffer)  # of a compiled one the wrapper, too
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch()), training.call(batch()), rtol=0, atol=0)
    training.step(meanwhile=lambda: trains(loaded))
    training.assert_one_pass_was_seen()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_an_average_of_the_weights_writes_nothing(way: str) -> None:
    training = Training(way)
    average = AveragedModel(training.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    compiled_average = WAYS[way](average)

    def meanwhile() -> None:
        average.update_parameters(training.model)
        with torch.no_grad():
            compiled_average(batch(seed=5))
        trains(compiled_average)

    for _ in range(2):
        training.step(meanwhile)
        training.assert_one_pass_was_seen()
    own = training.sink.newest.blocks[:5].copy()
    training.step()
    np.testing.assert_allclose(training.sink.newest.blocks[:5], own, rtol=0.5)  # neither are its gradients among them
    assert average.n_averaged == 4
