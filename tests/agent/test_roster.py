"""The roster over real flights, in this process."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from resmon.agent import roster as roster_module
from resmon.agent import runtime
from resmon.agent.roster import Roster
from resmon.detectors import Detector
from resmon.exporters.prometheus import Prometheus
from resmon.exporters.view import AgentView, RunView, Stage
from resmon.flight import journal, layout
from resmon.flight.layout import boot_id, claim
from resmon.flight.writer import FlightWriter
from resmon.records import OUTCOMES, Checkpoint, Finding, Outcome, RunEnd, ScalarRecord, StepRecord
from resmon.scores.targets import Reached
from tests import synthetic
from tests.agent.conftest import Scrape

NAN = float("nan")


class Writer:
    """One rank of a run."""

    def __init__(
        self, directory: Path, run: str = "digits", rank: int = 0, launch: str = "a", sites: int = 3, **about: object
    ) -> None:
        self.folder, attempt = claim(directory, run, launch, rank)
        about = {
            "boot_id": boot_id(),
            "run": run,
            "attempt": attempt,
            "rank": rank,
            "launch": launch,
            "started": time.time(),
            **about,
        }
        self.flight = FlightWriter(self.folder, synthetic.info(**about), 64 << 20)
        self.training = synthetic.Training(synthetic.sites(sites), seed=rank, start=time.time())
        self.flight.sites(self.training.sites)
        runtime.register(self.folder)

    def step(self, **what: object) -> StepRecord:
        record = self.training.step(**what)  # type: ignore[arg-type]
        self.flight.step(record)
        return record

    def log(self, **values: float) -> None:
        self.flight.scalars(ScalarRecord(self.training.steps - 1, self.training.now, values))

    def end(self, outcome: Outcome = "finished") -> None:
        self.flight.end(RunEnd(outcome, self.training.now, self.training.steps - 1))

    def die(self) -> None:
        """What SIGKILL leaves: the lock free, no end mark."""
        layout.release(self.flight._lock)


def poll(roster: Roster) -> AgentView:
    while not roster.poll():
        pass
    return roster.view(0.0)


def only(view: AgentView) -> RunView:
    (run,) = view.runs
    return run


def gauge(run: RunView, name: str) -> list[float]:
    assert run.blocks is not None
    values, present = run.blocks.gauges[name]
    return values[present].tolist()


def findings(writer: Writer) -> list[tuple[str, str, int]]:
    path = writer.folder.parent / layout.FINDINGS
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [(event["block"], event["state"], event["step"]) for event in events]


def test_a_run_from_its_first_step_to_its_end(roster: Roster, runs: Path) -> None:
    assert poll(roster).runs == ()
    writer = Writer(runs)
    view = poll(roster)
    assert view.runs_active == 1
    assert only(view).blocks is None
    for _ in range(5):
        record = writer.step()
    writer.log(loss=3.0, accuracy=0.5)
    run = only(poll(roster))
    assert run.scores == {"loss": 3.0, "accuracy": 0.5}
    assert gauge(run, "gradient_norm") == pytest.approx(np.sqrt(record.blocks[3]).tolist())
    assert np.greater(gauge(run, "gradient_norm_max"), gauge(run, "gradient_norm")).any()
    assert run.outcome is None
    writer.end()
    view = poll(roster)
    assert only(view).outcome == "finished"
    assert (view.runs_total["finished"], view.runs_active) == (1, 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The roster's monotonic clock: one number, to be moved."""
    now = [time.monotonic()]
    with monkeypatch.context() as patch:
        patch.setattr(roster_module.time, "monotonic", lambda: now[0])
        yield now


def exported(roster: Roster, outcome: Outcome = "killed") -> float:
    """What a scrape is shown of the runs that ended so."""
    view = poll(roster)
    roster.scraped()
    text = Prometheus().render(view, "")[0].decode()
    return float(text.split(f'resmon_runs_total{{outcome="{outcome}"}} ')[1].split()[0])


