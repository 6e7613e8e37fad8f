"""What is said of shapes that do not fit: the block, the operands, and the very layer that makes the model run again."""

from __future__ import annotations

import gc
import importlib.util
import random
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import resmon
from resmon.capture.discovery.sites import discover
from resmon.capture.fitting.fixes import _chain_fixes, layer_of
from resmon.capture.forensics.diagnoses import diagnose
from resmon.capture.forensics.failures import Scene
from resmon.flight import incidents
from resmon.records import Incident, ResidualSite
from tests.zoo import attention, convolutional
from tests.zoo.case import Case


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def said(model: nn.Module, *args: Any, sites: tuple[ResidualSite, ...] = (), **kwargs: Any) -> Incident:
    """What is said when this pass fails."""
    with pytest.raises(Exception) as caught:  # noqa: PT011, whichever it is
        model(*args, **kwargs)
    return diagnose(caught.value, Scene({"": model}, sites, 7))


def put(model: nn.Module, path: str, made: nn.Module | None) -> None:
    """Put a module in the place of the one at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, made)


def apply(model: nn.Module, code: str) -> None:
    """Do what a fix says, "path = nn.Layer(...)", several behind each other with semicolons, as a user would who pastes it."""
    for statement in code.split("; "):
        path, _, layer = statement.partition(" = ")
        from transformers.pytorch_utils import Conv1D

        put(model, path, eval(layer, {"nn": nn, "Conv1D": Conv1D}))  # noqa: S307, our own code, which is what is tested


def images(channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(2, channels, size, size)


def tokens(length: int = 6) -> Tensor:
    return torch.randint(0, 10, (2, length))


# -- the residual addition ---------------------------------------------------------------------------------------------


def test_a_missing_projection_is_written_down() -> None:
    model: Any = convolutional.resnet_basic()
    model.layer2[0].downsample = None
    found = said(model, images())
    assert (found.kind, found.block, found.module, found.operation) == ("shape_mismatch", "layer2.0", "layer2.0", "add_")
    assert found.id == "shape_mismatch-7"
    assert found.runbook == "shape-mismatch"
    assert found.line.endswith("out += identity")
    assert [(each["role"], each["shape"], each["module"]) for each in found.evidence["operands"]] == [
        ("branch", [2, 16, 4, 4], "layer2.0.bn2"),
        ("skip", [2, 8, 8, 8], "layer1.1"),
    ]
    best = found.evidence["fixes"][0]
    assert best == {"code": "nn.Conv2d(8, 16, 1, stride=2, bias=False)", "added": True, "tried": True}
    assert best["code"] in found.advice
    model.layer2[0].downsample = eval(best["code"])  # noqa: S307, likewise
    model(images())


def test_a_projection_without_a_norm_that_has_the_wrong_width_is_corrected() -> None:
    model: Any = convolutional.resnet_basic()
    model.layer2[0].downsample = nn.Conv2d(8, 12, 1, stride=2, bias=False)
    found = said(model, images())
    assert (found.block, found.module) == ("layer2.0", "layer2.0")
    best = found.evidence["fixes"][0]
    assert best == {"code": "layer2.0.downsample = nn.Conv2d(8, 16, 1, stride=2, bias=False)", "added": False, "tried": True}
    apply(model, best["code"])
    model(images())


def test_of_a_projection_and_its_norm_the_one_is_wrong_after_which_the_sum_would_not_fit() -> None:
    model: Any = convolutional.resnet_basic()
    model.layer2[0].downsample[0] = nn.Conv2d(8, 12, 1, stride=2, bias=False)
    found = said(model, images())
    assert (found.block, found.module, found.operation) == ("layer2.0", "layer2.0.downsample.1", "batch_norm")
    assert found.evidence["fixes"][0]["code"] == "layer2.0.downsample.0 = nn.Conv2d(8, 16, 1, stride=2, bias=False)"
    model = convolutional.resnet_basic()
    model.layer2[0].downsample[1] = nn.BatchNorm2d(12)
    found = said(model, images())
    assert (found.block, found.module) == ("layer2.0", "layer2.0.downsample.1")
    assert found.evidence["fixes"][0]["code"] == "layer2.0.downsample.1 = nn.BatchNorm2d(16)"


def test_a_projection_with_the_wrong_stride_is_corrected() -> None:
    model: Any = convolutional.resnet_basic()
    model.layer2[0].downsample[0] = nn.Conv2d(8, 16, 1, bias=False)
    found = said(model, images())
    assert found.block == "layer2.0"
    best = found.evidence["fixes"][0]
    assert best["code"] == "layer2.0.downsample.0 = nn.Conv2d(8, 16, 1, stride=2, bias=False)"
    apply(model, best["code"])
    model(images())


def test_a_convolution_of_the_branch_that_lost_its_padding_is_corrected() -> None:
    model: Any = convolutional.resnet_basic()
    model.layer1[1].conv2 = nn.Conv2d(8, 8, 3, bias=False)
    found = said(model, images())
    assert found.block == "layer1.1"
    works = [fix["code"] for fix in found.evidence["fixes"] if fix["tried"]]
    assert "layer1.1.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)" in works
    apply(model, "layer1.1.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)")
    model(images())


def test_a_branch_whose_last_layer_has_the_wrong_width_is_corrected_and_not_the_stream() -> None:
    model: Any = attention.NanoGPT()
    wide = model.transformer.h[1].mlp.c_proj
    model.transformer.h[1].mlp.c_proj = nn.Linear(wide.in_features, 24)
    found = said(model, tokens())
    assert found.block == "transformer.h.1.mlp"
    best = found.evidence["fixes"][0]
    assert best["code"] == f"transformer.h.1.mlp.c_proj = nn.Linear({wide.in_features}, {wide.out_features})"
    apply(model, best["code"])
    model(tokens())


class Ends(nn.Module):
    """A block at the end, whose skip needs a projection in one, two or three dimensions, or of features."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(self.branch(x) + x)
        return y


