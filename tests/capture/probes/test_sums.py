"""Sums of squares against float64, over shapes, layouts, dtypes, sizes and magnitudes."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resmon.capture import _native
from resmon.capture.probes.sums import PIECE, is_dense, nonfinite_count, square_sum
from resmon.errors import UnobservableError

pytestmark = pytest.mark.usefixtures("two_threads")
TOLERANCE = 1e-4  # relative, on the norm; issue 2, point 3


def reference(tensor: torch.Tensor) -> float:
    """The sum of squares by numpy in extended precision, piece by piece."""
    values = tensor.detach().to(torch.float64).numpy().astype(np.longdouble).ravel()
    return float(np.sum(values * values))


def assert_norm_equal(tensor: torch.Tensor) -> None:
    expected = math.sqrt(reference(tensor))
    assert math.sqrt(square_sum(tensor)) == pytest.approx(expected, rel=TOLERANCE, abs=0)


shapes = st.lists(st.integers(1, 12), min_size=0, max_size=5)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
layouts = st.sampled_from(["contiguous", "permuted", "channels_last", "sliced", "strided", "expanded", "flipped"])


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "permuted" and tensor.dim():
        return tensor.permute(*reversed(range(tensor.dim())))
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.to(memory_format=torch.channels_last)
    if layout == "sliced" and tensor.dim():
        return torch.cat([tensor, tensor], dim=-1)[..., : tensor.shape[-1]]
    if layout == "strided" and tensor.dim():
        return tensor.repeat_interleave(3, dim=0)[::3]
    if layout == "expanded":
        return tensor.unsqueeze(0).expand(3, *tensor.shape)
    if layout == "flipped" and tensor.dim():
        return tensor.flip(0)
    return tensor


@settings(max_examples=300, deadline=None)
@given(shape=shapes, dtype=dtypes, layout=layouts, seed=st.integers(0, 2**31), magnitude=st.integers(-18, 18), shift=st.booleans())
def test_any_shape_layout_dtype_and_magnitude(
    shape: list[int], dtype: torch.dtype, layout: str, seed: int, magnitude: int, shift: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) + 3 * shift
    if dtype is torch.float16:
        magnitude = max(-4, min(magnitude, 3))
    assert_norm_equal(laid_out((values * 10.0**magnitude).to(dtype), layout))


# One short of, at and one beyond what is summed in one go, in _native.c and in sums.py, and where the GIL is released.
SEAMS = [n + around for n in (32, 2048, PIECE, 1 << 20) for around in (-1, 0, 1)]


@pytest.mark.parametrize("numel", [*SEAMS, 3 * PIECE + 7, (1 << 20) + 12_347])
@pytest.mark.parametrize("kind", ["random", "constant", "spike", "falling"])
def test_sizes_around_every_seam(numel: int, kind: str) -> None:
    tensor = {
        "random": lambda: torch.randn(numel),
        "constant": lambda: torch.full((numel,), 1.1),
        "spike": lambda: torch.cat([torch.ones(8), torch.full((numel - 8,), 1e-3)]),
        "falling": lambda: torch.logspace(3, -3, numel),
    }[kind]()
    assert_norm_equal(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_64_million_elements(dtype: torch.dtype) -> None:
    tensor = torch.full((64, 1 << 20), 0.75, dtype=dtype)
    assert square_sum(tensor) == pytest.approx(0.75**2 * tensor.numel(), rel=TOLERANCE)


@pytest.mark.parametrize("value", [1.7e19, 1e18, 1e-19, 1e-22, 1e-30])
def test_squares_beyond_float32_are_neither_lost_nor_called_infinite(value: float) -> None:
    tensor = torch.full((300, 1000), value)
    assert square_sum(tensor) == pytest.approx(float(tensor[0, 0].double()) ** 2 * tensor.numel(), rel=TOLERANCE)


def test_float64_beyond_float64_squares_is_finite() -> None:
    assert math.isfinite(square_sum(torch.full((10,), 1e200, dtype=torch.float64)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1234, -1])
def test_one_nonfinite_element_is_seen_and_counted(dtype: torch.dtype, bad: float, where: int) -> None:
    tensor = torch.ones(PIECE + 5, dtype=dtype)
    tensor[where] = bad
    assert not math.isfinite(square_sum(tensor))
    assert nonfinite_count(tensor) == 1


def test_zero_is_zero_and_empty_is_zero() -> None:
    assert square_sum(torch.zeros(5, 7)) == 0.0
    assert square_sum(torch.empty(0, 3)) == 0.0
    assert nonfinite_count(torch.empty(0)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_is_read_as_what_it_is(dtype: torch.dtype) -> None:
    """All 65,536 of them, subnormal ones, infinities and NaN included."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    for value in every.reshape(-1, 64):
        for number, square in zip(value.double().tolist(), map(square_sum, value), strict=True):
            assert square == pytest.approx(number * number, rel=1e-6, nan_ok=True), number