def test_a_count_is_shown_once_two_scrapes_fifteen_seconds_apart_have_had_the_former(
    roster: Roster, runs: Path, clock: list[float]
) -> None:
    writer = Writer(runs)
    writer.step()
    writer.die()
    assert exported(roster) == 0  # it was born and killed before the first scrape
    assert poll(roster).runs_total["killed"] == 1
    clock[0] += 14
    assert exported(roster) == 0
    clock[0] += 1
    assert exported(roster) == 1
    again = Writer(runs, launch="b")
    again.die()
    assert exported(roster) == 2  # who scrapes here has had the former count


def test_one_scrape_is_not_enough_however_long_ago(roster: Roster, runs: Path, clock: list[float]) -> None:
    """Of two servers that scrape once a minute the second one comes half a minute later."""
    Writer(runs).die()
    assert exported(roster) == 0
    clock[0] += 30
    assert exported(roster) == 0
    clock[0] += 30
    assert exported(roster) == 1


def test_the_next_agent_begins_with_what_the_one_before_it_showed(
    roster: Roster, runs: Path, runtime_folder: Path, clock: list[float]
) -> None:
    Writer(runs).die()
    assert exported(roster) == 0
    again = Roster(runtime_folder, "0", linger=1000.0)  # the first was killed
    assert exported(again) == 0
    clock[0] += 20
    assert exported(again) == 0  # one scrape of its own; a server may not have seen the first one's
    assert exported(again) == 1
    assert exported(Roster(runtime_folder, "0", linger=1000.0)) == 1  # no agent shows less than one before


def test_an_agent_stays_until_what_it_holds_back_has_been_scraped(runtime_folder: Path, runs: Path, clock: list[float]) -> None:
    roster = Roster(runtime_folder, "0", linger=90.0)
    Writer(runs).end()
    assert exported(roster, "finished") == 0
    clock[0] += 60
    assert exported(roster, "finished") == 0
    clock[0] += 31  # nobody has scraped the run's end twice, but it is 90 seconds ago
    assert poll(roster).runs == ()
    clock[0] += 16
    poll(roster)
    assert not roster.is_over()  # the count was released a moment ago, and the next scrape is to have it
    clock[0] += 13
    assert exported(roster, "finished") == 1
    assert roster.is_over()


def test_an_agent_that_nobody_scrapes_any_more_does_not_wait(runtime_folder: Path, runs: Path, clock: list[float]) -> None:
    roster = Roster(runtime_folder, "0", linger=90.0)
    Writer(runs).end()
    assert exported(roster, "finished") == 0
    clock[0] += 89
    poll(roster)
    clock[0] += 16
    poll(roster)
    clock[0] += 16
    poll(roster)
    assert roster.is_over()
    assert Roster(runtime_folder, "0", 90.0).view(0.0).runs_exported["finished"] == 0  # the next one shows the increase


def shown(roster: Roster, name: str) -> dict[str, float]:
    """Of one metric the samples, by what stands between the braces."""
    text = Prometheus().render(poll(roster), "")[0].decode()
    return {
        line.removeprefix(name).rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith(name + "{")
    }


def test_the_outcome_is_there_from_the_end_on_and_not_of_the_attempt_that_follows(roster: Roster, runs: Path) -> None:
    writer = Writer(runs, started=1000.0)
    writer.step()
    assert shown(roster, "resmon_run_outcome") == shown(roster, "resmon_run_end_timestamp_seconds") == {}
    assert shown(roster, "resmon_run_start_timestamp_seconds") == {'{run="digits"}': 1000.0}
    writer.end("failed")
    assert shown(roster, "resmon_run_outcome") == {'{model="Net",outcome="failed",run="digits"}': 1.0}
    assert shown(roster, "resmon_run_end_timestamp_seconds") == {'{outcome="failed",run="digits"}': writer.training.now}
    Writer(runs, launch="b", started=2000.0)
    assert shown(roster, "resmon_run_outcome") == shown(roster, "resmon_run_end_timestamp_seconds") == {}
    assert shown(roster, "resmon_run_start_timestamp_seconds") == {'{run="digits"}': 2000.0}


