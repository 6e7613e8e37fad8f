"""The tests of capture once more, with numbers that are computed as on an accelerator and fetched; and what only happens so."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from resmon.capture.host.fetch import Fetch
from resmon.capture.loop import outbox
from tests.capture import models
from tests.capture.gradients.test_backwards import *  # noqa: F403
from tests.capture.gradients.test_clipping import *  # noqa: F403
from tests.capture.gradients.test_reader import *  # noqa: F403
from tests.capture.gradients.test_scaler import *  # noqa: F403
from tests.capture.loop.test_session import *  # noqa: F403
from tests.capture.loop.test_session import Watched, assert_operands
from tests.capture.loops import assert_gradients, network, norms, watch

pytestmark = pytest.mark.usefixtures("elsewhere")

# Those that look inside of what is done on the CPU, and one whose process is not told to take main memory for an accelerator.
del test_a_fault_inside_a_probe_never_reaches_the_loop  # noqa: F821
del test_a_compiled_step  # noqa: F821
del test_the_wrappers_are_there_only_while_somebody_watches  # noqa: F821
del test_parameters_that_were_replaced_are_known_from_the_next_trace_on  # noqa: F821

# What is on an accelerator is not taken back (docs/limits.md).
del test_a_pass_that_failed_and_is_done_again_with_less_does_not_count  # noqa: F821
del test_a_pass_whose_backward_failed_and_that_is_done_again_with_less_does_not_count  # noqa: F821


class Device:
    """Stands for a device that is behind the host: nothing arrives before `catch_up`, and a lost one answers with errors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived: set[int] = set()
        self.sent: list[Fetch] = []
        send = Fetch.send

        def sent(fetch: Fetch) -> Fetch:
            self.sent.append(fetch)
            return send(fetch)

        monkeypatch.setattr(Fetch, "send", sent)
        monkeypatch.setattr(Fetch, "has_arrived", lambda fetch: fetch.failed or id(fetch) in self.arrived)

    def catch_up(self) -> None:
        self.arrived |= {id(fetch) for fetch in self.sent}

    def fail(self) -> None:
        for fetch in self.sent:
            fetch.failed = True


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def test_records_come_when_their_numbers_do_and_in_order(device: Device) -> None:
    watched = Watched(models.mixed())
    kept = []
    for i in range(3):
        watched.step(models.images(4, seed=i))
        watched.session.log({"loss": torch.tensor(float(i))})
        kept.append(models.kept(watched.model))
    assert watched.sink.steps == [] and watched.sink.logged == []
    device.catch_up()
    watched.step(models.images(4, seed=3))  # the next pass looks after what has arrived meanwhile
    assert [record.step for record in watched.sink.steps] == [0, 1, 2]
    assert [(record.step, record.values["loss"]) for record in watched.sink.logged] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    for record, operands in zip(watched.sink.steps, kept, strict=True):
        assert_operands(record, operands)
        assert record.steps_total == record.step + 1
    assert watched.sink.steps[2].magnitude_buckets.sum() == 3 * watched.sink.steps[0].magnitude_buckets.sum()


