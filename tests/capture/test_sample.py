"""The sample's coverage and the histogram's buckets, against definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.capture import sample
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


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(values, min_size=0, max_size=16), min_size=1, max_size=5))
def test_histograms_equal_the_definition(rows: list[list[float]]) -> None:
    samples = np.full((len(rows), 16), 7.0, np.float32)  # what lies beyond a row's count must not matter
    for i, row in enumerate(rows):
        samples[i, : len(row)] = row
    table, sums = sample.histograms(samples, np.array([len(row) for row in rows]))
    for i, row in enumerate(rows):
        expected = np.zeros(MAGNITUDE_COLUMNS, int)
        for value in samples[i, : len(row)]:
            expected[column(float(value))] += 1
        assert table[i].tolist() == expected.tolist()
        finite = [abs(float(v)) for v in samples[i, : len(row)] if math.isfinite(v)]
        assert sums[i] == pytest.approx(math.fsum(finite), rel=1e-6)


def test_edges_are_upper_edges() -> None:
    samples = MAGNITUDE_EDGES.astype(np.float32)[None]
    table, _ = sample.histograms(samples, np.array([samples.shape[1]]))
    assert table[0, :MAGNITUDE_LARGER].tolist() == [1] * MAGNITUDE_LARGER


@pytest.mark.parametrize("shape", [(8, 128, 384), (64, 32, 64, 64), (64, 256, 8, 8), (16, 197, 768), (4096,), (1, 1), (3,)])
def test_every_channel_and_position_is_met_alike(shape: tuple[int, ...]) -> None:
    """FACTS.md: a stride of 96 over [8, 128, 384] sees 4 of 384 channels."""
    index = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    into = np.zeros(1024, np.float32)
    count = sample.take(index, into)
    where = np.unravel_index(into[:count].astype(int), shape)
    assert count >= min(math.prod(shape), 512)
    for axis, size in enumerate(shape):
        met = np.bincount(where[axis], minlength=size)
        assert (met > 0).mean() > (0.95 if size * 8 <= count else 0.6 if size <= count else 0.2)
        assert met.max() <= max(4, 2 * count / size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_a_sample_is_made_of_elements_of_the_tensor(dtype: torch.dtype, layout: str) -> None:
    tensor = torch.randn(4, 8, 10, 12).to(dtype)
    if layout == "channels_last":
        tensor = tensor.to(memory_format=torch.channels_last)
    elif layout == "sliced":
        tensor = tensor[:, ::2, 1:, :]
    elif layout == "expanded":
        tensor = tensor[:1].expand(4, 8, 10, 12)
    into = np.full(1024, np.nan, np.float32)
    count = sample.take(tensor.requires_grad_(), into)
    assert 256 <= count <= 1024
    assert set(into[:count].tolist()) <= set(tensor.detach().float().flatten().tolist())
    assert np.isnan(into[count:]).all()


def test_an_empty_tensor_has_an_empty_sample() -> None:
    assert sample.take(torch.empty(0, 4), np.zeros(16, np.float32)) == 0
