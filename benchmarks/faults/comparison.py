"""The same faults before two tools that people use: torch.autograd.set_detect_anomaly and transformers' DebugUnderflowOverflow.

Kind and number draw the same fault in the same training. Both tools end the run when they find something, so a fault is detected
when they do, and they name a place each in their own words: anomaly mode the traceback of the forward call whose backward returned
NaN, of which the innermost line of the user's is taken; DebugUnderflowOverflow the module whose inputs or outputs held it.
`costs` measures what a step takes with each of them and with resmon, in pairs with a bare one.
"""

from __future__ import annotations

import io
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import resmon
from benchmarks.faults import nonfinite
from benchmarks.faults.injection import is_the_users
from benchmarks.faults.nonfinite import Inject
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.trial import AFTER, DRAWS, Injected, NothingBrokenError, Training, Trial, Truth, flight
from benchmarks.workloads import WORKLOADS
from benchmarks.workloads import Training as Workload

TRIALS = 40
TOOLS = ("anomaly", "debug")
TITLES = {
    "resmon": "resmon",
    "anomaly": "`torch.autograd.set_detect_anomaly(True, check_nan=True)`",
    "debug": "`transformers.debug_utils.DebugUnderflowOverflow`",
}
INJECTS: dict[str, Inject] = {
    "forward-nan": nonfinite.forward_nan,
    "forward-inf": nonfinite.forward_inf,
    "backward-nan": nonfinite.backward_nan,
    "backward-inf": nonfinite.backward_inf,
    "loss": nonfinite.BrokenLoss,
    "data": nonfinite.BrokenData,
    "weights": nonfinite.BrokenWeight,
}
COSTED = ("gpt2", "resnet")  # workloads
PAIRS, WARM_UP = 12, 3

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_HEADER = re.compile(r"^ {18}(\S*) \w+$", re.MULTILINE)


def trial(tool: str, kind: str, number: int, names: tuple[str, ...]) -> Outcome:
    """The trial `number` of a kind, with that tool in resmon's place."""
    drawn = Trial(kind, number, names)
    for _ in range(DRAWS):
        bare, watched = drawn.training(), drawn.training()
        state = drawn.random.getstate()
        injected = INJECTS[kind](drawn, bare)
        if not bare.run(injected.truth.step + 1 + AFTER, injected):
            continue
        drawn.random.setstate(state)
        found = _anomaly if tool == "anomaly" else _debug
        detected, said, right = found(watched, INJECTS[kind](drawn, watched), injected.truth)
        place = injected.truth.operation is not None
        return Outcome(f"{tool}:{kind}", number, drawn.name, detected, operation=right if place else None, said=said[:300])
    raise NothingBrokenError(f"{kind} {number}: nothing was broken in {DRAWS} draws")


def _anomaly(training: Training, injected: Injected, truth: Truth) -> tuple[bool, str, bool]:
    with warnings.catch_warnings(record=True) as heard, torch.autograd.set_detect_anomaly(True, check_nan=True):
        warnings.simplefilter("always")
        try:
            training.run(injected.truth.step + 1 + AFTER, injected)
        except RuntimeError as error:
            traceback = next((str(each.message) for each in heard if "Traceback of forward call" in str(each.message)), "")
            lines = [f"{file}:{number}" for file, number in _FRAME.findall(traceback) if is_the_users(file)]
            return True, f"{error} {lines[-1] if lines else ''}", bool(lines) and lines[-1] == truth.line
    return False, "nothing", False


def _debug(training: Training, injected: Injected, truth: Truth) -> tuple[bool, str, bool]:
    from transformers.debug_utils import DebugUnderflowOverflow

    DebugUnderflowOverflow(training.model)  # type: ignore[no-untyped-call]
    printed = io.StringIO()
    with redirect_stdout(printed):
        try:
            training.run(injected.truth.step + 1 + AFTER, injected)
        except ValueError as error:
            modules = _HEADER.findall(printed.getvalue())
            named = modules[-1] if modules else ""
            place = truth.operation
            return True, f"{str(error)[:80]} {named}", place is not None and named == place[0]
    return False, "nothing", False


# -- what they cost --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """The median of the ratios of a step with a tool to a bare one, pair by pair, and the bare step in seconds."""

    tool: str
    workload: str
    ratio: float
    step: float
    pairs: int


def costs(known: Sequence[Cost], tell: Callable[[str], None], pairs: int = PAIRS) -> Iterator[Cost]:
    """Each tool on each workload, but for those that are known."""
    done = {(cost.workload, cost.tool) for cost in known}
    for name in COSTED:
        for tool in ("resmon", *TOOLS):
            if (name, tool) in done:
                continue
            tell(f"{name} {tool}")
            with flight() as folder:
                yield _cost(tool, name, folder, pairs)


def _cost(tool: str, name: str, folder: Path, pairs: int) -> Cost:
    bare, watched = WORKLOADS[name].make(), WORKLOADS[name].make()
    log: Callable[..., None] = lambda **_: None  # noqa: E731
    close: Callable[[], None] = lambda: None  # noqa: E731
    around: Callable[[], Any] = nullcontext
    if tool == "resmon":
        monitor = resmon.watch(watched.model, watched.optimizer, run="cost", directory=folder, agent="off")
        log, close = monitor.log, monitor.close
    elif tool == "anomaly":
        around = _detecting
    else:
        from transformers.debug_utils import DebugUnderflowOverflow

        DebugUnderflowOverflow(watched.model)  # type: ignore[no-untyped-call]
    ratios, steps = [], []
    for i in range(WARM_UP + pairs):
        random = torch.get_rng_state()
        times = {}
        for which in (0, 1) if i % 2 else (1, 0):
            torch.set_rng_state(random)
            times[which] = _timed(watched if which else bare, i, around if which else nullcontext, log if which else None)
        if i >= WARM_UP:
            ratios.append(times[1] / times[0])
            steps.append(times[0])
    close()
    return Cost(tool, name, median(ratios), median(steps), pairs)


@contextmanager
def _detecting() -> Iterator[None]:
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        yield


def _timed(training: Workload, index: int, around: Callable[[], Any], log: Callable[..., None] | None) -> float:
    arguments, target = training.batches[index % len(training.batches)]
    started = time.perf_counter()
    with around():
        training.optimizer.zero_grad()
        loss = training.loss(training.model(**arguments), target)
        loss.backward()
        training.optimizer.step()
        if log is not None:
            log(loss=loss)
    return time.perf_counter() - started
