"""The live view of a run in a terminal: what `resmon tail` and `resmon demo` show.

A `View` is an immutable value. What the flight says goes into it (`stepped`, `logged`, `found`, or by dataclasses.replace), and
`frame` draws it at any moment for any width. What it keeps of the past is bounded: a `Trace` thins itself as it grows, so a
view of a run of a million steps costs what a view of a thousand costs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar, get_args

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from resmon.exporters.ranks import MergedStep, Ranks, Sites
from resmon.flight.reader import Skip
from resmon.quantities import count, printable, shortened
from resmon.records import (
    BLOCK_COUNTS,
    Bools,
    Columns,
    Finding,
    FindingState,
    Floats,
    Incident,
    RunEnd,
    RunInfo,
    ScalarRecord,
    StepRecord,
    Stopped,
)

BARS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
# The ratio's bar: from 10^-2 (a block that hardly does anything) to 10^1 (a branch that drowns the stream), logarithmic.
RATIO_DECADES = (-2.0, 1.0)
# How far a block's ratio may be from its own median, as a factor, before its bar turns yellow and red. Colours only: what counts
# as a fault is for detectors to say.
WARM, HOT = 2.0, 5.0
STATES: tuple[FindingState, ...] = get_args(FindingState)  # in the order of a finding's life
# By the least width of the frame: the heads of the numbers, how wide the ratio's bar is, and what marks the worst block.
LAYOUTS: tuple[tuple[int, tuple[str, ...], int, str], ...] = (
    (96, ("branch/skip", "skip rms", "branch rms", "gradient"), 16, "◀ worst"),
    (76, ("branch/skip", "skip rms", "branch", "grad"), 8, "◀ worst"),
    (0, ("ratio", "skip rms", "branch", "grad"), 0, "◀"),
)
NUMBER, BORDERS = 8, 4  # characters of a number, and of the frame's two sides
FINDINGS = 6  # that are shown
INCIDENTS = 4  # that are shown
RATE_WINDOW = 50  # steps over which steps per second and the monitor's cost are averaged

Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class Trace(Generic[Kept]):
    """Every `stride`-th of the values that came; when `limit` are kept, every second goes and the stride doubles."""

    limit: int
    kept: tuple[Kept, ...] = ()
    stride: int = 1
    seen: int = 0

    @property
    def wants(self) -> bool:
        """Whether the next value would be kept."""
        return self.seen % self.stride == 0

    def skip(self) -> Trace[Kept]:
        """One more came, and was not kept."""
        return replace(self, seen=self.seen + 1)

    def add(self, value: Kept) -> Trace[Kept]:
        if not self.wants:
            return self.skip()
        kept, stride = (*self.kept, value), self.stride
        if len(kept) > self.limit:
            kept, stride = kept[::2], stride * 2
        return replace(self, kept=kept, stride=stride, seen=self.seen + 1)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What is to be seen of one attempt of a run."""

    run: str
    info: RunInfo | None = None
    merged: MergedStep | None = None  # the newest step, over the ranks
    record: StepRecord | None = None  # the first rank's record of it
    nonfinite: Bools = field(default_factory=lambda: np.empty(0, bool))  # by site: whether the newest step is
    recent: tuple[tuple[float, float], ...] = ()  # duration and the monitor's part of it, in seconds, of the newest steps
    losses: Trace[float] = field(default_factory=lambda: Trace(256))
    ratios: Trace[Floats] = field(default_factory=lambda: Trace(256))
    scalars: dict[str, float] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    incidents: dict[tuple[int, str], Incident] = field(default_factory=dict)  # by rank and id
    patience: float = math.inf  # seconds without a step after which the run is stalled
    stopped: Stopped | None = None  # the rank is recorded no more
    unread: tuple[Skip, ...] = ()  # what of its files could not be read
    end: RunEnd | None = None
    goal: float | None = None  # seconds that the run is to take, where somebody knows

    @property
    def sites(self) -> Sites:
        return self.merged.sites if self.merged else ()

    def stepped(self, records: Sequence[tuple[Columns, StepRecord]], ranks: Ranks, newest: bool = True) -> View:
        """The records of one step, one per rank; `ranks` merges them and is the same for all steps of a view.

        A step that is not the newest costs less: only what is kept of the past is made of it.
        """
        record = records[0][1]
        duration, monitor = record.run_value("duration"), record.run_value("monitor_seconds")
        recent = self.recent
        if duration is not None and monitor is not None:
            recent = (*recent[-RATE_WINDOW + 1 :], (duration, monitor))
        if not newest and not self.ratios.wants:
            return replace(self, recent=recent, ratios=self.ratios.skip())
        merged = ranks.step(records, self.info.world_size if self.info is not None else 1)
        ratio = np.where(merged.gauges["branch_skip_ratio"].present, merged.gauges["branch_skip_ratio"].values, np.nan)
        # Sites that appear move the columns; what was kept of the past no longer fits.
        ratios = self.ratios if merged.sites == self.sites else Trace(self.ratios.limit)
        nonfinite = _nonfinite(merged.sites, records)
        return replace(self, merged=merged, record=record, nonfinite=nonfinite, recent=recent, ratios=ratios.add(ratio))

    def logged(self, record: ScalarRecord) -> View:
        losses = self.losses.add(record.values["loss"]) if "loss" in record.values else self.losses
        return replace(self, losses=losses, scalars=self.scalars | record.values)

    def found(self, finding: Finding) -> View:
        """An event of a finding; one that is older than what is known of it changes nothing."""
        known = self.findings.get(finding.id)
        if known is not None and (known.step, STATES.index(known.state)) > (finding.step, STATES.index(finding.state)):
            return self
        return replace(self, findings=self.findings | {finding.id: finding})

    def broke(self, incident: Incident) -> View:
        """An event of an incident."""
        return replace(self, incidents=self.incidents | {(incident.rank, incident.id): incident})

    def deviation(self) -> Floats:
        """|log(ratio / the block's own median in this run)| by site; infinite for a block with non-finite values."""
        if self.merged is None or not self.sites:
            return np.zeros(len(self.sites))
        column = self.merged.gauges["branch_skip_ratio"]
        kept = np.array(self.ratios.kept)
        with np.errstate(all="ignore"):
            # Ratios of 0 and absent ones do not say where the block usually is.
            usual = np.where(np.isfinite(kept) & (kept > 0), kept, np.nan)
            median = np.full(len(self.sites), np.nan)
            some = ~np.isnan(usual).all(axis=0)
            median[some] = np.nanmedian(usual[:, some], axis=0)
            distance: Floats = np.abs(np.log(column.values / median))
        distance[~column.present | ~np.isfinite(distance)] = 0.0
        distance[self.nonfinite | (column.present & ~np.isfinite(column.values))] = np.inf
        return distance


