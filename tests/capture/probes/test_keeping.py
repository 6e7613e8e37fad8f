"""Stochastic depth: who kept the branch, and the ratio of those that did."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resmon.capture.host import fetch
from resmon.capture.probes.keeping import kept_elsewhere, kept_norm, kept_square
from resmon.records import BLOCK_COUNTS, BLOCK_VALUES
from tests.capture import loops

SAMPLES, KEPT = BLOCK_COUNTS.index("samples"), BLOCK_COUNTS.index("kept")
SKIP, BRANCH, KEPT_SQUARE = map(BLOCK_VALUES.index, ("skip_square", "branch_square", "kept_square"))


class RowDrop(nn.Module):
    """As in the libraries: a number for each sample, drawn, compared or rounded, scaled by what keeps the expectation."""

    def __init__(self, how: str, keep: float = 0.5) -> None:
        super().__init__()
        self.how, self.keep = how, keep
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv(x)
        shape = (1,) if self.how == "batch" else (len(x), 1, 1, 1)
        match self.how:
            case "floor":
                mask = (self.keep + torch.rand(shape)).floor_()
            case "compare":
                mask = (torch.rand(shape) < self.keep).to(branch.dtype)
            case "elementwise":
                mask = torch.ones(shape)
                branch = nn.functional.dropout(branch, 1 - self.keep)
            case _:
                mask = branch.new_empty(shape).bernoulli_(self.keep)
        self.masks.append(mask.flatten())
        return x + branch * mask / self.keep


@pytest.mark.parametrize("how", ["floor", "compare", "bernoulli", "batch"])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_keep_ratio_and_the_ratio_of_kept_samples(how: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "elsewhere":
        monkeypatch.setattr(fetch, "is_here", lambda tensor: False)
    torch.manual_seed(0)
    block = RowDrop(how)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), block)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session, sink = loops.watch(model, optimizer)
    for samples in (9, 16, 1, 16, 5):
        x = torch.randn(samples, 3, 6, 6) * torch.arange(1, samples + 1).reshape(-1, 1, 1, 1)
        model(x).sum().backward()
        optimizer.step()
        record, mask = sink.newest, block.masks[-1].bool().expand(samples)
        skip = model[0](x).detach().double()
        assert (record.counts[SAMPLES, 0], record.counts[KEPT, 0]) == (samples, int(mask.sum()))
        assert record.blocks_present[KEPT_SQUARE, 0]
        assert record.blocks[KEPT_SQUARE, 0] == pytest.approx(float(skip[mask].square().sum()), rel=1e-5, abs=1e-12)
    session.detach()


def test_elementwise_dropout_drops_no_samples() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), RowDrop("elementwise"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _, sink = loops.watch(model, optimizer)
    for _ in range(2):
        model(torch.randn(4, 3, 6, 6)).sum().backward()
        optimizer.step()
    assert sink.newest.counts[SAMPLES, 0] == 0 and not sink.newest.blocks_present[KEPT_SQUARE, 0]


def test_the_ratio_of_all_samples_is_inflated_by_the_root_of_the_keep_ratio() -> None:
    """Over all samples it is 1/sqrt(keep) of the branch's own, over those that kept it 1/keep, as the branch comes to the add."""
    torch.manual_seed(0)
    block = RowDrop("bernoulli", keep=0.25)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), block)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _, sink = loops.watch(model, optimizer)
    for _ in range(2):
        x = torch.randn(4000, 3, 4, 4)
        model(x).sum().backward()
        optimizer.step()
    values = sink.newest.blocks[:, 0]
    inner = model[0](x)
    own = float(block.conv(inner).norm() / inner.norm())
    assert math.sqrt(values[BRANCH] / values[SKIP]) == pytest.approx(own / math.sqrt(0.25), rel=0.05)
    assert math.sqrt(values[BRANCH] / values[KEPT_SQUARE]) == pytest.approx(own / 0.25, rel=0.05)


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 40, 7), (6, 3, 8, 8)])
@pytest.mark.parametrize("pattern", ["111111", "000000", "101001", "000001"])
def test_who_kept_the_branch_and_how_large_their_skip_is(shape: tuple[int, ...], pattern: str) -> None:
    torch.manual_seed(0)
    mask = torch.tensor([sign == "1" for sign in pattern])
    skip, branch = torch.randn(shape), torch.zeros(shape)
    branch[mask] = torch.randn(shape)[mask]
    late = torch.zeros(shape)
    late.reshape(6, -1)[mask, -1] = 1e-30  # not zero in one element only, the last
    kept = np.full(1, -1.0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        stream = skip.to(dtype)
        exact, square = (float(part.double().square().sum()) for part in (stream[mask], stream))
        for each in (branch, late, *(t.transpose(0, -1).contiguous().transpose(0, -1) for t in (branch, late))):
            for other in (stream, stream.transpose(0, -1).contiguous().transpose(0, -1)):
                found = kept_square(other, each, square, kept.ctypes.data)
                assert kept.tolist() == [float(mask.sum())]
                assert found == pytest.approx(exact, rel=1e-6, abs=1e-12)
            assert kept_elsewhere(each).tolist() == mask.tolist()
    expected = float(skip[mask].double().square().sum())
    assert float(kept_norm(skip, mask)) ** 2 == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_where_the_dropped_samples_hold_nearly_all_the_rest_is_not_a_difference() -> None:
    skip, branch = torch.full((4, 1000), 1e-6), torch.ones(4, 1000)
    skip[2], branch[2] = 1e6, 0
    kept = np.zeros(1)
    found = kept_square(skip, branch, float(skip.double().square().sum()), kept.ctypes.data)
    assert found == pytest.approx(3000 * 1e-12, rel=1e-6)
    skip[2] = math.inf
    assert kept_square(skip, branch, math.inf, kept.ctypes.data) == pytest.approx(3000 * 1e-12, rel=1e-6)
    skip[1] = math.nan
    assert math.isnan(kept_square(skip, branch, math.nan, kept.ctypes.data))
    assert kept[0] == 3
    for empty in (torch.ones(0, 5), torch.ones(3, 0)):
        assert kept_square(empty, empty, 0.0, kept.ctypes.data) == 0
        assert kept[0] == 0


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.rand(len(x), 1, 1) < 0.5
        return x + self.linear(x) * mask / 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_a_graph_kept_samples_are_counted_and_16_bit_numbers_have_their_headroom(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), Dropped()).to(dtype)
    model.compile(backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session, sink = loops.watch(model, optimizer)
    for step in range(4):
        x = (4.0 ** (step % 3)) * torch.randn(32, 5, 8).to(dtype)
        y = model(x)
        y.sum().backward()
        optimizer.step()
        record, kept = sink.newest, (y != x).flatten(1).any(1)
        assert (record.counts[SAMPLES, 0], record.counts[KEPT, 0]) == (32, int(kept.sum()))
        assert 0 < int(kept.sum()) < 32
        exact = float(x[kept].double().square().sum())
        assert record.blocks[KEPT_SQUARE, 0] == pytest.approx(exact, rel=1e-4 if step == 0 else 0.3)  # the traced step is exact
        peak, fill = record.blocks[[BLOCK_VALUES.index(name) for name in ("peak", "fill")], 0]
        if dtype is torch.bfloat16:
            branch = (y.detach().double() - x.double()).abs().max()
            assert peak == float(y.detach().abs().max())
            assert fill * torch.finfo(dtype).max == pytest.approx(
                float(max(branch, x.abs().max(), y.detach().abs().max())), rel=0.02
            )
        elif step:
            assert not record.blocks_present[BLOCK_VALUES.index("fill"), 0]
            assert not record.blocks_present[BLOCK_VALUES.index("peak"), 0]
    session.detach()
