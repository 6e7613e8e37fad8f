"""For each detector a training of which it must say something; the contract's tests run over all of them."""

from __future__ import annotations

from collections.abc import Callable

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


STIMULI: dict[str, Callable[[], list[Item]]] = {
    function.__name__: function
    for function in (
        nonfinite,
        loss_divergence,
        overfitting,
        dead_branch,
        frozen_block,
        collapsed_skip,
        growing_residual,
        straying_block,
        stochastic_depth,
        drifting_inputs,
        drift,
    )
}
