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


def batch_norm() -> list[Item]:
    step = np.arange(800)[:, None]
    gap = np.where(step < 400, 0.15, 1.4) * np.exp(0.1 * np.random.default_rng(2).normal(0, 1, (800, 6)))
    gap[:, 0] = np.nan  # a block without batch norms
    variance = np.where((step > 200) & (step < 300), 1e9, 1.5) * np.ones((1, 6))
    collapsed = np.where((step > 350) & (np.arange(6) == 4), 0.5, 0.0)
    variance[600:, 5] = np.inf
    variance[:, 0] = collapsed[:, 0] = np.nan
    return course(800, norm_gap=np.where(np.isinf(variance), np.inf, gap), norm_variance=variance, norm_collapsed=collapsed)


STIMULI: dict[str, Callable[[], list[Item]]] = {
    function.__name__: function for function in (nonfinite, loss_divergence, overfitting, dead_branch, batch_norm)
}
