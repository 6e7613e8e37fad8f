"""`python -m benchmarks.readers`: what fifty readers cost the agent, and the trainings beside it; writes benchmarks/READERS.md.

Two trainings train, each with one thread, so that this machine's cores are taken; 50 readers, in a process of their own, ask once
a second for some seconds, then again as soon as they are answered, and then nobody does (blocks.py). What a step takes as they read
is compared with what it takes around that: the middle of all such blocks, and its confidence interval (interval.py). Then the
agent follows two runs of 1,400 residual blocks, 100,000 series, and 50 readers ask for all of them for a minute, each again a
second after it had asked. `--quick` is a part of that, printed and not written.
"""

from __future__ import annotations

import argparse
import json
import math
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
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import resmon
from benchmarks import report
from benchmarks.readers.blocks import ARRIVE, LEAVE, Block, Steps, Stretch, plan
from benchmarks.readers.interval import Interval
from resmon.agent import runtime

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "benchmarks" / "READERS.md"
MARKS = report.Marks("<!-- results: begin -->", "<!-- results: end -->")

READERS = 50
# Seconds between two requests of a reader. The page asks every 1.5, Prometheus usually every 15; 0 is as soon as it is answered.
EACH = {1.0: "once a second", 0.0: "at once again"}
FIRST = 0.1  # likewise, of those who read before anything is measured
BLOCKS = 24  # of stretches; together some eight minutes
WIDE = 1400  # residual blocks of each of the two wide runs: 100,000 series in all
WARM_UP = 20.0
SAID = 4000  # characters, at most, of what a process said that has ended before its time
FINE = ("200", "304")  # statuses; the second says that nothing is new since the last answer

Asked = tuple[float, float, float | None, float]  # from, to, seconds between two requests, and when all hang up

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

    ratio: Interval  # of step times, read / unread
    agent: float  # share of a core that the agent takes
    readers: float  # likewise, the readers themselves
    heard: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Beside:
    """Two trainings beside an agent that is read and, in turns, is not."""

    step: float  # seconds, unread
    still: Interval  # unread / unread of one block: what differs without readers
    seconds: float  # that a block takes
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
    parser.add_argument("--blocks", type=int, default=BLOCKS, help=f"how often the ratio is measured; {BLOCKS} unless given")
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    load = report.load_average()
    with tempfile.TemporaryDirectory(prefix="resmon-readers-", ignore_cleanup_errors=True) as folder:
        beside = _beside(Path(folder) / "beside", 1 if quick else max(1, arguments.blocks))
        wide = _wide(Path(folder) / "wide", 100 if quick else WIDE, 5.0 if quick else 60.0)
    table = f"{_table(beside, wide)}\n\n{_made(argv, load)}"
    print(table)
    if not quick:
        report.put_into(PAGE, table, MARKS)
    errors = [heard["errors"] for heard in (*(read.heard for read in beside.read.values()), wide.heard) if heard["errors"]]
    if errors:
        raise SystemExit(f"readers were not answered: {errors}")


def _beside(folder: Path, count: int) -> Beside:
    with _agent(folder) as (agent, url, environment), ExitStack() as stack:
        files = [folder / f"steps-{i}" for i in range(2)]
        trainer = "benchmarks.readers.trainer"
        trainers = [
            stack.enter_context(_running(folder, environment, trainer, f"run-{i}", str(file))) for i, file in enumerate(files)
        ]
        while not all(file.exists() and file.stat().st_size for file in files):
            _see_that_they_live(folder, trainer, trainers)
            time.sleep(0.1)
        begin = time.monotonic() + WARM_UP
        blocks = plan(begin, count, tuple(EACH))
        # Before the first of them readers take what may be taken at once after a pause.
        asks: list[Asked] = [(begin - WARM_UP / 2, begin - LEAVE, FIRST, begin - LEAVE)]
        asks += [(read.begin - ARRIVE, read.end, read.each, block.gone) for block in blocks for read in block.read]
        crowd = stack.enter_context(_crowd(folder, environment, url, asks))
        taken = []
        for block in _shown(blocks):
            taken.append(_taken(block, agent.pid, crowd))
            _see_that_they_live(folder, trainer, trainers)
        heard = _heard(crowd, 60)
    steps = Steps([np.fromfile(file) for file in files])
    shares: dict[float | None, list[tuple[float, float]]] = {}  # of a core in each stretch: the agent's, the readers'
    for block, found in zip(blocks, taken, strict=True):
        for stretch, share in zip(block.stretches, found, strict=True):
            shares.setdefault(stretch.each, []).append(share)
    agents, crowds = ({each: float(np.mean(found, axis=0)[i]) for each, found in shares.items()} for i in range(2))
    return Beside(
        step=len(files) / float(np.mean([steps.unread(block) for block in blocks])),
        still=Interval.of(steps.still(block) for block in blocks),
        seconds=blocks[0].end - blocks[0].before.begin,
        agent=agents[None],
        read={
            each: Reading(Interval.of(steps.ratio(block, each) for block in blocks), agents[each], crowds[each], heard[each])
            for each in EACH
        },
    )


