"""docs/sidecar.md: what its two containers are told is enough for the one to serve what the other trains."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.agent.conftest import get
from tests.deploy.test_kubernetes import SIDECAR
from tests.ports import free_port
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sidecar.md").read_text(encoding="utf-8")
TRAINING, AGENT = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)

SCRIPT = """
import torch, resmon
from tests.integrations.networks import batch, network

model = network()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with resmon.watch(model, optimizer) as monitor:
    for step in range(20):
        x, y = batch(step)
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.log(loss=loss)
"""


def test_the_agent_is_told_what_the_job_tells_it() -> None:
    (command,) = re.findall(r"^resmon (agent .*)$", AGENT, re.MULTILINE)
    assert shlex.split(command) == SIDECAR["args"]


@pytest.mark.slow
def test_one_serves_what_the_other_trains(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "bin").mkdir()
    for name, words in (("resmon", f"{sys.executable} -m resmon"), ("python", sys.executable)):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "train.py").write_text(SCRIPT)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RESMON_") and key != "CI"}
    environment = kept | {"PATH": f"{tmp_path / 'bin'}:{kept['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def told(text: str) -> list[str]:
        moved = text.replace("/run/resmon", str(tmp_path / "resmon")).replace("=/runs", f"={tmp_path / 'runs'}")
        return ["sh", "-euc", moved.replace("0.0.0.0:9699", f"127.0.0.1:{port}").replace("\nresmon agent", "\nexec resmon agent")]

    agent = subprocess.Popen(told(AGENT), cwd=tmp_path, env=environment)
    try:
        subprocess.run(told(TRAINING), cwd=tmp_path, env=environment, check=True, timeout=120)
        assert (tmp_path / "runs" / "digits").is_dir()

        def outcome() -> bool:
            body = get(f"http://127.0.0.1:{port}/metrics")[1]
            samples = [each for family in text_string_to_metric_families(body) for each in family.samples]
            return any(
                each.name == "resmon_run_outcome" and each.labels["run"] == "digits" and each.labels["outcome"] == "finished"
                for each in samples
            )

        wait_for(outcome)
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()
