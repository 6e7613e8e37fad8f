"""What first alarms are worth: false alarms, delay, misses; and the limit at which there are as many false alarms as asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.detectors.contenders import Contender, Ints, middle
from benchmarks.detectors.streams import JUDGED, Floats

TARGET = 5000  # steps of a healthy stream to a false alarm, at which all are compared
HALVINGS = 18


@dataclass(frozen=True, slots=True)
class Score:
    """Of one contender in trials of one scenario and size."""

    trials: int
    delay: float  # mean steps from the change to the alarm; one that does not come counts as long as the trial lasts
    missed: float  # share of the trials
    early: float  # share that had an alarm before the change, within the judged part; they count as missed


def run_length(first: Ints) -> float:
    """Steps to a false alarm, by first alarms in healthy trials: all steps until then over the alarms; infinite without one."""
    alarms = int((first < JUDGED).sum())
    return float(np.minimum(first + 1, JUDGED).sum()) / alarms if alarms else float("inf")


def score(first: Ints, begins: int) -> Score:
    """`begins` is the step of the judged part at which the change is."""
    early, none = first < begins, first >= JUDGED
    lasts = JUDGED - begins
    delays = np.where(early | none, lasts, first - begins + 1)
    return Score(len(first), float(delays.mean()), float((early | none).mean()), float(early.mean()))


def limit_for(contender: Contender, healthy: Floats, target: float = TARGET) -> float:
    """The limit with which it comes to a false alarm in `target` steps of these streams, or just later."""
    eager, calm = contender.span
    for _ in range(HALVINGS):
        between = middle(eager, calm)
        if run_length(contender.first_alarms(healthy, between)) < target:
            eager = between
        else:
            calm = between
    return calm
