"""Real trainings, each of which breaks in its own way: `python -m tests.postmortem.trainings [--seed N] DIRECTORY NAME...`.

All learn scikit-learn's digits with a small residual network; what makes them break is in the network, the data, the optimizer or
around the process, as it happens to people. TRAININGS says which cause a post-mortem should put first. The seed decides about all
that is random in a training, its network's first weights too, and each starts from it, whichever ran before in the same process.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import resmon

WIDTH = 32


class Block(nn.Module):
    """Pre-activation, as one would write it today."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.relu(self.up(self.norm(x))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Entropic(Block):
    """Weighs its branch with the entropy of a softmax: p log p is NaN where a p underflows to 0."""

    def branch(self, x: Tensor) -> Tensor:
        p = torch.softmax(self.up(x), dim=-1)
        return super().branch(x) * -(p * torch.log(p)).sum(-1, keepdim=True)


class Normed(Block):
    """Divides by a norm without an epsilon: a row of nothing but 0 is 0 / 0."""

    def branch(self, x: Tensor) -> Tensor:
        out: Tensor = super().branch(x) + x / x.norm(dim=-1, keepdim=True)
        return out


class Rooted(Block):
    """Takes the root of a sum of squares, whose derivative at 0 is 0 / 0: forward all is well."""

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x) * x.square().sum(-1, keepdim=True).sqrt()


class Bare(Block):
    """Without a normalisation, so that it grows with its weights."""

    def branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.relu(self.up(x)))
        return out


class Squashed(Block):
    """Sigmoid after the addition, as before 2015: each takes three quarters of the gradient and more."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x + self.down(torch.sigmoid(self.up(x))))


class Dropped(Block):
    """Stochastic depth."""

    def __init__(self, kept: float) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.bernoulli(torch.full((len(x), 1), self.kept)) / max(self.kept, 0.05)
        return x + self.branch(x) * keep


class Dying(Block):
    """Its last layer is followed by a ReLU, which may die."""

    def branch(self, x: Tensor) -> Tensor:
        return torch.relu(super().branch(x))


class Image(nn.Module):
    """A block on images, whose branch halves them where its skip does not."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.convolution(x)
        return out


def network(*blocks: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, WIDTH), *(blocks or (Block(), Block(), Block(), Block())), nn.Linear(WIDTH, 10))


def weight_of(module: nn.Module) -> Tensor:
    assert isinstance(module, nn.Linear)
    return module.weight


def digits() -> tuple[Tensor, Tensor]:
    """In a random order, so that which are trained on and which validate is another matter of the seed."""
    data = load_digits()
    order = torch.randperm(len(data.data))
    return torch.tensor(data.data, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]


def train(
    directory: Path,
    model: nn.Sequential | None = None,
    *,
    steps: int = 150,
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(p, 1e-3),
    rate: Callable[[int], float] | None = None,
    inputs: Callable[[int, Tensor], Tensor] = lambda step, x: x,
    targets: Callable[[int, Tensor], Tensor] = lambda step, y: y,
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    before: Callable[[int, nn.Sequential], None] = lambda step, model: None,
    after: Callable[[int, nn.Sequential], None] = lambda step, model: None,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    scaler: Any = None,
    examples: int = 1200,
    size: int = 32,
    validate: bool = False,
    clip: float = 0.0,
    checkpoints: int = 50,
    **settings: Any,
) -> None:
    x, y = digits()
    model = model or network()
    made = optimizer(model.parameters())
    run = settings.pop("run", "training")
    with resmon.watch(model, made, run=run, directory=directory, agent="off", **settings) as monitor:
        for step in range(steps):
            for group in made.param_groups if rate else ():
                group["lr"] = rate(step) if rate else 0.0
            before(step, model)
            batch = torch.randint(0, examples, (size,))
            with precision():
                loss = loss_of(model(inputs(step, x[batch])).float(), targets(step, y[batch]))
            made.zero_grad()
            if scaler is None:
                loss.backward()
            else:
                scaler.scale(loss).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            if scaler is None:
                made.step()
            else:
                scaler.step(made)
                scaler.update()
            monitor.log(loss=loss)
            if validate and step % 5 == 4:
                with torch.no_grad():
                    monitor.log(val_loss=F.cross_entropy(model.eval()(x[-400:]), y[-400:]))
                model.train()
            if checkpoints and step % checkpoints == checkpoints - 1:
                monitor.checkpoint(f"step-{step}.pt")
            after(step, model)


