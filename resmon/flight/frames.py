"""Flights as pandas frames: `load(path)` for whoever looks at a run, live or finished.

Everything is computed from the sums that the rows hold, merged over the ranks that are there. The frames have Arrow-backed types,
in which null (not there) and NaN (there, and no number) are two things.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa

from resmon.errors import ConfigurationError, FlightError
from resmon.flight import arrow, findings, incidents, layout, thinned
from resmon.flight.gathering import Gathered, Source, gather, is_several, named, said
from resmon.flight.rank import Array, Rank, concatenate, differences, merged_scalars
from resmon.flight.reader import Skip
from resmon.flight.schema import BINNED_BLOCK_VALUES, Kind, Records, RowFormat, row_format
from resmon.quantities import listed
from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    GROUP_VALUES,
    MAGNITUDE_COLUMNS,
    MAGNITUDE_HIGH,
    MAGNITUDE_LOW,
    OUTCOMES,
    PHASES,
    RUN_VALUES,
    Bools,
    Finding,
    Floats,
    Incident,
    Ints,
    Outcome,
    ResidualSite,
    RunEnd,
    RunInfo,
    block_coverage,
    clip_factor,
    coverage,
)
from resmon.scores.gaps import Gap
from resmon.scores.targets import Reached, Target, first_reached, readable
from resmon.statistics import merge, statistics

if TYPE_CHECKING:
    import pandas as pd

# The columns of `Flight.histograms`: upper edges of |y|, then what lies above, exact zeros, and NaN or infinite values.
MAGNITUDE_NAMES = (*(f"2^{e}" for e in range(MAGNITUDE_LOW, MAGNITUDE_HIGH + 1)), "larger", "zero", "nonfinite")


def load(path: Source | Iterable[Source], attempt: int | None = None) -> Flight:
    """Read a flight; Flight.load says how."""
    return Flight.load(path, attempt)


def _find(path: Path, attempt: int | None) -> tuple[Path, dict[int, Path], int]:
    """The attempt's folder, those of its ranks, its number."""
    try:
        is_there = path.exists()
    except OSError as error:  # a name that is too long, or a folder above that may not be entered
        raise FlightError(
            f"{str(path)[:200]} cannot be read: {error.strerror}. Name the run's folder, such as runs/digits."
        ) from error
    if not is_there:
        near = [run.name for run in layout.runs(path.parent)]
        hint = (
            f"{path.parent} holds the runs {listed(near, 10)}" if near else f"{path.parent} holds no runs; `resmon ls` lists them"
        )
        raise FlightError(f"there is no flight at {path}: no such folder. {hint}.")
    if path in layout.closed(path):
        raise FlightError(f"{path} cannot be read. {layout.not_let_in(path)}")
    if not path.is_dir():
        raise FlightError(f"{path} is a file; a flight is a folder. Name the run's folder, such as runs/digits.")
    rank = layout.rank_number(path)
    if rank is not None:
        ranks, folder = {rank: path}, path.parent
    elif layout.attempt_number(path) is not None:
        ranks, folder = layout.ranks(path), path
    else:
        ranks, folder = {}, path
        attempts = layout.attempts(path)
        if attempt is not None and attempt not in attempts:
            there = f"it has {listed(attempts, 10)}" if attempts else "it has none"
            raise FlightError(f"the run in {path} has no attempt {attempt}; {there}.")
        if not attempts:
            inside = [run.name for run in layout.runs(path)]
            hint = (
                f"It holds the runs {listed(inside, 10)}; name one of them."
                if inside
                else "It has no attempt-* folder; name the folder of a run, which `resmon ls` lists."
            )
            raise FlightError(f"{path} is not a flight. {hint}")
        # The newest may just be beginning, or have died before its first rank did anything.
        for number in [attempt] if attempt is not None else sorted(attempts, reverse=True):
            folder = attempts[number]
            ranks = {rank: where for rank, where in layout.ranks(folder).items() if _has_content(where)}
            if ranks:
                break
    number = layout.attempt_number(folder) or 1
    if attempt is not None and attempt != number:
        raise FlightError(f"{path} belongs to attempt {number}, not {attempt}; name the run's folder to choose among its attempts.")
    ranks = {rank: where for rank, where in ranks.items() if _has_content(where)}
    if not ranks and (refused := layout.not_let_in(folder)):
        raise FlightError(f"the flight in {path} cannot be read. {refused}")
    if not ranks:
        raise FlightError(
            f"the flight in {path} is empty: no rank wrote anything. If the run is just starting, try again; otherwise it "
            "ended before its first step, and its own output says why."
        )
    return folder, ranks, number


