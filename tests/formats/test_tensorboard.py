"""Event files, as TensorBoard reads them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resmon.formats.story import Story
from resmon.formats.tensorboard import TensorBoard
from resmon.records import MAGNITUDE_EDGES, MAGNITUDE_NONFINITE
from tests.formats.conftest import STEPS, Rank
from tests.formats.test_story import everything


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0}).Reload()


def test_tensorboard_reads_every_value(attempt: Path, tmp_path: Path) -> None:
    moments = everything(Story(attempt))
    sink = TensorBoard(tmp_path / "board")
    for moment in moments:
        sink.add(moment, blocks=moment.step % 4 == 3)
    sink.close()
    board = read(tmp_path / "board")
    for moment in moments:
        expected = moment.values() | (moment.blocks() if moment.step % 4 == 3 else {})
        found = {tag: e.value for tag in board.Tags()["scalars"] for e in board.Scalars(tag) if e.step == moment.step}
        assert set(found) == set(expected)
        for tag, value in expected.items():
            assert found[tag] == pytest.approx(np.float32(value), nan_ok=True), tag
    assert [e.wall_time for e in board.Scalars("learning_rate")] == [moment.time for moment in moments]
    assert len(board.Scalars("branch_skip_ratio/h.2")) == STEPS // 4
    assert "learning_rate/decay" in board.Tags()["scalars"]


def test_histograms_are_of_the_steps_since_the_one_before(attempt: Path, tmp_path: Path) -> None:
    moments = everything(Story(attempt))
    sink = TensorBoard(tmp_path / "board")
    chosen = [moments[5], moments[9]]
    for moment in chosen:
        sink.add(moment, blocks=True)
    sink.close()
    first, second = (event.histogram_value for event in read(tmp_path / "board").Histograms("activation_magnitude/h.1"))
    counts = chosen[1].magnitudes[1] - chosen[0].magnitudes[1]
    assert sum(first.bucket) == chosen[0].magnitudes[1, :MAGNITUDE_NONFINITE].sum()
    assert sum(second.bucket) == second.num == counts[:MAGNITUDE_NONFINITE].sum()
    assert second.sum == pytest.approx(chosen[1].magnitude_sum[1] - chosen[0].magnitude_sum[1])
    by_limit = dict(zip(second.bucket_limit, second.bucket, strict=True))
    for edge, count in zip(MAGNITUDE_EDGES.tolist(), counts.tolist(), strict=False):
        assert by_limit[edge] == count


def test_what_a_float_of_32_bits_cannot_hold_is_infinite(tmp_path: Path) -> None:
    rank = Rank(tmp_path, "digits")
    rank.step()
    rank.log(0, loss=1e300, other=-1e300, small=1e-300)
    rank.end()
    sink = TensorBoard(tmp_path / "board")
    for moment in everything(Story(rank.attempt)):
        sink.add(moment, blocks=False)
    sink.close()
    board = read(tmp_path / "board")
    assert [board.Scalars(tag)[0].value for tag in ("loss", "other", "small")] == [math.inf, -math.inf, 0.0]
