"""One run on several machines reads like one on one."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest

import resmon
from resmon.errors import ConfigurationError, FlightError
from resmon.flight import layout
from resmon.flight.gathering import gather, is_several
from resmon.records import Finding, RunEnd
from tests import synthetic
from tests.flight.flights import begin, write

RANKS = 4


def record(directory: Path, ranks: Iterator[int] | range, launch: str = "launch", started: float = 1000.0, steps: int = 12) -> Path:
    for rank in ranks:
        _, writer = begin(
            directory, launch=launch, rank=rank, world_size=RANKS, local_world_size=2, host=f"host-{rank // 2}", started=started
        )
        write(writer, synthetic.Training(synthetic.sites(2), seed=rank), steps)
        writer.end(RunEnd("finished", 2000.0, steps - 1))
    return directory / "digits"


@pytest.fixture
def machines(tmp_path: Path) -> list[Path]:
    """Ranks 0 and 1, and 2 and 3."""
    return [record(tmp_path / name / "runs", range(first, first + 2)) for name, first in (("a", 0), ("b", 2))]


@pytest.fixture
def whole(tmp_path: Path) -> resmon.Flight:
    return resmon.load(record(tmp_path / "whole", range(RANKS)))


def same(found: resmon.Flight, whole: resmon.Flight) -> None:
    assert found.info["ranks"] == whole.info["ranks"] == tuple(range(RANKS))
    assert found.info["hosts"] == ("host-0", "host-1")
    for table in ("steps", "blocks", "scalars", "groups"):
        pd.testing.assert_frame_equal(getattr(found, table)(), getattr(whole, table)())
    assert found.outcome == "finished"
    assert not found.skipped


def test_several_folders_are_one_flight(machines: list[Path], whole: resmon.Flight) -> None:
    same(resmon.load(machines), whole)
    same(resmon.load([str(machine / "attempt-0001") for machine in machines]), whole)


def test_a_glob_names_them(machines: list[Path], whole: resmon.Flight, tmp_path: Path) -> None:
    same(resmon.load(f"{tmp_path}/[ab]/runs/digits"), whole)


@pytest.mark.parametrize("pattern", [False, True])
def test_an_object_store(machines: list[Path], whole: resmon.Flight, tmp_path: Path, pattern: bool) -> None:
    store = fsspec.filesystem("memory")
    for machine in ("a", "b"):
        store.put(str(tmp_path / machine), f"/bucket-{tmp_path.name}/{machine}", recursive=True)
    root = f"memory://bucket-{tmp_path.name}"
    same(resmon.load(f"{root}/*/runs/digits" if pattern else [f"{root}/{name}/runs/digits" for name in "ab"]), whole)
    # Some here, some there.
    same(resmon.load([machines[0], f"{root}/b/runs/digits"]), whole)
    same(resmon.load([f"file://{machine}" for machine in machines]), whole)


def test_a_single_folder_is_read_where_it_lies(machines: list[Path]) -> None:
    assert resmon.load(machines[0]).folder.parent == machines[0]
    assert not is_several(machines[0])
    odd = machines[0].with_name("run[1]")
    machines[0].rename(odd)
    assert resmon.load(odd).folder.parent == odd, "a name may look like a pattern"


def test_the_launch_that_began_last_is_chosen_or_the_one_that_is_asked_for(machines: list[Path], tmp_path: Path) -> None:
    """One machine has an attempt more than the other: numbers are each machine's own."""
    record(tmp_path / "a" / "runs", range(2), launch="lonely", started=1500.0, steps=3)
    for name, first in (("a", 0), ("b", 2)):
        record(tmp_path / name / "runs", range(first, first + 2), launch="second", started=2000.0, steps=7)
    newest = resmon.load(machines)
    assert newest.info["ranks"] == (0, 1, 2, 3)
    assert len(newest.steps()) == 7
    assert not newest.notes
    first = resmon.load(machines, attempt=1)
    assert first.info["ranks"] == (0, 1, 2, 3)
    assert len(first.steps()) == 12
    lonely = resmon.load(machines, attempt=2)
    assert len(lonely.steps()) == 3
    assert lonely.info["ranks"] == (0, 1)
    assert lonely.notes == (f"{machines[1]} has no part of this launch; it has others",)
    with pytest.raises(FlightError, match="none of the folders has an attempt 9; they have 1, 2 and 3"):
        resmon.load(machines, attempt=9)


