"""Specifications in sloth's form: what is taken, and everything that is refused, by its line."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.errors import ConfigurationError
from resmon.objectives import spec, windows
from resmon.objectives.spec import Events, Objective, Raw, Tier
from resmon.objectives.windows import Pair, Windows
from tests.objectives.specs import load, service, slo, written

WORKBOOK = windows.policy().windows()

# Every key of the form, as sloth's own examples of the events and raw kinds use them.
WHOLE = """\
---
version: "prometheus/v1"
service: "shop"
labels:
  owner: "payments"
  repo: "acme/shop"
  tier: "2"
  generated: true
slos:
  # two of them
  - name: "requests-availability"
    objective: 99.9
    description: "Requests are answered."
    labels:
      category: availability
      version: 0.20
    sli:
      events:
        error_query: sum(rate(requests_total{job="shop",code=~"(5..|429)"}[{{.window}}]))
        total_query: sum(rate(requests_total{job="shop"}[{{.window}}]))
    alerting:
      name: ShopErrors
      labels:
        category: "availability"
      annotations:
        summary: "Many errors of {{ $labels.slo }}"
      page_alert:
        labels:
          severity: pageteam
          routing_key: payments
      ticket_alert:
        labels:
          severity: "slack"
          slack_channel: "#alerts"
        annotations:
          summary: "Some errors"
  - name: "requests-latency"
    objective: 99
    sli:
      events:
        error_query: |
          (
            sum(rate(request_seconds_count{verb!="WATCH"}[{{ .window }}]))
            -
            sum(rate(request_seconds_bucket{le="0.4",verb!="WATCH"}[{{ .window }}]))
          )
        total_query: sum(rate(request_seconds_count{verb!="WATCH"}[{{ .window }}]))
    alerting:
      page_alert:
        disable: true
---
version: prometheus/v1
service: home
slos:
  - name: wireless
    objective: 95
    sli:
      raw:
        error_ratio_query: |
          1 - (
            sum(sum_over_time(satisfaction_ratio[{{.window}}]))
            /
            sum(count_over_time(satisfaction_ratio[{{.window}}]))
          )
    alerting:
      name: Wireless
      page_alert:
      ticket_alert:
  - name: wireless-events
    objective: 95
    sli:
      events:
        error_query: sum_over_time((count(satisfaction_ratio < 0.75))[{{.window}}:]) OR on() vector(0)
        total_query: sum_over_time((count(satisfaction_ratio))[{{.window}}:])
    alerting:
      page_alert:
        disable: true
      ticket_alert:
        disable: true
