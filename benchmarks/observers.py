"""Who watches a training: resmon, its alternatives through their real packages, and nobody.

Each is attached when it is made and sees every step from then on. Everything that it writes goes into the current folder.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import resmon
from benchmarks.workloads import Training
from resmon.agent import runtime
from resmon.flight.reader import Follower
from resmon.records import StepRecord

AGENT_START = 30.0  # seconds


class Observer:
    """Watches nothing. Two bare trainings in turn show how far apart equal steps are on this machine."""

    package: str | None = None  # that must be installed

    def __init__(self, training: Training) -> None:
        self.training = training

    def log(self, loss: Tensor) -> None:
        """Called within the step that is timed, after the optimizer stepped."""

    def processes(self) -> list[int]:
        """Process ids, besides children of this process, that work for the observer."""
        return []

    def own_seconds(self) -> list[float]:
        """What each step cost by the observer's own account, for those that keep one."""
        return []

    def close(self) -> None: ...


class Resmon(Observer):
    """Everything on: every step, every site, every value, the flight written, the agent following it."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self._monitor = resmon.watch(training.model, training.optimizer, run="benchmark", directory="runs")
        self._agent = None if os.environ.get("RESMON_AGENT") == "off" else _agent_that_is_ready()

    def log(self, loss: Tensor) -> None:
        self._monitor.log(loss=loss)

    def processes(self) -> list[int]:
        return [] if self._agent is None else [self._agent.pid]

    def own_seconds(self) -> list[float]:
        (rank,) = self._monitor.directory.glob("attempt-*/rank-*")
        follower = Follower(rank)
        seconds: list[float] = []
        while items := follower.poll():
            seconds.extend(s for i in items if isinstance(i, StepRecord) and (s := i.run_value("monitor_seconds")) is not None)
        follower.close()
        return seconds

    def close(self) -> None:
        self._monitor.close()


class Wandb(Observer):
    """wandb.watch(log="gradients", log_freq=1), offline."""

    package = "wandb"

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        import wandb

        self._run = wandb.init(mode="offline", project="benchmark", dir=".")
        self._run.watch(training.model, log="gradients", log_freq=1)

    def log(self, loss: Tensor) -> None:
        self._run.log({"loss": loss.item()})

    def close(self) -> None:
        self._run.finish()


class TensorBoard(Observer):
    """SummaryWriter.add_histogram of every parameter's gradient and of the output of every module that holds a residual add."""

    package = "tensorboard"

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter("tensorboard")
        self._step = 0
        self._handles = [
            training.model.get_submodule(path).register_forward_hook(self._activation(path))
            for path in dict.fromkeys(site.module for site in sites(training))
        ]

    def _activation(self, path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            self._writer.add_histogram(f"activation/{path}", tensor.detach(), self._step)

        return hook

    def log(self, loss: Tensor) -> None:
        for name, parameter in self.training.model.named_parameters():
            if parameter.grad is not None:
                self._writer.add_histogram(f"gradient/{name}", parameter.grad, self._step)
        self._writer.add_scalar("loss", loss.item(), self._step)
        self._step += 1

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._writer.close()


class Hooks(Observer):
    """As many hooks on as many modules and outputs as resmon's, which do nothing: what torch takes for calling them."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self._handles: list[RemovableHandle] = []
        for site in sites(training):
            block = training.model.get_submodule(site.module)
            last = training.model.get_submodule(site.branch[-1]) if site.branch else block
            self._handles += [
                block.register_forward_pre_hook(self._take, with_kwargs=True),
                last.register_forward_hook(self._take, with_kwargs=True),
                block.register_forward_hook(self._take_output, with_kwargs=True),
            ]

    def _take(self, *_: Any) -> None: ...

    def _take_output(self, _: nn.Module, __: Any, ___: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if tensor.requires_grad:
            tensor.register_hook(self._take)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


OBSERVERS: dict[str, type[Observer]] = {
    "resmon": Resmon,
    "wandb": Wandb,
    "tensorboard": TensorBoard,
    "hooks": Hooks,
    "nothing": Observer,
}


def sites(training: Training) -> list[resmon.ResidualSite]:
    arguments, _ = training.batches[0]
    with training.forward():
        return resmon.discover(training.model, **arguments)


def trained(training: Training, steps: int, hook: Callable[..., None]) -> Iterator[None]:
    """Train, with a forward hook on every module that holds a residual add; comes back after each step."""
    modules = dict.fromkeys(training.model.get_submodule(site.module) for site in sites(training))
    handles = [module.register_forward_hook(hook) for module in modules]
    for step in range(steps):
        arguments, labels = training.batches[step % len(training.batches)]
        training.optimizer.zero_grad()
        training.loss(training.model(**arguments), labels).backward()
        training.optimizer.step()
        yield
    for handle in handles:
        handle.remove()


def _agent_that_is_ready() -> runtime.Serving:
    """An agent that still starts would take its share of the first steps that are timed."""
    folder: Path = runtime.folder()
    deadline = time.monotonic() + AGENT_START
    while time.monotonic() < deadline:
        agent = runtime.serving(folder)
        if agent is not None and agent.url:
            try:
                urllib.request.urlopen(f"{agent.url}/-/ready", timeout=5).close()  # noqa: S310 - the agent's own address
            except (urllib.error.URLError, OSError):
                pass
            else:
                return agent
        time.sleep(0.05)
    raise SystemExit(
        f"no agent was ready within {AGENT_START:.0f} s; its log: {folder / runtime.LOG}. `--agent off` measures without one."
    )