def test_a_run_in_which_the_clock_was_set_back_ends_when_it_began(roster: Roster, runs: Path) -> None:
    writer = Writer(runs, started=5000.0)
    writer.step(time=1000.0)
    writer.flight.end(RunEnd("finished", 1001.0, 0))
    assert list(shown(roster, "resmon_run_end_timestamp_seconds").values()) == [5000.0]


def test_the_outcome_of_several_models_is_one_series(roster: Roster, runs: Path) -> None:
    writer = Writer(runs, models={"g": "Generator", "d": "Discriminator"})
    writer.end()
    assert list(shown(roster, "resmon_run_outcome")) == ['{model="Generator,Discriminator",outcome="finished",run="digits"}']


def test_a_finding_that_was_over_before_it_was_scraped_is_shown_to_two_scrapes(
    roster: Roster, runs: Path, runtime_folder: Path
) -> None:
    writer = Writer(runs)
    writer.step()
    writer.step(forward=[1])
    writer.end("nonfinite")
    series = '{block="h.1",finding="nonfinite",model="Net",run="digits",severity="page"}'
    assert [is_open for _, is_open in only(poll(roster)).findings] == [False]
    for _ in range(2):
        assert shown(roster, "resmon_finding_active") == {series: 1.0}
        roster.scraped()
    assert shown(roster, "resmon_finding_active") == {series: 0.0}
    # What another agent has told is no news.
    assert shown(Roster(runtime_folder, "0", 1000.0), "resmon_finding_active") == {series: 0.0}


def test_gauges_are_of_one_step_and_counters_of_each_ranks_newest(roster: Roster, runs: Path) -> None:
    slow, fast = Writer(runs, rank=0, world_size=2), Writer(runs, rank=1, world_size=2)
    both = slow.step(), fast.step()
    ahead = fast.step()
    run = only(poll(roster))
    together = np.sqrt(both[0].blocks[3] + both[1].blocks[3])
    assert gauge(run, "gradient_norm") == pytest.approx(together.tolist())
    assert run.blocks is not None
    assert (run.blocks.magnitude_buckets == both[0].magnitude_buckets + ahead.magnitude_buckets).all()
    assert [view.record.step for view in run.ranks if view.record] == [0, 1]
    slow.die()
    poll(roster)
    last = fast.step()
    run = only(poll(roster))  # who is dead is not waited for, and its counts stay
    assert gauge(run, "gradient_norm") == pytest.approx(np.sqrt(last.blocks[3]).tolist())
    assert run.blocks is not None
    assert (run.blocks.magnitude_buckets == both[0].magnitude_buckets + last.magnitude_buckets).all()
    assert run.outcome is None
    fast.end()
    assert only(poll(roster)).outcome == "killed"


@pytest.mark.parametrize("over", [True, False])
def test_a_rank_that_is_found_late_is_merged_with_the_others_newest_step(over: bool, roster: Roster, runs: Path) -> None:
    """A short training is through before the agent has seen that it has a second rank."""
    first = Writer(runs, rank=0, world_size=2)
    newest = [first.step() for _ in range(3)][-1]
    if over:
        first.end()
    poll(roster)
    second = Writer(runs, rank=1, world_size=2)
    also = [second.step() for _ in range(3)][-1]
    if over:
        second.end()
    run = only(poll(roster))
    assert gauge(run, "gradient_norm") == pytest.approx(np.sqrt(newest.blocks[3] + also.blocks[3]).tolist())
    if not over:
        both = first.step(), second.step()
        run = only(poll(roster))
        assert gauge(run, "gradient_norm") == pytest.approx(np.sqrt(both[0].blocks[3] + both[1].blocks[3]).tolist())


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_worst_outcome_of_the_ranks_counts_once(outcome: Outcome, roster: Roster, runs: Path) -> None:
    writers = [Writer(runs, rank=rank, world_size=3) for rank in range(3)]
    for writer, end in zip(writers, ("finished", outcome, "interrupted"), strict=True):
        writer.step()
        assert sum(poll(roster).runs_total.values()) == 0
        writer.end(end)  # type: ignore[arg-type]
    expected = min([outcome, "interrupted"], key=OUTCOMES.index)
    assert {name: count for name, count in poll(roster).runs_total.items() if count} == {expected: 1}
    assert sum(poll(roster).runs_total.values()) == 1


