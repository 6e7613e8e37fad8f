"""One page for one cause.

What breaks in one place shows in many: a gradient explodes, then the loss diverges, and a dozen charts move. Findings that come
together are told together: a *symptom* that comes while a finding which can explain it is open, or shortly after it opened, is not
told by itself but stands in that finding's evidence, unless it was there from the start and the other was not. Of several *causes*
that come together the first is the page and the others are tickets that name it. What is *certain* (non-finite values) is always
told as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from resmon.detectors.detector import Weight
from resmon.records import Finding

TOGETHER = 256  # steps after its opening in which a finding explains others
LISTED = 20  # others that its evidence lists
BEGINNING = 16  # steps; since when something is so is known to a window


@dataclass(slots=True)
class _Told:
    """A finding that was told, in its newest state, and what it explains."""

    finding: Finding
    weight: Weight
    beside: list[str]


class Grouping:
    """Takes the events of all detectors in order; `of` gives those that are told."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}  # open, or opened a short time ago
        self._kept: set[str] = set()  # ids of symptoms that are not told
        self._under: dict[str, str] = {}  # id of a cause -> that of the page which it came with

    def of(self, events: Iterable[Finding], weight: Weight, step: int) -> Iterator[Finding]:
        """What is told of the events of one detector at this step."""
        for event in events:
            if event.state == "opened":
                self._forget(step)
                if weight == "symptom" and (cause := self._explains(event, step)) is not None:
                    self._kept.add(event.id)
                    cause.beside.append(event.id)
                    continue
                if weight == "cause" and event.severity == "page" and (page := self._page(step)) is not None:
                    self._under[event.id] = page.finding.id
                    page.beside.append(event.id)
            if event.id in self._kept:
                if event.state == "closed":
                    self._kept.discard(event.id)
                continue
            yield self._tell(event, weight)

    def _tell(self, event: Finding, weight: Weight) -> Finding:
        told = self._told.setdefault(event.id, _Told(event, weight, []))
        page = self._under.get(event.id)
        if page is not None:
            event = replace(event, severity="ticket", evidence=event.evidence | {"with": page})
        if told.beside:
            listed = {"beside": told.beside[:LISTED], "beside_count": len(told.beside)}
            event = replace(event, evidence=event.evidence | listed)
        told.finding = event
        if event.state == "closed":
            self._under.pop(event.id, None)
        return event

    def _explains(self, symptom: Finding, step: int) -> _Told | None:
        """What is told already and explains a symptom: the newest. What began later explains nothing that was there at first."""
        began = _began(symptom)
        found = [
            each
            for each in self._told.values()
            if each.weight != "symptom" and self._is_near(each, step) and not began < min(BEGINNING, _began(each.finding))
        ]
        return found[-1] if found else None

    def _page(self, step: int) -> _Told | None:
        """The page that a cause came with."""
        found = [
            each
            for each in self._told.values()
            if each.finding.severity == "page" and each.finding.state != "closed" and self._is_near(each, step)
        ]
        return found[0] if found else None

    def _is_near(self, told: _Told, step: int) -> bool:
        if told.finding.state != "closed":
            return told.weight == "certain" or step - told.finding.opened_step <= TOGETHER
        return step - told.finding.step <= TOGETHER

    def _forget(self, step: int) -> None:
        for id_, told in list(self._told.items()):
            if told.finding.state == "closed" and step - told.finding.step > TOGETHER:
                del self._told[id_]


def _began(finding: Finding) -> int:
    """The step since which it is so, by its own word; else that at which it was told first."""
    return int(finding.evidence.get("since", finding.opened_step))