def test_of_a_rank_that_is_there_twice_the_longer_one_is_read(machines: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "digits"
    shutil.copytree(machines[0], copy)
    (segment,) = (copy / "attempt-0001" / "rank-00001").glob("steps-*.arrow")
    os.truncate(segment, segment.stat().st_size // 2)
    for order in ([copy, *machines], [*machines, copy]):
        flight = resmon.load(order)
        assert len(flight.blocks(per_rank=True)) == RANKS * 12 * 2
        assert len(flight.notes) == 2
        assert "rank 1 is in" in " ".join(flight.notes)
    assert len(resmon.load([machines[0], machines[0], machines[1]]).steps()) == 12


def test_what_all_agents_have_found_is_told_in_order(machines: list[Path]) -> None:
    def finding(kind: str, time: float) -> Finding:
        return Finding.opened(
            kind, "ticket", int(time), time, kind, expected="", seen="", confidence=0.5, runbook="", evidence={}, block="h.0"
        )

    said = {0: [finding("change", 3.0), finding("drift", 9.0)], 1: [finding("change", 3.0), finding("dead_branch", 5.0)]}
    for machine, findings in said.items():
        lines = "".join(json.dumps(asdict(each)) + "\n" for each in findings)
        (machines[machine] / "attempt-0001" / layout.FINDINGS).write_text(lines + "no json\n")
    assert resmon.load(machines).findings()["kind"].tolist() == ["change", "dead_branch", "drift"]


def test_the_folder_is_gone_when_nobody_reads_it(machines: list[Path]) -> None:
    flight = resmon.load(machines)
    folder = flight.folder
    assert folder.exists()
    del flight
    gc.collect()
    assert not folder.exists()
    assert all((machine / "attempt-0001").exists() for machine in machines), "links only are removed"


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([], "the list of them is empty"),
        (["/no/such/folder", "/nor/this"], "no folder is called /no/such/folder, /nor/this"),
        ("/no/such/*/folder", "no folder is called"),
        ("nothing://knows/this", "cannot be opened"),
    ],
)
def test_what_is_not_there_is_told(sources: str | list[str], said: str) -> None:
    with pytest.raises(FlightError, match=said):
        gather(sources)


@pytest.mark.parametrize("path", [None, 5, True, b"runs/digits", "", object(), [None], [5], [""]])
def test_what_names_no_run_is_told(path: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"resmon\.load\('runs/digits'\)"):
        resmon.load(path)


def test_a_store_that_cannot_be_reached_is_told() -> None:
    with pytest.raises(FlightError, match=r"http://127\.0\.0\.1:1/runs cannot be listed"):
        resmon.load("http://127.0.0.1:1/runs")


def test_a_name_too_long_for_any_folder_is_told() -> None:
    with pytest.raises(FlightError, match="cannot be read: File name too long"):
        resmon.load("x" * 5000)


@pytest.mark.parametrize("attempt", ["1", 1.5, ()])
def test_an_attempt_that_is_no_number_is_told(machines: list[Path], attempt: Any) -> None:
    with pytest.raises(ConfigurationError, match="an attempt is a whole number"):
        resmon.load(machines[0], attempt)
    assert resmon.load(machines[0], np.int64(1)).attempt == 1


def test_a_folder_without_flights_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlightError, match="there is no flight in"):
        gather([tmp_path / "empty"])


def test_damaged_places_cost_no_more_than_themselves(machines: list[Path]) -> None:
    (machines[1] / "attempt-0001" / "rank-00002" / layout.INFO).write_text("{")
    flight = resmon.load(machines)
    assert flight.info["ranks"] == (0, 1, 2, 3)
    assert len(flight.steps()) == 12