def test_who_is_gone_without_a_word_was_killed(roster: Roster, runs: Path) -> None:
    writer = Writer(runs)
    writer.step()
    poll(roster)
    writer.step()
    writer.die()
    view = poll(roster)
    assert view.runs_total["killed"] == 1
    end = json.loads((writer.folder / layout.END).read_text())
    assert (end["outcome"], end["step"]) == ("killed", 1)
    assert "no" in end["reason"]
    assert "end mark" in end["reason"]
    assert gauge(only(view), "skip_rms")  # the last values are still there


def test_a_folder_that_is_removed_is_let_go(roster: Roster, runs: Path) -> None:
    writer = Writer(runs)
    writer.step()
    poll(roster)
    shutil.rmtree(runs)
    view = poll(roster)
    assert view.runs_total["unknown"] == 1
    assert not runs.exists()
    writer.die()


@pytest.mark.parametrize("ended", [True, False])
def test_a_folder_that_is_removed_and_made_again_is_another_run(ended: bool, roster: Roster, runs: Path) -> None:
    """As by `rm -rf runs/digits` and another start, soon after."""
    before = Writer(runs, launch="before")
    for _ in range(3):
        before.step()
    if ended:
        before.end()
    poll(roster)
    shutil.rmtree(runs / "digits")
    after = Writer(runs, launch="after", sites=2)
    assert after.folder == before.folder
    after.step()
    run = only(poll(roster))
    assert (run.run, len(gauge(run, "gradient_norm")), run.outcome) == ("digits", 2, None)
    after.end()
    assert poll(roster).runs_total["finished"] == 1 + ended
    before.die()


def test_a_new_agent_goes_on_where_the_old_one_was(roster: Roster, runs: Path, runtime_folder: Path) -> None:
    ended, live = Writer(runs, "ended"), Writer(runs, "live")
    for step in range(40):
        ended.step(forward=[1] if step > 30 else [])
        live.step(backward=[2] if step > 20 else [])
    ended.end("failed")
    before = poll(roster)
    told = findings(ended), findings(live)
    after = poll(Roster(runtime_folder, "0", linger=1000.0))
    assert after.runs_total == before.runs_total
    assert after.runs_total["failed"] == 1
    assert (findings(ended), findings(live)) == told
    for name in range(2):
        one, two = before.runs[name].blocks, after.runs[name].blocks
        assert one is not None
        assert two is not None
        assert (one.nonfinite_steps == two.nonfinite_steps).all()
        assert (one.magnitude_buckets == two.magnitude_buckets).all()
        assert [(finding.id, is_open) for finding, is_open in before.runs[name].findings] == [
            (finding.id, is_open) for finding, is_open in after.runs[name].findings
        ]


def test_findings_of_ranks_are_written_once_and_closed_by_the_last(roster: Roster, runs: Path) -> None:
    writers = [Writer(runs, rank=rank, world_size=2) for rank in range(2)]
    for writer in writers:
        writer.step()
        writer.step(backward=[0, 1])
    run = only(poll(roster))
    assert findings(writers[0]) == [("h.1", "opened", 1)]
    assert [is_open for _, is_open in run.findings] == [True]
    writers[0].end("nonfinite")
    assert [is_open for _, is_open in only(poll(roster)).findings] == [True]
    writers[1].step()
    writers[1].end("nonfinite")
    assert [is_open for _, is_open in only(poll(roster)).findings] == [False]
    assert findings(writers[0]) == [("h.1", "opened", 1), ("h.1", "closed", 2)]
    (event, _), *_ = only(poll(roster)).findings
    assert event.evidence["rank"] == 1


def test_a_line_of_findings_that_was_cut_does_not_spoil_the_next(roster: Roster, runs: Path) -> None:
    writer = Writer(runs)
    path = writer.folder.parent / layout.FINDINGS
    path.write_bytes(b'{"id": "x", "state": "ope')
    writer.step(forward=[0])
    poll(roster)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1])["block"] == "h.0"


