"""`resmon.load`: frames that equal what was written, merged over ranks by hand."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import resmon
from resmon.errors import FlightError
from resmon.flight import journal, layout
from resmon.flight.layout import boot_id
from resmon.records import (
    BLOCK_VALUES,
    MAGNITUDE_COLUMNS,
    RUN_VALUES,
    Checkpoint,
    Finding,
    Outcome,
    RunEnd,
    ScalarRecord,
    StepRecord,
)
from resmon.scores.gaps import Gaps
from resmon.scores.targets import Reached
from tests import synthetic
from tests.flight.flights import begin, write

SITES = synthetic.sites(3)


def ranks(directory: Path, count: int, steps: int = 6) -> list[list[StepRecord]]:
    """An attempt of several ranks, whose second lacks the last step."""
    written = []
    for rank in range(count):
        _, writer = begin(directory, rank=rank, world_size=count)
        training = synthetic.Training(SITES, seed=rank, start=1000.0 + rank)
        writer.sites(SITES)
        records = []
        for step in range(steps - (rank == 1)):
            absent = [("gradient_square", 0)] + ([("gradient_square", 1)] if rank == 0 else [])
            record = training.step(forward=[2] if step == 3 and rank == 1 else [], absent=absent)
            record = replace(record, run=synthetic.run_values(duration=0.25 + rank, loss_scale=1024.0), complete=step != 4)
            writer.step(record)
            writer.scalars(ScalarRecord(step, 5.0, {"loss": 1.0 + rank, "accuracy": 0.5}))
            writer.scalars(ScalarRecord(step, 6.0, {"loss": 2.0 + rank, "step": 9.0}))
            records.append(record)
        writer.end(RunEnd("finished", 1.0, steps))
        written.append(records)
    return written


def test_blocks_are_merged_from_the_sums(tmp_path: Path) -> None:
    written = ranks(tmp_path, 3)
    blocks = resmon.load(tmp_path / "digits").blocks()
    assert len(blocks) == 6 * 3
    assert list(blocks.columns[:7]) == [
        "step",
        "block",
        "skip_rms",
        "branch_rms",
        "branch_skip_ratio",
        "gradient_norm",
        "output_gradient_norm",
    ]
    index = {name: i for i, name in enumerate(BLOCK_VALUES)}
    for row in blocks.itertuples():
        site = int(row.block[2:])
        records = [of[row.step] for of in written if row.step < len(of)]

        def total(name: str, records: list[StepRecord] = records, site: int = site) -> float:
            return math.fsum(r.blocks[index[name], site] for r in records if r.blocks_present[index[name], site])

        elements = 32 * len(records)
        assert row.elements == elements
        assert row.skip_rms == pytest.approx(math.sqrt(total("skip_square") / elements), rel=1e-14)
        np.testing.assert_allclose(row.branch_rms, math.sqrt(total("branch_square") / elements))
        np.testing.assert_allclose(row.branch_skip_ratio, math.sqrt(total("branch_square") / total("skip_square")))
        if len(records) < len(written):  # a share is missing
            assert row.gradient_norm is row.output_gradient_norm is pd.NA
            continue
        np.testing.assert_allclose(row.output_gradient_norm, math.sqrt(total("output_gradient_square")))
        if site == 0:
            assert row.gradient_norm is pd.NA
        else:
            assert row.gradient_norm == pytest.approx(math.sqrt(total("gradient_square")))
        assert row.nonfinite_forward == (3 if (row.step, site) == (3, 2) else 0)
        assert row.model == "Net"


def test_blocks_per_rank_hold_shares(tmp_path: Path) -> None:
    written = ranks(tmp_path, 2)
    blocks = resmon.load(tmp_path / "digits").blocks(per_rank=True)
    assert len(blocks) == (6 + 5) * 3
    assert "gradient_norm" not in blocks
    for row in blocks.itertuples():
        record = written[row.rank][row.step]
        site = int(row.block[2:])
        np.testing.assert_allclose(row.skip_rms, math.sqrt(record.blocks[0, site] / 32))
        if record.blocks_present[3, site]:
            assert row.gradient_norm_share == pytest.approx(math.sqrt(record.blocks[3, site]))
        else:
            assert row.gradient_norm_share is pd.NA


def test_one_rank_alone_is_loaded_from_its_folder(tmp_path: Path) -> None:
    ranks(tmp_path, 2)
    loaded = resmon.load(tmp_path / "digits" / "attempt-0001" / "rank-00001")
    assert loaded.info["ranks"] == (1,)
    assert loaded.steps()["step"].tolist() == list(range(5))


def test_absence_nan_and_zero_are_three_things(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(SITES)
    writer.sites(SITES)
    values = {("skip_square", 0): 0.0, ("branch_square", 1): 0.0, ("branch_square", 2): math.nan, ("gradient_square", 2): math.inf}
    writer.step(training.step(values=values, absent=[("gradient_square", 0)]))
    writer.end(RunEnd("finished", 1.0, 0))
    blocks = resmon.load(folder).blocks().set_index("block")
    assert blocks["skip_rms"].isna().tolist() == [False] * 3
    ratio, gradient = blocks["branch_skip_ratio"], blocks["gradient_norm"]
    assert ratio["h.0"] is pd.NA  # the skip is 0
    assert ratio["h.1"] == 0.0  # a zero-initialised branch
    assert isinstance(ratio["h.2"], float)
    assert math.isnan(ratio["h.2"])
    assert gradient["h.0"] is pd.NA
    assert gradient["h.2"] == math.inf
    assert all(isinstance(kind, pd.ArrowDtype) for kind in blocks.dtypes)


def test_a_block_that_did_not_run_has_no_rms(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(SITES)
    writer.sites(SITES)
    record = training.step(absent=[(name, 1) for name in BLOCK_VALUES])
    record.counts[0, 1] = 0
    writer.step(record)
    writer.end(RunEnd("finished", 1.0, 0))
    row = resmon.load(folder).blocks().iloc[1]
    assert row["elements"] == 0
    assert row[["skip_rms", "branch_rms", "output_rms", "branch_skip_ratio", "gradient_norm"]].isna().all()


def test_steps_are_merged_over_ranks(tmp_path: Path) -> None:
    ranks(tmp_path, 3)
    steps = resmon.load(tmp_path / "digits").steps()
    assert list(steps.columns[:5]) == ["step", "time", "loss", "learning_rate", "gradient_norm"]
    assert steps["step"].tolist() == list(range(6))
    assert steps["ranks"].tolist() == [3, 3, 3, 3, 3, 2]
    assert steps["loss"].tolist() == [3.0] * 5 + [3.0]  # the newer log of each rank: 2, 3, 4; then 2 and 4
    assert steps["accuracy"].tolist() == [0.5] * 6
    assert steps["logged_step"].tolist() == [9.0] * 6
    assert steps["gradient_norm"].tolist()[:5] == pytest.approx([math.sqrt(12.0)] * 5)
    assert steps["gradient_norm"].tolist()[5] is pd.NA  # one rank's share is missing
    assert steps["duration"].tolist() == [2.25] * 6
    assert steps["learning_rate"].tolist() == [0.1] * 6
    assert steps["complete"].tolist() == [True] * 4 + [False, True]
    assert steps["time"][0].timestamp() == 1002.25


def test_one_rank_speaks_for_those_that_hold_the_same_gradients(tmp_path: Path) -> None:
    """Watched, or readable, is rank 2 of 4; where it holds a part of the gradients only, their norm cannot be known."""
    for run, replicas in (("replicated", 4.0), ("sharded", 1.0)):
        _, writer = begin(tmp_path, run, rank=2, world_size=4)
        training = synthetic.Training(SITES)
        writer.sites(SITES)
        record = replace(training.step(), run=synthetic.run_values(replicas=replicas))
        writer.step(record)
        flight = resmon.load(tmp_path / run)
        share = record.blocks[BLOCK_VALUES.index("gradient_square"), 0]
        norms = [flight.steps()["gradient_norm"][0], flight.blocks()["gradient_norm"][0]]
        assert norms == ([pd.NA, pd.NA] if replicas == 1 else pytest.approx([math.sqrt(4 * 4.0), math.sqrt(4 * share)]))
        assert flight.blocks()["output_gradient_norm"][0] is pd.NA
        assert flight.blocks()["skip_rms"].notna().all()
        assert flight.blocks(per_rank=True)["gradient_norm_share"][0] == pytest.approx(math.sqrt(share))


def test_ranks_that_know_a_block_speak_for_those_that_do_not(tmp_path: Path) -> None:
    """Rank 1 has not come to the last block yet; of gradients that all hold rank 0 tells both shares, of parts only its own."""
    for run, factor in (("replicated", 2.0), ("own", 1.0)):
        share = math.nan
        for rank, known in enumerate((SITES, SITES[:-1])):
            _, writer = begin(tmp_path, run, rank=rank, world_size=2)
            training = synthetic.Training(known, seed=rank)
            writer.sites(known)
            record = replace(training.step(), run=synthetic.run_values(replicas=factor))
            writer.step(record)
            if rank == 0:
                share = record.blocks[BLOCK_VALUES.index("gradient_square"), -1]
        norms = dict(resmon.load(tmp_path / run).blocks()[["block", "gradient_norm"]].to_numpy().tolist())
        assert norms[SITES[-1].name] == pytest.approx(math.sqrt(factor * share))


@pytest.mark.parametrize("replicas", [2.0, 1.0])
def test_a_rank_that_has_stepped_aside_tells_no_gradients(replicas: float, tmp_path: Path) -> None:
    shares = []
    for rank in range(2):
        _, writer = begin(tmp_path, rank=rank, world_size=2)
        writer.sites(SITES)
        record = replace(synthetic.Training(SITES, seed=rank).step(), run=synthetic.run_values(replicas=replicas))
        if rank:
            there = record.run_present.copy()
            there[[RUN_VALUES.index(name) for name in ("replicas", "gradient_square", "stepped_square")]] = False
            record = replace(record, run_present=there, blocks_present=np.zeros_like(record.blocks_present))
        else:
            shares = record.blocks[BLOCK_VALUES.index("gradient_square")].tolist()
        writer.step(record)
    flight = resmon.load(tmp_path / "digits")
    blocks, steps = flight.blocks(), flight.steps()
    assert blocks["skip_rms"].notna().all()
    assert blocks["output_gradient_norm"].isna().all()
    if replicas == 1:
        assert blocks["gradient_norm"].isna().all()
        assert steps["gradient_norm"].isna().all()
    else:
        assert blocks["gradient_norm"].tolist() == pytest.approx([math.sqrt(2 * share) for share in shares])
        assert steps["gradient_norm"].tolist() == pytest.approx([math.sqrt(2 * 4.0)])


def test_clipping_and_skipping_are_told_by_step(tmp_path: Path) -> None:
    """The factor comes from the ranks' shares; NaN is what clipping makes of gradients that are not finite."""
    seen = [(16.0, 4.0), (16.0, 16.0), (0.0, 0.0), (math.inf, math.nan), (16.0, None), (None, None)]
    for rank in range(2):
        _, writer = begin(tmp_path, rank=rank, world_size=2)
        training = synthetic.Training(SITES)
        writer.sites(SITES)
        for gradient, stepped in seen:
            record = training.step(skipped=rank == 1 and gradient == math.inf, scale=8.0)
            values, there = record.run.copy(), record.run_present.copy()
            for name, value in (("gradient_square", gradient), ("stepped_square", stepped)):
                i = RUN_VALUES.index(name)
                there[i] = value is not None
                values[i] = (value or 0.0) * (2 * rank + 1)
            writer.step(replace(record, run=values, run_present=there))
        writer.end(RunEnd("finished", 1.0, len(seen)))
    steps = resmon.load(tmp_path / "digits").steps()
    assert steps["gradients"].tolist() == ["before clipping"] * 4 + ["as stepped", pd.NA]
    factors = steps["clip_factor"].tolist()
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert math.isnan(factors[3])
    assert factors[4] is pd.NA and factors[5] is pd.NA
    assert steps["gradient_norm"].tolist()[:2] == [8.0, 8.0]
    assert steps["skipped"].tolist() == [False] * 3 + [True] + [False] * 2
    assert steps["loss_scale"].tolist() == [8.0] * 6


