"""Whatever state the files are in: no exception, no row that was not written, every row that is whole."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import resmon
from resmon.errors import FlightError, FlightVersionError
from resmon.flight import schema
from resmon.flight.header import header
from resmon.flight.reader import Follower
from resmon.flight.schema import row_format
from resmon.records import RunEnd, ScalarRecord, StepRecord
from tests import synthetic
from tests.flight.flights import assert_equal, begin, read, steps_of, write

SITES = synthetic.sites(2)
ROWS = 4


@pytest.fixture
def flight(tmp_path: Path) -> tuple[Path, list[StepRecord]]:
    """Two segments of steps, as a site appears in the middle."""
    folder, writer = begin(tmp_path / "runs")
    written = write(writer, synthetic.Training(SITES), ROWS)
    training = synthetic.Training(synthetic.sites(3), seed=1)
    training.steps = ROWS
    written += write(writer, training, ROWS)
    writer.end(RunEnd("finished", 1.0, 2 * ROWS - 1))
    return folder, written


def assert_true(folder: Path, written: list[StepRecord], least: int = 0) -> tuple[list[StepRecord], int]:
    """What is read was written, in order; gives the steps and how many rows were skipped."""
    follower = Follower(folder)
    items = []
    while new := follower.poll():
        items += new
    by_step = {record.step: record for record in written}
    steps = steps_of(items)
    for record in steps:
        assert_equal(record, by_step[record.step])
    assert [r.step for r in steps] == sorted({r.step for r in steps})
    for item in items:
        if isinstance(item, ScalarRecord):
            assert item.values == {"loss": 1.0 / (1 + item.step)}
    assert len(steps) >= least, follower.skips
    follower.close()
    loaded = resmon.load(folder)
    assert loaded.steps()["ranks"].sum() == len(steps)
    for frame in (loaded.blocks(), loaded.histograms(), loaded.bins(), loaded.bins("scalars"), loaded.scalars()):
        assert frame is not None
    return steps, len(loaded.skipped)


@pytest.mark.slow
def test_cut_at_every_offset(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path / "runs")
    written = write(writer, synthetic.Training(synthetic.sites(1)), 2)
    writer.end(RunEnd("finished", 1.0, 1))
    path = folder / "steps-000000000000.arrow"
    form = row_format("steps", synthetic.sites(1))
    for size in reversed(range(path.stat().st_size + 1)):
        os.truncate(path, size)
        steps = steps_of(read(folder))
        assert len(steps) == max(0, (size - len(header(form))) // form.size), size
        for record, was in zip(steps, written, strict=False):
            assert_equal(record, was)
        if size % 101 == 0:
            assert_true(folder, written, len(steps))


def test_a_follower_waits_for_a_row_that_is_not_all_there(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path / "runs")
    written = write(writer, synthetic.Training(SITES), 2)
    path = folder / "steps-000000000000.arrow"
    data = path.read_bytes()
    for size in (10, 5000, len(data) - 1):
        path.write_bytes(data[:size])
        follower = Follower(folder)
        before = steps_of(follower.poll())
        path.write_bytes(data)
        after = steps_of(follower.poll())
        assert [record.step for record in before + after] == [0, 1]
        assert_equal((before + after)[1], written[1])
        assert follower.skipped == 0
    writer.end(RunEnd("finished", 1.0, 1))


def flips(data: bytes, seed: int) -> Iterator[tuple[int, bytes]]:
    chance = random.Random(seed)
    while True:
        at = chance.randrange(len(data))
        yield at, data[:at] + bytes([data[at] ^ chance.randrange(1, 256)]) + data[at + 1 :]


@pytest.mark.slow
def test_thousands_of_flipped_bytes(flight: tuple[Path, list[StepRecord]]) -> None:
    folder, written = flight
    path = folder / f"steps-{ROWS:012d}.arrow"
    data = path.read_bytes()
    begin = len(header(row_format("steps", synthetic.sites(3))))
    by_step = {record.step: record for record in written}
    for count, (at, damaged) in enumerate(flips(data, 1)):
        path.write_bytes(damaged)
        # A flip in a row costs that row, a flip in the schema may cost the segment, as no other segment has these sites.
        steps = steps_of(read(folder))
        assert len(steps) >= (2 * ROWS - 1 if at >= begin else ROWS), at
        for record in steps:
            assert_equal(record, by_step[record.step])
        if count == 2000:
            break
    for count, (_, damaged) in enumerate(flips(data, 2)):
        path.write_bytes(damaged)
        assert_true(folder, written, ROWS)
        if count == 50:
            break


def test_every_file_of_an_attempt_may_be_damaged(flight: tuple[Path, list[StepRecord]], tmp_path: Path) -> None:
    folder, written = flight
    (folder.parent / "findings.jsonl").write_text('{"id": 3}\n\n[[[\n')
    chance = random.Random(3)
    by_step = {record.step: record for record in written}
    for _ in range(60):
        copy = tmp_path / "copy"
        shutil.copytree(folder.parent, copy / "attempt-0001")
        for path in (copy / "attempt-0001").rglob("*"):
            if path.is_file() and path.stat().st_size and path.name != "info.json":
                data = bytearray(path.read_bytes())
                for _ in range(chance.choice([0, 1, 20])):
                    data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
                path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        for record in steps_of(read(copy / "attempt-0001" / "rank-00000")):
            assert_equal(record, by_step[record.step])
        loaded = resmon.load(copy)
        for frame in (
            loaded.steps(),
            loaded.blocks(),
            loaded.bins(),
            loaded.bins("run"),
            loaded.bins("scalars"),
            loaded.findings(),
        ):
            assert frame is not None
        assert loaded.outcome in ("finished", "unknown")
        shutil.rmtree(copy)


@pytest.mark.parametrize("junk", [b"", b"x", b"\0" * 5000, b"\xff" * 5000, b"PAR1" * 1000, os.urandom(20_000)])
def test_foreign_files_are_passed_over(flight: tuple[Path, list[StepRecord]], junk: bytes) -> None:
    folder, written = flight
    for first in (1, 2, 99):
        (folder / f"steps-{first:012d}.arrow").write_bytes(junk)
    (folder / "steps-000000000098.arrow").mkdir()
    os.mkfifo(folder / "steps-000000000097.arrow")
    (folder / "scalars-000000000001.arrow").write_bytes(junk)
    (folder / "steps-nonsense.arrow").write_bytes(junk)
    assert_true(folder, written, 2 * ROWS)


def test_reading_goes_on_behind_inserted_and_missing_bytes(flight: tuple[Path, list[StepRecord]]) -> None:
    folder, written = flight
    path = folder / "steps-000000000000.arrow"
    data = path.read_bytes()
    form = row_format("steps", SITES)
    second = len(header(form)) + form.size
    for damaged, lost in [
        (data[:second] + b"#" * 13 + data[second:], 0),
        (data[: second + 100] + b"#" * 13 + data[second + 100 :], 1),
        (data[: second + 100] + data[second + 101 :], 1),
        (data[:second] + data[second + form.size :], 1),
        (data[: second + 3] + data[: second + 3] + data[second + 3 :], 0),  # the first row twice
        (data[:second] + b"\0" * form.size + data[second + form.size :], 1),
    ]:
        path.write_bytes(damaged)
        steps, _ = assert_true(folder, [*written], 2 * ROWS - lost)
        assert len(steps) == 2 * ROWS - lost


def test_a_damaged_schema_is_replaced_by_another_segments(tmp_path: Path) -> None:
    """Also where the neighbour's has other sites: the checksum tells which one fits."""
    folder, writer = begin(tmp_path / "runs", budget=1 << 20)
    written = write(writer, synthetic.Training(SITES), 30)
    training = synthetic.Training(synthetic.sites(3), seed=1)
    training.steps = 30
    written += write(writer, training, 5)
    writer.end(RunEnd("finished", 1.0, 34))
    paths = sorted(folder.glob("steps-*.arrow"))
    assert len(paths) > 2
    data = bytearray(paths[1].read_bytes())
    data[200:1500] = b"#" * 1300
    paths[1].write_bytes(data)
    steps, skips = assert_true(folder, written)
    assert len(steps) == len(written)
    assert skips == 1
    assert "schema" in resmon.load(folder).skipped[0].reason


