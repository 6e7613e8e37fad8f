"""What a step's record says, against operands that the models kept themselves and against autograd."""

from __future__ import annotations

import copy
import io
import logging
import math
import multiprocessing
import pickle
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.nn.utils import prune
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.utils.checkpoint import checkpoint

import resmon
from resmon.capture.discovery.registration import REGISTRATIONS
from resmon.capture.loop import model as loop_model
from resmon.capture.loop.session import Session
from resmon.errors import ConfigurationError
from resmon.records import (
    BLOCK_VALUES,
    DURATION_EDGES,
    MAGNITUDE_NONFINITE,
    MAGNITUDE_ZERO,
    StepRecord,
)
from tests.capture import loops, models
from tests.capture.loops import Memory
from tests.zoo import wiring

SKIP, BRANCH, OUTPUT, GRADIENT, OUTPUT_GRADIENT = map(
    BLOCK_VALUES.index, ("skip_square", "branch_square", "output_square", "gradient_square", "output_gradient_square")
)
SPINE = [SKIP, BRANCH, OUTPUT, GRADIENT, OUTPUT_GRADIENT]  # what is there in every step in which a block runs


class Watched:
    """A model with an optimizer and a session over it."""

    def __init__(self, model: nn.Module, lr: float = 0.01, watched: bool = True, **options: object) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        self.sink = Memory()
        self.session = Session({"": model}, self.optimizer, **options)  # type: ignore[arg-type]
        loops.watching.append(self.session)
        if watched:
            self.session.attach(self.sink)

    def step(self, *batches: Tensor) -> StepRecord | None:
        self.optimizer.zero_grad()
        for batch in batches:
            (self.model(batch).square().mean() / len(batches)).backward()
        self.optimizer.step()
        return self.sink.steps[-1] if self.sink.steps else None


def square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def assert_operands(record: StepRecord, operands: models.Operands) -> None:
    assert record.blocks.shape[1] == len(operands)
    for i, (skip, branch) in enumerate(operands):
        expected = [square(skip), square(branch), square(skip + branch)]
        assert record.blocks[:3, i] == pytest.approx(expected, rel=1e-5), i
        assert record.counts[0, i] == skip.numel()
    assert record.blocks_present[:3].all()


def test_operands_of_every_kind_of_block_at_every_step() -> None:
    watched = Watched(models.mixed())
    for i in range(4):
        record = watched.step(models.images(8, seed=i))
        assert record is not None
        assert_operands(record, models.kept(watched.model))
    by_name = {site.name: site for site in watched.sink.now}
    assert [site.name for site in watched.sink.now] == ["1", "2", "3", "5.attn", "5.mlp", "6", "7", "8"]
    assert by_name["2"].kind == "projection"
    assert by_name["6"].observed == "mode"  # a functional dropout hides the branch from hooks
    assert by_name["5.mlp"].observed == "hooks"


class Later(models.Kept):
    """Its input is scaled before the branch, and meets a module only when the sum is made."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.beside = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.fc(2 * x)
        self.keep(x, branch)
        y = x + branch
        return y * self.beside(x)


@pytest.mark.parametrize("block", [models.TwoAdds, models.FunctionalDropout, models.Alpha, models.EarlyReturn, Later])
def test_a_block_that_is_the_whole_model(block: Callable[[int], nn.Module]) -> None:
    """Its skip is what the model is called with."""
    watched = Watched(block(16))
    for i in range(3):
        record = watched.step(torch.randn(8, 16, generator=torch.Generator().manual_seed(i)))
        assert record is not None
        assert_operands(record, models.kept(watched.model))
        assert record.blocks_present[SPINE].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(16, 16), models.TwoAdds(16), models.Alpha(16)).to(dtype)
    watched = Watched(model)
    for i in range(2):
        record = watched.step(torch.randn(32, 16, dtype=dtype))
        operands = models.kept(model)
        assert record is not None
        for j, (skip, branch) in enumerate(operands):
            assert record.blocks[:2, j] == pytest.approx([square(skip), square(branch)], rel=2e-2 if j == 2 else 1e-5), (i, j)


def test_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), models.PreActivation(8), models.InPlace(8)).to(memory_format=torch.channels_last)
    watched = Watched(model)
    for i in range(3):
        record = watched.step(models.images(4, seed=i).to(memory_format=torch.channels_last))
        assert record is not None
        assert_operands(record, models.kept(model))


def test_gradients_equal_autograd() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), models.TwoAdds(16), models.FunctionalDropout(16))
    watched = Watched(model)
    for _ in range(3):
        outputs: list[Tensor] = []
        handle = model[1].register_forward_hook(lambda m, a, y, outputs=outputs: y.retain_grad() or outputs.append(y))
        record = watched.step(torch.randn(5, 16))
        handle.remove()
        assert record is not None
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        for i, site in enumerate(watched.sink.now):
            expected = sum(square(gradients[name]) for name in site.parameters)
            assert record.blocks[GRADIENT, i] == pytest.approx(expected, rel=1e-5)
        total = sum(square(g) for g in gradients.values())
        assert (record.run_value("gradient_square") or 0) == pytest.approx(total, rel=1e-5)
        assert record.blocks[OUTPUT_GRADIENT, 1] == pytest.approx(square(outputs[0].grad), rel=1e-5)
    assert watched.sink.now[1].parameters == (
        "1.ln_2.weight", "1.ln_2.bias", "1.mlp.0.weight", "1.mlp.0.bias", "1.mlp.2.weight", "1.mlp.2.bias",
    )  # fmt: skip


def test_the_traced_step_says_what_any_other_step_says() -> None:
    watched = Watched(models.mixed().eval(), lr=0.0)
    records = [watched.step(models.images()) for _ in range(3)]
    for record in records[1:]:
        assert record is not None and records[0] is not None
        assert record.blocks == pytest.approx(records[0].blocks, rel=1e-6)
        assert (record.magnitude_buckets - records[0].magnitude_buckets).sum() > 0


def dropping(width: int = 16) -> nn.Module:
    """Transformer blocks with attention and dropout everywhere, taught by torch itself."""
    layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.2, batch_first=True, norm_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.LazyLinear(3))


class StochasticDepth(nn.Module):
    """Blocks that are skipped by chance, of the loop's own random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.blocks = nn.ModuleList(Plain(16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if random.random() > 0.3:
                x = block(F.dropout(x, 0.1))
        return x


