"""Pipelines of torch.distributed.pipelining, known by the calls that a stage's pass lies in.

Before its first step a pipeline runs its stages once on memory that holds anything, only to learn the shapes: that pass is none of
the training's. And where it takes the mean over its micro-batches it divides the gradients of parameters when all are there, while
the gradients of outputs are those of the sum. Nothing is wrapped for that; where nobody has imported pipelining nothing is asked.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FrameType

_PACKAGE = "torch.distributed.pipelining"
_STAGE, _SCHEDULES = f"{_PACKAGE}.stage", f"{_PACKAGE}.schedules"
# Methods of a stage that run it to see what comes out, by torch's age.
_TRIALS = frozenset({"_forward_metadata_inference", "_shape_inference"})


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What a pass is for the pipeline that runs it."""

    tries: bool = False  # it only learns the shapes
    summed: int = 1  # over how many micro-batches output gradients add up, where parameters' are their mean


NONE = Pipeline()


def around() -> Pipeline:
    """The pipeline whose pass is running now; NONE where there is none."""
    if _SCHEDULES not in sys.modules:
        return NONE
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        where = frame.f_globals.get("__name__")
        if where == _STAGE and frame.f_code.co_name in _TRIALS:
            return Pipeline(tries=True)
        if where == _SCHEDULES:
            schedule = frame.f_locals.get("self")
            if (batches := getattr(schedule, "_n_microbatches", None)) is not None:
                return Pipeline(summed=int(batches) if getattr(schedule, "scale_grads", False) else 1)
        frame = frame.f_back
    return NONE
