"""Flights of runs that break in a known way, by the real writer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from resmon.flight import journal, layout
from resmon.flight.layout import boot_id
from resmon.records import BLOCK_VALUES, Checkpoint, Finding, Incident, Outcome, RunEnd, ScalarRecord, finding_id
from tests import synthetic
from tests.flight.flights import begin

# Of a step: values of the run, of blocks by (name, block), and what is logged.
SCORES = ("loss", "val_loss", "accuracy")
Story = Callable[[int], Mapping[Any, float]]


def calm(step: int) -> dict[Any, float]:
    """A training that gets better slowly, with some noise."""
    noise = np.random.default_rng(step)
    return {
        "loss": 2.0 * math.exp(-step / 200) * math.exp(noise.normal(0, 0.02)),
        "gradient_square": (1.5 * math.exp(noise.normal(0, 0.05))) ** 2,
        "learning_rate": 0.1,
        "duration": 0.1 * math.exp(abs(noise.normal(0, 0.02))),
        "data_seconds": 0.01,
        "forward_seconds": 0.03,
        "backward_seconds": 0.04,
        "optimizer_seconds": 0.005,
        "memory": 2e9,
        "memory_peak": 2.2e9,
        "memory_free": 6e9,
    }


def record(
    directory: Path,
    run: str = "digits",
    story: Story = calm,
    *,
    steps: int = 200,
    blocks: int = 4,
    outcome: Outcome | None = "finished",
    incidents: tuple[Incident, ...] = (),
    checkpoints: int = 50,
    names: tuple[str, ...] = (),
    budget: int = 64 << 20,
    stride: int = 1,
    started: float = 1000.0,
    **info: Any,
) -> Path:
    """The attempt's folder. `outcome` None leaves no end mark, as SIGKILL does."""
    folder, writer = begin(directory, run, budget=budget, boot_id=boot_id(), started=started, **info)
    sites = synthetic.sites(blocks)
    if names:
        sites = tuple(replace(site, name=name, module=name) for site, name in zip(sites, names, strict=True))
    training = synthetic.Training(sites)
    training.now += started - 1000.0
    writer.sites(sites)
    for i in range(steps):
        step = i * stride
        values = dict(calm(step)) | dict(story(step))
        noise = np.random.default_rng([7, step]).normal(0, 0.03, (len(BLOCK_VALUES), blocks))
        usual = {
            (name, block): float(np.exp(2 * noise[k, block])) for k, name in enumerate(BLOCK_VALUES) for block in range(blocks)
        }
        usual |= {("branch_square", block): 0.25 * usual["branch_square", block] for block in range(blocks)}
        chosen = usual | {key: value for key, value in values.items() if isinstance(key, tuple)}
        broken = [block for block in range(blocks) if not math.isfinite(chosen["output_square", block])]
        made = training.step(
            forward=broken,
            values={key: value for key, value in chosen.items() if math.isfinite(value)},
            absent=[("fill", block) for block in range(blocks)] if ("fill", 0) not in values else [],
        )
        of_run = {
            key: value for key, value in values.items() if isinstance(key, str) and key not in ("loss", "val_loss", "accuracy")
        }
        made = replace(made, step=step, run=synthetic.run_values(**of_run))
        writer.step(made)
        logged = {key: values[key] for key in SCORES if key in values}
        writer.scalars(ScalarRecord(step, made.time, logged))
        if checkpoints and i and i % checkpoints == 0:
            journal.append(folder / layout.CHECKPOINTS, {"step": step, "time": made.time, "path": f"ckpt-{step}.pt"})
    for incident in incidents:
        writer.incident(incident)
    if outcome is not None:
        writer.end(RunEnd(outcome, training.now, (steps - 1) * stride, "" if outcome == "finished" else "ValueError: no"))
    else:
        writer._full.close()
        layout.release(writer._lock)
    return folder.parent


def incident(kind: Outcome, step: int | None, **more: Any) -> Incident:
    return replace(Incident(id=f"{kind}-{step}", kind=kind, time=2000.0, step=step, summary=f"{kind} it was"), **more)


def finding(kind: str, step: int, block: str = "", **more: Any) -> Finding:
    made = Finding(
        id=finding_id(kind, "Net", block, step),
        state="opened",
        kind=kind,
        severity="page",
        model="Net",
        block=block,
        opened_step=step,
        opened_time=1000.0 + step,
        step=step,
        time=1000.0 + step,
        summary="it was found",
        expected="less",
        seen="more",
        confidence=1.0,
        runbook="",
    )
    return replace(made, **more)


def explosion(at: int, block: int = 2, before: int = 20) -> Story:
    """From `before` steps before on the learning rate and gradients grow; the block follows, and at `at` it is infinite."""

    def story(step: int) -> dict[Any, float]:
        began = at - before
        if step < began:
            return {}
        growth = 1.6 ** (step - began)
        values: dict[Any, float] = {"learning_rate": 0.1 * 3, "gradient_square": (1.5 * growth) ** 2, "loss": 1.0 + growth / 10}
        if step >= began + 4:
            values["output_square", block] = 1.8 ** (2 * (step - began)) if step < at else math.inf
            values["branch_square", block] = 1.8 ** (2 * (step - began))
        return values

    return story


__all__ = ["Checkpoint", "calm", "explosion", "finding", "incident", "record"]
