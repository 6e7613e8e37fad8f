"""What the memory of a run goes to, by blocks, by the batch and over the steps; and what would have made it fit.

A `Trail` follows a run's memory step by step, in the process that trains or in whoever reads its flight. Peaks are those that the
system counts, the largest so far: so one says something only of the step in which it rose. The relation of batch and memory is a
line, `peak = constant + slope x size`, through the peaks at different sizes of batch or, where there was but one, through that and
what is in use between steps; in a run that never came to the end of a step, through what autograd was seen to keep. A size is that
of a pass's first tensor in elements, or, from a flight, a step's samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, Literal, NamedTuple

import numpy as np

from resmon.quantities import size
from resmon.records import Incident, incident_id

STEPS = 64  # the newest, of which every one is kept
MARKS = 64  # of the whole run, at equal distances, at most
SIZES = 256  # of batches at which the peak rose, at most
BLOCKS = 100  # that an incident lists, at most

# What is added to the part of the prediction that grows with the batch: for what allocators waste, and for what a backward pass
# needs besides what was kept for it. The first is measured: freed memory is used again in another order in every process, so that
# with the same four sizes of batch, under one limit on addresses, the line alone said 6,400 to 8,200 samples where 6,980 went
# through. Scatter that shows over at least three sizes counts where it is more.
RESERVE, UNSEEN = 0.15, 0.5
# Student's t, 95 % one-sided, for 1, 2, ... degrees of freedom; 1.7 beyond.
_T = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81)

# Memory that grows from step to step: nearly always upwards, and to a share of all that there is.
STEADY, MUCH = 0.8, 0.02
LITTLE = 0.1  # of what is lacking, that a whole pass keeps: then it was not the pass

Figures = Mapping[str, float | None]  # bytes, by the names of records.RUN_VALUES
Where = Literal["", "device_"]  # main memory or that of devices, as these names begin


class Held(NamedTuple):
    """Bytes that autograd keeps of one block in a forward pass, and how many of them a checkpoint of it would not."""

    model: str
    block: str
    bytes: int
    saves: int


class Trail:
    """A run's memory: the newest steps, marks of all its length, and the sizes of batch at which the peak rose."""

    def __init__(self, before: Figures | None = None) -> None:
        self.recent: deque[tuple[int, Figures]] = deque(maxlen=STEPS)
        self._before: Figures = before or {}  # the first step
        self._figures = self._before
        self._marks: list[tuple[int, Figures]] = []
        self._stride = 1
        self._count = 0
        self._size = 0.0  # of the largest batch since the figures were new
        self._peaks: dict[Where, dict[float, float]] = {"": {}, "device_": {}}

    def add(self, step: int, size: float, figures: Figures) -> None:
        """The figures at the end of a step; they may be those of one before, where they are not looked up at each."""
        self.recent.append((step, figures))
        if self._count % self._stride == 0:
            self._marks.append((step, figures))
            if len(self._marks) > MARKS:
                del self._marks[1::2]
                self._stride *= 2
        self._count += 1
        self._size = max(self._size, size)
        if figures is self._figures or figures == self._figures:
            return
        for where, peaks in self._peaks.items():
            before, now = self._figures.get(f"{where}memory_peak"), figures.get(f"{where}memory_peak")
            if self._size > 0 and now is not None and (before is None or now > before) and len(peaks) < SIZES:
                peaks[self._size] = now
        self._figures, self._size = figures, 0.0

    def peaks(self, where: Where) -> dict[float, float]:
        """Peak memory by size of batch."""
        return dict(self._peaks[where])

    def between(self, where: Where) -> float | None:
        """What is in use between steps; before the first, what was then."""
        figures = self.recent[-1][1] if self.recent else self._before
        return figures.get(f"{where}memory")

    def memory(self, where: Where) -> list[list[float | None]]:
        """The newest steps: step, bytes in use, bytes free."""
        return [[step, figures.get(f"{where}memory"), figures.get(f"{where}memory_free")] for step, figures in self.recent]

    def growth(self, where: Where, capacity: float) -> tuple[float, int] | None:
        """Bytes a step by which memory in use between steps has kept growing, and since when; None where it has not."""
        found = [(step, used) for step, figures in self._marks if (used := figures.get(f"{where}memory")) is not None]
        found = [mark for i, mark in enumerate(found) if not i or mark[1] != found[i - 1][1]]
        if len(found) < 8:
            return None
        steps, used = np.array(found).T
        # It may have begun in the middle: from the last mark that is near the least on.
        least = used.min()
        begin = int(np.flatnonzero(used <= least + 0.1 * (used[-1] - least))[-1]) if used[-1] > least else len(used) - 1
        before = used[: begin + 1].max()
        steps, used = steps[begin:], used[begin:]
        grown, lately = used[-1] - used[0], used[-1] - used[-1 - len(used) // 3]
        # More than it ever was, steadily, and still at it.
        if len(used) < 6 or used[-1] - before < MUCH * capacity or np.mean(np.diff(used) > 0) < STEADY or lately < grown / 6:
            return None
        return float((used[-1] - used[0]) / (steps[-1] - steps[0])), int(steps[0])


@dataclass(frozen=True, slots=True)
class Footprint:
    """What is known of a run's memory at one moment."""

    trail: Trail
    now: Figures
    blocks: Sequence[Held] = ()  # in order of execution
    outside: int | None = None  # what autograd keeps besides; None where no pass that was looked at came to its end
    size: float = 0.0  # of the batch that both are of
    samples: int = 0  # of the newest pass
    batch: float = 0.0  # its size
    parameters: int = 0  # bytes of those that are trained
    backward: str = ""  # the block whose backward pass was under way
    unknown: str = ""  # why not all blocks are there
    reached: float = 1.0  # share of the modules that had run in the first pass, where that came to no end

    def capacity(self, where: Where) -> float | None:
        """What there is in all."""
        used, free = self.now.get(f"{where}memory"), self.now.get(f"{where}memory_free")
        return None if used is None or free is None else used + free


@dataclass(frozen=True, slots=True)
class Line:
    """peak = constant + slope x size, and how sure that is."""

    constant: float
    slope: float
    by: str
    points: tuple[tuple[float, float], ...]
    reserve: float

    def likely(self, size: float) -> float:
        """The peak at a batch of that size, as far as can be told."""
        return self.constant + self.slope * size

    def most(self, size: float) -> float:
        """The peak at a batch of that size, with 95 % confidence where there are enough sizes to tell."""
        grows = self.slope * size
        margin = self.reserve * grows
        if len(self.points) > 2:
            x, y = np.array(self.points).T
            free = len(x) - 2
            scatter = sqrt(float(((y - self.constant - self.slope * x) ** 2).sum()) / free)
            t = _T[free - 1] if free <= len(_T) else 1.7
            off = (size - float(x.mean())) ** 2 / float(((x - x.mean()) ** 2).sum())
            margin = max(margin, t * scatter * sqrt(1 + 1 / len(x) + off))
        return self.constant + grows + margin


def line(footprint: Footprint, where: Where) -> Line | None:
    """The relation of batch and peak memory; None where there is nothing to tell it from."""
    trail = footprint.trail
    peaks, between = trail.peaks(where), trail.between(where)
    if len(peaks) > 1:
        by = f"least squares of peak memory over {len(peaks)} sizes of batch"
        fitted = _fit(peaks, by, RESERVE)
        if fitted is not None:
            return fitted
    if between is None:
        return None
    if peaks:
        size, peak = max(peaks.items())
        fitted = _fit({0.0: between, size: peak}, "peak memory at one size of batch, and what is in use between steps", RESERVE)
        if fitted is not None:
            return fitted
    if footprint.outside is None or not footprint.size:
        return None
    kept = sum(held.bytes for held in footprint.blocks) + footprint.outside
    begin = between + (0 if trail.recent else footprint.parameters)  # whose gradients are still to come
    return _fit({0.0: begin, footprint.size: begin + kept}, "activation bytes per sample", UNSEEN)


def _fit(points: Mapping[float, float], by: str, reserve: float) -> Line | None:
    x, y = np.array(sorted(points.items())).T
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    if slope <= 0:
        return None
    return Line(float(y.mean() - slope * x.mean()), slope, by, tuple(points.items()), reserve)


def fitting(footprint: Footprint, where: Where, asked: float | None = None) -> dict[str, Any]:
    """What of the batch would have fitted: `samples` that there were, those that `fits` (at best), and what that is known `by`.

    None where it cannot be told. Where no pass came to its end, hardly more than `at_most` can fit: by what it had taken by then
    and what it asked for, if the modules that had not run yet take as much as those that had.
    """
    samples, batch, capacity = footprint.samples, footprint.batch, footprint.capacity(where)
    found: dict[str, Any] = {"samples": samples or None, "fits": None, "by": ""}
    if not samples or not batch or capacity is None:
        return found | {"by": "unknown: no batch and no free memory to compare it with"}
    relation = line(footprint, where)
    if relation is None and footprint.outside is not None:
        return found | {"by": "unknown: memory has not grown with the batch"}
    if relation is None:
        begin = footprint.trail.between(where)
        if begin is not None and asked:
            taken = max(0.0, (footprint.now.get(f"{where}memory") or 0.0) - begin) + asked
            found["at_most"] = min(samples - 1, int(samples * (capacity - begin) / taken * footprint.reached))
            found["reached"] = footprint.reached
        return found | {"by": "unknown: no pass came to its end"}
    if relation.most(batch) <= capacity:
        return found | {"by": f"{relation.by}: by that this batch fits, so it is something else that took the memory"}
    one = batch / samples
    low, high = 0, samples  # what fits, and what does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if relation.most(middle * one) <= capacity else (low, middle)
    best = int((capacity - relation.constant) / (relation.slope * one) + 1e-6)
    return found | {"fits": low, "fits_at_best": max(low, min(samples - 1, best)), "by": relation.by}


def checkpoints(blocks: Sequence[Held], lacking: float) -> tuple[list[Held], bool]:
    """The blocks to checkpoint, those that save most first, until what is lacking is saved; and whether it is."""
    chosen: list[Held] = []
    for held in sorted(blocks, key=lambda held: -held.saves):
        if lacking <= 0 or held.saves <= 0:
            break
        chosen.append(held)
        lacking -= held.saves
    return chosen, lacking <= 0


def evidence(footprint: Footprint, where: Where, asked: float | None = None, free: float | None = None) -> dict[str, Any]:
    """What an incident says of memory, as JSON has it; bytes are those at the newest batch's size."""
    scale = footprint.batch / footprint.size if footprint.batch and footprint.size else 1.0
    blocks = [Held(held.model, held.block, round(held.bytes * scale), round(held.saves * scale)) for held in footprint.blocks]
    capacity = footprint.capacity(where)
    free = footprint.now.get(f"{where}memory_free") if free is None else free
    relation = line(footprint, where)
    # What failed is but the first allocation that did not fit: those behind it need room too.
    lacking = max(
        asked - free if asked is not None and free is not None else 0.0,
        relation.likely(footprint.batch) - capacity if relation and capacity else 0.0,
    )
    chosen, enough = checkpoints(blocks, lacking)
    growth = footprint.trail.growth(where, capacity or inf)
    ranked = sorted(blocks, key=lambda held: -held.bytes)
    return {
        "asked_bytes": asked,
        "free_bytes": free,
        "in_use_bytes": footprint.now.get(f"{where}memory"),
        "blocks": [
            {"model": held.model, "block": held.block, "activation_bytes": held.bytes, "checkpoint_saves_bytes": held.saves}
            for held in ranked[:BLOCKS]
        ],
        "blocks_left_out": max(0, len(ranked) - BLOCKS),
        "blocks_unknown": footprint.unknown,
        "outside_blocks_bytes": None if footprint.outside is None else round(footprint.outside * scale),
        "checkpointing": {
            "blocks": [held.block for held in chosen][:BLOCKS],
            "count": len(chosen),
            "saves_bytes": sum(held.saves for held in chosen),
            "lacking_bytes": round(lacking) if lacking > 0 else None,
            # For what failed, at least; where no pass came to its end there is more that is not known.
            "enough": bool(chosen) and enough,
            "of_all": relation is not None,
        },
        "batch": fitting(footprint, where, asked),
        "memory": footprint.trail.memory(where),
        "growth": None if growth is None else {"bytes_per_step": growth[0], "since": growth[1]},
    }


def advice(found: Mapping[str, Any], of_training: bool = True) -> str:
    """What to do about it, from `evidence`; `of_training` says that a pass of training ran out of it."""
    said: list[str] = []
    if growth := found["growth"]:
        said.append(
            f"Memory in use between steps has grown by {size(growth['bytes_per_step'])} a step since step {growth['since']}: "
            "something keeps what belongs to a step, such as a list of losses that are not detached, and no smaller batch helps "
            "against that."
        )
    if growth or not of_training:
        return " ".join(said)
    batch, checkpoint = found["batch"], found["checkpointing"]
    if batch["fits"]:
        best = f", at best {batch['fits_at_best']}" if batch["fits_at_best"] > batch["fits"] else ""
        said.append(f"A batch of {batch['fits']} samples (of {batch['samples']}) would have fitted{best}, by {batch['by']}.")
    elif batch["fits"] == 0:
        said.append(f"Not even a single sample would have fitted, by {batch['by']}.")
    elif batch.get("at_most"):
        said.append(
            f"No pass came to its end, so it is not known which batch fits: hardly more than {batch['at_most']} samples (of "
            f"{batch['samples']}), by what it had taken when {batch['reached']:.0%} of the modules had run; try half of that."
        )
    inside, outside = sum(held["activation_bytes"] for held in found["blocks"]), found["outside_blocks_bytes"]
    lacking = checkpoint["lacking_bytes"]
    if lacking and found["blocks"] and inside + (outside or 0) < LITTLE * lacking:
        said.append(
            f"Neither checkpoints nor a smaller batch will help much: autograd keeps {size(inside)} of all blocks together, and "
            f"{size(lacking)} are lacking. Look at what the line asks for first."
        )
        return " ".join(said)
    if chosen := checkpoint["blocks"]:
        names = ", ".join(chosen[:5]) + (f" and {checkpoint['count'] - 5} more" if checkpoint["count"] > 5 else "")
        enough = (
            "which is enough" if checkpoint["of_all"] else "which is enough for what failed, if not for what would have followed"
        )
        whether = enough if checkpoint["enough"] else f"which is not enough: {size(lacking)} are lacking"
        said.append(f"Checkpointing {names} (torch.utils.checkpoint) saves {size(checkpoint['saves_bytes'])}, {whether}.")
    if outside and outside > inside:
        said.append(f"Most of what autograd keeps, {size(outside)}, lies outside of the blocks, in the embedding, head or loss.")
    return " ".join(said)


def killed(footprint: Footprint, step: int | None, time: float, seen: str, confident: bool) -> Incident:
    """The incident of a process that the kernel killed for want of memory; `seen` is how that is known."""
    found = evidence(footprint, "")
    # The process is gone, and what was free at its last step is not what was free when it died.
    found |= {"asked_bytes": None, "seen": seen}
    return Incident(
        id=incident_id("out_of_memory", step),
        kind="out_of_memory",
        time=time,
        step=step,
        summary=f"The kernel killed the process{'' if confident else ', as it seems,'} for want of main memory: {seen}.",
        since=found["growth"]["since"] if found["growth"] else None,
        advice=advice(found)
        or "Give the run more memory, or a smaller batch; the blocks in the evidence are ranked by what autograd keeps of them.",
        runbook="out-of-memory",
        evidence=found,
    )
