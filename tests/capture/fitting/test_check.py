"""`check`: what is wrong with a model is found before it trains, and nothing in a healthy one."""

from __future__ import annotations

import gc
import importlib.util
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from resmon.capture.fitting.check import Fault, Report, check
from resmon.capture.host.memory import main_memory
from resmon.errors import ConfigurationError
from tests.zoo import HANDWRITTEN, attention, convolutional
from tests.zoo.case import Case


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def checked(monkeypatch: pytest.MonkeyPatch, factory: Callable[[], Any], *inputs: str, **options: Any) -> Report:
    """Check a factory as if it stood in a module of the user's."""
    module = types.ModuleType("users_models")
    module.make = factory  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_models", module)
    return check("users_models:make", inputs, **options)


def errors(report: Report) -> list[Fault]:
    return [fault for fault in report.faults if fault.level == "error"]


class Block(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y


def mlp(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


# -- shapes ------------------------------------------------------------------------------------------------------------


def test_every_misfit_is_found_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> nn.Module:
        model: Any = convolutional.resnet_bottleneck()
        model.layer1[1].conv2 = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        model.layer2[0].downsample = None
        return model

    report = checked(monkeypatch, make, "2,3,16,16")
    assert [(fault.kind, fault.block, fault.fixes[0]) for fault in errors(report)] == [
        ("shapes", "layer1.1", "layer1.1.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)"),
        ("shapes", "layer2.0", "nn.Conv2d(16, 32, 1, stride=2, bias=False)"),
    ]
    assert [site.name for site in report.sites] == ["layer1.0", "layer1.1", "layer2.0"]
    assert not report.healthy


class Shrinking(nn.Module):
    """A block whose projection may forget the stride that its branch has."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, forgets: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.last = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.projection = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, 1 if forgets else stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.projection(x) + self.last(self.first(x).relu())
        return y


def test_of_two_changes_that_fit_the_one_in_the_manner_of_the_other_blocks_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> nn.Module:
        return nn.Sequential(Shrinking(8, 8, 1), Shrinking(8, 16, 2, forgets=True), Shrinking(16, 16, 1), Shrinking(16, 32, 2))

    report = checked(monkeypatch, make, "2,8,16,16")
    first, second = report.faults[0].fixes[:2]
    assert first == "1.projection = nn.Conv2d(8, 16, 1, stride=2, bias=False)"
    assert second == "1.first = nn.Conv2d(8, 16, 3, padding=1, bias=False)"
    assert [fault.kind for fault in report.faults] == ["shapes"]
    assert "gradients" in dict(report.skipped)


def test_a_misfit_before_a_lazy_module_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose parameters have no size before the first pass."""
    parts = lambda: (Block(nn.Conv2d(4, 8, 3, stride=2, padding=1)), nn.Flatten(), nn.LazyLinear(3))  # noqa: E731
    report = checked(monkeypatch, lambda: nn.Sequential(*parts()), "2,4,8,8", batches=())
    (fault,) = errors(report)
    assert (fault.kind, fault.block) == ("shapes", "0")
    assert "nn.Conv2d(4, 8, 1, stride=2, bias=False)" in fault.fixes


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x).view(4, 3, 2, 6).flatten(1, 2)
        return x + torch.relu(y)


def test_a_batch_size_that_is_written_down_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    report = checked(monkeypatch, lambda: nn.Sequential(nn.Linear(6, 6), FixedBatch()), "4,6,6")
    (fault,) = errors(report)
    assert (fault.kind, fault.block, fault.module) == ("batch sizes", "1", "1")
    assert fault.says.startswith("fits a batch of 4, not of 1: ")
    assert fault.says.endswith("(nor of 2, 3)")
    assert report.batches == (4, 1, 2, 3)
    assert checked(monkeypatch, lambda: nn.Sequential(nn.Linear(6, 6), FixedBatch()), "4,6,6", batches=()).healthy


def test_a_batch_of_one_under_batch_norm_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    report = checked(monkeypatch, lambda: Block(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())), "3,4")
    assert [(fault.kind, fault.level) for fault in report.faults] == [("batch sizes", "warning")]
    assert report.healthy