def _has_content(rank: Path) -> bool:
    return (rank / layout.INFO).exists() or any(rank.glob("*.arrow"))


class Flight:
    """One attempt of a run, as it stood on file when it was loaded."""

    def __init__(self, folder: Path, ranks: dict[int, Path], attempt: int, gathered: Gathered | None = None) -> None:
        self.folder = folder
        self.notes = () if gathered is None else gathered.notes
        self._gathered = gathered  # the folder lasts as long as it does
        self.attempt = attempt
        self.skipped: list[Skip] = []
        self._ranks = [Rank(number, path, self.skipped) for number, path in sorted(ranks.items())]
        self._findings, skips = findings.read(folder)
        self.skipped += skips

    @classmethod
    def load(cls, path: Source | Iterable[Source], attempt: int | None = None) -> Self:
        """Read a flight: a run's folder (its newest attempt, or the one asked for), an attempt's, or one rank's.

        A run that was recorded on several machines is read from several folders: a list of them, a glob (`/mnt/*/runs/digits`),
        URLs of an object store (`s3://bucket/runs/digits`, whatever pyarrow can open). `Flight.notes` says what of them was left
        out.

        Raises FlightError where there is none, FlightVersionError where a newer resmon wrote it, and ConfigurationError for what
        names no folder. Damage within raises nothing:
        what could not be read is in `Flight.skipped`.
        """
        if not isinstance(attempt, Integral | None):
            raise ConfigurationError(
                f"an attempt is a whole number, not {said(attempt)}. Pass attempt=1 for the first, None for the newest."
            )
        given: object = path
        if isinstance(given, bytes) or not isinstance(given, Iterable | os.PathLike):
            named(given)
        if is_several(path):
            gathered = gather(path, attempt)
            return cls(*_find(gathered.folder, None), gathered)
        folder, ranks, number = _find(Path(named(path)), attempt)
        return cls(folder, ranks, number)

    @property
    def sites(self) -> tuple[ResidualSite, ...]:
        """Every residual add that any rank recorded, those of the newest rows first."""
        found: dict[tuple[str, str], ResidualSite] = {}
        for rank in self._ranks:
            for span in reversed(rank.spans):
                for site in span.sites:
                    found.setdefault((site.model, site.name), site)
        return tuple(found.values())

    @property
    def info(self) -> dict[str, Any]:
        """Who wrote the flight, where and from what. Of ranks that differ, the first one's; `hosts` has all."""
        infos = [rank.info for rank in self._ranks if rank.info is not None]
        first = infos[0] if infos else None
        values: dict[str, Any] = dict.fromkeys(RunInfo.__dataclass_fields__) | {"run": self.folder.parent.name, "models": {}}
        values |= asdict(first) if first else {}
        values.pop("rank", None)
        return values | {
            "model": ", ".join(values["models"].values()),
            "sites": self.sites,
            "attempt": self.attempt,
            "attempts": tuple(layout.attempts(self.folder.parent)),
            "ranks": tuple(rank.number for rank in self._ranks),
            "hosts": tuple(dict.fromkeys(info.host for info in infos)),
            "versions": {name: values[name] for name in ("resmon", "python", "torch")},
            "folder": self.folder,
        }

    @property
    def outcome(self) -> Outcome | Literal["running"]:
        """How the attempt ended, or "running" while a process that records it lives."""
        over = [rank.outcome for rank in self._ranks if rank.outcome is not None]
        return min(over, key=OUTCOMES.index) if len(over) == len(self._ranks) else "running"

    @property
    def ends(self) -> dict[int, RunEnd]:
        """The end marks of the ranks that left one."""
        return {rank.number: rank.end for rank in self._ranks if rank.end is not None}

    def steps(self) -> pd.DataFrame:
        """One row per step: the run's own values and what was logged, newest log first, averaged over the ranks that logged it.

        `gradient_norm` is over all parameters; `gradients` says whether it is (as the blocks' are) from "before clipping", which
        multiplied it with `clip_factor`, or "as stepped": no clipping was seen. A `skipped` step is one that a gradient scaler did
        not take. Times, in seconds, and memory, in bytes, are the largest of any rank's, free memory the smallest, samples all
        ranks' together, a second's those over the step's duration; `input_mean` and `input_rms` are of a model's sampled
        inputs, all ranks' together (capture/probes/inputs.py); `ranks` says how many recorded the step. A logged name that is a
        column already is called `logged_<name>`.
        """
        spans = [(rank, span) for rank in self._ranks for span in rank.spans]
        logged = merged_scalars(self._ranks)
        recorded = concatenate([span.step for _, span in spans], np.int64)
        steps, group = np.unique(np.concatenate([recorded, *(at for at, _, _ in logged.values())]), return_inverse=True)
        group = group[: len(recorded)]
        count = len(steps)
        run = concatenate([span.run for _, span in spans], np.float64, (len(RUN_VALUES),))
        there = concatenate([span.run_present for _, span in spans], np.bool_, (len(RUN_VALUES),))

        def extreme(name: str, take: np.ufunc = np.maximum) -> tuple[Floats, Bools]:
            values, where = value(name)
            found = np.full(count, -np.inf if take is np.maximum else np.inf)
            take.at(found, group[where], values[where])
            return found, np.bincount(group[where], minlength=count) > 0

        def largest(name: str) -> pa.Array:
            return arrow.column(*extreme(name))

        def value(name: str) -> tuple[Floats, Bools]:
            return run[:, RUN_VALUES.index(name)], there[:, RUN_VALUES.index(name)]

        def total(name: str) -> tuple[Floats, Bools]:
            values, where = value(name)
            sums = np.bincount(group[where], values[where], minlength=count).astype(np.float64)
            return sums, np.bincount(group[where], minlength=count) > 0

        squares, has_gradients = total("gradient_square")
        stepped, clipping_seen = total("stepped_square")
        clip_factors = np.array([clip_factor(*both) for both in zip(squares.tolist(), stepped.tolist(), strict=True)])
        ranks = np.bincount(group, minlength=count)
        covered = self._coverage(steps)[0]
        whole = np.bincount(group, concatenate([span.complete for _, span in spans], np.bool_), minlength=count) == ranks
        skipped = np.bincount(group, concatenate([span.skipped for _, span in spans], np.bool_), minlength=count) > 0
        samples, has_samples = total("samples")
        elements, has_inputs = total("input_elements")
        has_inputs &= elements > 0
        elements[~has_inputs] = 1.0
        duration, has_duration = extreme("duration")
        time = np.zeros(count, np.int64)
        np.maximum.at(time, group, concatenate([span.time for _, span in spans], np.int64))
        columns: dict[str, pa.Array] = {
            "step": pa.array(steps),
            "time": arrow.column(time, ranks > 0).cast(pa.timestamp("ns", "UTC")),
            "loss": pa.nulls(count, pa.float64()),
            "learning_rate": largest("learning_rate"),
            "gradient_norm": arrow.column(np.sqrt(squares * covered), has_gradients & np.isfinite(covered)),
            "gradients": pa.DictionaryArray.from_arrays(
                arrow.column(clipping_seen.astype(np.int32), has_gradients), pa.array(["as stepped", "before clipping"])
            ).cast(pa.string()),
            "clip_factor": arrow.column(clip_factors, clipping_seen),
            "loss_scale": largest("loss_scale"),
            "unknown_gradients": largest("unknown_gradients"),
            "duration": arrow.column(duration, has_duration),
            **{f"{phase}_seconds": largest(f"{phase}_seconds") for phase in PHASES},
            "monitor_seconds": largest("monitor_seconds"),
            "samples": arrow.column(samples, has_samples),
            "samples_per_second": arrow.column(samples / np.where(duration > 0, duration, np.nan), has_samples & (duration > 0)),
            "input_mean": arrow.column(total("input_sum")[0] / elements, has_inputs),
            "input_rms": arrow.column(np.sqrt(total("input_square")[0] / elements), has_inputs),
            **{
                f"{where}memory{what}": arrow.column(
                    *extreme(f"{where}memory{what}", np.minimum if what == "_free" else np.maximum)
                )
                for where in ("", "device_")
                for what in ("", "_peak", "_free")
            },
            "complete": arrow.column(whole, ranks > 0),
            "skipped": arrow.column(skipped, ranks > 0),
            "ranks": pa.array(ranks),
        }
        own = set(columns) - {"loss"}
        for name, (at, values, _) in sorted(logged.items()):
            column, mask = np.zeros(count), np.zeros(count, bool)
            where = np.searchsorted(steps, at)
            column[where], mask[where] = values, True
            while name in own:
                name = f"logged_{name}"
            own.add(name)
            columns[name] = arrow.column(column, mask)
        return arrow.frame(columns)

    def blocks(self, per_rank: bool = False, steps: Ints | None = None) -> pd.DataFrame:
        """One row per step and residual add, merged over the ranks from their sums; or one per rank, with its gradient share.

        The columns are those of resmon.statistics, which defines each, and the counts of records.BLOCK_COUNTS. `steps` names those
        that are wanted; all unless given.
        """
        sites = {(site.model, site.name): i for i, site in enumerate(self.sites)}
        parts: list[list[Array]] = []
        for rank in self._ranks:
            for span in rank.spans:
                rows = slice(None) if steps is None else np.flatnonzero(np.isin(span.step, steps))
                step, here = span.step[rows], len(span.sites)
                codes = np.array([sites[site.model, site.name] for site in span.sites], np.int64)
                parts.append(
                    [
                        np.repeat(step, here),
                        np.tile(codes, len(step)),
                        np.full(len(step) * here, rank.number),
                        _flat(span.blocks[rows]),
                        _flat(span.blocks_present[rows]),
                        _flat(span.counts[rows]),
                    ]
                )
        widths: list[tuple[Any, tuple[int, ...]]] = [
            (np.int64, ()),
            (np.int64, ()),
            (np.int64, ()),
            (np.float64, (len(BLOCK_VALUES),)),
            (np.bool_, (len(BLOCK_VALUES),)),
            (np.int64, (len(BLOCK_COUNTS),)),
        ]
        step, site, rank_, squares, there, counts = (
            concatenate([part[i] for part in parts], kind, shape) for i, (kind, shape) in enumerate(widths)
        )
        del parts
        elements = counts[:, :1] * there
        order = np.lexsort((rank_, site, step)) if len(self._ranks) > 1 or len(self._ranks[0].spans) > 1 else None
        if order is not None:
            step, site, rank_, squares, there, counts, elements = (
                array[order] for array in (step, site, rank_, squares, there, counts, elements)
            )
        gradient, output_gradient = BLOCK_VALUES.index("gradient_square"), BLOCK_VALUES.index("output_gradient_square")
        having = there[:, gradient].astype(np.int64)
        if not per_rank and len(self._ranks) > 1 and len(step):
            begins = np.flatnonzero(np.r_[True, (np.diff(step) != 0) | (np.diff(site) != 0)])
            step, site = step[begins], site[begins]
            having = np.add.reduceat(there[:, gradient], begins, dtype=np.int64)
            squares, there = merge(squares, there, begins)
            counts = np.add.reduceat(counts, begins)
            elements = np.add.reduceat(elements, begins)
        if not per_rank and len(step):
            covered, everybody, expected, replicas = self._coverage(step)
            covered = block_coverage(having, expected, replicas, covered)
            squares[:, gradient] *= covered
            there[:, gradient] &= np.isfinite(covered)
            there[:, output_gradient] &= everybody
        return self._block_frame(per_rank, step, site, rank_, squares, there, counts, elements)

    def _coverage(self, wanted: Ints) -> tuple[Floats, Bools, int, Floats]:
        """Of each step wanted: what its summed shares of gradients are multiplied with, NaN where that is not known, whether all
        ranks have told theirs, how many ranks there are, and on how many of them gradients are the same.
        """
        expected = max((rank.info.world_size for rank in self._ranks if rank.info), default=1)
        if expected == 1:
            return np.ones(len(wanted)), np.ones(len(wanted), np.bool_), expected, np.ones(len(wanted))
        spans = [span for rank in self._ranks for span in rank.spans]
        steps, group = np.unique(concatenate([span.step for span in spans], np.int64), return_inverse=True)
        if not len(steps):
            return np.full(len(wanted), np.nan), np.zeros(len(wanted), np.bool_), expected, np.zeros(len(wanted))
        place = RUN_VALUES.index("replicas")
        told = concatenate([span.run_present[:, place] for span in spans], np.bool_)
        ranks = np.bincount(group[told], minlength=len(steps))
        replicas = np.full(len(steps), np.inf)
        np.minimum.at(replicas, group[told], concatenate([span.run[:, place] for span in spans], np.float64)[told])
        factors = [coverage(r, expected, same) for r, same in zip(ranks.tolist(), replicas.tolist(), strict=True)]
        places = np.minimum(np.searchsorted(steps, wanted), len(steps) - 1)
        recorded = steps[places] == wanted  # a step may be known by what was logged of it only
        covered = np.array([np.nan if factor is None else factor for factor in factors])[places]
        same = np.where(recorded & (ranks[places] > 0), replicas[places], 0.0)
        return np.where(recorded, covered, np.nan), recorded & (ranks[places] >= expected), expected, same

    def _block_frame(
        self, per_rank: bool, step: Ints, site: Ints, rank: Ints, squares: Floats, there: Bools, counts: Ints, elements: Ints
    ) -> pd.DataFrame:
        columns: dict[str, pa.Array] = {
            "step": pa.array(step),
            "block": arrow.labels(site, [site.name for site in self.sites]),
            **({"rank": pa.array(rank)} if per_rank else {}),
        }
        for name, column in statistics(squares.T, there.T, elements.T, counts.T).items():
            columns["gradient_norm_share" if per_rank and name == "gradient_norm" else name] = arrow.column(*column)
        for i, name in enumerate(BLOCK_COUNTS):
            columns[name] = pa.array(np.ascontiguousarray(counts[:, i]))
        columns["model"] = arrow.labels(site, self._models(self.sites))
        return arrow.frame(columns)

    def groups(self) -> pd.DataFrame:
        """One row per step and parameter group of the optimizers: learning rate (the largest of any rank) and gradient norm."""
        names: dict[str, int] = {}
        steps, codes, values, there = [], [], [], []
        for rank in self._ranks:
            for span in rank.spans:
                here = np.array([names.setdefault(name, len(names)) for name in span.groups], np.int64)
                steps.append(np.repeat(span.step, len(here)))
                codes.append(np.tile(here, len(span.step)))
                values.append(_flat(span.group_values))
                there.append(_flat(span.group_present))
        step, code = concatenate(steps, np.int64), concatenate(codes, np.int64)
        shape = (len(GROUP_VALUES),)
        value, present = concatenate(values, np.float64, shape), concatenate(there, np.bool_, shape)
        order = np.lexsort((code, step))
        step, code, value, present = step[order], code[order], value[order], present[order]
        begins = np.flatnonzero(np.r_[np.ones(min(1, len(step)), bool), (np.diff(step) != 0) | (np.diff(code) != 0)])
        rate, square = map(GROUP_VALUES.index, ("learning_rate", "gradient_square"))
        if len(step):
            rates = np.fmax.reduceat(np.where(present[:, rate], value[:, rate], np.nan), begins)
            squares = np.add.reduceat(np.where(present[:, square], value[:, square], 0.0), begins)
            step, code, present = step[begins], code[begins], np.logical_or.reduceat(present, begins)
        else:
            rates, squares = np.empty(0), np.empty(0)
        covered = self._coverage(step)[0]
        return arrow.frame(
            {
                "step": pa.array(step),
                "group": arrow.labels(code, list(names)),
                "learning_rate": arrow.column(rates, present[:, rate]),
                "gradient_norm": arrow.column(np.sqrt(squares * covered), present[:, square] & np.isfinite(covered)),
            }
        )

    def scalars(self) -> pd.DataFrame:
        """One row for every value that was logged, in the order of the logging."""
        chunks = [(rank.number, chunk) for rank in self._ranks for chunk in rank.scalars]
        return arrow.frame(
            {
                "step": pa.array(concatenate([chunk.step for _, chunk in chunks], np.int64)),
                "time": pa.array(concatenate([chunk.time for _, chunk in chunks], np.int64)).cast(pa.timestamp("ns", "UTC")),
                "rank": pa.array(concatenate([np.full(len(chunk.step), rank) for rank, chunk in chunks], np.int64)),
                "name": pa.array([name for _, chunk in chunks for name in chunk.names], pa.string()),
                "value": pa.array(concatenate([chunk.value for _, chunk in chunks], np.float64)),
            }
        )

    def gaps(self) -> pd.DataFrame:
        """One row per validation of a score that is trained on too, of the steps left in full; scores/gaps.py defines it."""
        found: dict[str, list[Gap]] = {}
        for rank in reversed(self._ranks):  # the lowest rank that logs both sides speaks for the run
            found |= rank.gaps()
        rows = sorted((gap for gaps in found.values() for gap in gaps), key=lambda gap: gap.step)
        return arrow.frame(
            {
                "step": pa.array([gap.step for gap in rows], pa.int64()),
                "score": pa.array([gap.score for gap in rows], pa.string()),
                "training": pa.array([gap.training for gap in rows], pa.float64()),
                "validation": pa.array([gap.validation for gap in rows], pa.float64()),
                "gap": pa.array([gap.gap for gap in rows], pa.float64()),
            }
        )

    def targets(self) -> pd.DataFrame:
        """One row per target of the run: whether, when and in how many seconds and steps of this attempt its score first met it."""
        targets: dict[Target, None] = {}
        for rank in self._ranks:
            targets |= dict.fromkeys(readable(rank.info.targets if rank.info else ()))
        first = first_reached(reached for rank in self._ranks for reached in rank.reached)
        met: list[Reached | None] = [first.get(str(target)) for target in targets]
        return arrow.frame(
            {
                "target": arrow.utf8(map(str, targets)),
                "score": arrow.utf8(target.score for target in targets),
                "reached": pa.array([moment is not None for moment in met], pa.bool_()),
                "step": pa.array([moment and moment.step for moment in met], pa.int64()),
                "time": arrow.times([None if moment is None else moment.time for moment in met]),
                "seconds": pa.array([moment and moment.seconds for moment in met], pa.float64()),
                "steps": pa.array([moment and moment.steps for moment in met], pa.int64()),
            }
        )

    def checkpoints(self) -> pd.DataFrame:
        """One row per checkpoint that the loop has named; the step is absent where it was before the first was over."""
        rows = [(rank.number, checkpoint) for rank in self._ranks for checkpoint in rank.checkpoints]
        rows.sort(key=lambda row: -1 if row[1].step is None else row[1].step)
        return arrow.frame(
            {
                "step": pa.array([checkpoint.step for _, checkpoint in rows], pa.int64()),
                "time": arrow.times([checkpoint.time for _, checkpoint in rows]),
                "path": arrow.utf8(checkpoint.path for _, checkpoint in rows),
                "rank": pa.array([rank for rank, _ in rows], pa.int64()),
            }
        )

    def histograms(self, first: int | None = None, last: int | None = None) -> pd.DataFrame:
        """Per step and block the sampled |y| of that step, one column per bucket, for steps from `first` to `last` (both included).

        The files hold cumulative counts; a step whose predecessor is not there (thinned, damaged) has no counts of its own and is
        left out.
        """
        names = {(site.model, site.name): i for i, site in enumerate(self.sites)}
        parts: list[tuple[Ints, Ints, Array, Floats]] = []
        for rank in self._ranks:
            for step, sites, counts, sums in differences(rank, first, last):
                codes = np.array([names[site.model, site.name] for site in sites], np.int64)
                parts.append((np.repeat(step, len(sites)), np.tile(codes, len(step)), counts, sums))
        step = concatenate([part[0] for part in parts], np.int64)
        site = concatenate([part[1] for part in parts], np.int64)
        counts = concatenate([part[2] for part in parts], np.int32, (MAGNITUDE_COLUMNS,))
        sums = concatenate([part[3] for part in parts], np.float64)
        del parts
        if len(self._ranks) > 1 and len(step):
            order = np.lexsort((site, step))
            step, site = step[order], site[order]
            begins = np.flatnonzero(np.r_[True, (np.diff(step) != 0) | (np.diff(site) != 0)])
            counts = np.add.reduceat(counts[order], begins, dtype=np.int32)
            sums = np.add.reduceat(sums[order], begins)
            step, site = step[begins], site[begins]
        columns: dict[str, pa.Array] = {"step": pa.array(step), "block": arrow.labels(site, [site.name for site in self.sites])}
        for i, name in enumerate(MAGNITUDE_NAMES):
            columns[name] = pa.array(np.ascontiguousarray(counts[:, i]))
        columns["sum"] = pa.array(sums)
        columns["model"] = arrow.labels(site, self._models(self.sites))
        return arrow.frame(columns)

    def bins(self, of: Literal["blocks", "groups", "run", "scalars"] = "blocks") -> pd.DataFrame:
        """Thinned history: minimum, maximum, sum and count of every value over bins of steps, the finest that are left.

        The bins of a rank follow on each other without overlap, down to at most 64 steps before the end of a run that was killed.
        Values are per rank and as in the files: squares are sums of squares, gradients are shares.
        """
        stem: Kind = "scalarbins" if of == "scalars" else "bins"
        make = {"blocks": self._block_bins, "groups": thinned.of_groups, "run": thinned.of_run, "scalars": thinned.of_scalars}[of]
        nothing = row_format(stem)
        tables = [thinned.placed(make(nothing, np.empty(0, nothing.dtype)), 0, 0)]
        for rank in self._ranks:
            for level, kept in enumerate(rank.finest):
                for form, records in rank.rows(f"{stem}-{level}", stem, []):
                    records = records[np.isin(records["first_step"], kept)]
                    tables.append(thinned.placed(make(form, records), rank.number, level))
        return arrow.as_pandas(pa.concat_tables(tables).sort_by([("rank", "ascending"), ("first_step", "ascending")]))

    def _block_bins(self, form: RowFormat, records: Records) -> pa.Table:
        """One row per bin and site."""
        codes = np.tile(np.arange(len(form.sites)), len(records))
        columns = thinned.of_lists(records, "block", [site.name for site in form.sites], BINNED_BLOCK_VALUES)
        for name in BLOCK_COUNTS:
            columns[f"{name}_sum"] = pa.array(records[f"block_{name}_sum"].reshape(-1))
        columns["model"] = arrow.labels(codes, self._models(form.sites))
        return pa.table(columns)

    def findings(self) -> pd.DataFrame:
        """Every finding in its newest state, in the order of their opening; `evidence` is JSON."""
        newest = {event.id: event for event in self._findings}.values()
        return arrow.of_values(Finding, sorted(newest, key=lambda finding: (finding.opened_step, finding.id)))

    def incidents(self) -> pd.DataFrame:
        """What broke: every incident of every rank in its newest state, in the order of time; `evidence` is JSON.

        How a process ended that could not say so itself is concluded from what it left (flight.endings), if nobody has yet.
        """
        return arrow.of_values(Incident, incidents.newest(event for rank in self._ranks for event in rank.incidents))

    def _models(self, sites: Sequence[ResidualSite]) -> list[str]:
        labels = {key: label for rank in self._ranks if rank.info for key, label in rank.info.models.items()}
        return [labels.get(site.model, site.model) for site in sites]


def _flat(values: Array) -> Array:
    """[rows, values, sites] as [rows * sites, values]."""
    return np.ascontiguousarray(np.moveaxis(values, 1, 2)).reshape(-1, values.shape[1])
