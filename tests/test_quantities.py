"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from resmon.quantities import became, count, duration, in_units, listed, moment, number, power, size


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (0.01234, "0.0123"), (999.4, "999"), (1234.5, "1,234"), (1.5e8, "1.50e+08"), (3e-7, "3.00e-07"), (-2.5, "-2.5")],
)
def test_numbers(value: float, said: str) -> None:
    assert number(value) == said


def test_what_is_no_number() -> None:
    assert [number(math.nan), number(math.inf), number(-math.inf)] == ["NaN", "infinite", "−infinite"]
    assert (became(math.inf), became(2.0)) == ("became infinite", "reached 2")
    assert moment(math.inf) == "an unknown time"
    assert duration(math.inf) == "unknown"


def test_units() -> None:
    assert [duration(s) for s in (0.0123, 4.5, 59.99, 3599.7, 7261, 200_000)] == [
        "12.3 ms",
        "4.5 s",
        "1 min 0 s",
        "1 h 0 min",
        "2 h 1 min",
        "2 d 7 h",
    ]
    assert [size(n) for n in (0, 999, 1023, 1536, 2.5e9, 1e15)] == ["0 B", "999 B", "0.999 KiB", "1.5 KiB", "2.33 GiB", "909 TiB"]
    assert in_units("data_seconds", 0.5) == "500 ms"
    assert in_units("memory_free", 2**31) == "2 GiB"
    assert in_units("gradient_norm", 0.5) == "0.5"
    assert [power(10, -12), power(10, 2), power(2, 20)] == ["10⁻¹²", "100", "2²⁰"]


def test_lists() -> None:
    assert (count(1, "block"), count(1200, "block"), count(2, "quantity", "quantities")) == (
        "1 block",
        "1,200 blocks",
        "2 quantities",
    )
    assert [listed([]), listed(["a"]), listed(["a", "b"]), listed(list("abcdef"))] == ["", "a", "a and b", "a, b, c, d and 2 more"]
