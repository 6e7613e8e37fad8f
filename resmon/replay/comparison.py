"""What a replay says beside what the agent wrote of the run, and beside what it says under other settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Literal

from resmon.agent.findings import key
from resmon.flight import findings as findings_file
from resmon.records import Finding

How = Literal["new", "gone", "changed", "same"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the events of a replay compare with those that the agent has written."""

    written: int
    missing: tuple[Finding, ...]  # that the agent wrote and the replay does not say
    more: tuple[Finding, ...]  # that the replay says and the agent did not write
    differing: tuple[Finding, ...]  # with other words or numbers, as the replay says them

    @property
    def is_same(self) -> bool:
        return not (self.missing or self.more or self.differing)


def against(attempt: Path, events: Sequence[Finding]) -> Agreement:
    """Compare events with those in the attempt's findings.jsonl. The order counts of each finding's events only."""
    written = findings_file.read(attempt)[0]
    theirs, ours = ({key(event): event for event in side} for side in (written, events))
    return Agreement(
        len(written),
        tuple(event for each, event in theirs.items() if each not in ours),
        tuple(event for each, event in ours.items() if each not in theirs),
        tuple(event for each, event in ours.items() if each in theirs and not _same(event, theirs[each])),
    )


def _same(ours: Finding, theirs: Finding) -> bool:
    # Which of several ranks came first is not known afterwards, and each tells its own numbers.
    if ours.evidence.get("rank") != theirs.evidence.get("rank"):
        return True
    return bool(json.loads(json.dumps(asdict(ours))) == asdict(theirs))


@dataclass(frozen=True, slots=True)
class Change:
    """A finding under two settings."""

    how: How
    before: Finding | None
    after: Finding | None
    what: str = ""  # of a changed one

    @property
    def finding(self) -> Finding:
        found = self.after or self.before
        assert found is not None  # noqa: S101, one of the two is there
        return found


def compare(before: Sequence[Finding], after: Sequence[Finding]) -> list[Change]:
    """Which findings settings make new, gone or another one; in the order in which they opened.

    A finding that opens earlier or later is the same one if it is of the same kind and model and the two overlap.
    """
    rest = {finding.id: finding for finding in after}
    pairs: dict[str, Finding] = {}
    for finding in before:
        if finding.id in rest:
            pairs[finding.id] = rest.pop(finding.id)
    for finding in before:
        if finding.id not in pairs:
            other = next((each for each in rest.values() if _overlap(finding, each)), None)
            if other is not None:
                pairs[finding.id] = rest.pop(other.id)
    changes = [_change(finding, pairs.get(finding.id)) for finding in before]
    changes += [Change("new", None, finding) for finding in rest.values()]
    return sorted(changes, key=lambda change: (change.finding.opened_step, change.finding.id))


def _overlap(one: Finding, other: Finding) -> bool:
    if (one.kind, one.model) != (other.kind, other.model):
        return False
    return one.opened_step <= _until(other) and other.opened_step <= _until(one)


def _until(finding: Finding) -> float:
    return finding.step if finding.state == "closed" else inf


def _change(before: Finding, after: Finding | None) -> Change:
    if after is None:
        return Change("gone", before, None)
    what = []
    if after.severity != before.severity:
        what.append(f"a {after.severity}, not a {before.severity}")
    if after.block != before.block:
        what.append(f"names {after.block}, not {before.block}")
    if after.opened_step != before.opened_step:
        what.append(f"opens at step {after.opened_step:,}, not {before.opened_step:,}")
    if (after.state, after.step) != (before.state, before.step):
        what.append(f"{_lasts(after)}, not {_lasts(before)}")
    if not what and replace(after, evidence={}) != replace(before, evidence={}):
        what.append("says it in other words")
    return Change("changed" if what else "same", before, after, "; ".join(what))


def _lasts(finding: Finding) -> str:
    return f"closes at step {finding.step:,}" if finding.state == "closed" else "is open"
