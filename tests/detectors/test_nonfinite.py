from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from resmon.detectors.nonfinite import CALM, SEARCH, NonFinite
from resmon.records import Finding, ScalarRecord, StepRecord
from tests.synthetic import Training, sites

NAN, INF = float("nan"), float("inf")


class Watched:
    """A detector and the training that it watches."""

    def __init__(self, training: Training | None = None) -> None:
        self.training = training or Training(sites(5))
        self.detector = NonFinite()

    def step(self, **what: object) -> list[Finding]:
        return self.take(self.training.step(**what))  # type: ignore[arg-type]

    def take(self, record: StepRecord) -> list[Finding]:
        return list(self.detector.step(record, self.training.sites))

    def steps(self, count: int, **what: object) -> list[Finding]:
        return [event for _ in range(count) for event in self.step(**what)]

    def loss(self, value: float, step: int | None = None) -> list[Finding]:
        at = self.training.steps - 1 if step is None else step
        return list(self.detector.scalars(ScalarRecord(at, self.training.now, {"loss": value})))


def only(events: Iterable[Finding]) -> Finding:
    (event,) = events
    return event


def test_a_healthy_run_brings_nothing() -> None:
    watched = Watched()
    assert watched.steps(100) == []
    assert watched.loss(1.0) == []
    assert list(watched.detector.end(99, 0.0)) == []


def test_forward_names_the_first_site_and_its_followers() -> None:
    watched = Watched()
    watched.steps(10)
    finding = only(watched.step(forward=[2, 3, 4], backward=[0, 1, 2, 3, 4]))
    assert (finding.state, finding.kind, finding.severity, finding.block) == ("opened", "nonfinite", "page", "h.2")
    assert finding.opened_step == finding.step == 10
    assert finding.evidence["direction"] == "forward"
    assert finding.evidence["born_before"] is False
    assert finding.evidence["nonfinite_forward"] == 3
    assert finding.evidence["elements"] == 32
    assert finding.evidence["followers"] == ["h.0", "h.1", "h.3", "h.4"]
    assert "h.2 went non-finite first, at step 10" in finding.summary
    assert "3 of 32 elements" in finding.seen


def test_forward_says_that_it_was_born_before_the_block() -> None:
    watched = Watched()
    watched.steps(3)
    finding = only(watched.step(forward=[0, 1], values={("skip_square", 0): NAN}))
    assert finding.block == "h.0"
    assert finding.evidence["born_before"] is True
    assert "born before" in finding.summary


def test_backward_names_the_last_site() -> None:
    watched = Watched()
    watched.steps(3)
    finding = only(watched.step(backward=[0, 1, 2], values={("gradient_square", i): NAN for i in (0, 1, 2, 3)}))
    assert finding.block == "h.2"
    assert finding.evidence["direction"] == "backward"
    assert "h.3, whose output gradient was still finite" in finding.summary


def test_backward_from_the_loss() -> None:
    finding = only(Watched().step(backward=range(5)))
    assert finding.block == "h.4"
    assert "the head or the loss" in finding.summary


def test_parameter_gradients_alone_name_the_last_site() -> None:
    finding = only(Watched().step(values={("gradient_square", 1): INF, ("gradient_square", 3): NAN}))
    assert finding.block == "h.3"
    assert finding.evidence["direction"] == "parameter_gradients"


SQUARES = ["skip_square", "branch_square", "output_square", "gradient_square", "output_gradient_square"]


@pytest.mark.parametrize("value", ["skip_square", "branch_square", "output_square", "output_gradient_square"])
def test_a_norm_that_overflowed_on_finite_elements_is_no_fault(value: str) -> None:
    assert Watched().step(values={(value, 1): INF}) == []


@pytest.mark.parametrize("value", SQUARES)
def test_any_nan_square_is_one(value: str) -> None:
    assert only(Watched().step(values={(value, 1): NAN})).block == "h.1"


@pytest.mark.parametrize("value", SQUARES)
def test_what_is_absent_says_nothing(value: str) -> None:
    assert Watched().step(values={(value, 1): NAN}, absent=[(value, 1)]) == []


