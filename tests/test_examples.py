"""The examples and the demonstration, run as a newcomer runs them, only shorter."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmon.agent import runtime
from resmon.flight.reader import Follower
from resmon.records import ScalarRecord, StepRecord
from tests.ports import free_port

ROOT = Path(__file__).parent.parent


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # One thread: these networks are small, and threads stand still where tests share the cores.
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "100", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def losses_of(rank: Path) -> list[float]:
    follower, losses = Follower(rank), []
    while items := follower.poll():
        losses += [item.values["loss"] for item in items if isinstance(item, ScalarRecord) and "loss" in item.values]
    return losses


def test_digits_learns(tmp_path: Path) -> None:
    result = run([sys.executable, str(ROOT / "examples" / "digits.py"), "--steps", "60"], tmp_path, RESMON_AGENT="off")
    assert result.returncode == 0, result.stderr
    rank = tmp_path / "runs" / "digits" / "attempt-0001" / "rank-00000"
    losses = losses_of(rank)
    assert len(losses) == 60
    assert losses[0] > 2.0 and sum(losses[-5:]) / 5 < 0.5
    records = [item for item in Follower(rank).poll() if isinstance(item, StepRecord)]
    assert [record.step for record in records] == list(range(60))
    sites = Follower(rank)
    sites.poll()
    assert [site.name for site in sites.columns.sites] == [f"stages.{stage}.{block}" for stage in range(3) for block in range(3)]
    assert [site.kind for site in sites.columns.sites if site.name in ("stages.1.0", "stages.2.0")] == ["projection"] * 2


def test_char_gpt_learns(tmp_path: Path) -> None:
    script = str(ROOT / "examples" / "char_gpt.py")
    result = run([sys.executable, script, "--steps", "30", "--batch-size", "4", "--length", "64"], tmp_path, RESMON_AGENT="off")
    assert result.returncode == 0, result.stderr
    losses = losses_of(tmp_path / "runs" / "char-gpt" / "attempt-0001" / "rank-00000")
    assert losses[0] > 4.0 and losses[-1] < 3.7
    assert "it writes:\ndef " in result.stdout


@pytest.fixture
def runtime_folder(tmp_path: Path) -> Iterator[Path]:
    """A runtime folder of the test's own; the agent that is started there leaves with it."""
    folder = tmp_path / "runtime"
    yield folder
    serving = runtime.serving(folder)
    if serving is not None and serving.pid:
        os.kill(serving.pid, signal.SIGTERM)


def test_the_demonstration_and_what_it_tells_to_do_next(
    tmp_path: Path, runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both runs, the finding that names a block, and each command of the last page pasted into a shell."""
    monkeypatch.delenv("RESMON_AGENT", raising=False)
    environment = {
        "CI": "true",  # where the agent is off by default, and is here all the same
        "RESMON_RUNTIME_DIR": str(runtime_folder),
        "RESMON_LISTEN": f"127.0.0.1:{free_port()}",
    }
    result = run([sys.executable, "-m", "resmon", "demo", "--seconds", "3"], tmp_path, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    shown = result.stdout
    assert f"Metrics while it runs: http://{environment['RESMON_LISTEN']}/metrics" in shown
    assert f"In a browser: http://{environment['RESMON_LISTEN']}/?run=digits~" in shown
    assert "■ finished" in shown
    first = re.search(r"The block that went first: (stages\.\d\.\d)\n", shown)
    assert first is not None, shown
    assert f"✖ nonfinite in block {first[1]} at step" in shown
    assert re.search(rf"{first[1]} .*◀ worst", shown)

    commands = [line.strip() for line in shown[shown.index("What to do next") :].splitlines() if re.match(r"  [^# ]", line)][:-1]
    assert len(commands) == 4
    for command in commands:
        pasted = run(["bash", "-c", command], tmp_path, **environment)
        assert pasted.returncode == 0, (command, pasted.stderr)
        assert re.search(r"digits|stages\.\d\.\d", pasted.stdout), command
