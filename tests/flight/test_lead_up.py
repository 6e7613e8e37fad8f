"""Since when it was coming: flights with a run-up of known beginning."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from math import exp, log
from pathlib import Path

import numpy as np
import pytest

import resmon
from resmon.flight.frames import Flight
from resmon.flight.lead_up import LEAST, WINDOW, lead_up
from resmon.records import RunEnd, ScalarRecord
from tests import synthetic
from tests.flight.flights import begin

SITES = synthetic.sites(4)
Shape = Callable[[int], dict[tuple[str, int], float]]


def flight(folder: Path, steps: int, shape: Shape, absent: Callable[[int], list[tuple[str, int]]] = lambda _: []) -> Flight:
    """A run whose gradient squares are about 4 for every block, but where `shape` says otherwise."""
    random = np.random.default_rng(5)
    rank, writer = begin(folder)
    training = synthetic.Training(SITES)
    writer.sites(SITES)
    for step in range(steps):
        usual = {("gradient_square", i): 4.0 * exp(random.normal(0, 0.2)) for i in range(len(SITES))}
        record = training.step(values=usual | shape(step), absent=absent(step))
        writer.step(record)
        writer.scalars(ScalarRecord(step, record.time, {"loss": 1.0 + random.normal(0, 0.01)}))
    writer.end(RunEnd("nonfinite", 1.0, steps - 1))
    return resmon.load(rank)


def rising(block: int, since: int, rate: float = 1.6) -> Shape:
    return lambda step: {("gradient_square", block): 4.0 * 30 * rate ** (step - since)} if step >= since else {}


def test_the_block_that_left_first_and_since_when(tmp_path: Path) -> None:
    def shape(step: int) -> dict[tuple[str, int], float]:
        return rising(2, 280)(step) | rising(1, 290)(step)

    found = lead_up(flight(tmp_path, 300, shape), 299)
    assert [(each.block, each.sign, each.since) for each in found.departures] == [
        ("h.2", "gradient_norm", 280),
        ("h.1", "gradient_norm", 290),
    ]
    assert found.since == 280
    first = found.departures[0]
    assert first.last == pytest.approx((4.0 * 30 * 1.6**19) ** 0.5)
    assert first.median == pytest.approx(2.0, rel=0.1)
    assert first.factor == pytest.approx(first.last / first.median)
    assert found.sentence.startswith("Block h.2's gradient norm left its usual range (")
    assert "since step 280, 19 steps before, and was" in found.sentence
    assert f"{first.factor:.3g} times what is usual; then came h.1." in found.sentence
    assert found.steps == tuple(range(300 - WINDOW, 300))
    assert found.blocks["step"].unique().tolist() == list(found.steps)
    assert len(found.blocks) == WINDOW * len(SITES)


def test_against_a_plain_computation(tmp_path: Path) -> None:
    loaded = flight(tmp_path, 400, rising(3, 371, 1.1))
    found = lead_up(loaded, 399)
    norms = loaded.blocks().query("block == 'h.3'")["gradient_norm"].tolist()
    known = [log(norm) for norm in norms[: 400 - WINDOW]]
    middle = statistics.median(known)
    reach = max(6 * 1.4826 * statistics.median(abs(each - middle) for each in known), log(2))
    since = 399
    while abs(log(norms[since - 1]) - middle) > reach:
        since -= 1
    (departure,) = found.departures
    assert departure.since == since == 371
    assert (departure.low, departure.high) == pytest.approx((exp(middle - reach), exp(middle + reach)))


def test_it_came_at_once(tmp_path: Path) -> None:
    found = lead_up(flight(tmp_path, 200, rising(0, 199)), 199)
    assert found.since == 199
    assert "at step 199 itself, not before" in found.sentence


def test_nothing_was_coming(tmp_path: Path) -> None:
    found = lead_up(flight(tmp_path, 200, lambda _: {}), 199)
    assert (found.since, found.departures) == (None, ())
    assert found.sentence == "Nothing was coming: every block was within its usual range until step 199."


def test_what_came_back_was_not_coming(tmp_path: Path) -> None:
    def spike(step: int) -> dict[tuple[str, int], float]:
        return {("gradient_square", 1): 1e6} if 180 <= step < 190 else {}

    assert lead_up(flight(tmp_path, 200, spike), 199).departures == ()


def test_only_the_unbroken_run_counts(tmp_path: Path) -> None:
    def shape(step: int) -> dict[tuple[str, int], float]:
        return {} if step == 190 else rising(1, 180)(step)

    assert lead_up(flight(tmp_path, 200, shape), 199).since == 191


def test_a_value_that_is_absent_breaks_nothing(tmp_path: Path) -> None:
    loaded = flight(tmp_path, 200, rising(1, 180), lambda step: [("gradient_square", 1)] if step in (185, 199) else [])
    (departure,) = lead_up(loaded, 199).departures
    assert (departure.since, departure.last_step) == (180, 198)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_outside(value: float, tmp_path: Path) -> None:
    loaded = flight(tmp_path, 200, lambda step: {("gradient_square", 2): value} if step >= 198 else {})
    found = lead_up(loaded, 199)
    assert {(each.block, each.since) for each in found.departures if each.block} == {("h.2", 198)}
    assert "and was no finite number at step 199" in found.sentence


def test_a_value_that_falls(tmp_path: Path) -> None:
    loaded = flight(tmp_path, 200, lambda step: {("gradient_square", 0): 1e-9} if step >= 150 else {})
    assert [(each.block, each.since) for each in lead_up(loaded, 199).departures] == [("h.0", 150)]


def test_the_loss_is_of_the_whole_run(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(SITES)
    writer.sites(SITES)
    for step in range(200):
        record = training.step()
        writer.step(record)
        writer.scalars(ScalarRecord(step, record.time, {"loss": 1.0 if step < 170 else 2.0 ** (step - 168)}))
    writer.end(RunEnd("failed", 1.0, 199))
    found = lead_up(resmon.load(folder), 199)
    assert [(each.block, each.sign, each.since) for each in found.departures] == [("", "loss", 170)]
    assert found.sentence.startswith("The loss left its usual range")


def test_before_the_incidents_own_step_and_at_the_end(tmp_path: Path) -> None:
    loaded = flight(tmp_path, 300, rising(2, 250))
    assert lead_up(loaded, 240).departures == ()
    assert lead_up(loaded, 260).since == 250
    assert lead_up(loaded, None).since == 250
    assert lead_up(loaded, 5000).step == 299


@pytest.mark.parametrize("steps", [0, 1, LEAST])
def test_too_few_steps_judge_nothing(steps: int, tmp_path: Path) -> None:
    found = lead_up(flight(tmp_path, steps, rising(0, 0)), steps - 1)
    assert found.departures == ()
    assert found.usual < LEAST and "cannot be told" in found.sentence
    assert len(found.blocks) == len(found.steps) * len(SITES)


def test_a_short_run_gives_up_a_part_of_the_window(tmp_path: Path) -> None:
    found = lead_up(flight(tmp_path, 40, rising(1, 37)), 39)
    assert found.usual == LEAST
    assert found.since == 37
