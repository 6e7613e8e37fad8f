from __future__ import annotations

import numpy as np
import pytest

from resmon.detectors.loss_level import LossLevel
from resmon.detectors.window import Windows
from resmon.records import Columns, Floats, ScalarRecord, StepRecord
from tests.detectors.course import course


def levels(losses: dict[str, Floats]) -> list[LossLevel]:
    """The loss as it is after each window, told anew each time."""
    made: list[LossLevel] = []
    windows, seen, columns = Windows(), [], Columns()
    for item in course(len(next(iter(losses.values()))), 1, scalars=losses):
        if isinstance(item, Columns):
            columns = item
        elif isinstance(item, StepRecord):
            for window in windows.add(item, columns.sites):
                seen.append(window)
                level = LossLevel()
                for each in seen:
                    level.take(each)
                made.append(level)
        elif isinstance(item, ScalarRecord):
            windows.log(item)
    return made


def test_levels_are_medians_of_windows() -> None:
    loss = np.exp(np.random.default_rng(0).normal(0, 1, 330))
    found = levels({"loss": loss})
    logs = [np.log(np.median(loss[i : i + 16])) for i in range(0, 320, 16)]
    assert [each.now for each in found] == pytest.approx(logs)
    assert found[-1].usual == pytest.approx(np.median(logs[:-1]))
    assert found[-1].best == pytest.approx(min(logs[:-1])) and found[-1].first == pytest.approx(max(logs[:4]))
    assert found[-1].left == pytest.approx(np.exp(logs[-1] - max(logs[:4])))


def test_a_rise_is_explained_up_to_where_it_began() -> None:
    loss = np.repeat([1.0] * 4 + [0.01] * 10 + [0.1] * 2 + [5.0] * 3, 16)
    found = levels({"loss": loss})
    assert found[14].risen == pytest.approx(np.log(10)) and found[14].fallen == 0
    assert found[17].risen == pytest.approx(np.log(100))
    assert levels({"loss": np.repeat([1.0] * 8 + [0.01] * 3, 16)})[8].fallen == pytest.approx(np.log(100))


def test_what_has_no_logarithm_is_unknown() -> None:
    for losses in ({"loss": np.full(100, -1.0)}, {"val_loss": np.full(100, 1.0)}, {"loss": np.full(100, np.nan)}):
        level = levels(losses)[-1]
        assert np.isnan([level.now, level.left]).all() and level.risen == level.fallen == 0


def test_a_loss_of_zero_and_several_names() -> None:
    assert levels({"loss": np.zeros(100)})[-1].now == pytest.approx(np.log(1e-12))
    assert levels({"train_loss": np.full(100, 2.0), "val_loss": np.full(100, 9.0)})[-1].now == pytest.approx(np.log(2))
