"""Unit tests of the rules, which promtool runs: what comes in, minute by minute, and what fires of it, with every label and word.

Each alert is silent a minute before and fires a minute later, ends when it should, and has a course of things in which it must not
fire. What is expected is written out here, not computed from the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import quote_plus

from resmon.assets.findings import FLAPS, TOLD, WHOLE, Told
from resmon.assets.links import Links
from resmon.assets.machines import MERGED
from resmon.assets.runs import RUN_ALERTS, RunAlert
from resmon.rules import AlertTest, Case, Firing, QueryTest, Sample, Series

A, B = "a:9699", "b:9699"  # two agents


def _series(metric: str, values: str, agent: str = A, **labels: str) -> Series:
    shown = {"job": "resmon", "instance": agent, **labels}
    return Series(f"{metric}{_braces(shown)}", values)


def _braces(labels: Mapping[str, str]) -> str:
    return "{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def _info(values: str, agent: str = A, attempt: str = "1") -> Series:
    return _series("resmon_run_info", values, agent, run="digits", attempt=attempt, model="Net", host=agent[0])


# ---- findings --------------------------------------------------------------------------------------------------------------


def of_findings(links: Links) -> list[Case]:
    return [
        *(case for told in TOLD for case in _kind(told, links)),
        _raised(links),
        _on_two_machines(links),
        _over_at_once(links),
        *_own(links),
    ]


def _block_labels(finding: str, severity: str, block: str = "h.2") -> dict[str, str]:
    labels = {"run": "digits", "model": "Net", "block": block, "finding": finding, "severity": severity}
    return {name: value for name, value in labels.items() if value}


def _found(finding: str, severity: str, values: str, agent: str = A, block: str = "h.2") -> Series:
    return _series("resmon_finding_active", values, agent, **_block_labels(finding, severity, block))


def _dashboard(links: Links, where: str, began: int) -> str:
    """Of an alert that began at that minute."""
    return f"{links.dashboards}/{where}from={60_000 * (began - 60)}&to=now"


def _of_block(links: Links, block: str, began: int) -> str:
    of_block = f"resmon-block?var-run=digits&var-model=Net&var-block={quote_plus(block)}&"
    where = of_block if block else "resmon-run?var-run=digits&"
    return _dashboard(links, where, began)


def _finding_firing(told: Told, links: Links, severity: str, value: str = "", block: str = "h.2", began: int = 5) -> Firing:
    shown = f" {told.shows.replace('{}', value)}" if value else ""
    more = f" On its machine `resmon runbook {told.runbook} --run digits` is the page with the run's own values."
    return Firing(
        _block_labels(told.finding, severity, block),
        {
            "summary": f"{told.title}: run digits, model Net" + (f", block {block}" if block else ""),
            "description": told.says + shown + more,
            "runbook_url": f"{links.runbooks}/{told.runbook}.md",
            "dashboard_url": _of_block(links, block, began),
        },
    )


def _kind(told: Told, links: Links) -> Iterator[Case]:
    block = "" if told.of_run else "h.2"
    labels = {"run": "digits"} if told.of_run else {"run": "digits", "model": "Net", "block": "h.2"}
    value = "25" if told.form == WHOLE else "0.25"
    firing = [_finding_firing(told, links, told.severity, value, block)]
    # It is open from 5m to 9m and looked for in two minutes. What flaps is kept for five more, from the first minute without it.
    last, over = ("16m", "17m") if told.keep == FLAPS else ("11m", "12m")
    yield Case(
        f"{told.finding} is told with the first evaluation that sees it, with its value, until it is over",
        [
            _found(told.finding, told.severity, "0x4 1x4 0x20", block=block),
            _series(told.reads, f"{value}x40", **labels),
        ],
        [
            AlertTest("4m", told.alert),
            AlertTest("5m", told.alert, firing),
            AlertTest(last, told.alert, firing),
            AlertTest(over, told.alert),
        ],
    )
    other = next(each.finding for each in TOLD if each.finding != told.finding)
    yield Case(
        f"{told.finding} is not told where it was closed, whatever the numbers are, nor for a finding of another kind",
        [
            _found(told.finding, told.severity, "0x20", block=block),
            _found(other, "page", "1x20", block=block),
            _series(told.reads, "1e9x20", **labels),
        ],
        [AlertTest("10m", told.alert)],
    )


def _of(finding: str) -> Told:
    return next(told for told in TOLD if told.finding == finding)


def _raised(links: Links) -> Case:
    told = _of("dead_branch")
    ticket, page = _finding_firing(told, links, "ticket", began=0), _finding_firing(told, links, "page")
    return Case(
        "a ticket that its detector raises to a page is the page alone, once the ticket has been kept for its time",
        [_found("dead_branch", "ticket", "1x4 stale"), _found("dead_branch", "page", "_x5 1x20")],
        [
            AlertTest("4m", told.alert, [ticket]),
            AlertTest("5m", told.alert, [ticket, page]),
            AlertTest("12m", told.alert, [page]),
        ],
    )


def _on_two_machines(links: Links) -> Case:
    told = _of("nonfinite")
    return Case(
        "a finding that two machines of a run have is one alert",
        [_found("nonfinite", "page", "0x4 1x10"), _found("nonfinite", "page", "0x6 1x10", agent=B)],
        [AlertTest(at, told.alert, [_finding_firing(told, links, "page")]) for at in ("5m", "9m")],
    )


def _over_at_once(links: Links) -> Case:
    told = _of("nonfinite")
    return Case(
        "a run that ended with its finding, between two evaluations, is told all the same, and no longer than it was",
        [_found("nonfinite", "page", "1x1 stale")],
        [
            AlertTest("1m", told.alert, [_finding_firing(told, links, "page", began=0)]),
            AlertTest("3m", told.alert, [_finding_firing(told, links, "page", began=0)]),
            AlertTest("4m", told.alert),
        ],
    )


def _own(links: Links) -> Iterator[Case]:
    firing = Firing(
        _block_labels("loud_branch", "ticket"),
        {
            "summary": "loud_branch: run digits, model Net, block h.2",
            "description": "A detector of your own has opened a finding of the kind loud_branch. On its machine `resmon runbook "
            "own-finding --run digits` is the page with the run's own values.",
            "runbook_url": f"{links.runbooks}/own-finding.md",
            "dashboard_url": _of_block(links, "h.2", 5),
        },
    )
    known = [_found(told.finding, "page", "1x20") for told in TOLD]
    alert = "ResmonOwnFinding"
    yield Case(
        "a finding of a user's own detector is told beside all others, until it is over",
        [_found("loud_branch", "ticket", "0x4 1x4 0x20"), *known],
        [
            AlertTest("4m", alert),
            AlertTest("5m", alert, [firing]),
            AlertTest("16m", alert, [firing]),
            AlertTest("17m", alert),
        ],
    )
    yield Case("findings of the usual detectors are not told as a user's own", known, [AlertTest("10m", alert)])


# ---- runs ------------------------------------------------------------------------------------------------------------------


def of_runs(links: Links) -> list[Case]:
    outcomes = [row for row in RUN_ALERTS if row.outcome and row.outcome != "stalled"]
    return [
        *(case for row in outcomes for case in _outcome(row, links)),
        *_stalled(links),
        *_gone(links),
        *_stale(links),
        *_monitor_errors(links),
        *_agent_errors(links),
        *_series_budget(links),
        *_slow(links),
        *_memory(links),
        _healthy(),
    ]


def _run_alert(alert: str) -> RunAlert:
    return next(row for row in RUN_ALERTS if row.alert == alert)


def _run_firing(alert: str, links: Links, description: str, where: str = "", began: int = 5, **more: str) -> Firing:
    row = _run_alert(alert)
    labels = {"run": "digits", "model": "Net", "severity": row.severity} | ({"outcome": row.outcome} if row.outcome else {})
    return Firing(
        labels | more,
        {
            "summary": f"{row.title}: run digits, model Net{where}",
            "description": description,
            "runbook_url": f"{links.runbooks}/{row.page}.md",
            "dashboard_url": _dashboard(links, "resmon-run?var-run=digits&", began),
        },
    )


# What a run shows: under way from 0m to 4m, ended at 5m, its series gone at 7m.
_ENDED = "_x5 1x1 stale"


def _end(outcome: str, time: int = 1300, values: str = "", agent: str = A) -> list[Series]:
    return [
        _series("resmon_run_outcome", values or _ENDED, agent, run="digits", model="Net", outcome=outcome),
        _series(
            "resmon_run_end_timestamp_seconds",
            (values or _ENDED).replace("1x", f"{time}x"),
            agent,
            run="digits",
            outcome=outcome,
        ),
    ]


def _start(values: str, agent: str = A) -> Series:
    return _series("resmon_run_start_timestamp_seconds", values, agent, run="digits")


def _outcome(row: RunAlert, links: Links) -> Iterator[Case]:
    says = row.says[: row.says.index("{{")].strip()
    bare = _run_firing(row.alert, links, says)
    full = _run_firing(row.alert, links, f"{says} It made 12345 steps. Its newest named checkpoint is of step 12000.")
    yield Case(
        f"a run that ends as {row.outcome} is told at once, and for ten minutes after its series have gone",
        [
            _start("1000x6 stale"),
            _series("resmon_steps_total", "12345x6 stale", run="digits", rank="0"),
            _series("resmon_checkpoint_step", "12000x6 stale", run="digits"),
            *_end(row.outcome),
        ],
        [
            AlertTest("4m", row.alert),
            AlertTest("5m", row.alert, [full]),
            AlertTest("16m", row.alert, [full]),
            AlertTest("17m", row.alert),
        ],
    )
    yield Case(
        f"a run that ended as {row.outcome} is not told any more when it is taken up again, and not when that attempt finishes",
        [
            _start("1000x6 1360x3 stale"),
            *_end(row.outcome),
            *_end("finished", 1500, "_x9 1x1 stale"),
        ],
        [AlertTest("6m", row.alert, [bare]), AlertTest("7m", row.alert), AlertTest("10m", row.alert), AlertTest("14m", row.alert)],
    )
    yield Case(
        f"a run that ends as {row.outcome} on one machine is told though it goes on on another, and taken up by that one it is not",
        [_start("1000x6 stale"), _start("1001x9 1900x20", agent=B), *_end(row.outcome)],
        [AlertTest("5m", row.alert, [bare]), AlertTest("9m", row.alert, [bare]), AlertTest("10m", row.alert)],
    )
    others = [each for each in ("finished", "interrupted", "unknown", "failed", "killed") if each != row.outcome]
    yield Case(
        f"what ends in another way is not told as {row.outcome}",
        [_start("1000x6 stale"), *(series for outcome in others for series in _end(outcome))],
        [AlertTest("5m", row.alert), AlertTest("10m", row.alert)],
    )
    yield Case(
        f"a run that was taken up and ends as {row.outcome} again is told again",
        [
            _start("1000x6 1360x5 stale"),
            _series("resmon_run_outcome", "_x5 1x1 stale _x3 1x1 stale", run="digits", model="Net", outcome=row.outcome),
            _series("resmon_run_end_timestamp_seconds", "_x5 1300x1 stale _x3 1660x1 stale", run="digits", outcome=row.outcome),
        ],
        [AlertTest("8m", row.alert), AlertTest("11m", row.alert, [_run_firing(row.alert, links, says, began=11)])],
    )


_STALLED = "The training process makes no step any more, or hung until it was ended."


def _stalled(links: Links) -> Iterator[Case]:
    alert = "ResmonRunStalled"
    firing = _run_firing(alert, links, _STALLED)
    yield Case(
        "a run that stalls is told as soon as the agent says so, until it goes on",
        [_info("1x30"), _start("1000x30"), _series("resmon_run_stalled", "0x4 1x4 0x20", run="digits")],
        [AlertTest("4m", alert), AlertTest("5m", alert, [firing]), AlertTest("9m", alert, [firing]), AlertTest("10m", alert)],
    )
    yield Case(
        "a run that was ended while it was stalled is told for ten minutes more, and not where it is taken up again",
        [_start("1000x6 stale _x4 9000x9"), *_end("stalled")],
        [AlertTest("5m", alert, [firing]), AlertTest("11m", alert, [firing]), AlertTest("12m", alert), AlertTest("13m", alert)],
    )
    yield Case(
        "a run that is slow, or over, is not stalled",
        [_info("1x9 stale"), _start("1000x9 stale"), _series("resmon_run_stalled", "0x9 stale", run="digits"), *_end("finished")],
        [AlertTest("8m", alert), AlertTest("12m", alert)],
    )


_GONE = (
    "Prometheus has no more series of a run that had not ended: its agent or the whole machine is gone, or cannot be reached. The "
    "run may go on and is recorded; nothing of it would be told."
)


def _gone(links: Links) -> Iterator[Case]:
    alert = "ResmonAgentGone"
    firing, later = (_run_firing(alert, links, _GONE, f", seen by {A}", began, job="resmon", instance=A) for began in (10, 14))
    shown = [
        _info("1x9 stale"),
        _start("1000x9 stale"),
        _series("resmon_last_step_timestamp_seconds", "1060+60x9 stale", run="digits"),
    ]
    yield Case(
        "an agent that was last seen with a run under way is missed after a minute, and for an hour",
        shown,
        [AlertTest("10m", alert), AlertTest("11m", alert, [firing]), AlertTest("69m", alert, [firing]), AlertTest("70m", alert)],
    )
    yield Case(
        "an agent that leaves because its last run has ended is not missed",
        [*shown, *_end("finished", 1500, "_x8 1x1 stale")],
        [AlertTest("10m", alert), AlertTest("11m", alert), AlertTest("30m", alert)],
    )
    yield Case(
        "an agent that ended one attempt and is gone in the next is missed",
        [
            _info("1x6 stale"),
            _info("_x7 1x6 stale", attempt="2"),
            _start("1000x6 1360x6 stale"),
            *_end("killed"),
        ],
        [AlertTest("14m", alert), AlertTest("15m", alert, [later])],
    )
    yield Case(
        "an agent that is back with the next scrape but one is not missed",
        [_info("1x9 stale 1x30"), _start("1000x9 stale 1000x30")],
        [AlertTest("10m", alert), AlertTest("11m", alert), AlertTest("12m", alert)],
    )
    yield Case(
        "a machine that is gone is missed while the run's other machine goes on, and not when the run began anew there",
        [*shown, _info("1x60", agent=B), _start("1001x19 2200x30", agent=B)],
        [AlertTest("11m", alert, [firing]), AlertTest("19m", alert, [firing]), AlertTest("20m", alert)],
    )


def _stale(links: Links) -> Iterator[Case]:
    alert = "ResmonRunStale"
    says = (
        "The run is under way and its newest step is 35m 0s old, though nobody calls it stalled: its flight is not followed any "
        "more, or stalls are not looked for in this run."
    )
    standing = [_info("1x60"), _series("resmon_last_step_timestamp_seconds", "0+60x10 600x50", run="digits", rank="0")]
    calm = _series("resmon_run_stalled", "0x60", run="digits")
    yield Case(
        "a run whose newest step stays the same for half an hour and five minutes is stale",
        [*standing, calm],
        [AlertTest("44m", alert), AlertTest("45m", alert, [_run_firing(alert, links, says, began=40)])],
    )
    yield Case(
        "a run of which one rank goes on is not stale, nor one whose trainer's clock is a day behind",
        [
            _info("1x60"),
            calm,
            _series("resmon_last_step_timestamp_seconds", "0+60x10 600x50", run="digits", rank="0"),
            _series("resmon_last_step_timestamp_seconds", "-86400+60x60", run="digits", rank="1"),
            _series("resmon_last_step_timestamp_seconds", "0+60x60", run="digits", rank="2"),
        ],
        [AlertTest("45m", alert), AlertTest("55m", alert)],
    )
    yield Case(
        "a run that stands and is called stalled is told by that alert and not as stale",
        [*standing, _series("resmon_run_stalled", "0x20 1x40", run="digits")],
        [AlertTest("45m", alert), AlertTest("55m", alert)],
    )
    yield Case(
        "a run that has ended and is still shown is not stale",
        [*standing, calm, *_end("finished", 600, "_x11 1x50")],
        [AlertTest("45m", alert), AlertTest("55m", alert)],
    )


def _monitor_errors(links: Links) -> Iterator[Case]:
    alert = "ResmonMonitorErrors"
    says = (
        "resmon has met errors of its own in this attempt, 1 so far, and kept them from the training loop. The blocks may not be "
        "observed any more, and then no detector sees them."
    )
    firing = _run_firing(alert, links, says)
    yield Case(
        "an error inside the monitor is told with the first evaluation after it, though the run is over soon",
        [
            _info("1x6 stale"),
            _series("resmon_monitor_errors_total", "0x4 1x1 stale", run="digits", rank="0"),
            _series("resmon_monitor_errors_total", "0x6 stale", run="digits", rank="1"),
        ],
        [AlertTest("4m", alert), AlertTest("5m", alert, [firing]), AlertTest("26m", alert, [firing]), AlertTest("27m", alert)],
    )
    yield Case(
        "an error in the very first step is told, though the counter was never seen at 0",
        [_info("1x60"), _series("resmon_monitor_errors_total", "1x60", run="digits", rank="0")],
        [AlertTest("0m", alert, [_run_firing(alert, links, says, began=0)])],
    )
    yield Case(
        "a run without errors is not told",
        [_info("1x60"), _series("resmon_monitor_errors_total", "0x60", run="digits", rank="0")],
        [AlertTest("10m", alert)],
    )


def _agent_errors(links: Links) -> Iterator[Case]:
    alert, metric = "ResmonAgentErrors", "resmon_agent_last_error_timestamp_seconds"
    firing = Firing(
        {"job": "resmon", "instance": A, "severity": "ticket"},
        {
            "summary": f"Errors of an agent: {A}",
            "description": "The agent goes on but has met an error of its own: a flight that it cannot follow, a detector that "
            "failed, a file that it cannot write. Its log says which. It has counted 3 so far.",
            "runbook_url": f"{links.runbooks}/agent-errors.md",
            "dashboard_url": _dashboard(links, "resmon-run?", 5),
        },
    )
    counted = _series("resmon_agent_errors_total", "3x60")
    yield Case(
        "an agent that meets an error is told at once, and for a quarter of an hour",
        [_series(metric, "_x5 290x50"), counted],
        [AlertTest("4m", alert), AlertTest("5m", alert, [firing]), AlertTest("19m", alert, [firing]), AlertTest("20m", alert)],
    )
    yield Case(
        "an agent that meets it again and again is told until it is over, and that another one has met none is no matter",
        [_series(metric, "_x5 300+60x30 2100x30"), counted, _series("resmon_agent_errors_total", "0x60", agent=B)],
        [AlertTest("25m", alert, [firing]), AlertTest("49m", alert, [firing]), AlertTest("50m", alert)],
    )
    yield Case(
        "one that met an error in its first second and left after its first scrape is told all the same",
        [_series(metric, "_x5 290 stale"), counted],
        [AlertTest("5m", alert, [firing]), AlertTest("14m", alert, [firing]), AlertTest("16m", alert)],
    )
    yield Case(
        "an error of long ago is not told, however many there were, nor an agent that has met none",
        [_series(metric, "-3600x30"), counted, _series("resmon_agent_errors_total", "0x30", agent=B)],
        [AlertTest("0m", alert), AlertTest("10m", alert)],
    )


def _series_budget(links: Links) -> Iterator[Case]:
    alert = "ResmonSeriesBudget"
    says = (
        "700 blocks have no series of their own: what is exported of them is that of their stage. The run may export 10000 series."
    )
    blocks = {"run": "digits", "model": "Net"}
    yield Case(
        "a run whose blocks are folded for five minutes is told once, whatever number of machines",
        [
            _series("resmon_run_folded_blocks", "0x4 700x20", **blocks),
            _series("resmon_run_folded_blocks", "0x4 700x20", B, **blocks),
            _series("resmon_run_series_limit", "10000x30", run="digits"),
        ],
        [AlertTest("9m", alert), AlertTest("10m", alert, [_run_firing(alert, links, says)])],
    )
    yield Case(
        "a run that is folded for a moment is not told, nor one near its budget",
        [
            _series("resmon_run_folded_blocks", "0x4 700x3 0x20", **blocks),
            _series("resmon_run_series", "9999x30", run="digits"),
            _series("resmon_run_series_limit", "10000x30", run="digits"),
        ],
        [AlertTest("8m", alert), AlertTest("12m", alert)],
    )


def _slow(links: Links) -> Iterator[Case]:
    alert = "ResmonSlowSteps"
    says = "A step takes 2.5s in the mean of five minutes, more than 2 times what was usual half an hour before. Usual was 1s."
    of = {"run": "digits", "rank": "0"}
    yield Case(
        "steps that take two and a half times as long as an hour ago are told after fifteen minutes of it",
        [
            _info("1x120"),
            _series("resmon_step_duration_seconds_sum", "0+60x120", **of),
            _series("resmon_step_duration_seconds_count", "0+60x60 3624+24x60", **of),
        ],
        [AlertTest("74m", alert), AlertTest("75m", alert, [_run_firing(alert, links, says, began=65)])],
    )
    yield Case(
        "what becomes the run's own usual pace is told no longer",
        [
            _info("1x180"),
            _series("resmon_step_duration_seconds_sum", "0+60x180", **of),
            _series("resmon_step_duration_seconds_count", "0+60x60 3624+24x120", **of),
        ],
        [AlertTest("90m", alert, [_run_firing(alert, links, says, began=65)]), AlertTest("130m", alert)],
    )
    yield Case(
        "an evaluation of two minutes between two steps is not told",
        [
            _info("1x120"),
            _series("resmon_step_duration_seconds_sum", "0+60x60 3720+60x60", **of),
            _series("resmon_step_duration_seconds_count", "0+60x60 3601+60x60", **of),
        ],
        [AlertTest("66m", alert), AlertTest("75m", alert), AlertTest("80m", alert)],
    )
    yield Case(
        "steps that take 1.9 times as long are not told",
        [
            _info("1x120"),
            _series("resmon_step_duration_seconds_sum", "0+60x60 3660+57x60", **of),
            _series("resmon_step_duration_seconds_count", "0+60x60 3630+30x60", **of),
        ],
        [AlertTest("75m", alert), AlertTest("85m", alert)],
    )
    yield Case(
        "a run of half an hour has no history to be slow against",
        [
            _info("1x40"),
            _series("resmon_step_duration_seconds_sum", "0+60x40", **of),
            _series("resmon_step_duration_seconds_count", "0+60x20 1206+6x20", **of),
        ],
        [AlertTest("35m", alert), AlertTest("40m", alert)],
    )


def _memory(links: Links) -> Iterator[Case]:
    alert = "ResmonMemoryHeadroom"
    main = "Of the main memory that the training process has or could have 4% is left."
    device = "Of the device memory that the training process has or could have 1% is left."
    of = {"run": "digits", "rank": "0"}
    yield Case(
        "a process that has 4 % of its main memory left for five minutes is told, and one with 1 % of its device's",
        [
            _info("1x40"),
            _series("resmon_memory_bytes", "50e9x4 96e9x30", **of),
            _series("resmon_memory_free_bytes", "50e9x4 4e9x30", **of),
            _series("resmon_device_memory_bytes", "50e9x4 99e9x30", **of),
            _series("resmon_device_memory_free_bytes", "50e9x4 1e9x30", **of),
        ],
        [
            AlertTest("9m", alert),
            AlertTest(
                "10m",
                alert,
                [_run_firing(alert, links, main, memory="main"), _run_firing(alert, links, device, memory="device")],
            ),
        ],
    )
    yield Case(
        "a device that is filled on purpose, to 97 %, is not told, nor is a short peak",
        [
            _info("1x40"),
            _series("resmon_memory_bytes", "50e9x4 96e9x3 50e9x30", **of),
            _series("resmon_memory_free_bytes", "50e9x4 4e9x3 50e9x30", **of),
            _series("resmon_device_memory_bytes", "97e9x40", **of),
            _series("resmon_device_memory_free_bytes", "3e9x40", **of),
        ],
        [AlertTest("8m", alert), AlertTest("10m", alert), AlertTest("20m", alert)],
    )


def _healthy() -> Case:
    """All that a run shows from its first scrape to its end, and nothing that anybody has to be told of."""
    of = {"run": "digits", "rank": "0"}
    return Case(
        "nothing is told of a healthy run that finishes and whose agent leaves",
        [
            _info("1x90 stale"),
            _start("1000x90 stale"),
            *_end("finished", 6300, "_x89 1x1 stale"),
            _series("resmon_last_step_timestamp_seconds", "1000+60x88 6280x1 stale", **of),
            _series("resmon_run_stalled", "0x90 stale", run="digits"),
            _series("resmon_monitor_errors_total", "0x90 stale", **of),
            _series("resmon_run_folded_blocks", "0x90 stale", run="digits", model="Net"),
            _series("resmon_step_duration_seconds_sum", "0+60x90 stale", **of),
            _series("resmon_step_duration_seconds_count", "0+60x90 stale", **of),
            _series("resmon_memory_bytes", "50e9x90 stale", **of),
            _series("resmon_memory_free_bytes", "50e9x90 stale", **of),
        ],
        [AlertTest(at, row.alert) for at in ("50m", "89m", "91m", "100m") for row in RUN_ALERTS],
    )


# ---- machines --------------------------------------------------------------------------------------------------------------

_BLOCK = {"run": "digits", "model": "Net", "block": "h.2"}
_RUN = {"run": "digits"}

# What is there on every machine that has a share of a norm.
_BESIDE = {
    "resmon_block_gradient_norm": "resmon_block_nonfinite_steps_total",
    "resmon_block_output_gradient_norm": "resmon_block_nonfinite_steps_total",
    "resmon_gradient_norm": "resmon_run_info",
    "resmon_group_gradient_norm": "resmon_group_learning_rate",
}

# Of each rule what two machines show, and what the run's series is.
_TWO: dict[str, tuple[str, dict[str, str], str, str, float]] = {
    "run_model_block:resmon_block_gradient_norm:sqrt_sum_squares": ("resmon_block_gradient_norm", _BLOCK, "3", "4", 5),
    "run_model_block:resmon_block_output_gradient_norm:sqrt_sum_squares": (
        "resmon_block_output_gradient_norm",
        _BLOCK,
        "5",
        "12",
        13,
    ),
    "run:resmon_gradient_norm:sqrt_sum_squares": ("resmon_gradient_norm", _RUN, "8", "15", 17),
    "run_group:resmon_group_gradient_norm:sqrt_sum_squares": (
        "resmon_group_gradient_norm",
        _RUN | {"group": "decay"},
        "3",
        "4",
        5,
    ),
    "run_model_block:resmon_block_skip_rms:sqrt_mean_squares": ("resmon_block_skip_rms", _BLOCK, "1", "7", 5),
    "run_model_block:resmon_block_branch_rms:sqrt_mean_squares": ("resmon_block_branch_rms", _BLOCK, "7", "17", 13),
    "run_model_block:resmon_block_output_rms:sqrt_mean_squares": ("resmon_block_output_rms", _BLOCK, "7", "23", 17),
    "run_model_block:resmon_block_output_peak:max": ("resmon_block_output_peak", _BLOCK, "3", "4", 4),
    "run_model_block:resmon_block_headroom:min": ("resmon_block_headroom", _BLOCK, "3", "4", 3),
    "run_model_block:resmon_block_activation_bytes:sum": ("resmon_block_activation_bytes", _BLOCK, "3", "4", 7),
    "run_model_block_finding_severity:resmon_finding_active:max": (
        "resmon_finding_active",
        _BLOCK | {"finding": "drift", "severity": "ticket"},
        "0",
        "1",
        1,
    ),
    "run:resmon_loss:avg": ("resmon_loss", _RUN, "1", "3", 2),
    "run:resmon_steps:rate5m": ("resmon_steps_total", _RUN | {"rank": "0"}, "0+60", "0+120", 2),
    "run:resmon_samples:rate5m": ("resmon_samples_total", _RUN | {"rank": "0"}, "0+60", "0+120", 3),
    "run:resmon_memory_free_bytes:min": ("resmon_memory_free_bytes", _RUN | {"rank": "0"}, "3", "4", 3),
    "run:resmon_device_memory_free_bytes:min": ("resmon_device_memory_free_bytes", _RUN | {"rank": "0"}, "3", "4", 3),
    "job:resmon_runs_active:sum": ("resmon_runs_active", {}, "1", "2", 3),
    "outcome:resmon_runs_total:sum": ("resmon_runs_total", {"outcome": "killed"}, "1", "2", 3),
}


def of_machines(_: Links) -> list[Case]:
    return [*(_two(record) for record in _TWO), *_shares(), _ratio(), _durations()]


def _sample(record: str, value: float, **labels: str) -> QueryTest:
    """What a rule has recorded after ten minutes."""
    return QueryTest("10m", record, [Sample(record + _braces(labels), value)])


def _two(record: str) -> Case:
    metric, labels, here, there, value = _TWO[record]
    level = record.split(":")[0].split("_")
    shown = {name: text for name, text in {"job": "resmon", **labels}.items() if name in level}
    holds = next(merged.holds for merged in MERGED if merged.record == record)
    return Case(
        f"{record} of two machines ({holds})",
        [
            _series(metric, f"{here}x20", A, **labels),
            _series(metric, f"{there}x20", B, **labels),
            *(_series(_BESIDE[metric], "1x20", agent, **labels) for agent in (A, B) if metric in _BESIDE),
        ],
        queries=[_sample(record, value, **shown)],
    )


def _shares() -> Iterator[Case]:
    for record, (metric, labels, _, _, _) in _TWO.items():
        if metric in _BESIDE:
            yield Case(
                f"{record} is absent where a machine that has its part lacks its share",
                [
                    _series(metric, "3x20", A, **labels),
                    *(_series(_BESIDE[metric], "1x20", agent, **labels) for agent in (A, B)),
                ],
                queries=[QueryTest("10m", record, [])],
            )
    record, model = "run_model_block:resmon_block_gradient_norm:sqrt_sum_squares", {"run": "digits", "model": "Net"}
    of_a = [
        _series("resmon_block_gradient_norm", "3x20", A, **_BLOCK),
        _series("resmon_block_nonfinite_steps_total", "0x20", A, **_BLOCK),
        _series("resmon_run_folded_blocks", "700x20", A, **model),
    ]
    yield Case(
        "a block of a run that is folded is its machine's where there is one",
        of_a,
        queries=[_sample(record, 3, **_BLOCK)],
    )
    yield Case(
        "a block of a run that is folded is absent over two machines, of which the other may fold it",
        [*of_a, _series("resmon_run_folded_blocks", "700x20", B, **model)],
        queries=[QueryTest("10m", record, [])],
    )
    yield Case(
        "a block that is on one machine of two, as in a pipeline, is that machine's",
        [
            *of_a[:2],
            _series("resmon_run_folded_blocks", "0x20", A, **model),
            _series("resmon_run_folded_blocks", "0x20", B, **model),
        ],
        queries=[_sample(record, 3, **_BLOCK)],
    )


def _ratio() -> Case:
    record = "run_model_block:resmon_block_branch_skip_ratio:ratio_of_sqrt_mean_squares"
    return Case(
        "a ratio over machines is that of the sums, and absent where the skip is 0 (equal elements)",
        [
            *(_series("resmon_block_branch_rms", f"{value}x20", agent, **_BLOCK) for agent, value in ((A, 7), (B, 17))),
            *(
                _series("resmon_block_skip_rms", f"{value}x20", agent, **_BLOCK)
                for agent, value in ((A, 10), (B, 24.083189157584592))
            ),
            _series("resmon_block_branch_rms", "0x20", **(_BLOCK | {"block": "h.0"})),
            _series("resmon_block_skip_rms", "0x20", **(_BLOCK | {"block": "h.0"})),
        ],
        queries=[_sample(record, 13 / 18.439088914585774, **_BLOCK)],
    )


def _durations() -> Case:
    of = _RUN | {"rank": "0"}
    buckets = (("0.5", 0), ("1.0", 60), ("2.0", 120), ("+Inf", 120))
    return Case(
        "step times over machines are those of the histograms together: one does a step in 1 s, the other in 2 s",
        [
            *(_series("resmon_step_duration_seconds_bucket", f"0+{min(n, 60)}x20", A, **of, le=le) for le, n in buckets),
            *(_series("resmon_step_duration_seconds_bucket", f"0+{max(0, n - 60)}x20", B, **of, le=le) for le, n in buckets),
            _series("resmon_step_duration_seconds_sum", "0+60x20", A, **of),
            _series("resmon_step_duration_seconds_sum", "0+120x20", B, **of),
            _series("resmon_step_duration_seconds_count", "0+60x20", A, **of),
            _series("resmon_step_duration_seconds_count", "0+60x20", B, **of),
        ],
        queries=[
            _sample("run:resmon_step_duration_seconds:mean5m", 1.5, **_RUN),
            _sample("run:resmon_step_duration_seconds:p50_5m", 1.0, **_RUN),
            _sample("run:resmon_step_duration_seconds:p99_5m", 1.98, **_RUN),
            QueryTest(
                "10m",
                'run_le:resmon_step_duration_seconds_bucket:rate5m{le="1.0"}',
                [Sample('run_le:resmon_step_duration_seconds_bucket:rate5m{le="1.0", run="digits"}', 1.0)],
            ),
        ],
    )
