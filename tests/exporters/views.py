"""Views for the exporters' tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from resmon.catalogue import MAXIMUM_WINDOW
from resmon.exporters.maxima import Maxima
from resmon.exporters.ranks import Ranks
from resmon.exporters.stages import depths
from resmon.exporters.view import AgentView, BlockTable, GpuView, ProcessView, RankView, RunView
from resmon.records import Checkpoint, Columns, Finding, Incident, ResidualSite, RunInfo, StepRecord
from resmon.scores.targets import Reached
from resmon.statistics import Column
from tests import synthetic

REACHED, MISSED = "accuracy >= 0.5", "accuracy >= 0.9"
MAXIMA = ("branch_skip_ratio", "gradient_norm", "output_gradient_norm")

GROUPS = ("decay", "rest")


def table(sites: tuple[ResidualSite, ...], records: Sequence[StepRecord]) -> BlockTable:
    """One rank's records as the agent would show them after the last."""
    ranks, maxima = Ranks(), Maxima(MAXIMA, MAXIMUM_WINDOW)
    for record in records:
        merged = ranks.step([(Columns(sites, GROUPS[: records[-1].groups.shape[1]]), record)])
        maxima.push(merged.time, merged.sites, merged.gauges)
    gauges: dict[str, Column] = dict(merged.gauges)
    gauges |= {f"{name}_max": column for name, column in maxima.columns(merged.sites).items()}
    gauges["depth"] = depths(sites)
    return BlockTable(sites, gauges, *ranks.counters([(Columns(sites, GROUPS[: records[-1].groups.shape[1]]), records[-1])])[1:])


def run(
    sites: tuple[ResidualSite, ...],
    records: Sequence[StepRecord],
    info: RunInfo | None = None,
    scores: dict[str, float] | None = None,
    findings: tuple[tuple[Finding, bool], ...] = (),
) -> RunView:
    info = info or synthetic.info()
    return RunView(
        run=info.run,
        info=info,
        outcome=None,
        ranks=(RankView(0, records[-1], GROUPS[: records[-1].groups.shape[1]], ProcessView(12.5, 4, 32, 1024, 2048), 2),),
        blocks=table(sites, records),
        watched=Counter(site.model for site in sites),
        folded={},
        max_series=10_000,
        gradient_norm=2.0,
        group_gradient_norms=dict.fromkeys(GROUPS[: records[-1].groups.shape[1]], 1.0),
        clip_factor=0.5,
        scores=scores or {"loss": 1.5},
        loss_max=2.5,
        findings=findings,
        gaps={"loss": 0.25},
        reached={REACHED: Reached(REACHED, 5, 6, 1010.0, 9.5, 0.75)},
        checkpoint=Checkpoint(7, 1011.0, "last.pt"),
        incidents=(Incident("nonfinite-7", "nonfinite", 1012.0, 7, "h.1 made NaN"),),
    )


def agent(*runs: RunView) -> AgentView:
    gpu = GpuView("0", 0.5, 1e9, 2e9, 60.0, 300.0)
    return AgentView("0", runs, {"finished": 2}, {"finished": 1}, len(runs), 0, 0, 0.01, (gpu,), 1000.0)
