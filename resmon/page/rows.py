"""Rows of a flight, of steps and of bins alike: stretches of steps with what their values ranged over; and several ranks' as one.

A step's row is a stretch of one step, whose lowest, highest and only value is one number. Sums
stay sums until somebody asks for a mean, shares of gradients add up over ranks, and where a rank's share is missing and nobody
can stand for it, the sum is absent. Of bins of several ranks the lowest and the highest value are bounds: the ranks need not have
had theirs at the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resmon.flight.schema import Records, RowFormat, present
from resmon.plots.measures import PLACES, VALUES
from resmon.records import (
    BLOCK_MERGES,
    BLOCK_VALUES,
    MAGNITUDE_COLUMNS,
    Bools,
    Floats,
    Ints,
    ResidualSite,
    block_coverage,
    coverage,
)

# Values of the run that are drawn, and what makes one of several ranks'.
RUN = {"gradient_square": "sum", "learning_rate": "largest", "duration": "largest", "replicas": "smallest"}
GRADIENTS = tuple(PLACES[name] for name in ("gradient_square", "output_gradient_square"))
_SKIP, _BRANCH, _KEPT = (BLOCK_VALUES.index(name) for name in ("skip_square", "branch_square", "kept_square"))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """N stretches of steps in order, S sites; V are the VALUES, R the RUN's. Counts are of steps with a finite value."""

    sites: tuple[ResidualSite, ...]
    first: Ints  # [N]
    last: Ints
    steps: Ints
    time: Floats  # Unix seconds of the last step
    low: Floats  # [N, V, S], NaN where there is none
    high: Floats
    total: Floats
    count: Floats
    elements: Floats  # [N, S], of all steps together
    nonfinite: Bools  # [N, 2, S]: in the forward pass, in the backward pass
    run_low: Floats  # [N, R]
    run_high: Floats
    run_total: Floats
    run_count: Floats
    buckets: Ints  # cumulative [N, S, MAGNITUDE_COLUMNS], at the end of the stretch

    def __len__(self) -> int:
        return len(self.first)

    def take(self, keep: Bools) -> Rows:
        """Some of them."""
        if keep.all():
            return self
        return Rows(self.sites, *(getattr(self, name)[keep] for name in Rows.__slots__[1:]))


def of_steps(form: RowFormat, records: Records) -> Rows:
    """Rows of kind "steps"."""
    number, sites = len(records), len(form.sites)
    values = np.full((number, len(VALUES), sites), np.nan)
    for i, name in enumerate(BLOCK_VALUES):
        column = f"block_{name}"
        np.copyto(values[:, i], records[column], where=present(records, column))
    counts = [records[f"block_{name}"] > 0 for name in ("nonfinite_forward", "nonfinite_backward")]
    nonfinite = np.stack(counts, axis=1)
    # Gradients of a step that a scaler skips are how it finds its scale.
    nonfinite[:, 1] &= (records["skipped"] == 0)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = values[:, _KEPT]
        values[:, -1] = np.sqrt(values[:, _BRANCH] / np.where(np.isnan(kept), values[:, _SKIP], kept))
    finite = np.isfinite(values)
    values[~finite] = np.nan
    run = np.stack([np.where(present(records, name), records[name], np.nan) for name in RUN], axis=1).astype(float)
    run[~np.isfinite(run)] = np.nan
    step = records["step"].copy()
    return Rows(
        sites=form.sites,
        first=step,
        last=step,
        steps=np.ones(number, np.int64),
        time=records["time"] / 1e9,
        low=values,
        high=values,
        total=np.where(finite, values, 0.0),
        count=finite.astype(float),
        elements=records["block_elements"].astype(float),
        nonfinite=nonfinite,
        run_low=run,
        run_high=run,
        run_total=np.nan_to_num(run),
        run_count=np.isfinite(run).astype(float),
        buckets=_buckets(records, sites),
    )