def test_skips_are_counted_and_described(flight: tuple[Path, list[StepRecord]]) -> None:
    folder, _ = flight
    path = folder / "steps-000000000000.arrow"
    form = row_format("steps", SITES)
    data = bytearray(path.read_bytes())
    for row in (1, 2):
        data[len(header(form)) + row * form.size + 700] ^= 1
    path.write_bytes(data)
    follower = Follower(folder)
    assert [record.step for record in steps_of(follower.poll())] == [0, *range(3, 2 * ROWS)]
    assert follower.skipped == 2
    (skip,) = resmon.load(folder).skipped
    assert (skip.file, skip.offset, skip.bytes, skip.rows) == (path, len(header(form)) + form.size, 2 * form.size, 2)
    assert skip.reason == "damaged"


def test_a_segment_of_a_newer_format(
    flight: tuple[Path, list[StepRecord]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, _ = flight
    monkeypatch.setattr(schema, "FORMAT", schema.FORMAT + 1)
    row_format.cache_clear()
    other, writer = begin(tmp_path / "other")
    write(writer, synthetic.Training(SITES), 2)
    writer.end(RunEnd("finished", 1.0, 1))
    monkeypatch.undo()
    row_format.cache_clear()
    (other / "steps-000000000000.arrow").rename(folder / f"steps-{100:012d}.arrow")
    with pytest.raises(FlightVersionError, match=r"steps-0*100\.arrow has flight format 2.*up to 1.*upgrade"):
        resmon.load(folder)
    with pytest.raises(FlightVersionError):
        Follower(folder).poll()


def test_an_info_of_a_newer_format(flight: tuple[Path, list[StepRecord]]) -> None:
    folder, _ = flight
    text = (folder / "info.json").read_text()
    (folder / "info.json").write_text(text.replace('"format": 1', '"format": 12'))
    for reader in (Follower, resmon.load):
        with pytest.raises(FlightVersionError, match="format 12"):
            reader(folder)


def test_a_version_that_damage_made_is_none(flight: tuple[Path, list[StepRecord]]) -> None:
    folder, written = flight
    path = folder / "steps-000000000000.arrow"
    data = path.read_bytes()
    assert data.count(b"\x01\0\0\x001\0") == 1  # a text of one byte, as a flatbuffer holds it
    path.write_bytes(data.replace(b"\x01\0\0\x001\0", b"\x01\0\0\x009\0"))
    steps, _ = assert_true(folder, written)
    assert len(steps) == 2 * ROWS


def test_a_damaged_info_costs_only_itself(flight: tuple[Path, list[StepRecord]]) -> None:
    folder, written = flight
    (folder / "info.json").write_text("{")
    with pytest.raises(FlightError, match=r"info\.json"):
        Follower(folder)
    loaded = resmon.load(folder)
    assert len(loaded.steps()) == len(written)
    assert loaded.info["run"] == "digits"
    assert [skip.file.name for skip in loaded.skipped] == ["info.json"]


@pytest.mark.parametrize(
    ("key", "value"), [("run", "3"), ("pid", '"x"'), ("command", "[1]"), ("models", '{"a": 1}'), ("seed", "true")]
)
def test_an_info_of_other_types_is_damaged(flight: tuple[Path, list[StepRecord]], key: str, value: str) -> None:
    folder, _ = flight
    values = json.loads((folder / "info.json").read_text())
    (folder / "info.json").write_text(json.dumps(values | {key: json.loads(value)}))
    with pytest.raises(FlightError, match=key):
        Follower(folder)


def test_an_end_of_an_unknown_outcome_is_none(flight: tuple[Path, list[StepRecord]]) -> None:
    folder, _ = flight
    text = (folder / "end.json").read_text()
    (folder / "end.json").write_text(text.replace("finished", "vanished"))
    assert Follower(folder).end is None
    assert resmon.load(folder).outcome == "unknown"


def test_a_hostile_scalar_length_reads_no_other_memory() -> None:
    """A row whose checksum holds may still say anything."""
    form = row_format("scalars", ())
    row = form.row()
    for length in (-1, 129, 2**31 - 1):
        row.text("name", b"loss")
        row.fields["name@"][1] = length
        rows = schema.np.frombuffer(bytes(row.seal()), form.dtype)
        assert len(schema.texts(rows, "name")[0]) <= schema.TEXT
