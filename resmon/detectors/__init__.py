"""Detectors turn step records into findings.

A detector is told the sites, then every step in order, and gives finding events (records.Finding). It keeps its own state, knows
neither files nor metrics, and is deterministic: the same records give the same findings, live or replayed. `DETECTORS` is the
table of those that run by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from resmon.detectors.divergence import Divergence
from resmon.detectors.nonfinite import NonFinite
from resmon.detectors.overfitting import Overfitting
from resmon.records import Finding, ResidualSite, ScalarRecord, StepRecord


class Detector(Protocol):
    """What the agent asks of a detector; one instance per run."""

    def step(self, record: StepRecord, sites: Sequence[ResidualSite]) -> Iterable[Finding]:
        """The events that this step brings. `sites` has the order of the record's arrays."""

    def scalars(self, record: ScalarRecord) -> Iterable[Finding]:
        """The events that logged values bring; they may arrive after the step that they belong to."""

    def end(self, step: int, time: float) -> Iterable[Finding]:
        """The run is over: close what is open."""


DETECTORS: tuple[Callable[[], Detector], ...] = (NonFinite, Divergence, Overfitting)