def at(when: int, change: Callable[[Tensor], Tensor]) -> Callable[[int, Tensor], Tensor]:
    """The batch of one step is changed."""
    return lambda step, x: change(x) if step == when else x


def from_(when: int, change: Callable[[Tensor], Tensor]) -> Callable[[int, Tensor], Tensor]:
    return lambda step, x: change(x) if step >= when else x


def _with_rows(x: Tensor, value: float, rows: slice = slice(3, 5)) -> Tensor:
    x = x.clone()
    x[rows] = value
    return x


# -- numbers --------------------------------------------------------------------------------------------------------------


def logarithm_of_zero(to: Path) -> None:
    """An outlier in one batch makes a softmax underflow."""
    train(to, network(Block(), Entropic(), Block()), inputs=at(120, lambda x: x * 400))


def zero_by_zero(to: Path) -> None:
    """Padding rows of nothing but 0 reach a division by a norm."""
    model = network(Normed(), Block(), Block())
    model[0] = nn.Linear(64, WIDTH, bias=False)
    train(to, model, inputs=at(90, lambda x: _with_rows(x, 0.0)))


def root_of_zero(to: Path) -> None:
    """Padding rows of nothing but 0: the forward pass is finite, the derivative of the root is not."""
    model = network(Rooted(), Block(), Block())
    model[0] = nn.Linear(64, WIDTH, bias=False)
    train(to, model, inputs=at(60, lambda x: _with_rows(x, 0.0)))


def mean_over_nothing(to: Path) -> None:
    """All targets of one batch are to be ignored, so the mean is 0 / 0."""
    train(to, targets=at(75, lambda y: torch.full_like(y, -100)))


def learning_rate(to: Path) -> None:
    """A warm-up that never ends."""
    train(
        to,
        network(*(Bare() for _ in range(6))),
        steps=500,
        optimizer=lambda p: torch.optim.SGD(p, 0.01),
        rate=lambda step: 0.01 * 1.012**step,
    )


def learning_rate_at_once(to: Path) -> None:
    """The learning rate is off by a factor of a thousand from one step on."""
    train(
        to,
        network(*(Bare() for _ in range(4))),
        steps=200,
        optimizer=lambda p: torch.optim.SGD(p, 0.05),
        rate=lambda step: 0.05 if step < 100 else 50.0,
    )


def diverging(to: Path) -> None:
    """The learning rate is too high for a network with normalisations, which stays finite and forgets all."""
    train(to, steps=300, rate=lambda step: 1e-3 if step < 150 else 1.0)


def half_precision(to: Path) -> None:
    """A stream that lives near the end of float16, under autocast: a usual batch is beyond it at last."""
    model = network(Bare(), Bare(), Bare())
    model.insert(4, nn.LayerNorm(WIDTH))
    with torch.no_grad():
        weight_of(model[0]).mul_(6e4)
    train(to, model, rate=lambda step: 2e-3, precision=lambda: torch.autocast("cpu", dtype=torch.float16))


def half_precision_slowly(to: Path) -> None:
    """Weights before the stream that grow a little in every step until float16 ends; the head's normalisation hides it."""

    def grow(step: int, model: nn.Sequential) -> None:
        with torch.no_grad():
            weight_of(model[0]).mul_(1.06)

    model = network(Bare(), Bare(), Bare())
    model.insert(4, nn.LayerNorm(WIDTH))
    train(to, model, steps=300, after=grow, precision=lambda: torch.autocast("cpu", dtype=torch.float16))


