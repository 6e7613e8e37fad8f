"""Each statistic against its definition, on the elements themselves in float64, and against numbers that others have published."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resmon.capture.host import fetch
from resmon.records import BLOCK_COUNTS, BLOCK_MERGES, BLOCK_VALUES, Floats, Ints, StepRecord
from resmon.statistics import STATISTICS, merge, statistics
from tests.capture.loops import Memory
from tests.capture.loops import watch as watch_loop

sizes = st.tuples(st.integers(1, 6), st.integers(1, 40), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1))


def of_record(record: StepRecord) -> dict[str, list[float | None]]:
    elements = record.counts[0] * record.blocks_present
    found = statistics(record.blocks, record.blocks_present, elements, record.counts)
    return {
        name: [value if there else None for value, there in zip(*map(np.ndarray.tolist, column), strict=True)]
        for name, column in found.items()
    }


def rows(parts: list[tuple[Floats, Floats, Ints]]) -> tuple[Floats, Floats, Ints]:
    """Values, elements and counts of a site on ranks that hold these operands [samples, elements] and masks of what was kept."""
    values = np.zeros((len(parts), len(BLOCK_VALUES), 1))
    counts = np.zeros((len(parts), len(BLOCK_COUNTS), 1), np.int64)
    for i, (skip, branch, kept) in enumerate(parts):
        put = {
            "skip_square": (skip**2).sum(),
            "branch_square": (branch**2).sum(),
            "output_square": ((skip + branch) ** 2).sum(),
            "product": (skip * branch).sum(),
            "kept_square": (skip[kept == 1] ** 2).sum(),
            "peak": np.abs(skip + branch).max(),
            "fill": np.abs(branch).max() / 65504,
            "position_ratio": 0.5 + i,
            "dead": 0.1 * (i + 1),
        }
        for name, value in put.items():
            values[i, BLOCK_VALUES.index(name), 0] = value
        for name, count in {"elements": skip.size, "samples": len(kept), "kept": int(kept.sum())}.items():
            counts[i, BLOCK_COUNTS.index(name), 0] = count
    present = np.broadcast_to(counts[:, :1] > 0, values.shape)
    merged, there = merge(values, present, np.zeros(1, np.int64))
    elements = (counts[:, :1] * present).sum(axis=0)
    assert there.all()
    return merged[0], elements, counts.sum(axis=0)


@given(st.lists(sizes, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_statistics_of_merged_ranks_are_those_of_all_elements_together(shapes: list[tuple[int, int, float, float, int]]) -> None:
    parts = []
    for samples, width, skip_scale, branch_scale, seed in shapes:
        random = np.random.default_rng(seed)
        kept = random.integers(0, 2, samples)
        skip = random.normal(0, skip_scale, (samples, width))
        branch = random.normal(0, branch_scale, (samples, width)) * kept[:, None]
        parts.append((skip, branch, kept))
    values, elements, counts = rows(parts)
    found = statistics(values, np.ones(values.shape, bool), elements, counts)
    s, f = (np.concatenate([part[i].ravel() for part in parts]) for i in (0, 1))
    kept_s = np.concatenate([skip[kept == 1].ravel() for skip, _, kept in parts])
    y = s + f
    expected = {
        "skip_rms": math.sqrt(np.mean(s**2)),
        "branch_rms": math.sqrt(np.mean(f**2)),
        "output_rms": math.sqrt(np.mean(y**2)),
        "growth": np.linalg.norm(y) / np.linalg.norm(s),
        "keep_ratio": np.mean(np.concatenate([kept for _, _, kept in parts])),
        "output_peak": np.abs(y).max(),
        "branch_skip_ratio_median": np.mean([0.5 + i for i in range(len(parts))]),
        "dead_unit_ratio": 0.1,
    }
    if len(kept_s):
        expected["branch_skip_ratio"] = np.linalg.norm(f) / np.linalg.norm(kept_s)
        expected["alignment"] = s @ f / (np.linalg.norm(s) * np.linalg.norm(f))
        expected["headroom"] = math.log2(65504 / np.abs(f).max())
    for name, value in expected.items():
        assert found[name].present.all(), name
        assert found[name].values[0] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    if not len(kept_s):  # no sample kept its branch: there is no ratio of those that did
        assert not found["branch_skip_ratio"].present.any() and not found["alignment"].present.any()


def test_absence_of_a_value_is_absence_of_what_is_made_of_it() -> None:
    shape = len(BLOCK_VALUES), 1
    nothing = statistics(np.zeros(shape), np.zeros(shape, bool), np.zeros(shape), np.zeros((len(BLOCK_COUNTS), 1), np.int64))
    assert tuple(nothing) == STATISTICS
    assert not any(column.present.any() for column in nothing.values())


@pytest.mark.parametrize(("how", "expected"), [("sum", 6.0), ("largest", 4.0), ("smallest", 2.0), ("mean", 3.0)])
def test_what_is_absent_on_one_rank_takes_no_part_in_a_merge(how: str, expected: float) -> None:
    i = next(i for i, name in enumerate(BLOCK_VALUES) if BLOCK_MERGES[name] == how)
    values, present = np.full((3, len(BLOCK_VALUES)), 99.0), np.zeros((3, len(BLOCK_VALUES)), bool)
    values[:2, i], present[:2, i] = (2.0, 4.0), True
    merged, there = merge(values, present, np.zeros(1, np.int64))
    assert there[0].tolist() == [name == BLOCK_VALUES[i] for name in BLOCK_VALUES]
    assert merged[0, i] == expected


# -- published numbers -----------------------------------------------------------------------------------------------------------


class PreActivation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))


class PreNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


def first_step(model: nn.Module, x: Tensor, steps: int = 18) -> dict[str, list[float | None]]:
    """The statistics of the last of some steps that leave the model as it was; by then each block has had its turn."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sink: Memory = watch_loop(model, optimizer)[1]
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
    return of_record(sink.newest)