def gpt() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=8, use_cache=False)
    return Logits(transformers.GPT2LMHeadModel(config))


class Logits(nn.Module):
    """A language model that is given numbers, as the other models are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=(x.abs() * 8).long().clamp(max=31)).logits
        return logits


@pytest.mark.parametrize(
    ("build", "batch"),
    [
        (models.mixed, lambda i: models.images(8, seed=i)),
        (dropping, lambda i: torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(i))),
        (StochasticDepth, lambda i: torch.randn(8, 16, generator=torch.Generator().manual_seed(i))),
        (gpt, lambda i: torch.randn(4, 8, generator=torch.Generator().manual_seed(i))),
    ],
    ids=["mixed", "transformer", "stochastic-depth", "gpt2"],
)
def test_training_is_the_same_to_the_last_bit(build: Callable[[], nn.Module], batch: Callable[[int], Tensor]) -> None:
    def run(watched: bool) -> tuple[list[float], list[Tensor], object]:
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
        model = build()
        with torch.no_grad():
            model(batch(0))  # gives lazy modules their parameters
        w = Watched(model, watched=watched)
        losses = []
        for i in range(200):
            w.step(batch(i))
            losses.append(w.model(batch(i)).sum().item())
        state = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
        assert not watched or (w.sink.steps[-1].blocks_present[SPINE].any() and not w.sink.steps[-1].errors_total)
        return losses, [t.clone() for t in w.model.state_dict().values()], state

    losses, weights, state = run(True)
    bare_losses, bare_weights, bare_state = run(False)
    assert losses == bare_losses
    assert all(torch.equal(a, b) for a, b in zip(weights, bare_weights, strict=True))
    assert state == bare_state


@pytest.mark.usefixtures("two_threads")
def test_training_in_several_threads_is_the_same_to_the_last_bit() -> None:
    """With operands so large that torch computes, and we read, in pieces."""

    def train(model: nn.Module, watched: bool) -> list[object]:
        w = Watched(model, watched=watched)
        for i in range(3):
            w.step(torch.randn(1500, 64, generator=torch.Generator().manual_seed(i)))
        return [w.model(torch.ones(1, 64)).tolist()]

    loops.assert_same_training(train, lambda: nn.Sequential(nn.Linear(64, 64), models.TwoAdds(64), models.Alpha(64)))


def test_accumulated_micro_batches_equal_one_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), models.TwoAdds(16), models.Alpha(16)).eval()
    batch = torch.randn(12, 16)
    whole = Watched(copy.deepcopy(model), lr=0.0)
    parts = Watched(copy.deepcopy(model), lr=0.0)
    for _ in range(2):
        one, four = whole.step(batch), parts.step(*batch.chunk(4))
        assert one is not None and four is not None
        assert four.blocks[:4] == pytest.approx(one.blocks[:4], rel=1e-4)
        assert four.blocks[OUTPUT_GRADIENT] == pytest.approx(one.blocks[OUTPUT_GRADIENT], rel=1e-4)
        assert four.counts.tolist() == one.counts.tolist()


def test_zero_is_a_value_and_absence_is_absence() -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.TwoAdds(8))
    nn.init.zeros_(model[1].attn.weight)
    nn.init.zeros_(model[1].attn.bias)
    for parameter in model[1].mlp.parameters():
        parameter.requires_grad_(False)
    for parameter in model[1].ln_2.parameters():
        parameter.requires_grad_(False)
    record = Watched(model).step(torch.randn(4, 8))
    assert record is not None
    assert record.blocks[BRANCH, 0] == 0.0 and record.blocks_present[BRANCH, 0]
    assert record.blocks_present[GRADIENT].tolist() == [True, False]
    assert record.magnitude_buckets[:, MAGNITUDE_ZERO].sum() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_values_are_flagged_by_direction(bad: float) -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.TwoAdds(8), models.Alpha(8))
    watched = Watched(model)
    watched.step(torch.randn(4, 8))
    handle = model[1].attn.register_forward_hook(lambda m, a, y: y.index_put((torch.tensor(0), torch.tensor(3)), torch.tensor(bad)))
    forward = watched.step(torch.randn(4, 8))
    handle.remove()
    assert forward is not None
    assert forward.counts[1, 0] == 1
    assert forward.counts[1, 1] > 0
    assert not np.isfinite(forward.blocks[BRANCH, 0]) and np.isfinite(forward.blocks[SKIP, 0])
    assert forward.nonfinite_steps.tolist() == [1, 1, 1]
    assert forward.magnitude_buckets[1, MAGNITUDE_NONFINITE] > 0

    healthy = nn.Sequential(nn.Linear(8, 8), models.TwoAdds(8), models.Alpha(8))
    watched = Watched(healthy)
    watched.step(torch.randn(4, 8))
    handle = healthy[2].register_forward_hook(lambda m, a, y: y.register_hook(lambda g: g * bad) and None)
    backward = watched.step(torch.randn(4, 8))
    handle.remove()
    assert backward is not None
    assert backward.counts[1].sum() == 0
    assert backward.counts[2, 0] > 0
    assert not np.isfinite(backward.blocks[GRADIENT]).any()


def test_magnitudes_are_cumulative_and_come_from_the_output() -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.Alpha(8))
    watched = Watched(model)
    for i in range(3):
        record = watched.step(torch.randn(16, 8))
        assert record is not None
        assert record.magnitude_buckets.sum() == (i + 1) * 16 * 8  # so small that the sample is the tensor
    with torch.no_grad():
        skip, branch = models.kept(model)[-1]
    assert watched.sink.steps[2].magnitude_sum[0] - watched.sink.steps[1].magnitude_sum[0] == pytest.approx(
        float((skip + branch).abs().double().sum()), rel=1e-6
    )


class Detours(nn.Module):
    """Its functional dropout needs the mode; with `detour` another add of the same shape comes before the residual one."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(8, 8)
        self.detour = False

    def forward(self, x: Tensor) -> Tensor:
        branch = F.dropout(self.f(x), 0.0)
        if self.detour:
            branch = branch + 100 * torch.ones_like(branch)
        self.kept = (x.detach().clone(), branch.detach().clone())
        return x + branch