def test_flights_of_another_boot_are_refused_and_counted(roster: Roster, runs: Path, runtime_folder: Path) -> None:
    Writer(runs, "other", boot_id="another")
    Writer(runs, "none", boot_id="")
    runtime.register(runs / "not there" / "attempt-0001" / "rank-00000")
    (runtime_folder / runtime.RUNS / "damaged.json").write_text("{")
    view = poll(roster)
    assert (view.runs, view.errors) == ((), 4)
    assert runtime.registrations(runtime_folder) == {}
    assert poll(roster).errors == 4
    assert poll(Roster(runtime_folder, "0", 1.0)).errors == 4


def test_of_one_run_the_newest_attempt_is_shown(roster: Roster, runs: Path) -> None:
    old = Writer(runs, launch="a")
    old.step()
    poll(roster)
    new = Writer(runs, launch="b")
    old.end("failed")
    new.step()
    view = poll(roster)
    assert only(view).info.attempt == 2
    assert (view.runs_total["failed"], view.runs_active) == (1, 1)


def test_two_runs_of_one_name_in_two_folders_are_two(roster: Roster, runs: Path) -> None:
    one, two = Writer(runs / "a", started=1.0), Writer(runs / "b", started=2.0)
    one.step()
    two.step()
    view = poll(roster)
    assert [run.run for run in view.runs] == ["digits", "digits#2"]
    content, _ = Prometheus().render(view, "")
    assert b'run="digits#2"' in content


def test_series_stay_until_they_were_scraped_twice(runs: Path, runtime_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "SETTLED", 0.3)
    roster = Roster(runtime_folder, "0", linger=1.0)
    writer = Writer(runs)
    writer.step()
    writer.end()
    for _ in range(5):
        assert only(poll(roster)).outcome == "finished"
    roster.scraped()
    time.sleep(0.4)
    assert poll(roster).runs  # one scrape is not enough
    roster.scraped()
    view = poll(roster)
    assert view.runs == ()
    assert view.runs_total["finished"] == 1
    assert runtime.registrations(runtime_folder) == {}
    assert not roster.is_over()  # nobody has seen that they are gone
    roster.scraped()
    time.sleep(0.7)  # it stays for `linger` seconds after its start
    assert roster.is_over()
    assert not roster.has_newcomers()
    Writer(runs, launch="b")
    assert roster.has_newcomers()
    poll(roster)
    assert not roster.is_over()


def test_series_of_a_run_that_nobody_scrapes_go_in_the_end(runs: Path, runtime_folder: Path) -> None:
    roster = Roster(runtime_folder, "0", linger=0.5)
    writer = Writer(runs)
    writer.step()
    writer.end()
    assert poll(roster).runs
    time.sleep(0.6)
    assert not poll(roster).runs


def test_a_detector_that_breaks_is_turned_off_and_counted(
    runs: Path, runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Detector):
        name = "broken"

        def step(self, record: StepRecord, sites: object) -> list[Finding]:
            raise ZeroDivisionError(f"{record.step} {sites}")

    monkeypatch.setattr("resmon.detectors.bank.DETECTORS", (Broken,))
    roster = Roster(runtime_folder, "0", linger=1.0)
    writer = Writer(runs)
    for _ in range(3):
        writer.step()
    before = time.time()
    view = poll(roster)
    assert view.errors == 1
    assert view.last_error is not None and before <= view.last_error <= time.time()
    shown = Scrape(Prometheus().render(view, "")[0].decode())
    assert shown.one("resmon_agent_last_error_timestamp_seconds") == view.last_error
    assert gauge(only(view), "skip_rms")


def test_damaged_rows_are_counted_also_when_the_flight_is_gone(runs: Path, runtime_folder: Path) -> None:
    writer = Writer(runs)
    for _ in range(5):
        writer.step()
    (segment,) = writer.folder.glob("steps-*.arrow")
    content = bytearray(segment.read_bytes())
    content[-100] ^= 0xFF
    segment.write_bytes(content)
    writer.step()
    roster = Roster(runtime_folder, "0", linger=0.2)
    assert poll(roster).skipped_rows == 1
    writer.end()
    poll(roster)
    time.sleep(0.3)
    view = poll(roster)
    assert (view.runs, view.skipped_rows) == ((), 1)


