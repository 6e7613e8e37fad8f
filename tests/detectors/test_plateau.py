from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from resmon.detectors import Bank
from resmon.detectors.options import Tuned
from resmon.detectors.plateau import Plateau, PlateauOptions
from resmon.records import Columns, Finding, Floats, ScalarRecord
from tests import failing
from tests.detectors.course import Item, course, recorded, said

STEP = np.arange(4000)
QUICK = Tuned(PlateauOptions(enabled=True, windows=32))


def found(loss: Floats, norm: Floats | float = 1.0) -> list[Finding]:
    noisy = loss * np.exp(0.05 * np.random.default_rng(0).normal(0, 1, len(loss)))
    return said(Plateau(QUICK), course(len(loss), 1, run={"gradient_square": np.square(norm)}, scalars={"loss": noisy}))


def test_no_progress_though_there_are_gradients() -> None:
    loss = np.where(STEP < 3000, np.maximum(0.5, np.exp(-STEP / 400)), 0.3)
    opened, *_, closed = found(loss)
    assert (opened.kind, opened.severity) == ("plateau", "ticket")
    assert 300 + 32 * 16 < opened.opened_step < 1700
    assert closed.state == "closed" and 3000 < closed.step < 3200


def test_what_still_falls_or_is_learnt_or_has_nothing_to_follow() -> None:
    assert found(np.exp(-STEP / 4000)) == []
    assert found(np.maximum(0.01, np.exp(-STEP / 200))) == []
    assert found(np.maximum(0.5, np.exp(-STEP / 400)), norm=np.where(STEP < 400, 1.0, 0.01)) == []


def test_it_is_off_unless_it_is_asked_for() -> None:
    items = course(2600, 1, scalars={"loss": 0.5})

    def findings(bank: Bank) -> list[Finding]:
        events: list[Finding] = []
        for item in items:
            if isinstance(item, ScalarRecord):
                events += bank.scalars(item)
            elif not isinstance(item, Columns):
                events += bank.step(item, items[0].sites)  # type: ignore[union-attr]
        return events

    assert findings(Bank()) == []
    assert [event.kind for event in findings(Bank({"plateau": {"enabled": True}}))] == ["plateau"]


def test_a_real_training_without_a_learning_rate(tmp_path: Path) -> None:
    torch.manual_seed(0)
    training = failing.harder(failing.Training("plateau", str(tmp_path), rate=0.0, agent="off"))
    for _ in range(700):
        training.step(*training.batch(64))
    training.monitor.close()
    items: list[Item] = recorded(tmp_path / "plateau")
    (opened,) = said(Plateau(QUICK), items)
    assert opened.opened_step < 700 and opened.evidence["gradient_norm"] > 0.1