def test_another_way_through_a_block_is_never_taken_for_the_traced_one() -> None:
    block = Detours()
    watched = Watched(nn.Sequential(nn.Linear(8, 8), block))
    for i, detour in enumerate((False, False, True, True, True, False, False)):
        block.detour = detour
        record = watched.step(torch.randn(4, 8))
        assert record is not None
        assert [site.observed for site in watched.sink.now] == ["mode"]
        if i in (2, 5):  # the way has changed: nothing is told, and the next pass is traced
            assert not record.blocks_present[[SKIP, BRANCH, OUTPUT, OUTPUT_GRADIENT]].any()
            assert record.counts[0].tolist() == [0]
        else:
            assert_operands(record, [block.kept])
            assert record.blocks_present[OUTPUT_GRADIENT].all()


def test_a_block_that_returns_early_leaves_nothing_behind() -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.EarlyReturn(8), models.Alpha(8))
    watched = Watched(model)
    watched.step(torch.randn(4, 8))
    model[1].skipping = True
    record = watched.step(torch.randn(4, 8))
    assert record is not None
    assert record.counts[0].tolist() == [0, 32]
    assert record.blocks_present[SPINE, 0].tolist() == [False] * 5
    model[1].skipping = False
    models.kept(model)
    record = watched.step(torch.randn(4, 8))
    assert record is not None
    assert_operands(record, models.kept(model))


def test_a_block_that_the_traced_step_skipped_appears_as_soon_as_it_runs() -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.EarlyReturn(8), models.Alpha(8))
    model[1].skipping = True
    watched = Watched(model)
    for i in range(5):
        watched.step(torch.randn(4, 8))
        assert watched.sink.names[i] == ["2"]
    model[1].skipping = False
    models.kept(model)
    for _ in range(2):
        record = watched.step(torch.randn(4, 8))
        assert record is not None
        assert watched.sink.names[-1] == ["1", "2"]  # in its place, not at the end
        assert_operands(record, models.kept(model))
    assert record.magnitude_buckets.sum(axis=1).tolist() == [2 * 32, 7 * 32]  # nobody's counters were lost


def test_a_block_that_sleeps_for_long_appears_when_it_wakes() -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.EarlyReturn(8), models.Alpha(8))
    model[1].skipping = True
    watched = Watched(model)
    for _ in range(40):
        watched.step(torch.randn(4, 8))
    model[1].skipping = False
    for _ in range(2):
        watched.step(torch.randn(4, 8))
    assert watched.sink.names[-1] == ["1", "2"]


def test_passes_without_gradients_do_not_count() -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.Alpha(8))
    watched = Watched(model)
    watched.step(torch.randn(4, 8))
    with torch.no_grad():
        model(torch.randn(100, 8))
    model.eval()
    with torch.inference_mode():
        model(torch.randn(100, 8))
    model.train()
    record = watched.step(torch.randn(4, 8))
    assert record is not None
    assert record.counts[0].tolist() == [32]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_are_counted_once(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, blocks: nn.Sequential, on: bool) -> None:
            super().__init__()
            self.stem, self.blocks, self.on = nn.Linear(8, 8), blocks, on

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant) if self.on else block(x)
            return x

    torch.manual_seed(0)
    plain = Checkpointed(nn.Sequential(models.TwoAdds(8), models.FunctionalDropout(8)).eval(), on=False)
    saving = copy.deepcopy(plain)
    saving.on = True
    batch = torch.randn(4, 8)
    a, b = Watched(plain, lr=0.1), Watched(saving, lr=0.1)
    for _ in range(3):
        one, two = a.step(batch), b.step(batch)
        assert one is not None and two is not None
        kept = [name.endswith("_bytes") for name in BLOCK_VALUES]  # which is the point of it
        assert two.blocks[~np.array(kept)] == pytest.approx(one.blocks[~np.array(kept)], rel=1e-5)
        held = BLOCK_VALUES.index("activation_bytes")
        assert (two.blocks[held] < one.blocks[held]).all()
        assert two.blocks_present[SPINE].all()
        assert two.counts.tolist() == one.counts.tolist()


def test_a_marked_add_is_observed_though_a_kernel_hides_it() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.operands: models.Operands = []

        def forward(self, x: Tensor) -> Tensor:
            branch = self.fc(x)
            with torch._C.DisableTorchFunction():  # what no trace can see
                summed = torch.stack([x, branch]).sum(0)
            self.operands.append((x.detach(), branch.detach()))
            return resmon.residual_add(x, branch, output=summed)

    model = nn.Sequential(nn.Linear(8, 8), Fused(), Fused())
    watched = Watched(model)
    for _ in range(3):
        record = watched.step(torch.randn(4, 8))
        assert record is not None
        assert_operands(record, [model[1].operands.pop(), model[2].operands.pop()])
        assert record.blocks_present[OUTPUT_GRADIENT].all()
    assert [site.kind for site in watched.sink.now] == ["marked", "marked"]
    x = torch.randn(3)
    assert torch.equal(resmon.residual_add(x, x), x + x)


