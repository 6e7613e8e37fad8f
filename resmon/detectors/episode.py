"""From "these blocks look bad in this window" to one finding that opens, grows and closes.

A rule says of every window which blocks are bad. They are one finding a model: it opens when the first has been bad for some
windows in a row, names the block that was bad first and the others as its followers, is told again when it reaches more of them or
becomes a page, and closes when none has been bad for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import numpy as np

from resmon.detectors.window import Window, rearranged
from resmon.quantities import count
from resmon.records import RUN_ENDED, Bools, Finding, Floats, Ints, ResidualSite, Severity

NAMES = 50  # names of blocks that the evidence lists; the count beside them is whole
GROWN = 1.5  # times as many blocks as were told of last are told of again


@dataclass(frozen=True, slots=True)
class Account:
    """What a rule says of a finding that opens or goes on."""

    severity: Severity
    first: str  # sentence without its full stop; it should say since which step
    expected: str
    seen: str
    confidence: float
    more: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


Telling = Callable[[int, Ints], Account]
"""Index of the block that is named, and indices of all that are bad, the named one first; of a rule about the run, 0 and [0]."""


@dataclass(slots=True)
class _Open:
    finding: Finding
    blocks: list[str]
    told: int  # blocks
    windows: int = 1  # in which any was bad
    calm: int = 0


class Episodes:
    """Those of one rule: at most one is open a model."""

    def __init__(self, kind: str, runbook: str, lasts: int = 3, calm: int = 4, over: str = "it was over") -> None:
        self._kind = kind
        self._runbook = runbook
        self._lasts = lasts  # windows in a row that a block must be bad until the finding opens
        self._calm = calm  # windows in a row without a bad block until it closes
        self._over = over  # why it closes: "all branches were back"
        self._sites: tuple[ResidualSite, ...] | None = None
        self._row: Ints = np.zeros(0, np.int64)  # windows in a row
        self._since: Ints = np.zeros(0, np.int64)  # step at which they began
        self._open: dict[str, _Open] = {}

    def is_open(self, model: str = "") -> bool:
        return model in self._open

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    def take(
        self, window: Window, bad: Bools, tell: Telling, *, unknown: Bools | None = None, guilt: Floats | None = None
    ) -> Iterator[Finding]:
        """The events of a window. `bad` [S]; of a block that is `unknown` in this window nothing changes.

        Of blocks that became bad in the same window the one with the most `guilt` is named, else the first in forward order.
        """
        self._arrange(window.sites)
        yield from self._take(window, [site.name for site in window.sites], window.models, bad, tell, unknown, guilt)

    def run(self, window: Window, bad: bool, tell: Callable[[], Account]) -> Iterator[Finding]:
        """The same of a rule about the whole run."""
        if self._sites is None:
            self._arrange((RUN,))
        yield from self._take(window, [""], {"": np.zeros(1, np.int64)}, np.array([bad]), lambda *_: tell(), None, None)

    def since(self, place: int) -> int:
        """The step at which the block's bad windows began."""
        return int(self._since[place])

    def windows(self, place: int) -> int:
        """How many windows in a row it has been bad for."""
        return int(self._row[place])

    def end(self, step: int, time: float) -> list[Finding]:
        """The run is over."""
        events = [each.finding.closed(step, time, RUN_ENDED) for each in self._open.values()]
        self._open.clear()
        return events

    def _arrange(self, sites: tuple[ResidualSite, ...]) -> None:
        if sites is not self._sites:
            self._row = rearranged(self._row, self._sites or (), sites, 0)
            self._since = rearranged(self._since, self._sites or (), sites, 0)
            self._sites = sites

    def _take(
        self,
        window: Window,
        names: Sequence[str],
        models: Mapping[str, Ints],
        bad: Bools,
        tell: Telling,
        unknown: Bools | None,
        guilt: Floats | None,
    ) -> Iterator[Finding]:
        if not (bad.any() or self._open or self._row.any()):
            return
        known = ~unknown if unknown is not None else np.ones(len(bad), bool)
        self._since = np.where(known & bad & (self._row == 0), window.first_step, self._since)
        self._row = np.where(known, np.where(bad, self._row + 1, 0), self._row)
        for model, mine in models.items():
            lasting = self._row[mine] >= self._lasts
            if model in self._open:
                flags = bad & known
                yield from self._go_on(model, window, names, mine[self._row[mine] > 0], flags, bool(known[mine].any()), tell)
            elif lasting.any():
                yield self._opened(model, window, names, mine, lasting, tell, guilt)

    def _opened(
        self, model: str, window: Window, names: Sequence[str], mine: Ints, lasting: Bools, tell: Telling, guilt: Floats | None
    ) -> Finding:
        candidates = mine[lasting]
        earliest = candidates[self._since[candidates] == self._since[candidates].min()]
        lead = int(earliest[0] if guilt is None else earliest[np.argmax(np.nan_to_num(guilt[earliest], nan=-np.inf))])
        others = mine[(self._row[mine] > 0) & (mine != lead)]
        account = tell(lead, np.r_[lead, others])
        followers = [names[i] for i in others]
        in_order = [names[i] for i in mine if self._row[i] > 0]
        evidence = {
            "since": int(self._since[lead]),
            "followers": followers[:NAMES],
            "followers_count": len(followers),
            "blocks": in_order[:NAMES],
            "blocks_count": len(in_order),
        }
        finding = Finding.opened(
            self._kind,
            account.severity,
            window.step,
            window.time,
            account.first,
            account.more,
            model=model,
            block=names[lead],
            expected=account.expected,
            seen=account.seen,
            confidence=account.confidence,
            runbook=self._runbook,
            evidence=(evidence if names[lead] else {"since": evidence["since"]}) | plain(account.evidence),
        )
        self._open[model] = _Open(finding, in_order, len(in_order))
        return finding

    def _go_on(
        self, model: str, window: Window, names: Sequence[str], bad: Ints, now: Bools, seen: bool, tell: Telling
    ) -> Iterator[Finding]:
        """`bad` are those that were so when they were seen last, `now` those that are so in this window."""
        episode = self._open[model]
        if not len(bad):
            episode.calm += bool(seen)
            if episode.calm >= self._calm:
                del self._open[model]
                yield episode.finding.closed(window.step, window.time, self._over)
            return
        episode.calm = 0
        episode.windows += 1
        episode.blocks += [names[i] for i in bad if names[i] not in episode.blocks]
        lead = next((int(i) for i in bad if now[i] and names[i] == episode.finding.block), None)
        worse = False
        if episode.finding.severity == "ticket" and lead is not None:
            account = tell(lead, np.r_[lead, bad[bad != lead]])
            worse = account.severity == "page"
        if not worse and len(episode.blocks) < GROWN * episode.told:
            return
        evidence = dict(episode.finding.evidence)
        evidence |= plain(account.evidence) if worse else {}
        if episode.finding.block:
            evidence |= {"blocks": episode.blocks[:NAMES], "blocks_count": len(episode.blocks)}
        told = f"; by step {window.step} it had reached {count(len(episode.blocks), 'block')}" if len(episode.blocks) > 1 else ""
        told = told or f"; it is so still at step {window.step}"
        episode.told = len(episode.blocks)
        episode.finding = replace(
            episode.finding,
            state="updated",
            severity="page" if worse else episode.finding.severity,
            seen=account.seen if worse else episode.finding.seen,
            confidence=account.confidence if worse else episode.finding.confidence,
            step=window.step,
            time=window.time,
            summary=f"{evidence['first']}{told}.",
            evidence=evidence,
        )
        yield episode.finding


RUN = ResidualSite("", "", "identity", (), (), ())  # what a rule about the run is of


def with_others(blocks: Ints, before: str = "") -> str:
    """The others of those that are bad, as the end of a clause: ", and 2 others with it"; nothing where there is one block."""
    return f", and {before}{count(len(blocks) - 1, 'other')} with it" if len(blocks) > 1 else ""


def plain(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it: numpy's numbers as Python's, and None for a number that is not finite."""
    return {name: _plain(value) for name, value in evidence.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not isfinite(value) else value
