"""For each detector a training of which it must say something; the contract's tests run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isfunction

import numpy as np

from tests.detectors.course import Item, course


def nonfinite() -> list[Item]:
    broken = np.zeros((160, 6))
    broken[60:90, 2:] = 5
    return course(160, nonfinite_forward=broken)


def loss_divergence() -> list[Item]:
    return course(320, scalars={"loss": np.where(np.arange(320) < 200, 0.99 ** np.arange(320), 40.0)})


def overfitting() -> list[Item]:
    step = np.arange(640)
    validation = np.where(step % 10 == 9, 0.3 + 2 * np.exp(-step / 60) + 0.003 * np.maximum(0, step - 200), np.nan)
    return course(640, scalars={"loss": 0.02 + 2 * np.exp(-step / 100), "val_loss": validation})


def dead_branch() -> list[Item]:
    branch = np.full((500, 6), 0.3)
    branch[200:380, 3] = 0.0
    return course(500, branch_rms=branch)


def batch_norm() -> list[Item]:
    step = np.arange(800)[:, None]
    gap = np.where(step < 400, 0.15, 1.4) * np.exp(0.1 * np.random.default_rng(2).normal(0, 1, (800, 6)))
    gap[:, 0] = np.nan  # a block without batch norms
    variance = np.where((step > 200) & (step < 300), 1e9, 1.5) * np.ones((1, 6))
    collapsed = np.where((step > 350) & (np.arange(6) == 4), 0.5, 0.0)
    variance[600:, 5] = np.inf
    variance[:, 0] = collapsed[:, 0] = np.nan
    return course(800, norm_gap=np.where(np.isinf(variance), np.inf, gap), norm_variance=variance, norm_collapsed=collapsed)


def exploding_gradients() -> list[Item]:
    gradient = np.full((640, 6), 0.1)
    gradient[400:600, :4] = 5.0
    return course(640, gradient_norm=gradient, scalars={"loss": 1.0})


def vanishing_gradients() -> list[Item]:
    gradient = np.full((900, 6), 0.01)
    gradient[200:840, :3] = 1e-6
    return course(900, output_gradient_norm=gradient, scalars={"loss": 1.0})


def hidden_explosion() -> list[Item]:
    square = np.where((np.arange(800) > 400) & (np.arange(800) < 700), 1e5, 4.0)
    return course(800, run={"gradient_square": square, "stepped_square": 1.0}, scalars={"loss": 1.0})


def rising_learning_rate() -> list[Item]:
    step = np.arange(480)
    rate = 1e-3 * np.where(step < 240, 1.0, 1.02 ** (step - 240))
    random = np.random.default_rng(0)
    loss = np.where(step < 320, 0.5, 0.5 * 1.02 ** (step - 320)) * np.exp(0.02 * random.normal(0, 1, 480))
    return course(480, run={"learning_rate": rate}, scalars={"loss": loss})


def spike_warning() -> list[Item]:
    branch = np.full((640, 6), 0.6)
    branch[480:560, 2] = 0.6 * 1.02 ** np.arange(80)
    return course(640, branch_rms=branch, scalars={"loss": 1.0})


def oscillation() -> list[Item]:
    step = np.arange(700)
    swing = np.where((step > 320) & (step < 560), 0.5, 0.0) * np.where(step % 2, 1, -1)
    return course(700, scalars={"loss": np.exp(swing + 0.02 * np.random.default_rng(0).normal(0, 1, 700))})


def plateau() -> list[Item]:
    step = np.arange(2600)
    return course(2600, 1, scalars={"loss": np.where(step < 2500, np.maximum(0.5, 0.99**step), 0.3)})


def frozen_block() -> list[Item]:
    gradient = np.full((500, 6), 0.1)
    gradient[200:380, 3] = np.nan
    return course(500, gradient_norm=gradient)


def collapsed_skip() -> list[Item]:
    branch = np.full((500, 6), 0.3)
    branch[200:380, 3] = 40.0
    return course(500, branch_rms=branch)


def growing_residual() -> list[Item]:
    grown = 1.05 * 1.012 ** np.maximum(0, np.arange(1200) - 500)
    return course(1200, output_rms=np.minimum(grown, 2000.0)[:, None] * np.ones(6))


def straying_block() -> list[Item]:
    branch = np.full((700, 6), 0.3)
    branch[450:600, 2] = 0.9
    return course(700, branch_rms=branch)


def stochastic_depth() -> list[Item]:
    rate = np.full((900, 6), 0.8)
    rate[750:, 4] = 1.0
    kept = np.random.default_rng(0).binomial(32, rate)
    return course(900, samples=32, kept=kept, kept_square=24.0)


def drifting_inputs() -> list[Item]:
    stream = np.ones((900, 6))
    stream[600:, 0] = 1.5
    return course(900, skip_rms=stream)


def drift() -> list[Item]:
    magnitude = np.zeros((1000, 6))
    magnitude[750:, 4:] = 1.0
    return course(1000, magnitude=magnitude)


def change() -> list[Item]:
    branch = np.full((1400, 6), 0.3)
    branch[1200:, 3] = 0.6
    return course(1400, branch_rms=branch)


STIMULI: dict[str, Callable[[], list[Item]]] = {
    name: each for name, each in list(globals().items()) if isfunction(each) and each.__module__ == __name__
}
