"""All detectors over one rank of a run: what the agent, a replay, `tail` and a post-mortem ask.

The bank hands every step, window and logged value to those detectors that want it, keeps one that fails from the others, and groups
what they say by cause. The same records give the same findings, whoever asks and however often it was interrupted between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from resmon.detectors import state
from resmon.detectors.batch_norm import BatchNorm
from resmon.detectors.change import Change
from resmon.detectors.collapsed_skip import CollapsedSkip
from resmon.detectors.dead_branch import DeadBranch
from resmon.detectors.detector import Detector
from resmon.detectors.divergence import Divergence
from resmon.detectors.drift import Drift
from resmon.detectors.drifting_inputs import DriftingInputs
from resmon.detectors.exploding_gradients import ExplodingGradients
from resmon.detectors.frozen_block import FrozenBlock
from resmon.detectors.grouping import Grouping
from resmon.detectors.growing_residual import GrowingResidual
from resmon.detectors.hidden_explosion import HiddenExplosion
from resmon.detectors.nonfinite import NonFinite
from resmon.detectors.options import Tuned, Wrong, tune
from resmon.detectors.oscillation import Oscillation
from resmon.detectors.overfitting import Overfitting
from resmon.detectors.plateau import Plateau
from resmon.detectors.rising_learning_rate import RisingLearningRate
from resmon.detectors.spike_warning import SpikeWarning
from resmon.detectors.stochastic_depth import StochasticDepth
from resmon.detectors.straying_block import StrayingBlock
from resmon.detectors.vanishing_gradients import VanishingGradients
from resmon.detectors.window import Window, Windows
from resmon.records import Finding, ResidualSite, ScalarRecord, StepRecord

# Those that run unless they are switched off.
DETECTORS: tuple[type[Detector], ...] = (
    NonFinite,
    Divergence,
    Overfitting,
    DeadBranch,
    ExplodingGradients,
    VanishingGradients,
    HiddenExplosion,
    RisingLearningRate,
    SpikeWarning,
    Oscillation,
    Plateau,
    FrozenBlock,
    BatchNorm,
    CollapsedSkip,
    GrowingResidual,
    StrayingBlock,
    StochasticDepth,
    DriftingInputs,
    Drift,
    Change,
)

Fault = Callable[[str, Exception], None]  # the detector's name, and what it raised


def options(values: Mapping[str, Any], more: Sequence[type[Detector]] = ()) -> tuple[dict[str, Tuned[Any]], list[Wrong]]:
    """The options of every detector under these settings, and what is wrong with the settings."""
    return tune({kind.name: kind.options for kind in (*DETECTORS, *more)}, values)


class Bank:
    """One rank's detectors. `values` are settings (options.py); what is wrong in them is left at its default.

    `more` are detectors beside the usual ones, of the user. `fault` is told of a detector that raises, which is off from there.
    """

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        more: Sequence[type[Detector]] = (),
        fault: Fault = lambda _name, _error: None,
    ) -> None:
        tuned, self.wrong = options(values or {}, more)
        self._fault = fault
        self._windows = Windows()
        self._grouping = Grouping()
        self._detectors: list[Detector] = []
        for kind in (*DETECTORS, *more):
            if tuned[kind.name].is_on:
                try:
                    self._detectors.append(kind(tuned[kind.name]))
                except Exception as error:  # noqa: BLE001 - a user's, or thresholds from a flight that nobody can use
                    fault(kind.name, error)
        self._sort()

    def _sort(self) -> None:
        """By what they override: most want windows only, and there are many."""
        self._by_step = [each for each in self._detectors if type(each).step is not Detector.step]
        # Symptoms last, so that what explains them in the same window has been told.
        by_weight = sorted(self._detectors, key=lambda each: each.weight == "symptom")
        self._by_window = [each for each in by_weight if type(each).window is not Detector.window]
        self._by_scalars = [each for each in self._detectors if type(each).scalars is not Detector.scalars]

    def step(self, record: StepRecord, sites: Sequence[ResidualSite]) -> list[Finding]:
        """What is found once this step has come."""
        told: list[Finding] = []
        for window in self._windows.add(record, sites):
            told += self._window(window)
        for detector in self._by_step:
            told += self._ask(detector, partial(detector.step, record, sites), record.step)
        return told

    def scalars(self, record: ScalarRecord) -> list[Finding]:
        """What is found once these values were logged."""
        self._windows.log(record)
        told: list[Finding] = []
        for detector in self._by_scalars:
            told += self._ask(detector, partial(detector.scalars, record), record.step)
        return told

    def end(self, step: int, time: float) -> list[Finding]:
        """The run is over: what is open is closed."""
        told: list[Finding] = []
        for window in self._windows.flush():
            told += self._window(window)
        for detector in self._detectors:
            told += self._ask(detector, partial(detector.end, step, time), step)
        return told

    def state(self) -> dict[str, Any]:
        """Everything that it has learnt, as JSON has it."""
        return dict(self.parts(state.as_text))

    def parts(self, bytes_of: Callable[[Any], Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The same part by part: of a thousand blocks it is fifty megabytes, which need not be there all at once. `bytes_of` says
        what stands in the place of an array's bytes."""
        parts = {"windows": self._windows, "grouping": self._grouping} | {f"detector {each.name}": each for each in self._detectors}
        return ((name, state.save(part, bytes_of)) for name, part in parts.items())

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from `saved`, in a new bank of the same settings. Raises state.StateError, after which the bank is of no use."""
        parts = {"windows": self._windows, "grouping": self._grouping} | {f"detector {each.name}": each for each in self._detectors}
        lost = [name for name in saved if name not in parts]
        if lost or any(not name.startswith("detector ") and name not in saved for name in parts):
            raise state.StateError(f"no such part: {', '.join(lost) or 'windows or grouping'}")
        self._detectors = [each for each in self._detectors if f"detector {each.name}" in saved]  # one that failed stays off
        self._sort()
        for name, values in saved.items():
            state.restore(parts[name], values)

    def _window(self, window: Window) -> list[Finding]:
        told: list[Finding] = []
        for detector in self._by_window:
            told += self._ask(detector, partial(detector.window, window), window.step)
        return told

    def _ask(self, detector: Detector, question: Callable[[], Iterable[Finding]], step: int) -> list[Finding]:
        try:
            events = list(question())
        except Exception as error:  # noqa: BLE001 - it would go wrong at every further step
            self._detectors.remove(detector)
            self._sort()
            self._fault(detector.name, error)
            return []
        if not events:
            return events
        return list(self._grouping.of(events, detector.weight, step))