def test_the_evidence_is_the_last_finite_step_against_its_median() -> None:
    watched = Watched()
    usual = {("skip_square", 2): 32 * 4.0, ("branch_square", 2): 32 * 1.0, ("gradient_square", 2): 9.0}
    watched.steps(60, values=usual)
    watched.step(values={**usual, ("branch_square", 2): 32 * 144.0})
    finding = only(watched.step(forward=[2]))
    assert finding.evidence["last_finite_step"] == 60
    assert finding.evidence["last_finite"]["branch_skip_ratio"] == pytest.approx(6.0)
    assert finding.evidence["last_finite_over_median"]["branch_skip_ratio"] == pytest.approx(12.0)
    assert finding.evidence["last_finite_over_median"]["gradient_norm"] == pytest.approx(1.0)
    assert "branch/skip 6 (12 times its median)" in finding.seen


def test_a_block_that_was_never_finite_has_no_such_evidence() -> None:
    finding = only(Watched().step(forward=[0]))
    assert finding.evidence["last_finite_step"] is None
    assert "no finite step of it is known" in finding.seen


def test_it_is_updated_once_for_each_spreading_and_closed_when_calm() -> None:
    watched = Watched()
    opened = only(watched.step(forward=[2]))
    assert watched.step(forward=[2]) == []
    updated = only(watched.step(forward=[2, 3]))
    assert (updated.state, updated.id, updated.evidence["blocks"]) == ("updated", opened.id, ["h.2", "h.3"])
    assert watched.steps(5, forward=[2, 3]) == []
    assert watched.steps(CALM - 1) == []
    assert watched.step(forward=[3]) == []  # not over yet
    assert watched.steps(CALM - 1) == []
    closed = only(watched.step())
    assert (closed.state, closed.id, closed.evidence["nonfinite_steps"]) == ("closed", opened.id, 9)
    assert only(watched.step(forward=[2])).id != opened.id


def test_the_end_closes_what_is_open() -> None:
    watched = Watched()
    opened = only(watched.step(forward=[2]))
    closed = only(watched.detector.end(7, 1.0))
    assert (closed.state, closed.id, closed.step) == ("closed", opened.id, 7)
    assert list(watched.detector.end(8, 2.0)) == []


def test_each_model_has_its_own_finding() -> None:
    watched = Watched(Training((*sites(2, "generator"), *sites(2, "critic"))))
    events = watched.step(forward=[1, 2])
    assert [(event.model, event.block) for event in events] == [("generator", "h.1"), ("critic", "h.0")]
    assert len({event.id for event in events}) == 2
    assert "of generator" in events[0].summary


def test_steps_of_the_other_model_do_not_calm() -> None:
    watched = Watched(Training((*sites(1, "generator"), *sites(1, "critic"))))
    watched.step(forward=[0])
    record = watched.training.step()
    counts, present = record.counts.copy(), record.blocks_present.copy()
    counts[:, 0], present[:, 0] = 0, False
    for _ in range(2 * CALM):
        record = replace(record, step=record.step + 1, counts=counts, blocks_present=present)
        assert watched.take(record) == []


def test_what_is_remembered_stays_with_its_site_when_sites_appear() -> None:
    few, more = sites(2), (*sites(1), replace(sites(1)[0], name="new"), sites(2)[1])
    detector, training = NonFinite(), Training(few)
    for _ in range(3):
        record = training.step(values={("branch_square", 1): 32 * 49.0})
        assert not list(detector.step(record, few))
    grown = Training(more)
    grown.steps = 3
    finding = only(detector.step(grown.step(forward=[2]), more))
    assert finding.block == "h.1"
    assert finding.evidence["last_finite_step"] == 2
    assert finding.evidence["last_finite"]["branch_rms"] == pytest.approx(7.0)


def test_a_nonfinite_loss_that_no_block_explains() -> None:
    watched = Watched()
    watched.steps(3)
    opened = only(watched.loss(INF))
    assert (opened.kind, opened.block, opened.opened_step) == ("nonfinite_loss", "", 2)
    for _ in range(CALM):
        watched.step()
        events = watched.loss(1.0)
    closed = only(events)
    assert (closed.state, closed.id) == ("closed", opened.id)


def test_a_nonfinite_loss_that_a_block_explains_is_no_second_finding() -> None:
    watched = Watched()
    assert only(watched.step(forward=[1])).kind == "nonfinite"
    assert watched.loss(NAN) == []


