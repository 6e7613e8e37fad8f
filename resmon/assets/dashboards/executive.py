"""Are trainings worth what they cost? For who answers for them: how they end, what they cost, whether they get better."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from resmon.assets.dashboards import marks, variables
from resmon.assets.dashboards.board import Row, board, runbook, to_run
from resmon.assets.dashboards.panel import (
    GREEN,
    GREY,
    ORANGE,
    RED,
    Field,
    Panel,
    Says,
    columns,
    lines,
    number,
    ranked,
)
from resmon.assets.dashboards.query import MODEL, RANGE, SLO, newest, now, of_model, over_machines, over_time, rows
from resmon.assets.links import SLO_BOARD, Links

SHOWN = 12  # runs in a panel of trends: as many as have colours that can be told apart

OUTCOMES = {"finished": GREEN, "interrupted": GREY, "unknown": GREY, "stalled": ORANGE} | dict.fromkeys(
    ("failed", "nonfinite", "out_of_memory", "shape_mismatch", "killed"), RED
)

# Of the objective training-success: an interrupted run says nothing.
FINISHED, COUNTED, FAILED = 'outcome="finished"', 'outcome!="interrupted"', 'outcome!~"finished|interrupted"'

NO_RUN = "No run has ended in the time that is shown."
NO_RULES = "No objective is recorded: Prometheus needs alerts/slo.yaml."


def executive(links: Links) -> Dashboard:
    return board(
        SLO_BOARD,
        "resmon / Executive",
        "How trainings end, what they cost, whether objectives are met and models get better.",
        variables=[
            variables.datasource(),
            variables.model(),
            variables.score(),
            variables.service(),
            variables.objective(),
        ],
        marks=[marks.failures()],
        rows=[
            Row("Do trainings come to their end, and what do they cost?", [
                success(),
                running(),
                device_hours(),
                lost_device_hours(),
                outcomes(),
                dearest_runs(),
            ]),
            Row("Are the objectives met?", [
                objectives(links),
                budgets(),
                burn_rates(),
            ]),
            Row("Do the models get better?", [
                losses(),
                scores(),
                targets(),
            ]),
        ],
        since="now-7d",
        refresh="5m",
    )  # fmt: skip


# ---- how they end, and what they cost --------------------------------------------------------------------------------------


def _ended(which: str) -> str:
    return f"max by (run) ({newest(f'resmon_run_outcome{{{MODEL},{which}}}')})"


def success() -> Panel:
    return number(
        "Runs that came to their end",
        unit="percentunit",
        says=Says(
            "The share of runs that finished, among those that ended in the time that is shown. A run that broke and finished "
            "when it was taken up again counts as finished; one that somebody interrupted does not count.",
            "near 100 %; the objective training-success below has its own target, and counts every attempt.",
            "see below how the others ended, and what their runbooks say in the on-call dashboard.",
        ),
        queries=[now(f"(count({_ended(FINISHED)}) or vector(0))\n/ count({_ended(COUNTED)})", "finished")],
        empty=NO_RUN,
    )


def running() -> Panel:
    under_way = f"max by (run) (resmon_run_blocks{{{MODEL}}})\nunless on (run) resmon_run_end_timestamp_seconds"
    return number(
        "Runs under way",
        unit="short",
        says=Says(
            "Runs of the model that have not ended, as their agents say.",
            "as many as were started.",
            "a run that is missing here and has not ended has lost its agent: the on-call dashboard says so.",
        ),
        queries=[now(f"count({under_way}) or vector(0)", "runs")],
        empty="No agent is scraped.",
    )


def _device_hours() -> str:
    return of_model(f"sum by (run) (increase(resmon_step_duration_seconds_sum[{RANGE}])) / 3600", newest_too=True)


def device_hours() -> Panel:
    return number(
        "Device-hours",
        unit="h",
        says=Says(
            "The time between the steps of all ranks, added up: a rank works on one device. What a run does before its first "
            "step and after its last is not in it.",
            "what was planned for the time that is shown.",
            "see which runs took most, and whether they still get better.",
        ),
        queries=[now(f"sum({_device_hours()})", "device-hours")],
        empty="No run has made steps in the time that is shown.",
    )


def lost_device_hours() -> Panel:
    lost = f"sum(\n(\n{_device_hours()}\n)\nand on (run) ({_ended(FAILED)} unless on (run) {_ended(FINISHED)})\n)"
    return number(
        "Share of them in runs that failed",
        unit="percentunit",
        says=Says(
            "Of the device-hours, those of runs that broke and did not finish when they were taken up again.",
            "a few per cent.",
            "the runs to look at first are those that took most: whether they had checkpoints, and were stopped as soon as they "
            "broke.",
        ),
        queries=[now(f"({lost} or vector(0))\n/ sum({_device_hours()})", "lost")],
        empty="No run has made steps in the time that is shown.",
    )


def outcomes() -> Panel:
    return ranked(
        "How runs ended",
        unit="short",
        says=Says(
            "Runs by how they ended; one that was taken up again and ended in another way counts for both.",
            "finished, and a few interrupted.",
            "each outcome but these two has a runbook; recent failures stand in the on-call dashboard with a link to theirs.",
        ),
        queries=[now(f"count by (outcome) (max by (run, outcome) ({newest(f'resmon_run_outcome{{{MODEL}}}')}))", "{{outcome}}")],
        empty=NO_RUN,
        colours=OUTCOMES,
    )


def dearest_runs() -> Panel:
    return columns(
        "Where the device-hours went",
        unit="h",
        says=Says(
            "The ten runs that took most device-hours.",
            "they are those that matter, and their loss still falls.",
            "a run that goes on without progress is told as a plateau or an overfitting in the on-call dashboard: stop it.",
        ),
        queries=[rows(f"topk(10, {_device_hours()})")],
        empty="No run has made steps in the time that is shown.",
        fields=[Field("run", "Run", link=to_run()), Field("Value", "Device-hours", unit="h", decimals=2, width=140)],
        order=("run", "Value"),
        sort=("Device-hours", True),
    )


# ---- objectives ------------------------------------------------------------------------------------------------------------


def objectives(links: Links) -> Panel:
    return columns(
        "How the objectives stand",
        unit="percentunit",
        says=Says(
            "For each objective its target, how many times as fast as it may its error budget burns now, and what is left of the "
            "budget of the period. An objective for which nothing happened has no burn rate.",
            "something is left of every budget.",
            "a budget that is used up is the time to mend what uses it up before anything else: its runbook says how to find that.",
        ),
        queries=[
            rows(f"max by (service, slo) (slo:objective:ratio{{{SLO}}})"),
            rows(f"max by (service, slo) (slo:current_burn_rate:ratio{{{SLO}}})"),
            rows(f"max by (service, slo) (slo:period_burn_rate:ratio{{{SLO}}})"),
            rows(f"min by (service, slo) (slo:period_error_budget_remaining:ratio{{{SLO}}})"),
            rows(f'label_replace(max by (service, slo) (slo:time_period:days{{{SLO}}}), "runbook", "error-budget", "", "")'),
        ],
        size=(24, 8),
        empty=NO_RULES,
        fields=[
            Field("service", "Service", width=120),
            Field("slo", "Objective"),
            Field("Value #A", "Target", unit="percentunit", decimals=1),
            Field("Value #B", "Burn rate now", unit="short", decimals=2),
            Field("Value #C", "Burn rate in the period", unit="short", decimals=2),
            Field("Value #D", "Budget left", unit="percentunit", decimals=0, scheme=True),
            Field("Value #E", "Period", unit="d", decimals=0),
            Field("runbook", "Runbook", link=runbook(links)),
        ],
        order=("service", "slo", "Value #A", "Value #B", "Value #C", "Value #D", "Value #E", "runbook"),
        sort=("Budget left", False),
    )


def budgets() -> Panel:
    return lines(
        "What is left of the error budgets",
        unit="percentunit",
        says=Says(
            "The share of each objective's error budget that is left, over the period that the objective is about.",
            "all lines above 0, falling slowly or not at all.",
            "a line that falls steeply burns now: the burn rates beside say how fast, marks when runs failed.",
        ),
        queries=[over_time(f"min by (slo) (slo:period_error_budget_remaining:ratio{{{SLO}}})", "{{slo}}")],
        empty=NO_RULES,
    )


def burn_rates() -> Panel:
    return lines(
        "How fast the error budgets burn",
        unit="short",
        says=Says(
            "How many times as fast as it may each error budget burns; at 1 it lasts just for its period.",
            "below 1 nearly always.",
            "alerts tell what burns too fast for too long; the on-call dashboard has them.",
        ),
        queries=[over_time(f"max by (slo) (slo:current_burn_rate:ratio{{{SLO}}})", "{{slo}}")],
        empty=NO_RULES,
        least=0,
    )


# ---- whether they get better -----------------------------------------------------------------------------------------------


def _newest_runs() -> str:
    """The same ones at every moment of a panel: those that began last, seen from its end."""
    started = f"max by (run) (last_over_time(resmon_run_start_timestamp_seconds[{RANGE}] @ end()))"
    return f"topk({SHOWN}, {started} and on (run) max by (run) (last_over_time(resmon_run_blocks{{{MODEL}}}[{RANGE}] @ end())))"


def losses() -> Panel:
    return lines(
        f"The loss of the {SHOWN} newest runs",
        unit="short",
        says=Says(
            "The loss as trainings log it, of the runs that began last.",
            "falling, and lower from run to run.",
            "a run whose loss rises or stands still for long is worth its on-call dashboard; two runs are compared at equal "
            "steps in the debug dashboard.",
        ),
        queries=[over_time(f"{over_machines('run:resmon_loss:avg')}\nand on (run) {_newest_runs()}", "{{run}}")],
        empty="No run has logged a loss in the time that is shown.",
        logarithmic=True,
        aside=True,
    )


def scores() -> Panel:
    return lines(
        f"$score of the {SHOWN} newest runs",
        unit="short",
        says=Says(
            "The chosen score as trainings log it, of the runs that began last. The variable Score chooses among all that were "
            "logged.",
            "better from run to run.",
            "if the loss falls and the score does not follow, the run learns its data by heart, or the score is of something else.",
        ),
        queries=[over_time(f"avg by (run) (resmon_score{{score=`${{score:raw}}`}})\nand on (run) {_newest_runs()}", "{{run}}")],
        empty="No run has logged this score in the time that is shown.",
        aside=True,
    )


def targets() -> Panel:
    return columns(
        "When targets were met",
        unit="dtdurations",
        says=Says(
            "For each run and each of its targets whether it was met, and how long that took from the start of the run.",
            "met, within what the objective convergence asks for.",
            "a run that ends without its target has cost what it cost: see its loss, and whether its budget of steps was enough.",
        ),
        queries=[
            rows(of_model(f"max by (run, target) ({newest('resmon_target_reached')})", newest_too=True)),
            rows(of_model(f"min by (run, target) ({newest('resmon_target_seconds')})", newest_too=True)),
        ],
        size=(24, 7),
        empty="No run has a target: resmon.watch(..., targets=(...)) gives it one.",
        fields=[
            Field("run", "Run", link=to_run()),
            Field("target", "Target"),
            Field("Value #A", "Met", unit="bool_yes_no", width=100),
            Field("Value #B", "After", unit="dtdurations"),
        ],
        order=("run", "target", "Value #A", "Value #B"),
        sort=("Run", False),
    )