def _nonfinite(sites: Sites, records: Sequence[tuple[Columns, StepRecord]]) -> Bools:
    forward, backward = BLOCK_COUNTS.index("nonfinite_forward"), BLOCK_COUNTS.index("nonfinite_backward")
    if not any(record.counts[[forward, backward]].any() for _, record in records):
        return np.zeros(len(sites), bool)
    found = {
        (site.model, site.name)
        for columns, record in records
        for site, ahead, back in zip(columns.sites, record.counts[forward], record.counts[backward], strict=True)
        if ahead or back
    }
    return np.array([(site.model, site.name) in found for site in sites], bool)


def frame(view: View, width: int = 100, height: int | None = None, now: float | None = None) -> RenderableType:
    """The view as something rich can print; `height` bounds the rows (the worst blocks stay), None shows up to 40 blocks."""
    now = time.time() if now is None else now
    parts: list[RenderableType] = [_title(view, now)]
    if view.goal is not None and view.end is None:
        parts.append(_progress(view, view.goal, now, width))
    parts.append(_figures(view, width))
    findings = _findings(view)
    broke = list(view.incidents.values())
    incidents = [_incident(incident, view) for incident in broke[-INCIDENTS:]]
    if len(broke) > INCIDENTS:
        incidents.insert(0, Text(f"{len(broke) - INCIDENTS} incidents more, before these", style="dim red"))
    room = 40 if height is None else max(3, height - 10 - len(parts) - 3 * len(findings) - 4 * len(incidents))
    parts.append(_blocks(view, width, room))
    if view.stopped is not None:
        incidents.append(Text(f"✖ {printable(view.stopped.summary)}", style="bold red"))
    if view.unread:
        incidents.append(Text(f"✖ {_unread(view)}", style="yellow"))
    parts.extend(findings + incidents)
    return Panel(Group(*parts), border_style="red" if findings or incidents else "dim", padding=(0, 1), width=width)


def _title(view: View, now: float) -> RenderableType:
    line = Text(overflow="ellipsis", no_wrap=True)
    line.append(printable(view.run), style="bold")
    if view.info is not None:
        line.append(f"  attempt {view.info.attempt}")
        line.append("  " + ", ".join(map(printable, view.info.models.values())), style="dim")
        if view.info.world_size > 1:
            line.append(f"  {view.info.world_size} ranks", style="dim")
    started = view.info.started if view.info else now
    state = Text(no_wrap=True, justify="right")
    if view.end is not None:
        state.append(f"■ {view.end.outcome}", style="green" if view.end.outcome == "finished" else "bold red")
        state.append(f"  {_duration(view.end.time - started)}", style="dim")
    elif view.record is not None and now - view.record.time > view.patience:
        state.append("● stalled", style="bold red")
        state.append(f"  no step for {_duration(now - view.record.time)}", style="dim")
    elif view.record is not None:
        state.append("● running", style="green")
        state.append(f"  {_duration(now - started)}", style="dim")
    else:
        state.append("… no step yet", style="dim")
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(ratio=1, no_wrap=True)
    row.add_column(justify="right", no_wrap=True)
    row.add_row(line, state)
    return row


