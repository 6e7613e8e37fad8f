"""Specifications for the tests, as texts."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

from resmon.objectives import spec
from resmon.objectives.spec import Objective
from resmon.objectives.windows import Windows

EVENTS = """\
events:
  error_query: sum(rate(requests_total{code=~"5.."}[{{.window}}]))
  total_query: sum(rate(requests_total[{{.window}}]))
"""


def slo(name: str = "availability", objective: str = "99.9", sli: str = EVENTS, more: str = "") -> str:
    """One item of `slos`."""
    text = f"name: {name}\nobjective: {objective}\nsli:\n{indent(dedent(sli), '  ')}{dedent(more)}"
    return "  - " + indent(text, "    ").lstrip()


def service(*slos: str, name: str = "shop", more: str = "") -> str:
    return f"version: prometheus/v1\nservice: {name}\n{dedent(more)}slos:\n{''.join(slos or (slo(),))}"


def written(folder: Path, text: str, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def load(folder: Path, text: str, windows: Windows | None = None) -> list[Objective]:
    return spec.load([written(folder, text)], windows)
