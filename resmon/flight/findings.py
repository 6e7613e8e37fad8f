"""findings.jsonl: one finding event a line, appended by the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from resmon.flight.journal import Lines
from resmon.flight.layout import FINDINGS
from resmon.flight.reader import Skip
from resmon.records import Finding, FindingState, Severity

_TEXTS = ("id", "state", "kind", "severity", "model", "block", "summary", "expected", "seen", "runbook")
_NUMBERS = ("opened_step", "opened_time", "step", "time", "confidence")


def read(attempt_folder: Path) -> tuple[list[Finding], list[Skip]]:
    """Every event in order, and the lines that are none."""
    lines = Lines(attempt_folder / FINDINGS, _finding, "a finding")
    return lines.poll(ended=True), lines.skips


def _finding(values: dict[str, Any]) -> Finding:
    made = {name: values[name] for name in (*_TEXTS, *_NUMBERS)}
    if not all(isinstance(made[name], str) for name in _TEXTS):
        raise ValueError("a text is none")
    if not all(isinstance(made[name], (int, float)) for name in _NUMBERS) or not isinstance(values.get("evidence", {}), dict):
        raise ValueError("a number is none")
    if made["state"] not in get_args(FindingState) or made["severity"] not in get_args(Severity):
        raise ValueError(f"state {made['state']!r:.40} or severity {made['severity']!r:.40} is unknown")
    return Finding(**made, evidence=values.get("evidence", {}))
