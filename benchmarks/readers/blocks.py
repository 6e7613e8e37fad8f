"""When nobody reads and when somebody does, in blocks that are each a measurement of its own.

A block is half an unread stretch, a stretch of each way to read, and the other half: what the machine does slowly, such as the
trainings that go on, falls out of the ratio of what stands in its middle to what stands around it. No two blocks share a stretch,
so what they say is independent. The ways take turns in who comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resmon.access.pace import CROWDED

# Seconds of a stretch: two turns of answers, which a crowd has all at once after a rest; making them takes the tenth of a second
# that is added. What is measured begins some while after readers have come, who have their first answers at once, or have gone.
STRETCH, ARRIVE, LEAVE = 2 * (CROWDED + 0.1), 1.0, 0.5


@dataclass(frozen=True, slots=True)
class Stretch:
    """From one moment to another, both of time.monotonic."""

    begin: float
    end: float
    each: float | None = None  # seconds between two requests of a reader; None while nobody reads


@dataclass(frozen=True, slots=True)
class Block:
    before: Stretch
    read: tuple[Stretch, ...]
    after: Stretch

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        return (self.before, *self.read, self.after)

    @property
    def end(self) -> float:
        return self.after.end

    @property
    def gone(self) -> float:
        """When the readers hang up."""
        return self.after.begin - LEAVE


def plan(begin: float, count: int, ways: Sequence[float]) -> list[Block]:
    """So many blocks from a moment on."""
    made: list[Block] = []
    for i in range(count):
        before = Stretch(begin, begin + STRETCH / 2)
        at, read = before.end, []
        for each in ways if i % 2 == 0 else tuple(reversed(ways)):
            read.append(Stretch(at + ARRIVE, at + ARRIVE + STRETCH, each))
            at = read[-1].end
        at += LEAVE
        made.append(Block(before, tuple(read), Stretch(at, at + STRETCH / 2)))
        begin = made[-1].end
    return made


@dataclass(frozen=True, slots=True)
class Steps:
    """When the steps of some trainings began, each training's in order."""

    begun: Sequence[Any]

    def rate(self, stretch: Stretch) -> float:
        """Steps a second of all of them together; a step that a moment falls into counts in part."""
        moments = [stretch.begin, stretch.end]
        done = sum(float(np.diff(np.interp(moments, each, np.arange(len(each))))[0]) for each in self.begun)
        return done / (stretch.end - stretch.begin)

    def unread(self, block: Block) -> float:
        return (self.rate(block.before) + self.rate(block.after)) / 2

    def ratio(self, block: Block, each: float) -> float:
        """What a step takes while somebody reads, in terms of what it takes around that."""
        return self.unread(block) / next(self.rate(stretch) for stretch in block.read if stretch.each == each)

    def still(self, block: Block) -> float:
        """The same of the block's halves that nobody reads: what differs by itself."""
        return self.rate(block.before) / self.rate(block.after)