def test_a_model_that_is_never_called_itself_is_told(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(nn.Sequential(nn.Linear(8, 8), models.Alpha(8)))
    for _ in range(3):
        watched.model.forward(torch.randn(4, 8)).sum().backward()
        watched.optimizer.step()
    assert caplog.text.count("not model.forward(...)") == 1
    assert len(watched.sink.steps) == 3


def test_lazy_modules() -> None:
    model = nn.Sequential(nn.LazyLinear(8), models.Alpha(8))
    watched = Watched(model)
    for _ in range(2):
        record = watched.step(torch.randn(4, 5))
        assert record is not None
        assert_operands(record, models.kept(model))


def test_autocast() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), models.TwoAdds(16), models.FunctionalDropout(16))
    watched = Watched(model)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            record = watched.step(torch.randn(8, 16))
        assert record is not None
        for i, (skip, branch) in enumerate(models.kept(model)):
            assert record.blocks[:2, i] == pytest.approx([square(skip), square(branch)], rel=1e-5)


def test_include_and_exclude() -> None:
    watched = Watched(models.mixed(), exclude=("5", "7"), include=("[3-9]",))
    watched.step(models.images())
    assert watched.sink.names[-1] == ["3", "6", "8"]


def test_patterns_that_let_nothing_in_are_told(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(models.mixed(), exclude=("*",))
    record = watched.step(models.images(4))
    assert record is not None and record.blocks.shape[1] == 0
    assert "8 residual adds were found" in caplog.text and "exclude= let none of them in" in caplog.text


def test_scripted_parts_of_a_model_are_passed_by() -> None:
    """Also where something else has been compiled in the process, so that the compiler is asked about them."""
    torch.compiler.reset()
    watched = Watched(nn.Sequential(nn.Linear(wiring.WIDTH, wiring.WIDTH), wiring.Scripted()))
    for _ in range(4):
        record = watched.step(torch.randn(3, wiring.WIDTH))
    assert record is not None
    assert record.blocks_present[SPINE].all() and record.blocks.shape[1] == 2 and record.errors_total == 0


def test_transformed_functions_are_told_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(models.TwoAdds(16))

        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(self.inner)(x)

    torch.manual_seed(0)
    watched, twin = Watched(Mapped().eval()), Watched(Mapped().eval(), watched=False)
    twin.model.load_state_dict(watched.model.state_dict())
    for i in range(3):
        for each in (watched, twin):
            torch.manual_seed(i)
            record = each.step(torch.randn(3, 16))
    record = watched.sink.steps[-1]
    assert caplog.text.count("torch.func") == 1 and record.errors_total == 0 and record.steps_total == 3
    assert all(map(torch.equal, watched.model.parameters(), twin.model.parameters()))


def test_tensors_of_ragged_samples_are_passed_by_and_trained_on(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    watched = Watched(nn.Sequential(nn.Linear(16, 16), models.Alpha(16)))
    watched.model[1].keep = lambda *_: None
    for _ in range(2):
        x = torch.nested.nested_tensor([torch.randn(3, 16), torch.randn(5, 16)], layout=torch.jagged)
        watched.optimizer.zero_grad()
        watched.model(x).values().square().mean().backward()
        watched.optimizer.step()
    record = watched.sink.steps[-1]
    assert (record.errors_total, record.run_value("samples")) == (0, 2)
    assert record.run_value("gradient_square") == pytest.approx(sum(square(p.grad) for p in watched.model.parameters()), rel=1e-5)
    assert "no residual add" in caplog.text


def test_a_model_without_residual_adds_is_recorded_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)))
    with caplog.at_level(logging.WARNING):
        record = watched.step(torch.randn(3, 4))
    assert record is not None
    assert record.blocks.shape == (len(BLOCK_VALUES), 0)
    assert (record.run_value("gradient_square") or 0) > 0
    assert "no residual add" in caplog.text


def test_copies_of_a_watched_model_are_not_watched_and_work() -> None:
    model = models.mixed()
    watched = Watched(model)
    for i in range(3):
        watched.step(models.images(4, seed=i))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    model.eval()
    for other in copies:
        other.eval()
        with torch.no_grad():
            assert torch.equal(other(models.images()), model(models.images()))
        assert not watched.session._under_way
        for (name, a), (_, b) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
            assert torch.equal(a, b), name
    model.train()
    record = watched.step(models.images(4))
    assert record is not None
    assert record.counts[0].tolist() == [4 * 8 * 64, 4 * 16 * 16, 4 * 16 * 16, 64, 64, 64, 64, 64]


def test_detaching_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.mixed()
    watched = Watched(model)
    for i in range(20):
        watched.step(models.images(4, seed=i))
    watched.session.detach()
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks
    assert not watched.optimizer._optimizer_step_pre_hooks and not watched.optimizer._optimizer_step_post_hooks
    before = len(watched.sink.steps)
    watched.step(models.images(4))
    assert len(watched.sink.steps) == before


