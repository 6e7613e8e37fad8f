"""What a detector is: one protocol, which all of them follow, those of users too.

class LoudBranch(Detector):
    name = "loud_branch"

    def __init__(self, tuned=None):
        super().__init__(tuned)
        self._episodes = Episodes("loud_branch", "loud-branch")

    def window(self, window):
        bad = window.median("branch_skip_ratio") > 3.0
        return self._episodes.take(window, bad, lambda lead, all: Account("ticket", ...))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, Protocol

from resmon.detectors.episode import Episodes
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window
from resmon.records import Bools, Finding, ResidualSite, ScalarRecord, StepRecord

# How much a finding explains where several come at once: a symptom is told by the finding that explains it, of several causes the
# first is the page, and what is certain is always said.
Weight = Literal["symptom", "cause", "certain"]


class Detector(Protocol):
    """One instance per rank of a run; it is told everything in the order of the steps, and deterministic.

    Its attributes, `tuned` aside, are its state, which resmon.detectors.state saves and brings back: numbers, texts, arrays,
    lists, tuples, sets, dicts, deques, and objects of classes in resmon.detectors or in the detector's own module.
    """

    name: ClassVar[str]  # in settings; the kind of its findings begins with it
    options: ClassVar[type[Options]] = Options
    weight: ClassVar[Weight] = "cause"
    tuned: Tuned[Any]

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        self.tuned = tuned if tuned is not None else Tuned(self.options())

    def step(self, record: StepRecord, sites: Sequence[ResidualSite]) -> Iterable[Finding]:  # noqa: ARG002
        """The events that this step brings. `sites` has the order of the record's arrays."""
        return ()

    def window(self, window: Window) -> Iterable[Finding]:  # noqa: ARG002
        """The events that these (at most 16) steps bring; called when the first step after them has come."""
        return ()

    def scalars(self, record: ScalarRecord) -> Iterable[Finding]:  # noqa: ARG002
        """The events that logged values bring; they may arrive after the step that they belong to."""
        return ()

    def end(self, step: int, time: float) -> Iterable[Finding]:
        """The run is over: close what is open. Episodes among the attributes are closed here."""
        return [event for each in vars(self).values() if isinstance(each, Episodes) for event in each.end(step, time)]

    def watched(self, window: Window) -> Bools:
        """The sites that it is not switched off for, [S]."""
        enabled: Bools = self.tuned.column("enabled", window.sites)
        return enabled
