"""Runs to look at: as a training writes them, and as somebody who means harm would."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resmon.agent import runtime
from resmon.flight import incidents, journal, layout
from resmon.flight.writer import FlightWriter
from resmon.records import BLOCK_VALUES, Finding, Incident, ResidualSite, RunEnd, ScalarRecord, incident_id
from tests import synthetic
from tests.flight.flights import begin

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=1">',
    "<b>h.3</b>{{ 7*7 }}${1+1}%{x}<a href='javascript:1'>",
    "h." + "long" * 124,
)


def record(
    directory: Path,
    run: str,
    steps: int = 120,
    blocks: int = 6,
    names: tuple[str, ...] = (),
    broken_at: int | None = None,
    end: bool = True,
    models: tuple[str, ...] = ("",),
) -> Path:
    """A run whose stream grows with depth; from `broken_at` on the last block but one is not finite. The rank's folder.

    Where there are several `models` all have the same names of blocks, and it is the last one's.
    """
    folder, writer = begin(directory, run, launch=f"launch of {run}", models={model: model or "Net" for model in models})
    fill(writer, steps, blocks, names, broken_at, models)
    if broken_at is not None:
        name = names[-2] if names else f"h.{blocks - 2}"
        tell(folder, name, broken_at, model=models[-1])
    if end:
        writer.end(RunEnd("finished" if broken_at is None else "nonfinite", 1000.0 + steps, steps - 1))
    return folder


def fill(
    writer: FlightWriter,
    steps: int,
    blocks: int,
    names: tuple[str, ...] = (),
    broken_at: int | None = None,
    models: tuple[str, ...] = ("",),
) -> None:
    names = names or tuple(f"h.{i}" for i in range(blocks))
    sites = tuple(
        ResidualSite(name, f"h.{i}", "identity", (f"h.{i}.mlp",), (), (4, 8), model=model)
        for model in models
        for i, name in enumerate(names)
    )
    training = synthetic.Training(sites)
    writer.sites(sites)
    depth, noise = np.arange(len(sites)), np.random.default_rng(0)
    for step in range(steps):
        made = training.step(forward=[len(sites) - 2] if broken_at is not None and step >= broken_at else [])
        wobble = np.exp(0.05 * noise.standard_normal(len(sites)))
        for value, size in (("skip_square", (1 + 0.3 * depth) ** 2), ("gradient_square", 0.01 / (1 + depth))):
            made.blocks[BLOCK_VALUES.index(value)] = 32 * size * wobble
        branch = made.blocks[BLOCK_VALUES.index("branch_square")]
        branch[np.isfinite(branch)] = (32 * wobble * 0.25)[np.isfinite(branch)]
        writer.step(made)
        writer.scalars(ScalarRecord(step, made.time, {"loss": 2.3 / (1 + step / 20), "accuracy": 1 - 1 / (1 + step / 20)}))


def tell(folder: Path, block: str, step: int, summary: str = "", model: str = "") -> None:
    """Write down what the training and the agent say of a failure."""
    incidents.append(
        folder,
        Incident(
            id=incident_id("nonfinite", step),
            kind="nonfinite",
            time=1000.0 + step,
            step=step,
            summary=summary or f"Step {step}: sqrt in module {block} made NaN of finite values.",
            model=model,
            block=block,
            advice="Look at what that operation was given.",
            runbook="nonfinite",
        ),
    )
    finding = Finding.opened(
        "straying_block",
        "ticket",
        step - 20,
        1000.0 + step,
        f"The branch of {block} gives 6 times as much",
        expected="as before",
        seen="6 times that",
        confidence=0.9,
        runbook="straying-block",
        evidence={},
        model=model,
        block=block,
    )
    journal.append(folder.parent / layout.FINDINGS, finding_values(finding))


def finding_values(finding: Finding) -> dict[str, object]:
    return {name: getattr(finding, name) for name in Finding.__slots__}


def known(runtime_folder: Path, directory: Path) -> None:
    """Let an agent know the folder, as a training that registers does."""
    runtime.remember(runtime_folder, directory)
