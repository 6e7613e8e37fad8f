"""One page for one cause."""

from __future__ import annotations

from typing import Any

from resmon.detectors.detector import Weight
from resmon.detectors.grouping import TOGETHER, Grouping
from resmon.records import Finding, Severity


def finding(kind: str, step: int, severity: Severity = "page", block: str = "h.1", **evidence: Any) -> Finding:
    return Finding.opened(
        kind, severity, step, float(step), kind, expected="", seen="", confidence=0.5, runbook="", evidence=evidence, block=block
    )


class Telling:
    def __init__(self) -> None:
        self.grouping = Grouping()

    def __call__(self, event: Finding, weight: Weight = "cause") -> list[tuple[str, str, str, dict[str, Any]]]:
        told = self.grouping.of([event], weight, event.step)
        return [
            (each.kind, each.state, each.severity, {key: value for key, value in each.evidence.items() if key != "first"})
            for each in told
        ]


def test_a_symptom_that_a_finding_explains_stands_in_its_evidence() -> None:
    tell = Telling()
    explosion, change = finding("exploding", 100), finding("change", 120, "ticket")
    assert tell(explosion)
    assert tell(change, "symptom") == []
    assert tell(change.closed(130, 130.0, "it was over"), "symptom") == []
    ((*_, evidence),) = tell(explosion.closed(140, 140.0, "it was over"))
    assert evidence == {"beside": [change.id], "beside_count": 1}


def test_a_symptom_alone_is_told() -> None:
    tell = Telling()
    change = finding("change", 120, "ticket")
    assert tell(change, "symptom") == [("change", "opened", "ticket", {})]
    assert tell(finding("drift", 121, "ticket"), "symptom") == [("drift", "opened", "ticket", {})]
    assert tell(change.closed(130, 130.0, "it was over"), "symptom")[0][1] == "closed"


def test_a_symptom_shortly_after_is_explained_and_a_late_one_is_not() -> None:
    tell = Telling()
    ticket = finding("dead", 100, "ticket")
    tell(ticket)
    assert tell(finding("change", 100 + TOGETHER, "ticket"), "symptom") == []
    assert tell(finding("change", 101 + TOGETHER, "ticket"), "symptom")
    tell(ticket.closed(1000, 1000.0, "it was over"))
    assert tell(finding("change", 1000 + TOGETHER, "ticket"), "symptom") == []
    assert tell(finding("change", 1001 + TOGETHER, "ticket"), "symptom")


def test_what_was_there_from_the_start_is_told_though_a_later_finding_is_told_first() -> None:
    tell = Telling()
    tell(finding("divergence", 63, since=16))
    assert tell(finding("straying", 63, "ticket", since=0), "symptom")
    assert tell(finding("straying", 63, "ticket", "h.2", since=15), "symptom")
    assert tell(finding("straying", 64, "ticket", "h.3", since=16), "symptom") == [], "not from the start"
    assert tell(finding("change", 65, "ticket"), "symptom") == []


def test_what_began_with_the_run_explains_what_did_so_too() -> None:
    tell = Telling()
    tell(finding("exploding", 40, since=0))
    assert tell(finding("straying", 63, "ticket", since=0), "symptom") == []


def test_of_pages_that_come_together_the_first_is_one() -> None:
    tell = Telling()
    first, second = finding("exploding", 100), finding("diverging", 150)
    assert tell(first)[0][2] == "page"
    assert tell(second) == [("diverging", "opened", "ticket", {"with": first.id})]
    assert tell(second.closed(160, 160.0, "it was over"))[0][2] == "ticket"
    assert tell(finding("nonfinite", 170), "certain")[0][2] == "page"
    tell(first.closed(200, 200.0, "it was over"))
    assert tell(finding("diverging", 201))[0][2:] == ("ticket", {"with": finding("nonfinite", 170).id})


def test_a_page_behind_one_that_is_over_is_a_page() -> None:
    tell = Telling()
    first = finding("exploding", 100)
    tell(first)
    tell(first.closed(120, 120.0, "it was over"))
    assert tell(finding("diverging", 130))[0][2] == "page"


def test_a_page_that_has_been_open_for_long_is_no_reason_to_let_people_sleep() -> None:
    tell = Telling()
    tell(finding("dead", 100))
    assert tell(finding("exploding", 101 + TOGETHER))[0][2] == "page"
    broken = Telling()
    broken(finding("nonfinite", 100), "certain")
    assert broken(finding("diverging", 101 + TOGETHER))[0][2] == "ticket"  # as long as there are NaN


def test_what_has_long_been_over_is_forgotten() -> None:
    tell = Telling()
    for step in range(0, 100 * TOGETHER, TOGETHER + 1):
        opened = finding("exploding", step)
        tell(opened)
        tell(opened.closed(step, 0.0, "it was over"))
    assert len(tell.grouping._told) <= 2
