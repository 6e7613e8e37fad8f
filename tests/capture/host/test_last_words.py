"""What a process leaves that ends by a signal or an exit status; the native part alone, in processes without torch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from resmon.capture import _native

NATIVE = str(_native.__file__)

BEGIN = f"""
import ctypes, importlib.machinery, importlib.util, os, signal, sys, threading, time
loader = importlib.machinery.ExtensionFileLoader("_native", {NATIVE!r})
native = importlib.util.module_from_spec(importlib.util.spec_from_loader("_native", loader))
loader.exec_module(native)
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background or under nohup has these ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
folder = sys.argv[1]

def begin(name="end"):
    path = os.fsencode(f"{{folder}}/{{name}}")
    with open(path + b".reserved", "wb") as file:
        file.write(b" " * 8192)
    return native.last_words_begin(path + b".reserved", path)

def kill(number):
    os.kill(os.getpid(), number)
    time.sleep(30)

libc = ctypes.CDLL(None)
"""


def run(folder: Path, script: str) -> tuple[int, dict[str, object] | None]:
    """Exit status and end mark."""
    command = [sys.executable, "-c", BEGIN + textwrap.dedent(script), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=folder)
    path = folder / "end"
    assert "Traceback" not in result.stderr or "boom" in result.stderr, result.stderr
    return result.returncode, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (signal.SIGTERM, "interrupted"),
        (signal.SIGHUP, "interrupted"),
        (signal.SIGSEGV, "killed"),
        (signal.SIGBUS, "killed"),
        (signal.SIGFPE, "killed"),
        (signal.SIGILL, "killed"),
        (signal.SIGABRT, "killed"),
    ],
)
def test_a_signal_ends_the_process_as_before_and_leaves_the_mark(number: signal.Signals, outcome: str, tmp_path: Path) -> None:
    before = time.time()
    status, end = run(tmp_path, f"h = begin(); native.last_words_step(h, 17); kill({int(number)})")
    assert status == -number
    assert end is not None
    assert (end["outcome"], end["step"], end["reason"]) == (outcome, 17, number.name)
    assert before - 1 <= float(str(end["time"])) <= time.time() + 1
    assert not (tmp_path / "end.reserved").exists()


def test_real_faults_are_marked(tmp_path: Path) -> None:
    status, end = run(tmp_path, "begin(); ctypes.string_at(0)")
    assert (status, end and end["reason"]) == (-signal.SIGSEGV, "SIGSEGV")
    (tmp_path / "end").unlink()
    status, end = run(tmp_path, "begin(); os.abort()")
    assert (status, end and end["reason"]) == (-signal.SIGABRT, "SIGABRT")


def test_it_comes_also_while_python_cannot_run(tmp_path: Path) -> None:
    """Held inside of a C call that keeps the interpreter, as a collective may: a handler in Python would wait for its end."""
    script = """
        begin()
        threading.Timer(0.3, lambda: None)  # no thread of Python's own could help
        if os.fork() == 0:
            time.sleep(0.3)
            os.kill(os.getppid(), signal.SIGTERM)
            os._exit(0)
        ctypes.PyDLL(None).sleep(30)
    """
    begun = time.monotonic()
    status, end = run(tmp_path, script)
    assert status == -signal.SIGTERM
    assert end is not None and end["outcome"] == "interrupted"
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    "way", ["signal.signal(signal.SIGTERM, handler); h = begin()", "h = begin(); signal.signal(signal.SIGTERM, handler)"]
)
def test_a_handler_of_the_programs_own_decides(way: str, tmp_path: Path) -> None:
    script = f"""
        def handler(number, frame):
            print(native.last_words_noted(h), flush=True)
            os._exit(9)
        {way}
        kill(signal.SIGTERM)
    """
    assert run(tmp_path, script) == (9, None)


def test_a_signal_that_the_program_takes_is_noted(tmp_path: Path) -> None:
    script = """
        taken = []
        signal.signal(signal.SIGTERM, lambda *_: taken.append(1))
        h = begin()
        assert native.last_words_noted(h) == (0, 0)
        os.kill(os.getpid(), signal.SIGTERM)
        number, when = native.last_words_noted(h)
        assert (number, taken) == (signal.SIGTERM, [1]) and abs(time.time() - when) < 5
        assert signal.getsignal(signal.SIGTERM)(None, None) is None
        native.last_words_end(h)
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(taken) == 3
    """
    assert run(tmp_path, script) == (0, None)


def test_interrupts_go_on_to_python(tmp_path: Path) -> None:
    script = """
        h = begin()
        try:
            kill(signal.SIGINT)
        except KeyboardInterrupt:
            assert native.last_words_noted(h)[0] == signal.SIGINT
            os._exit(4)
    """
    assert run(tmp_path, script) == (4, None)


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    script = """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        begin()
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)
        os._exit(5)
    """
    assert run(tmp_path, script) == (5, None)


def test_python_sees_no_handler_and_its_own_come_and_go(tmp_path: Path) -> None:
    script = """
        h = begin()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
        native.last_words_end(h)
        h = begin("other")
        kill(signal.SIGTERM)
    """
    assert run(tmp_path, script) == (-signal.SIGTERM, None)
    assert json.loads((tmp_path / "other").read_text())["reason"] == "SIGTERM"


def test_a_handler_that_comes_later_is_joined_after_some_steps(tmp_path: Path) -> None:
    script = """
        h = begin()
        taken = []
        signal.signal(signal.SIGTERM, lambda *_: taken.append(1))
        for step in range(16):
            native.last_words_step(h, step)
        os.kill(os.getpid(), signal.SIGTERM)
        assert taken == [1] and native.last_words_noted(h)[0] == signal.SIGTERM
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for step in range(16):
            native.last_words_step(h, step)
        kill(signal.SIGTERM)
    """
    status, end = run(tmp_path, script)
    assert (status, end and end["step"]) == (-signal.SIGTERM, 15)


def test_once_it_is_over_signals_are_as_before(tmp_path: Path) -> None:
    assert run(tmp_path, "native.last_words_end(begin()); kill(signal.SIGTERM)") == (-signal.SIGTERM, None)
    assert run(tmp_path, "native.last_words_end(begin()); ctypes.string_at(0)") == (-signal.SIGSEGV, None)


def test_faulthandler_before_and_after_prints_and_the_exit_is_the_same(tmp_path: Path) -> None:
    after = run(tmp_path, "import faulthandler; begin(); faulthandler.enable(); ctypes.string_at(0)")
    assert after[0] == -signal.SIGSEGV
    assert after[1] is not None and after[1]["reason"] == "SIGSEGV"
    (tmp_path / "end").unlink()
    assert run(tmp_path, "import faulthandler; faulthandler.enable(); begin(); ctypes.string_at(0)") == (-signal.SIGSEGV, None)


def test_children_that_are_forked_are_not_spoken_for(tmp_path: Path) -> None:
    script = """
        begin()
        child = os.fork()
        if child == 0:
            kill(signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        child = os.fork()
        if child == 0:
            sys.exit(3)
        os.waitpid(child, 0)
        assert not os.path.exists(folder + "/end")
        child = os.fork()
        if child == 0:  # one that is watched itself
            begin("childs")
            kill(signal.SIGTERM)
        os.waitpid(child, 0)
        assert os.path.exists(folder + "/childs") and not os.path.exists(folder + "/end")
        kill(signal.SIGTERM)
    """
    status, end = run(tmp_path, script)
    assert status == -signal.SIGTERM
    assert end is not None and end["step"] is None


@pytest.mark.parametrize(
    ("leaving", "status", "outcome", "reason"),
    [
        ("pass", 0, "finished", ""),
        ("sys.exit(0)", 0, "finished", ""),
        ("sys.exit(3)", 3, "failed", "exit status 3 after x"),
        ("raise SystemExit('no')", 1, "failed", "exit status 1 after x"),
        ("raise ValueError('boom')", 1, "failed", "exit status 1 after x"),
        ("libc.exit(7)", 7, "failed", "exit status 7 after x"),
        ("sys.exit(256 + 5)", 5, "failed", "exit status 5 after x"),
        ("sys.exit(128 + signal.SIGTERM)", 143, "interrupted", "SIGTERM"),
    ],
)
def test_the_exit_status_tells(leaving: str, status: int, outcome: str, reason: str, tmp_path: Path) -> None:
    got, end = run(tmp_path, f"h = begin(); assert native.last_words_leave(h, b' after x'); {leaving}")
    assert got == status
    assert end is not None and (end["outcome"], end["reason"]) == (outcome, reason)


def test_whoever_does_not_leave_is_not_marked_at_the_exit(tmp_path: Path) -> None:
    assert run(tmp_path, "begin(); sys.exit(3)") == (3, None)
    assert run(tmp_path, "native.last_words_leave(begin(), b''); os._exit(3)") == (3, None)


def test_several_flights_of_one_process(tmp_path: Path) -> None:
    script = """
        for name in ("end", "two"):
            native.last_words_step(begin(name), 4)
        native.last_words_end(begin("closed"))
        kill(signal.SIGTERM)
    """
    assert run(tmp_path, script)[0] == -signal.SIGTERM
    assert {path.name for path in tmp_path.iterdir()} == {"end", "two", "closed.reserved"}
    assert json.loads((tmp_path / "two").read_text())["step"] == 4


def test_a_mark_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "begin(); os.unlink(folder + '/end.reserved'); kill(signal.SIGTERM)") == (-signal.SIGTERM, None)


def test_more_flights_than_there_is_room_for_and_paths_too_long(tmp_path: Path) -> None:
    script = """
        handles = [begin() for _ in range(64)]
        for wrong in (begin, lambda: native.last_words_begin(b"x" * 5000, b"y"), lambda: native.last_words_step(99, 0)):
            try:
                wrong()
            except ValueError:
                continue
            raise AssertionError(wrong)
        for handle in handles:
            native.last_words_end(handle)
        native.last_words_end(begin())
    """
    assert run(tmp_path, script) == (0, None)
