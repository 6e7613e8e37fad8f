"""What is known of a query by parsing it."""

from __future__ import annotations

import pytest

from resmon.objectives.query import Query


@pytest.mark.parametrize("window", ["{{.window}}", "{{ .window }}", "{{-.window -}}", "{{  .window}}"])
def test_both_spellings_of_the_window(window: str) -> None:
    assert Query(f"rate(a[{window}])").over(5400) == "rate(a[1h30m])"


def test_it_comes_in_one_line_without_comments() -> None:
    query = Query('sum(  # "all"\n  rate(a{b="x  # y", c=\'\\\'  d\'}[{{.window}}])\n)\n')
    assert query.over("5m") == "sum( rate(a{b=\"x  # y\", c='\\'  d'}[5m]) )"
    assert not query.nits


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("", "must be a query"),
        ("  \n", "must be a query"),
        ("rate(a[5m])", "must have {{.window}}"),
        ("rate(a[{{window}}])", "must have {{.window}}"),
        ("sum(rate(a[{{.window}}])", "does not parse with a window of 5m: "),
        ("rte(a[{{.window}}])", "unknown function"),
        ("rate(a[{{.window}}]) * {{.factor}}", "has {{ besides {{.window}}"),
        ("a[{{.window}}]", "gives a range of samples"),
        ("a[{{.window}}:1m]", "gives a range of samples"),
        ("vector(1) > {{.window}}", "reads no series"),
        ("'{{.window}}'", "reads no series"),
        ('label_replace(vector(1), "a", "{{.window}}", "", "")', "reads no series"),
    ],
)
def test_what_is_wrong_is_said(template: str, why: str) -> None:
    (nit,) = Query(template).nits
    assert why in nit


@pytest.mark.parametrize(
    ("template", "per_second", "additive", "labels"),
    [
        ("sum(rate(a[{{.window}}]))", True, True, ()),
        ("(sum by (b, a) (increase(a[{{.window}}])))", False, True, ("a", "b")),
        ("sum(rate(a[{{.window}}])) - sum(rate(b[{{.window}}]))", True, True, None),
        ("sum without (x) (a:rate{{.window}})", False, False, None),
        ("count(max_over_time(a[{{.window}}]))", False, False, ()),
        ("sum_over_time((count(a < 1))[{{.window}}:]) or on() vector(0)", False, True, None),
    ],
)
def test_what_it_counts(template: str, per_second: bool, additive: bool, labels: tuple[str, ...] | None) -> None:
    query = Query(template)
    assert not query.nits
    assert (query.is_per_second, query.is_additive, query.labels) == (per_second, additive, labels)