def test_a_step_that_was_logged_but_not_recorded_is_there(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(SITES)
    write(writer, training, 2)
    writer.scalars(ScalarRecord(2, 5.0, {"loss": 7.0}))
    writer.end(RunEnd("failed", 1.0, 2))
    steps = resmon.load(folder).steps()
    assert steps["step"].tolist() == [0, 1, 2]
    assert steps["loss"][2] == 7.0
    assert steps["complete"][2] is pd.NA
    assert steps["time"][2] is pd.NaT or steps["time"].isna()[2]
    assert len(resmon.load(folder).blocks()) == 2 * 3


def test_scalars_come_as_they_were_logged(tmp_path: Path) -> None:
    ranks(tmp_path, 1, steps=2)
    scalars = resmon.load(tmp_path / "digits").scalars()
    assert scalars[["step", "name", "value"]].values.tolist() == [
        [step, name, value] for step in (0, 1) for name, value in [("loss", 1.0), ("accuracy", 0.5), ("loss", 2.0), ("step", 9.0)]
    ]


@pytest.mark.parametrize("count", [1, 2])
def test_histograms_are_each_steps_own(tmp_path: Path, count: int) -> None:
    written = ranks(tmp_path, count)
    loaded = resmon.load(tmp_path / "digits")
    histograms = loaded.histograms()
    columns = [name for name in histograms.columns if name not in ("step", "block", "sum", "model")]
    assert len(columns) == MAGNITUDE_COLUMNS
    assert (columns[0], columns[20], columns[-1]) == ("2^-20", "2^0", "nonfinite")
    # A step that was cut short shows the total of the step before; these two steps' order must not lose a row.
    steps = sorted(set(histograms["step"]))
    for row in histograms.to_dict("records"):
        expected, sums = np.zeros(MAGNITUDE_COLUMNS, np.int64), 0.0
        for of in written:
            if row["step"] < len(of):
                record = of[row["step"]]
                before = of[row["step"] - 1] if row["step"] else None
                site = int(row["block"][2:])
                expected += record.magnitude_buckets[site] - (before.magnitude_buckets[site] if before else 0)
                sums += record.magnitude_sum[site] - (before.magnitude_sum[site] if before else 0.0)
        assert [row[name] for name in columns] == expected.tolist()
        assert row["sum"] == pytest.approx(sums)
    assert steps[:4] == [0, 1, 2, 3]
    part = loaded.histograms(first=1, last=2)
    assert part["step"].tolist() == [1] * 3 + [2] * 3
    pd.testing.assert_frame_equal(part, histograms[histograms["step"].between(1, 2)].reset_index(drop=True))


def test_a_histogram_whose_predecessor_is_damaged_is_left_out(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    write(writer, synthetic.Training(SITES), 5)
    writer.end(RunEnd("finished", 1.0, 4))
    path = folder / "steps-000000000000.arrow"
    data = bytearray(path.read_bytes())
    data[-int(2.5 * (len(data) - 2300) / 5)] ^= 1
    path.write_bytes(data)
    loaded = resmon.load(folder)
    there = loaded.steps().query("ranks > 0")["step"].tolist()
    assert len(there) == 4
    (gone,) = {0, 1, 2, 3, 4} - set(there)
    assert sorted(set(loaded.histograms()["step"])) == sorted({0, 1, 2, 3, 4} - {gone, gone + 1})


def test_sites_that_appear_later_are_merged_by_name(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    write(writer, synthetic.Training(SITES[1:]), 2)
    training = synthetic.Training(SITES)
    training.steps = 2
    write(writer, training, 2)
    writer.end(RunEnd("finished", 1.0, 3))
    loaded = resmon.load(folder)
    assert [site.name for site in loaded.info["sites"]] == ["h.0", "h.1", "h.2"]
    assert loaded.blocks().groupby("step")["block"].apply(list).tolist() == [["h.1", "h.2"]] * 2 + [["h.0", "h.1", "h.2"]] * 2


def test_several_models_keep_their_labels(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path, models={"g": "Generator", "d": "Discriminator"})
    sites = (*synthetic.sites(2, "g"), *synthetic.sites(2, "d"))
    write(writer, synthetic.Training(sites), 1)
    writer.end(RunEnd("finished", 1.0, 0))
    loaded = resmon.load(folder)
    blocks = loaded.blocks()
    assert list(zip(blocks["model"], blocks["block"], strict=True)) == [
        ("Generator", "h.0"),
        ("Generator", "h.1"),
        ("Discriminator", "h.0"),
        ("Discriminator", "h.1"),
    ]
    assert loaded.info["model"] == "Generator, Discriminator"


def test_info_says_who_where_and_from_what(tmp_path: Path) -> None:
    for rank in (0, 1):
        folder, writer = begin(tmp_path, rank=rank, host=f"host{rank}", seed=7, git_commit="abc", world_size=2)
        write(writer, synthetic.Training(SITES), 1)
        writer.end(RunEnd("finished", 1.0, 0))
    info = resmon.load(tmp_path / "digits").info
    assert (info["run"], info["model"], info["host"], info["hosts"]) == ("digits", "Net", "host0", ("host0", "host1"))
    assert (info["ranks"], info["world_size"], info["attempt"], info["attempts"]) == ((0, 1), 2, 1, (1,))
    assert info["versions"] == {"resmon": "0", "python": "3.11", "torch": "2.13"}
    assert (info["seed"], info["git_commit"], info["command"], info["sites"]) == (7, "abc", ("train.py",), SITES)
    assert info["folder"] == folder.parent


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        (["finished", "finished"], "finished"),
        (["finished", "failed"], "failed"),
        (["interrupted", "nonfinite"], "nonfinite"),
        (["failed", "killed"], "killed"),
        (["failed", "out_of_memory"], "out_of_memory"),
        (["finished", None], "unknown"),
    ],
)
def test_the_outcome_is_the_one_that_tells_most(tmp_path: Path, ends: list[Outcome | None], told: str) -> None:
    for rank, end in enumerate(ends):
        folder, writer = begin(tmp_path, rank=rank)
        writer.end(RunEnd(end or "finished", 1.0, 0))
        if end is None:
            (folder / "end.json").unlink()
    assert resmon.load(tmp_path / "digits").outcome == told


def test_without_an_end_mark_the_lock_and_the_boot_tell(tmp_path: Path) -> None:
    _, here = begin(tmp_path, run="here", boot_id=boot_id())
    assert resmon.load(tmp_path / "here").outcome == "running"
    for run, boot, told in [("here2", boot_id(), "killed"), ("elsewhere", "another boot", "unknown")]:
        code = (
            "import os, sys; from pathlib import Path; from tests.flight.flights import begin\n"
            "begin(Path(sys.argv[1]), run=sys.argv[2], boot_id=sys.argv[3]); os._exit(1)"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path), run, boot], check=False)
        assert resmon.load(tmp_path / run).outcome == told
    here.end(RunEnd("finished", 1.0, None))
    assert resmon.load(tmp_path / "here").outcome == "finished"


