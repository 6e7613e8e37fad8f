"""A run's figures for the MeterProvider of the program that trains, through opentelemetry-api alone.

Nothing is measured for that, and nothing happens while it trains: the newest record is kept by reference, and observable
instruments are made once for a provider. When one of its readers collects, in the reader's thread and as seldom as it does, they
give what a scrape would show of that record. Names and units are those that the agent pushes under; as a process knows its own
rank only, every point says which that is. What takes all ranks of a machine, every step or the operating system is left to the
agent (ELSEWHERE), and so are histograms, of which the API has none that could be observed. NaN and infinite values are absent, for
the SDK takes none; `resmon.block.nonfinite_steps` and `resmon.incidents` say that there were some.

What a run was at its end is given for LINGER seconds more, so that a reader that comes once a minute has it.
"""

from __future__ import annotations

import logging
import math
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from resmon.errors import ConfigurationError
from resmon.records import Checkpoint, Columns, Incident, ResidualSite, RunEnd, RunInfo, ScalarRecord, StepRecord
from resmon.scores.targets import Reached, first_reached

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

    from resmon.exporters.conventions import Convention
    from resmon.exporters.points import Rows
    from resmon.exporters.view import AgentView

log = logging.getLogger("resmon")

LINGER = 120.0  # seconds

# Metrics of runs that only the agent has: what it takes to know them.
ELSEWHERE = {
    **dict.fromkeys(
        (
            "resmon_block_branch_skip_ratio_max",
            "resmon_block_gradient_norm_max",
            "resmon_block_output_gradient_norm_max",
            "resmon_loss_max",
            "resmon_score_gap",
            "resmon_nonfinite_steps_total",
        ),
        "every step",
    ),
    **dict.fromkeys(
        ("resmon_run_series", "resmon_run_series_limit", "resmon_run_folded_blocks"), "what is exported, and what is folded for it"
    ),
    **dict.fromkeys(
        (
            "resmon_process_cpu_seconds_total",
            "resmon_process_threads",
            "resmon_process_open_fds",
            "resmon_process_read_bytes_total",
            "resmon_process_written_bytes_total",
        ),
        "the operating system",
    ),
    **dict.fromkeys(("resmon_finding_active", "resmon_run_stalled"), "detectors"),
}


class Shown:
    """What is shown of one run: the newest of everything. Written by the loop's thread, read by those of readers."""

    def __init__(self) -> None:
        self.info: RunInfo | None = None
        self.ended: float | None = None  # monotonic
        self._process = os.getpid()
        self._columns = Columns()
        self._newest: tuple[Columns, StepRecord] | None = None
        self._scores: dict[str, float] = {}
        self._incidents: dict[str, Incident] = {}
        self._reached: list[Reached] = []
        self._checkpoint: Checkpoint | None = None
        self._end: RunEnd | None = None

    def sites(self, sites: Sequence[ResidualSite], groups: Sequence[str]) -> None:
        self._columns = Columns(tuple(sites), tuple(groups))

    def step(self, record: StepRecord) -> None:
        self._newest = self._columns, record

    def scalars(self, record: ScalarRecord) -> None:
        self._scores = self._scores | record.values

    def incident(self, incident: Incident) -> None:
        self._incidents = self._incidents | {incident.id: incident}

    def reached(self, reached: Reached) -> None:
        self._reached = [*self._reached, reached]

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def end(self, end: RunEnd) -> None:
        self._end, self.ended = end, time.monotonic()

    @property
    def is_over(self) -> bool:
        """Nothing is shown of it any more, here or in a child that was forked."""
        return os.getpid() != self._process or (self.ended is not None and time.monotonic() - self.ended > LINGER)

    def view(self) -> AgentView | None:
        """This moment; None before the run has begun to be recorded."""
        from resmon.exporters.ranks import Ranks
        from resmon.exporters.stages import depths
        from resmon.exporters.view import AgentView, BlockTable, RankView, RunView

        info, newest = self.info, self._newest
        if info is None:
            return None
        merged, table = None, None
        if newest is not None:
            ranks = Ranks()
            merged = ranks.step([newest], info.world_size)
            sites, nonfinite, buckets, sums = ranks.counters([newest])
            table = BlockTable(sites, {**merged.gauges, "depth": depths(sites)}, nonfinite, buckets, sums)
        columns, record = newest if newest is not None else (self._columns, None)
        end = self._end
        run = RunView(
            run=info.run,
            info=info,
            outcome=None if end is None else end.outcome,
            ranks=(RankView(info.rank, record, columns.groups),),
            blocks=table,
            watched={key: sum(site.model == key for site in columns.sites) for key in info.models},
            folded={},
            max_series=0,
            gradient_norm=merged.gradient_norm if merged else None,
            group_gradient_norms=merged.group_gradient_norms if merged else {},
            clip_factor=merged.clip_factor if merged else None,
            scores=self._scores,
            loss_max=None,
            findings=(),
            reached=first_reached(self._reached),
            checkpoint=self._checkpoint,
            incidents=tuple(self._incidents.values()),
            started=info.started,
            ended=None if end is None else end.time,
        )
        return AgentView(info.resmon, (run,), {}, {}, 1, 0, 0, 0.0)


class Instruments:
    """The instruments of one provider, over all runs that are shown to it."""

    def __init__(self, provider: MeterProvider) -> None:
        from resmon import __version__
        from resmon.exporters.conventions import CONVENTIONS, SCOPE
        from resmon.exporters.points import Rows

        self._shown: list[Shown] = []
        self._views: dict[int, tuple[tuple[object, ...], AgentView, Rows]] = {}  # by the id of what is shown
        self._failed = False
        self._new_rows: Callable[[], Rows] = Rows
        meter = provider.get_meter(SCOPE, __version__)
        for convention in CONVENTIONS.values():
            metric = convention.metric
            if "run" not in metric.labels or metric.kind == "histogram" or metric.name in ELSEWHERE:
                continue
            make = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
            make(convention.name, [self._callback(convention)], unit=convention.unit, description=metric.help)

    def show(self, shown: Shown) -> None:
        self._shown = [*self._shown, shown]

    def _callback(self, convention: Convention) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            try:
                # Of others the SDK would complain at each collection, and leave them out.
                points = self._points(convention)
                return [Observation(value, attributes) for attributes, value in points if math.isfinite(value)]
            except Exception:
                if not self._failed:
                    self._failed = True
                    log.warning("resmon: %s could not be observed. Further ones will not be told", convention.name, exc_info=True)
                return []

        return observe

    def _points(self, convention: Convention) -> Iterator[tuple[dict[str, Any], float]]:
        from resmon.exporters.points import is_of_blocks, of_blocks, of_others

        if any(shown.is_over for shown in self._shown):
            self._shown = [shown for shown in self._shown if not shown.is_over]
            self._views = {id(shown): self._views[id(shown)] for shown in self._shown if id(shown) in self._views}
        # A run that was begun again stands for the one before it.
        for shown in {(shown.info.run, shown.info.rank): shown for shown in self._shown if shown.info is not None}.values():
            seen = self._view(shown)
            if seen is None:
                continue
            view, rows = seen
            (run,) = view.runs
            metric, rank = convention.metric, {"rank": str(run.info.rank)}
            if is_of_blocks(metric):
                yield from (({**attributes, **rank}, value) for attributes, value in of_blocks(metric, run, rows.of(run)))
            else:
                yield from (({**attributes, **rank}, value) for attributes, value in of_others(metric, view))

    def _view(self, shown: Shown) -> tuple[AgentView, Rows] | None:
        """One for all instruments, as long as nothing is new."""
        state = tuple(vars(shown).values())
        known = self._views.get(id(shown))
        rows = self._new_rows() if known is None else known[2]
        if known is not None and all(old is new for old, new in zip(known[0], state, strict=True)):
            return known[1], rows
        view = shown.view()
        if view is None:
            return None
        self._views[id(shown)] = state, view, rows
        return view, rows


_instruments: weakref.WeakKeyDictionary[Any, Instruments] = weakref.WeakKeyDictionary()
_of_the_program: list[Instruments] = []  # at most one; made before the program sets its provider, they are that one's, too


def show(shown: Shown, provider: MeterProvider | None) -> None:
    """Show a run to a provider; None is the one that the program has set, or will set, for all.

    Raises ConfigurationError where opentelemetry-api is not installed, or the provider is none.
    """
    try:
        from opentelemetry.metrics import MeterProvider, get_meter_provider  # only now: importing resmon does not
    except ImportError as error:
        raise ConfigurationError(
            "opentelemetry=True hands a run's figures to the program's own MeterProvider, and opentelemetry-api is not installed. "
            "Install it with pip install 'resmon[otel]', or leave the setting out."
        ) from error
    if provider is not None and not isinstance(provider, MeterProvider):
        raise ConfigurationError(
            f"meter_provider is a {type(provider).__name__}, not a MeterProvider of OpenTelemetry's; pass the one that your "
            "program made, or opentelemetry=True for the one that it has set for all."
        )
    programs = get_meter_provider()
    asked = programs if provider is None else provider
    known = _instruments.get(asked)
    if known is None and asked is programs and _of_the_program:
        known = _of_the_program[0]
    if known is None:
        known = _instruments[asked] = Instruments(asked)
        if asked is programs:
            _of_the_program.append(known)
    known.show(shown)
