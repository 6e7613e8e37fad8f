"""The sample's coverage and the histogram's buckets, against definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.capture.probes.columns import CELLS
from resmon.capture.probes.sample import flat, magnitudes, stride
from resmon.records import (
    MAGNITUDE_COLUMNS,
    MAGNITUDE_EDGES,
    MAGNITUDE_HIGH,
    MAGNITUDE_LARGER,
    MAGNITUDE_LOW,
    MAGNITUDE_NONFINITE,
    MAGNITUDE_ZERO,
)


def column(value: float) -> int:
    """The bucket of one value, as Prometheus' schema 0 defines it: (2^(i-1), 2^i]."""
    if not math.isfinite(value):
        return MAGNITUDE_NONFINITE
    if value == 0:
        return MAGNITUDE_ZERO
    mantissa, exponent = math.frexp(abs(value))
    i = exponent - 1 if mantissa == 0.5 else exponent
    return MAGNITUDE_LARGER if i > MAGNITUDE_HIGH else max(i, MAGNITUDE_LOW) - MAGNITUDE_LOW


values = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.integers(-30, 30).map(lambda i: math.ldexp(1.0, i)),
    st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf]),
)


def histogram(tensor: torch.Tensor, most: int = 1024) -> tuple[float, list[int]]:
    """The sum of the finite magnitudes, and the buckets; what stood in the memory before must not matter."""
    cells = np.full(CELLS, 7.0)
    magnitudes(tensor, most, cells.ctypes.data)
    return cells[0], cells[1:].astype(int).tolist()


def sampled(tensor: torch.Tensor) -> list[int]:
    """Which elements of `tensor`, whose elements are their own indices, are in its sample: seen one at a time."""
    flat = tensor.flatten()
    step = stride(tensor.shape, 1024)
    return flat[::step].to(torch.int64).tolist()


@settings(max_examples=300, deadline=None)
@given(st.lists(values, min_size=0, max_size=40), st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
def test_histograms_equal_the_definition(row: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(row, dtype=torch.float64).to(dtype)
    expected = np.zeros(MAGNITUDE_COLUMNS, int)
    for value in tensor.double().tolist():
        expected[column(value)] += 1
    total, buckets = histogram(tensor)
    assert buckets == expected.tolist()
    assert total == pytest.approx(math.fsum(abs(v) for v in tensor.double().tolist() if math.isfinite(v)), rel=1e-12)


def test_edges_are_upper_edges() -> None:
    _, buckets = histogram(torch.from_numpy(MAGNITUDE_EDGES))
    assert buckets[:MAGNITUDE_LARGER] == [1] * MAGNITUDE_LARGER


@pytest.mark.parametrize(
    "shape", [(8, 128, 384), (64, 32, 64, 64), (64, 256, 8, 8), (16, 197, 768), (4096,), (1, 1), (3,), (5, 5, 6, 7)]
)
def test_every_channel_and_position_is_met_alike(shape: tuple[int, ...]) -> None:
    """A stride of 96 over [8, 128, 384] sees 4 of 384 channels."""
    indices = sampled(torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape))
    count = len(indices)
    where = np.unravel_index(indices, shape)
    assert min(math.prod(shape), 512) <= count <= 1100
    for axis, size in enumerate(shape):
        met = np.bincount(where[axis], minlength=size)
        assert (met > 0).mean() > (0.95 if size * 8 <= count else 0.6 if size <= count else 0.2)
        assert met.max() <= max(4, 2 * count / size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_a_sample_is_made_of_elements_of_the_tensor(dtype: torch.dtype, layout: str) -> None:
    """Elements are powers of two, all alike often, so that each bucket says how many of it were met."""
    tensor = (2.0 ** torch.randint(-3, 4, (4, 8, 10, 12), generator=torch.Generator().manual_seed(1))).to(dtype)
    if layout == "channels_last":
        tensor = tensor.to(memory_format=torch.channels_last)
    elif layout == "sliced":
        tensor = tensor[:, ::2, 1:, :]
    elif layout == "expanded":
        tensor = tensor[:1].expand(4, 8, 10, 12)
    total, buckets = histogram(tensor.requires_grad_())
    met = np.array(buckets[-3 - MAGNITUDE_LOW : 4 - MAGNITUDE_LOW])
    assert 256 <= met.sum() == sum(buckets) <= 2048
    assert met.min() > 0.5 * met.mean()
    assert total == (met * 2.0 ** np.arange(-3, 4)).sum()


def test_an_empty_tensor_has_an_empty_sample() -> None:
    assert histogram(torch.empty(0, 4)) == (0.0, [0] * MAGNITUDE_COLUMNS)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([1, 2, 3, 5, 6, 7, 10, 11, 12, 13, 30, 64, 210]), min_size=0, max_size=4),
    st.sampled_from([16, 64, 1024]),
)
def test_a_sample_is_neither_too_large_nor_too_small(shape: list[int], most: int) -> None:
    numel = math.prod(shape)
    count = -(-numel // stride(tuple(shape), most))
    assert count <= 2 * most
    assert count == numel or count > most / 8


@pytest.mark.parametrize("shape", [(8, 128, 384), (64, 32, 64, 64), (16, 64, 8, 8), (4, 1000, 7)])
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99, 0.999])
def test_a_sample_s_quantiles_are_as_near_as_those_of_independent_draws(shape: tuple[int, ...], quantile: float) -> None:
    """Also where channels and positions differ by orders of magnitude, which a stride that favours some of them would show."""
    torch.manual_seed(0)
    tensor = torch.randn(shape)
    for axis in range(1, len(shape)):
        scale = torch.exp(1.5 * torch.randn(shape[axis]))
        tensor = tensor * scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    whole = np.sort(tensor.abs().flatten().numpy())
    sample = flat(tensor, 1024).abs().numpy()
    rank = np.searchsorted(whole, np.quantile(sample, quantile)) / len(whole)
    assert abs(rank - quantile) < 4 * math.sqrt(quantile * (1 - quantile) / len(sample)) + 1 / len(sample)
