"""What the agent says of processes and GPUs: of real processes, of the real library without a driver, and of a stand-in for it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from resmon.agent.figures import Gpus, process
from resmon.exporters.view import GpuView
from resmon.flight import layout
from tests.waiting import wait_for

HOLD = """
import sys, threading, time
from pathlib import Path
from resmon.flight import layout
folder = Path(sys.argv[1])
layout.hold(folder / layout.LOCK)
for _ in range(3):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
kept = [open(folder / f"file-{i}", "w") for i in range(20)]
until = time.process_time() + 0.2
while time.process_time() < until:
    pass
print("ready", flush=True)
time.sleep(60)
"""

PROBE = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.lockf(descriptor, fcntl.LOCK_SH)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a rank's folder."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    yield child
    child.kill()
    child.wait()


def test_the_figures_are_the_holders(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    assert layout.holder(tmp_path / layout.LOCK) == holder.pid
    seen = process(tmp_path)
    assert seen is not None
    assert seen.cpu_seconds is not None and 0.2 <= seen.cpu_seconds < 60
    assert seen.threads is not None and seen.threads >= 4
    assert seen.open_fds is not None and 24 <= seen.open_fds < 100
    assert seen.read_bytes is not None and seen.read_bytes >= 0
    assert seen.written_bytes is not None and seen.written_bytes >= 0


def test_a_process_that_is_gone_has_none(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    assert layout.holder(tmp_path / layout.LOCK) is None
    assert process(tmp_path) is None
    assert process(tmp_path / "nowhere") is None


def test_the_number_that_stands_in_the_flight_is_not_believed(tmp_path: Path) -> None:
    """It may be another process's by now, or mean one inside a container: without the lock nobody is shown."""
    (tmp_path / layout.LOCK).touch()
    (tmp_path / layout.INFO).write_text(json.dumps({"pid": 1}))
    assert process(tmp_path) is None


def test_a_reader_that_probes_the_lock_is_no_holder(tmp_path: Path) -> None:
    (tmp_path / layout.LOCK).touch()
    command = [sys.executable, "-c", PROBE, str(tmp_path / layout.LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert layout.holder(tmp_path / layout.LOCK) is None


def test_what_may_not_be_looked_at_is_absent_and_the_rest_is_there(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "io_counters", denied)
    seen = process(tmp_path)
    assert seen is not None
    assert (seen.read_bytes, seen.written_bytes) == (None, None)
    assert seen.threads is not None


def test_a_number_that_is_taken_over_between_two_questions_is_not_shown(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last_breath(self: psutil.Process) -> int:
        holder.kill()
        holder.wait()
        return 1

    monkeypatch.setattr(psutil.Process, "num_threads", last_breath)
    assert process(tmp_path) is None


class NVMLError(Exception):
    pass


class Library(SimpleNamespace):
    """As pynvml: two GPUs, the second of which tells only its memory, as one that is cut into instances does."""

    NVML_TEMPERATURE_GPU = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.looks = 0

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self.looks += 1
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index == 2:
            raise NVMLError("the third has fallen off the bus")
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        if handle:
            raise NVMLError("not supported")
        return SimpleNamespace(gpu=37, memory=5)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=1000 + handle, total=2000, free=1000 - handle)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        if handle or sensor:
            raise NVMLError("not supported")
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        if handle:
            raise NVMLError("not supported")
        return 312_500


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setitem(sys.modules, "pynvml", library)  # type: ignore[arg-type]
    return library


def test_gpus_say_what_they_tell(library: Library) -> None:
    gpus = Gpus(period=0.01)
    try:
        assert wait_for(gpus.newest) == (
            GpuView("0", 0.37, 1000, 2000, 61, 312.5),
            GpuView("1", None, 1001, 2000, None, None),
        )
        wait_for(lambda: library.looks > 3)
    finally:
        gpus.close()


def test_a_driver_that_hangs_keeps_nobody_waiting(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def count() -> int:
        if hangs.is_set():
            goes_on.wait(30)
        return 1

    monkeypatch.setattr(library, "nvmlDeviceGetCount", count, raising=False)
    gpus = Gpus(period=0.01, stale=0.3)
    try:
        assert wait_for(gpus.newest)
        hangs.set()
        wait_for(lambda: gpus.newest() == ())  # what it said last is old
        goes_on.set()
        assert wait_for(gpus.newest)
    finally:
        goes_on.set()
        gpus.close()


@pytest.mark.parametrize("how", ["absent", "no driver", "broken"])
def test_without_a_driver_there_are_none_and_nothing_is_said(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    if how == "no driver":
        pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            pass
        else:
            pytest.skip("this machine has an NVIDIA driver")
    else:
        monkeypatch.setitem(sys.modules, "pynvml", None if how == "absent" else SimpleNamespace())  # type: ignore[arg-type]
    before = threading.active_count()
    gpus = Gpus(period=0.01)
    wait_for(lambda: threading.active_count() <= before)  # it does not try again and again
    assert gpus.newest() == ()
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    gpus.close()


def test_the_real_library_has_every_function_that_is_asked() -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    for name in [name for name in dir(Library) if name.lower().startswith("nvml")]:
        assert hasattr(pynvml, name), name
