"""What panels ask: matchers for the dashboards' variables, and queries with the names of what they give.

Names of runs, models and blocks are anything. They stand in queries between backticks, where PromQL takes every character as it is,
and by formats that Grafana does not escape for double quotes: ${run:raw} where one is equal, ${block:regex} where one of several
matches. So a name may hold quotes, backslashes and what means something in a regular expression; only a backtick ends it early.
"""

from __future__ import annotations

import re

from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode

from resmon.assets.machines import MERGED
from resmon.catalogue import BY_NAME

RUN = "run=`${run:raw}`"
RUN_B = "run=`${run_b:raw}`"
# A run that trains several models has them all in its own series: "Generator,Discriminator".
MODEL = "model=~`(.*,)?${model:regex}(,.*)?`"
BLOCK = "block=~`${block:regex}`"
SLO = "service=~`${service:regex}`,slo=~`${slo:regex}`"

# Ends that somebody must look into. Of an unknown one nothing is left to look into: the run's folder was removed.
BROKEN = 'outcome!~"finished|interrupted|unknown"'

RATE = "$__rate_interval"
RANGE = "$__range"
INTERVAL = "$__interval"

_MERGED = {merged.record: merged.expr for merged in MERGED}
_METRIC = re.compile(r"(?<![\w:])(resmon_[a-z_]+)(?![\w:])(\[?)")
_RECORD = re.compile(r"(?<![\w:])[a-z_]+:resmon_[a-z0-9_]+:[a-z0-9_]+")


def over_machines(record: str, *matchers: str, newest: bool = False) -> str:
    """What a recording rule of alerts/resmon.yaml computes over the machines of a run, asked for itself: no rules need be there.

    Each series is selected by those of the matchers whose label it has. `newest` takes the newest finite value within the time that
    is looked at, so that a run that has ended still has one, and one that went non-finite shows how it was before. A rate is none.
    """

    def selected(match: re.Match[str]) -> str:
        name, window = match.groups()
        labels = BY_NAME[re.sub(r"_(bucket|sum|count)$", "", name) if name not in BY_NAME else name].labels
        own = ",".join(each for each in matchers if re.split("=|!", each, maxsplit=1)[0] in labels)
        text = f"{name}{{{own}}}" if own else name
        return f"last_over_time(({text} < Inf)[{RANGE}:{INTERVAL}])" if newest and not window else text + window

    expr = _RECORD.sub(lambda match: f"({_MERGED[match[0]]})", _MERGED[record])
    return _METRIC.sub(selected, expr).replace("[5m]", f"[{RATE}]")


def ratio(*matchers: str, newest: bool = False) -> str:
    """The branch/skip ratio: where a run is on one machine as it is exported, which leaves out samples that lost their branch; else
    from the root mean squares over its machines, as a mean of ratios is none.
    """
    selector = f"resmon_block_branch_skip_ratio{{{','.join(matchers)}}}"
    gauge = f"last_over_time(({selector} < Inf)[{RANGE}:{INTERVAL}])" if newest else selector
    alone = f"max by (run, model, block) ({gauge})\nand count by (run, model, block) ({gauge}) == 1"
    merged = over_machines("run_model_block:resmon_block_branch_skip_ratio:ratio_of_sqrt_mean_squares", *matchers, newest=newest)
    return f"({alone})\nor\n({merged})"


def newest(selector: str) -> str:
    """The newest value within the time that is looked at, though its series has ended since."""
    return f"last_over_time({selector}[{RANGE}])"


def of_model(expr: str, newest_too: bool = False) -> str:
    """Series of runs that train the chosen model, where they have no such label themselves."""
    models = f"resmon_run_blocks{{{MODEL}}}"
    return f"({expr})\nand on (run) max by (run) ({newest(models) if newest_too else models})"


def by_depth(expr: str, run: str = RUN, newest_too: bool = False) -> str:
    """Series of blocks in the order in which the blocks run.

    Prometheus sorts what it gives by labels, in the order of their names. `at` comes before `block` and holds the block's place,
    with leading digits so that the tenth comes behind the ninth. (`without ()` keeps all labels; `by` loses some of them in
    Prometheus 2.42 from the second step of a range on.)
    """
    depth = f"resmon_block_depth{{{run},{MODEL}}}"
    place = f"1000000 + max by (run, model, block) ({newest(depth) if newest_too else depth})"
    return f'({expr})\n* on (run, model, block) group_left (at) count_values without () ("at", {place})'


def over_time(expr: str, legend: str, heatmap: bool = False) -> Dataquery:
    """A line for each series, named by its labels."""
    form = PromQueryFormat.HEATMAP if heatmap else PromQueryFormat.TIME_SERIES
    return _query(expr).range().legend_format(legend).format(form)


def now(expr: str, legend: str) -> Dataquery:
    """One number for each series."""
    return _query(expr).instant().legend_format(legend).format(PromQueryFormat.TIME_SERIES)


def rows(expr: str) -> Dataquery:
    """A row for each series, a column for each label and one for the value."""
    return _query(expr).instant().format(PromQueryFormat.TABLE)


def _query(expr: str) -> Dataquery:
    return Dataquery().expr(expr).editor_mode(QueryEditorMode.CODE)
