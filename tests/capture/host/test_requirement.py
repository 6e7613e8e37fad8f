"""An older torch: what `watch` says of it, and what becomes of compiled models."""

from __future__ import annotations

import logging
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from resmon.capture.host import compiler
from resmon.capture.host.requirement import LEAST, at_least
from tests.capture.loops import watch
from tests.capture.test_compiled import EVERY_WAY, WAYS, Loop, Net, bare, batch, counted

WATCH = "import resmon\ntry:\n    resmon.watch(None)\nexcept resmon.ConfigurationError as error:\n    print(error)\n"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "resmon"]


@pytest.mark.parametrize(
    ("version", "enough"),
    [
        ("2.6.0", True),
        ("2.5.1+cu121", False),
        ("1.13.1", False),
        ("2.13.0+cpu", True),
        ("2.10.0a0+git1234", True),
        ("3.0", True),
        ("main", True),
    ],
)
def test_versions(version: str, enough: bool) -> None:
    assert at_least(version, LEAST) == enough


@pytest.mark.parametrize("found", ["2.5.1", None])
@pytest.mark.parametrize("program", [WATCH, WATCH.replace("watch", "discover"), WATCH.replace("watch(None)", "residual_add")])
def test_what_is_said(found: str | None, program: str, tmp_path: Path) -> None:
    """The older torch has nothing but its version, so that nothing of it can be used before it is asked for that."""
    package = tmp_path / "torch" / "__init__.py"
    package.parent.mkdir()
    package.write_text(f"__version__ = {found!r}\n" if found else "raise ModuleNotFoundError('no torch', name='torch')\n")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": f"{tmp_path}:{root}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2.6 or newer" in done.stdout and "pip install" in done.stdout
    assert found is None or found in done.stdout


@pytest.mark.parametrize("way", EVERY_WAY)
def test_compiled_models_with_a_torch_that_is_too_old_for_that(
    way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No graph holds anything of ours, nothing runs eagerly for us, and it is said once."""
    monkeypatch.setattr(compiler, "OBSERVES", False)
    model = Net(functional=True)
    torch.manual_seed(0)
    batches = [batch(seed=i) for i in range(3)]
    without, losses = bare(model, WAYS[way], *batches)
    with caplog.at_level(logging.WARNING, "resmon"):
        loop = Loop(model, WAYS[way])
        for each in batches:
            loop.step(each)
    assert loop.losses == losses
    assert counted() == without
    assert said(caplog) == [f"resmon: {compiler.TOO_OLD}"]
    assert [record.run_value("gradient_square") is not None for record in loop.sink.steps] == [True] * 3
    assert not loop.sink.now
    loop.session.detach()
    torch._dynamo.reset()
    counters.clear()


def test_eager_models_with_a_torch_that_is_too_old_for_graphs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiler, "OBSERVES", False)
    loop = Loop(Net(), lambda model: lambda x: model(x).square().mean())
    with caplog.at_level(logging.WARNING, "resmon"):
        for i in range(3):
            loop.checked_step(batch(seed=i))
    assert not said(caplog)
    loop.session.detach()


def test_a_module_that_is_made_between_two_graphs() -> None:
    """Compiled autograd makes one when `backward` is called there; torch 2.6 compiled what heard of that, and failed."""

    def training(*, watched: bool) -> list[float]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        session = watch(model, optimizer)[0] if watched else None

        @torch.compile(backend="eager")
        def backward(x: Tensor) -> Tensor:
            loss: Tensor = model(x).square().mean()
            loss.backward()
            return loss

        losses = []
        for i in range(2):
            optimizer.zero_grad()
            losses.append(backward(batch(seed=i)).item())
            optimizer.step()
        if session is not None:
            session.detach()
        return losses

    with torch._dynamo.config.patch(compiled_autograd=True):
        assert training(watched=True) == pytest.approx(training(watched=False), rel=1e-6)
    torch._dynamo.reset()


def test_the_bound_that_pip_is_told_is_the_same() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert project["project"]["optional-dependencies"]["torch"][0] == "torch>=" + ".".join(map(str, LEAST))