def _shown(blocks: Sequence[Block]) -> Iterator[Block]:
    """Them one by one, and how far that is."""
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(blocks))
        for i, block in enumerate(blocks):
            progress.update(task, completed=i, description=f"readers beside two trainings, block {i + 1} of {len(blocks)}")
            yield block


def _taken(block: Block, agent: int, crowd: subprocess.Popen[str]) -> list[tuple[float, float]]:
    """What shares of a core the agent and the readers take in each of its stretches, as these go by."""

    def until(moment: float) -> tuple[float, float]:
        time.sleep(max(0.0, moment - time.monotonic()))
        # The crowd goes when its last stretch is over.
        return _cpu(agent), _cpu(crowd.pid) if crowd.poll() is None else 0.0

    def of(stretch: Stretch) -> tuple[float, float]:
        before, after = until(stretch.begin), until(stretch.end)
        long = stretch.end - stretch.begin
        return (after[0] - before[0]) / long, max(0.0, after[1] - before[1]) / long

    return [of(stretch) for stretch in block.stretches]


def _wide(folder: Path, blocks: int, seconds: float) -> Wide:
    with _agent(folder, "--max-series", str(blocks * 40 + 1000)) as (agent, url, environment), ExitStack() as stack:
        trainer, trainers = "tests.agent.trainer", []
        for i in range(2):
            # 400 steps at once, so that detectors have learnt all that they keep; and then one a second.
            arguments = (str(folder / "runs"), f"wide-{i}", "0", "1", str(blocks), "0.02", "400", "slow")
            trainers.append(stack.enter_context(_running(folder, environment, trainer, *arguments)))
        while (series := _series(url)) < 2 * blocks * 30:
            _see_that_they_live(folder, trainer, trainers)
            time.sleep(1.0)
        begin = time.monotonic() + 1.0
        crowd = stack.enter_context(_crowd(folder, environment, url, [(begin, begin + seconds, 1.0, math.inf)]))
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
            _see_that_they_live(folder, "resmon", [process])
            time.sleep(0.05)
        yield process, now.url, environment


def _serving(folder: Path) -> runtime.Serving | None:
    return runtime.serving(folder) if folder.is_dir() else None


@contextmanager
def _crowd(folder: Path, environment: dict[str, str], url: str, stretches: Sequence[Asked]) -> Iterator[subprocess.Popen[str]]:
    arguments = (url, str(READERS), *(",".join(map(str, stretch)) for stretch in stretches))
    with _running(folder, environment, "benchmarks.readers.crowd", *arguments) as process:
        yield process


@contextmanager
def _running(folder: Path, environment: dict[str, str], module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with _said(folder, module).open("a") as errors:
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


def _see_that_they_live(folder: Path, module: str, processes: Sequence[subprocess.Popen[str]]) -> None:
    """End with what one said that has ended before its time."""
    for process in processes:
        if (status := process.poll()) is not None:
            said = _said(folder, module).read_text().strip()
            raise SystemExit(f"{module} has ended with status {status}, so nothing can be measured. It said:\n{said[-SAID:]}")


def _said(folder: Path, module: str) -> Path:
    return folder / f"{module}.txt"


def _table(beside: Beside, wide: Wide) -> str:
    rows = [
        ("step, unread", f"{beside.step * 1e3:.1f} ms", ""),
        ("step, unread / unread (what differs by itself)", str(beside.still), ""),
        ("the agent, unread", f"{beside.agent:.1%} of a core", ""),
    ]
    for each, reading in beside.read.items():
        way = EACH[each]
        rows += [
            (
                f"step, read {way} / unread",
                f"{reading.ratio} of {reading.ratio.count} blocks",
                _told(reading.ratio, beside.seconds),
            ),
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


def _told(ratio: Interval, seconds: float) -> str:
    """Whether it is met, as far as that is known: with the whole interval on one side of it."""
    if ratio.high <= RATIO or ratio.low > RATIO:
        return _verdict(ratio.high, RATIO)
    needed = ratio.needed(RATIO)
    what = "more blocks than can be measured" if needed is None else f"some {needed} blocks, {needed * seconds / 60:.0f} minutes"
    return f"{RATIO:g}: not told; with noise like this it takes {what}"


def _answered(where: str, heard: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    answers = ", ".join(f"{count:,} of {name}" for name, count in sorted(heard["answers"].items()))
    failed = sum(heard["errors"].values()) + sum(count for name, count in heard["answers"].items() if name.split()[1] not in FINE)
    left = f"{heard['left']:,} not waited for; " if heard["left"] else ""
    yield f"answers, {where}", f"{answers}; {heard['bytes'] / 1e6:,.0f} MB; {left}{failed} failed", _verdict(failed, 0)
    for name, seconds in sorted(heard["seconds"].items()):
        middle, late = np.quantile(seconds, [0.5, 0.99])
        yield f"time of an answer, {name}, {where}", f"{middle * 1e3:.0f} ms, 99 % within {late * 1e3:.0f} ms", ""


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
