"""What is concluded of a rank whose process is gone, from what it left."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import resmon
from resmon.errors import FlightVersionError
from resmon.flight import endings, incidents, journal, layout, stalls
from resmon.flight.endings import Remains, conclude
from resmon.handbook import pages as handbook
from resmon.records import Checkpoint, Incident, RunEnd, StackDump, StepRecord
from tests import synthetic
from tests.flight.flights import begin, write

HERE = {"host": socket.gethostname(), "boot_id": layout.boot_id()}


def record(step: int = 7, time: float = 1000.0, seconds: float = 0.25) -> StepRecord:
    training = synthetic.Training(synthetic.sites(1), start=time - seconds)
    training.steps = step
    return training.step(time=time)


def remains(folder: Path, **more: object) -> Remains:
    """Of a process that was killed here after step 7."""
    rank = folder / "attempt-0001" / "rank-00003"
    rank.mkdir(parents=True, exist_ok=True)
    about: dict[str, object] = {"folder": rank, "info": synthetic.info(**HERE), "end": None, "newest": record(), "now": 2000.0}
    return Remains(**about | more)  # type: ignore[arg-type]


def test_killed(tmp_path: Path) -> None:
    end, incident = conclude(remains(tmp_path))
    assert (end.outcome, end.step, end.time) == ("killed", 7, 2000.0)
    assert "SIGKILL" in end.reason and "no end mark" in end.reason
    assert incident is not None
    assert (incident.id, incident.kind, incident.rank, incident.step) == ("killed-7", "killed", 3, 7)
    assert "killed after step 7 without a word" in incident.summary and "dmesg" in incident.advice


def test_lost_while_others_live(tmp_path: Path) -> None:
    _, incident = conclude(remains(tmp_path, waiting=(0, 1)))
    assert incident is not None
    assert incident.summary == "Rank 3 was lost after step 7 without a word, while ranks 0 and 1 lived on."
    assert incident.evidence == {"waiting_ranks": [0, 1]}


def test_before_the_first_step(tmp_path: Path) -> None:
    end, incident = conclude(remains(tmp_path, newest=None))
    assert end.step is None
    assert incident is not None and (incident.id, incident.summary) == (
        "killed",
        "The process was killed before its first step without a word.",
    )


def test_the_machine_went_down(tmp_path: Path) -> None:
    end, incident = conclude(remains(tmp_path, info=synthetic.info(**HERE | {"boot_id": "before"})))
    assert (end.outcome, end.time) == ("killed", 1000.0)
    assert incident is not None and "machine went down after step 7" in incident.summary


@pytest.mark.parametrize("info", [None, synthetic.info(host="far", boot_id="away")])
def test_what_only_others_can_know_is_unknown(info: object, tmp_path: Path) -> None:
    end, incident = conclude(remains(tmp_path, info=info))
    assert (end.outcome, incident) == ("unknown", None)


def test_a_folder_that_was_removed(tmp_path: Path) -> None:
    end, incident = conclude(replace(remains(tmp_path), folder=tmp_path / "gone"))
    assert (end.outcome, end.reason, incident) == ("unknown", "the run's folder was removed", None)


@pytest.mark.parametrize(
    ("outcome", "reason", "summary", "evidence"),
    [
        ("interrupted", "SIGTERM", "SIGTERM ended the run after step 7.", {"signal": "SIGTERM"}),
        ("killed", "SIGSEGV", "The process crashed with SIGSEGV after step 7", {"signal": "SIGSEGV"}),
        ("failed", "exit status 3 after x", "The process left with exit status 3 after x after step 7", {"exit_status": 3}),
        ("failed", "ValueError: boom", "ValueError: boom, after step 7.", {}),
        ("shape_mismatch", "RuntimeError", "RuntimeError, after step 7.", {}),
    ],
)
def test_an_end_mark_without_an_incident(
    outcome: str, reason: str, summary: str, evidence: dict[str, object], tmp_path: Path
) -> None:
    mark = RunEnd(outcome, 1000.5, 7, reason)  # type: ignore[arg-type]
    end, incident = conclude(remains(tmp_path, end=mark))
    assert end == mark
    assert incident is not None
    assert incident.summary.startswith(summary)
    assert (incident.kind, incident.time, incident.evidence) == (outcome, 1000.5, evidence)


def test_what_is_on_file_is_not_said_again(tmp_path: Path) -> None:
    known = Incident("failed-6", "failed", 1000.0, 6, "boom")
    mark = RunEnd("failed", 1000.5, 7, "ValueError: boom")
    assert conclude(remains(tmp_path, end=mark, incidents=(known,)))[1] is None
    assert conclude(remains(tmp_path, end=mark, incidents=(replace(known, kind="nonfinite"),)))[1] is not None
    assert conclude(remains(tmp_path, end=RunEnd("finished", 1.0, 7)))[1] is None


@pytest.mark.parametrize(("noted", "named"), [(7, "c"), (8, "b"), (6, "c")])
def test_a_checkpoint_of_the_last_step_is_from_before_the_trouble(noted: int, named: str, tmp_path: Path) -> None:
    what = remains(tmp_path)
    for step, path in ((5, "b"), (noted, "c")):
        journal.append(what.folder / layout.CHECKPOINTS, asdict(Checkpoint(step, 1.0, path)))
    _, incident = conclude(what)
    assert incident is not None and incident.checkpoint == named


def stalled(**evidence: object) -> Incident:
    return Incident("stalled-7", "stalled", 1400.0, 7, "No step", since=7, evidence={"pid": 1, **evidence})


@pytest.mark.parametrize("mark", [None, RunEnd("interrupted", 1500.0, 7, "SIGTERM"), RunEnd("killed", 1500.0, 7, "SIGABRT")])
def test_who_ends_in_a_stall_has_stalled(mark: RunEnd | None, tmp_path: Path) -> None:
    end, incident = conclude(remains(tmp_path, end=mark, incidents=(stalled(),)))
    assert (end.outcome, end.step) == ("stalled", 7)
    assert incident is not None and incident.id == "stalled-7" and not stalls.is_open(incident)
    assert "No step came after step 7, until" in incident.summary
    # And after all that has been written down, it is the same.
    marked = mark or end
    assert conclude(remains(tmp_path, end=marked, incidents=(incident,)))[0].outcome in ("stalled", marked.outcome)


@pytest.mark.parametrize(
    ("mark", "stall", "outcome"),
    [
        (RunEnd("finished", 1500.0, 7), stalled(), "finished"),
        (RunEnd("failed", 1500.0, 7, "RuntimeError: timed out"), stalled(), "failed"),
        (RunEnd("interrupted", 1500.0, 7, "SIGTERM"), stalled(resumed_step=8), "interrupted"),
        (None, replace(stalled(), step=5, id="stalled-5"), "killed"),
    ],
)
def test_who_went_on_has_not(mark: RunEnd | None, stall: Incident, outcome: str, tmp_path: Path) -> None:
    quick = record(time=1499.0)
    end, _ = conclude(remains(tmp_path, end=mark, incidents=(stall,), newest=quick))
    assert end.outcome == outcome


@pytest.mark.parametrize(("seconds", "outcome"), [(299.0, "interrupted"), (301.0, "stalled")])
def test_a_signal_long_after_the_last_step_shows_a_stall_that_nobody_saw(seconds: float, outcome: str, tmp_path: Path) -> None:
    mark = RunEnd("interrupted", 1000.0 + seconds, 7, "SIGTERM")
    end, incident = conclude(remains(tmp_path, end=mark))
    assert end.outcome == outcome
    assert incident is not None and incident.kind == outcome
    assert conclude(remains(tmp_path, end=mark, info=synthetic.info(**HERE, stall_after=0.0)))[0].outcome == "interrupted"


def test_where_a_process_stood_that_was_ended_is_known_from_its_own_words(tmp_path: Path) -> None:
    seen = StackDump(7, 240.0, 120.0, "data", "train.py:31: for x in loader:", "", "", "", ("train.py:31 in main",))
    what = remains(tmp_path, end=RunEnd("interrupted", 1400.0, 7, "SIGTERM"))
    layout.write_json(what.folder / layout.STACK, asdict(seen))
    _, incident = conclude(what)
    assert incident is not None and incident.line == seen.line and incident.evidence["stack"] == list(seen.calls)
    assert incident.summary.endswith("until SIGTERM ended it. It was waiting for data, at train.py:31: for x in loader:.")


def test_what_a_room_sees_more_is_asked_first(tmp_path: Path) -> None:
    def kernel(what: Remains) -> endings.Ending | None:
        return RunEnd("out_of_memory", what.now, what.step, "the kernel"), None

    assert conclude(remains(tmp_path), (kernel, *endings.CONCLUSIONS))[0].outcome == "out_of_memory"


def test_readers_conclude_what_nobody_has_written_down(tmp_path: Path) -> None:
    from tests.flight.flights import begin, write

    folder, writer = begin(tmp_path, **HERE)
    write(writer, synthetic.Training(synthetic.sites(1)), 3)
    writer.leave()
    layout.release(writer._lock)
    flight = resmon.load(tmp_path / "digits")
    assert (flight.outcome, flight.incidents()["id"].tolist()) == ("killed", ["killed-2"])
    assert not (folder / layout.INCIDENTS).exists()  # who only reads writes nothing
    incidents.append(folder, Incident("killed-2", "killed", time.time(), 2, "told by the agent"))
    assert resmon.load(tmp_path / "digits").incidents()["summary"].tolist() == ["told by the agent"]


def test_all_of_an_attempt_is_told_whoever_asks_first(tmp_path: Path) -> None:
    """Rank 0 is under way, 1 said what broke, 2 was killed, 3 stalls, 4 cannot be read, 5 ended well."""
    flights = [begin(tmp_path, rank=rank, world_size=6, stall_after=1.0, **HERE) for rank in range(6)]
    attempt = flights[0][0].parent
    for rank, (_, writer) in enumerate(flights):
        quiet = 3700.0 if rank == 3 else 0.0
        write(writer, synthetic.Training(synthetic.sites(1), start=time.time() - quiet - 0.1), 3)
    journal.append(flights[3][0] / layout.CHECKPOINTS, asdict(Checkpoint(2, 5.0, "two.pt")))
    flights[1][1].incident(Incident("failed-2", "failed", 5.0, 2, "ValueError: no"))
    flights[1][1].end(RunEnd("failed", 6.0, 2, "ValueError: no"))
    layout.release(flights[2][1]._lock)
    (flights[4][0] / layout.INFO).write_text("{")
    flights[5][1].end(RunEnd("finished", 6.0, 2))
    found = {incident.rank: incident for incident in endings.of_attempt(attempt)}
    assert {rank: incident.kind for rank, incident in found.items()} == {1: "failed", 2: "killed", 3: "stalled"}
    assert (found[2].step, found[2].checkpoint) == (2, "two.pt")
    assert (found[3].step, found[3].since, found[3].checkpoint) == (2, 3, "two.pt")
    assert found[3].summary.startswith("No step for 1 h 1 min after step 2")
    assert not list(attempt.rglob(layout.INCIDENTS))[1:], "who only asks writes nothing"


def test_a_newer_version_is_refused_and_no_incident_is_made_up(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path, **HERE)
    write(writer, synthetic.Training(synthetic.sites(1)), 3)
    layout.release(writer._lock)
    path = folder / layout.INFO
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(FlightVersionError, match="newer"):
        endings.of_attempt(folder.parent)


@pytest.mark.parametrize("kind", ["out_of_memory", "shape_mismatch", "nonfinite", "failed"])
def test_what_only_the_end_mark_tells_has_its_runbook(kind: str, tmp_path: Path) -> None:
    _, incident = conclude(remains(tmp_path, end=RunEnd(kind, 6.0, 7, "no word of it")))  # type: ignore[arg-type]
    assert incident is not None and incident.runbook in handbook.names()
