"""`python -m benchmarks.detectors`: tunes and tries the detectors, writes benchmarks/DETECTORS.md and benchmarks/results/.

With --quick, on one trial in twelve and without KSWIN: it is printed and not written.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from benchmarks.detectors import report, trial
from benchmarks.detectors.contenders import GIVEN, GRIDS, Ours
from benchmarks.detectors.trial import EVERY, Result, Tuning
from benchmarks.report import Circumstances, cpu_model, load_average, versions

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "benchmarks" / "DETECTORS.md"
RESULTS = ROOT / "benchmarks" / "results"
PROCESSES = 2
QUICK = 12

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detectors", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small part, printed and not written")
    quick = parser.parse_args(argv).quick
    how = _circumstances(sys.argv[1:] if argv is None else argv)
    console = Console()
    names = [Ours().name, *(name for name in GRIDS if not (quick and name == "KSWIN"))]
    clocks = {name: trial.clock(name, {}) for name in names if not name.endswith(GIVEN)}
    tunings, results = _measure(names, QUICK if quick else None, console)
    page = report.markdown(tunings, results, clocks, how)
    if quick:
        console.print(page, markup=False, highlight=False, soft_wrap=True)
        return
    path = RESULTS / f"detectors-{how.date[:10]}.json"
    report.write_json(path, tunings, results, clocks, how)
    PAGE.write_text(page, encoding="utf-8")
    console.print(f"The page is {PAGE}, every figure in {path}.", highlight=False, soft_wrap=True)


def _measure(names: Sequence[str], every: int | None, console: Console) -> tuple[list[Tuning], list[Result]]:
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:

        def together(tasks: Sequence[Callable[[], T]], what: str) -> list[T]:
            with console.status(what):
                futures = [pool.submit(task) for task in tasks]
                return [future.result() for future in futures]

        # the longest first, so that no process is left alone with one at the end
        waiting = sorted((each for each in trial.candidates() if each[0] in names), key=lambda each: each[0])
        waiting.sort(key=lambda each: each[0] != "KSWIN")
        tunings = together(
            [partial(trial.tune, name, settings, every or (1 if name == Ours().name else EVERY)) for name, settings in waiting],
            "tuning",
        )
        best = [_best(tunings, name) for name in names]
        tuned = together(
            [partial(trial.try_tuned, each, every or (EVERY if each.name == "KSWIN" else 1)) for each in reversed(best)], "trying"
        )
        default = together(
            [
                partial(trial.try_default, name, every or (EVERY if name == "KSWIN" else 1))
                for name in names
                if not name.endswith(GIVEN)
            ],
            "trying the defaults",
        )
    return tunings, [*(each for both in tuned for each in both), *default]


def _best(tunings: Sequence[Tuning], name: str) -> Tuning:
    """Of its settings, those of the shortest delay; ours is tried as it is."""
    mine = [each for each in tunings if each.name == name and not each.settings.get("without")]
    return min(mine, key=lambda each: each.delay)


def _circumstances(argv: Sequence[str]) -> Circumstances:
    return Circumstances(
        command=shlex.join(["python", "-m", "benchmarks.detectors", *argv]),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=cpu_model(),
        cores=os.cpu_count() or 1,
        threads=1,
        versions=versions(("numpy", "river", "scipy")),
        load=load_average(),
    )


if __name__ == "__main__":
    main()