@pytest.mark.parametrize(
    "victim",
    [
        "resmon.capture.probes.channel._native.addition",
        "resmon.capture.probes.channel._native.accumulate",
        "resmon.capture.probes.channel._native.arrived",
        "resmon.capture.gradients.measured._native.gradients",
        "resmon.capture.loop.drafts._native.blocks",
    ],
)
@pytest.mark.parametrize("when", [0, 3])
def test_a_fault_inside_a_probe_never_reaches_the_loop(
    victim: str, when: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> float:
        raise RuntimeError("injected")

    torch.manual_seed(3)
    model = models.mixed()
    watched = Watched(model)
    for i in range(6):
        if i == when:
            monkeypatch.setattr(victim, broken)
        watched.step(models.images(4, seed=i))
    assert watched.sink.steps[-1].errors_total >= 1
    assert caplog.text.count("training is not affected") == 1


def test_modules_that_are_replaced_or_added_are_observed_from_their_first_pass() -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.Alpha(8), models.TwoAdds(8), models.Alpha(8))
    watched = Watched(model)
    names = ["1", "2.attn", "2.mlp", "3"]
    for i in range(8):
        if i == 3:  # other parameters under the same names
            model[1] = models.Alpha(8)
            watched.optimizer.add_param_group({"params": model[1].parameters()})
        if i == 5:
            model.append(models.Alpha(8))
            watched.optimizer.add_param_group({"params": model[4].parameters()})
            names.append("4")
        nn.Sequential(nn.Linear(2, 2))  # of no concern to us
        models.kept(model)
        record = watched.step(torch.randn(4, 8))
        assert record is not None
        assert watched.sink.names[-1] == names
        assert_operands(record, models.kept(model))
        for j, name in enumerate(names):
            gradients = [p.grad for p in model.get_submodule(name.split(".")[0]).parameters() if p.grad is not None]
            if "." not in name:
                assert record.blocks[GRADIENT, j] == pytest.approx(sum(map(square, gradients)), rel=1e-5)
        assert record.blocks_present[SPINE].all()
    listeners = len(REGISTRATIONS._listeners)
    watched.session.detach()
    assert len(REGISTRATIONS._listeners) == listeners - 1
    for other in REGISTRATIONS._listeners:  # of other tests' sessions
        REGISTRATIONS.leave(other)
    assert not torch.nn.modules.module._global_module_registration_hooks


@pytest.mark.parametrize("how", ["assigned", "set"])
def test_parameters_that_are_replaced_are_read_where_they_are_now(how: str, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.Alpha(8), models.Alpha(8))
    watched = Watched(model)
    for i in range(6):
        if i == 3:
            if how == "assigned":
                model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
            else:
                for module in model.modules():
                    for name, parameter in list(module._parameters.items()):
                        if parameter is not None:
                            setattr(module, name, nn.Parameter(parameter.detach().clone()))
            watched.optimizer.param_groups[0]["params"] = list(model.parameters())
        record = watched.step(torch.randn(4, 8))
        assert record is not None
        for j in (0, 1):
            of_block = [square(p.grad) for p in model[j + 1].parameters() if p.grad is not None]
            assert record.blocks[GRADIENT, j] == pytest.approx(sum(of_block), rel=1e-5), i
    assert not caplog.text
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    watched.step(torch.randn(4, 8))
    assert "owns none of the model's parameters any more" in caplog.text


def test_parameters_that_get_other_names_stay_their_blocks() -> None:
    """Weights are pruned, trained behind their masks, and made plain again."""
    model = nn.Sequential(nn.Linear(8, 8), models.Alpha(8), models.Alpha(8))
    watched = Watched(model)
    for i in range(9):
        for block in (model[1], model[2]):
            if i in (3, 4):
                prune.l1_unstructured(block.fc, "weight", 0.3)
            if i == 6:
                prune.remove(block.fc, "weight")
        record = watched.step(torch.randn(4, 8))
        assert record is not None
        assert watched.sink.names[-1] == ["1", "2"]
        assert watched.session.sites[0].parameters == (f"1.fc.weight{'_orig' if 3 <= i < 6 else ''}", "1.fc.bias")
        for j in (0, 1):
            of_block = [square(p.grad) for p in model[j + 1].parameters() if p.grad is not None]
            assert record.blocks[GRADIENT, j] == pytest.approx(sum(of_block), rel=1e-5), i


class Adapted(nn.Module):
    """A frozen projection with a low-rank adapter beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.up(self.down(x))
        return y


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)  # type: ignore[no-any-return]


class Mixture(nn.Module):
    """Experts of which only those run that tokens are sent to, here always to `chosen`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(4))
        self.chosen = [0]

    def forward(self, x: Tensor) -> Tensor:
        sent, weights = torch.arange(len(x)) % len(self.chosen), self.gate(x).softmax(-1)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.chosen):
            (rows,) = torch.where(sent == i)
            y = y.index_add(0, rows, self.experts[expert](x[rows]) * weights[rows, expert, None])
        return y


class MixtureBlock(models.Kept):
    def __init__(self, width: int, functional: bool) -> None:
        super().__init__()
        self.norm, self.mixture = nn.LayerNorm(width), Mixture(width)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        branch = self.mixture(self.norm(x))
        branch = branch * 0.5 if self.functional else branch
        self.keep(x, branch)
        return x + branch


@pytest.mark.parametrize("functional", [False, True])
def test_a_mixture_whose_experts_take_turns_is_one_block(functional: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), MixtureBlock(8, functional), MixtureBlock(8, functional))
    watched = Watched(model)
    for i, chosen in enumerate(([0, 1], [2], [1, 0], [0, 2], [3, 1], [2], [0, 1, 2, 3])):
        for block in (model[1], model[2]):
            block.mixture.chosen = chosen
        record = watched.step(torch.randn(8, 8))
        assert record is not None
        assert watched.sink.names[-1] == ["1", "2"], i
        assert_operands(record, models.kept(model))
        for j in (0, 1):
            of_block = [square(p.grad) for p in model[j + 1].parameters() if p.grad is not None]
            assert record.blocks[GRADIENT, j] == pytest.approx(sum(of_block), rel=1e-5), i
    assert all(len(site.parameters) == 2 + 2 + 4 * 2 for site in watched.session.sites)


