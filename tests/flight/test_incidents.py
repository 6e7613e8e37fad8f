from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import resmon
from resmon.flight import incidents, journal, layout
from resmon.flight.writer import FIRST_STEPS, NEWEST_STEPS
from resmon.records import Checkpoint, Incident, RunEnd, incident_id
from tests import synthetic
from tests.flight.flights import begin, read, steps_of, write


def incident(step: int | None = 7, **more: object) -> Incident:
    return replace(Incident(incident_id("nonfinite", step), "nonfinite", 5.0, step, "block h.3 made NaN"), **more)  # type: ignore[arg-type]


def checkpoint(folder: Path, step: int | None, path: str) -> None:
    journal.append(folder / layout.CHECKPOINTS, asdict(Checkpoint(step, 1.0, path)))


def test_the_newest_event_of_an_incident_is_the_incident(tmp_path: Path) -> None:
    _, writer = begin(tmp_path)
    write(writer, synthetic.Training(synthetic.sites(2)), 8)
    first = incident(evidence={"norms": [1.0, 2.0]})
    writer.incident(first)
    writer.incident(replace(first, confidence="bit-exact", origin="backward", since=5))
    writer.incident(incident(3, time=6.0))
    writer.end(RunEnd("nonfinite", 9.0, 7))
    frame = resmon.load(tmp_path / "digits").incidents()
    assert frame["id"].tolist() == ["nonfinite-7", "nonfinite-3"]
    assert frame["confidence"].tolist() == ["bit-exact", ""]
    assert frame["since"].isna().tolist() == [False, True]
    assert json.loads(frame["evidence"][0]) == {"norms": [1.0, 2.0]}


def test_each_rank_has_its_own(tmp_path: Path) -> None:
    for rank in range(2):
        _, writer = begin(tmp_path, rank=rank, world_size=2)
        writer.incident(incident())
        writer.end(RunEnd("nonfinite", 9.0, None))
    assert resmon.load(tmp_path / "digits").incidents()["rank"].tolist() == [0, 1]


def test_the_last_checkpoint_from_before_the_trouble_is_named(tmp_path: Path) -> None:
    folders = [begin(tmp_path, rank=rank, world_size=2)[0] for rank in range(2)]
    assert incidents.append(folders[0], incident()).checkpoint == ""
    checkpoint(folders[0], None, "init.pt")
    checkpoint(folders[1], 4, "four.pt")
    checkpoint(folders[0], 6, "six.pt")
    checkpoint(folders[0], 7, "seven.pt")
    for step, since, expected in ((7, None, "six.pt"), (9, 5, "four.pt"), (3, None, "init.pt"), (None, None, "seven.pt")):
        assert incidents.append(folders[0], incident(step, since=since)).checkpoint == expected
    # The weights after the newest step are sound where that step is only the last before a failure of another kind.
    assert incidents.append(folders[0], incident(7, kind="failed")).checkpoint == "seven.pt"
    found, skips = incidents.read(folders[0])
    assert [each.checkpoint_step for each in found] == [None, 6, 4, None, 7, 7]
    assert skips == []


@given(
    st.lists(
        st.binary(max_size=60)
        | st.sampled_from([b"{}", b"null", b"[" * 3000])
        | st.builds(
            lambda name, value: json.dumps(asdict(incident()) | {name: value}).encode(),
            st.sampled_from(["id", "kind", "step", "time", "confidence", "evidence", "since", "rank"]),
            st.sampled_from([None, True, "x", -1, [], {}, float("nan")]),
        ),
        max_size=6,
    )
)
@settings(deadline=None)
def test_damage_costs_the_damaged_lines(tmp_path_factory: pytest.TempPathFactory, damage: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("flight") / "rank-00003"
    folder.mkdir()
    whole = json.dumps(asdict(incident())).encode()
    (folder / layout.INCIDENTS).write_bytes(b"\n".join([whole, *damage, whole, b""]))
    found, _ = incidents.read(folder)
    assert found[0] == found[-1] == incident(rank=3)
    assert all(each.rank == 3 and isinstance(each.evidence, dict) for each in found)
    assert incidents.newest(found)


def test_the_steps_before_an_incident_stay_in_full(tmp_path: Path) -> None:
    """The budget thins around them, and is not forgotten for them."""
    sites = synthetic.sites(3)
    folder, writer = begin(tmp_path, budget=16 << 20)
    training = synthetic.Training(sites)
    when = [FIRST_STEPS + 500, FIRST_STEPS + 1500]
    for step in when:
        write(writer, training, step - training.steps)
        writer.incident(incident(step))
    write(writer, training, 4000)
    for step in range(3000, 4000, 10):  # far more than there is room for
        writer.incident(incident(step))
        write(writer, training, 60)
    writer.end(RunEnd("finished", 9.0, None))
    steps = {record.step for record in steps_of(read(folder))}
    for step in when:
        assert set(range(step - NEWEST_STEPS, step)) <= steps
    assert FIRST_STEPS + 100 not in steps, "nothing was thinned: the test shows nothing"
    assert sum(path.stat().st_size for path in folder.glob("*.arrow")) < 16 << 20


def test_a_full_disk_is_told_to_who_writes(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    (folder / layout.INCIDENTS).mkdir()
    with pytest.raises(OSError, match="directory"):
        writer.incident(incident())
    writer.end(RunEnd("finished", 9.0, None))