def test_the_end_of_a_run_waits_for_what_is_on_its_way(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(fetch: Fetch, seconds: float) -> bool:
        assert seconds == outbox.PATIENCE
        device.catch_up()
        return True

    monkeypatch.setattr(Fetch, "wait", wait)
    watched = Watched(models.mixed())
    watched.step(models.images(4))
    watched.session.finish()
    assert_operands(watched.sink.steps[0], models.kept(watched.model))


def test_a_device_that_never_answers_is_not_waited_for_for_ever(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "PATIENCE", 0.05)
    monkeypatch.setattr("resmon.capture.loop.session.PATIENCE", 0.05)
    watched = Watched(models.mixed())
    for i in range(2):
        watched.step(models.images(4, seed=i))
    watched.session.finish()
    assert [record.step for record in watched.sink.steps] == [0, 1]  # what the host knows of them
    assert watched.sink.steps[1].steps_total == 2
    assert not watched.sink.steps[1].blocks_present.any()
    assert watched.sink.steps[1].run_value("gradient_square") is None


def test_a_device_that_failed_leaves_what_the_host_knows(device: Device) -> None:
    watched = Watched(models.mixed())
    watched.step(models.images(4))
    device.catch_up()
    watched.step(models.images(4, seed=1))
    device.fail()
    watched.session.finish()
    first, second = watched.sink.steps
    assert first.blocks_present[:3].all() and first.errors_total == 0
    assert not second.blocks_present.any() and second.run_value("duration") is not None


def test_sites_that_appear_while_records_are_on_their_way(device: Device) -> None:
    """The records before are of the sites before, also for whoever is given them."""
    watched = Watched(nn.Sequential(models.PreActivation(4), models.PreActivation(4)))
    watched.step(torch.randn(2, 4, 6, 6))
    watched.model.append(models.PreActivation(4))
    watched.step(torch.randn(2, 4, 6, 6))
    assert len(watched.session.sites) == 3 and watched.sink.steps == []
    device.catch_up()
    watched.session.finish()
    assert [record.magnitude_buckets.sum(axis=1).tolist() for record in watched.sink.steps] == [[288, 288], [576, 576, 288]]
    assert len(watched.sink.now) == 3


def test_what_is_not_finite_is_flagged_at_once_and_counted_from_the_next_step_on() -> None:
    watched = Watched(models.mixed(), lr=0.0)
    watched.step(models.images(4))
    bad = models.images(4)
    bad[1] = math.inf  # one image of four
    first, second = (watched.step(bad) for _ in range(2))
    last = watched.step(models.images(4))
    assert first is not None and second is not None and last is not None
    forward = [record.counts[1] for record in (first, second, last)]
    assert forward[0][0] == 1 and forward[1][0] > 1
    assert (forward[0] > 0).tolist() == (forward[1] > 0).tolist()


@pytest.mark.parametrize("large", [1e25, 1e-25])
def test_sums_beyond_float32_are_no_faults(large: float) -> None:
    model = network()
    session, sink = watch(model, torch.optim.SGD(model.parameters(), lr=0.0))
    for _ in range(2):
        model.zero_grad()
        (model(torch.randn(3, 16)).sum() * large).backward()
        expected = norms(model)
        session._optimizers._optimizers[0].step()
        assert_gradients(sink.newest, sink.now, expected, rel=1e-4)
        assert not sink.newest.counts[1:].any()


@pytest.mark.parametrize(
    "target", ["probes.accelerator.norms", "probes.accelerator._histograms", "loop.drafts.parts", "host.fetch.Fetch.send"]
)
def test_a_fault_while_numbers_are_queued_or_fetched_never_reaches_the_loop(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("injected")

    model = models.mixed()
    watched, twin = Watched(model), Watched(copy.deepcopy(model), watched=False)
    for i in range(4):
        if i == 2:
            monkeypatch.setattr(f"resmon.capture.{target}", broken)
            if target == "loop.drafts.parts":
                monkeypatch.setattr("resmon.capture.loop.session.parts", broken)
        for each in (watched, twin):
            torch.manual_seed(i)
            each.step(models.images(4, seed=i))
    assert all(torch.equal(a, b) for a, b in zip(watched.model.parameters(), twin.model.parameters(), strict=True))
    assert len(watched.sink.steps) == 4
    assert watched.sink.steps[-1].errors_total >= 1 and not watched.sink.steps[-1].blocks_present.any()


def test_a_fault_while_a_logged_number_is_fetched_never_reaches_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(models.mixed())
    watched.step(models.images(4))

    def broken(fetch: Fetch) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(Fetch, "send", broken)
    watched.session.log({"loss": torch.tensor(1.0)})
    monkeypatch.undo()
    record = watched.step(models.images(4, seed=1))
    assert record is not None and record.errors_total == 1 and watched.sink.logged == []


def test_operands_of_two_dtypes() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            branch = self.f(x).bfloat16()
            self.kept = [(x.detach(), branch.detach())]
            return x + branch

    watched = Watched(nn.Sequential(nn.Linear(16, 16), Mixed()))
    for _ in range(2):
        record = watched.step(torch.randn(5, 16))
        assert record is not None
        assert_operands(record, watched.model[1].kept)