def finding(**changes: object) -> Finding:
    made = Finding(
        id="a",
        state="opened",
        kind="nonfinite",
        severity="page",
        model="Net",
        block="h.1",
        opened_step=3,
        opened_time=1.0,
        step=3,
        time=1.0,
        summary="",
        expected="",
        seen="",
        confidence=1.0,
        runbook="nonfinite",
        evidence={"count": 3},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_findings_are_the_newest_event_of_each(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    writer.end(RunEnd("finished", 1.0, None))
    assert list(resmon.load(folder).findings().columns) == list(asdict(finding()))
    events = [finding(id="b", opened_step=9), finding(), finding(state="updated", step=5), finding(state="closed", step=8)]
    lines = [json.dumps(asdict(event)) for event in events]
    wrong = json.dumps(asdict(finding()) | {"state": "forgotten"})
    (folder.parent / "findings.jsonl").write_text("\n".join([*lines[:2], "{", wrong, "[]", *lines[2:], '{"id": "c"']))
    loaded = resmon.load(folder)
    found = loaded.findings()
    assert found[["id", "state", "step", "opened_step"]].values.tolist() == [["a", "closed", 8, 3], ["b", "opened", 3, 9]]
    assert json.loads(found["evidence"][0]) == {"count": 3}
    assert len(loaded.skipped) == 4
    assert all(skip.file.name == "findings.jsonl" for skip in loaded.skipped)


def test_what_is_no_flight_is_told(tmp_path: Path) -> None:
    begin(tmp_path, run="digits")[1].end(RunEnd("finished", 1.0, None))
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "attempt-0001" / "rank-00000").mkdir(parents=True)
    (tmp_path / "begun" / "attempt-0002").mkdir()
    for path, message in [
        ("nowhere", r"no flight at .*nowhere.*holds the runs begun and digits"),
        ("file", "is a file"),
        ("empty", "no attempt-"),
        ("begun", "empty: no rank wrote anything"),
        ("begun/attempt-0001/rank-00000", "empty"),
        (".", "holds the runs .*digits.*name one"),
    ]:
        with pytest.raises(FlightError, match=message):
            resmon.load(tmp_path / path)
    with pytest.raises(FlightError, match="no attempt 7; it has 1"):
        resmon.load(tmp_path / "digits", attempt=7)
    with pytest.raises(FlightError, match="attempt 1, not 2"):
        resmon.load(tmp_path / "digits" / "attempt-0001", attempt=2)


def test_an_attempt_that_is_just_beginning_does_not_hide_the_one_before(tmp_path: Path) -> None:
    _, writer = begin(tmp_path)
    write(writer, synthetic.Training(SITES), 1)
    writer.end(RunEnd("finished", 1.0, 0))
    (tmp_path / "digits" / "attempt-0002").mkdir()
    assert resmon.load(tmp_path / "digits").attempt == 1


def test_a_running_flight_is_loaded_as_it_stands(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path, boot_id=boot_id())
    training = synthetic.Training(SITES)
    write(writer, training, 70)
    with (folder / "steps-000000000000.arrow").open("ab") as file:
        file.write(b"\xff\xff\xff\xff")  # the row under way
    loaded = resmon.load(folder)
    assert loaded.outcome == "running"
    assert loaded.skipped == []
    assert len(loaded.steps()) == 70
    writer.end(RunEnd("finished", 1.0, 69))
    (skip,) = resmon.load(folder).skipped
    assert (skip.bytes, skip.reason) == (4, "cut off")


def test_a_long_flight_loads_in_seconds(tmp_path: Path) -> None:
    """20,000 steps of 12 blocks here; 100,000 took 1 s to load and 0.6 s to frame where this was written."""
    folder, writer = begin(tmp_path, budget=1 << 30)
    training = synthetic.Training(synthetic.sites(12))
    writer.sites(training.sites)
    record = training.step()
    for step in range(20_000):
        writer.step(replace(record, step=step))
    writer.end(RunEnd("finished", 1.0, 19_999))
    begun = os.times()
    loaded = resmon.load(folder)
    assert (len(loaded.steps()), len(loaded.blocks())) == (20_000, 240_000)
    spent = os.times()
    assert spent.user + spent.system - begun.user - begun.system < 5


def test_gaps_are_those_of_the_lowest_rank_that_logs_both_sides(tmp_path: Path) -> None:
    expected = Gaps()
    rows = []
    for rank in range(3):
        _, writer = begin(tmp_path, rank=rank, world_size=3)
        training = synthetic.Training(SITES, seed=rank)
        writer.sites(SITES)
        for step in range(40):
            writer.step(training.step())
            values = {"loss": float(training.random.normal())}
            if rank and step % 10 == 9:  # rank 0 trains only
                values |= {"val_loss": float(training.random.normal()), "val_accuracy": 0.5}
            writer.scalars(ScalarRecord(step, 5.0, values))
            if rank == 1:
                rows += [gap for name, value in values.items() if (gap := expected.add(step, name, value))]
    frame = resmon.load(tmp_path / "digits").gaps()
    assert frame["step"].tolist() == [9, 19, 29, 39] == [row.step for row in rows]
    assert frame["score"].tolist() == ["loss"] * 4
    assert frame["training"].tolist() == [row.training for row in rows]
    assert frame["gap"].tolist() == [row.validation - row.training for row in rows]


def test_a_flight_without_scores_targets_or_checkpoints_has_empty_frames_of_the_same_columns(tmp_path: Path) -> None:
    _, writer = begin(tmp_path)
    write(writer, synthetic.Training(SITES), 2)
    flight = resmon.load(tmp_path / "digits")
    for frame in (flight.gaps(), flight.targets(), flight.checkpoints()):
        assert len(frame) == 0
        assert not frame.dtypes.eq("object").any()
    assert list(flight.checkpoints().columns) == ["step", "time", "path", "rank"]


def test_a_target_that_was_met_is_remembered_when_its_step_is_thinned(tmp_path: Path) -> None:
    """And a mean over steps that are gone is no mean: gaps begin anew behind the hole."""
    folder, writer = begin(tmp_path, budget=1 << 20, targets=("accuracy >= 0.9", "loss <= -1"))
    training = synthetic.Training(SITES)
    writer.sites(SITES)
    for step in range(4000):
        writer.step(training.step())
        scores = {"loss": float(step)} | ({"val_loss": 0.0} if step % 400 == 399 else {})
        writer.scalars(ScalarRecord(step, training.now, scores))
    journal.append(folder / layout.REACHED, asdict(Reached("accuracy >= 0.9", 1500, 1501, 1375.25, 375.25, 0.91)))
    flight = resmon.load(tmp_path / "digits")
    kept = flight.steps()["step"].tolist()
    assert 1500 not in kept and 0 in kept and 3999 in kept
    frame = flight.targets()
    assert frame["reached"].tolist() == [True, False]
    assert frame["seconds"].iloc[0] == 375.25
    steps = set(kept)
    for row in flight.gaps().itertuples():
        stretch = range(row.step - 399, row.step + 1)
        assert steps.issuperset(stretch)
        assert row.training == pytest.approx(np.mean(stretch))
    assert {399, 799} <= set(flight.gaps()["step"])


def test_checkpoints_of_all_ranks_by_step_and_damage_between_them(tmp_path: Path) -> None:
    for rank in range(2):
        folder, writer = begin(tmp_path, rank=rank, world_size=2)
        write(writer, synthetic.Training(SITES), 3)
        for step, path in ((None, "begin"), (1, f"rank{rank}"), (2, "half \udc00 a pair")):
            journal.append(folder / layout.CHECKPOINTS, asdict(Checkpoint(step, 1000.0, path)))
    with (folder / layout.CHECKPOINTS).open("ab") as file:
        file.write(
            b'{"step": "3", "time": 1.0, "path": "x"}\n{"step": 3, "time": NaN, "path": "x"}\n{"step": 99999999999999999999}\n{"st'
        )
    flight = resmon.load(tmp_path / "digits")
    frame = flight.checkpoints()
    assert frame["path"].tolist() == ["begin", "begin", "rank0", "rank1", "half ? a pair", "half ? a pair"]
    assert frame["rank"].tolist() == [0, 1] * 3
    assert frame["time"].iloc[0] == pd.Timestamp(1000, unit="s", tz="UTC")
    # The last line has no end, and its writer lives: it may yet come.
    assert [skip.reason.split(":")[0] for skip in flight.skipped] == ["not a checkpoint"] * 3


def test_an_info_with_numbers_that_are_none_is_damaged(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    write(writer, synthetic.Training(SITES), 3)
    info = json.loads((folder / layout.INFO).read_text())
    for bad in (math.nan, math.inf, 10**400):
        (folder / layout.INFO).write_text(json.dumps(info | {"started": bad}))
        flight = resmon.load(tmp_path / "digits")
        assert len(flight.steps()) == 3
        assert "started is" in flight.skipped[0].reason
    (folder / layout.INFO).write_text(json.dumps(info | {"seed": 2**64 - 1, "targets": ["no target", "loss <= 1"]}))
    flight = resmon.load(tmp_path / "digits")
    assert not flight.skipped
    assert flight.info["seed"] == 2**64 - 1
    assert flight.targets()["target"].tolist() == ["loss <= 1"]


def test_a_clock_that_jumps_changes_no_step_and_no_duration(tmp_path: Path) -> None:
    _, writer = begin(tmp_path)
    training = synthetic.Training(SITES)
    writer.sites(SITES)
    jumps = [0.0, 7200.0, -7200.0, -86400.0, 3600.0]
    for step in range(200):
        record = training.step(time=1e9 + step / 4 + jumps[step // 40])
        writer.step(record)
        writer.scalars(ScalarRecord(step, record.time, {"loss": 1.0, "val_loss": 2.0}))
    writer.end(RunEnd("finished", 1e9 - 1e6, 199))
    flight = resmon.load(tmp_path / "digits")
    steps = flight.steps()
    assert steps["step"].tolist() == list(range(200))
    assert set(steps["duration"]) == {0.25}
    assert set(steps["loss"]) == {1.0}
    assert len(flight.gaps()) == 200
    assert flight.bins("run")["duration_min"].tolist() == [0.25] * 4
    assert not flight.skipped