def rows(to: Path) -> None:
    train(to, inputs=at(110, lambda x: _with_rows(x, math.nan)))


def rows_from_the_start(to: Path) -> None:
    train(to, steps=30, inputs=at(2, lambda x: _with_rows(x, math.inf)))


def outlier(to: Path) -> None:
    """A batch that is not normalised: finite, and ten thousand times as large as the others."""
    train(
        to,
        network(*(Bare() for _ in range(4))),
        optimizer=lambda p: torch.optim.SGD(p, 0.05),
        inputs=at(100, lambda x: x * 1e12),
    )


def weights(to: Path) -> None:
    """Something writes NaN into a weight, as a broken average or a broken checkpoint does."""

    def spoil(step: int, model: nn.Sequential) -> None:
        if step == 80:
            with torch.no_grad():
                weight_of(model[2].get_submodule("up"))[3, 4] = math.nan

    train(to, after=spoil)


def update(to: Path) -> None:
    """Adam without an epsilon divides 0 by 0 for an input that has always been 0."""
    train(to, steps=40, optimizer=lambda p: torch.optim.Adam(p, 1e-3, eps=0.0))


def schedule(to: Path) -> None:
    """A schedule divides by the steps that are left."""
    train(to, steps=120, rate=lambda step: 0.001 * 100 / (100 - step) if step != 100 else math.inf)


# -- no NaN ---------------------------------------------------------------------------------------------------------------


def vanishing(to: Path) -> None:
    train(to, network(*(Squashed() for _ in range(12))), steps=200, optimizer=lambda p: torch.optim.SGD(p, 0.1))


def dead(to: Path) -> None:
    """One block's bias is driven so low that its ReLU never opens again."""

    def drive(step: int, model: nn.Sequential) -> None:
        if step == 100:
            with torch.no_grad():
                model[2].get_parameter("down.bias").sub_(50)

    train(to, network(Block(), Dying(), Block()), steps=200, after=drive)


def overfitting(to: Path) -> None:
    train(to, steps=400, examples=64, validate=True, optimizer=lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=0.0))


def stochastic_depth(to: Path) -> None:
    """Who wrote it passed the rate of dropping as that of keeping."""
    train(to, network(Dropped(0.9), Dropped(0.9), Dropped(0.1), Dropped(0.9)), steps=200)


def never_kept(to: Path) -> None:
    train(to, network(Dropped(0.9), Dropped(0.8), Dropped(0.0)), steps=200)


def slow_data(to: Path) -> None:
    def slower(step: int, model: nn.Sequential) -> None:
        if step >= 120:
            time.sleep(0.08)

    train(to, steps=160, before=slower)


# -- the process ----------------------------------------------------------------------------------------------------------