@pytest.mark.parametrize(
    ("branch", "shape", "code"),
    [
        (nn.Conv1d(4, 6, 3, 2, 1), (2, 4, 9), "nn.Conv1d(4, 6, 1, stride=2, bias=False)"),
        (nn.Conv2d(64, 128, 3, 2, 1), (2, 64, 7, 7), "nn.Conv2d(64, 128, 1, stride=2, bias=False)"),
        (nn.Conv2d(4, 6, 3, (2, 1), 1), (2, 4, 8, 8), "nn.Conv2d(4, 6, 1, stride=(2, 1), bias=False)"),
        (nn.Conv3d(4, 6, 3, 1, 1), (2, 4, 4, 4, 4), "nn.Conv3d(4, 6, 1, bias=False)"),
        (nn.ConvTranspose2d(4, 2, 2, 2), (2, 4, 8, 8), "nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False)"),
        (nn.Sequential(nn.Linear(384, 8), nn.ReLU(), nn.Linear(8, 768)), (2, 5, 384), "nn.Linear(384, 768, bias=False)"),
        (nn.Linear(5, 6), (3, 5), "nn.Linear(5, 6, bias=False)"),
    ],
    ids=str,
)
def test_the_projection_suits_the_branch(branch: nn.Module, shape: tuple[int, ...], code: str) -> None:
    model = nn.Sequential(Ends(branch))
    x = torch.randn(shape)
    found = said(model, x)
    assert found.block == "0"
    assert found.evidence["fixes"][0] == {"code": code, "added": True, "tried": True}
    assert eval(code)(x).shape == branch(x).shape  # noqa: S307, likewise


def test_layers_written_down_are_made_again_the_same() -> None:
    layers = [
        nn.Linear(3, 4, bias=False),
        nn.Conv2d(4, 8, (1, 3), 2, (0, 1), groups=2, bias=False, padding_mode="circular"),
        nn.Conv1d(4, 8, 5, padding="same", dilation=2),
        nn.ConvTranspose3d(4, 8, 2, 2, output_padding=1),
        nn.BatchNorm2d(4, eps=1e-3, affine=False),
        nn.GroupNorm(2, 4),
        nn.LayerNorm((3, 3), bias=False),
        nn.LayerNorm(3, elementwise_affine=False),
        nn.RMSNorm(6),
    ]
    for layer in layers:
        written = layer_of(layer)
        assert written is not None
        assert repr(eval(written.code)) == repr(layer)  # noqa: S307, likewise
        assert layer_of(written.make()) == written


