"""What is written is what is read, for every record that there can be, by resmon and by anything that knows Arrow."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.flight.header import header
from resmon.flight.schema import nanoseconds, row_format, seconds, sites_from_json, sites_to_json
from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    DURATION_COLUMNS,
    GROUP_VALUES,
    MAGNITUDE_COLUMNS,
    PHASES,
    RUN_VALUES,
    Columns,
    ResidualSite,
    RunEnd,
    ScalarRecord,
    StepRecord,
)
from tests import synthetic
from tests.flight.flights import assert_equal, begin, read, steps_of, write

floats = st.floats(width=64)
names = st.text(max_size=12)

sites = st.builds(
    ResidualSite,
    name=names,
    module=names,
    kind=st.sampled_from(["identity", "projection", "marked"]),
    branch=st.tuples(names),
    skip=st.just(()),
    shape=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    parameters=st.lists(names, max_size=3).map(tuple),
    model=names,
)


# Values that are easily lost on the way, among ordinary ones.
SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 1.7976931348623157e308, 0.1])


def any_record(random: np.random.Generator, count: int, groups: int, step: int) -> StepRecord:
    def bools(*shape: int) -> np.ndarray:
        return random.random(shape) < random.random()

    def values(*shape: int) -> np.ndarray:
        return np.where(
            bools(*shape), random.choice(SPECIAL, shape), random.normal(size=shape) * 10.0 ** random.integers(-300, 300)
        )

    def counts(*shape: int) -> np.ndarray:
        return random.integers(0, 2**63 - 1, shape)

    return StepRecord(
        step=step,
        time=random.uniform(2**23, 8e9),
        complete=bool(bools()),
        skipped=bool(bools()),
        run=values(len(RUN_VALUES)),
        run_present=bools(len(RUN_VALUES)),
        groups=values(len(GROUP_VALUES), groups),
        groups_present=bools(len(GROUP_VALUES), groups),
        blocks=values(len(BLOCK_VALUES), count),
        blocks_present=bools(len(BLOCK_VALUES), count),
        counts=counts(len(BLOCK_COUNTS), count),
        steps_total=int(counts()),
        skipped_total=int(counts()),
        clipped_total=int(counts()),
        errors_total=int(counts()),
        samples_total=int(counts()),
        duration_total=float(values()),
        phase_totals=values(len(PHASES)),
        duration_buckets=counts(DURATION_COLUMNS),
        nonfinite_steps=counts(count),
        magnitude_buckets=counts(count, MAGNITUDE_COLUMNS),
        magnitude_sum=values(count),
    )


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[Columns, list[StepRecord]]]:
    """Segments: sites and parameter groups, and steps with gaps."""
    step = draw(st.integers(0, 2**40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    story = []
    for _ in range(draw(st.integers(1, 3))):
        of = Columns(tuple(draw(st.lists(sites, max_size=10))), tuple(draw(st.lists(names, max_size=3))))
        rows = []
        for _ in range(draw(st.integers(1, 3))):
            step += draw(st.integers(1, 1000))
            rows.append(any_record(random, len(of.sites), len(of.groups), step))
        story.append((of, rows))
    return story


@settings(max_examples=100, deadline=None)
@given(stories())
def test_steps_come_back_to_the_last_bit(story: list[tuple[Columns, list[StepRecord]]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder, writer = begin(Path(directory))
        now = Columns()
        expected: list[object] = []
        for of, rows in story:
            if of != now:
                expected.append(of)
                now = of
            writer.sites(of.sites, of.groups)
            for row in rows:
                writer.step(row)
                expected.append(row)
        writer.end(RunEnd("finished", 1.0, None))
        items = read(folder)
        assert len(items) == len(expected)
        for item, want in zip(items, expected, strict=True):
            if isinstance(want, StepRecord):
                assert isinstance(item, StepRecord)
                assert_equal(item, want)
            else:
                assert item == want


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=300), floats, max_size=5), max_size=10))
def test_scalars_come_back(logged: list[dict[str, float]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder, writer = begin(Path(directory))
        for step, values in enumerate(logged):
            writer.scalars(ScalarRecord(step, 100.0 + step, values))
        writer.end(RunEnd("finished", 1.0, None))
        items = read(folder)
        written = [(step, values) for step, values in enumerate(logged) if values]
        assert [item.step for item in items if isinstance(item, ScalarRecord)] == [step for step, _ in written]
        for item, (step, values) in zip(items, written, strict=True):
            assert isinstance(item, ScalarRecord)
            assert item.time == 100.0 + step
            np.testing.assert_array_equal(list(item.values.values()), list(values.values()))
            for was, got in zip(values, item.values, strict=True):
                assert got == was if len(was.encode()) <= 128 else len(got.encode()) <= 128


@given(st.floats(0, 8.9e9))
def test_a_moment_comes_back(moment: float) -> None:
    assert seconds(nanoseconds(moment)) == pytest.approx(moment, abs=5e-10)
    if moment > 2**23:  # where a float is coarser than a nanosecond
        assert seconds(nanoseconds(moment)) == moment


@given(st.lists(sites, max_size=5))
def test_sites_come_back(of: list[ResidualSite]) -> None:
    assert sites_from_json(sites_to_json(of)) == tuple(of)


@pytest.mark.parametrize("text", ["", "null", "3", "[1]", "[{}]", '[{"name": 1}]', "[" * 100_000])
def test_other_json_is_no_sites(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 the message is json's in some cases
        sites_from_json(text)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 100])
@pytest.mark.parametrize("kind", ["steps", "bins", "scalars", "scalarbins"])
def test_every_kind_of_row_is_a_valid_arrow_batch(kind: str, count: int) -> None:
    form = row_format(kind, synthetic.sites(count))  # type: ignore[arg-type]
    row = form.row()
    table = pa.ipc.open_stream(header(form) + bytes(row.seal()) * 2).read_all()
    table.validate(full=True)
    assert table.num_rows == 2
    assert table.column_names[-1] == "checksum"


def test_arrow_reads_the_numbers_and_their_absence(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(9))
    writer.sites(training.sites)
    record = training.step(forward=[2], absent=[("gradient_square", 3), ("gradient_square", 8)])
    writer.step(record)
    writer.scalars(ScalarRecord(0, record.time, {"löss": 2.5}))
    writer.end(RunEnd("finished", 1.0, 0))
    table = pa.ipc.open_stream((folder / "steps-000000000000.arrow").read_bytes()).read_all()
    table.validate(full=True)
    row = table.to_pylist()[0]
    assert row["step"] == 0
    assert row["time"].timestamp() == record.time
    assert [i for i, value in enumerate(row["block_gradient_square"]) if value is None] == [3, 8]
    assert np.isnan(row["block_branch_square"][2])
    assert row["block_skip_square"] == record.blocks[0].tolist()
    assert row["magnitude_buckets"] == record.magnitude_buckets.ravel().tolist()
    assert row["gradient_square"] == 4.0
    assert sites_from_json(table.schema.metadata[b"resmon.sites"]) == training.sites
    scalars = pa.ipc.open_stream((folder / "scalars-000000000000.arrow").read_bytes()).read_all()
    assert scalars.select(["step", "name", "value"]).to_pylist() == [{"step": 0, "name": "löss", "value": 2.5}]


def test_a_row_of_other_sites_is_never_read_under_these(tmp_path: Path) -> None:
    """A renamed block has the same bytes a row, but another checksum."""
    folder, writer = begin(tmp_path)
    write(writer, synthetic.Training(synthetic.sites(3)), 2)
    writer.end(RunEnd("finished", 1.0, 1))
    path = folder / "steps-000000000000.arrow"
    path.write_bytes(path.read_bytes().replace(b'"h.1"', b'"h.7"'))
    assert steps_of(read(folder)) == []