def of_bins(form: RowFormat, records: Records) -> Rows:
    """Rows of kind "bins"."""

    def blocks(statistic: str) -> Floats:
        columns = [f"block_{name}_{statistic}" for name in VALUES]
        return np.stack([np.where(present(records, name), records[name], np.nan) for name in columns], axis=1).astype(float)

    def run(statistic: str) -> Floats:
        columns = [f"{name}_{statistic}" for name in RUN]
        return np.stack([np.where(present(records, name), records[name], np.nan) for name in columns], axis=1).astype(float)

    nonfinite = np.stack([records[f"block_{name}_sum"] > 0 for name in ("nonfinite_forward", "nonfinite_backward")], axis=1)
    skipped = np.diff(records["skipped_total"], prepend=records["skipped_total"][:1])
    nonfinite[:, 1] &= (skipped == 0)[:, None]
    return Rows(
        sites=form.sites,
        first=records["first_step"].copy(),
        last=records["last_step"].copy(),
        steps=np.maximum(records["steps"], 1),
        time=records["last_time"] / 1e9,
        low=blocks("min"),
        high=blocks("max"),
        total=blocks("sum"),
        count=blocks("count"),
        elements=records["block_elements_sum"].astype(float),
        nonfinite=nonfinite,
        run_low=run("min"),
        run_high=run("max"),
        run_total=run("sum"),
        run_count=run("count"),
        buckets=_buckets(records, len(form.sites)),
    )


def _buckets(records: Records, sites: int) -> Ints:
    return np.ascontiguousarray(records["magnitude_buckets"]).reshape(len(records), sites, MAGNITUDE_COLUMNS)


def merged(parts: Sequence[Rows], expected: int) -> Rows:
    """One of several ranks' rows, stretch by stretch; `expected` ranks hold shares of the gradients."""
    if len(parts) == 1 and expected <= 1:
        return parts[0]
    places: dict[tuple[str, str], int] = {}
    sites: list[ResidualSite] = []
    for part in parts:
        for site in part.sites:
            if places.setdefault((site.model, site.name), len(sites)) == len(sites):
                sites.append(site)
    stretches = np.unique(np.concatenate([np.stack([part.first, part.last], axis=1) for part in parts]), axis=0)
    # Bins of a rank that came late or broke off may begin elsewhere; of stretches that overlap the first is taken.
    keep = np.r_[True, stretches[1:, 0] > np.maximum.accumulate(stretches[:, 1])[:-1]] if len(stretches) else np.empty(0, bool)
    stretches = stretches[keep]
    number, shape = len(stretches), (len(parts), len(stretches), len(VALUES), len(sites))
    low, high = np.full(shape, np.nan), np.full(shape, np.nan)
    total, count = np.zeros(shape), np.zeros(shape)
    elements = np.zeros((len(parts), number, len(sites)))
    nonfinite = np.zeros((number, 2, len(sites)), bool)
    buckets = np.zeros((number, len(sites), MAGNITUDE_COLUMNS), np.int64)
    steps, time, there = np.ones(number, np.int64), np.zeros(number), np.zeros((len(parts), number), bool)
    runs = [np.full((len(parts), number, len(RUN)), np.nan) for _ in range(4)]
    for i, part in enumerate(parts):
        at = np.searchsorted(stretches[:, 0], part.first)
        mine = (at < number) & (stretches[np.minimum(at, number - 1)] == np.stack([part.first, part.last], axis=1)).all(axis=1)
        part, at = part.take(mine), at[mine]
        where = np.array([places[site.model, site.name] for site in part.sites], np.int64)
        there[i, at] = True
        steps[at], time[at] = part.steps, np.maximum(time[at], part.time)
        if len(where):
            cells = np.ix_(at, np.arange(len(VALUES)), where)
            low[i][cells], high[i][cells] = part.low, part.high
            total[i][cells], count[i][cells] = part.total, part.count
            elements[i][np.ix_(at, where)] = part.elements
            nonfinite[np.ix_(at, np.arange(2), where)] |= part.nonfinite
            buckets[np.ix_(at, where)] += part.buckets
        for table, values in zip(runs, (part.run_low, part.run_high, part.run_total, part.run_count), strict=True):
            table[i, at] = values
    made = [_over_ranks(table, count, how) for table, how in ((low, np.fmin), (high, np.fmax), (total, None))]
    # Of one step the ratio comes from the sums of all ranks, as of one rank; of a bin it is between what the ranks say.
    single = steps == 1
    for table in made:
        skip = np.where(np.isnan(table[single, _KEPT]), table[single, _SKIP], table[single, _KEPT])
        with np.errstate(invalid="ignore", divide="ignore"):
            table[single, -1] = np.sqrt(table[single, _BRANCH] / skip)
    counted = np.where(count > 0, count, np.nan)
    with np.errstate(invalid="ignore"):
        counted = np.nan_to_num(np.fmax.reduce(counted, axis=0))
    # A mean of root mean squares is over all ranks' elements; those of a rank without a value do not count.
    everything = np.where((count > 0).any(axis=2), elements, 0.0).sum(axis=0)
    told = runs[0][:, :, list(RUN).index("replicas")]
    replicas, ranks = np.fmin.reduce(told, axis=0), np.isfinite(told).sum(axis=0)
    known = [coverage(int(r), expected, same) for r, same in zip(ranks, replicas, strict=True)]
    factor = np.array([np.nan if each is None else each for each in known])
    whole = np.isfinite(factor)
    having = (count[:, :, GRADIENTS[0]] > 0).sum(axis=0)
    factors = block_coverage(having, expected, np.nan_to_num(replicas)[:, None], factor[:, None])
    for table in made:
        table[:, GRADIENTS[0]] *= factors
        table[:, GRADIENTS[1]] *= np.where(ranks >= expected, 1.0, np.nan)[:, None]
    counted[:, GRADIENTS[0]] *= np.isfinite(factors)
    counted[:, GRADIENTS[1]] *= (ranks >= expected)[:, None]
    made[2] = np.nan_to_num(made[2])
    run_low, run_high, run_total = (_run_over_ranks(table, factor) for table in runs[:3])
    run_count = np.nan_to_num(np.fmax.reduce(runs[3], axis=0))
    run_count[:, 0] *= whole
    return Rows(
        sites=tuple(sites),
        first=stretches[:, 0],
        last=stretches[:, 1],
        steps=steps,
        time=time,
        low=made[0],
        high=made[1],
        total=made[2],
        count=counted,
        elements=everything,
        nonfinite=nonfinite,
        run_low=run_low,
        run_high=run_high,
        run_total=np.nan_to_num(run_total),
        run_count=run_count,
        buckets=buckets,
    )