def test_a_spike_between_two_scrapes_is_seen(roster: Roster, runs: Path) -> None:
    writer = Writer(runs)
    writer.step(values={("gradient_square", 1): 1e8})
    writer.log(loss=77.0)
    for _ in range(100):  # 25 seconds of training
        writer.step()
        writer.log(loss=1.0)
    run = only(poll(roster))
    assert max(gauge(run, "gradient_norm_max")) == 1e4
    assert max(gauge(run, "gradient_norm")) < 11
    assert run.loss_max == 77.0
    for _ in range(200):
        writer.step()
        writer.log(loss=1.0)
    run = only(poll(roster))
    assert max(gauge(run, "gradient_norm_max")) < 11
    assert run.loss_max == 1.0


def test_a_block_that_appears_later(roster: Roster, runs: Path) -> None:
    writer = Writer(runs, sites=2)
    writer.step()
    assert len(gauge(only(poll(roster)), "skip_rms")) == 2
    more = synthetic.Training(synthetic.sites(3))
    more.steps = 1
    writer.flight.sites(more.sites)
    record = more.step()
    writer.flight.step(record)
    run = only(poll(roster))
    assert len(gauge(run, "gradient_norm")) == 3
    assert len(gauge(run, "gradient_norm_max")) == 3


def test_a_loss_that_is_nan_is_shown(roster: Roster, runs: Path) -> None:
    writer = Writer(runs)
    writer.step()
    writer.log(loss=NAN)
    run = only(poll(roster))
    assert run.loss_max is not None
    assert np.isnan(run.loss_max)
    assert np.isnan(run.scores["loss"])


