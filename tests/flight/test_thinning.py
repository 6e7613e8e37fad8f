"""Law 2: the byte budget thins, it does not forget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import resmon
from resmon.flight.bins import FACTOR, LEVELS, STEPS
from resmon.flight.writer import FIRST_STEPS
from resmon.records import BLOCK_VALUES, RUN_VALUES, ResidualSite, RunEnd, ScalarRecord, StepRecord
from tests import synthetic
from tests.flight.flights import assert_equal, begin, read, steps_of

SITES = synthetic.sites(3)
SQUARE, RATE = map(RUN_VALUES.index, ("gradient_square", "learning_rate"))


class Varied(synthetic.Training):
    """Steps of which some lack values and some are not finite."""

    def step(self, **_: object) -> StepRecord:  # type: ignore[override]
        i = self.steps
        record = super().step(
            forward=[1] if i % 97 == 5 else [],
            absent=[("gradient_square", 0)] if i % 3 else [],
            values={("output_gradient_square", 2): math.inf} if i % 50 == 7 else {("skip_square", 2): 0.0} if i % 11 == 3 else {},
        )
        gradient_square = math.nan if i % 5 == 1 else 4.0 + i
        return replace(record, run=synthetic.run_values(learning_rate=0.1 / (1 + i), gradient_square=gradient_square))


def record(folder_of: Path, steps: int, budget: int, end: bool = True) -> tuple[Path, list[StepRecord]]:
    folder, writer = begin(folder_of, budget=budget)
    training = Varied(SITES, drops=True)
    writer.sites(SITES)
    written = []
    for _ in range(steps):
        row = training.step()
        writer.step(row)
        values = {"loss": 1.0 + row.step % 13, "odd": math.nan if row.step % 4 else 0.5}
        writer.scalars(ScalarRecord(row.step, row.time, values))
        written.append(row)
    if end:
        writer.end(RunEnd("finished", 1.0, steps - 1))
    return folder, written


def values(records: Sequence[StepRecord], name: str, site: int) -> np.ndarray:
    """The finite values of a quantity over steps, by the plain definition."""
    if name == "branch_skip_ratio":
        with np.errstate(all="ignore"):
            kept = BLOCK_VALUES.index("kept_square")
            pairs = [(r.blocks[1, site], r.blocks[kept, site]) for r in records if r.blocks_present[:2, site].all()]
            found = [math.sqrt(branch / skip) if skip > 0 else math.nan for branch, skip in pairs]
    else:
        i = BLOCK_VALUES.index(name)
        found = [r.blocks[i, site] for r in records if r.blocks_present[i, site]]
    return np.array([value for value in found if math.isfinite(value)])


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize(("steps", "budget"), [(9_000, 8 << 20), (2_700, 2 << 20), (63, 8 << 20), (65, 8 << 20)])
def test_thinning_keeps_the_law(tmp_path: Path, steps: int, budget: int) -> None:
    folder, written = record(tmp_path, steps, budget)
    in_full = steps_of(read(folder))
    numbers = [row.step for row in in_full]
    assert numbers[: min(steps, FIRST_STEPS)] == list(range(min(steps, FIRST_STEPS)))
    assert numbers[-min(steps, STEPS) :] == list(range(steps))[-min(steps, STEPS) :]
    for row in in_full:
        assert_equal(row, written[row.step])
    if steps > 2000:
        assert len(in_full) < steps, "nothing was thinned, so nothing is tested"
        # Where the budget cannot hold the first 1,000 steps, what comes after them still is within it.
        files = [path for path in folder.glob("s*-*.arrow") if path.name.startswith(("steps", "scalars-"))]
        first = sum(path.stat().st_size for path in files if int(path.stem.split("-")[1]) < FIRST_STEPS)
        assert size(folder) <= (budget if first < budget // 2 else first + budget)

    bins = resmon.load(folder).bins()
    for site, of in enumerate(SITES):
        rows = bins[bins["block"] == of.name]
        # Without gaps and overlaps, from the first step to the last.
        assert rows["first_step"].tolist() == [0, *(rows["last_step"] + 1).tolist()[:-1]]
        assert rows["last_step"].tolist()[-1] == steps - 1
        assert rows["steps"].sum() == steps
        for name in (*BLOCK_VALUES, "branch_skip_ratio"):
            true = values(written, name, site)
            assert rows[f"{name}_count"].sum() == len(true)
            assert rows[f"{name}_sum"].sum() == pytest.approx(math.fsum(true), rel=1e-12)
            assert rows[f"{name}_min"].min() == true.min()
            assert rows[f"{name}_max"].max() == true.max()
        assert rows["elements_sum"].sum() == sum(int(row.counts[0, site]) for row in written)
        assert rows["nonfinite_forward_sum"].sum() == sum(int(row.counts[1, site]) for row in written)


def test_each_bin_says_what_its_steps_were(tmp_path: Path) -> None:
    folder, written = record(tmp_path, 1300, 64 << 20)
    bins = resmon.load(folder).bins()
    assert set(bins["level"]) == {0}
    for row in bins.itertuples():
        site = [site.name for site in SITES].index(row.block)
        of = written[row.first_step : row.last_step + 1]
        assert row.steps == len(of) <= STEPS
        assert row.first_time.timestamp() == of[0].time
        for name in ("gradient_square", "output_gradient_square", "branch_skip_ratio"):
            true = values(of, name, site)
            assert getattr(row, f"{name}_count") == len(true)
            assert getattr(row, f"{name}_min") == true.min()
            assert getattr(row, f"{name}_max") == true.max()


def test_a_value_that_was_never_finite_has_no_minimum(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(SITES)
    writer.sites(SITES)
    for _ in range(5):
        writer.step(training.step(forward=[0], absent=[("gradient_square", 1)]))
    writer.end(RunEnd("finished", 1.0, 4))
    bins = resmon.load(folder).bins().set_index("block")
    assert bins["branch_square_count"].tolist() == [0, 5, 5]
    assert bins["branch_square_min"].isna().tolist() == [True, False, False]
    assert bins["gradient_square_max"].isna().tolist() == [False, True, False]


def test_the_runs_values_and_what_was_logged_are_binned_too(tmp_path: Path) -> None:
    steps = 6_000
    folder, written = record(tmp_path, steps, 4 << 20)
    loaded = resmon.load(folder)
    logged = loaded.scalars()
    assert len(logged) < 2 * steps, "nothing was thinned, so nothing is tested"
    run = loaded.bins("run")
    squares = [row.run[SQUARE] for row in written if math.isfinite(row.run[SQUARE])]
    assert run["gradient_square_sum"].sum() == pytest.approx(math.fsum(squares), rel=1e-12)
    assert run["gradient_square_count"].sum() == len(squares)
    assert run["learning_rate_min"].min() == written[-1].run[RATE]
    scalars = loaded.bins("scalars").set_index("name")
    loss = scalars.loc["loss"]
    assert loss["value_sum"].sum() == sum(1.0 + step % 13 for step in range(steps))
    assert loss["value_count"].sum() == steps
    assert (loss["value_min"].min(), loss["value_max"].max()) == (1.0, 13.0)
    assert scalars.loc["odd"]["value_count"].sum() == steps / 4
    # What is logged at a bin's last step belongs to that bin.
    assert (loss["value_count"] == loss["last_step"] - loss["first_step"] + 1).all()


def test_without_an_end_every_step_is_in_a_bin_or_in_full(tmp_path: Path) -> None:
    """At whatever step the process dies."""
    folder, writer = begin(tmp_path, budget=1 << 20)
    training = synthetic.Training(SITES)
    writer.sites(SITES)
    seen_coarse = False
    for step in range(9_500):
        writer.step(training.step())
        if step % 531 == 7:
            loaded = resmon.load(folder)
            there = set(loaded.steps()["step"])
            run = loaded.bins("run")
            seen_coarse |= bool((run["level"] > 0).any())
            for first, last in zip(run["first_step"], run["last_step"], strict=True):
                there.update(range(first, last + 1))
            assert there == set(range(step + 1))
    assert seen_coarse
    writer.end(RunEnd("finished", 1.0, 9_499))


def test_bins_close_where_the_sites_change(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    step = 0
    for count in (2, 3, 2):
        training = synthetic.Training(synthetic.sites(count))
        training.steps = step
        writer.sites(training.sites)
        for _ in range(100):
            writer.step(training.step())
        step += 100
    writer.end(RunEnd("finished", 1.0, 299))
    loaded = resmon.load(folder)
    run = loaded.bins("run")
    assert list(zip(run["first_step"], run["last_step"], strict=True)) == [
        (0, 63),
        (64, 99),
        (100, 163),
        (164, 199),
        (200, 263),
        (264, 299),
    ]
    third: ResidualSite = synthetic.sites(3)[2]
    blocks = loaded.bins()
    assert blocks[blocks["block"] == third.name]["first_step"].tolist() == [100, 164]


def test_levels_grow_by_eights(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(1))
    writer.sites(training.sites)
    row = training.step()
    for step in range(STEPS * FACTOR * FACTOR + 1):
        writer.step(replace(row, step=step))
    names = sorted({path.name[:6] for path in folder.glob("bins-*.arrow")})
    assert names == ["bins-0", "bins-1"]  # the coarser ones are still open
    writer.end(RunEnd("finished", 1.0, 4096))
    assert sorted({path.name[:6] for path in folder.glob("bins-*.arrow")}) == [f"bins-{level}" for level in range(LEVELS)]


def test_bins_stay_within_their_share_where_columns_change_often(tmp_path: Path) -> None:
    """Each change ends the bins under way, at every level; only of the coarsest, one row a change, none goes."""
    budget, steps = 16 << 20, 320
    folder, writer = begin(tmp_path, budget=budget)
    training = synthetic.Training(SITES)
    row = training.step()
    for step in range(steps):
        groups = 1 + step // 2 % 2
        writer.sites(SITES, ("a", "b")[:groups])
        shape = (len(row.groups), groups)
        writer.step(replace(row, step=step, groups=np.ones(shape), groups_present=np.ones(shape, bool)))
    writer.end(RunEnd("finished", 1.0, steps - 1))
    for level in range(LEVELS - 1):
        taken = sum(path.stat().st_size for path in folder.glob(f"bins-{level}-*.arrow"))
        assert 0 < taken <= budget >> (3 + level), level
    bins = resmon.load(tmp_path / "digits").bins()
    assert bins["steps"].sum() == steps * len(SITES)


def test_a_follower_outlives_thinning(tmp_path: Path) -> None:
    """Steps that went before it came to them are missing, everything else comes in order."""
    folder, writer = begin(tmp_path, budget=1 << 20)
    training = synthetic.Training(SITES)
    writer.sites(SITES)
    from resmon.flight.reader import Follower

    follower, seen = Follower(folder), []
    for step in range(4_000):
        writer.step(training.step())
        if step in (10, 1500, 1501, 3990):
            seen += steps_of(follower.poll(100 if step == 1501 else 10_000))
    seen += steps_of(follower.poll(10_000))
    numbers = [record.step for record in seen]
    assert numbers == sorted(set(numbers))
    assert numbers[:1000] == list(range(1000))
    assert numbers[-1] == 3999
    assert len(numbers) < 4_000
    assert follower.skipped == 0
    writer.end(RunEnd("finished", 1.0, 3_999))