# -- inside of a branch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["producer", "consumer"])
def test_of_two_layers_the_one_unlike_its_siblings_is_wrong(side: str) -> None:
    model: Any = attention.NanoGPT()
    mlp = model.transformer.h[1].mlp
    name = "c_fc" if side == "producer" else "c_proj"
    right = getattr(mlp, name)
    setattr(mlp, name, nn.Linear(right.in_features, 24) if side == "producer" else nn.Linear(24, right.out_features))
    found = said(model, tokens())
    assert (found.block, found.module, found.operation) == ("transformer.h.1.mlp", "transformer.h.1.mlp.c_proj", "linear")
    best = found.evidence["fixes"][0]
    assert best["code"] == f"transformer.h.1.mlp.{name} = nn.Linear({right.in_features}, {right.out_features})"
    assert best["tried"]
    apply(model, best["code"])
    model(tokens())


def test_a_norm_of_another_width_is_corrected() -> None:
    model: Any = attention.NanoGPT()
    model.transformer.h[1].ln_2 = nn.LayerNorm(10)
    found = said(model, tokens())
    assert (found.block, found.operation) == ("transformer.h.1.mlp", "layer_norm")
    best = found.evidence["fixes"][0]["code"]
    apply(model, best)
    model(tokens())
    assert model.transformer.h[1].ln_2.normalized_shape == model.transformer.h[0].ln_2.normalized_shape


# -- the arguments -----------------------------------------------------------------------------------------------------


class Reshapes(nn.Module):
    """A block that has a batch size written down."""

    def __init__(self, batch: int = 4) -> None:
        super().__init__()
        self.batch = batch
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).reshape(self.batch, 3, 2, 6).flatten(1, 2)
        return x + torch.relu(y)


def test_a_reshape_with_a_batch_size_in_it_is_told() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Reshapes())
    found = said(model, torch.randn(2, 6, 6))
    assert (found.block, found.module, found.operation) == ("1", "1", "reshape")
    assert found.evidence["cause"] == "batch"
    assert "fits with a batch of 4, not of 2" in found.summary
    sites = tuple(discover(model, torch.randn(4, 6, 6)))
    found = said(model, torch.randn(2, 6, 6), sites=sites)
    assert "smaller than the 4 of the first" in found.summary
    assert "drop_last=True" in found.advice


def test_channels_last_images_are_told() -> None:
    found = said(convolutional.resnet_basic(), torch.randn(2, 16, 16, 3))
    assert found.evidence["cause"] == "axes"
    assert "permute(0, 3, 1, 2)" in found.advice


def test_a_batch_of_one_under_batch_norm_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    found = said(model, torch.randn(1, 4))
    assert found.evidence["cause"] == "batch"
    assert "drop_last=True" in found.advice


def test_images_of_another_size_than_the_head_was_built_for() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 5))
    found = said(model, images(size=40))
    assert found.evidence["cause"] == "size"
    assert "images of 32×32" in found.summary


def test_grey_images_for_a_model_of_coloured_ones() -> None:
    found = said(convolutional.resnet_basic(), images(1))
    assert (found.block, found.module, found.operation) == ("", "conv1", "conv2d")
    assert found.evidence["operands"][0] == {"role": "input", "shape": [2, 1, 16, 16], "module": "", "from": "the model's input"}
    assert "conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)" in found.advice


