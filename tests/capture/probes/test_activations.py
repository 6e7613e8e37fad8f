"""What autograd keeps, against what its own hooks on saved tensors are given."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from resmon.capture.probes import activations
from resmon.capture.probes.activations import Activations
from resmon.records import BLOCK_VALUES
from tests.capture.loops import assert_same_training, watch

HELD, SAVES = map(BLOCK_VALUES.index, ("activation_bytes", "checkpoint_bytes"))


class Conv(nn.Module):
    """A block of a ResNet: its projection comes after the branch, and its last ReLU works in place on the sum."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.down is None else self.down(x)
        y: Tensor = self.relu(out)
        return y


class Mlp(nn.Module):
    """Functional dropout, a buffer and a weight that is computed from parameters, on the branch; the skip is scaled."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.register_buffer("scale", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(nn.functional.linear(self.norm(x), self.up.weight.double().float(), self.up.bias))
        y: Tensor = x * 0.9 + nn.functional.dropout(self.down(hidden), 0.1) * self.scale
        return y


class Attention(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        y: Tensor = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return y


class Nested(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.down, self.inner, self.up = nn.Linear(16, 16), nn.Sequential(*inner), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.up(torch.tanh(self.inner(self.down(x))))
        return y


class Kept:
    """The storages that autograd's own hooks are given, by the module that runs and is named; innermost first."""

    def __init__(self, model: nn.Module, blocks: list[str]) -> None:
        self.bytes = dict.fromkeys(blocks, 0)
        self.outside = 0
        self._stack: list[str] = []
        self._seen: list[Tensor] = []
        # What is but a parameter in other clothes: by the leaves behind it.
        self._known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        for name in blocks:
            module = model.get_submodule(name)
            module.register_forward_pre_hook(lambda *_, name=name: self._stack.append(name))
            module.register_forward_hook(lambda *_: self._stack.pop() and None)

    def pack(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in self._known and not self._of_parameters(tensor):
            self._known.add(tensor.untyped_storage()._cdata)
            self._seen.append(tensor.detach())  # so that no storage takes another's place
            if self._stack:
                self.bytes[self._stack[-1]] += tensor.untyped_storage().nbytes()
            else:
                self.outside += tensor.untyped_storage().nbytes()
        return tensor.detach()

    @staticmethod
    def _of_parameters(tensor: Tensor) -> bool:
        stack, leaves = [tensor.grad_fn], []
        while stack:
            node = stack.pop()
            if node is None:
                return False
            leaves += [node] if hasattr(node, "variable") else []
            stack += [] if hasattr(node, "variable") else [each for each, _ in node.next_functions]
        return bool(leaves)


def tokens() -> Tensor:
    return torch.randn(4, 6, 16)


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), Conv(8, 8, 1), Conv(8, 16, 2), Conv(16, 16, 1), nn.Flatten(), nn.Linear(256, 2)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], list[str]]] = {
    "resnet": (resnet, images, ["2", "3", "4"]),
    "transformer": (
        lambda: nn.Sequential(nn.Linear(16, 16), Attention(), Mlp(), Attention(), Mlp(), nn.Linear(16, 2)),
        tokens,
        list("1234"),
    ),
    "nested": (
        lambda: nn.Sequential(nn.Linear(16, 16), Nested(Mlp(), Nested(Mlp(), Attention())), Mlp()),
        tokens,
        ["1.inner.0", "1.inner.1.inner.0", "1.inner.1.inner.1", "1.inner.1", "1", "2"],
    ),
    "raw input": (lambda: nn.Sequential(Mlp(), Attention()), tokens, ["0", "1"]),
}


