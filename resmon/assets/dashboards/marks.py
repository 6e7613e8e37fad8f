"""What happened, as marks on the time axis of every panel: how runs ended, what was found and broke, which weights were saved.

Grafana has the titles and texts of such marks in fields that the SDK does not know, so that they are written here. Until its
version 11 Grafana reads `expr` and `step`; from 12 on it reads `target`.
"""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import AnnotationQuery

from resmon.assets.dashboards.panel import BLUE, DATASOURCE, ORANGE, RED
from resmon.assets.dashboards.query import BROKEN, INTERVAL, MODEL, RUN

STEP = "15s"  # the finest; Grafana takes a longer one where the time that is shown asks for it
BESIDES = ("step", "target", "titleFormat", "textFormat", "tagKeys", "useValueForTime")  # what the SDK does not know


@dataclass(frozen=True, slots=True)
class Mark(Builder[AnnotationQuery]):
    """Marks where `expr` is above 0; `at_value`, at the time that is its value, in milliseconds."""

    name: str
    expr: str
    title: str
    text: str
    colour: str
    at_value: bool = False
    tags: str = ""

    def build(self) -> AnnotationQuery:
        return _Query(self)


class _Query(AnnotationQuery):
    def __init__(self, mark: Mark) -> None:
        super().__init__(mark.name, DATASOURCE, enable=True, icon_color=mark.colour, expr=mark.expr)
        self._mark = mark

    def to_json(self) -> dict[str, object]:
        target = {"expr": self.expr, "interval": STEP, "range": True, "instant": False, "refId": "Mark", "datasource": DATASOURCE}
        return super().to_json() | {
            "step": STEP,
            "target": target,
            "titleFormat": self._mark.title,
            "textFormat": self._mark.text,
            "tagKeys": self._mark.tags,
            "useValueForTime": self._mark.at_value,
        }


def ends_of_run() -> Mark:
    ends = f"1000 * max by (run, outcome) (max_over_time(resmon_run_end_timestamp_seconds{{{RUN}}}[{INTERVAL}]))"
    return Mark("Ends", ends, "{{outcome}}", "{{run}} ended", RED, at_value=True, tags="outcome")


def failures() -> Mark:
    """Of all runs that train the model."""
    ends = f"1000 * max by (run, outcome) (max_over_time(resmon_run_end_timestamp_seconds{{{BROKEN}}}[{INTERVAL}]))"
    of_it = f"max by (run) (max_over_time(resmon_run_blocks{{{MODEL}}}[{INTERVAL}]))"
    return Mark("Failures", f"{ends}\nand on (run) {of_it}", "{{outcome}}", "{{run}} ended", RED, at_value=True, tags="outcome")


def incidents() -> Mark:
    """Where their count rises, also from nothing: what breaks a run may be there with its first scrape."""
    counts = f"resmon_incidents_total{{{RUN}}}[{INTERVAL}]"
    now, before = (f"max by (run, kind) (max_over_time({each}))" for each in (counts, f"{counts} offset {INTERVAL}"))
    rises = f"{now} > ({before} or 0 * {now})"
    return Mark("Incidents", rises, "{{kind}}", "{{run}}", ORANGE, tags="kind")


def findings() -> Mark:
    """For as long as they are open."""
    opened = f"max by (finding, block, severity) (max_over_time(resmon_finding_active{{{RUN}}}[{INTERVAL}])) > 0"
    return Mark("Findings", opened, "{{finding}}", "{{block}}", ORANGE, tags="severity")


def checkpoints() -> Mark:
    saved = f"1000 * max by (run) (max_over_time(resmon_checkpoint_timestamp_seconds{{{RUN}}}[{INTERVAL}]))"
    return Mark("Checkpoints", saved, "checkpoint", "{{run}}", BLUE, at_value=True)
