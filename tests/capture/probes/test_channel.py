"""A channel's numbers against float64 arithmetic on the very operands."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from resmon.capture.host import fetch
from resmon.capture.loop.drafts import parts
from resmon.capture.probes.accelerator import ENDS, Accelerators
from resmon.capture.probes.channel import IN_ALL, Channel, board
from resmon.capture.probes.columns import (
    ARRIVED,
    BACKWARD_NONFINITE,
    BRANCH,
    ELEMENTS,
    FILL,
    FORWARD_NONFINITE,
    GRADIENT,
    MAGNITUDES,
    MEDIAN,
    OUTPUT,
    PEAK,
    PRODUCT,
    SKIP,
    SUMS,
)
from resmon.capture.probes.positions import Sampling
from resmon.records import MAGNITUDE_NONFINITE, Floats, ResidualSite
from tests.capture.probes.test_sums import SEAMS, laid_out

pytestmark = pytest.mark.usefixtures("two_threads")
SITE = ResidualSite("block", "block", "identity", ("block.f",), (), (1,))
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = ["contiguous", "permuted", "channels_last", "sliced", "strided", "flipped"]


@pytest.fixture(params=["here", "elsewhere"], autouse=True)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether tensors are read at once, or as on an accelerator."""
    if request.param == "elsewhere":
        monkeypatch.setattr(fetch, "is_here", lambda tensor: False)
    where: str = request.param
    return where


def channel(**options: Any) -> Channel:
    return Channel(SITE, Sampling(1024), Accelerators(), **{"sums_output": True} | options)


def fetched(of: Channel) -> Floats:
    """The channel's numbers, those among them that were gathered elsewhere."""
    on_the_way = fetch.Fetch()
    arriving = parts(on_the_way, [of], (), of._accelerators.take())
    on_the_way.send()
    for part in arriving:
        part.add_to(of.in_all[None])
    return of.in_all


def square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def observe(of: Channel, skip: Tensor, branch: Tensor, alpha: float = 1, skip_is_first: bool = True) -> Tensor:
    """One pass through torch's own add."""
    if skip_is_first:
        of.offer_skip(skip, 1)
        of.offer_branch(branch, alpha)
        output = torch.add(skip, branch, alpha=alpha)
    else:
        of.offer_branch(branch, 1)
        of.offer_skip(skip, alpha)
        output = torch.add(branch, skip, alpha=alpha)
    assert of.offer_output(output)
    of.count()
    fetched(of)
    return output


