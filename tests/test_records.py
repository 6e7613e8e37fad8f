"""What a record says of itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resmon.records import StepRecord
from tests import synthetic


def with_norm(record: StepRecord, square: float) -> StepRecord:
    return replace(record, run=synthetic.run_values(gradient_square=square), run_present=np.ones_like(record.run_present))


@pytest.mark.parametrize(
    ("forward", "backward", "square", "skipped", "nonfinite"),
    [
        ((), (), 4.0, False, False),
        ((1,), (), 4.0, False, True),
        ((), (0,), 4.0, False, True),
        ((), (), np.inf, False, True),
        ((), (), np.nan, False, True),
        ((), (), 4.0, True, False),
        ((), (0, 1), np.inf, True, False),  # a scaler that looks for its scale
        ((0,), (0, 1), np.inf, True, True),  # whatever the scale
    ],
)
def test_a_step_is_nonfinite_where_something_watched_was(
    forward: tuple[int, ...], backward: tuple[int, ...], square: float, skipped: bool, nonfinite: bool
) -> None:
    record = synthetic.Training(synthetic.sites(2)).step(forward, backward, skipped=skipped)
    assert with_norm(record, square).is_nonfinite is nonfinite


def test_a_norm_that_nobody_knows_says_nothing() -> None:
    record = with_norm(synthetic.Training(synthetic.sites(2)).step(), np.nan)
    assert not replace(record, run_present=np.zeros_like(record.run_present)).is_nonfinite