def test_a_model_that_is_too_deep_is_folded_and_it_is_said_once(
    runtime_folder: Path, runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    roster = Roster(runtime_folder, "0", linger=1000.0, max_series=1000)
    writer = Writer(runs, sites=300)
    for _ in range(40):
        writer.step(forward=[123] if writer.training.steps == 20 else [])
        run = only(poll(roster))
    assert run.blocks is not None
    assert run.watched == {"": 300}
    named = {row.name for row in run.blocks.rows if ".." not in row.name}
    assert "h.123" in named
    assert run.folded == {"": 300 - len(named)}
    content, _ = Prometheus().render(roster.view(0.0), "")
    assert 500 < len([line for line in content.decode().splitlines() if 'run="digits"' in line]) <= 1000
    (said,) = [record.getMessage() for record in caplog.records if "max_series" in record.getMessage()]
    assert "300 blocks are exported by stage and the worst of them by name, within 1,000 series" in said
    enough = int(said.split("max_series = ")[1].split()[0])
    assert only(poll(Roster(runtime_folder, "0", 1000.0, enough))).folded == {}
    assert only(poll(Roster(runtime_folder, "0", 1000.0, enough - 2000))).folded != {}
    # An agent that reads the same flight names the same blocks.
    again = only(poll(Roster(runtime_folder, "0", 1000.0, 1000))).blocks
    assert again is not None
    assert {row.name for row in again.rows} == {row.name for row in run.blocks.rows}


def test_a_budget_too_small_for_the_runs_own_series(runtime_folder: Path, runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    roster = Roster(runtime_folder, "0", linger=1000.0, max_series=1)
    writer = Writer(runs)
    for _ in range(3):
        writer.step()
        writer.log(loss=2.0)
        run = only(poll(roster))
    assert run.blocks is None
    assert (run.watched, run.folded) == ({"": 3}, {"": 3})
    content = Prometheus().render(roster.view(0.0), "")[0].decode()
    assert 'resmon_loss{run="digits"} 2.0' in content
    assert 'resmon_steps_total{rank="0",run="digits"} 3.0' in content
    assert "resmon_block_" not in content
    (said,) = [record for record in caplog.records if "max_series" in record.getMessage()]
    assert said.levelname == "WARNING"
    assert "no series of its 3 blocks is exported" in said.getMessage()
    assert roster.view(0.0).errors == 0
    assert "\nresmon_agent_last_error_timestamp_seconds " not in content


def test_ranks_that_come_and_die_keep_the_folding_true(runtime_folder: Path, runs: Path) -> None:
    """A pipeline: each rank has blocks of its own, and the second comes late and is killed."""
    roster = Roster(runtime_folder, "0", linger=1000.0, max_series=1500)
    one = Writer(runs, rank=0, sites=40, world_size=2)
    for _ in range(3):
        one.step()
        poll(roster)
    two = Writer(runs, rank=1, sites=80, world_size=2)
    counts: dict[str, int] = {}
    for step in range(6):
        one.step()
        two.step()
        if step == 4:
            two.die()
        run = only(poll(roster))
        assert run.blocks is not None
        assert sum(row.blocks for row in run.blocks.rows if isinstance(row, Stage)) in (40, 80)
        for row, buckets in zip(run.blocks.rows, run.blocks.magnitude_buckets.sum(axis=1).tolist(), strict=True):
            assert buckets >= counts.get(row.name, 0)
            counts[row.name] = buckets
    assert len([name for name in counts if ".." in name]) > 1


@pytest.mark.parametrize("score", [NAN, float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_exported_as_they_are(score: float, roster: Roster, runs: Path) -> None:
    writer = Writer(runs)
    writer.step()
    writer.log(loss=1.0)
    writer.step()
    writer.log(loss=score, accuracy=score, val_loss=score, epoch=score)
    run = only(poll(roster))
    assert repr(run.scores["accuracy"]) == repr(score)
    assert run.loss_max == max(1.0, score if score == score else 1.0)
    assert run.gaps == {}
    for accept in ("text/plain", "application/openmetrics-text"):
        content, _ = Prometheus().render(poll(roster), accept)
        shown = {NAN: "NaN", float("inf"): "+Inf", float("-inf"): "-Inf"}[score] if score == score else "NaN"
        assert f'resmon_score{{run="digits",score="accuracy"}} {shown}\n'.encode() in content
        assert f'resmon_epoch{{run="digits"}} {shown}\n'.encode() in content


def test_a_clock_that_jumps_hides_no_spike_and_moves_no_counter_back(roster: Roster, runs: Path) -> None:
    writer = Writer(runs)
    total = duration = 0.0
    for step in range(60):
        now = 1e9 + step / 4 + [0.0, 7200.0, -7200.0, 0.0, -86400.0, 3600.0][step // 10]
        spike = step in (19, 39)  # the last steps before the clock is set back
        writer.step(time=now, values={("gradient_square", 1): 1e8} if spike else {})
        writer.log(loss=77.0 if spike else 1.0)
        run = only(poll(roster))
        record = run.ranks[0].record
        assert record is not None
        assert record.step == step
        assert record.steps_total > total and record.duration_total > duration
        total, duration = record.steps_total, record.duration_total
        assert run.scores["loss"] == (77.0 if spike else 1.0)
        if 19 <= step < 30 or 39 <= step < 50:
            assert run.loss_max == 77.0
            assert max(gauge(run, "gradient_norm_max")) == 1e4
    writer.end()
    assert only(poll(roster)).outcome == "finished"
    assert only(poll(roster)).loss_max == 1.0  # the last jump was forward, by more than the window


def test_gaps_targets_and_checkpoints_are_followed(roster: Roster, runs: Path) -> None:
    writer = Writer(runs, targets=("accuracy >= 0.9", "loss <= 0.1"))
    run = only(poll(roster))
    assert (run.gaps, run.reached, run.checkpoint) == ({}, {}, None)
    journal.append(writer.folder / layout.CHECKPOINTS, asdict(Checkpoint(None, 5.0, "begin")))
    writer.step()
    writer.log(loss=2.0)
    writer.step()
    writer.log(loss=4.0)
    writer.log(val_loss=4.5, epoch=1.0)
    run = only(poll(roster))
    assert run.gaps == {"loss": 1.5}
    assert run.checkpoint == Checkpoint(None, 5.0, "begin")
    content, _ = Prometheus().render(poll(roster), "")
    assert b'resmon_checkpoint_timestamp_seconds{run="digits"} 5.0\n' in content
    assert b"resmon_checkpoint_step{" not in content  # before the first step there is none
    assert content.count(b"resmon_target_reached{") == 2 and b"resmon_target_seconds{" not in content
    reached = Reached("accuracy >= 0.9", 1, 2, 1000.5, 3.25, 0.9)
    journal.append(writer.folder / layout.REACHED, asdict(reached))
    journal.append(writer.folder / layout.CHECKPOINTS, asdict(Checkpoint(1, 4.0, "back")))  # the clock was set back
    (writer.folder / layout.CHECKPOINTS).open("ab").write(b"damage\n")
    writer.step()
    writer.log(loss=8.0)
    view = poll(roster)
    assert only(view).reached == {"accuracy >= 0.9": reached}
    assert only(view).checkpoint == Checkpoint(1, 4.0, "back")
    assert only(view).gaps == {"loss": 1.5}  # until the next validation
    assert view.skipped_rows == 1
    content, _ = Prometheus().render(view, "")
    assert b'resmon_target_reached{run="digits",target="accuracy >= 0.9"} 1.0\n' in content
    assert b'resmon_target_reached{run="digits",target="loss <= 0.1"} 0.0\n' in content
    assert b'resmon_target_seconds{run="digits",target="accuracy >= 0.9"} 3.25\n' in content
    assert b'resmon_checkpoint_step{run="digits"} 1.0\n' in content
    # What was written just before the end is not missed.
    journal.append(writer.folder / layout.CHECKPOINTS, asdict(Checkpoint(2, 6.0, "last")))
    writer.end()
    run = only(poll(roster))
    assert run.checkpoint == Checkpoint(2, 6.0, "last")
    assert run.ranks[0].process is None  # figures are live


def test_the_newest_checkpoint_is_that_of_the_newest_step_on_any_rank(roster: Roster, runs: Path) -> None:
    writers = [Writer(runs, rank=rank, world_size=3) for rank in range(3)]
    for writer, step in zip(writers, (3, 7, None), strict=True):
        journal.append(writer.folder / layout.CHECKPOINTS, asdict(Checkpoint(step, 9.0, "x")))
    assert only(poll(roster)).checkpoint == Checkpoint(7, 9.0, "x")


def test_a_resumed_run_goes_back_to_an_earlier_step(roster: Roster, runs: Path) -> None:
    first = Writer(runs, targets=("accuracy >= 0.9",))
    for _ in range(10):
        first.step()
        first.log(loss=9.0, accuracy=0.95)
    journal.append(first.folder / layout.REACHED, asdict(Reached("accuracy >= 0.9", 0, 1, 1.0, 1.0, 0.95)))
    journal.append(first.folder / layout.CHECKPOINTS, asdict(Checkpoint(5, 1.0, "five")))
    first.die()
    assert only(poll(roster)).outcome == "killed"
    second = Writer(runs, launch="b", start_step=6, targets=("accuracy >= 0.9",))
    second.training.steps = 6
    second.step()
    second.log(loss=1.0)
    view = poll(roster)
    run = only(view)
    assert (run.info.attempt, run.outcome) == (2, None)
    record = run.ranks[0].record
    assert record is not None and record.step == 6
    assert run.scores == {"loss": 1.0}
    assert run.loss_max == 1.0
    assert run.reached == {} and run.checkpoint is None  # they are of the attempt before
    assert view.runs_total["killed"] == 1


def test_a_hole_in_the_steps_ends_a_stretch_of_training_values(roster: Roster, runs: Path) -> None:
    writer = Writer(runs)
    writer.step()
    writer.log(loss=1.0)
    writer.training.steps += 5
    writer.step()
    writer.log(loss=3.0, val_loss=5.0)
    assert only(poll(roster)).gaps == {}
    writer.step()
    writer.log(loss=3.0, val_loss=5.0)
    assert only(poll(roster)).gaps == {"loss": 2.0}
