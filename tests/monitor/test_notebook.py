"""Training in cells, with the real IPython."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

import resmon
from tests.test_architecture import python

SETUP = """
import torch, resmon
from torch import nn
from tests.integrations.networks import batch, network

net = network()
opt = torch.optim.SGD(net.parameters(), 0.1)
monitor = resmon.watch(net, opt, run="cells", directory={folder!r}, agent="off")

def train(steps, breaks=None, error=ValueError("seven")):
    for step in range(steps):
        x, y = batch(step)
        loss = nn.functional.mse_loss(net(x), y)
        if step == breaks:
            raise error
        opt.zero_grad()
        loss.backward()
        opt.step()
"""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Any]:
    made = InteractiveShell.instance()
    made.run_cell(SETUP.format(folder=str(tmp_path)))
    yield made
    made.run_cell("monitor.close()")
    callbacks = made.events.callbacks
    assert not [each for name in ("pre_run_cell", "post_run_cell") for each in callbacks[name] if "resmon" in each.__module__], (
        "a trace is left"
    )
    InteractiveShell.clear_instance()


def kinds(folder: Path) -> list[str]:
    return [str(kind) for kind in resmon.load(folder / "cells").incidents()["kind"]]


def test_an_exception_of_a_cell_that_trained_is_an_incident_and_the_run_goes_on(shell: Any, tmp_path: Path) -> None:
    assert shell.run_cell("train(5, breaks=3)").error_in_exec is not None
    assert kinds(tmp_path) == ["failed"]
    (incident,) = resmon.load(tmp_path / "cells").incidents().itertuples()
    assert "seven" in incident.summary
    assert incident.step == 3
    shell.run_cell("train(4)")
    shell.run_cell("monitor.close()")
    flight = resmon.load(tmp_path / "cells")
    assert flight.outcome == "finished"
    assert len(flight.steps()) == 7
    assert kinds(tmp_path) == ["failed"]


@pytest.mark.parametrize("cell", ["1 / 0", "train(3, breaks=2, error=KeyboardInterrupt())", "train(2)", "def broken(:"])
def test_what_is_no_failure_of_the_training_is_none(shell: Any, tmp_path: Path, cell: str) -> None:
    """An exception elsewhere, a stop by hand, no exception at all, a cell that is no Python."""
    shell.run_cell("train(2)")
    shell.run_cell(cell)
    assert kinds(tmp_path) == []


def test_cells_that_are_run_again_with_another_model_close_the_first_monitor(
    shell: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As everybody does who changes the network: the first model's memory is given back, and its attempt is over."""
    shell.run_cell("train(2)\nimport weakref; first = weakref.ref(net)")
    shell.run_cell(SETUP.format(folder=str(tmp_path)))
    assert "the run 'cells' is watched already, with another model; that monitor is closed" in caplog.text
    shell.run_cell("train(3)\nimport gc; gc.collect()")
    assert shell.user_ns["first"]() is None
    assert [resmon.load(tmp_path / "cells", attempt).outcome for attempt in (1, 2)] == ["finished", "running"]


def test_a_shape_that_does_not_fit_is_diagnosed(shell: Any, tmp_path: Path) -> None:
    shell.run_cell("train(2)")
    shell.run_cell("net(torch.randn(4, 9))")
    assert kinds(tmp_path) == ["shape_mismatch"]


def shown(shell: Any, name: str = "monitor") -> dict[str, str]:
    made, _ = shell.display_formatter.format(shell.user_ns[name])
    return dict(made)


def test_a_monitor_shows_itself_at_every_moment_of_its_run(shell: Any, tmp_path: Path) -> None:
    assert "no step is on file" in shown(shell)["text/plain"]
    shell.run_cell("train(30); monitor.log(loss=0.5)")
    made = shown(shell)
    assert made["text/plain"].startswith("cells, attempt 1, ")
    assert "running with 30 steps" in made["text/plain"]
    assert made["text/html"].count("<img ") == 2
    blocks = resmon.load(tmp_path / "cells").info["sites"]
    assert all(f">{site.name}</td>" in made["text/html"] for site in blocks)
    shell.run_cell("train(3, breaks=2)")
    assert "failed at step 32" in shown(shell)["text/plain"]
    shell.run_cell("monitor.close()")
    assert "finished after 32 steps" in shown(shell)["text/plain"]
    shell.run_cell("picture = monitor.plot('gradient_norm')")
    assert "application/vnd.plotly.v1+json" in shown(shell, "picture")


def test_a_monitor_that_cannot_be_shown_says_so(shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.run_cell("train(2)")
    monkeypatch.setattr("resmon.portrait.flight.bundle", lambda *_: 1 // 0)
    assert "cannot be shown: ZeroDivisionError" in shown(shell)["text/plain"]
    shell.run_cell("train(2)")
    monkeypatch.undo()
    assert "running with 4 steps" in shown(shell)["text/plain"]


def test_looking_changes_nothing_of_the_training(tmp_path: Path) -> None:
    """The same weights to the last bit, whether somebody looks after every step or nobody does; and nothing heavy is imported."""
    code = "import hashlib, sys, torch\n"
    for name, look in (("looks", "monitor._repr_mimebundle_(); monitor.plot()"), ("bare", "")):
        code += f"torch.manual_seed(0)\n{SETUP.format(folder=str(tmp_path / name))}for _ in range(20): train(1); {look}\n"
        code += "weights = b''.join(p.detach().numpy().tobytes() for p in net.parameters())\n"
        code += "print(hashlib.sha256(weights).hexdigest(), torch.random.get_rng_state().sum().item())\n"
    told = python(f"{code}print({{'pandas', 'plotly', 'scipy'}} & set(sys.modules))", tmp_path).splitlines()
    assert told[0] == told[1]
    assert told[2] == "set()"
    assert len(resmon.load(tmp_path / "looks" / "cells").steps()) == 20
