"""What would have fitted, against runs whose memory is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest

from resmon.memory.footprint import (
    BLOCKS,
    MARKS,
    STEPS,
    Figures,
    Footprint,
    Held,
    Trail,
    advice,
    checkpoints,
    evidence,
    fitting,
    killed,
    line,
)

MIB = float(1 << 20)


def followed(
    peaks: Iterable[tuple[float, float]], used: float | Callable[[int], float] = 100 * MIB, total: float = 1000 * MIB
) -> Trail:
    """A run whose steps had these sizes of batch, and these peaks of their own."""
    trail = Trail({"memory": 100 * MIB, "memory_peak": 100 * MIB, "memory_free": total - 100 * MIB})
    highest = 100 * MIB
    for step, (batch, peak) in enumerate(peaks):
        highest = max(highest, peak)
        now = used(step) if callable(used) else used
        trail.add(step, batch, {"memory": now, "memory_peak": highest, "memory_free": total - now})
    return trail


def footprint(trail: Trail, samples: int, **more: object) -> Footprint:
    now: Figures = trail.recent[-1][1] if trail.recent else {"memory": 100 * MIB, "memory_free": 900 * MIB}
    return Footprint(trail, now, samples=samples, batch=samples * 10.0, **more)  # type: ignore[arg-type]


def need(samples: float) -> float:
    return 150 * MIB + samples * 5 * MIB


def test_the_batch_that_fits_is_where_the_line_meets_what_there_is() -> None:
    trail = followed((samples * 10.0, need(samples)) for samples in (8, 16, 16, 32, 8, 64))
    found = fitting(footprint(trail, 400), "")
    # need(170) is all there is; fifteen hundredths of what grows with the batch are kept in reserve.
    assert found == {
        "samples": 400,
        "fits": int(850 / 5 / 1.15),
        "fits_at_best": 170,
        "by": "least squares of peak memory over 4 sizes of batch",
    }
    said = advice(evidence(footprint(trail, 400), ""))
    assert said.startswith("A batch of 147 samples (of 400) would have fitted, at best 170, by least squares")


def test_scatter_makes_it_less() -> None:
    random = np.random.default_rng(0)
    fits = []
    for scatter in (0.0, 10.0, 40.0):
        sizes = np.sort(random.uniform(5, 80, 20))
        trail = followed((s * 10, need(s) + scatter * MIB * random.standard_normal()) for s in sizes.tolist())
        found = fitting(footprint(trail, 400), "")["fits"]
        assert need(found) < 1000 * MIB
        fits.append(found)
    assert fits == sorted(fits, reverse=True) and fits[0] > fits[2]


def test_one_size_is_a_line_through_what_is_in_use_between_steps() -> None:
    trail = followed([(80.0, need(8))] * 5, used=150 * MIB)
    found = fitting(footprint(trail, 400), "")
    assert found["fits"] == int(850 / 5 / 1.15)
    assert found["by"].startswith("peak memory at one size")


def test_before_the_first_step_is_over_what_autograd_keeps_tells() -> None:
    blocks = [Held("", f"h.{i}", int(4 * MIB), int(3 * MIB)) for i in range(10)]
    known = footprint(Trail({"memory": 100 * MIB}), 400, blocks=blocks, outside=int(10 * MIB), size=100.0, parameters=int(50 * MIB))
    # 50 MiB at ten samples, and half as much again for what has not been seen.
    assert fitting(known, "")["fits"] == int((900 - 50) / (5 * 1.5))
    partial = footprint(Trail({"memory": 100 * MIB}), 400, blocks=blocks, size=100.0)
    assert fitting(partial, "", 1800 * MIB)["at_most"] == 200
    half = replace(partial, reached=0.5)
    assert fitting(half, "", 1800 * MIB) == {
        "samples": 400,
        "fits": None,
        "by": "unknown: no pass came to its end",
        "at_most": 100,
        "reached": 0.5,
    }
    said = advice(evidence(half, "", 1800 * MIB))
    assert "hardly more than 100 samples (of 400), by what it had taken when 50% of the modules had run; try half" in said
    assert "at_most" not in fitting(partial, "")


def test_a_batch_that_should_fit_is_not_blamed() -> None:
    trail = followed((samples * 10.0, need(samples)) for samples in (8, 16, 32))
    found = fitting(footprint(trail, 20), "")
    assert found["fits"] is None
    assert found["by"].endswith("by that this batch fits, so it is something else that took the memory")


def test_a_relation_that_makes_no_sense_is_none() -> None:
    assert (
        line(footprint(followed([(80.0, 400 * MIB), (40.0, 500 * MIB), (20.0, 600 * MIB)]), 8), "") is not None
    )  # one size instead
    assert line(footprint(Trail(), 8), "") is None
    assert fitting(Footprint(Trail(), {}), "")["fits"] is None


def test_peaks_are_those_of_the_largest_batch_since_they_were_looked_up() -> None:
    trail = Trail({"memory_peak": 10.0})
    first, second = {"memory_peak": 20.0}, {"memory_peak": 20.0, "memory": 1.0}
    trail.add(0, 5.0, first)
    trail.add(1, 7.0, first)  # the same figures still
    trail.add(2, 6.0, second)  # new ones, but no peak
    trail.add(3, 3.0, {"memory_peak": 30.0})
    assert trail.peaks("") == {5.0: 20.0, 3.0: 30.0}


def test_devices_have_figures_of_their_own() -> None:
    trail = Trail({"device_memory": 1 * MIB, "device_memory_peak": 1 * MIB})
    for samples in (1, 2, 4):
        figures = {"device_memory": 10 * MIB, "device_memory_peak": need(samples), "device_memory_free": 990 * MIB, "memory": 5.0}
        trail.add(samples, samples * 10.0, figures)
    assert fitting(footprint(trail, 400), "device_")["fits"] == int(850 / 5 / 1.15)
    assert trail.memory("device_")[0] == [1, 10 * MIB, 990 * MIB]


def test_growth_is_told_with_its_beginning() -> None:
    def leaks(step: int) -> float:
        return (100 + max(0, step - 200) * 1.5) * MIB

    trail = followed([(80.0, need(8))] * 600, used=leaks)
    growth = trail.growth("", 1000 * MIB)
    assert growth is not None
    assert growth[0] == pytest.approx(1.5 * MIB, rel=0.1)
    assert 180 <= growth[1] <= 260
    found = evidence(footprint(trail, 8), "", 10 * MIB)
    assert found["growth"]["since"] == growth[1]
    assert advice(found).startswith("Memory in use between steps has grown by 1.5 MiB a step since step ")


@pytest.mark.parametrize(
    "used",
    [
        lambda step: 100 * MIB,
        lambda step: (100 + 20 * math.sin(step)) * MIB,
        lambda step: (100 if step < 3 else 300) * MIB,  # the optimizer's states
        lambda step: (100 + 200 * (1 - math.exp(-step / 5))) * MIB,
        lambda step: (100 + (step % 100)) * MIB,  # cleared every hundred steps
    ],
)
def test_what_does_not_go_on_growing_is_no_growth(used: Callable[[int], float]) -> None:
    assert followed([(80.0, need(8))] * 600, used=used).growth("", 1000 * MIB) is None


def test_a_long_run_costs_no_more() -> None:
    trail = followed([(float(step % 5000), 1.0) for step in range(20_000)])
    assert len(trail.recent) == STEPS and len(trail._marks) <= MARKS + 1
    assert trail._marks[0][0] == 0 and trail._marks[-1][0] > 18_000


def test_blocks_are_checkpointed_as_far_as_it_takes() -> None:
    blocks = [Held("", "a", 50, 40), Held("", "b", 90, 10), Held("", "c", 70, 60), Held("", "d", 5, 0)]
    assert [held.block for held in checkpoints(blocks, 70)[0]] == ["c", "a"]
    assert checkpoints(blocks, 0) == ([], True)
    chosen, enough = checkpoints(blocks, 1000)
    assert [held.block for held in chosen] == ["c", "a", "b"] and not enough


def test_the_evidence_is_json_and_ranked_and_of_the_batch_that_failed() -> None:
    blocks = [Held("", f"h.{i}", int((i + 1) * MIB), int(i * MIB)) for i in range(150)]
    trail = followed((samples * 10.0, need(samples)) for samples in (8, 16, 32))
    found = evidence(footprint(trail, 400, blocks=blocks, outside=int(MIB), size=2000.0), "", asked=950 * MIB)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(found["blocks"]) == BLOCKS and found["blocks_left_out"] == 50
    assert found["blocks"][0] == {
        "model": "",
        "block": "h.149",
        "activation_bytes": 300 * MIB,
        "checkpoint_saves_bytes": 298 * MIB,
    }
    assert found["checkpointing"]["enough"] and found["checkpointing"]["blocks"][0] == "h.149"
    assert found["checkpointing"]["lacking_bytes"] == pytest.approx((150 + 400 * 5 - 1000) * MIB, rel=0.01)
    assert "Checkpointing h.149, " in advice(found)
    assert found["free_bytes"] == 900 * MIB and found["in_use_bytes"] == 100 * MIB


def test_a_process_that_the_kernel_killed() -> None:
    incident = killed(footprint(followed([(80.0, need(8))] * 3), 8), 2, 5.0, "the group counts 1 more", True)
    assert (incident.kind, incident.id, incident.runbook) == ("out_of_memory", "out_of_memory-2", "out-of-memory")
    assert incident.summary == "The kernel killed the process for want of main memory: the group counts 1 more."
    assert incident.evidence["seen"] == "the group counts 1 more"
    assert ", as it seems, " in killed(footprint(Trail(), 0), None, 5.0, "a hint", False).summary


def test_where_a_whole_pass_is_little_beside_what_is_lacking_the_line_is_to_blame() -> None:
    trail = Trail({"memory": 1e9, "memory_peak": 1e9})
    for step, samples in enumerate((10.0, 20.0, 30.0)):
        trail.add(step, samples, {"memory": 1e9, "memory_peak": 1e9 + 1e5 * samples, "memory_free": 4e9})
    known = Footprint(
        trail, {"memory": 1e9, "memory_free": 4e9}, [Held("", "h.0", 1 << 20, 1 << 19)], outside=0, size=30.0, samples=3, batch=30.0
    )
    found = evidence(known, "", asked=32e9)
    assert "Neither checkpoints nor a smaller batch" in advice(found) and "torch.utils.checkpoint" not in advice(found)
    assert "Checkpointing h.0" in advice(evidence(known, "", asked=4e9 + 2e5))