class Positions(nn.Module):
    """Positions from a parameter or from a table."""

    def __init__(self, table: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 4) if table else None
        self.parameter = nn.Parameter(torch.zeros(1, 8, 4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + (self.parameter if self.table is None else self.table(torch.arange(x.shape[1])))
        return x + self.linear(x).relu()


def test_a_sequence_longer_than_the_positions() -> None:
    found = said(Positions(table=False), torch.randn(2, 9, 4))
    assert found.evidence["cause"] == "length"
    assert "a length of 8, and this one is 9" in found.summary
    found = said(Positions(table=True), torch.randn(2, 9, 4))
    assert (found.kind, found.module, found.operation) == ("shape_mismatch", "table", "embedding")
    assert (found.evidence["cause"], found.evidence["rows"], found.evidence["index"]) == ("length", 8, 8)


class Remembers(nn.Module):
    """A hidden state of the last batch is in the next one, as in a stateful recurrent network."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.state: Tensor | None = torch.zeros(batch, 4)
        self.seen: list[Tensor] = [torch.zeros(batch, 4)]

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.stem(x) + self.seen[-1]
        self.seen.append(h.detach())
        self.state = h.detach()
        return h


def test_a_state_of_another_batch_is_told() -> None:
    """What a rehearsed pass leaves in the model is not there in the next."""
    found = said(model := Remembers(8), torch.randn(3, 4), sites=(ResidualSite("b", "b", "identity", (), (), (8, 4)),))
    assert [each["shape"] for each in found.evidence["operands"]] == [[3, 4], [8, 4]]
    assert found.evidence["cause"] == "batch" and "batch of 8, not of 3" in found.summary
    assert len(model.seen) == 1


class Pyramid(nn.Module):
    """What was halved twice is doubled once, and added."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1) for i in range(2))

    def forward(self, x: Tensor) -> Tensor:
        half = self.down[0](x)
        y: Tensor = half + F.interpolate(self.down[1](half), scale_factor=2)
        return y


def test_images_whose_sides_have_to_be_multiples() -> None:
    found = said(Pyramid(), torch.randn(2, 3, 17, 16))
    assert found.evidence["cause"] == "size"
    assert "images of 20×16, and these are 17×16" in found.summary
    assert "multiples of 4" in found.advice and "flattened" not in found.advice


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.q = nn.Embedding(10, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.q(self.embedding(ids))
        return (x @ x.mT).masked_fill(~mask[:, None], -1e9).softmax(-1) @ x


def test_a_mask_of_another_length_than_the_sequence() -> None:
    found = said(Masked(), tokens(9), torch.ones(2, 8, dtype=torch.bool))
    assert "invert" in found.summary and "nvert_" not in found.summary.replace("invert", "")
    assert found.evidence["cause"] == "length"
    assert "has a length of 9 and another of 8" in found.summary and "alike" in found.advice


def test_a_token_beyond_the_vocabulary_is_the_datas_fault() -> None:
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4))
    found = said(model, torch.tensor([[1, 9]]))
    assert (found.evidence["cause"], found.module) == ("index", "0")


# -- where it happens --------------------------------------------------------------------------------------------------


def test_without_a_model_the_line_and_its_tensors_remain() -> None:
    logits, labels = torch.randn(8, 3), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="batch_size") as caught:
        F.cross_entropy(logits, labels)
    found = diagnose(caught.value, Scene({"": nn.Linear(2, 2)}, (), 1))
    assert found.kind == "shape_mismatch"
    assert found.evidence["tensors"] == {"logits": [8, 3], "labels": [4]}
    assert found.line.endswith("F.cross_entropy(logits, labels)")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("expected scalar type Float but found Half"),
        RuntimeError("Expected all tensors to be on the same device, but found at least two devices"),
        ValueError("the learning rate should be positive"),
        KeyError("shape"),
        IndexError("list index out of range"),
    ],
    ids=str,
)
def test_what_is_no_mismatch_is_left_to_others(error: Exception) -> None:
    assert diagnose(error, Scene({"": nn.Linear(2, 2)}, (), 1)).kind != "shape_mismatch"