"""


def test_the_whole_form_is_read(tmp_path: Path) -> None:
    availability, latency, wireless, events = load(tmp_path, WHOLE, WORKBOOK)
    assert (availability.service, availability.name, availability.alert) == ("shop", "requests-availability", "ShopErrors")
    assert (availability.percent, availability.budget) == (Decimal("99.9"), Fraction(1, 1000))
    assert availability.description == "Requests are answered."
    assert availability.labels == {
        "owner": "payments",
        "repo": "acme/shop",
        "tier": "2",
        "generated": "true",
        "category": "availability",
        "version": "0.20",
    }
    assert isinstance(availability.sli, Events)
    assert availability.sli.bad.over(300) == 'sum(rate(requests_total{job="shop",code=~"(5..|429)"}[5m]))'
    assert availability.tiers == {
        "page": Tier(
            {"category": "availability", "severity": "pageteam", "routing_key": "payments"},
            {"summary": "Many errors of {{ $labels.slo }}"},
        ),
        "ticket": Tier(
            {"category": "availability", "severity": "slack", "slack_channel": "#alerts"},
            {"summary": "Some errors"},
        ),
    }
    assert (list(latency.tiers), latency.alert, latency.guard) == (["ticket"], "ResmonSloRequestsLatency", spec.MINIMUM_EVENTS)
    assert (wireless.service, list(wireless.tiers)) == ("home", ["page", "ticket"])
    assert isinstance(wireless.sli, Raw) and wireless.counted is None and wireless.guard == 0
    assert not events.tiers
    assert list(spec.remarks(wireless)) == [
        (
            "home/wireless: its queries do not say how many events there were, so its alerts have no guard against few of them; "
            "resmon.events_query says it"
        )
    ]
    assert "both alerts are off" in next(spec.remarks(events))
    assert not list(spec.remarks(availability))


def test_what_is_ours_in_an_objective(tmp_path: Path) -> None:
    more = "resmon:\n  minimum_events: 25\n  events_query: sum(increase(requests_total[{{.window}}]))\n"
    raw = "raw: {error_ratio_query: 'errors:ratio{{.window}}'}\n"
    recorded = "events: {error_query: 'errors:rate{{.window}}', total_query: 'requests:rate{{.window}}'}\n"
    slos = [slo("a", sli=raw, more=more), slo("b", sli=recorded), slo("c", sli=recorded, more="resmon: {minimum_events: 2}\n")]
    slos.append(slo("d", more="resmon: {minimum_events: 0}\n"))
    first, unknown, said, off = load(tmp_path, service(*slos), WORKBOOK)
    assert first.guard == 25 and first.counted is not None and "increase" in first.counted.template
    # What a recorded series counts cannot be known: only who says how many it takes has a guard.
    assert unknown.guard == 0 and unknown.counted is None
    assert said.guard == 2 and said.counted is not None
    assert off.guard == 0


MISTAKES = """\
version: prometheus/v2
servise: shop
service: "my shop"
labels: {slo: x, "a-b": y}
slos:
  - name: one
    objective: 100
    sli:
      events:
        error_query: sum(rate(errors_total[{{.window}}])
        total_query: sum(rate(requests_total[5m]))
  - name: one two
    objectiv: 99
    sli:
      raw:
        error_ratio_query: rtae(x[{{.window}}])
      plugin: {id: x}
    alerting:
      page_alert: {disabled: true}
      ticket_alert: {disable: perhaps}
  - name: canary-delta
    objective: 0.999
    objective: 99
    sli: {}
    resmon: {minimum_events: -3}
  - just text
"""


def test_all_mistakes_of_a_file_are_named_at_once_by_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, MISTAKES, WORKBOOK)
    first, *lines = str(caught.value).replace(f"{tmp_path / 'spec.yaml'}, ", "").splitlines()
    assert first == "objectives cannot be used:"
    expected = [
        "line 1, version: must be prometheus/v1 (got 'prometheus/v2')",
        "line 2, servise: there is no such key; the nearest is service",
        "line 3, service: must begin and end with a letter or digit, with only letters, digits and .-_ between (got 'my shop')",
        "line 4, labels: 'slo' is a label that says which objective it is; take another name",
        "line 7, slos[0].objective: 100 leaves no error budget, so there is nothing that could burn; take 99.9",
        "line 10, slos[0].sli.events.error_query: does not parse with a window of 5m: unclosed left parenthesis",
        "line 11, slos[0].sli.events.total_query: must have {{.window}} where the length of the window goes, as in",
        "line 12, slos[1].name: must begin and end with a letter or digit",
        "line 12, slos[1].objective: is missing",
        "line 13, slos[1].objectiv: there is no such key; the nearest is objective",
        "line 16, slos[1].sli.raw.error_ratio_query: does not parse with a window of 5m: unknown function with name 'rtae'",
        "line 17, slos[1].sli.plugin: plugins are programs that sloth runs, and are not read; write the query out as",
        "line 19, slos[1].alerting.page_alert.disabled: there is no such key; the nearest is disable",
        "line 20, slos[1].alerting.ticket_alert.disable: must be true or false (got 'perhaps')",
        "line 21, slos[2].name: 'canary-delta' is reserved for an objective that resmon is to bring",
        "line 22, slos[2].objective: is in percent; is 99.9 meant? (got '0.999')",
        "line 23, slos[2].objective: stands twice; first in line 22",
        "line 24, slos[2].sli: must be one of events (error_query, total_query) and raw (error_ratio_query)",
        "line 25, slos[2].resmon.minimum_events: Input should be greater than or equal to 0 (got '-3')",
        "line 26, slos[3]: must be a mapping (got 'just text')",
    ]
    for line, start in zip(lines, expected, strict=True):
        assert line.strip().startswith(start)


@pytest.mark.parametrize("name", sorted(spec.RESERVED))
def test_reserved_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"line 4, .*'{name}' is reserved .* is not there yet; give yours another name"):
        load(tmp_path, service(slo(name)))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("- a\n", 'line 1: must be a specification that begins with version: "prometheus/v1"'),
        ("apiVersion: sloth.slok.dev/v1\nkind: PrometheusServiceLevel\n", "line 1, apiVersion: is a Kubernetes object"),
        ("version: prometheus/v1\nservice: a\n", "line 1, slos: must be a list of at least one objective"),
        ("version: prometheus/v1\nservice: a\nslos: []\n", "line 3, slos: must be a list of at least one objective"),
        ("version: prometheus/v1\nservice: a\nslos: {a: 1}\n", "line 3, slos: must be a list of at least one objective"),
        ("version: prometheus/v1\nservice: a\nslo_plugins: {chain: []}\nslos: [1]\n", "line 3, slo_plugins: plugins are programs"),
        (service(slo(more="plugins: {chain: [{id: x}]}\n")), "line 10, slos[0].plugins: plugins are programs"),
        (service(more="labels: [a]\n"), "line 3, labels: must be a mapping (got ['a'])"),
        (service(more="labels: {a: [b]}\n"), "line 3, labels.a: must be a text"),
        (service(more="labels: {a: ''}\n"), "line 3, labels: a has no value"),
        (service(slo(more="alerting: {name: a b}\n")), "line 10, slos[0].alerting.name: must be one word"),
        (
            service(slo(more="alerting: {page_alert: {labels: {team: 'x }}'}}}\n")),
            "line 10, slos[0].alerting.page_alert.labels: team has not as many {{ as }}",
        ),
        (
            service(slo(more="alerting: {annotations: {summary: '{{ $value'}}\n")),
            "line 10, slos[0].alerting.annotations: summary has not as many {{ as }}",
        ),
    ],
)
def test_a_mistake_is_named(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text, WORKBOOK)
    assert why in str(caught.value)


def events(bad: str, total: str) -> str:
    return f"events:\n  error_query: {bad}\n  total_query: {total}\n"


@pytest.mark.parametrize(
    ("bad", "total", "why"),
    [
        ("sum(rate(a[{{.window}}]))", "sum(rate(a[{{ .window }}]))", "are the same, so everything would be bad"),
        ("sum(rate(a[{{.window}}]))", "sum(increase(b[{{.window}}]))", "is a rate and the other a number"),
        ("sum by (code) (rate(a[{{.window}}]))", "sum(rate(b[{{.window}}]))", "is grouped by code and total_query by nothing"),
    ],
)
def test_queries_that_do_not_fit_together(bad: str, total: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"line 7, slos\[0\]\.sli\.events: .*" + why):
        load(tmp_path, service(slo(sli=events(bad, total))))


@pytest.mark.parametrize("label", ["service", "slo", "team"])
def test_a_label_by_which_queries_tell_parts_apart_is_not_the_objectives_own(label: str, tmp_path: Path) -> None:
    sli = events(f"sum by ({label}) (rate(a[{{{{.window}}}}]))", f"sum by ({label}) (rate(b[{{{{.window}}}}]))")
    with pytest.raises(ConfigurationError, match=rf"line 6, slos\[0\]\.sli: tells parts apart by {label}"):
        load(tmp_path, service(slo(sli=sli, more="labels: {team: a}\n")))


@pytest.mark.parametrize("text", ["0", "-5", "100", "100.0", "101", ".nan", ".inf", "x", "", "1e-30", "99." + "9" * 20, "[99]"])
def test_an_objective_lies_between_0_and_100(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"line 5, slos\[0\]\.objective: (must be a number|100 leaves)"):
        load(tmp_path, service(slo(objective=text)))


def test_two_objectives_of_one_name_are_refused_also_in_two_files(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"line 10, slos\[1\]\.name: shop has an objective 'availability' already, in line 4"
    ):
        load(tmp_path, service(slo(), slo()))
    paths = [written(tmp_path, service(), "a.yaml"), written(tmp_path, service(), "b.yaml")]
    with pytest.raises(ConfigurationError, match=r"b\.yaml, line 4, slos\[0\]\.name: .* already, in .*a\.yaml, line 4"):
        spec.load(paths)
    assert len(spec.load([paths[0], paths[0]])) == 1
    assert len(load(tmp_path, service() + "---\n" + service(name="other"))) == 2


def test_files_that_cannot_be_read_are_named_beside_mistakes(tmp_path: Path) -> None:
    wrong = written(tmp_path, service(slo(objective="100")))
    with pytest.raises(ConfigurationError) as caught:
        spec.load([tmp_path / "missing.yaml", written(tmp_path, "", "empty.yaml"), written(tmp_path, "a: [", "no.yaml"), wrong])
    text = str(caught.value)
    assert "missing.yaml cannot be read" in text and "empty.yaml is empty" in text
    assert "no.yaml, line 1, column 5, is no YAML" in text and "100 leaves no error budget" in text


def test_an_objective_whose_alert_could_never_fire_is_refused_for_that_tier(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, service(slo(objective="90")), WORKBOOK)
    (line,) = str(caught.value).splitlines()[1:]
    assert line.endswith(
        "line 5, slos[0].objective: page quick (1h/5m) could never fire: a burn rate of 14.4 with a budget of 10 % needs 144 % of "
        "bad events. Set the objective to 93.1 or more, take a policy with lower burn rates (--policy burn-rate-2), or switch that "
        "alert off (alerting.page_alert.disable: true)"
    )
    (tickets,) = load(tmp_path, service(slo(objective="90", more="alerting: {page_alert: {disable: true}}\n")), WORKBOOK)
    assert list(tickets.tiers) == ["ticket"]
    assert load(tmp_path, service(slo(objective="93.1")), WORKBOOK)
    assert load(tmp_path, service(slo(objective="90")), windows.policy("burn-rate-2").windows())


def with_factor(factor: Fraction) -> Windows:
    return Windows("mine", 2_592_000, (Pair("page", "quick", 300, 3600, factor),))


@given(st.decimals("0.001", "99.999", places=3), st.fractions(Fraction(1, 100), 1000, max_denominator=100))
@settings(deadline=None)
def test_what_is_refused_could_not_fire_and_what_is_advised_could(percent: Decimal, factor: Fraction) -> None:
    objective = Objective(
        "shop", "a", percent, Raw(spec.Query("a{{.window}}")), tiers={"page": Tier()}, place=spec.Nit(("objective",), "", 1)
    )
    # float64, by itself: what the worst that can happen, everything bad, burns.
    worst = 1.0 / (1.0 - float(percent) / 100.0)
    nits = list(spec.never_firing(objective, with_factor(factor)))
    if not math.isclose(worst, float(factor), rel_tol=1e-9):
        assert bool(nits) == (worst <= float(factor))
    if nits:
        advised = Decimal(nits[0].message.split("Set the objective to ")[1].split(" or more")[0])
        assert percent < advised < 100
        again = Objective("shop", "a", advised, objective.sli, tiers={"page": Tier()}, place=objective.place)
        assert not list(spec.never_firing(again, with_factor(factor)))


@given(st.decimals("0.000001", "99.999999", places=6))
@settings(deadline=None)
def test_the_budget_is_what_the_objective_leaves(percent: Decimal) -> None:
    objective = Objective("shop", "a", percent, Raw(spec.Query("a{{.window}}")))
    assert float(objective.budget) == pytest.approx(1 - float(percent) / 100, rel=1e-6, abs=1e-15)
    assert objective.budget + Fraction(percent) / 100 == 1


@pytest.mark.parametrize(
    ("name", "alert"), [("training-success", "ResmonSloTrainingSuccess"), ("a_b.c", "ResmonSloABC"), ("99th", "ResmonSlo99th")]
)
def test_the_name_of_an_alert(name: str, alert: str) -> None:
    assert spec.alert_name(name) == alert
