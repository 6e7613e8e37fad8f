"""Ranks over gloo against one process in float64 on the same global batch (tests/capture/stack.py).

`sharded.CASES` are the ways to spread the model. All cases of one world size run in one launch, once.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import resmon
from resmon.flight.frames import Flight
from tests.capture import sharded, stack
from tests.ports import free_port
from tests.ranks import environment, run_all, run_ranks

ALONE = ("ddp", "fsdp", "plain")
TWO = tuple(name for name in sharded.CASES if not name.startswith(("hsdp", "fsdp-tp")))
FOUR = (
    "ddp",
    "ddp-unused",
    "fsdp",
    "fsdp-uneven",
    "hsdp",
    "hsdp-uneven",
    "tp-same",
    "sequence",
    "dtensor",
    "fsdp-tp",
    "fsdp-tp-same",
)
SITES = ["h.0.attn", "h.0.down", "h.1.attn", "h.1.down"]

# What cannot be known, by case, and words of the reason that the record gives.
UNSYNCHRONISED = {"gradient_norm": "not synchronised (no_sync)"}
UNACCOUNTED = {"gradient_norm": "say watch(other_ranks="}
STREAM = {"output_gradient_norm": "a plain tensor in a tensor-parallel region"}
PARTIAL = {"gradient_norm": "Partial over the mesh's dimension"}
FIRST = {"gradient_norm": "FullyShardedDataParallel, FSDP1", "output_gradient_norm": "FullyShardedDataParallel, FSDP1"}
ABSENT: dict[str, dict[str, str]] = {
    "ddp-unsynchronised": UNSYNCHRONISED,
    "part-unsynchronised": UNSYNCHRONISED,
    "fsdp1": FIRST,
    "fsdp1-own": FIRST,
    "plain": UNACCOUNTED | {"output_gradient_norm": "say watch(other_ranks="},
    "tp": UNACCOUNTED | STREAM,
    "tp-same": STREAM,
    "sequence": PARTIAL | STREAM,
    "dtensor": PARTIAL,
    "fsdp-tp": UNACCOUNTED | STREAM,
    "fsdp-tp-same": STREAM,
}
OUTERMOST = {"part": "Outer", "fsdp1": "FullyShardedDataParallel"}  # of what is watched, if it is not the model
# Ranks that nobody synchronises drift apart: the truth is known of the first step only.
DRIFTING = ("ddp-unsynchronised", "part-unsynchronised", "plain", "plain-own", "fsdp-blocks")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched(tmp_path_factory.mktemp("alone"), 1, ALONE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched(tmp_path_factory.mktemp("two"), 2, TWO)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched(tmp_path_factory.mktemp("four"), 4, FOUR)


def launched(folder: Path, world: int, cases: tuple[str, ...], bare: bool = False) -> Path:
    run_ranks(world, "tests.capture.sharded", str(folder), str(int(bare)), *cases)
    return folder


def check(folder: Path, name: str, world: int) -> None:
    """Every value of every site and step, merged over the ranks, and the total, against the truth; or absent with its reason."""
    case = sharded.CASES[name]
    parts = case.parts or world
    truth = stack.truth(
        stack.stack(case.uneven, bool(case.detour_on)),
        tuple(part in case.detour_on for part in range(parts)),
        case.clip,
        case.left_out,
    )
    precision = 0.03 if "half" in name else 1e-6
    absent = ABSENT.get(name, {}) if world > 1 else {}
    flight = resmon.load(folder / name)
    assert not flight.skipped
    assert flight.info["models"] == {"": OUTERMOST.get(name.partition("-")[0], "Stack")}
    blocks = flight.blocks()
    blocks["block"] = ["h." + name.rpartition("h.")[2] for name in blocks["block"]]  # without what wraps it
    assert blocks["block"].tolist() == SITES * stack.STEPS
    for row in blocks.to_dict("records"):
        if name in DRIFTING and row["step"] and world > 1:
            continue
        for value in ("skip_rms", "branch_rms", "output_rms", "branch_skip_ratio", "gradient_norm", "output_gradient_norm"):
            if value in absent:
                assert row[value] is None or row[value] != row[value], (row["step"], row["block"], value)
            else:
                assert row[value] == pytest.approx(truth[row["step"]][f"{row['block']} {value}"], rel=precision), (row, value)
    for site in flight.sites:
        assert sorted(said.partition(":")[0] for said in site.absent) == sorted(absent), site.absent
        assert all(any(why.startswith(value) and words in why for why in site.absent) for value, words in absent.items())
    steps = flight.steps()
    assert (steps["ranks"] == world).all()
    if "gradient_norm" in absent or (name == "fsdp-blocks" and world > 1):  # there the stem and the head are plain
        assert steps["gradient_norm"].isna().all()
        assert (steps["unknown_gradients"] > 0).all()
    else:
        totals = [step["total"] for step in truth]
        known = 1 if name in DRIFTING and world > 1 else stack.STEPS
        assert steps["gradient_norm"].tolist()[:known] == pytest.approx(totals[:known], rel=precision)
        assert (steps["unknown_gradients"] == 0).all()
    if case.clip < math.inf:
        assert (steps["gradients"] == "before clipping").all()
        assert steps["clip_factor"].tolist() == pytest.approx([case.clip / step["total"] for step in truth], rel=1e-5)


@pytest.mark.parametrize("name", ALONE)
def test_one_rank(name: str, alone: Path) -> None:
    check(alone, name, 1)


# Those of which more is to be said than `check` does.
APART = ("plain-own", "ddp-past", "ddp-unfrozen", "ddp-unfrozen-before")


@pytest.mark.parametrize("name", [name for name in TWO if name not in APART])
def test_two_ranks(name: str, two: Path) -> None:
    check(two, name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_ranks(name: str, four: Path) -> None:
    check(four, name, 4)


def shares(flight: Flight, step: int) -> dict[str, list[float]]:
    rows = flight.blocks(per_rank=True).query(f"step == {step}")
    return {block: group["gradient_norm_share"].tolist() for block, group in rows.groupby("block")}


def test_what_a_rank_records_is_its_share(two: Path) -> None:
    replicated, sharded_ = (shares(resmon.load(two / name), 0) for name in ("ddp", "fsdp"))
    for block in SITES:
        assert replicated[block][0] == pytest.approx(replicated[block][1], rel=1e-6)  # half of the square each
        assert sharded_[block][0] != pytest.approx(sharded_[block][1], rel=1e-3)  # its own rows
        assert sum(s**2 for s in sharded_[block]) == pytest.approx(sum(s**2 for s in replicated[block]), rel=1e-6)


def test_parameters_of_its_own_are_a_ranks_share_whole(two: Path) -> None:
    """With other_ranks="own" each rank has the norms that it would have alone: here those of its own half of the batch."""
    flight = resmon.load(two / "plain-own")
    model = stack.stack()
    for rank in range(2):
        model.zero_grad()
        half = next(stack.batches(stack.WIDTH)).chunk(2)[rank]
        stack.loss_of(model(half)).backward()
        for i, block in enumerate(model.h):
            for name, modules in stack.BRANCHES.items():
                parameters = [p for m in modules for p in block.get_submodule(m).parameters()]
                norm = sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None) ** 0.5
                assert shares(flight, 0)[f"h.{i}.{name}"][rank] == pytest.approx(norm, rel=1e-6)


def absent(flight: Flight) -> dict[str, str]:
    """What each site says of its gradient's absence, "" where it says nothing."""
    return {site.name: " ".join(why for why in site.absent if why.startswith("gradient_norm: ")) for site in flight.sites}


