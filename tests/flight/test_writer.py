"""The writer against what happens to training processes: kills, forks, full disks, restarts, long runs."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import resmon
from resmon.errors import ConfigurationError
from resmon.flight.layout import LOCK, boot_id, claim, is_held
from resmon.flight.reader import Follower
from resmon.flight.writer import FlightWriter
from resmon.records import RunEnd, ScalarRecord
from tests import synthetic
from tests.flight.flights import assert_equal, begin, files, read, steps_of, write

# A training process that writes as fast as it can and says each step once it is written.
TRAINER = """
import os, sys
from pathlib import Path
from resmon.flight.layout import boot_id
from resmon.records import RunEnd, ScalarRecord
from tests import synthetic
from tests.flight.flights import begin
folder, writer = begin(Path(sys.argv[1]), launch=str(os.getpid()), budget=int(sys.argv[2]), pid=os.getpid(), boot_id=boot_id())
training = synthetic.Training(synthetic.sites(3), seed=7)
writer.sites(training.sites)
os.write(1, b"ready\\n")
while True:
    record = training.step()
    writer.step(record)
    os.write(1, b"%d\\n" % record.step)
    writer.scalars(ScalarRecord(record.step, record.time, {"loss": 1.0 / (1 + record.step)}))
"""


def killed(directory: Path, budget: int, seconds: float, steps: int = 0) -> int:
    """Train for so many steps and so long, kill it, and return how many steps it said were written."""
    command = [sys.executable, "-c", TRAINER, str(directory), str(budget)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert resmon.load(directory / "digits").outcome == "running"
    # Drain what it says until the moment comes, as a full pipe would hold it at one place.
    said = 0
    while said < steps:
        said += os.read(process.stdout.fileno(), 1 << 16).count(b"\n")
    moment = time.monotonic() + seconds
    os.set_blocking(process.stdout.fileno(), False)
    while time.monotonic() < moment:
        said += (process.stdout.read(1 << 16) or b"").count(b"\n")
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.set_blocking(process.stdout.fileno(), True)
    said += process.stdout.read().count(b"\n")
    process.stdout.close()
    return said


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """At most the row under way is missing, and the attempt is told killed."""
    chance = random.Random(11)
    tries = 15
    for attempt in range(1, tries + 1):
        # The budget holds every step in full, however fast the machine.
        confirmed = killed(tmp_path, budget=1 << 40, seconds=chance.uniform(0.0, 0.15))
        loaded = resmon.load(tmp_path / "digits")
        assert loaded.attempt == attempt
        assert loaded.outcome == "killed"
        steps = loaded.steps().query("ranks > 0")["step"].tolist()
        assert steps == list(range(len(steps)))
        assert confirmed <= len(steps) <= confirmed + 1
        assert len(loaded.skipped) <= 2  # the rows under way: the step's, what was logged, or a bin's
        training = synthetic.Training(synthetic.sites(3), seed=7)
        folder = tmp_path / "digits" / f"attempt-{attempt:04d}" / "rank-00000"
        assert not Follower(folder).alive()
        for record in steps_of(read(folder)):
            assert_equal(record, training.step())
    assert resmon.load(tmp_path / "digits").info["attempts"] == tuple(range(1, tries + 1))


@pytest.mark.slow
def test_killed_while_thinning(tmp_path: Path) -> None:
    """Every step but the one under way is there, in full or in a bin."""
    chance = random.Random(12)
    thinned = 0
    for _ in range(8):
        confirmed = killed(tmp_path, budget=1 << 20, seconds=chance.uniform(0.0, 0.05), steps=chance.randint(1000, 3000))
        loaded = resmon.load(tmp_path / "digits")
        steps = set(loaded.steps().query("ranks > 0")["step"])
        bins = loaded.bins()
        binned = {step for row in bins.itertuples() for step in range(row.first_step, row.last_step + 1)}
        there = sorted(steps | binned)
        assert there == list(range(len(there)))
        assert confirmed <= len(there) <= confirmed + 1
        thinned += len(steps) < len(there)
    assert thinned, "nothing was thinned, so nothing is tested"


def test_two_attempts_stand_side_by_side(tmp_path: Path) -> None:
    for launch, steps in (("first", 3), ("second", 5)):
        _, writer = begin(tmp_path, launch=launch)
        write(writer, synthetic.Training(synthetic.sites(2)), steps)
        writer.end(RunEnd("finished", 1.0, steps - 1))
    assert len(resmon.load(tmp_path / "digits").steps()) == 5
    assert len(resmon.load(tmp_path / "digits", attempt=1).steps()) == 3


def test_a_forked_child_writes_nothing_and_the_lock_stays(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path, boot_id=boot_id())
    training = synthetic.Training(synthetic.sites(2))
    write(writer, training, 2)
    before = files(folder)
    child = os.fork()
    if not child:
        writer.step(training.step())
        writer.scalars(ScalarRecord(9, 1.0, {"loss": 1.0}))
        writer.sites(synthetic.sites(5))
        writer.end(RunEnd("failed", 1.0, 9))
        os._exit(0 if is_held(folder / LOCK) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert files(folder) == before
    assert Follower(folder).alive()
    write(writer, training, 1)
    writer.end(RunEnd("finished", 1.0, 2))
    assert len(steps_of(read(folder))) == 3
    assert not Follower(folder).alive()


FULL_DISK = """
import errno, resource, signal, sys
from pathlib import Path
from resmon.records import RunEnd
from tests import synthetic
from tests.flight.flights import begin
folder, writer = begin(Path(sys.argv[1]))
training = synthetic.Training(synthetic.sites(8))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
writer.sites(training.sites)
for written in range(1000):
    try:
        writer.step(training.step())
    except OSError as error:
        assert error.errno == errno.EFBIG, error
        break