def test_a_tensor_without_memory_is_refused_and_not_read() -> None:
    fake = torch.empty(5, device="meta")
    with pytest.raises(UnobservableError, match="meta"):
        square_sum(fake)
    with pytest.raises(ValueError, match="no memory"):
        _native.square(0, 0, 5, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(shapes, dtypes, layouts), min_size=0, max_size=5))
def test_gradients_are_read_as_each_is_or_left_to_others(wanted: list[tuple[list[int], torch.dtype, str]]) -> None:
    gradients = [laid_out(torch.randn(shape).to(dtype), layout) for shape, dtype, layout in wanted]
    gradients += [None, torch.empty(0), torch.eye(3).to_sparse(), nn.Parameter(torch.ones(2))]
    parameters = tuple(SimpleNamespace(grad=gradient) for gradient in gradients)
    squares, present = np.full(len(parameters) + 1, 7.0), np.full(len(parameters) + 1, True)
    places = np.arange(len(parameters), 0, -1)
    others, total = _native.gradients(parameters, places, squares, present)
    assert squares[0] == 7.0  # nobody's place
    squares, present = squares[places], present[places]
    assert total == pytest.approx(squares.sum(), rel=1e-12)
    for i, gradient in enumerate(gradients):
        plain = type(gradient) is Tensor and gradient.dtype is torch.float32 and gradient.layout is torch.strided
        if plain and gradient.is_contiguous():
            assert squares[i] == square_sum(gradient) and i not in others
        else:
            assert squares[i] == 0 and (i in others) == (gradient is not None)
        assert present[i] == (gradient is not None)


def test_what_is_no_parameter_is_refused() -> None:
    squares, present = np.zeros(2), np.zeros(2, np.bool_)
    one = SimpleNamespace(grad=torch.ones(1))
    for odd, places, error in (
        ((object(),), [0], AttributeError),
        ((one, 5), [0, 1], AttributeError),
        ([], [], SystemError),
        ((one,), [2], IndexError),
        ((one,), [-1], IndexError),
        ((one,), [0, 1], ValueError),
    ):
        with pytest.raises(error):
            _native.gradients(odd, np.array(places, np.intp), squares, present)
    with pytest.raises(ValueError, match="2 items of 1 were expected"):
        _native.gradients((one,), np.zeros(1, np.intp), squares, np.zeros(1, np.bool_))
    with pytest.raises(TypeError, match="4 arguments"):
        _native.gradients((), 0)


@settings(max_examples=100, deadline=None)
@given(shape=shapes, layout=layouts)
def test_a_dense_tensor_holds_every_element_once_in_its_memory(shape: list[int], layout: str) -> None:
    tensor = laid_out(torch.arange(math.prod(shape)).reshape(shape), layout)
    if is_dense(tensor):
        assert sorted(tensor.as_strided((tensor.numel(),), (1,)).tolist()) == sorted(tensor.flatten().tolist())
    else:
        assert layout in ("sliced", "strided", "expanded")


TENSORS: dict[str, Callable[[], Tensor]] = {
    "in order": lambda: torch.randn(3, 4),
    "with gradients": lambda: torch.randn(3, 4, requires_grad=True),
    "one number": lambda: torch.randn(()),
    "empty": lambda: torch.randn(3, 0),
    "behind others": lambda: torch.randn(9)[5:],
    "one of several rows": lambda: torch.randn(4, 6)[2:3],
    "transposed": lambda: torch.randn(3, 4).t(),
    "with gaps": lambda: torch.randn(1, 4)[:, ::2],
    "repeated": lambda: torch.randn(5, 1).expand(5, 3),
    "in double precision": lambda: torch.randn(3, 4).double(),
    "whole numbers": lambda: torch.ones(3, dtype=torch.int32),
    "without memory": lambda: torch.empty(3, device="meta"),
}


class Reticent(Tensor):
    """A tensor as before torch 2.10: it does not tell all of itself in one call."""

    __dlpack_c_exchange_api__ = None


@pytest.mark.parametrize("kind", [Tensor, Reticent])
@pytest.mark.parametrize("made", TENSORS)
def test_what_is_plain_is_told_alike_in_one_call_and_in_several(made: str, kind: type[Tensor]) -> None:
    tensor = TENSORS[made]().as_subclass(kind)
    into = np.zeros(2)
    _native.plain_is(kind, torch.float32, torch.strided)
    try:
        is_finite = _native.arrived(tensor, into.ctypes.data)
    finally:
        _native.plain_is(Tensor, torch.float32, torch.strided)
    if list(TENSORS).index(made) < list(TENSORS).index("transposed"):
        square = float(tensor.detach().as_subclass(Tensor).double().square().sum())
        assert is_finite and into.tolist() == [pytest.approx(square, rel=1e-6), 1]
    else:
        assert is_finite is None and not into.any()


def test_a_sparse_tensor_is_not_plain() -> None:
    into = np.zeros(2)
    assert _native.arrived(torch.randn(3, 4).to_sparse(), into.ctypes.data) is None
    assert not into.any()