def _over_ranks(table: Floats, count: Floats, ratio: np.ufunc | None) -> Floats:
    """[ranks, N, V, S] as [N, V, S]: sums of what is a sum, extremes of extremes; of ratios what `ratio` makes, or their mean."""
    here = np.where(count > 0, table, np.nan)
    number = (count > 0).sum(axis=0)
    made = np.full(table.shape[1:], np.nan)
    with np.errstate(invalid="ignore"):
        for i, how in enumerate((*BLOCK_MERGES.values(), "mean" if ratio is None else "extreme")):
            if how == "extreme" and ratio is not None:
                made[:, i] = ratio.reduce(here[:, :, i], axis=0)
            elif how in ("largest", "smallest"):
                made[:, i] = (np.fmax if how == "largest" else np.fmin).reduce(here[:, :, i], axis=0)
            else:
                sums = np.where(number[:, i] > 0, np.nansum(here[:, :, i], axis=0), np.nan)
                made[:, i] = sums / np.maximum(number[:, i], 1) if how == "mean" else sums
    return made


def _run_over_ranks(table: Floats, factor: Floats) -> Floats:
    made = np.full(table.shape[1:], np.nan)
    for i, how in enumerate(RUN.values()):
        if how == "sum":
            known = np.isfinite(table[:, :, i]).any(axis=0)
            made[:, i] = np.where(known, np.nansum(table[:, :, i], axis=0) * factor, np.nan)
        else:
            made[:, i] = (np.fmax if how == "largest" else np.fmin).reduce(table[:, :, i], axis=0)
    return made
