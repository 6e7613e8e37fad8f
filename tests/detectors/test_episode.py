"""The life of a rule's finding, told by which blocks are bad in which window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from resmon.detectors import Account, Episodes
from resmon.detectors.window import Window, Windows
from resmon.records import Columns, Finding, Floats, Ints, ResidualSite, StepRecord
from tests import synthetic
from tests.detectors.course import course


def windows(count: int, sites: Sequence[ResidualSite] | int = 4, first: int = 0) -> list[Window]:
    gathering, made = Windows(), []
    columns, *records = course(16 * count, sites, first=first)
    assert isinstance(columns, Columns)
    for record in records:
        assert isinstance(record, StepRecord)
        made += gathering.add(record, columns.sites)
    return [*made, *gathering.flush()]


def run(
    episodes: Episodes,
    bad: Iterable[Sequence[int]],
    *,
    page_after: int = 1000,
    sites: Sequence[ResidualSite] | int = 4,
    unknown: Iterable[Sequence[int]] = (),
    guilt: Floats | None = None,
) -> list[Finding]:
    """What is said when, window by window, these blocks are bad."""
    rows, absent, events = [list(row) for row in bad], [list(row) for row in unknown], []
    for i, window in enumerate(windows(len(rows), sites)):

        def tell(lead: int, blocks: Ints, window: Window = window) -> Account:
            severity = "page" if episodes.windows(lead) >= page_after else "ticket"
            told = f"{window.sites[lead].name} and {len(blocks) - 1} others since {episodes.since(lead)}"
            return Account(severity, told, expected="calm", seen="a storm", confidence=0.5, evidence={"value": np.float64(np.nan)})  # type: ignore[arg-type]

        flags, hidden = (np.zeros(len(window.sites), bool) for _ in range(2))
        flags[rows[i]] = True
        if absent:
            hidden[absent[i]] = True
        events += episodes.take(window, flags, tell, unknown=hidden, guilt=guilt)
    return events


def made(lasts: int = 3, calm: int = 2) -> Episodes:
    return Episodes("storm", "dead-branch", lasts=lasts, calm=calm, over="all was calm")


def test_it_opens_after_some_windows_in_a_row_and_closes_after_some_calm_ones() -> None:
    opened, closed = run(made(), [[], [2], [2], [], [2], [2], [2], [2], [], []])
    assert (opened.state, opened.block, opened.step, opened.severity) == ("opened", "h.2", 7 * 16 - 1, "ticket")
    assert opened.evidence["since"] == 4 * 16
    assert opened.summary == "h.2 and 0 others since 64."
    assert opened.evidence["value"] is None
    assert (closed.state, closed.id, closed.step) == ("closed", opened.id, 10 * 16 - 1)
    assert "closed because all was calm" in closed.summary


def test_the_block_that_was_bad_first_is_named_and_the_others_follow() -> None:
    (opened,) = run(made(), [[3], [3, 1], [3, 1, 0]])
    assert opened.block == "h.3"
    assert opened.evidence["followers"] == ["h.0", "h.1"]
    assert opened.evidence["blocks"] == ["h.0", "h.1", "h.3"] and opened.evidence["blocks_count"] == 3


def test_of_blocks_that_were_bad_at_once_the_first_or_the_guiltiest() -> None:
    assert run(made(), [[1, 2, 3]] * 3)[0].block == "h.1"
    assert run(made(), [[1, 2, 3]] * 3, guilt=np.array([9.0, np.nan, 1.0, 5.0]))[0].block == "h.3"


def test_it_is_told_again_when_it_has_reached_half_as_many_more() -> None:
    events = run(made(), [[1]] * 3 + [[1, 2]] * 3 + [[1, 2, 3]] * 3)
    assert [(event.state, event.evidence["blocks_count"]) for event in events] == [("opened", 1), ("updated", 2), ("updated", 3)]
    assert "had reached 2 blocks" in events[1].summary
    assert len({event.id for event in events}) == 1


def test_a_ticket_becomes_a_page_once_and_never_a_ticket_again() -> None:
    events = run(made(), [[1]] * 9 + [[], [1], [1]], page_after=6)
    assert [(event.state, event.severity, event.step) for event in events] == [("opened", "ticket", 47), ("updated", "page", 95)]


def test_a_block_that_is_not_there_neither_counts_nor_calms() -> None:
    nothing: list[int] = []
    bad = [[1], [1], nothing, nothing, [1], nothing, nothing]
    events = run(made(), bad, unknown=[[], [], [1], [1], [], [0, 1, 2, 3], [0, 1, 2, 3]])
    assert [(event.state, event.evidence["since"]) for event in events] == [("opened", 0)]


def test_nothing_is_asked_about_a_block_that_is_not_there() -> None:
    """Its numbers are NaN in that window."""
    episodes = made()
    asked = []
    for i, window in enumerate(windows(8)):
        hidden = np.arange(4) == 1 if i >= 5 else np.zeros(4, bool)

        def tell(lead: int, blocks: Ints, i: int = i) -> Account:
            asked.append(i)
            return Account("ticket", "It is so", expected="calm", seen="a storm", confidence=0.5)

        list(episodes.take(window, np.arange(4) == 1, tell, unknown=hidden))
    assert asked == [2, 3, 4]


def test_models_have_findings_of_their_own() -> None:
    sites = [*synthetic.sites(2, "actor"), *synthetic.sites(2, "critic")]
    events = run(made(), [[0, 3]] * 3, sites=sites)
    assert [(event.model, event.block, event.evidence["followers"]) for event in events] == [
        ("actor", "h.0", []),
        ("critic", "h.1", []),
    ]


def test_blocks_that_change_keep_what_is_known_of_them() -> None:
    episodes = made()
    run(episodes, [[1], [1]], sites=synthetic.sites(3))
    (opened,) = run(episodes, [[0]], sites=synthetic.sites(3)[1:])
    assert opened.block == "h.1" and opened.evidence["since"] == 0


def test_a_rule_about_the_run_names_no_block() -> None:
    episodes, events = made(), []
    for window, bad in zip(windows(6), [True] * 4 + [False] * 2, strict=True):
        events += episodes.run(window, bad, lambda: Account("page", "It is so", expected="a", seen="b", confidence=1.0))
    assert [(event.state, event.block, event.severity) for event in events] == [("opened", "", "page"), ("closed", "", "page")]
    assert events[0].evidence == {"first": "It is so", "since": 0}


def test_the_end_of_the_run_closes_what_is_open() -> None:
    episodes = made()
    run(episodes, [[1]] * 3)
    (closed,) = episodes.end(99, 5.0)
    assert (closed.state, closed.step) == ("closed", 99) and "the run ended with it" in closed.summary
    assert episodes.end(99, 5.0) == []
