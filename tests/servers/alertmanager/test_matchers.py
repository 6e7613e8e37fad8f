"""Matchers as Alertmanager has them, and which silences are refused for what they match."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resmon.errors import ConfigurationError
from resmon.servers.alertmanager import Alert, Alertmanager, Matcher, checked, length, matches


@given(
    st.from_regex("[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True),
    st.text(max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_what_is_written_is_read_as_it_was(name: str, value: str, is_regex: bool, is_equal: bool) -> None:
    matcher = Matcher(name, value, is_regex, is_equal)
    assert Matcher.parse(str(matcher)) == matcher


@pytest.mark.parametrize(
    ("text", "matcher"),
    [
        ("run=a", Matcher("run", "a")),
        (" block =~ h[.].* ", Matcher("block", "h[.].*", True)),
        ('run!="a b"', Matcher("run", "a b", is_equal=False)),
        ('run!~"a\\"b"', Matcher("run", 'a"b', True, False)),
        ("run=a=b", Matcher("run", "a=b")),
        ("run=", Matcher("run", "")),
    ],
)
def test_as_people_write_them(text: str, matcher: Matcher) -> None:
    assert Matcher.parse(text) == matcher


@pytest.mark.parametrize("text", ["", "run", "=a", "1run=a", "a b=c", 'run="a', 'run="a"b', "modèle=a"])
def test_what_is_no_matcher_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Matcher.parse(text)


def test_they_match_as_the_server_says(client: Alertmanager) -> None:
    """The real one filters the same alerts by the same matchers."""
    labels = [
        {"alertname": "Match", "run": "a"},
        {"alertname": "Match", "run": "ab", "block": "h.0"},
        {"alertname": "Match", "run": 'q"\\\n', "block": "h.10"},
        {"alertname": "Match", "block": "é.9"},
    ]
    client.post(map(Alert, labels))
    one = Matcher("alertname", "Match")
    tried = [
        Matcher("run", "a"),
        Matcher("run", ""),
        Matcher("run", "", is_equal=False),
        Matcher("run", 'q"\\\n'),
        Matcher("run", "a.*", True),
        Matcher("run", "b", True),
        Matcher("block", "h[.][0-9]", True),
        Matcher("block", r"h\.\d+", True),
        Matcher("block", r"\w.9", True),
        Matcher("block", "a|h.0", True, False),
        Matcher("block", ".+", True, False),
    ]
    for matcher in tried:
        found = {alert.labels.get("run", "–") for alert in client.alerts(one, matcher)}
        assert found == {each.get("run", "–") for each in labels if matches([one, matcher], each)}, str(matcher)


NAMED = [
    Matcher("run", "a"),
    Matcher("model", "gpt.*", True),
    Matcher("alertname", "ResmonDrift"),
    Matcher("block", "h[.][0-9]+", True),
]
EVERYTHING = [
    Matcher("run", ".*", True),
    Matcher("run", ".+", True),
    Matcher("alertname", "(.|\n)+", True),
    Matcher("alertname", "[^x].*|x.*", True),
    Matcher("run", "", True),
    Matcher("run", "a", is_equal=False),
    Matcher("run", "a.*", True, False),
    Matcher("run", "a|", True),
    Matcher("severity", "page"),
    Matcher("severity", "page|ticket", True),
    Matcher("tier", "slo"),
]


@pytest.mark.parametrize("matcher", NAMED, ids=str)
def test_a_silence_that_names_something_is_allowed(matcher: Matcher) -> None:
    checked([matcher], "why")
    checked([*EVERYTHING, matcher], "why")


@pytest.mark.parametrize("matcher", EVERYTHING, ids=str)
def test_a_silence_that_matches_everything_is_refused(matcher: Matcher) -> None:
    for matchers in ([matcher], [matcher, Matcher("severity", "ticket")], EVERYTHING):
        with pytest.raises(ConfigurationError, match="every alert"):
            checked(matchers, "why")


def test_a_name_that_not_every_server_takes_is_refused_and_read() -> None:
    """Newer servers have silences with such names, made by others: they are shown."""
    matcher = Matcher("modèle", "a")
    with pytest.raises(ConfigurationError, match="'modèle' is no label's name"):
        checked([matcher], "why")
    assert str(matcher) == 'modèle="a"' and matcher.fits("a")


def test_all_that_is_wrong_with_a_silence_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"names nothing.* no comment.* Name a model"):
        checked([], " ")
    with pytest.raises(ConfigurationError, match=r"1,001 characters; 1,000 are the most"):
        checked(NAMED, "x" * 1001)
    with pytest.raises(ConfigurationError, match="no expression that can be read"):
        checked([Matcher("run", "a(", True)], "why")


def test_the_time_of_a_silence_is_a_duration_or_seconds() -> None:
    assert length("1h30m") == length(" 1h30m ") == length(5400) == 5400


@pytest.mark.parametrize("text", ["", "2", "2 h", "30m2h"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"the time of a silence must be a duration such as 30m, 2h or 1d12h"):
        length(text)


@pytest.mark.parametrize("duration", ["0s", "31d", 0, -1.0, float("nan"), float("inf")])
def test_a_silence_ends_in_time(duration: str | float) -> None:
    with pytest.raises(ConfigurationError, match=r"more than 0s and at most 30d"):
        length(duration)