class Summing(MixtureBlock):
    """A mixture of which each expert's output is added, in the block itself, so that the number of additions is never the same."""

    def forward(self, x: Tensor) -> Tensor:
        h, branch = self.norm(x), torch.zeros_like(x)
        for expert in self.mixture.chosen:
            branch = branch + self.mixture.experts[expert](h)
        branch = branch * 0.5
        self.keep(x, branch)
        return self.add(x, branch) if self.functional else x + branch

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        return self.sum(x, branch)  # type: ignore[no-any-return]


class Sum(nn.Module):
    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch


def test_a_block_that_adds_otherwise_in_every_pass_is_told_and_what_helps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_model, "_TRACES", 3)
    for helped in (False, True):
        model = nn.Sequential(nn.Linear(8, 8), Summing(8, functional=helped))
        model[1].sum = Sum()
        watched = Watched(model)
        there = []
        for i in range(12):
            model[1].mixture.chosen = [[0], [1, 2], [0, 1, 2, 3]][i % 3]
            record = watched.step(torch.randn(4, 8))
            assert record is not None
            operands = models.kept(model)
            there.append(bool(record.blocks_present[:3].all()))
            if there[-1]:
                assert_operands(record, operands)
        told = "still takes ways that none of them took" in caplog.text
        assert (all(there), told) == ((True, False) if helped else (False, True))
        caplog.clear()


class Recycling(nn.Module):
    """Feeds its blocks with what they gave without gradients, `times` as often as they run with them."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        block = models.FunctionalDropout if functional else models.TwoAdds
        self.blocks = nn.Sequential(nn.Linear(16, 16), block(16), block(16))
        self.head = nn.Linear(16, 4)
        self.times = 0

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for _ in range(self.times):
                x = torch.tanh(self.blocks(x))
        models.kept(self)
        y: Tensor = self.head(self.blocks(x))
        return y


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("times", [(2, 2, 2, 2), (0, 1, 3, 0, 2, 1), (1, 0, 3)])
def test_of_a_pass_that_is_fed_with_its_own_output_only_the_run_with_gradients_counts(
    times: Sequence[int], functional: bool
) -> None:
    watched = Watched(Recycling(functional))
    names = ["blocks.1", "blocks.2"] if functional else [f"blocks.{i}.{part}" for i in (1, 2) for part in ("attn", "mlp")]
    for often in times:
        watched.model.times = often
        record = watched.step(torch.randn(6, 16))
        assert record is not None
        assert watched.sink.names[-1] == names
        assert_operands(record, models.kept(watched.model))
        assert record.blocks_present[OUTPUT_GRADIENT].all()
    assert record.errors_total == 0


def test_a_block_keeps_its_name_while_adapters_come_and_are_merged() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Block(8), Block(8))
    watched = Watched(model)
    for i in range(9):
        for block in (model[1], model[2]):
            if i == 3:
                block.branch[2] = Adapted(block.branch[2])
            if i == 6:
                adapted = block.branch[2]
                adapted.base.weight.data += adapted.up.weight.data @ adapted.down.weight.data
                block.branch[2] = adapted.base.requires_grad_(True)
        if i in (3, 6):
            watched.optimizer.param_groups[0]["params"] = [p for p in model.parameters() if p.requires_grad]
        record = watched.step(torch.randn(4, 8))
        assert record is not None
        assert watched.sink.names[-1] == ["1", "2"], i
        assert record.blocks_present[SPINE].all()
        for j in (0, 1):
            of_block = [square(p.grad) for p in model[j + 1].parameters() if p.grad is not None and p.requires_grad]
            assert record.blocks[GRADIENT, j] == pytest.approx(sum(of_block), rel=1e-5), i


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_a_pass_that_failed_and_is_done_again_with_less_does_not_count(error: type[BaseException], compiled: bool) -> None:
    """In the traced step, in one after it, and while another exception is being handled."""

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 8:
                raise error("too large")
            return x

    model = nn.Sequential(nn.Linear(8, 8), Block(8), Fails(), Block(8))
    if compiled:
        model[1].compile(backend="aot_eager")
    watched, reference = Watched(model), Watched(copy.deepcopy(model))

    def steps() -> None:
        for i in range(5):
            batch = torch.randn(8, 8, generator=torch.Generator().manual_seed(i))
            if i in (0, 2, 3):
                with pytest.raises(error):
                    watched.step(batch)
            record, expected = watched.step(batch[:4]), reference.step(batch[:4])
            assert record is not None and expected is not None
            assert record.step == i and watched.sink.names[-1] == ["1", "3"]
            assert record.blocks[SPINE] == pytest.approx(expected.blocks[SPINE], rel=1e-5), i
            assert record.run_value("samples") == expected.run_value("samples") == 4

    try:
        raise ValueError
    except ValueError:
        steps()


def test_an_optimizer_that_is_exchanged_is_told_of_with_the_next_pass(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.Alpha(8))
    other = nn.Linear(8, 8)
    elsewhere = torch.optim.SGD(other.parameters(), lr=0.1)
    hooks = len(_global_optimizer_post_hooks)
    watched = Watched(model)
    for _ in range(3):
        other(torch.randn(4, 8)).sum().backward()
        elsewhere.step()  # of no concern to us
        watched.step(torch.randn(4, 8))
    # One that takes part in a step, of which the watched one makes the end, is none that was exchanged.
    decay = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(3):
        model(torch.randn(4, 8)).square().mean().backward()
        decay.step()
        watched.optimizer.step()
    assert not caplog.text
    new = torch.optim.Adam(model.parameters())
    for told in (0, 1, 1):
        new.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        assert caplog.text.count("that was not given to watch, Adam, has stepped parameters of the watched SGD") == told
        new.step()
    watched.session.detach()
    assert len(_global_optimizer_post_hooks) == hooks


def test_a_wrapper_that_checkpoints_is_no_part_of_a_name() -> None:
    bare = nn.Sequential(nn.Linear(8, 8), Block(8), models.Alpha(8))
    model = copy.deepcopy(bare)
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, (Block, models.Alpha)))
    with_it, without = Watched(model), Watched(bare)
    for i in range(3):
        batch = torch.randn(4, 8, generator=torch.Generator().manual_seed(i))
        record, reference = with_it.step(batch), without.step(batch)
        assert record is not None and reference is not None
        assert with_it.sink.names[-1] == without.sink.names[-1] == ["1", "2"]
        assert record.blocks[SPINE] == pytest.approx(reference.blocks[SPINE], rel=1e-5)


def test_activations_that_are_offloaded_to_the_cpu() -> None:
    model = models.mixed()
    watched = Watched(model)
    for i in range(3):
        models.kept(model)
        watched.optimizer.zero_grad()
        with torch.autograd.graph.save_on_cpu():
            loss = model(models.images(4, seed=i)).square().mean()
        loss.backward()
        watched.optimizer.step()
        record = watched.sink.steps[-1]
        assert_operands(record, models.kept(model))
        assert record.blocks_present[[GRADIENT, OUTPUT_GRADIENT]].all()


def test_exporting_a_watched_model_gives_the_bare_model_s_graph_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(Plain(8), Plain(8)))
    bare = torch.export.export(copy.deepcopy(model), (torch.randn(4, 8),))
    watched = Watched(model)
    watched.step(torch.randn(4, 8))
    exported = torch.export.export(model, (torch.randn(4, 8),))
    assert [node.target for node in exported.graph.nodes] == [node.target for node in bare.graph.nodes]
    x = torch.randn(4, 8)
    assert torch.equal(exported.module()(x), model(x))
    record = watched.step(torch.randn(4, 8))
    assert record is not None
    assert record.errors_total == 0 and record.blocks_present[SPINE].all()


def test_a_watched_model_is_exported_without_gradients() -> None:
    """The exporter of torch 2.6 takes one graph, and would have had one of our hooks as a second."""

    class Whole(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for module in self:
                x = module(x)
            return x

    model = Whole(nn.Linear(8, 8), Plain(8))
    watched = Watched(model)
    watched.step(torch.randn(4, 8))
    x = torch.randn(4, 8)
    with torch.no_grad():
        exported = torch.export.export(model, (x,))
    assert torch.equal(exported.module()(x), model(x))
    record = watched.step(x)
    assert record is not None
    assert record.errors_total == 0 and record.blocks_present[SPINE].all()


class Plain(nn.Module):
    """A block that keeps nothing, so that it can be exported."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


