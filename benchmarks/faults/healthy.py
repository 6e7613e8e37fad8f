"""Long trainings in which nothing is wrong: what resmon says of them is a false alarm.

They differ in what has made monitors cry before: zero-initialised branches, stochastic depth, masks of literal infinities, learning
rates that rise, fall and start again, a gradient scaler that looks for its scale every some hundred steps, dropout, clipping,
losses that lie flat for tens of thousands of steps. The data never repeat, so that nothing can be overfitted. Everything that a
user has by default is on, and the agent's detectors see every step. `HEALTHY` is the table.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import resmon
from benchmarks.faults import architectures as nets
from benchmarks.faults.architectures import ARCHITECTURES, ROWS, Arguments, losses
from benchmarks.faults.following import Detecting, rank_folders
from resmon.flight import incidents
from resmon.records import Finding

LOOK = 500  # steps after which the detectors look
NOTE = 5_000  # and after which the notebook is told
VALIDATE = 500

Data = Callable[[torch.Generator, int], tuple[Arguments, Tensor]]


@dataclass(frozen=True, slots=True)
class Healthy:
    """A training, its learning rate at each step as a factor of the optimizer's, and what else it does."""

    title: str
    make: Callable[[], nn.Module]
    data: Data
    optimizer: Callable[[Iterable[Tensor]], Optimizer]
    factor: Callable[[float], float]  # of the part of the training that is over
    steps: int
    half: bool = False  # float16 under a gradient scaler
    clip: float | None = None
    parts: int = 1  # forward and backward passes of a step
    validates: bool = False


@dataclass(frozen=True, slots=True)
class Quiet:
    """What was said of a healthy training, so far or to its end."""

    name: str
    steps: int
    seen: int  # of them by the detectors
    done: bool
    seconds: float
    first_loss: float
    last_loss: float
    skipped: int = 0  # steps that a gradient scaler skipped
    incidents: list[str] = field(default_factory=list)  # what they say
    findings: list[dict[str, Any]] = field(default_factory=list)  # as _short makes them
    commit: str = field(default="", compare=False)  # likewise as in Outcome


# -- learning rates --------------------------------------------------------------------------------------------------------


def constant(_: float) -> float:
    return 1.0


def warm_up(part: float, over: float = 0.05) -> float:
    return min(1.0, part / over)


def cosine(part: float) -> float:
    """After a warm-up, down to a hundredth."""
    return warm_up(part) * (0.01 + 0.99 * (1 + math.cos(math.pi * part)) / 2)


def steps_down(part: float) -> float:
    return warm_up(part, 0.01) * 0.2 ** int(part * 4)


def restarts(part: float, count: int = 5) -> float:
    """Loshchilov and Hutter 2017."""
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (part * count % 1))) / 2


def one_cycle(part: float) -> float:
    """Smith and Topin 2019: up for a third, down for the rest."""
    return 0.04 + 0.96 * (part / 0.3 if part < 0.3 else max(0.0, (1 - part) / 0.7))


# -- the smallest networks -------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """x + relu(linear(norm(x))), the branch under dropout, dropped now and then, or ending in a layer that begins at zero."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.LayerNorm(nets.WIDTH)
        self.fc = nn.Linear(nets.WIDTH, nets.WIDTH)
        if kind == "zero":  # not what feeds the ReLU: at 0 that passes no gradient, and the branch would never learn
            self.out = nn.Linear(nets.WIDTH, nets.WIDTH)
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "depth" and self.training and torch.rand(()) < 0.2:
            return x
        branch = torch.relu(self.fc(self.norm(x)))
        if self.kind == "zero":
            branch = self.out(branch)
        if self.kind == "dropout":
            branch = F.dropout(branch, 0.2, self.training)
        if self.kind == "drop path" and self.training:
            branch = branch * (torch.rand(len(x), 1) < 0.8) / 0.8
        y: Tensor = x + branch
        return y