def _progress(view: View, goal: float, now: float, width: int) -> RenderableType:
    passed = min(max(now - view.info.started, 0.0), goal) if view.info else 0.0
    row = Table.grid(padding=(0, 1))
    label = f"{passed:.0f} of {goal:.0f} s"
    row.add_row(ProgressBar(goal, passed, width=max(10, width - 6 - len(label))), Text(label, style="dim"))
    return row


def _figures(view: View, width: int) -> RenderableType:
    """Loss and how it came there, then the run's other figures, as many as the width takes."""
    loss = Text(no_wrap=True, overflow="crop")
    loss.append("loss ", style="dim")
    loss.append(_number(view.scalars.get("loss")), style="bold")
    loss.append("  " + sparkline(view.losses.kept, width - 6 - loss.cell_len), style="cyan")

    figures: list[tuple[str, str]] = []
    if view.record is not None and view.merged is not None:
        figures = [
            ("step", f"{view.record.step:,}"),
            ("steps/s", _number(_rate(view))),
            ("learning rate", _number(view.record.run_value("learning_rate"))),
            ("gradient", _number(view.merged.gradient_norm)),
        ]
    figures += [(printable(name), _number(value)) for name, value in view.scalars.items() if name != "loss"]
    line = Text(no_wrap=True, overflow="ellipsis")
    for name, value in figures:
        if line.cell_len + len(name) + len(value) + 4 > width - 4:
            break
        line.append(f"{name} " if not line else f"   {name} ", style="dim").append(value)
    return Group(line, loss, Text(_cost(view), style="dim", no_wrap=True, overflow="ellipsis"), Text(""))


def _blocks(view: View, width: int, room: int) -> RenderableType:
    if view.merged is None:
        return Text("waiting for the first step" if view.end is None else "there is no step to be shown", style="dim")
    if not view.sites:
        return Text("no residual block in this model: loss, gradients and step times are recorded", style="dim")
    deviation = view.deviation()
    worst = _worst(view, deviation)
    farthest = np.argsort(-deviation, kind="stable")
    if worst is not None:  # of blocks that are equally far it need not be the first
        farthest = np.concatenate(([worst], farthest[farthest != worst]))
    shown = np.sort(farthest[:room])

    _, heads, bar, mark = next(layout for layout in LAYOUTS if width >= layout[0])
    fixed = [max(NUMBER, len(head)) for head in heads] + [bar] * (bar > 0) + [len(mark)]
    room = max(8, width - BORDERS - sum(fixed) - len(fixed))
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=room)
    for i, head in enumerate(heads):
        table.add_column(justify="right", no_wrap=True, min_width=max(NUMBER, len(head)))
        if bar and i == 0:
            table.add_column(no_wrap=True, min_width=bar)
    table.add_column(no_wrap=True)
    table.add_row(*(Text(text, style="dim") for text in ("block", heads[0], *[""] * (bar > 0), *heads[1:], "")))
    gauges = view.merged.gauges
    names = dict(zip(shown.tolist(), shortened([printable(view.sites[i].place) for i in shown], room), strict=True))
    for i in shown:
        style = _heat(deviation[i])
        ratio, skip, branch, gradient = (
            float(gauges[name].values[i]) if gauges[name].present[i] else None
            for name in ("branch_skip_ratio", "skip_rms", "branch_rms", "gradient_norm")
        )
        table.add_row(
            Text(names[int(i)], style="bold red" if view.nonfinite[i] else ""),
            Text(_number(ratio), style=style),
            *[Text(_bar(ratio, bar), style=style)] * (bar > 0),
            _number(skip),
            _number(branch),
            _number(gradient),
            Text(mark, style=style) if i == worst else "",
        )
    return Group(table, Text(_legend(deviation, worst, len(shown)), style="dim", overflow="fold"))


def _worst(view: View, deviation: Floats) -> int | None:
    """The block to look at first: of non-finite ones the one that a finding of these names, else the first in order."""
    named = {(finding.model, finding.block) for finding in view.findings.values() if finding.kind == "nonfinite"}
    for i, site in enumerate(view.sites):
        if (site.model, site.name) in named and np.isinf(deviation[i]):
            return i
    return int(np.argmax(deviation)) if deviation.max() > 0 else None


def _legend(deviation: Floats, worst: int | None, shown: int) -> str:
    notes = []
    if shown < len(deviation):
        notes.append(f"{shown} blocks of {len(deviation):,}, those furthest from their own median")
    if worst is not None and np.isinf(deviation[worst]):
        notes.append(f"◀ where to look first of {np.isinf(deviation).sum():,} blocks with non-finite values")
    elif worst is not None:
        notes.append(f"◀ ratio furthest from the block's own median, by a factor of {np.exp(deviation[worst]):.2f}")
    return "; ".join(notes)