def test_a_model_that_moves_away_is_told_once_and_trains_on(caplog: pytest.LogCaptureFixture) -> None:
    """The meta device stands for any other than the CPU: what is there has an address that must not be read."""
    watched = Watched(models.mixed())
    watched.step(models.images(4))
    watched.model.to("meta")
    for _ in range(3):
        record = watched.step(models.images(4).to("meta"))
    assert record is not None
    assert record.errors_total == 0 and record.steps_total == 4
    assert not record.blocks_present[SPINE].any()
    assert caplog.text.count("tensors are on meta now") == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_changes_its_dtype_is_observed_on(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(16, 16), models.TwoAdds(16), models.Alpha(16))
    watched = Watched(model)
    watched.step(torch.randn(32, 16))
    model.to(dtype)
    models.kept(model)
    for _ in range(2):
        record = watched.step(torch.randn(32, 16, dtype=dtype))
        assert record is not None
        for j, (skip, branch) in enumerate(models.kept(model)):
            assert record.blocks[:2, j] == pytest.approx([square(skip), square(branch)], rel=1e-5)
        assert record.blocks_present[SPINE].all()


@pytest.mark.parametrize("moment", ["sites", "step", "scalars"])
def test_a_full_disk_stops_recording_and_not_training(moment: str, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Memory):
        pass

    def full(self: Full, *_: object) -> None:
        raise OSError(28, "No space left on device")

    setattr(Full, moment, full)
    watched = Watched(models.mixed())
    watched.session._outbox.open(Full())
    for i in range(4):
        watched.step(models.images(4, seed=i))
        watched.session.log({"loss": 1.0})
    assert caplog.text.count("No space left on device") == 1


def test_what_is_logged_finds_its_step(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.Alpha(8))
    watched = Watched(model, start_step=100)
    for i in range(3):
        loss = model(torch.randn(4, 8)).square().mean()
        watched.session.log({"before": i})
        loss.backward()
        watched.optimizer.step()
        watched.session.log({"loss": loss, "whole": i, "flag": True, "array": np.float32(2.5)})
    assert [(r.step, set(r.values)) for r in watched.sink.logged] == [
        (step, names) for step in (100, 101, 102) for names in ({"before"}, {"loss", "whole", "flag", "array"})
    ]
    assert all(isinstance(v, float) for r in watched.sink.logged for v in r.values.values())
    watched.session.log({"text": "much", "vector": torch.zeros(3), "nothing": None, "good": 1})
    assert watched.sink.logged[-1].values == {"good": 1.0}
    for name in ("text", "vector", "nothing"):
        assert f"log({name}=...)" in caplog.text


def test_a_value_that_raises_costs_itself_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Sealed:
        def __float__(self) -> float:
            raise RuntimeError("not computed yet")

    watched = Watched(nn.Sequential(nn.Linear(8, 8), models.Alpha(8)))
    for _ in range(3):
        record = watched.step(torch.randn(4, 8))
        watched.session.log({"sealed": Sealed(), "shape": torch.empty((), device="meta"), "wave": np.complex64(1 + 2j), "good": 1})
    assert record is not None and record.errors_total == 0 and record.blocks_present[SPINE].all()
    assert watched.sink.logged[-1].values == {"good": 1.0}
    for name in ("sealed", "shape", "wave"):
        assert caplog.text.count(f"log({name}=...)") == 1