def test_a_loss_that_comes_before_its_step_waits_for_it() -> None:
    watched = Watched()
    watched.step()
    assert watched.loss(NAN, step=1) == []
    assert only(watched.step(forward=[1])).kind == "nonfinite"
    assert watched.loss(NAN, step=2) == []
    assert [event.kind for event in watched.step()] == ["nonfinite_loss"]


def test_a_loss_whose_step_never_came_is_judged_at_the_end() -> None:
    watched = Watched()
    assert watched.loss(NAN, step=4) == []
    assert [(event.kind, event.state) for event in watched.detector.end(4, 1.0)] == [
        ("nonfinite_loss", "opened"),
        ("nonfinite_loss", "closed"),
    ]


OVERFLOW = {("gradient_square", i): INF for i in range(3)}


def search(watched: Watched, skips: int, scale: float) -> list[Finding]:
    """A scaler halves its scale, step by step, and every step is skipped: the gradients of the first blocks are infinite."""
    events: list[Finding] = []
    for i in range(skips):
        events += watched.step(backward=[0, 1], values=OVERFLOW, skipped=True, scale=scale / 2**i)
    return events


@pytest.mark.parametrize("scale", [2.0**16, 2.0**31])
def test_the_search_for_a_scale_is_healthy(scale: float) -> None:
    watched = Watched()
    steps = int(np.log2(scale)) + 1  # down to a scale of 1
    assert search(watched, steps, scale) == []
    assert watched.steps(100) == []
    assert search(watched, 3, 8.0) == []  # the scale has grown, and was too large again


def test_isolated_skips_bring_nothing() -> None:
    watched = Watched()
    for _ in range(50):
        assert watched.steps(7) == []
        assert search(watched, 1, 1024.0) == []
    assert list(watched.detector.end(500, 0.0)) == []


def test_a_search_that_goes_below_one_finds_nothing() -> None:
    watched = Watched()
    assert search(watched, 17, 2.0**16) == []
    finding = only(search(watched, 1, 0.5))
    assert (finding.kind, finding.block, finding.opened_step) == ("nonfinite", "h.1", 17)
    assert search(watched, 30, 0.25) == []  # it lasts, and is one finding
    assert [event.state for event in watched.detector.end(47, 0.0)] == ["closed"]


def test_skipping_at_a_scale_that_does_not_fall_is_no_search_for_ever() -> None:
    watched = Watched()
    events = [watched.step(backward=[1], skipped=True, scale=1024.0) for _ in range(SEARCH + 1)]
    assert all(event == [] for event in events[:-1])
    assert only(events[-1]).block == "h.1"


def test_skipping_for_ever_because_of_other_parameters_names_no_block() -> None:
    watched = Watched()
    watched.steps(3)
    events = [watched.step(skipped=True, scale=2.0 ** (16 - i)) for i in range(40)]
    opened = only(event for at in events for event in at)
    assert (opened.kind, opened.block, opened.opened_step) == ("nonfinite", "", 3 + 17)
    assert "other parameters" in opened.summary
    assert watched.steps(CALM - 1) == []
    closed = only(watched.step())
    assert (closed.id, closed.state, closed.evidence["nonfinite_steps"]) == (opened.id, "closed", 40 - 17)


def test_a_forward_pass_that_is_not_finite_is_a_fault_though_the_step_is_skipped() -> None:
    watched = Watched()
    finding = only(watched.step(forward=[2, 3, 4], backward=range(5), skipped=True, scale=2.0**16))
    assert (finding.block, finding.evidence["direction"]) == ("h.2", "forward")


def test_a_loss_that_is_not_finite_is_a_fault_though_the_step_is_skipped() -> None:
    watched = Watched()
    assert watched.step(backward=range(5), skipped=True) == []
    assert only(watched.loss(NAN)).kind == "nonfinite_loss"


def test_what_is_open_goes_on_through_skipped_steps() -> None:
    watched = Watched()
    opened = only(watched.step(forward=[2]))
    watched.steps(CALM - 1)
    assert search(watched, 1, 1024.0)[0].id == opened.id  # it has reached the first blocks, and is not over
    assert watched.steps(CALM - 1) == []
    assert only(watched.step()).evidence["nonfinite_steps"] == 2