def test_a_pass_that_goes_by_the_wrapper_is_told(two: Path) -> None:
    """`model.module(x)` in the place of `model(x)`: nothing is averaged, and ranks drift apart with all numbers looking well."""
    flight = resmon.load(two / "ddp-past")
    steps, blocks = flight.steps(), flight.blocks()
    truth = stack.truth(stack.stack())
    assert steps["gradient_norm"][0] == pytest.approx(truth[0]["total"], rel=1e-6)
    assert steps["gradient_norm"][1:].isna().all()
    assert (blocks["gradient_norm"].isna() == (blocks["step"] > 0)).all()
    assert all("the pass went by DistributedDataParallel (model.module(...))" in said for said in absent(flight).values())


def test_what_was_frozen_when_it_was_wrapped_is_told(two: Path) -> None:
    """Progressive unfreezing without wrapping again: DistributedDataParallel leaves those gradients to each rank."""
    flight = resmon.load(two / "ddp-unfrozen")
    blocks, said = flight.blocks(), absent(flight)
    first = blocks["block"].str.startswith("h.0")
    assert blocks[first]["gradient_norm"].isna().all()  # frozen at step 0, and of each rank's own from then on
    assert blocks[~first]["gradient_norm"].notna().all()
    assert flight.steps()["gradient_norm"].notna().tolist() == [True, False, False]
    assert ["it was frozen when DistributedDataParallel wrapped the model" in said[site] for site in SITES] == [
        True,
        True,
        False,
        False,
    ]


def test_what_was_frozen_when_it_was_wrapped_is_told_where_nobody_saw_it_frozen(two: Path) -> None:
    flight = resmon.load(two / "ddp-unfrozen-before")
    assert flight.steps()["gradient_norm"].isna().all()
    assert flight.blocks()["gradient_norm"].isna().all()
    assert all("more are trained than it knows" in said for said in absent(flight).values())


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_weights_and_collectives_are_those_without_resmon(world: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    watched: Path = request.getfixturevalue("two" if world == 2 else "four")
    names = tuple(name for name in sharded.COMPARED if name in (TWO if world == 2 else FOUR))
    bare = launched(tmp_path, world, names, bare=True)
    for name in names:
        for rank in range(world):
            ours, theirs = (json.loads((folder / f"{name}-{rank}.json").read_text()) for folder in (watched, bare))
            assert theirs["collectives"], name
            assert ours == theirs, (name, rank)
    assert not list(tmp_path.glob("*/attempt-*"))


def test_one_rank_watches_and_the_other_does_not(tmp_path: Path) -> None:
    """Nothing waits for the other. The rank that is watched says what it can know: all of replicated gradients, none of shards."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    names = ("ddp", "fsdp")
    commands = [["-m", "tests.capture.sharded", str(tmp_path), bare, *names] for bare in "01"]
    run_all(commands, [environment(**place, RANK=str(rank)) for rank in range(2)])
    truth = stack.truth(stack.stack())
    for name in names:
        flight = resmon.load(tmp_path / name)
        assert (flight.steps()["ranks"] == 1).all()
        blocks = flight.blocks()
        assert len(blocks) == len(SITES) * stack.STEPS
        assert blocks["output_gradient_norm"].isna().all()
        if name == "ddp":  # the gradients of one rank are those of all
            assert flight.steps()["gradient_norm"].tolist() == pytest.approx([step["total"] for step in truth], rel=1e-6)
            expected = [truth[row.step][f"{row.block} gradient_norm"] for row in blocks.itertuples()]
            assert blocks["gradient_norm"].tolist() == pytest.approx(expected, rel=1e-6)
        else:
            assert blocks["gradient_norm"].isna().all()
            assert flight.steps()["gradient_norm"].isna().all()
    weights = [json.loads((tmp_path / f"ddp-{rank}.json").read_text())["weights"] for rank in range(2)]
    assert weights[0] == weights[1]