def test_steps_without_an_optimizer() -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.Alpha(8))
    sink = Memory()
    session = Session({"": model}, None)
    loops.watching.append(session)
    session.attach(sink)
    for _ in range(2):
        model(torch.randn(4, 8)).sum().backward()
        session.step()
    assert [r.step for r in sink.steps] == [0, 1]
    assert sink.steps[1].blocks_present[SPINE].all()


def test_an_optimizer_with_a_closure() -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.Alpha(8))
    sink = Memory()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    session = Session({"": model}, optimizer)
    loops.watching.append(session)
    session.attach(sink)
    batch = torch.randn(4, 8)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert [r.step for r in sink.steps] == [0, 1]
    assert all(r.blocks_present[SPINE].all() for r in sink.steps)


def test_several_models() -> None:
    generator, critic = nn.Sequential(nn.Linear(8, 8), models.Alpha(8)), nn.Sequential(models.TwoAdds(8), nn.Linear(8, 1))
    sink = Memory()
    optimizer = torch.optim.SGD([*generator.parameters(), *critic.parameters()], lr=0.1)
    session = Session({"g": generator, "c": critic}, optimizer)
    loops.watching.append(session)
    session.attach(sink)
    for _ in range(3):
        critic(generator(torch.randn(4, 8))).mean().backward()
        optimizer.step()
    assert [(s.model, s.name) for s in sink.now] == [("g", "1"), ("c", "0.attn"), ("c", "0.mlp")]
    assert_operands(sink.steps[-1], models.kept(generator)[-1:] + models.kept(critic)[-2:])
    assert sink.steps[-1].blocks_present[SPINE].all()


def test_an_unfinished_step_is_written_as_such() -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.Alpha(8))
    watched = Watched(model)
    watched.step(torch.randn(4, 8))
    model(torch.randn(4, 8))
    watched.session.finish()
    assert [(r.step, r.complete, r.steps_total) for r in watched.sink.steps] == [(0, True, 1), (1, False, 1)]
    assert watched.sink.steps[1].blocks_present[:3].all()
    assert not watched.sink.steps[1].blocks_present[[GRADIENT, OUTPUT_GRADIENT]].any()
    watched.session.finish()
    assert len(watched.sink.steps) == 2


def test_durations_are_counted() -> None:
    watched = Watched(nn.Sequential(nn.Linear(8, 8), models.Alpha(8)))
    for _ in range(5):
        record = watched.step(torch.randn(4, 8))
    assert record is not None
    durations = [r.run_value("duration") or 0 for r in watched.sink.steps]
    assert record.duration_total == pytest.approx(sum(durations))
    expected = np.bincount(np.searchsorted(DURATION_EDGES, durations), minlength=len(DURATION_EDGES) + 1)
    assert record.duration_buckets.tolist() == expected.tolist()
    assert all(0 < (r.run_value("monitor_seconds") or 0) <= (r.run_value("duration") or 0) + 0.01 for r in watched.sink.steps)


def test_a_forked_child_writes_nothing() -> None:
    watched = Watched(nn.Sequential(nn.Linear(8, 8), models.Alpha(8)))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def child() -> None:
        with torch.no_grad():
            pass
        out = watched.model[0](torch.zeros(1, 8))
        watched.model.forward(out)
        watched.model(torch.zeros(1, 8))
        watched.optimizer.step()
        queue.put(len(watched.sink.steps))

    process = context.Process(target=child, daemon=True)
    process.start()
    assert queue.get(timeout=60) == 0
    process.join(60)
    watched.session.detach()  # it has had no step, and until then what others compile runs eagerly


@pytest.mark.parametrize(
    ("model", "optimizer", "says"),
    [
        ("text", None, "not a torch.nn.Module"),
        (torch.jit.script(nn.Linear(2, 2)), None, "TorchScript"),
        (nn.Linear(2, 2), "sgd", "not a torch.optim.Optimizer"),
        (nn.Linear(2, 2), torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1), "owns none of the model's parameters"),
    ],
)
def test_arguments_that_cannot_be_used(model: object, optimizer: object, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Session({"": model}, optimizer)  # type: ignore[dict-item, arg-type]


def test_no_model_at_all() -> None:
    with pytest.raises(ConfigurationError, match="no model"):
        Session({}, None)


def test_functional_dropout_in_a_published_model() -> None:
    """OPT applies nn.functional.dropout to both branches; its values must still be the operands'."""
    transformers = pytest.importorskip("transformers")
    config = transformers.OPTConfig(
        vocab_size=64, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16, dropout=0.3
    )
    model = transformers.OPTModel(config)
    seen: models.Operands = []
    original = F.dropout

    inside = []

    def dropout(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        inside.append(1)  # under a TorchFunctionMode, the original calls itself by the name that is patched here
        y = original(x, *args, **kwargs)  # type: ignore[arg-type]
        inside.pop()
        if not inside:
            seen.append((x.detach(), y.detach().clone()))
        return y

    sink = Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = Session({"": model}, optimizer)
    loops.watching.append(session)
    session.attach(sink)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "dropout", dropout)
        for _ in range(2):
            seen.clear()
            model(torch.randint(0, 64, (2, 8))).last_hidden_state.sum().backward()
            optimizer.step()
            branches = [y for _, y in seen if y.shape[-1] == 16]
            assert sink.steps[-1].blocks[BRANCH] == pytest.approx([square(y) for y in branches], rel=1e-5)
    assert {site.observed for site in sink.now} == {"mode"}
