"""The accelerator's arithmetic against the native core's; on whatever devices there are, the CPU among them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from resmon.capture.accelerator import Board
from resmon.capture.channel import MAGNITUDES, OUTPUT, Channel
from tests.capture.test_channel import channel, observe, square

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def offer(board: Board, site: int, skip: Tensor, branch: Tensor, alpha: float = 1) -> Tensor:
    output = torch.add(skip, branch, alpha=alpha)
    board.operands(site, skip, branch, (1, alpha))
    board.output(site, output)
    return output


def tensors(device: str, dtype: torch.dtype, *shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    skip, branch = (torch.randn(shape, generator=generator).to(dtype).to(device) for _ in range(2))
    return skip, 3 * branch


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(4, 7), (8, 128, 48), (4, 16, 20, 20), (1,)])
def test_numbers_equal_the_native_ones(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    board = Board(torch.device(device), 3, 1024)
    native = channel()
    for passes in range(2):
        skip, branch = tensors(device, dtype, *shape, seed=passes)
        if len(shape) == 4:
            skip, branch = (t.to(memory_format=torch.channels_last) for t in (skip, branch))
        offer(board, 1, skip, branch, alpha=-2)
        board.gradient(1, skip, again=passes > 0)
        observe(native, skip.cpu(), branch.cpu(), alpha=-2)
        native.gradient(skip.cpu())
        board.end_pass()
    fetched = board.end_step()
    fetched.wait()
    numbers = fetched.numbers()
    assert numbers.squares[1] == pytest.approx(
        native.in_all[: OUTPUT + 1], rel=1e-4 if dtype in (torch.float32, torch.float64) else 1e-2
    )
    assert numbers.gradients[1] == pytest.approx(native.output_gradient_square, rel=1e-4)
    assert numbers.magnitudes[1, 1:].sum() == native.in_all[MAGNITUDES + 1 :].sum()
    if dtype is torch.float32:
        assert numbers.magnitudes[1, 1:].tolist() == native.in_all[MAGNITUDES + 1 :].tolist()
    assert numbers.magnitudes[1, 0] == pytest.approx(native.in_all[MAGNITUDES], rel=1e-3)
    for others in (numbers.squares, numbers.gradients, numbers.magnitudes):
        assert not others[[0, 2]].any()


@pytest.mark.parametrize("device", DEVICES)
def test_magnitudes_fall_into_the_same_buckets(device: str) -> None:
    values = [0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, 1e38, *(math.ldexp(s, i) for i in range(-30, 30) for s in (1, -1.5))]
    output = torch.tensor(values)
    board = Board(torch.device(device), 1, 1024)
    board.output(0, output.to(device))
    board.end_pass()
    of = Channel(channel().site, 1024, sums_output=False)
    of.offer_skip(output, 1)
    of.offer_branch(output, 1)
    of.offer_output(output)
    of.count()
    assert board.end_step().numbers().magnitudes[0, 1:].tolist() == of.in_all[MAGNITUDES + 1 :].tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_begins_anew_and_magnitudes_go_on(device: str) -> None:
    board = Board(torch.device(device), 2, 64)
    for steps in (1, 2, 3):
        skip, branch = tensors(device, torch.float32, 6, 6, seed=steps)
        output = offer(board, 0, skip, branch)
        board.gradient(0, output, again=False)
        board.end_pass()
        numbers = board.end_step().numbers()
        assert numbers.squares[0] == pytest.approx([square(skip), square(branch), square(output)], rel=1e-5)
        assert numbers.gradients[0] == pytest.approx(square(output), rel=1e-5)
        assert numbers.magnitudes[0, 1:].sum() == 36 * steps


@pytest.mark.parametrize("device", DEVICES)
def test_what_led_to_no_output_counts_nothing(device: str) -> None:
    board = Board(torch.device(device), 1, 64)
    skip, branch = tensors(device, torch.float32, 5)
    board.operands(0, skip, branch, (1, 1))
    board.forget(0)
    board.end_pass()
    numbers = board.end_step().numbers()
    assert not numbers.squares.any() and not numbers.magnitudes.any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nonfinite_element_shows(device: str, bad: float) -> None:
    board = Board(torch.device(device), 1, 64)
    skip, branch = tensors(device, torch.float32, 5000)
    skip[4321] = bad
    offer(board, 0, skip, branch)
    board.gradient(0, skip, again=False)
    board.end_pass()
    numbers = board.end_step().numbers()
    assert np.isfinite(numbers.squares[0]).tolist() == [False, True, False]
    assert not np.isfinite(numbers.gradients[0])
