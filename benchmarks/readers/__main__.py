"""`python -m benchmarks.readers`: what fifty readers cost the agent, and the trainings beside it; writes benchmarks/READERS.md.

Two trainings train, each with one thread, so that this machine's cores are taken; 50 readers, in a process of their own, ask once a
second for some seconds, do not for as long, ask again as soon as they are answered, do not, and so on. What a step takes while they
read is compared with what it takes in the stretches next to that. Then the agent follows two runs of 1,400 blocks, 100,000 series,
and 50 readers ask for all of them for a minute, each again a second after it had asked. `--quick` is a part of that, printed and
not written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import resmon
from benchmarks import report
from resmon.agent import runtime

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "benchmarks" / "READERS.md"
MARKS = report.Marks("<!-- results: begin -->", "<!-- results: end -->")

READERS = 50
# Seconds between two requests of a reader. The page asks every 1.5, Prometheus usually every 15; 0 is as soon as it is answered.
EACH = {1.0: "once a second", 0.0: "at once again"}
# Seconds that are measured, and before them, while readers find their pace, and after them, while they are answered the last time.
STRETCH, ARRIVE, LEAVE = 5.0, 2.0, 2.5
BLOCKS = 1400  # of each of the two wide runs: 100,000 series in all
WARM_UP = 10.0
FINE = ("200", "304")  # statuses; the second says that nothing is new since the last answer

RATIO, MEMORY = 1.02, 250  # what the project allows itself: of step time, and MB


@dataclass(frozen=True, slots=True)
class Work:
    """Of a process until now."""

    cpu: float  # seconds, of all its threads
    peak: int  # bytes of memory at most

    @classmethod
    def of(cls, pid: int) -> Work:
        status = Path(f"/proc/{pid}/status").read_text()
        return cls(_cpu(pid), int(status.split("VmHWM:")[1].split()[0]) << 10)


def _cpu(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@dataclass(frozen=True, slots=True)
class Reading:
    """While readers ask, in one of the ways that they do."""

    ratios: list[float]  # read / unread, of each stretch and each training
    agent: float  # share of a core that the agent takes
    readers: float  # likewise, the readers themselves
    heard: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Beside:
    """Two trainings beside an agent that is read and, in turns, is not."""

    step: float  # seconds, unread
    still: list[float]  # unread / unread of neighbours: what differs without readers
    agent: float  # share of a core that it takes unread
    read: dict[float, Reading]  # by how often a reader asks


@dataclass(frozen=True, slots=True)
class Wide:
    """An agent of many series under readers."""

    series: int
    seconds: float
    peak: int
    heard: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readers", description="What readers of the agent cost.")
    parser.add_argument("--quick", action="store_true", help="some seconds of everything: shows that it runs, not what it costs")
    quick = parser.parse_args(argv).quick
    load = report.load_average()
    with tempfile.TemporaryDirectory(prefix="resmon-readers-", ignore_cleanup_errors=True) as folder:
        beside = _beside(Path(folder) / "beside", 1 if quick else 6)
        wide = _wide(Path(folder) / "wide", 100 if quick else BLOCKS, 5.0 if quick else 60.0)
    table = f"{_table(beside, wide)}\n\n{_made(argv, load)}"
    print(table)
    if not quick:
        report.put_into(PAGE, table, MARKS)
    errors = [each.heard["errors"] for each in (*beside.read.values(), wide) if each.heard["errors"]]
    if errors:
        raise SystemExit(f"readers were not answered: {errors}")


def _beside(folder: Path, rounds: int) -> Beside:
    with _agent(folder) as (agent, url, environment), ExitStack() as stack:
        files = [folder / f"steps-{i}" for i in range(2)]
        for i, file in enumerate(files):
            stack.enter_context(_running(folder, environment, "benchmarks.readers.trainer", f"run-{i}", str(file)))
        while not all(file.exists() and file.stat().st_size for file in files):
            time.sleep(0.1)
        begin = time.monotonic() + WARM_UP
        # Unread, read, unread, ...: each read stretch lies between two that are not.
        ways = list(EACH) * rounds
        stretches = [(begin, begin + STRETCH)]
        asks = []
        for each in ways:
            asks.append((stretches[-1][1], stretches[-1][1] + ARRIVE + STRETCH, each))
            stretches.append((asks[-1][0] + ARRIVE, asks[-1][1]))
            stretches.append((asks[-1][1] + LEAVE, asks[-1][1] + LEAVE + STRETCH))
        crowd = stack.enter_context(_crowd(folder, environment, url, asks))
        worked, asked = [], []  # shares of a core in each stretch: the agent's, the readers'
        for stretch in stretches:
            marks = []
            for moment in stretch:
                time.sleep(max(0.0, moment - time.monotonic()))
                # The crowd goes when it has been answered for the last time.
                marks.append((_cpu(agent.pid), _cpu(crowd.pid) if crowd.poll() is None else 0.0))
            worked.append((marks[1][0] - marks[0][0]) / STRETCH)
            asked.append((marks[1][1] - marks[0][1]) / STRETCH)
        heard = _heard(crowd, 60)
    steps = [np.fromfile(file) for file in files]
    medians = [[_step(each, *stretch) for stretch in stretches] for each in steps]
    read = {}
    for each, said in heard.items():
        places = [2 * i + 1 for i, way in enumerate(ways) if way == each]
        read[each] = Reading(
            ratios=[times[i] / ((times[i - 1] + times[i + 1]) / 2) for times in medians for i in places],
            agent=float(np.mean([worked[i] for i in places])),
            readers=float(np.mean([asked[i] for i in places])),
            heard=said,
        )
    return Beside(
        step=median(each[i] for each in medians for i in range(0, len(each), 2)),
        still=[each[i + 2] / each[i] for each in medians for i in range(0, len(each) - 2, 2)],
        agent=float(np.mean(worked[::2])),
        read=read,
    )


def _step(begun: Any, begin: float, end: float) -> float:
    """What a step took on the whole, in seconds: the stretch by its steps, so that none that was held up is left out."""
    within = begun[(begun >= begin) & (begun < end)]
    return float((within[-1] - within[0]) / (len(within) - 1))


def _wide(folder: Path, blocks: int, seconds: float) -> Wide:
    with _agent(folder, "--max-series", str(blocks * 40 + 1000)) as (agent, url, environment), ExitStack() as stack:
        for i in range(2):
            # 400 steps at once, so that detectors have learnt all that they keep; and then one a second.
            arguments = (str(folder / "runs"), f"wide-{i}", "0", "1", str(blocks), "0.02", "400", "slow")
            stack.enter_context(_running(folder, environment, "tests.agent.trainer", *arguments))
        while (series := _series(url)) < 2 * blocks * 30:
            time.sleep(1.0)
        begin = time.monotonic() + 1.0
        crowd = stack.enter_context(_crowd(folder, environment, url, [(begin, begin + seconds, 1.0)]))
        heard = _heard(crowd, seconds + 120)[1.0]
        return Wide(max(series, _series(url)), seconds, Work.of(agent.pid).peak, heard)


def _heard(crowd: subprocess.Popen[str], patience: float) -> dict[float, dict[str, Any]]:
    """What a crowd tells in the end, by how often its readers asked."""
    return {float(each): said for each, said in json.loads(crowd.communicate(timeout=patience)[0]).items()}


def _series(url: str) -> int:
    from urllib.request import urlopen

    with urlopen(f"{url}/metrics", timeout=60) as answer:  # noqa: S310, the agent's own address
        return sum(not line.startswith(b"#") for line in answer.read().splitlines())


@contextmanager
def _agent(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, dict[str, str]]]:
    """An agent of its own, its address, and an environment in which trainings find it."""
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RESMON_") and name != "CI"}
    environment |= {"PYTHONPATH": str(ROOT), "RESMON_RUNTIME_DIR": str(folder / "agent"), "OMP_NUM_THREADS": "1"}
    arguments = ("agent", "--listen", "127.0.0.1:0", "--linger", "600", *options)
    with _running(folder, environment, "resmon", *arguments) as process:
        while (now := _serving(folder / "agent")) is None or not now.url:
            if process.poll() is not None:
                raise SystemExit("the agent did not start")
            time.sleep(0.05)
        yield process, now.url, environment


def _serving(folder: Path) -> runtime.Serving | None:
    return runtime.serving(folder) if folder.is_dir() else None


@contextmanager
def _crowd(
    folder: Path, environment: dict[str, str], url: str, stretches: Sequence[tuple[float, float, float]]
) -> Iterator[subprocess.Popen[str]]:
    arguments = (url, str(READERS), *(f"{begin},{end},{each}" for begin, end, each in stretches))
    with _running(folder, environment, "benchmarks.readers.crowd", *arguments) as process:
        yield process


@contextmanager
def _running(folder: Path, environment: dict[str, str], module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with (folder / f"{module}.txt").open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if module.endswith("crowd") else errors,
            stderr=errors,
            text=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _table(beside: Beside, wide: Wide) -> str:
    rows = [
        ("step, unread", f"{beside.step * 1e3:.1f} ms", ""),
        ("step, unread / unread (what differs by itself)", _spread(beside.still), ""),
        ("the agent, unread", f"{beside.agent:.1%} of a core", ""),
    ]
    for each, reading in beside.read.items():
        way = EACH[each]
        rows += [
            (f"step, read {way} / unread", f"{_spread(reading.ratios)} of {len(reading.ratios)} stretches", _told(reading, beside)),
            (f"the agent, read {way}", f"{reading.agent:.1%} of a core", ""),
            (f"the readers themselves, on the same cores, {way}", f"{reading.readers:.1%} of a core", ""),
            *_answered(f"beside two trainings, {way}", reading.heard),
        ]
    rows += [
        (f"the agent's memory at most, {wide.series:,} series", f"{wide.peak / 1e6:.0f} MB", _verdict(wide.peak / 1e6, MEMORY)),
        *_answered(f"{wide.series:,} series", wide.heard),
    ]
    lines = ["| what | measured | target |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _told(reading: Reading, beside: Beside) -> str:
    low, high = np.quantile(beside.still, [0.25, 0.75])
    # What is missed by more than unread stretches differ by themselves is missed on a machine that is not quiet, too.
    is_clear = high - low < 2 * (RATIO - 1) or np.quantile(reading.ratios, 0.25) > max(RATIO, high)
    return _verdict(median(reading.ratios), RATIO) if is_clear else f"{RATIO:g}: not told, this machine was not quiet"


def _answered(where: str, heard: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    answers = ", ".join(f"{count:,} of {name}" for name, count in sorted(heard["answers"].items()))
    failed = sum(heard["errors"].values()) + sum(count for name, count in heard["answers"].items() if name.split()[1] not in FINE)
    yield f"answers, {where}", f"{answers}; {heard['bytes'] / 1e6:,.0f} MB; {failed} failed", _verdict(failed, 0)
    for name, seconds in sorted(heard["seconds"].items()):
        middle, late = np.quantile(seconds, [0.5, 0.99])
        yield f"time of an answer, {name}, {where}", f"{middle * 1e3:.0f} ms, 99 % within {late * 1e3:.0f} ms", ""


def _spread(values: Sequence[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def _verdict(value: float, target: float) -> str:
    return f"{target:g}: {'met' if value <= target else '**missed**'}"


def _made(argv: Sequence[str] | None, load: tuple[float, float, float]) -> str:
    arguments = sys.argv[1:] if argv is None else argv
    return (
        f"Made by `{' '.join(['python', '-m', 'benchmarks.readers', *arguments])}` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. "
        f"{report.cpu_model()}, {os.cpu_count()} cores; resmon {resmon.__version__}. "
        f"Load average before (1, 5, 15 min) {' '.join(f'{n:.2f}' for n in load)}."
    )


if __name__ == "__main__":
    main()