def test_inputs_that_are_wrong_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    (fault,) = errors(checked(monkeypatch, convolutional.resnet_basic, "2,16,16,3"))
    assert "permute(0, 3, 1, 2)" in fault.do


def test_without_inputs_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="--input"):
        checked(monkeypatch, convolutional.resnet_basic)


# -- broadcasts --------------------------------------------------------------------------------------------------------


class OverContext(nn.Module):
    """A branch that is made from the mean of all positions, as in a global context."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = mlp()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x.mean(1, keepdim=True))
        return y


class LosesPositions(OverContext):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x.mean(1, keepdim=True) + self.branch(x)
        return y


class Outer(OverContext):
    """Where [batch, width] was meant, [batch, batch, width] comes out."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)[:, None]
        return y


@pytest.mark.parametrize(
    ("kind", "shape", "level", "says"),
    [
        (OverContext, "2,5,8", "warning", "the branch is spread over axis 1"),
        (LosesPositions, "2,5,8", "warning", "the skip is spread over axis 1"),
        (Outer, "5,8", "error", "their sum 5×5×8 has the shape of neither"),
    ],
)
def test_a_sum_that_spreads_an_operand_is_told(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], shape: str, level: str, says: str
) -> None:
    report = checked(monkeypatch, lambda: nn.Sequential(nn.Linear(8, 8), kind()), shape)
    (fault,) = [fault for fault in report.faults if fault.kind == "broadcasts"]
    assert (fault.level, fault.module) == (level, "1")
    assert fault.says.endswith(says)


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_a_block_that_gets_no_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> nn.Module:
        frozen = Block(mlp())
        frozen.requires_grad_(False)
        unused: Any = nn.Sequential(nn.Linear(8, 8), Block(mlp()), frozen, Block(mlp()))
        unused[3].spare = nn.Linear(3, 3)
        return nn.Sequential(unused, NoGrad(), nn.Linear(8, 2))

    report = checked(monkeypatch, make, "2,8")
    by_level = {(fault.level, fault.block) for fault in report.faults if fault.kind == "gradients"}
    assert ("error", "0.1") in by_level
    assert ("note", "0.2") in by_level
    assert ("error", "0.3") in by_level
    (spare,) = [fault for fault in report.faults if "0.3.spare.weight" in fault.says]
    assert spare.level == "warning" and "not called" in spare.says


