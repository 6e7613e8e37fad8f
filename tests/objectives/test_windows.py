"""The window table: the workbook's numbers, other periods, and policies that people write."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.errors import ConfigurationError
from resmon.objectives import windows
from resmon.rules import durations

DAY = 86_400


def table(name: str, period: str) -> dict[str, float]:
    return {str(pair): float(pair.factor) for pair in windows.policy(name).windows(durations.window(period)).pairs}


def test_the_workbook_has_its_numbers_over_30_days() -> None:
    expected = {"page quick (1h/5m)": 14.4, "page slow (6h/30m)": 6, "ticket quick (1d/2h)": 3, "ticket slow (3d/6h)": 1}
    assert table("workbook", "30d") == expected
    assert {str(pair): float(pair.factor) for pair in windows.policy().windows().pairs} == expected


@pytest.mark.parametrize(
    ("period", "factors"),
    [
        ("7d", (3.36, 1.4, 0.7, 0.7 / 3)),
        ("28d", (13.44, 5.6, 2.8, 2.8 / 3)),
        ("90d", (43.2, 18, 9, 3)),
        ("4w", (13.44, 5.6, 2.8, 2.8 / 3)),
    ],
)
def test_factors_are_recomputed_for_other_periods(period: str, factors: tuple[float, ...]) -> None:
    assert list(table("workbook", period).values()) == pytest.approx(factors, rel=1e-15)


@pytest.mark.parametrize("period", ["7d", "30d", "90d"])
def test_the_second_policy_pages_above_two_in_a_short_window_guarded_by_a_longer_one(period: str) -> None:
    made = windows.policy("burn-rate-2").windows(durations.window(period))
    assert [(pair.short, pair.long, pair.factor) for pair in made.of("page")] == [(300, 3600, 2), (1800, 21_600, 2)]
    assert all(1 <= pair.factor < 2 for pair in made.of("ticket"))


POLICY = """\
apiVersion: sloth.slok.dev/v1
kind: AlertWindows
spec:
  sloPeriod: {period}
  page:
    quick: {{errorBudgetPercent: {share}, shortWindow: {short}, longWindow: {long}}}
    slow: {{errorBudgetPercent: 5, shortWindow: 30m, longWindow: 6h}}
  ticket:
    quick: {{errorBudgetPercent: 10, shortWindow: 2h, longWindow: 1d}}
    slow: {{burnRate: 1.25, shortWindow: 6h, longWindow: 3d}}
"""


def policy(folder: Path, period: str = "30d", share: str = "2", short: str = "5m", long: str = "1h") -> windows.Policy:
    path = folder / "mine.yaml"
    path.write_text(POLICY.format(period=period, share=share, short=short, long=long))
    return windows.policy(str(path))


@given(
    days=st.integers(3, 400),
    other=st.integers(3, 400),
    share=st.decimals("0.001", 100, places=3),
    short=st.integers(1, 3600),
    long=st.integers(1, 3 * DAY),
)
@settings(deadline=None)
def test_a_factor_is_share_times_period_over_long_window(
    days: int, other: int, share: float, short: int, long: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    long += short
    if long > 3 * DAY:
        return
    folder = tmp_path_factory.mktemp("policy")
    made = policy(folder, f"{days}d", str(share), f"{short}s", f"{long}s")
    for period in (days * DAY, other * DAY):
        pair = made.windows(period).pairs[0]
        assert (pair.severity, pair.pace, pair.short, pair.long) == ("page", "quick", short, long)
        assert float(pair.factor) == pytest.approx(float(share) / 100 * period / long, rel=1e-12)
        assert made.windows(period).pairs[3].factor == Fraction(5, 4)  # a burn rate is one over any period
    assert made.windows().period == days * DAY


def test_lengths_are_every_window_and_the_period() -> None:
    lengths = windows.policy().windows().lengths
    assert list(map(durations.written, lengths)) == ["5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d"]


def test_who_is_told_of_what_the_budget_outlasts_is_told_so() -> None:
    assert not list(windows.policy().windows().remarks)
    assert not list(windows.policy().windows(28 * DAY).remarks)  # 0.93, as everybody has it
    assert [remark.split(" tells")[0] for remark in windows.policy().windows(7 * DAY).remarks] == [
        "ticket quick (1d/2h)",
        "ticket slow (3d/6h)",
    ]


def test_a_window_longer_than_the_period_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        windows.policy().windows(DAY)
    assert "workbook.yaml, line 12, spec.ticket.slow.longWindow: 3d is longer than the period of 1d" in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"mine\.yaml, line 10, spec\.ticket\.slow\.longWindow: 3d is longer than"):
        policy(tmp_path, "2d")


def test_all_that_is_wrong_with_a_policy_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "apiVersion: sloth/v2\n"
        "kind: Windows\n"
        "spec:\n"
        "  sloPeriod: month\n"
        "  page:\n"
        "    quick: {errorBudgetPercent: 200, shortWindow: 1h, longWindow: 5m}\n"
        "    slow: {errorBudgetPercent: 1, burnRate: 2, shortWindow: 1h, longWindow: 2h}\n"
        "    slowest: {}\n"
        "  ticket:\n"
        "    quick: [1]\n"
        "    slow: {burnrate: nan, shortWindow: 1h}\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        windows.policy(str(path))
    first, *lines = str(caught.value).replace(f"{path}, ", "").splitlines()
    assert first == f"{path} cannot be used:"
    assert [line.strip() for line in lines] == [
        "line 1, apiVersion: must be sloth.slok.dev/v1 (got 'sloth/v2')",
        "line 2, kind: must be AlertWindows (got 'Windows')",
        "line 4, spec.sloPeriod: must be a duration such as 30m, 2h or 1d12h (got 'month')",
        "line 6, spec.page.quick.shortWindow: 1h must be shorter than the longWindow, 5m",
        "line 6, spec.page.quick.errorBudgetPercent: must be a number above 0 and up to 100 (got '200')",
        "line 7, spec.page.slow: must have one of errorBudgetPercent and burnRate",
        "line 8, spec.page.slowest: there is no such key; the nearest is slow",
        "line 10, spec.ticket.quick: must be a mapping of burnRate, errorBudgetPercent, longWindow, shortWindow",
        "line 11, spec.ticket.slow.burnrate: there is no such key; the nearest is burnRate",
        "line 11, spec.ticket.slow: longWindow is missing",
        "line 11, spec.ticket.slow: must have one of errorBudgetPercent and burnRate",
    ]


@pytest.mark.parametrize("rate", ["0", "-1", "inf", "nan", "1e400", "x", "1e999999999", ""])
def test_a_burn_rate_that_is_no_number(rate: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="must be a number above 0"):
        policy(tmp_path, share=f"'{rate}'")


def test_a_name_that_is_no_policy() -> None:
    with pytest.raises(ConfigurationError, match="there is no policy 'workbok'; the nearest is workbook"):
        windows.policy("workbok")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        windows.policy("missing.yaml")


def test_a_policy_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text("a: 1\n---\nb: 1\n")
    with pytest.raises(ConfigurationError, match="holds 2 documents"):
        windows.policy(str(path))