def measured(model: nn.Module, batch: Tensor) -> tuple[dict[str, int], dict[str, int], int | None]:
    """Of the first step: bytes and savings by block, and what lies outside."""
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    session, sink = watch(model, optimizer)
    model(batch).square().mean().backward()
    outside = session._watches[0].kept_outside
    optimizer.step()
    record = sink.newest
    there = record.blocks_present[HELD]
    assert (there == record.blocks_present[SAVES]).all()
    held, saves = (
        {
            site.name: int(value)
            for site, value, known in zip(sink.now, record.blocks[i].tolist(), there.tolist(), strict=True)
            if known
        }
        for i in (HELD, SAVES)
    )
    return held, saves, outside


def expected(make: Callable[[], nn.Module], batch: Tensor, blocks: list[str]) -> Kept:
    torch.manual_seed(0)
    model = make()
    kept = Kept(model, blocks)
    with saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        model(batch)
    return kept


# Numbers that are factors are saved too, but no hook is shown them.
NUMBERS = 64


@pytest.mark.parametrize("name", MODELS)
def test_each_block_keeps_what_autograds_own_hooks_see(name: str) -> None:
    make, data, blocks = MODELS[name]
    torch.manual_seed(1)
    batch = data()
    kept = expected(make, batch, blocks)
    if name == "resnet":
        # The ReLU on a sum lies behind the add: what it keeps, its output, is what the next block begins with.
        large, small = 4 * 8 * 64 * 4, 4 * 16 * 16 * 4
        kept.outside += small - large
        kept.bytes["3"] += large - small
    torch.manual_seed(0)
    held, saves, outside = measured(make(), batch)
    assert held == pytest.approx(kept.bytes, abs=NUMBERS)
    assert outside == pytest.approx(kept.outside, abs=NUMBERS)
    assert all(0 <= saves[block] < held[block] for block in blocks)


def test_what_a_checkpoint_saves_is_what_it_saves() -> None:
    """Checkpointing a block takes just that much off what all of them keep."""

    class Model(nn.Module):
        def __init__(self, *checkpointed: int) -> None:
            super().__init__()
            self.stem, self.blocks = nn.Linear(16, 16), nn.ModuleList((Attention(), Mlp(), Attention(), Mlp()))
            self.checkpointed = checkpointed

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for i, block in enumerate(self.blocks):
                x = checkpoint(block, x, use_reentrant=False) if i in self.checkpointed else block(x)
            return x

    batch = tokens()
    held, saves, outside = measured(Model(), batch)
    assert outside is not None
    stream = batch.numel() * 4
    for i in range(4):
        with_one, saves_then, outside_then = measured(Model(i), batch)
        name = f"blocks.{i}"
        assert saves_then[name] <= NUMBERS
        assert outside_then == outside
        assert with_one[name] == pytest.approx(stream, abs=NUMBERS)
        assert sum(held.values()) - sum(with_one.values()) == pytest.approx(saves[name], abs=NUMBERS)


def test_a_reentrant_checkpoint_keeps_nothing_within() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Linear(16, 16), Mlp()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(self.block, self.stem(x), use_reentrant=True)
            return y

    batch = tokens()
    held, _, outside = measured(Model(), batch)
    assert held == {"block": 0}
    assert outside == pytest.approx(2 * batch.numel() * 4, rel=0.02)  # the batch and the stream


def test_hooks_of_others_stay_and_what_they_put_in_its_place_counts() -> None:
    batch = tokens()
    plain, _, _ = measured(nn.Sequential(nn.Linear(16, 16), Mlp()), batch)
    with save_on_cpu():
        offloaded, _, _ = measured(nn.Sequential(nn.Linear(16, 16), Mlp()), batch)
    # The copies are each of its own, and of parameters too, for it copies all.
    assert offloaded["1"] >= plain["1"]

    packed: list[int] = []
    unpacked: list[Tensor] = []

    def pack(tensor: Tensor) -> tuple[str, Tensor]:
        packed.append(tensor.numel())
        return "half", tensor.detach().half() if tensor.is_floating_point() else tensor

    def unpack(pair: tuple[str, Tensor]) -> Tensor:
        unpacked.append(pair[1])
        return pair[1].float() if pair[1].is_floating_point() else pair[1]

    model = nn.Sequential(nn.Linear(16, 16), Attention())
    session, _ = watch(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with saved_tensors_hooks(pack, unpack):
        model(batch)
    assert packed and not unpacked
    (channel,) = session._channels
    assert channel.kept is not None
    assert 0 < channel.kept.bytes <= 2 * sum(packed)


def test_parameters_in_another_precision_do_not_count() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512), Mlp(512))
    with torch.autocast("cpu", torch.bfloat16):
        held, _, _ = measured(model, torch.randn(2, 1, 512))
    assert 0 < held["1"] < 2 * 4 * 512 * 2 * 10 < model[1].up.weight.numel() * 2