class NoGrad(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def test_a_model_without_any_gradient_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    (fault,) = errors(checked(monkeypatch, lambda: nn.Sequential(Block(mlp()), NoGrad()), "2,8"))
    assert fault.kind == "gradients"


# -- weights -----------------------------------------------------------------------------------------------------------


def spoiled(how: Callable[[Any], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(8, 8), Block(mlp()), Block(mlp()), nn.Linear(8, 4))
        with torch.no_grad():
            how(model)
        return model

    return make


@pytest.mark.parametrize(
    ("how", "found"),
    [
        (lambda m: m[1].branch[0].weight.fill_(float("nan")), [("error", "1", "1.branch.0")]),
        (lambda m: m[2].branch[2].bias[0].fill_(float("inf")), [("error", "2", "2.branch.2")]),
        (lambda m: m[2].branch[0].weight.fill_(0.5), [("error", "2", "2.branch.0")]),
        (lambda m: m[1].branch[0].weight.zero_(), [("warning", "1", "1.branch.0")]),
        (lambda m: m[2].branch[2].weight.normal_(), []),
        (lambda m: m[2].branch[2].weight.normal_(std=10), [("error", "2", "2.branch.2")]),
        (lambda m: m[1].branch[2].weight.zero_(), []),  # the block begins as the identity
        (lambda m: m[3].weight.zero_(), []),  # and the model as a constant
        (lambda m: None, []),
    ],
)
def test_initial_weights(monkeypatch: pytest.MonkeyPatch, how: Callable[[Any], object], found: list[tuple[str, str, str]]) -> None:
    report = checked(monkeypatch, spoiled(how), "2,8")
    assert [(fault.level, fault.block, fault.module) for fault in report.faults if fault.kind == "initialisation"] == found


class Adapted(nn.Module):
    """A gate and an adapter that begin at zero, beside what the branch computes anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.down, self.up, self.gate = (nn.Linear(8, 8) for _ in range(5))
        for zeros in (self.up, self.gate):
            nn.init.zeros_(zeros.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) + self.up(self.down(x))
        return x + self.second(torch.relu(h)) * (1 + self.gate(x))


def test_adapters_and_gates_may_begin_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not checked(monkeypatch, lambda: nn.Sequential(nn.Linear(8, 8), Adapted(), nn.Linear(8, 4)), "2,8").faults


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet_basic", "nanogpt"])
def test_memory_is_what_a_real_pass_takes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case = next(case for case in convolutional.CASES + attention.CASES if case.name == name)
    report = checked(monkeypatch, lambda: (case.build(), case.inputs(), case.keywords()))
    assert report.requisites is not None
    whole = report.requisites.whole
    model = case.build()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    assert (whole.parameters, whole.gradients, whole.optimizer) == (size, size, 2 * size)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*case.inputs(), **case.keywords())
    del output
    assert whole.activations == sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    blocks = {share.name: share for share in report.requisites.shares}
    assert set(blocks) == {site.name for site in report.sites} | {""}
    assert all(blocks[site.name].activations > 0 for site in report.sites)
    for site in report.sites:
        parameters = dict(model.named_parameters())
        assert blocks[site.name].parameters == sum(parameters[name].numel() * 4 for name in site.parameters)


def huge() -> nn.Module:
    """A hundred gigabytes of weights."""
    return nn.Sequential(
        *(Block(nn.Sequential(nn.Linear(25_000, 25_000), nn.GELU(), nn.Linear(25_000, 25_000))) for _ in range(20))
    )


def test_a_model_of_a_hundred_gigabytes_is_checked_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    before = main_memory()["memory_peak"]
    report = checked(monkeypatch, huge, "8,25000")
    after = main_memory()["memory_peak"]
    assert report.healthy
    assert report.requisites is not None and report.requisites.whole.parameters == 20 * 2 * (25_000**2 + 25_000) * 4
    assert len(report.sites) == 20
    assert "do not fit" in dict(report.skipped)["initialisation"]
    assert before is not None and after is not None and after - before < 500e6


# -- no trace ----------------------------------------------------------------------------------------------------------


def test_random_and_global_state_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def states() -> tuple[Any, ...]:
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # type: ignore[index]
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch._C._len_torch_function_stack(),
            torch._C._len_torch_dispatch_stack(),
        )

    before = states()
    checked(monkeypatch, spoiled(lambda m: random.random() + np.random.rand()), "2,8")
    assert states() == before
    gc.collect()


# -- healthy models ----------------------------------------------------------------------------------------------------

# Their first dimension is no batch (one sequence, the nodes of a graph), or they really fit one batch size only.
NO_BATCH = {"positions_every_layer", "graph_network"} | {
    f"not residual: {name}"
    for name in ("through a number", "shape of another, expanded", "type of another", "attention scores", "biases by segment")
}


def some_quick(cases: Sequence[Case], every: int) -> list[Any]:
    """All of them, of which one in so many is no slow test."""
    return [pytest.param(case, id=case.name, marks=pytest.mark.slow if i % every else ()) for i, case in enumerate(cases)]


@pytest.mark.parametrize("case", some_quick(HANDWRITTEN, 4))
def test_nothing_is_wrong_with_the_zoo(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    options = {"batches": ()} if case.name in NO_BATCH else {}
    report = checked(monkeypatch, lambda: (case.build(), case.inputs(), case.keywords()), **options)
    assert errors(report) == []
    assert [site.name for site in report.sites] == [site[0] for site in case.sites]


def hugging_face() -> tuple[Case, ...]:
    if importlib.util.find_spec("transformers") is None:
        return ()
    from tests.zoo import hugging

    wanted = set("gpt2_with_loss llama resnet_bottleneck vit bert t5 mixtral convnext swin whisper mamba detr xlm".split())
    return tuple(case for case in hugging.CASES if case.name in wanted)


@pytest.mark.parametrize("case", some_quick(hugging_face(), 5))
def test_nothing_is_wrong_with_transformers(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    report = checked(monkeypatch, lambda: (case.build(), case.inputs(), case.keywords()))
    assert errors(report) == []
    assert [site.name for site in report.sites] == [site[0] for site in case.sites]