try:
    writer.end(RunEnd("finished", 1.0, written))
except OSError:
    pass
print(written)
"""


@pytest.mark.parametrize("limit", [100, 3_000, 12_345, 40_000, 65_536])
def test_a_full_disk_leaves_whole_rows(tmp_path: Path, limit: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)], capture_output=True, text=True, check=True
    )
    folder = tmp_path / "digits" / "attempt-0001" / "rank-00000"
    written = int(result.stdout)
    steps = steps_of(read(folder))
    assert len(steps) == written
    assert written > 0 or limit < 16_000  # the schema and a row
    training = synthetic.Training(synthetic.sites(8))
    for record in steps:
        assert_equal(record, training.step())
    loaded = resmon.load(folder)
    assert loaded.skipped == []
    assert loaded.outcome == ("finished" if limit > 3000 else loaded.outcome)


def test_a_disk_without_a_byte_left_still_takes_the_end_mark(tmp_path: Path) -> None:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mount.stderr.strip()}")
    try:
        folder, writer = begin(tmp_path)
        training = synthetic.Training(synthetic.sites(8))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            write(writer, training, 1000)
        with (tmp_path / "others").open("wb", buffering=0) as others, suppress(OSError):  # take what is left
            while others.write(b"x"):
                pass
        writer.stopped(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        mark = Follower(folder).stopped
        assert mark is not None and mark.reason == os.strerror(errno.ENOSPC)
        with suppress(OSError):
            writer.end(RunEnd("failed", 1.0, 7, "x" * 1000))
        loaded = resmon.load(folder)
        assert (loaded.outcome, loaded.skipped) == ("failed", [])
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_after_a_full_disk_writing_goes_on_where_there_is_room_again(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(8))
    first = write(writer, training, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (folder / "steps-000000000000.arrow").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            writer.step(training.step())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / "steps-000000000000.arrow").stat().st_size == size
    second = write(writer, training, 2)
    writer.end(RunEnd("finished", 1.0, 5))
    assert [record.step for record in steps_of(read(folder))] == [record.step for record in first + second]


def test_the_end_is_written_once(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(2))
    write(writer, training, 1)
    end = RunEnd("failed", 12.5, 0, "ValueError: no")
    writer.end(end)
    before = files(folder)
    writer.end(RunEnd("finished", 13.0, 1))
    writer.step(training.step())
    writer.sites(synthetic.sites(1))
    assert files(folder) == before
    assert Follower(folder).end == end


def test_two_writers_never_share_a_folder(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    code = (
        "import sys; from pathlib import Path; from tests import synthetic\n"
        "from resmon.flight.writer import FlightWriter\n"
        "try: FlightWriter(Path(sys.argv[1]), synthetic.info(), 1 << 20)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("ConfigurationError")
    assert "alive.lock" in result.stdout
    writer.end(RunEnd("finished", 1.0, None))


def test_a_folder_that_vanished_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="directory="):
        FlightWriter(tmp_path / "nowhere", synthetic.info(), 1 << 20)


def test_wrong_use_is_told(tmp_path: Path) -> None:
    _, writer = begin(tmp_path)
    training = synthetic.Training(synthetic.sites(2))
    record = training.step()
    with pytest.raises(ValueError, match=r"call sites\(\) first"):
        writer.step(record)
    writer.sites(training.sites)
    writer.step(record)
    with pytest.raises(ValueError, match="steps of a flight rise"):
        writer.step(record)
    writer.end(RunEnd("finished", 1.0, 0))


def test_a_run_without_sites_is_recorded(tmp_path: Path) -> None:
    folder, writer = begin(tmp_path)
    write(writer, synthetic.Training(()), 70)
    writer.end(RunEnd("finished", 1.0, 69))
    assert len(steps_of(read(folder))) == 70
    loaded = resmon.load(folder)
    assert len(loaded.steps()) == 70
    assert loaded.info["sites"] == ()
    assert (len(loaded.blocks()), len(loaded.histograms()), len(loaded.bins())) == (0, 0, 0)


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Over 20,000 rows, segments and bins of several levels included."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    others = descriptors()  # what tests before this one hold
    _, writer = begin(tmp_path, budget=8 << 20)
    training = synthetic.Training(synthetic.sites(4))
    writer.sites(training.sites)
    record = training.step()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    started = 0
    for step in range(21_000):
        writer.step(replace(record, step=step))
        writer.scalars(ScalarRecord(step, 1.0, {"loss": 1.0, f"name-{step % 5000}": 2.0}))
        if step == 8_000:  # by now every name has been seen and every level has begun
            started = resident()
    assert resident() - started < 2 << 20
    assert others < descriptors() < others + 50
    writer.end(RunEnd("finished", 1.0, 20_999))
    assert descriptors() <= others


def test_claiming_and_writing_through_hostile_names(tmp_path: Path) -> None:
    for name in ("../up", "a\nb", "x" * 10_000, "\udcff"):
        folder, attempt = claim(tmp_path, name, "launch", 0)
        writer = FlightWriter(folder, synthetic.info(run=name, attempt=attempt), 1 << 20)
        write(writer, synthetic.Training(synthetic.sites(1)), 1)
        writer.end(RunEnd("finished", 1.0, 0))
        assert Follower(folder).info.run == name
        assert resmon.load(folder.parent.parent).info["run"] == name