def test_nothing_of_the_model_is_touched() -> None:
    model: Any = convolutional.resnet_basic()
    model.layer2[1].conv2 = nn.Conv2d(16, 12, 3, padding=1, bias=False)
    with pytest.raises(RuntimeError) as caught:
        model(images())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    diagnose(caught.value, Scene({"": model}, (), 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(before) == set(model.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch._C._len_torch_function_stack() == 0
    assert torch._C._len_torch_dispatch_stack() == 0


def test_no_argument_outlives_the_exception() -> None:
    def fail() -> weakref.ref[Tensor]:
        model: Any = convolutional.resnet_basic()
        model.layer2[1].conv2 = nn.Conv2d(16, 12, 3, padding=1, bias=False)
        x = images()
        try:
            model(x)
        except RuntimeError as error:
            diagnose(error, Scene({"": model}, (), 1))
        return weakref.ref(x)

    reference = fail()
    gc.collect()
    assert reference() is None


def train(model: nn.Module, directory: Path, *batches: Tensor, run: str = "broken", evaluate: bool = False) -> Incident:
    """Train, watched, until it breaks; what the flight says of that."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(Exception), resmon.watch(model, optimizer, run=run, directory=directory, agent="off"):  # noqa: B017, PT011, PT012
        for x in batches:
            if evaluate:
                with torch.no_grad():
                    model(x)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    events, skips = incidents.read(directory / run / "attempt-0001" / "rank-00000")
    assert not skips
    (incident,) = incidents.newest(events)
    return incident


@pytest.mark.parametrize("evaluate", [False, True])
def test_a_run_whose_first_pass_fails(tmp_path: Path, evaluate: bool) -> None:
    model: Any = convolutional.resnet_basic()
    model.layer2[0].downsample = None
    found = train(model, tmp_path, images(), evaluate=evaluate)
    assert (found.kind, found.block, found.module) == ("shape_mismatch", "layer2.0", "layer2.0")
    assert found.evidence["fixes"][0]["code"] == "nn.Conv2d(8, 16, 1, stride=2, bias=False)"


def test_a_run_that_breaks_at_its_last_batch(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 6), Reshapes())
    whole = torch.randn(4, 6, 6)
    found = train(model, tmp_path, whole, whole, whole[:2])
    assert (found.block, found.module, found.step) == ("1", "1", 2)
    assert found.evidence["cause"] == "batch"
    assert "drop_last=True" in found.advice


def test_a_compiled_model_is_told_of_as_the_model_is(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 6), Reshapes())
    compiled: Any = torch.compile(model, backend="eager")
    whole = torch.randn(4, 6, 6)
    found = train(compiled, tmp_path, whole, whole, whole[:2])
    assert (found.kind, found.block, found.module, found.operation) == ("shape_mismatch", "1", "1", "reshape")
    assert found.evidence["cause"] == "batch"


def test_under_ddp_the_model_inside_is_rehearsed() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model: Any = convolutional.resnet_basic()
        model.layer2[0].downsample = None
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(RuntimeError) as caught:
            wrapped(images())
        found = diagnose(caught.value, Scene({"": model}, (), 1))
        assert (found.block, found.module) == ("layer2.0", "layer2.0")
        assert found.evidence["fixes"][0]["code"] == "nn.Conv2d(8, 16, 1, stride=2, bias=False)"
    finally:
        torch.distributed.destroy_process_group()


def test_a_half_precision_pass_under_autocast_is_rehearsed_too() -> None:
    model: Any = attention.NanoGPT()
    wide = model.transformer.h[1].mlp.c_proj
    model.transformer.h[1].mlp.c_proj = nn.Linear(wide.in_features, 24)
    with pytest.raises(RuntimeError) as caught, torch.autocast("cpu", torch.bfloat16):
        model(tokens())
    found = diagnose(caught.value, Scene({"": model}, (), 1))
    assert (found.block, found.evidence["fixes"][0]["tried"]) == ("transformer.h.1.mlp", True)


def test_a_pass_that_depends_on_numbers_is_rehearsed_on_them() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 5)])

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.experts[int(x.sum() > 0)](x).relu()
            return y

    model = nn.Sequential(nn.Linear(4, 4), Routed(), nn.Linear(4, 4))
    nn.init.ones_(model[0].weight)  # type: ignore[arg-type]
    found = said(model, torch.full((2, 4), 3.0))
    assert found.block == "1"
    assert found.evidence["fixes"][0]["code"] == "1.experts.1 = nn.Linear(4, 4)"


def test_a_failure_of_the_models_own_words_is_told_with_what_would_fit() -> None:
    class Refuses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 4, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 32:
                raise ValueError(f"Input image size ({x.shape[-1]}) doesn't match model (32).")
            y: Tensor = self.patches(x)
            return y

    found = said(Refuses(), images(size=40))
    assert (found.kind, found.evidence["cause"]) == ("shape_mismatch", "size")
    assert "images of 32×32" in found.summary


# -- at any block of any model -----------------------------------------------------------------------------------------


def wider_end(model: nn.Module, site: ResidualSite, modules: dict[str, nn.Module]) -> bool:
    """The branch ends eight channels or features too wide."""
    return _resize(model, site.branch[::-1], modules, outputs=8)


def wider_begin(model: nn.Module, site: ResidualSite, modules: dict[str, nn.Module]) -> bool:
    """The branch's first layer takes more than there is."""
    return _resize(model, site.branch, modules, inputs=8)


def wider_projection(model: nn.Module, site: ResidualSite, modules: dict[str, nn.Module]) -> bool:
    """The projection ends too wide."""
    return _resize(model, site.skip[::-1], modules, outputs=8)


def no_projection(model: nn.Module, site: ResidualSite, modules: dict[str, nn.Module]) -> bool:
    """The projection is not there."""
    if not any(path in modules for path in site.skip):
        return False
    for path in site.skip:
        put(model, path, nn.Identity())
    return True


def _resize(model: nn.Module, paths: tuple[str, ...], modules: dict[str, nn.Module], **by: int) -> bool:
    for path in paths:
        layer = layer_of(modules[path]) if path in modules and path else None
        if layer is None or layer.inputs == layer.outputs or layer.get("groups", 1) > 1:
            continue
        names = {"inputs": layer.inputs, "outputs": layer.outputs}
        put(model, path, layer.but(**{names[side]: layer.get(names[side]) + more for side, more in by.items()}).make())
        return True
    return False


FAULTS: tuple[Callable[..., bool], ...] = (wider_end, wider_begin, wider_projection, no_projection)
HANDWRITTEN_NAMES = (
    "resnet_basic resnet_bottleneck nanogpt rotary_gated mlp_mixer conformer torch_transformer_norm_first "
    "torch_transformer_norm_last"
)
TRANSFORMERS_NAMES = "gpt2_with_loss llama bert vit resnet_bottleneck t5 gemma2 whisper convnext"
QUICK = "resnet_basic nanogpt mlp_mixer gpt2_with_loss".split()


def named(names: str, known: tuple[Case, ...]) -> list[Case]:
    by_name = {case.name: case for case in known}
    return [by_name[name] for name in names.split()]


def from_transformers() -> list[Case]:
    if importlib.util.find_spec("transformers") is None:
        return []
    from tests.zoo import hugging

    return named(TRANSFORMERS_NAMES, hugging.CASES)


CASES = [
    pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow)
    for case in named(HANDWRITTEN_NAMES, convolutional.CASES + attention.CASES) + from_transformers()
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_block_is_named_whichever_it_is(case: Case, fault: Callable[..., bool]) -> None:
    args, kwargs = case.inputs(), case.keywords()
    sites = discover(case.build(), *args, **kwargs)
    told = 0
    for site in random.sample(sites, len(sites)):
        model = case.build()
        if told == 2 or not fault(model, site, dict(model.named_modules())):
            continue
        try:
            model(*args, **kwargs)
        except Exception as error:  # noqa: BLE001, whichever it is
            found = diagnose(error, Scene({"": model}, (), 0))
        else:
            continue  # it fits nevertheless
        told += 1
        assert found.kind == "shape_mismatch"
        assert found.block == site.name, found.summary
        best = found.evidence["fixes"][0]
        assert best["tried"], found.summary
        if not best["added"]:
            apply(model, best["code"])
            model(*args, **kwargs)


def test_a_chain_that_makes_what_is_wanted_needs_no_fix() -> None:
    """As in an attention whose operands fit each other, and whose mask does not."""
    modules: dict[str, nn.Module] = {"fc": nn.Linear(4, 8)}
    assert list(_chain_fixes(("fc",), (2, 8), (2, 8), modules)) == []
    (fix,) = _chain_fixes(("fc",), (2, 8), (2, 6), modules)
    assert fix.code == "fc = nn.Linear(4, 6)"
