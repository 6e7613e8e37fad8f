"""What the bench gives to its processes to do."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path

import torch

from benchmarks.faults import comparison, healthy
from benchmarks.faults.kinds import KINDS
from benchmarks.faults.notebook import Notebook
from benchmarks.faults.outcome import Outcome

Task = Callable[[], list[Outcome]]


def quietly(task: Task) -> list[Outcome]:
    """What resmon and torch tell people of each run would drown what the bench tells them."""
    logger, threads = logging.getLogger("resmon"), torch.get_num_threads()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    try:
        with redirect_stderr(io.StringIO()):
            return task()
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)


def trials(kind: str, numbers: Sequence[int]) -> list[Outcome]:
    return [KINDS[kind].trial(kind, number) for number in numbers]


def compared(tool: str, kind: str, numbers: Sequence[int]) -> list[Outcome]:
    return [comparison.trial(tool, kind, number, KINDS[kind].architectures) for number in numbers]


def trained(name: str, steps: int, notebook: Path) -> list[Outcome]:
    """A healthy training, which tells the notebook itself how far it is."""
    healthy.train(name, steps, Notebook(notebook).add_quiet)
    return []
