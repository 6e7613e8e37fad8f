"""Pipelines of torch.distributed.pipelining over gloo against one process in float64 (tests/capture/staged.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import resmon
from resmon.capture.host import pipelines
from tests.capture import staged
from tests.ranks import run_ranks

VALUES = ("skip_rms", "branch_rms", "gradient_norm", "output_gradient_norm")


def check(folder: Path, name: str) -> None:
    truth = staged.truth()
    flight = resmon.load(folder / name)
    blocks = flight.blocks()
    assert len(blocks) == staged.STEPS * staged.BLOCKS * len(staged.BRANCHES)
    for row in blocks.to_dict("records"):
        for value in VALUES:
            assert row[value] == pytest.approx(truth[row["step"]][f"{row['block']} {value}"], rel=1e-5), (
                row["step"],
                row["block"],
                value,
            )
    steps = flight.steps()
    assert steps["gradient_norm"].tolist() == pytest.approx([step["total"] for step in truth], rel=1e-5)
    assert steps["loss_scale"].isna().all()
    assert not any(site.absent for site in flight.sites)
    for rank in range(2):
        said = json.loads((folder / f"{name}-{rank}.json").read_text())
        assert said["bare"]["collectives"]
        assert said["watched"] == said["bare"]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("1f1b", "zero-bubble")]


@pytest.mark.parametrize("schedule", ["gpipe", "interleaved", *SLOW])
def test_a_pipeline_is_as_one_process(schedule: str, tmp_path: Path) -> None:
    """Its trial pass over memory that holds anything is no part of the first step; output gradients are of the mean loss."""
    run_ranks(2, "tests.capture.staged", str(tmp_path), schedule)
    check(tmp_path, schedule)


def test_outside_of_a_pipeline_there_is_none() -> None:
    assert pipelines.around() is pipelines.NONE