def out_of_memory(to: Path) -> None:
    """A batch that takes more than the address space allows."""
    model = nn.Sequential(nn.Linear(64, 512), *(Block(512) for _ in range(6)), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with resmon.watch(model, optimizer, run="training", directory=to, agent="off") as monitor:
        for step in range(40):
            size = 256 if step < 30 else 256 * 4 ** (step - 29)
            if step == 5:
                used = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize:"))
                resource.setrlimit(resource.RLIMIT_AS, ((int(used.split()[1]) << 10) + (700 << 20), resource.RLIM_INFINITY))
            loss = model(torch.randn(size, 64)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss)
            time.sleep(0.02)


def shapes(to: Path) -> None:
    """Images of another size at the end of an epoch."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), Image(8), nn.Flatten(), nn.LazyLinear(10))
    # An image of one pixel is not halved, so it fits.
    model(torch.randn(1, 1, 1, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with resmon.watch(model, optimizer, run="training", directory=to, agent="off") as monitor:
        for step in range(60):
            loss = model(torch.randn(8, 1, *((1, 1) if step < 50 else (4, 4)))).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss)


def shapes_at_once(to: Path) -> None:
    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.branch(x)
            return out

    train(to, network(Block(), Wider()))


def exception(to: Path) -> None:
    def missing(step: int, model: nn.Sequential) -> None:
        if step == 70:
            raise KeyError("image-70.png")

    train(to, before=missing)


def killed(to: Path) -> None:
    def kill(step: int, model: nn.Sequential) -> None:
        if step == 100:
            os.kill(os.getpid(), signal.SIGKILL)

    train(to, after=kill)


def preempted(to: Path) -> None:
    def end(step: int, model: nn.Sequential) -> None:
        if step == 100:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    train(to, after=end)


def hang(to: Path) -> None:
    def wait(step: int, model: nn.Sequential) -> None:
        if step == 100:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if not os.fork():
                time.sleep(3)
                os.kill(os.getppid(), signal.SIGTERM)
                os._exit(0)
            time.sleep(60)

    train(to, after=wait, stall_after=1.0)


# -- nothing is wrong -----------------------------------------------------------------------------------------------------


def healthy(to: Path) -> None:
    train(to, steps=300, validate=True)


def healthy_sgd(to: Path) -> None:
    train(to, steps=300, optimizer=lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), clip=1.0, validate=True)


def healthy_warm_up(to: Path) -> None:
    train(to, steps=300, rate=lambda step: 3e-3 * min(1, (step + 1) / 60) * 0.5 * (1 + math.cos(math.pi * step / 300)))


def healthy_zero_init(to: Path) -> None:
    model = network()
    for block in model:
        if isinstance(block, Block):
            nn.init.zeros_(block.down.weight)
            nn.init.zeros_(block.down.bias)
    train(to, model, steps=300)


def healthy_half(to: Path) -> None:
    train(to, steps=200, precision=lambda: torch.autocast("cpu", dtype=torch.bfloat16))


def healthy_scaled(to: Path) -> None:
    train(to, steps=200, precision=lambda: torch.autocast("cpu", dtype=torch.float16), scaler=torch.amp.GradScaler("cpu"))


def healthy_depth(to: Path) -> None:
    train(to, network(Dropped(0.95), Dropped(0.9), Dropped(0.85), Dropped(0.8)), steps=300)


def by_hand(to: Path) -> None:
    def interrupt(step: int, model: nn.Sequential) -> None:
        if step == 200:
            raise KeyboardInterrupt

    train(to, steps=300, after=interrupt)


class Training(NamedTuple):
    run: Callable[[Path], None]
    cause: str  # "" where there is none


TRAININGS: Mapping[str, Training] = {
    function.__name__: Training(function, cause)
    for function, cause in (
        (logarithm_of_zero, "operation"),
        (zero_by_zero, "operation"),
        (root_of_zero, "operation"),
        (mean_over_nothing, "operation"),
        (learning_rate, "explosion"),
        (learning_rate_at_once, "explosion"),
        (diverging, "explosion"),
        (half_precision, "precision"),
        (half_precision_slowly, "precision"),
        (rows, "data"),
        (rows_from_the_start, "data"),
        (outlier, "data"),
        (weights, "weights"),
        (update, "optimizer"),
        (schedule, "optimizer"),
        (vanishing, "vanishing"),
        (dead, "vanishing"),
        (overfitting, "overfitting"),
        (stochastic_depth, "stochastic_depth"),
        (never_kept, "stochastic_depth"),
        (slow_data, "latency"),
        (out_of_memory, "out_of_memory"),
        (shapes, "shape_mismatch"),
        (shapes_at_once, "shape_mismatch"),
        (exception, "exception"),
        (killed, "killed"),
        (preempted, "killed"),
        (hang, "stalled"),
        (healthy, ""),
        (healthy_sgd, ""),
        (healthy_warm_up, ""),
        (healthy_zero_init, ""),
        (healthy_half, ""),
        (healthy_scaled, ""),
        (healthy_depth, ""),
        (by_hand, "killed"),
    )
}


def run(name: str, to: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    TRAININGS[name].run(to)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="+", choices=TRAININGS, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for name in asked.names:
        run(name, asked.directory / name, asked.seed)
