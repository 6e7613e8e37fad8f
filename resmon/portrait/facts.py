"""What a notebook tells of a run, read from its files: how it is, what went wrong, and every block at its newest step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resmon.flight.summary import Summary, summary
from resmon.page.course import Cells, Course
from resmon.page.figures import shown
from resmon.page.sight import Sight
from resmon.plots.curves import Curve
from resmon.plots.measures import BY_NAME, Measure
from resmon.quantities import number
from resmon.records import Finding, Floats, Ints

TABLED = ("skip_rms", "branch_rms", "branch_skip_ratio", "gradient_norm")  # what the table has of each block
CELLS, LEAST = 12_000, 32  # cells of a map, and its columns where blocks are many
LOSSES = 2  # curves of losses
SCORES = 6  # other values that are told


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that broke, or that the detectors say."""

    kind: str
    text: str
    severity: str  # "incident", "page" or "ticket"
    step: int | None
    block: str
    is_open: bool


@dataclass(frozen=True, slots=True, eq=False)
class Map:
    """A quantity of B blocks over C columns of steps, [B, C]: infinite where it was not finite."""

    measure: Measure
    steps: Ints
    width: int  # steps that a column stands for
    values: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """Of one attempt. `newest` has the TABLED quantities of every block at the newest step, [4, B], NaN where there is none."""

    run: Summary
    attempts: int
    ranks: tuple[int, int]  # that are read, and that there were
    skipped: int  # rows that cannot be read
    scores: tuple[tuple[str, str], ...]  # name and newest value, the learning rate and the gradient norm among them
    troubles: tuple[Trouble, ...]  # what is open first
    span: tuple[int, int] | None  # first and newest step; None where there is none
    blocks: tuple[str, ...]
    newest: Floats
    losses: tuple[tuple[str, Curve], ...]
    maps: tuple[Map, ...]


def facts(attempt: Path, only: frozenset[int] | None = None, quantities: tuple[str, ...] = ()) -> Facts:
    """Of an attempt's folder, or of some of its ranks; with maps of these quantities, as far as they were recorded.

    Raises OSError where the folder is gone, and FlightVersionError where a newer resmon wrote the flight.
    """
    run = summary(attempt)
    sight = Sight(attempt, only)
    try:
        sight.refresh()
        with sight.lock:
            return _facts(sight, run, quantities)
    finally:
        sight.close()


def _facts(sight: Sight, run: Summary, quantities: tuple[str, ...]) -> Facts:
    course, info = sight.course, sight.info
    span = None if course is None else (course.begin, course.newest)
    close = None if course is None else sight.window(course.newest, course.newest)
    blocks = () if course is None else tuple(site.place for site in course.sites)
    maps = () if course is None else tuple(_map(course, BY_NAME[name]) for name in quantities if BY_NAME[name] in course.there())
    return Facts(
        run=run,
        attempts=len(list(sight.attempt.parent.glob("attempt-*"))),
        ranks=(sight.ranks, info.world_size if info is not None else 1),
        skipped=sight.skipped,
        scores=() if close is None else _scores(close),
        troubles=_troubles(sight),
        span=span,
        blocks=blocks,
        newest=np.full((len(TABLED), len(blocks)), np.nan) if close is None else _newest(close, blocks),
        losses=() if course is None else _losses(course),
        maps=maps,
    )


def _map(course: Course, measure: Measure) -> Map:
    values, cells = shown(_coarser(course.cells(measure), max(LEAST, CELLS // max(1, len(course.sites)))))
    middle = (cells.first + np.minimum(cells.last, max(course.newest, int(cells.first[-1])))) // 2
    return Map(measure, middle, int(cells.last[0] - cells.first[0]) + 1, values)


def _coarser(cells: Cells, most: int) -> Cells:
    """Of so many columns at most, several as one; what stands out of several still does."""
    every = -(-len(cells.first) // most)
    if every <= 1:
        return cells
    begins = np.arange(0, len(cells.first), every)
    known = np.isfinite(cells.mean)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(np.where(known, cells.mean, 0.0), begins, axis=1) / np.add.reduceat(known * 1.0, begins, axis=1)
    return Cells(
        cells.first[begins],
        cells.last[np.r_[begins[1:] - 1, len(cells.last) - 1]],
        np.fmin.reduceat(cells.low, begins, axis=1),
        mean,
        np.fmax.reduceat(cells.high, begins, axis=1),
        np.logical_or.reduceat(cells.nonfinite, begins, axis=1),
    )


def _newest(course: Course, blocks: tuple[str, ...]) -> Floats:
    """At the newest step. What was not finite there is infinite."""
    made = np.full((len(TABLED), len(blocks)), np.nan)
    for i, name in enumerate(TABLED):
        cells = course.cells(BY_NAME[name])
        here = min(cells.mean.shape[0], len(blocks))
        if cells.mean.shape[1]:
            made[i, :here] = np.where(cells.nonfinite[:here, -1], np.inf, cells.mean[:here, -1])
    return made


def _losses(course: Course) -> tuple[tuple[str, Curve], ...]:
    names = sorted((name for name in course.scores() if "loss" in name.lower()), key=lambda name: name != "loss")[:LOSSES]
    return tuple((name, curve) for name in names if (curve := course.score(name)) is not None)


def _scores(course: Course) -> tuple[tuple[str, str], ...]:
    """Of the newest step: what of the run itself is known there, and what was logged."""
    made = []
    for name in ("learning_rate", "gradient_norm"):
        curve = course.run(name)
        if curve is not None and curve.step[-1] == course.newest:  # a norm that is not finite is none
            made.append((name.replace("_", " "), number(float(curve.mean[-1]))))
    names = [name for name in course.scores() if name != "loss"][:SCORES]
    return (*made, *((name, number(float(curve.mean[-1]))) for name in names if (curve := course.score(name)) is not None))


def _troubles(sight: Sight) -> tuple[Trouble, ...]:
    """Incidents, the newest first; then findings, open ones before closed ones and pages before tickets."""

    def weight(finding: Finding) -> tuple[bool, bool, int]:
        return finding.state == "closed", finding.severity != "page", -finding.opened_step

    broke = [
        Trouble(each.kind, each.summary, "incident", each.step, each.place, True)
        for each in sorted(sight.incidents, key=lambda each: -each.time)
    ]
    said = [
        Trouble(each.kind, each.summary, each.severity, each.opened_step, each.place, each.state != "closed")
        for each in sorted(sight.findings, key=weight)
    ]
    return (*broke, *said)