class Masked(nn.Module):
    """One head of attention over the batch's rows, which a mask of -inf keeps to those before."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(nets.WIDTH)
        self.qkv = nn.Linear(nets.WIDTH, 3 * nets.WIDTH)
        self.register_buffer("mask", torch.full((ROWS, ROWS), -math.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        y: Tensor = x + (q @ k.T / 4 + self.mask[: len(x), : len(x)]).softmax(-1) @ v
        return y


def stack(make: Callable[[], nn.Module], count: int = 2) -> nn.Module:
    return nets.Stack(make() for _ in range(count))


def plain(kind: str = "", count: int = 2) -> Callable[[], nn.Module]:
    return partial(stack, partial(Plain, kind), count)


def sgd(rate: float, momentum: float = 0.9) -> Callable[[Iterable[Tensor]], Optimizer]:
    return partial(SGD, lr=rate, momentum=momentum, foreach=True)


def adamw(rate: float) -> Callable[[Iterable[Tensor]], Optimizer]:
    return partial(AdamW, lr=rate, foreach=True)


def _of(name: str, title: str, rate: float, factor: Callable[[float], float], steps: int, **more: Any) -> Healthy:
    """One of the architectures of the faults."""
    made = ARCHITECTURES[name]
    return Healthy(f"{made.title}, {title}", made.make, made.data, adamw(rate), factor, steps, **more)


_V = partial(nets.vectors, noise=1.5)  # some rows cannot be told, so that the loss lies flat well above zero
_W = nets.vectors  # all can, so that the loss goes to zero
LONG, MIDDLE, SHORT = 60_000, 25_000, 8_000

HEALTHY: dict[str, Healthy] = {
    "plain": Healthy("two blocks x + relu(linear(norm(x))), SGD 0.005", plain(), _V, sgd(0.005), constant, LONG),
    "plain-slow": Healthy("likewise, learning rate 1e-4", plain(), _W, sgd(1e-4), constant, LONG, validates=True),
    "plain-warm": Healthy("likewise, SGD 0.01, warm-up and cosine", plain(), _V, sgd(0.01), cosine, LONG, validates=True),
    "plain-steps": Healthy("likewise, SGD 0.01, in steps", plain(), _W, sgd(0.01), steps_down, LONG),
    "plain-restarts": Healthy("likewise, AdamW with warm restarts", plain(), _V, adamw(5e-3), restarts, LONG, validates=True),
    "plain-cycle": Healthy("likewise, AdamW in one cycle, clipped", plain(), _V, adamw(3e-3), one_cycle, LONG, clip=1.0),
    "plain-adam": Healthy("likewise, AdamW 1e-3", plain(), _V, adamw(1e-3), constant, LONG),
    "deep": Healthy("six such blocks, AdamW 1e-3", plain("", 6), _V, adamw(1e-3), cosine, MIDDLE),
    "zero": Healthy("two blocks, zero-initialised, AdamW 2e-3", plain("zero"), _V, adamw(2e-3), constant, LONG),
    "zero-sgd": Healthy("two blocks, zero-initialised, SGD 0.005, warm-up", plain("zero"), _W, sgd(0.005), warm_up, LONG),
    "dropout": Healthy("two blocks under dropout", plain("dropout"), _V, adamw(1e-3), cosine, LONG, validates=True),
    "depth": Healthy("three blocks, of which stochastic depth skips some", plain("depth", 3), _V, adamw(1e-3), cosine, MIDDLE),
    "drop-path": Healthy("two blocks, stochastic depth of samples", plain("drop path"), _W, adamw(1e-3), constant, LONG),
    "masked": Healthy("two blocks of attention under a mask of -inf", partial(stack, Masked), _W, adamw(1e-3), constant, LONG),
    "masked-warm": Healthy("likewise, warm-up, cosine, clipped", partial(stack, Masked), _V, adamw(3e-3), cosine, LONG, clip=0.5),
    "scaler": Healthy(
        "two blocks in float16 under a gradient scaler, SGD 0.005", plain(), _V, sgd(0.005), constant, MIDDLE, half=True
    ),
    "scaler-zero": Healthy(
        "likewise, zero-initialised, AdamW, warm-up, clipped", plain("zero"), _W, adamw(1e-3), warm_up, MIDDLE, half=True, clip=1.0
    ),
    "parts": Healthy("two blocks, four passes a step", plain(), _V, adamw(1e-3), cosine, MIDDLE, parts=4),
    "mlp": _of("mlp", "AdamW 1e-3", 1e-3, cosine, MIDDLE, validates=True),
    "pre-activation": _of("pre-activation", "AdamW 2e-3, one cycle", 2e-3, one_cycle, SHORT, validates=True),
    "in-place": _of("in-place", "AdamW 1e-3", 1e-3, cosine, SHORT),
    "stochastic-depth": _of("stochastic-depth", "AdamW 1e-3", 1e-3, cosine, SHORT),
    "parallel": _of("parallel", "AdamW 1e-3, warm-up, cosine", 1e-3, cosine, SHORT),
    "serial": _of("serial", "AdamW 2e-3", 2e-3, restarts, SHORT),
    "gpt2": _of("gpt2", "AdamW 1e-3, warm-up, cosine, clipped", 1e-3, cosine, SHORT, clip=1.0),
    "llama": _of("llama", "AdamW 2e-3, warm-up, cosine", 2e-3, cosine, SHORT),
    "bert": _of("bert", "AdamW 5e-4, warm-up", 5e-4, warm_up, SHORT),
    "vit": _of("vit", "AdamW 1e-3, warm-up, cosine", 1e-3, cosine, SHORT, validates=True),
    "convnext": _of("convnext", "AdamW 2e-3", 2e-3, cosine, SHORT),
    "resnet": _of("resnet", "AdamW 1e-3", 1e-3, steps_down, SHORT),
}


def train(name: str, steps: int | None = None, note: Callable[[Quiet], None] = lambda _: None) -> Quiet:
    """Train it to its end, or for so many steps, and say what was said. `note` is told how far it has come."""
    torch.set_num_threads(1)
    case = HEALTHY[name]
    steps = steps or case.steps
    seed = sorted(HEALTHY).index(name)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = case.make().train()
    optimizer = case.optimizer(model.parameters())
    rates = [group["lr"] for group in optimizer.param_groups]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=200) if case.half else None
    started = time.monotonic()
    first = last = math.nan
    skipped = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        with resmon.watch(model, optimizer, run=name, directory=folder, agent="off") as monitor:
            detecting = Detecting(monitor.directory)

            def so_far(done: int, said: Iterable[str], over: bool = False) -> Quiet:
                return Quiet(
                    name,
                    done,
                    detecting.steps,
                    over,
                    round(time.monotonic() - started, 1),
                    round(first, 4),
                    round(last, 4),
                    skipped,
                    list(said),
                    [_short(finding, finding.id in detecting.paged) for finding in detecting.findings.values()],
                )

            for step in range(steps):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * case.factor(step / steps)
                optimizer.zero_grad()
                for _ in range(case.parts):
                    arguments, target = case.data(generator, ROWS)
                    with torch.autocast("cpu", torch.float16) if case.half else nullcontext():
                        output = model(**arguments)
                    loss = losses(output, target).float().mean() / case.parts
                    (loss if scaler is None else scaler.scale(loss)).backward()
                if case.clip is not None:
                    if scaler is not None:
                        scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), case.clip)
                if scaler is None:
                    optimizer.step()
                else:
                    scale = scaler.get_scale()
                    scaler.step(optimizer)
                    scaler.update()
                    skipped += scaler.get_scale() < scale
                last = float(loss.detach()) * case.parts
                first = last if step == 0 else first
                monitor.log(loss=last)
                if case.validates and (step + 1) % VALIDATE == 0:
                    monitor.log(val_loss=_validation(model, case.data))
                if (step + 1) % LOOK == 0:
                    detecting.look()
                if (step + 1) % NOTE == 0:
                    (rank_folder,) = rank_folders(monitor.directory)
                    events, _ = incidents.read(rank_folder, ended=False)
                    note(so_far(step + 1, [incident.summary for incident in incidents.newest(events)]))
        detecting.close()
        quiet = so_far(steps, resmon.load(monitor.directory).incidents()["summary"], over=True)
    note(quiet)
    return quiet


def _validation(model: nn.Module, data: Data) -> float:
    """On the same hundred-odd rows each time."""
    model.eval()
    with torch.no_grad():
        parts = [data(torch.Generator().manual_seed(10_000 + i), ROWS) for i in range(16)]
        found = [float(losses(model(**arguments), target).mean()) for arguments, target in parts]
    model.train()
    return sum(found) / len(found)


def _short(finding: Finding, paged: bool) -> dict[str, Any]:
    """With the severity that it had at its worst: who was woken was woken."""
    names = ("kind", "severity", "state", "block", "opened_step", "step", "summary")
    return {name: getattr(finding, name) for name in names} | ({"severity": "page"} if paged else {})