def test_the_stream_s_variance_grows_by_one_unit_a_block() -> None:
    """De & Smith (arXiv 2002.10444): with batch norm on the branch the ratio at initialisation is 1/sqrt(l) at the l-th block."""
    torch.manual_seed(0)
    found = first_step(nn.Sequential(*(PreActivation(48) for _ in range(12))), torch.randn(16, 48, 12, 12))
    expected = [1 / math.sqrt(block) for block in range(1, 13)]
    assert found["branch_skip_ratio"] == pytest.approx(expected, rel=0.12)
    assert found["growth"] == pytest.approx([math.sqrt((block + 1) / block) for block in range(1, 13)], rel=0.05)
    assert found["alignment"] == pytest.approx([0.0] * 12, abs=0.1)


def test_residual_branches_that_begin_at_zero_have_ratio_zero_and_are_there() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(PreNorm(16) for _ in range(3)))
    for block in model:
        assert isinstance(block, PreNorm)
        nn.init.zeros_(block.down.weight)
        nn.init.zeros_(block.down.bias)
    found = first_step(model, torch.randn(8, 5, 16))
    assert found["branch_skip_ratio"] == [0.0, 0.0, 0.0]
    assert found["branch_skip_ratio_median"][0] == 0.0
    assert found["growth"] == [1.0, 1.0, 1.0]
    assert found["alignment"] == [None, None, None]  # nothing has no direction


def test_deep_blocks_of_a_pre_norm_network_tend_to_identity() -> None:
    """Pre-norm (arXiv 2502.05795): later blocks change the stream less, and early ones have the larger gradients."""
    torch.manual_seed(0)
    found = first_step(nn.Sequential(*(PreNorm(64) for _ in range(16))), 0.1 * torch.randn(8, 10, 64))
    ratios, gradients = ([value for value in found[name] if value is not None] for name in ("branch_skip_ratio", "gradient_norm"))
    assert len(ratios) == len(gradients) == 16
    assert np.corrcoef(ratios, range(16))[0, 1] < -0.6 and ratios[-1] < ratios[0] / 2
    assert np.mean(gradients[:4]) > 1.2 * np.mean(gradients[-4:])


def test_a_stream_may_shrink() -> None:
    model = nn.Sequential(nn.Identity(), Halving(8))
    found = first_step(model, torch.randn(4, 8))
    assert found["growth"] == pytest.approx([0.5], rel=1e-6)
    assert found["alignment"] == pytest.approx([-1.0], abs=1e-6)


class Halving(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(-0.5 * torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


class Scaled(nn.Module):
    """A branch as small against the stream as wanted, and turned towards it."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        with torch.no_grad():
            self.linear.weight.mul_(scale).add_(scale * 0.3 * torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-3])
def test_alignment_is_the_cosine_however_it_is_read(
    where: str, dtype: torch.dtype, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read together the product is summed itself; else it is told by three squares, within what rounding leaves of them."""
    if where == "elsewhere":
        monkeypatch.setattr(fetch, "is_here", lambda tensor: False)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), Scaled(64, scale)).to(dtype)
    x = torch.randn(64, 100, 64).to(dtype)
    found = first_step(model, x, steps=2)["alignment"]
    block = model[1]
    assert isinstance(block, Scaled)
    s, f = x.double().flatten(), block.linear(x).detach().double().flatten()
    cosine = float(s @ f / (s.norm() * f.norm()))
    assert 0.2 < cosine < 0.9
    if dtype is torch.float32:
        assert found == pytest.approx([cosine], abs=1e-5 if where == "here" else 1e-3)
    elif scale > 1e-3:  # a bfloat16 has three digits
        assert found == pytest.approx([cosine], abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_headroom_is_the_doublings_that_are_left(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), PreNorm(16)).to(dtype)
    x = torch.randn(4, 5, 16).to(dtype)
    x[0, 0, 0] = 16.0  # the largest of all, in the skip
    found = first_step(model, x, steps=2)
    assert found["headroom"] == pytest.approx([math.log2(torch.finfo(dtype).max / 16.0)], abs=0.5)
    assert found["output_peak"] == pytest.approx([float(model(x).abs().max())], rel=0.02)
    assert first_step(nn.Sequential(nn.Identity(), PreNorm(16)), x.float(), steps=2)["headroom"] == [None]


def test_one_attention_sink_moves_the_ratio_and_not_its_median() -> None:
    """Single activations reach 100,000 times the median (arXiv 2402.17762)."""
    torch.manual_seed(0)
    x = torch.randn(4, 64, 32)
    calm = first_step(nn.Sequential(nn.Identity(), PreNorm(32)), x)
    x[:, 0, 5] = 100_000.0
    torch.manual_seed(1)
    sunk = first_step(nn.Sequential(nn.Identity(), PreNorm(32)), x)
    assert calm["branch_skip_ratio"][0] is not None and sunk["branch_skip_ratio"][0] is not None
    assert sunk["branch_skip_ratio"][0] < calm["branch_skip_ratio"][0] / 1000
    assert sunk["branch_skip_ratio_median"] == pytest.approx(calm["branch_skip_ratio_median"], rel=0.2)
