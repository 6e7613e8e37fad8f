"""The rules of an objective, as promtool and a parser see them."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.objectives import rules, windows
from resmon.objectives.proofs import Scene
from resmon.objectives.rules import Addresses
from resmon.rules import Alert, Case, QueryTest, Recording, Sample, Series, metrics, nit, rule_file, unit_test_file
from tests.objectives.specs import load, service, slo
from tests.programs import program

WORKBOOK = windows.policy().windows()
RAW = "raw: {error_ratio_query: 'errors:ratio{{.window}}'}\n"
GROUPED = """\
events:
  error_query: sum by (code) (rate(bad_total[{{.window}}]))
  total_query: sum by (code) (rate(all_total[{{.window}}]))
"""


def recordings(folder: Path, text: str) -> dict[str, Recording]:
    (objective,) = load(folder, text, WORKBOOK)
    return {rule.record: rule for rule in rules.group(objective, WORKBOOK).rules if isinstance(rule, Recording)}


def alerts(folder: Path, text: str) -> list[Alert]:
    (objective,) = load(folder, text, WORKBOOK)
    return [rule for rule in rules.group(objective, WORKBOOK).rules if isinstance(rule, Alert)]


def promtool(folder: Path, *arguments: str) -> str:
    found = subprocess.run([program("promtool"), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_series_have_sloths_names(tmp_path: Path) -> None:
    found = recordings(tmp_path, service(more="labels: {owner: payments}\n"))
    ratios = {f"slo:sli_error:ratio_rate{window}" for window in ("5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d")}
    meta = {f"slo:{name}" for name in ("objective:ratio", "error_budget:ratio", "time_period:days", "current_burn_rate:ratio")}
    meta |= {"slo:period_burn_rate:ratio", "slo:period_error_budget_remaining:ratio"}
    assert ratios | meta <= set(found)
    assert set(found) - ratios - meta == {"slo:sli_error:events5m"} | {
        f"slo:sli_total:events{window}" for window in ("5m", "1h", "6h", "1d", "3d", "30d")
    }
    assert all(rule.labels == {"service": "shop", "slo": "availability", "owner": "payments"} for rule in found.values())
    assert found["slo:objective:ratio"].expr == "vector(0.999)" and found["slo:error_budget:ratio"].expr == "vector(0.001)"


def test_up_to_six_hours_queries_are_asked_and_beyond_sums_are_summed(tmp_path: Path) -> None:
    found = recordings(tmp_path, service())
    assert metrics(found["slo:sli_error:ratio_rate6h"].expr) == {"requests_total"}
    for window in ("1d", "3d", "30d"):
        assert metrics(found[f"slo:sli_error:ratio_rate{window}"].expr) == {"slo:sli_error:events5m", "slo:sli_total:events5m"}
    nested = (
        "events: {error_query: 'sum_over_time(count(a)[{{.window}}:])', total_query: 'sum_over_time(count(b)[{{.window}}:])'}\n"
    )
    found = recordings(tmp_path, service(slo(sli=nested)))
    assert metrics(found["slo:sli_error:ratio_rate1h"].expr) == {"a", "b"}
    assert metrics(found["slo:sli_error:ratio_rate2h"].expr) == {"slo:sli_error:events5m", "slo:sli_total:events5m"}
    counted = "events: {error_query: 'count(max_over_time(a[{{.window}}]))', total_query: 'count(max_over_time(b[{{.window}}]))'}\n"
    assert metrics(recordings(tmp_path, service(slo(sli=counted)))["slo:sli_error:ratio_rate30d"].expr) == {"a", "b"}
    raw = recordings(tmp_path, service(slo(sli=RAW)))
    assert raw["slo:sli_error:ratio_rate30d"].expr == "(errors:ratio30d)"
    assert not [name for name in raw if "events" in name]


def test_groups_have_names_of_their_own(tmp_path: Path) -> None:
    """Prometheus refuses a file with two groups of one name."""
    objectives = load(tmp_path, service(slo("b-c"), name="a") + "---\n" + service(slo("c"), name="a-b"))
    (tmp_path / "rules.yaml").write_text(rule_file([rules.group(each, WORKBOOK) for each in objectives], ""))
    assert "SUCCESS" in promtool(tmp_path, "check", "rules", "rules.yaml")
    assert [rules.group(each, WORKBOOK).name for each in objectives] == ["slo a/b-c", "slo a-b/c"]


def test_an_average_of_ratios_is_nowhere(tmp_path: Path) -> None:
    for sli in (RAW, GROUPED):
        for rule in recordings(tmp_path, service(slo(sli=sli))).values():
            assert "avg" not in rule.expr and "sum_over_time(slo:sli_error:ratio" not in rule.expr


def test_a_period_shorter_than_what_is_summed(tmp_path: Path) -> None:
    short = windows.Windows("mine", 6 * 3600, WORKBOOK.of("page"))
    (objective,) = load(tmp_path, service(slo(more="alerting: {ticket_alert: {disable: true}}\n")))
    (tmp_path / "rules.yaml").write_text(rule_file([rules.group(objective, short)], ""))
    assert "SUCCESS" in promtool(tmp_path, "check", "rules", "rules.yaml")


def test_one_burn_is_one_alert(tmp_path: Path) -> None:
    """Both alerts have one name, the labels of a burn do not tell which windows it was, and the ticket leaves out the page."""
    page, ticket = alerts(tmp_path, service())
    assert page.alert == ticket.alert == "ResmonSloAvailability"
    same = {"service": "shop", "slo": "availability", "tier": "slo"}
    assert (page.labels, ticket.labels) == ({"severity": "page", **same}, {"severity": "ticket", **same})
    assert page.expr.strip() in ticket.expr and "\nunless\n" in ticket.expr
    (alone,) = alerts(tmp_path, service(slo(more="alerting: {page_alert: {disable: true}}\n")))
    assert "unless" not in alone.expr


def test_what_the_file_says_stands_before_what_is_usual(tmp_path: Path) -> None:
    more = """\
    alerting:
      name: ShopErrors
      labels: {severity: critical, team: a}
      annotations: {summary: "{{ $value }}", runbook: there}
    """
    page, _ = alerts(tmp_path, service(slo(more=more), more='labels: {tier: "2"}\n'))
    assert page.alert == "ShopErrors"
    # The label tier of the file's own comes with the series.
    assert page.labels == {"severity": "critical", "service": "shop", "slo": "availability", "team": "a"}
    assert page.annotations["summary"] == "{{ $value }}" and page.annotations["runbook"] == "there"
    assert set(page.annotations) == {"summary", "description", "runbook_url", "dashboard_url", "runbook"}


def test_alerts_link_to_their_pages(tmp_path: Path) -> None:
    (objective,) = load(tmp_path, service())
    addresses = Addresses.of("https://books/", "https://boards/d/")
    found = rules.alert_annotations(objective, WORKBOOK, "page", addresses)
    assert found["runbook_url"] == "https://books/error-budget.md"
    assert found["dashboard_url"] == "https://boards/d/resmon-slo?var-service=shop&var-slo=availability"


@pytest.mark.parametrize("text", ['"', "\\", "'", "{{ .x }}", "{{", "}}", "$labels", "a: b # c", "é\n\nb", "{{{{", "`"])
def test_a_description_is_a_text_and_no_template(text: str, tmp_path: Path) -> None:
    (objective,) = load(tmp_path, service(slo(more=f"description: {json.dumps(text)}\n")), WORKBOOK)
    series = [
        Series('slo:sli_error:ratio_rate1h{service="shop",slo="availability"}', "1x10"),
        Series('slo:sli_error:ratio_rate5m{service="shop",slo="availability"}', "1x10"),
        Series('slo:sli_total:events1h{service="shop",slo="availability"}', "10x10"),
    ]
    scene = Scene(objective, WORKBOOK, Addresses())
    fires = scene.fires("5m", "page", 1000)
    assert fires.firing[0].annotations["description"].startswith(" ".join(text.split()))
    (tmp_path / "rules.yaml").write_text(rule_file([rules.group(objective, WORKBOOK)], ""))
    (tmp_path / "tests.yaml").write_text(unit_test_file(["rules.yaml"], [Case("it says what the file says", series, [fires])], ""))
    promtool(tmp_path, "test", "rules", "tests.yaml")


def test_what_objectives_tell_apart_stays_apart(tmp_path: Path) -> None:
    """Each value of a label has its own budget and its own alert; where no bad event was ever seen there were 0."""
    (objective,) = load(tmp_path, service(slo(sli=GROUPED)), WORKBOOK)
    (tmp_path / "rules.yaml").write_text(rule_file([rules.group(objective, WORKBOOK)], ""))
    mine = '{service="shop",slo="availability"}'
    labels = 'service="shop",slo="availability"'
    case = Case(
        "one part burns, one is well, of one nothing bad was ever seen, and in one nothing happens",
        [
            Series('bad_total{code="a"}', "0+50x20"),
            Series('bad_total{code="b"}', "0x20"),
            *(Series(f'all_total{{code="{code}"}}', "0+100x20") for code in "abc"),
            Series('all_total{code="d"}', "0x20"),
        ],
        queries=[
            QueryTest(
                "15m",
                f"slo:sli_error:ratio_rate{window}{mine}",
                [
                    Sample(f'slo:sli_error:ratio_rate{window}{{code="{code}",{labels}}}', share)
                    for code, share in (("a", 0.5), ("b", 0), ("c", 0))
                ],
            )
            for window in ("5m", "1h", "30d")
        ]
        + [
            QueryTest(
                "15m",
                'ALERTS{severity="page"}',
                [
                    Sample(
                        f'ALERTS{{alertname="ResmonSloAvailability",alertstate="firing",code="a",severity="page",tier="slo",{labels}}}',
                        1,
                    )
                ],
            )
        ],
    )
    (tmp_path / "tests.yaml").write_text(unit_test_file(["rules.yaml"], [case], ""))
    promtool(tmp_path, "test", "rules", "tests.yaml")


def test_a_guard_by_a_query_of_its_own(tmp_path: Path) -> None:
    more = "resmon:\n  minimum_events: 20\n  events_query: sum(rate(requests_total[{{.window}}]))\n"
    text = service(slo(sli="raw: {error_ratio_query: 'max by (zone) (errors:ratio{{.window}})'}\n", more=more))
    (objective,) = load(tmp_path, text, WORKBOOK)
    (tmp_path / "rules.yaml").write_text(rule_file([rules.group(objective, WORKBOOK)], ""))
    ratios = [Series(f'errors:ratio{window}{{zone="z"}}', "1x90") for window in ("5m", "1h")]
    pages = 'count(ALERTS{severity="page",zone="z"})'
    cases = [
        Case(
            f"{requests} requests a minute are {'' if fires else 'not '}enough",
            [*ratios, Series("requests_total", f"0+{requests}x90")],
            queries=[QueryTest("80m", pages, [Sample("{}", 1)] if fires else [])],
        )
        for requests, fires in ((0.3, False), (0.4, True))
    ]
    (tmp_path / "tests.yaml").write_text(unit_test_file(["rules.yaml"], cases, ""))
    promtool(tmp_path, "test", "rules", "tests.yaml")


BUSY = """\
events:
  error_query: sum(increase(bad_total[{{.window}}]))
  total_query: sum(increase(all_total[{{.window}}]))
