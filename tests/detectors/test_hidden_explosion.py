from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resmon.detectors.hidden_explosion import HiddenExplosion
from resmon.records import Finding, Floats, clip_factor
from tests import failing
from tests.detectors.course import course, recorded, said


def found(norm: Floats, threshold: float = 1.0, loss: Floats | float = 1.0) -> list[Finding]:
    """What is said of a training with these gradient norms, clipped to the threshold."""
    stepped = np.minimum(norm, threshold)
    run = {"gradient_square": norm**2, "stepped_square": stepped**2}
    return said(HiddenExplosion(), course(len(norm), 2, run=run, scalars={"loss": loss}))


def norms(steps: int, seed: int = 0) -> Floats:
    return 2.0 * np.exp(np.random.default_rng(seed).normal(0, 0.2, steps))


def test_an_explosion_behind_clipping() -> None:
    norm = norms(900)
    norm[400:600] *= 30
    opened, closed = found(norm)
    assert (opened.kind, opened.severity, opened.block) == ("hidden_explosion", "ticket", "")
    assert opened.opened_step == 400 + 4 * 16 - 1 and opened.evidence["since"] == 400
    factors = [clip_factor(each**2, min(each, 1.0) ** 2) for each in norm[448:464]]
    assert opened.evidence["clip_factor"] == pytest.approx(np.median(factors), rel=0.01)
    assert opened.evidence["usual"] == pytest.approx(0.5, rel=0.1)
    assert closed.state == "closed"


def test_a_huge_one_that_lasts_is_a_page() -> None:
    norm = norms(1600)
    norm[400:] *= 500
    assert [each.severity for each in found(norm)] == ["ticket", "page"]


@pytest.mark.parametrize("what", ["never clipped", "always to a hundredth", "now and then", "the beginning", "not clipping at all"])
def test_what_hides_nothing(what: str) -> None:
    norm, threshold = norms(1200), 1.0
    if what == "never clipped":
        norm[400:] *= 30
        threshold = 1000.0
    elif what == "always to a hundredth":
        norm *= 50
    elif what == "now and then":
        norm[::20] *= 1000
    elif what == "the beginning":
        norm[:200] *= 1 / 30
    else:
        norm[400:] *= 30
        items = course(1200, 2, run={"gradient_square": norm**2, "stepped_square": np.nan}, scalars={"loss": 1.0})
        assert said(HiddenExplosion(), items) == []
        return
    assert found(norm, threshold) == []


def test_what_the_loss_explains() -> None:
    loss = np.where(np.arange(900) < 400, 0.1, 1.0)
    loss[:64] = 1.0
    norm = norms(900) * np.where(np.arange(900) < 400, 1.0, 12.0)
    assert found(norm, loss=loss) == []
    assert found(norm)


def test_a_real_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    failing.hidden_explosion(str(tmp_path))
    (opened,) = said(HiddenExplosion(), recorded(tmp_path / "hidden-explosion"))
    assert opened.evidence["since"] == 320 and 8 < opened.evidence["factor"] < 24  # 16 rows