def close(found: float, expected: float) -> bool:
    return found == pytest.approx(expected, rel=2e-4, abs=0)  # of squares: 1e-4 of the norm


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    dtypes=st.tuples(st.sampled_from(FLOATS), st.sampled_from(FLOATS)),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
    seed=st.integers(0, 2**31),
    magnitudes=st.tuples(st.integers(-18, 18), st.integers(-18, 18)),
    alpha=st.sampled_from([1, 1, 2, -0.5]),
    skip_is_first=st.booleans(),
)
def test_squares_of_any_operands(
    shape: list[int],
    dtypes: tuple[torch.dtype, torch.dtype],
    layouts: tuple[str, str],
    seed: int,
    magnitudes: tuple[int, int],
    alpha: float,
    skip_is_first: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    operands = []
    for dtype, layout, magnitude in zip(dtypes, layouts, magnitudes, strict=True):
        if torch.float16 in dtypes:
            magnitude = max(-4, min(magnitude, 3))
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0**magnitude
        whole = laid_out(values.to(dtype), layout)
        operands.append(whole if list(whole.shape) == shape else values.to(dtype))
    skip, branch = operands
    of = channel()
    output = observe(of, skip, branch, alpha, skip_is_first)
    factors = (1, alpha) if skip_is_first else (alpha, 1)
    assert close(of.in_all[SKIP], square(skip) * factors[0] ** 2)
    assert close(of.in_all[BRANCH], square(branch) * factors[1] ** 2)
    assert close(of.in_all[OUTPUT], square(output))
    assert of.in_all[ELEMENTS] == output.numel()
    sampled = of.in_all[MAGNITUDES + 1 : SUMS].sum()
    assert sampled == output.numel() or sampled > 1024 / 8
    if sampled == output.numel():
        assert of.in_all[MAGNITUDES] == pytest.approx(float(output.double().abs().sum()), rel=1e-5)
    assert of.in_all[FORWARD_NONFINITE] == 0
    if of.in_all[PRODUCT]:  # they were read together; else it is told by the squares
        s, f = skip.double() * factors[0], branch.double() * factors[1]
        assert abs(of.in_all[PRODUCT] - float((s * f).sum())) <= 1e-6 * math.sqrt(square(s) * square(f))
    halves = [tensor for tensor in (skip, branch, output) if tensor.dtype in ENDS]
    fill = max((float(tensor.abs().max()) / ENDS[tensor.dtype] for tensor in halves), default=0.0)
    assert of.in_all[FILL] == pytest.approx(fill, rel=1e-6)
    if fetch.is_here(output) or output.dtype in ENDS:
        assert of.in_all[PEAK] == pytest.approx(float(output.abs().max()), rel=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("broken", [[], [math.nan], [math.inf, math.nan], [-math.inf]])
def test_the_largest_magnitude_is_of_what_is_a_number(dtype: torch.dtype, broken: list[float]) -> None:
    for elements in (1, 33, 5000, 70_001):
        skip, branch = torch.randn(elements).to(dtype), torch.randn(elements).to(dtype)
        places = torch.randperm(elements)[: len(broken)]
        skip[places] = torch.tensor(broken[: len(places)], dtype=dtype)
        of = channel()
        output = observe(of, skip, branch, 1, True)
        numbers = output[~output.isnan()].abs().double()
        if fetch.is_here(output) and len(numbers):
            assert of.in_all[PEAK] == float(numbers.max())


def test_operands_that_cancel() -> None:
    """The output is what torch's float32 add leaves, not what the sums of the operands would say."""
    skip = torch.randn(100_000)
    branch = -skip * (1 + 1e-6 * torch.rand(100_000))
    of = channel()
    output = observe(of, skip, branch)
    assert close(of.in_all[OUTPUT], square(output)) and of.in_all[OUTPUT] < 1e-9 * of.in_all[SKIP]


@pytest.mark.parametrize("numel", [*SEAMS, 1, 70_001, (1 << 21) + 12_347])
def test_sizes_around_every_seam(numel: int) -> None:
    skip, branch = torch.randn(numel), 0.1 * torch.randn(numel)
    of = channel()
    output = observe(of, skip, branch)
    assert (
        close(of.in_all[SKIP], square(skip))
        and close(of.in_all[BRANCH], square(branch))
        and close(of.in_all[OUTPUT], square(output))
    )
    assert min(numel, 128) <= of.in_all[MAGNITUDES + 1 : SUMS].sum() <= 1024 or numel < 1024


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["skip", "branch", "sum"])
def test_what_is_not_finite_is_flagged_and_counted(bad: float, side: str) -> None:
    skip, branch = torch.ones(10_000), torch.ones(10_000)
    if side == "sum":
        skip[7] = branch[7] = 3e38  # each is finite
    else:
        {"skip": skip, "branch": branch}[side][7] = bad
    of = channel()
    of.suspect = True  # elsewhere it is counted only then
    observe(of, skip, branch)
    of.gradient(skip + branch)
    fetched(of)
    assert of.in_all[FORWARD_NONFINITE] == of.in_all[BACKWARD_NONFINITE] == 1
    assert not math.isfinite(of.in_all[OUTPUT]) and not math.isfinite(of.in_all[GRADIENT])
    assert math.isfinite(of.in_all[SKIP]) == (side != "skip") and math.isfinite(of.in_all[BRANCH]) == (side != "branch")
    assert of.in_all[MAGNITUDES + 1 + MAGNITUDE_NONFINITE] <= 1


def test_the_output_of_a_fused_kernel_is_read_itself() -> None:
    skip, branch, output = torch.ones(64), torch.ones(64), torch.full((64,), 5.0)
    of = channel(sums_output=False)
    of.offer_skip(skip, 1)
    of.offer_branch(branch, 1)
    assert of.offer_output(output)
    of.count()
    assert fetched(of)[OUTPUT] == pytest.approx(64 * 25.0)


def test_a_branch_that_the_add_overwrites_was_read_before() -> None:
    skip, branch = torch.ones(64), torch.full((64,), 2.0)
    of = channel()
    of.offer_branch(branch, 1)
    of.offer_skip(skip, 1)
    branch += skip
    assert of.offer_output(branch)
    of.count()
    assert fetched(of)[[SKIP, BRANCH, OUTPUT, ELEMENTS]] == pytest.approx([64.0, 256.0, 576.0, 64.0])


def test_passes_add_up_and_what_did_not_reach_the_add_counts_nothing() -> None:
    of = channel()
    ones = torch.ones(10)
    observe(of, ones, ones)
    before = fetched(of).copy()
    assert not of.offer_output(ones)  # no operands
    of.offer_skip(ones, 1)
    assert not of.offer_output(ones)  # no branch
    of.offer_branch(ones, 1)
    assert not of.offer_output(torch.ones(11))  # something else
    of.begin_pass()
    assert not of.offer_output(ones)  # of an earlier pass
    of.offer_skip(torch.ones(4), 1)
    of.offer_branch(ones, 1)
    assert not of.offer_output(ones)  # operands of two sizes
    assert (fetched(of)[:MEDIAN] == before[:MEDIAN]).all()
    observe(of, ones, 2 * ones)
    assert of.in_all[[SKIP, BRANCH, OUTPUT, ELEMENTS]] == pytest.approx([20.0, 50.0, 130.0, 20.0])


def test_a_row_that_moves_keeps_its_numbers() -> None:
    of = channel()
    observe(of, torch.ones(10), torch.ones(10))
    rows = board(2)
    of.move(rows[1])
    observe(of, torch.ones(10), torch.ones(10))
    assert rows[1, IN_ALL, SKIP] == pytest.approx(20)
    assert not rows[0, :, :MEDIAN].any()


def test_gradients_add_up() -> None:
    of = channel()
    observe(of, torch.ones(10), torch.ones(10))
    for gradient in (torch.full((10,), 2.0), torch.full((10,), 3.0, dtype=torch.bfloat16)):
        of.gradient(gradient)
    assert fetched(of)[[GRADIENT, ARRIVED, BACKWARD_NONFINITE]] == pytest.approx([130.0, 2.0, 0.0])


def test_operands_are_not_kept_alive() -> None:
    of = channel()
    skip, branch = torch.ones(10), torch.ones(10)
    of.offer_skip(skip, 1)
    of.offer_branch(branch, 1)
    of.offer_output(skip + branch)
    of.offer_skip(skip, 1)
    of.begin_pass()
    held = [getattr(of, name, None) for name in Channel.__slots__]
    assert not any(isinstance(value, Tensor) for value in held)
    assert np.isfinite(of.in_all[:MEDIAN]).all()