"""


def test_a_long_window_weighs_events_and_not_minutes(tmp_path: Path) -> None:
    """Ten busy hours without a fault, then as many quiet ones in which everything fails: 1 in 101 events is bad, not a half."""
    (objective,) = load(tmp_path, service(slo(sli=BUSY)), WORKBOOK)
    (tmp_path / "rules.yaml").write_text(rule_file([rules.group(objective, WORKBOOK)], ""))
    case = Case(
        "busy and well, then quiet and broken",
        [Series("all_total", "0+100x600 60001+1x599"), Series("bad_total", "0x600 1+1x599")],
        queries=[
            QueryTest("20h", f"round({name}, 0.0001)", [Sample('{service="shop",slo="availability"}', value)])
            for name, value in (
                ("slo:sli_error:ratio_rate1d", 0.0099),
                ("slo:sli_error:ratio_rate30d", 0.0099),
                ("slo:sli_error:ratio_rate6h", 1),
            )
        ]
        + [
            QueryTest(
                "20h", "abs(slo:sli_total:events1d / 60600 - 1) < bool 0.01", [Sample('{service="shop",slo="availability"}', 1)]
            )
        ],
    )
    (tmp_path / "tests.yaml").write_text(unit_test_file(["rules.yaml"], [case], ""))
    promtool(tmp_path, "test", "rules", "tests.yaml")


@given(st.fractions(0, 10**6), st.floats(0, 1e9))
@settings(deadline=None)
def test_a_number_in_a_query_is_the_same_float(fraction: Fraction, value: float) -> None:
    assert float(rules.number(fraction)) == float(fraction) and float(rules.number(value)) == value
    assert nit(f"a > {rules.number(fraction)}") is None and nit(f"a > {rules.number(value)}") is None
