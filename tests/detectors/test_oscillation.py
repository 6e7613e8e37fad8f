from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from resmon.detectors.oscillation import STRETCH, Oscillation, swings
from resmon.records import Finding, Floats
from tests import failing
from tests.detectors.course import course, recorded, said

STEP = np.arange(1200)


def noise(seed: int = 0, size: float = 0.05) -> Floats:
    return size * np.random.default_rng(seed).normal(0, 1, len(STEP))


def found(log_loss: Floats, **more: Floats) -> list[Finding]:
    return said(Oscillation(), course(len(log_loss), 2, scalars={"loss": np.exp(log_loss)}, **more), end=True)


@pytest.mark.parametrize("period", [2.0, 3.0, 5.0, 12.8])
def test_swings_of_any_period(period: float) -> None:
    swing = np.where((STEP >= 512) & (STEP < 768), 0.5 * np.cos(2 * np.pi * STEP / period), 0.0)
    opened, closed = found(noise() + swing)
    assert (opened.kind, opened.severity, opened.block) == ("oscillation", "ticket", "")
    assert opened.opened_step == 512 + 2 * STRETCH - 1 and opened.evidence["since"] == 512
    assert opened.evidence["period"] == pytest.approx(period, rel=0.1)
    assert closed.state == "closed" and closed.step == 768 + 2 * STRETCH - 1


def test_swings_of_one_block() -> None:
    branch = np.full((1200, 2), 0.3)
    branch[512:, 1] *= 1 + 0.5 * (-1.0) ** STEP[512:]
    opened, closed = found(noise(), branch_rms=branch)
    assert opened.block == "h.1" and closed.state == "closed"


@pytest.mark.parametrize("what", ["noise", "more noise", "as far as ever", "small", "a long wave", "a spike", "a step"])
def test_what_does_not_swing(what: str) -> None:
    extra = {
        "noise": 0 * STEP,
        "more noise": np.where(STEP < 512, 0.0, noise(1, 1.0)),
        "as far as ever": np.cos(2 * np.pi * STEP / 8),  # data in a fixed order
        "small": np.where(STEP < 512, 0.0, 0.06 * (-1.0) ** STEP),
        "a long wave": np.where(STEP < 512, 0.0, np.sin(2 * np.pi * STEP / 40)),
        "a spike": np.where(STEP % 512 == 500, 3.0, 0.0),
        "a step": np.where(STEP < 600, 0.0, 2.0),
    }[what]
    assert found(noise(size=0.02 if what == "small" else 0.05) + extra) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_against_scipys_periodogram(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(0, 1, (STRETCH, 3)).cumsum(axis=0) * random.uniform(0.1, 10)
    share, amplitude, deviation, period = swings(values)
    straight = signal.detrend(values, axis=0)
    frequency, power = signal.periodogram(straight, axis=0, detrend=False, scaling="spectrum")
    assert np.allclose(deviation, straight.std(axis=0)) and np.allclose(deviation**2, power.sum(axis=0))
    for i in range(3):
        place = 4 + int(np.argmax(power[4:, i]))
        near = power[place - 1 : place + 2, i].sum()
        assert share[i] == pytest.approx(near / power[:, i].sum()) and amplitude[i] == pytest.approx((2 * near) ** 0.5)
        assert period[i] == pytest.approx(1 / frequency[place])


def test_noise_has_no_period() -> None:
    share, *_ = swings(np.random.default_rng(0).normal(0, 1, (STRETCH, 20_000)))
    assert share.max() < 0.5  # a page's rule asks for 0.6, twice in a row


def test_a_gap_begins_a_stretch_anew() -> None:
    swing = noise() + np.where(STEP >= 512, 0.5 * (-1.0) ** STEP, 0.0)
    items = course(1200, 2, scalars={"loss": np.exp(swing)})
    columns, rest = items[0], items[1:]
    left = [item for item in rest if not 600 <= item.step < 640]  # type: ignore[union-attr]
    opened = said(Oscillation(), [columns, *left])[0]
    assert opened.opened_step == 640 + STRETCH - 1


def test_a_real_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    failing.oscillation(str(tmp_path))
    opened = said(Oscillation(), recorded(tmp_path / "oscillation"))[0]
    assert opened.evidence["period"] == 2 and 320 <= opened.opened_step < 460