def test_frozen_blocks_keep_nothing_and_frozen_weights_do_not_count() -> None:
    model = nn.Sequential(Attention(), Attention(), Mlp())
    model[0].requires_grad_(False)
    model[2].up.weight.requires_grad_(False)
    batch = tokens()
    kept = expected(lambda: model, batch, ["0", "1", "2"])
    held, _, _ = measured(model, batch)
    assert held == {"0": 0, "1": pytest.approx(kept.bytes["1"], abs=NUMBERS), "2": pytest.approx(kept.bytes["2"], abs=NUMBERS)}


def test_nothing_is_kept_alive() -> None:
    model = nn.Sequential(nn.Linear(16, 16), Attention(), Mlp())
    watch(model, torch.optim.SGD(model.parameters(), lr=0.1))
    alive: list[weakref.ref[Tensor]] = []
    model[1].out.register_forward_hook(lambda module, args, output: alive.append(weakref.ref(args[0])))
    gc.disable()  # no help
    try:
        output = model(tokens())
        output.sum().backward()
        del output
        assert alive[0]() is None
    finally:
        gc.enable()


def test_training_is_the_same_where_every_pass_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "EVERY", 0)
    monkeypatch.setattr(activations, "SOON", 0)
    looked: list[int] = []
    block = Activations.block

    def spy(self: Activations, output: Tensor) -> activations.Kept | None:
        looked.append(1)
        return block(self, output)

    monkeypatch.setattr(Activations, "block", spy)

    def train(model: nn.Module, watched: bool) -> list[object]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if watched:
            watch(model, optimizer)
        said: list[object] = []
        for i in range(6):
            loss = model(torch.randn(4 + i % 2, 3, 8, 8)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            said.append(loss.item())
        return said

    assert_same_training(train, resnet)
    assert len(looked) == 6 * 3


def sizes(session_steps: Iterator[int], model: nn.Module) -> list[float]:
    """The first block's bytes after a step with each of these many samples."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, sink = watch(model, optimizer)
    found = []
    for samples in session_steps:
        model(torch.randn(samples, 6, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(sink.newest.blocks[HELD, 0]))
    return found


def test_the_newest_look_stands_and_a_larger_batch_is_soon_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "EVERY", 8)
    monkeypatch.setattr(activations, "SOON", 3)
    found = sizes(iter([4, 4, 8, 8, 8, 8, 2, 2, 2, 2, 2, 2, 2, 2, 2]), nn.Sequential(nn.Linear(16, 16), Attention()))
    ratio = np.array(found) / found[0]
    # In the first pass; as soon as it may be with the larger batch; and with the smaller one when it is time again.
    assert ratio.tolist() == [1] * 4 + [2] * 8 + [0.5] * 3


def test_compiled_models_say_nothing() -> None:
    model = torch.compile(nn.Sequential(nn.Linear(16, 16), Attention()), backend="eager")
    held, _, outside = measured(model, tokens())  # type: ignore[arg-type]
    assert held == {}
    assert outside is None


def test_a_graph_of_blocks_deep_inside_of_each_other_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "MOST", 20)
    make, data, _ = MODELS["nested"]
    held, _, outside = measured(make(), data())
    assert len(held) < 6
    assert outside is None