def _findings(view: View) -> list[RenderableType]:
    """In the order in which they came; where they are many, pages stay, then what is open, then the newest."""
    found = list(view.findings.values())
    by_weight = sorted(found, key=lambda each: (each.severity != "page", each.state == "closed", -each.opened_step))
    kept = {each.id for each in by_weight[:FINDINGS]}
    shown: list[RenderableType] = [_finding(each) for each in found if each.id in kept]
    if len(found) > FINDINGS:
        shown.insert(0, Text(f"{len(found) - FINDINGS} findings more; resmon replay has them all", style="dim red"))
    return shown


def _finding(finding: Finding) -> RenderableType:
    text = Text(style="red" if finding.state != "closed" else "dim red")
    text.append(f"✖ {finding.kind}", style="bold")
    if finding.block:
        text.append(" in block ").append(printable(finding.place), style="bold")
    text.append(f" at step {finding.opened_step:,}: {printable(finding.summary)}")
    return text


def _incident(incident: Incident, view: View) -> RenderableType:
    several = view.info is not None and view.info.world_size > 1
    text = Text(style="red")
    text.append(f"✖ {incident.kind}", style="bold")
    if incident.block:
        text.append(" in block ").append(printable(incident.place), style="bold")
    text.append(f" on rank {incident.rank}" if several else "")
    text.append(f": {printable(incident.summary)}")
    if incident.checkpoint:
        step = "" if incident.checkpoint_step is None else f", of step {incident.checkpoint_step:,}"
        text.append(f" The last checkpoint before: {printable(incident.checkpoint)}{step}.")
    if incident.advice:
        text.append(f" {printable(incident.advice)}", style="default")
    return text


def _unread(view: View) -> str:
    places, first = len(view.unread), printable(str(view.unread[0]))
    if places == 1:
        return f"A part of the flight cannot be read: {first}"
    return f"{places:,} parts of the flight cannot be read; resmon.load(...).skipped lists them. The first: {first}"


def _rate(view: View) -> float | None:
    spent = sum(duration for duration, _ in view.recent)
    return len(view.recent) / spent if spent > 0 else None


def _cost(view: View) -> str:
    spent, monitor = sum(duration for duration, _ in view.recent), sum(own for _, own in view.recent)
    errors = view.record.errors_total if view.record is not None else 0
    told = f"resmon has met {count(errors, 'error')} of its own" if errors else ""
    if spent <= 0:
        return told
    share = f"resmon takes {100 * monitor / spent:.1f} % of a step"
    if told:  # first, as the line may be cut
        return f"{told}; {share}"
    if not view.sites:
        return share
    each = 1e6 * monitor / len(view.recent) / len(view.sites)
    return f"{share}, {each:,.{1 if each < 10 else 0}f} µs a block"


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as a line of bars, averaged down to `width`; ✖ where one is not finite."""
    if not values or width < 1:
        return ""
    groups = np.array_split(np.asarray(values, dtype=float), min(width, len(values)))
    with np.errstate(all="ignore"):
        means = np.array([group.mean() for group in groups])
        finite = means[np.isfinite(means)]
        if finite.size and (finite > 0).all() and finite.max() > 100 * finite.min():  # a loss that spans decades
            means, finite = np.log(means), np.log(finite)
    if not finite.size:
        return "✖" * len(means)
    low, span = float(finite.min()), float(finite.max() - finite.min())
    return "".join("✖" if not np.isfinite(m) else BARS[int((m - low) / span * 7.999) if span > 0 else 0] for m in means)


def _bar(ratio: float | None, width: int) -> str:
    """A horizontal bar on a logarithmic scale, to an eighth of a cell."""
    if ratio is None or np.isnan(ratio) or ratio <= 0:
        return ""
    low, high = RATIO_DECADES
    share = min(max((np.log10(ratio) - low) / (high - low), 0.0), 1.0)
    whole, eighths = divmod(round(share * width * 8), 8)
    return f"{'█' * whole}{EIGHTHS[eighths].strip()}"


def _heat(deviation: float) -> str:
    if deviation >= np.log(HOT):
        return "bold red"
    return "yellow" if deviation >= np.log(WARM) else "green"


def _number(value: float | None) -> str:
    """Three digits that matter, in at most eight characters; a dash where there is no value."""
    if value is None:
        return "–"
    if not np.isfinite(value):
        return str(float(value))
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 1e4:
        return f"{value:.{max(0, 2 - int(np.floor(np.log10(size))))}f}"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def _duration(seconds: float) -> str:
    seconds = max(0, int(seconds))
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
