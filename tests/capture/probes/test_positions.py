"""What is looked at in sampled positions, against float64 arithmetic on all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resmon.capture.host import fetch
from resmon.capture.probes.positions import EVERY, IDLE, POSITIONS, Units, channel_axis, median_ratio
from resmon.records import BLOCK_VALUES
from tests.capture import loops

MEDIAN, DEAD = BLOCK_VALUES.index("position_ratio"), BLOCK_VALUES.index("dead")


def reference(skip: Tensor, branch: Tensor, axis: int) -> float:
    norms = [np.linalg.norm(np.moveaxis(t.detach().double().numpy(), axis, -1), axis=-1).ravel() for t in (skip, branch)]
    ratios = np.sort((norms[1] / norms[0])[norms[0] > 0])
    return float(ratios[(len(ratios) - 1) // 2])


@pytest.mark.parametrize(("shape", "axis"), [((7, 5), 1), ((4, 9, 6), 2), ((3, 8, 5, 4), 1), ((2, 6, 10), 1), ((2, 3, 4, 5, 6), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_of_few_positions_the_median_is_exact(shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    skip, branch = torch.randn(shape).to(dtype), 3 * torch.randn(shape).to(dtype)
    skip.movedim(axis, -1)[0] = 0  # where there is no skip there is no ratio
    assert float(median_ratio(skip, branch, axis, (1, 1))) == pytest.approx(reference(skip, branch, axis), rel=1e-6)
    assert float(median_ratio(skip, branch, axis, (-2, 0.5))) == pytest.approx(reference(skip, branch, axis) / 4, rel=1e-6)
    transposed = skip.transpose(0, -1), branch.transpose(0, -1)
    assert float(median_ratio(*transposed, (len(shape) - 1 - axis) if axis in (0, len(shape) - 1) else axis, (1, 1))) > 0


@pytest.mark.parametrize("shape", [(6, 4, 9, 5), (12, 30, 8), (50, 7), (9,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_here_and_elsewhere_the_same_is_seen(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    skip, branch = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    branch[branch < 0.8] = 0
    skip[0] = 0
    if len(shape) > 1:
        skip[1], branch[1] = torch.nan, torch.inf
    spread = [t.new_empty(*t.shape[:-1], 2 * t.shape[-1])[..., ::2].copy_(t) for t in (skip, branch)]  # with gaps
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in (skip, branch)]
    for axis in range(-1, len(shape)):
        for first, second in ((skip, branch), spread, turned, (skip, turned[1])):
            units = Units(), Units()
            found = median_ratio(first, second, axis, (1, 2)), *(units[0].dead(second, axis) for _ in range(4))
            assert all(isinstance(each, float) for each in found)
            with monkeypatch.context() as context:
                context.setattr(fetch, "is_here", lambda tensor: False)
                there = median_ratio(first, second, axis, (1, 2)), *(units[1].dead(second, axis) for _ in range(4))
            assert all(isinstance(each, Tensor) for each in there)
            assert found == pytest.approx([float(each) for each in there], rel=1e-6, nan_ok=True)


def test_of_many_positions_a_sample_is_near() -> None:
    torch.manual_seed(0)
    skip, branch = torch.randn(16, 300, 24), torch.randn(16, 300, 24) * torch.rand(16, 300, 1)
    assert POSITIONS < 16 * 300
    assert float(median_ratio(skip, branch, 2, (1, 1))) == pytest.approx(reference(skip, branch, 2), rel=0.1)


def test_a_single_number_is_a_position(monkeypatch: pytest.MonkeyPatch) -> None:
    skip, branch = torch.tensor(-2.0), torch.tensor(3.0)
    assert float(median_ratio(skip, branch, 0, (1, 2))) == 3.0
    monkeypatch.setattr(fetch, "is_here", lambda tensor: False)
    assert float(median_ratio(skip, branch, 0, (1, 2))) == 3.0


def test_without_any_skip_there_is_no_median() -> None:
    assert np.isnan(float(median_ratio(torch.zeros(3, 4), torch.ones(3, 4), 1, (1, 1))))


@pytest.mark.parametrize(
    ("shape", "parameters", "axis"),
    [
        ((64, 32, 8, 8), [(32, 16, 3, 3), (32,), (32,)], 1),  # convolution, then its norm
        ((8, 128, 384), [(384, 1536), (384,)], 2),  # a linear map
        ((8, 14, 14, 96), [(96, 384), (96,)], 3),  # channels last, as in Swin
        ((8, 96, 14, 14), [(96, 384), (96,)], 1),  # linear maps over permuted channels, as in ConvNeXt
        ((4, 8, 100), [(8, 8, 3)], 1),  # one-dimensional convolution
        ((4, 16, 16), [(16, 16), (16,)], 2),  # as many positions as channels
        ((4, 16, 16, 16), [(16, 16, 3, 3)], 1),
        ((10, 7), [(7, 7)], 1),
        ((10, 20, 30), [], 2),
        ((10, 20, 30, 40), [(3,)], 1),
        ((5,), [(5,)], 0),
    ],
)
def test_which_dimension_holds_channels(shape: tuple[int, ...], parameters: list[tuple[int, ...]], axis: int) -> None:
    assert channel_axis(shape, parameters) == axis


def test_a_unit_is_dead_when_it_has_been_zero_for_long() -> None:
    units = Units()
    batch = torch.ones(100, 4)
    batch[:, 1] = 0
    batch[1:, 2] = 0  # active at one position of a hundred
    seen = 0
    while seen + 100 < IDLE:
        assert float(units.dead(batch, -1)) == 0.0
        seen += 100
    assert float(units.dead(batch, -1)) == 0.25
    batch[50, 1] = -1e-30
    assert float(units.dead(batch, -1)) == 0.0
    assert float(units.dead(torch.zeros(200, 3, 1), 1)) == 0.0  # other units: counted anew
    assert float(units.dead(torch.zeros(200, 3, 1), 1)) == 1.0


class Blocks(nn.Sequential):
    """Residual MLPs; of the second's hidden units half can never be active."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 12), Block(), Block())
        second = self[2]
        assert isinstance(second, Block)
        with torch.no_grad():
            second.up.bias[:10] = -1000.0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def branch(self, x: Tensor) -> Tensor:
        branch: Tensor = self.down(torch.relu(self.up(x)))
        return branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def test_each_site_has_its_turn_and_the_newest_look_stands_in_every_row() -> None:
    torch.manual_seed(0)
    model = Blocks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session, sink = loops.watch(model, optimizer)
    batches = [torch.randn(40, 12) for _ in range(4 * EVERY)]
    for batch in batches:
        model(batch).sum().backward()
        optimizer.step()
    assert [site.name for site in sink.now] == ["1", "2"]
    for site, block in enumerate((model[1], model[2])):
        assert isinstance(block, Block)
        turns = [step for step in range(1, len(batches)) if (step + site) % EVERY == 0]
        for step in range(1, len(batches)):
            looked = [turn for turn in turns if turn <= step]
            record = sink.steps[step]
            assert record.blocks_present[MEDIAN, site] == bool(looked)
            if looked:
                x = model[0](batches[looked[-1]])
                x = model[1](x) if site else x
                assert record.blocks[MEDIAN, site] == pytest.approx(reference(x, block.branch(x), 1), rel=1e-5)
    assert sink.newest.blocks[DEAD].tolist() == [0.0, 0.0]  # not looked at for long enough
    for _ in range(EVERY * (IDLE // 40)):
        model(torch.randn(40, 12)).sum().backward()
        optimizer.step()
    assert sink.newest.blocks[DEAD].tolist() == [0.0, 0.5]
    session.detach()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
