"""Following a flight that is being written."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.errors import FlightError
from resmon.flight.reader import CHUNK, Follower
from resmon.records import Columns, RunEnd, ScalarRecord, StepRecord
from tests import synthetic
from tests.flight.flights import assert_equal, begin, read, steps_of, write


def test_it_says_who_wrote_and_how_it_ended(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path, seed=3, git_commit="abc")
    follower = Follower(folder)
    assert follower.info == synthetic.info(seed=3, git_commit="abc")
    assert follower.alive()
    assert follower.end is None
    assert follower.poll() == []
    writer.end(RunEnd("out_of_memory", 5.0, None, "killed by us"))
    assert not follower.alive()
    assert follower.end == RunEnd("out_of_memory", 5.0, None, "killed by us")


def test_no_flight_is_told(tmp_path: Path) -> None:
    with pytest.raises(FlightError, match=r"info\.json is missing"):
        Follower(tmp_path)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["step", "scalars", "poll", "sites"]), st.integers(1, 40)), max_size=30), st.booleans())
def test_every_item_comes_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int]], small: bool
) -> None:
    folder, writer = begin(tmp_path_factory.mktemp("runs"), budget=1 << 20 if small else 64 << 20)
    training = synthetic.Training(())
    follower, items, written, logged = Follower(folder), [], [], []
    for act, count in acts:
        if act == "poll":
            items += follower.poll(count)
        elif act == "sites":
            steps = training.steps
            training = synthetic.Training(synthetic.sites(count % 4))
            training.steps = steps
            writer.sites(training.sites)
        for _ in range(count):
            if act == "step":
                written.append(training.step())
                writer.step(written[-1])
            elif act == "scalars":
                logged.append(ScalarRecord(max(0, training.steps - 1), 5.0 + len(logged), {"a": 1.0, "b": 2.0}))
                writer.scalars(logged[-1])
    writer.end(RunEnd("finished", 1.0, None))
    while new := follower.poll(7):
        items += new
    steps = steps_of(items)
    assert len(steps) == len(written)
    for got, was in zip(steps, written, strict=True):
        assert_equal(got, was)
    assert [item for item in items if isinstance(item, ScalarRecord)] == logged
    of = Columns()
    for item in items:
        if isinstance(item, Columns):
            assert item != of
            of = item
        elif isinstance(item, StepRecord):
            assert item.blocks.shape[1] == len(of.sites)


def test_what_was_logged_comes_behind_its_step(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    write(writer, synthetic.Training(synthetic.sites(1)), 5)
    follower = Follower(folder)
    kinds = [(type(item).__name__, item.step) for item in follower.poll() if not isinstance(item, Columns)]
    assert kinds == [pair for step in range(5) for pair in (("StepRecord", step), ("ScalarRecord", step))]


def test_what_was_logged_ahead_waits_for_its_step(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(1))
    write(writer, training, 1)
    follower = Follower(folder)
    assert len(follower.poll()) == 3
    writer.scalars(ScalarRecord(1, 1.0, {"loss": 1.0}))
    assert follower.poll() == []
    write(writer, training, 1)
    assert [type(item).__name__ for item in follower.poll()] == ["StepRecord", "ScalarRecord", "ScalarRecord"]
    writer.scalars(ScalarRecord(2, 1.0, {"loss": 1.0}))
    assert follower.poll() == []
    writer.end(RunEnd("failed", 1.0, 1))
    assert follower.poll() == [ScalarRecord(2, 1.0, {"loss": 1.0})]


def test_the_limit_holds(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    write(writer, synthetic.Training(synthetic.sites(1)), 25)
    follower = Follower(folder)
    assert [len(steps_of(follower.poll(10))) for _ in range(4)] == [10, 10, 5, 0]


@pytest.mark.parametrize("steps", [1, 30, 300])
def test_a_restarted_agent_begins_at_the_newest_row(tmp_path: Path, steps: int) -> None:
    folder, writer = begin(tmp_path, budget=1 << 20)
    training = synthetic.Training(synthetic.sites(3))
    written = write(writer, training, steps)
    follower = Follower(folder, newest=True)
    columns, step, loss = follower.poll()
    assert columns == Columns(training.sites)
    assert isinstance(step, StepRecord)
    assert_equal(step, written[-1])
    assert isinstance(loss, ScalarRecord)
    assert (loss.step, loss.values) == (steps - 1, {"loss": 1.0 / steps})
    written = write(writer, training, 40)
    after = steps_of(follower.poll())
    assert [record.step for record in after] == [record.step for record in written]
    writer.end(RunEnd("finished", 1.0, None))


def test_the_newest_row_is_found_where_the_last_one_is_cut_or_damaged(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    write(writer, synthetic.Training(synthetic.sites(3)), 10)
    path = folder / "steps-000000000000.arrow"
    data = path.read_bytes()
    for damaged in (data[:-100], data[:-5] + b"x" + data[-4:]):
        path.write_bytes(damaged)
        assert [record.step for record in steps_of(Follower(folder, newest=True).poll())] == [8]
    path.write_bytes(data[:300])
    assert steps_of(Follower(folder, newest=True).poll()) == []
    writer.end(RunEnd("finished", 1.0, None))


def test_values_logged_long_ago_are_still_known_to_a_restarted_agent(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(1))
    writer.sites(training.sites)
    for step in range(50):
        writer.step(training.step())
        if step == 7:
            writer.scalars(ScalarRecord(7, 1.0, {"score": 0.5}))
        writer.scalars(ScalarRecord(step, 2.0 + step, {"loss": float(step)}))
    logged = [item for item in Follower(folder, newest=True).poll() if isinstance(item, ScalarRecord)]
    assert logged == [ScalarRecord(7, 1.0, {"score": 0.5}), ScalarRecord(49, 51.0, {"loss": 49.0})]


def test_a_new_segment_of_the_same_clock_tick_is_found(tmp_path: Path) -> None:
    """The folder's time of change does not move within one tick of the kernel's clock."""
    folder, writer = begin(tmp_path, budget=1 << 20)
    training = synthetic.Training(synthetic.sites(3))
    follower, seen = Follower(folder), 0
    for _ in range(300):
        write(writer, training, 1)
        seen += len(steps_of(follower.poll()))
    assert len(list(folder.glob("steps-*"))) > 10
    assert seen == 300


def test_polling_reads_nothing_when_nothing_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, writer = begin(tmp_path, budget=1 << 20)
    write(writer, synthetic.Training(synthetic.sites(3)), 200)
    follower = Follower(folder)
    while follower.poll():
        pass
    time.sleep(0.25)  # the folder's last change is no longer fresh
    follower.poll()
    read = []
    original = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: read.append(args) or original(*args))
    monkeypatch.setattr(Path, "iterdir", lambda _: pytest.fail("listed again"))
    for _ in range(200):
        assert follower.poll() == []
    assert read == []


def test_polling_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(3))
    write(writer, training, 200)
    follower = Follower(folder)
    while follower.poll():
        pass
    read: list[int] = []
    original = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: read.append(args[1]) or original(*args))
    write(writer, training, 1)
    assert len(steps_of(follower.poll())) == 1
    assert sum(read) < 2 * ((folder / "steps-000000000000.arrow").stat().st_size / 201)


def test_a_removed_flight_gives_nothing_more(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    written = write(writer, synthetic.Training(synthetic.sites(1)), 3)
    follower = Follower(folder)
    assert len(steps_of(follower.poll())) == len(written)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert follower.poll() == []
    assert not follower.alive()
    assert follower.end is None


def test_steps_with_gaps_come_as_they_are(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(1))
    writer.sites(training.sites)
    for step in (5, 6, 1000, 10**12 + 3):
        writer.step(replace(training.step(), step=step))
    assert [record.step for record in steps_of(read(folder))] == [5, 6, 1000, 10**12 + 3]


def test_a_position_before_the_first_row_stays_one_however_often_it_is_gone_to(tmp_path: Path) -> None:
    """As agents do that are started, and killed, before there is anything to read."""
    folder, _ = begin(tmp_path)
    first = Follower(folder).position
    again = first
    for _ in range(3):
        follower = Follower(folder)
        follower.go_to(again)
        again = follower.position
    assert again == first
    assert first.steps[0] >= -1


def test_wide_rows_come_some_megabytes_at_a_time(tmp_path: Path) -> None:
    """Whatever the limit: a thousand rows of a thousand blocks are a gigabyte."""
    folder, writer = begin(tmp_path)
    written = write(writer, synthetic.Training(synthetic.sites(700)), 30)
    writer.end(RunEnd("finished", 1.0, None))
    follower, found = Follower(folder), []
    while new := follower.poll():
        rows = steps_of(new)
        assert sum(row.magnitude_buckets.nbytes + row.blocks.nbytes for row in rows) < 2 * CHUNK
        found += rows
    assert [row.step for row in found] == [row.step for row in written]
