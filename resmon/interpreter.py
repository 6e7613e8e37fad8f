"""resmon in a process of its own: run by this interpreter, which finds there the resmon that it has here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import resmon

# By these a user has what is no terminal taken for one; what is printed here is read by a program or put into a page.
FORCING = ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE")

# For what works beside a training: it needs no GPU and must not take memory on one; its arrays are small, and pools of threads
# would only cost memory.
BESIDE = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def program(module: str, *arguments: str) -> list[str]:
    """What starts a module of resmon's. Raises OSError where this interpreter could not start anything."""
    if not sys.executable:
        raise OSError("this interpreter does not know its own executable")
    # -P: the folder that it starts in is no place to import from.
    return [sys.executable, "-P", "-m", module, *arguments]


def finding() -> dict[str, str]:
    """The variables by which it finds resmon: none but for a source tree, which may be importable from its own folder only."""
    package = Path(resmon.__file__).absolute().parent.parent
    if package.name in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))}


def printed(*arguments: str, columns: int, seconds: float) -> subprocess.CompletedProcess[str]:
    """What the command `resmon` prints, errors and all, without colours. Raises subprocess.TimeoutExpired where it takes longer."""
    environment = {name: value for name, value in os.environ.items() if name not in FORCING}
    return subprocess.run(
        program("resmon", *arguments),
        env=environment | finding() | {"NO_COLOR": "1", "COLUMNS": str(columns)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )
