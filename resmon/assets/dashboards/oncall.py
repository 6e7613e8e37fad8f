"""What is wrong, and how bad is it? For who is on call: what fires, which run it is, and how that run is."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard, DataTransformerConfig

from resmon.assets.dashboards import marks, variables
from resmon.assets.dashboards.board import (
    Row,
    board,
    runbook,
    runbooks_of_alerts,
    runbooks_of_findings,
    runbooks_of_outcomes,
    to_block,
    to_run,
)
from resmon.assets.dashboards.panel import (
    ORANGE,
    RED,
    Field,
    Panel,
    Says,
    columns,
    lines,
    number,
    ranked,
    stacked,
    states,
)
from resmon.assets.dashboards.query import (
    BROKEN,
    INTERVAL,
    MODEL,
    RANGE,
    RATE,
    RUN,
    newest,
    now,
    of_model,
    over_machines,
    over_time,
    rows,
)
from resmon.assets.links import RUN_BOARD, Links

SEVERITIES = {"page": RED, "ticket": ORANGE}
AROUND = (3_600_000, 900_000)  # milliseconds of the time before and after an end that its link shows

NO_STEP = "This run has made no step in the time that is shown."


def oncall(links: Links) -> Dashboard:
    return board(
        RUN_BOARD,
        "resmon / On-call",
        "What fires, which run it is, and how that run is.",
        variables=[variables.datasource(), variables.model(), variables.run()],
        marks=[marks.ends_of_run(), marks.incidents(), marks.findings(), marks.checkpoints()],
        rows=[
            Row("What is wrong now?", [
                firing(),
                stalled(),
                alerts(links),
                findings(links),
                failures(links),
                incidents(),
                agents(),
            ]),
            Row("How is $run?", [
                state(),
                steps(),
                age(),
                exposed(),
                findings_of_run(),
                loss(),
                gradients(),
                step_time(),
                nonfinite(),
                memory(),
                clipping(),
            ]),
        ],
        since="now-3h",
        refresh="30s",
    )  # fmt: skip


# ---- all runs --------------------------------------------------------------------------------------------------------------

_OURS = f'alertname=~"Resmon.+",{MODEL}'


def _firing(severity: str = "") -> str:
    of_it = f',severity="{severity}"' if severity else ""
    return f'ALERTS{{alertstate="firing",{_OURS}{of_it}}}'


def firing() -> Panel:
    return number(
        "Firing alerts",
        unit="short",
        says=Says(
            "Alerts of resmon that fire now, pages and tickets.",
            "0 of both. Without alerts/resmon.yaml in Prometheus it is 0, too.",
            "take the pages first; each has its runbook beside.",
        ),
        queries=[now(f"count({_firing(severity)}) or vector(0)", f"{severity}s") for severity in SEVERITIES],
        size=(4, 8),
        empty="Prometheus does not answer.",
        any_is=RED,
    )


def stalled() -> Panel:
    return number(
        "Stalled runs",
        unit="short",
        says=Says(
            "Runs of which a rank's process lives and makes no step any more.",
            "0.",
            "the alert names the run; its runbook leads from the stack of the hanging process to what to do.",
        ),
        queries=[now(f"sum({of_model('max by (run) (resmon_run_stalled)')}) or vector(0)", "stalled")],
        size=(4, 8),
        empty="Prometheus does not answer.",
        any_is=RED,
    )


def alerts(links: Links) -> Panel:
    began = f"(1000 * ALERTS_FOR_STATE{{{_OURS}}})\nand ignoring (alertstate) {_firing()}"
    return columns(
        "What fires, and since when",
        unit="dateTimeFromNow",
        says=Says(
            "Every alert of resmon that fires, the newest last.",
            "nothing stands here.",
            "the name of the runbook opens it, the run this dashboard for it, the block the debug dashboard.",
        ),
        queries=[rows(f'label_replace({began}, "runbook", "$1", "alertname", "(.+)")')],
        size=(16, 8),
        empty="No alert of resmon fires.",
        fields=[
            Field("severity", "Severity", colours=SEVERITIES, width=90),
            Field("alertname", "Alert"),
            Field("run", "Run", link=to_run()),
            Field("model", "Model"),
            Field("block", "Block", link=to_block()),
            Field("Value", "Since", unit="dateTimeFromNow", width=130),
            Field("runbook", "Runbook", texts=runbooks_of_alerts(), link=runbook(links)),
            Field("slo", "Objective"),
        ],
        drop=("__name__", "alertstate", "finding", "outcome", "job", "instance", "memory", "tier", "service"),
        order=("severity", "alertname", "run", "block", "Value", "runbook", "model", "slo"),
        sort=("Severity", False),
    )


def findings(links: Links) -> Panel:
    opened = over_machines("run_model_block_finding_severity:resmon_finding_active:max", MODEL)
    return columns(
        "Findings that are open",
        unit="none",
        says=Says(
            "What detectors have found and not closed, with the block that was first. It needs no rules in Prometheus.",
            "nothing stands here.",
            "a page first, then the runbook of its kind; the block leads to what it does in the debug dashboard.",
        ),
        queries=[rows(f'label_replace(({opened}) > 0, "runbook", "$1", "finding", "(.+)")')],
        empty="No finding is open.",
        fields=[
            Field("severity", "Severity", colours=SEVERITIES, width=90),
            Field("finding", "Finding"),
            Field("run", "Run", link=to_run()),
            Field("block", "Block", link=to_block()),
            Field("model", "Model"),
            Field("runbook", "Runbook", texts=runbooks_of_findings(), link=runbook(links)),
        ],
        drop=("Value",),
        order=("severity", "finding", "run", "block", "runbook", "model"),
        sort=("Severity", False),
    )


def failures(links: Links) -> Panel:
    ended = f"1000 * max by (run, outcome) ({newest(f'resmon_run_end_timestamp_seconds{{{BROKEN}}}')})"
    before, after = AROUND
    shift = {"mode": "binary", "replaceFields": False}
    return columns(
        "Runs that failed",
        unit="dateTimeFromNow",
        says=Says(
            "Runs that broke in the time that is shown, and when.",
            "nothing stands here, or only what was taken up again.",
            "the run leads to the hour before its end, the runbook says what to look at; resmon postmortem tells the whole story.",
        ),
        queries=[rows(f'label_replace({of_model(ended, newest_too=True)}, "runbook", "$1", "outcome", "(.+)")')],
        empty="No run has failed in the time that is shown.",
        fields=[
            Field("run", "Run", link=to_run(time="from=${__data.fields.from.numeric}&to=${__data.fields.to.numeric}")),
            Field("outcome", "Outcome"),
            Field("Value", "Ended", unit="dateTimeFromNow"),
            Field("runbook", "Runbook", texts=runbooks_of_outcomes(), link=runbook(links)),
            Field("from", hidden=True),
            Field("to", hidden=True),
        ],
        order=("run", "outcome", "Value", "runbook"),
        sort=("Ended", True),
        steps=[
            DataTransformerConfig(
                id_val="calculateField",
                options=shift | {"alias": name, "binary": {"left": "Value", "operator": sign, "right": str(by)}},
            )
            for name, sign, by in (("from", "-", before), ("to", "+", after))
        ],
    )


def incidents() -> Panel:
    counted = of_model(f"sum by (run, kind) (max_over_time(resmon_incidents_total[{RANGE}]))", newest_too=True)
    return ranked(
        "What broke, by kind",
        unit="short",
        says=Says(
            "Incidents of all runs by kind, out-of-memory errors among them, also those that the training caught and survived. "
            "Of a run that was taken up the attempt with most is counted.",
            "all are 0.",
            "the kind is the name of its runbook; resmon incidents RUN tells where it was and what to do.",
        ),
        queries=[now(f"sort_desc(sum by (kind) ({counted}))", "{{kind}}")],
        empty="No run in the time that is shown.",
    )


def agents() -> Panel:
    return columns(
        "Agents, and how they are",
        unit="short",
        says=Says(
            "Every agent that is scraped: the runs that it follows, how long its last page took, and what it could not follow, "
            "read or push in the time that is shown.",
            "pages take well below a second, and nothing was lost. Where no OTLP receiver is set, nothing is pushed.",
            "errors stand in the agent's log, agent.log in its runtime folder, also why a receiver does not take what is pushed; "
            "an agent that is missing is the alert ResmonAgentGone.",
        ),
        queries=[
            rows("max by (instance, version) (resmon_agent_info)"),
            rows("sum by (instance) (resmon_runs_active)"),
            rows("max by (instance) (resmon_agent_collect_duration_seconds)"),
            rows(f"sum by (instance) (increase(resmon_agent_errors_total[{RANGE}]))"),
            rows(f"sum by (instance) (increase(resmon_agent_skipped_rows_total[{RANGE}]))"),
            rows(f"sum by (instance) (increase(resmon_agent_otlp_dropped_total[{RANGE}]))"),
        ],
        empty="No agent is scraped.",
        fields=[
            Field("instance", "Agent"),
            Field("version", "resmon", width=90),
            Field("Value #B", "Runs under way", unit="short", decimals=0),
            Field("Value #C", "Last page took", unit="s"),
            Field("Value #D", "Errors", unit="short", decimals=0),
            Field("Value #E", "Damaged rows", unit="short", decimals=0),
            Field("Value #F", "Not pushed (OTLP)", unit="short", decimals=0),
        ],
        drop=("Value #A",),
        order=("instance", "version", "Value #B", "Value #C", "Value #D", "Value #E", "Value #F"),
        sort=("Agent", False),
    )


# ---- the run ---------------------------------------------------------------------------------------------------------------


def _newest_of_run(metric: str) -> str:
    return newest(f"{metric}{{{RUN}}}")


def state() -> Panel:
    """How it is now; where none of its series is left, how its last attempt ended."""
    alive = f"(max(resmon_run_stalled{{{RUN}}}) unless on () resmon_run_end_timestamp_seconds{{{RUN}}})"
    went_on = f'label_replace({alive} == 0, "outcome", "under way", "", "")'
    hangs = f'label_replace({alive} == 1, "outcome", "stalled", "", "")'
    ended = f"topk(1, max by (outcome) ({_newest_of_run('resmon_run_end_timestamp_seconds')}))"
    return number(
        "$run is",
        unit="none",
        says=Says(
            "Whether the run is under way, or how its newest attempt ended.",
            "under way, or finished.",
            "each other outcome is the name of its runbook.",
        ),
        queries=[now(f"({went_on})\nor ({hangs})\nor on () ({ended})", "{{outcome}}")],
        empty="Nothing of this run in the time that is shown.",
        names=True,
    )


def steps() -> Panel:
    return number(
        "Steps made",
        unit="short",
        says=Says(
            "Steps of the newest attempt.",
            "as many as its schedule asks for.",
            "compare with the step time below.",
        ),
        queries=[now(f"max({_newest_of_run('resmon_steps_total')})", "steps")],
        empty=NO_STEP,
    )


def age() -> Panel:
    return number(
        "Since its newest step",
        unit="s",
        says=Says(
            "How old the newest recorded step is.",
            "about as much as a step and a scrape take, while the run is under way.",
            "a run that is under way and makes no step hangs, or its agent cannot follow it: see the runbooks stalled and "
            "stale-run.",
        ),
        queries=[now(f"time() - max({_newest_of_run('resmon_last_step_timestamp_seconds')})", "age")],
        empty=NO_STEP,
    )


def exposed() -> Panel:
    saved = _newest_of_run("resmon_checkpoint_timestamp_seconds")
    return number(
        "Work that is not saved",
        unit="s",
        says=Says(
            "The time from the newest named checkpoint to the newest step: what would be lost if the run ended now, or was lost "
            "when it did.",
            "less than the time between two checkpoints.",
            "if the run is about to end, save first: monitor.checkpoint(path) names what was saved.",
        ),
        queries=[now(f"max({_newest_of_run('resmon_last_step_timestamp_seconds')}) - max({saved})", "unsaved")],
        empty="No checkpoint was named: monitor.checkpoint(path) does.",
    )


def findings_of_run() -> Panel:
    opened = f"max by (severity, finding, block) (max_over_time(resmon_finding_active{{{RUN}}}[{INTERVAL}]))"
    return states(
        "What was found in $run, and for how long",
        unit="none",
        says=Says(
            "A bar for each finding of the run, coloured while it is open.",
            "nothing stands here.",
            "what began first is where to look first: its runbook has the name of the kind, and stands in the table above.",
        ),
        queries=[over_time(opened, "{{severity}} {{finding}} {{block}}")],
        empty="Nothing was found in this run.",
        texts={"0": ("closed", "transparent"), "1": ("open", ORANGE)},
    )


def loss() -> Panel:
    return lines(
        "Does the loss still fall?",
        unit="short",
        says=Says(
            "The loss as logged, and the largest of the last 60 seconds, so that no spike falls between two scrapes.",
            "it falls, and spikes come back within seconds.",
            "a spike that stays is told as loss_divergence; marks say what was found before it and which checkpoint was the last.",
        ),
        queries=[
            over_time(over_machines("run:resmon_loss:avg", RUN), "loss"),
            over_time(f"max(resmon_loss_max{{{RUN}}})", "largest of 60 s"),
        ],
        fields=[Field("largest of 60 s", colour="semi-dark-orange", dashed=True)],
        logarithmic=True,
    )


def gradients() -> Panel:
    return lines(
        "Do gradients spike or fade?",
        unit="short",
        says=Says(
            "The norm of all gradients before clipping, and the largest that any block had in the last 60 seconds.",
            "both move within a factor of ten.",
            "a block far above the rest is told as exploding_gradients, hidden_explosion where clipping hides it; the debug "
            "dashboard shows which block it is.",
        ),
        queries=[
            over_time(over_machines("run:resmon_gradient_norm:sqrt_sum_squares", RUN), "all gradients"),
            over_time(f"max(resmon_block_gradient_norm_max{{{RUN}}})", "largest block of 60 s"),
        ],
        fields=[Field("largest block of 60 s", colour="semi-dark-orange", dashed=True)],
        logarithmic=True,
    )


def nonfinite() -> Panel:
    return stacked(
        "Are there steps with NaN or infinite values?",
        unit="short",
        says=Says(
            "Steps that had a NaN or an infinite value in a block or a gradient, by rank. Steps that a gradient scaler skips do "
            "not count.",
            "none: the panel is flat at 0.",
            "stop the run, it learns nothing any more; resmon incidents RUN names the operation, the runbook nonfinite what to do.",
        ),
        queries=[over_time(f"sum by (rank) (increase(resmon_nonfinite_steps_total{{{RUN}}}[{RATE}]))", "rank {{rank}}")],
        bars=True,
    )


def memory() -> Panel:
    return lines(
        "Does memory run short?",
        unit="bytes",
        says=Says(
            "Of the ranks of the run what the fullest one uses, has used at most, and the least that one could still have; of "
            "main memory, and of the devices' where there are any.",
            "what is free stays well above the spikes of what is used.",
            "a smaller batch, activation checkpoints, or the runbook memory-headroom before it is the runbook out-of-memory.",
        ),
        queries=[
            over_time(_both("max by (memory) ({})", "bytes"), "{{memory}}, in use"),
            over_time(_both("max by (memory) ({})", "peak_bytes"), "{{memory}}, at most"),
            over_time(_both("min by (memory) ({})", "free_bytes"), "{{memory}}, free"),
        ],
        least=0,
    )


def _both(merged: str, what: str) -> str:
    names = {"main": "resmon_memory", "device": "resmon_device_memory"}
    series = (f'label_replace({name}_{what}{{{RUN}}}, "memory", "{memory}", "", "")' for memory, name in names.items())
    return merged.format(" or ".join(series))


def step_time() -> Panel:
    buckets = over_machines("run_le:resmon_step_duration_seconds_bucket:rate5m", RUN)
    return lines(
        "How long do steps take?",
        unit="s",
        says=Says(
            "Of all ranks' steps half were faster than P50, 95 of 100 than P95, 99 of 100 than P99; to within the histogram's "
            "buckets, which double.",
            "the lines are flat, and P99 is a small multiple of P50.",
            "if all rise the whole run is slower, if only P99 does some steps wait: the debug dashboard has the parts of a step.",
        ),
        queries=[
            over_time(f"histogram_quantile({share}, {buckets})", name)
            for name, share in (("P50", "0.5"), ("P95", "0.95"), ("P99", "0.99"))
        ],
        least=0,
    )


def clipping() -> Panel:
    made = f"sum(rate(resmon_steps_total{{{RUN}}}[{RATE}])) > 0"
    return lines(
        "How many steps are clipped or skipped?",
        unit="percentunit",
        says=Says(
            "The share of steps whose gradients clipping made smaller, and of those that a gradient scaler skipped.",
            "few skipped; clipped as many as the threshold was chosen for.",
            "if nearly all are clipped the clipping sets the learning rate; if many are skipped the loss scale finds no rest: "
            "look at the gradients beside.",
        ),
        queries=[
            over_time(f"sum(rate(resmon_{what}_steps_total{{{RUN}}}[{RATE}]))\n/ ({made})", what) for what in ("clipped", "skipped")
        ],
        least=0,
    )
