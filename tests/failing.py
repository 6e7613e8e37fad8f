"""Trainings that fail, each in its own way: `python -m tests.failing DIRECTORY`, with the agent's settings in the environment.

One process imports torch and is forked for each failure in turn, whose run bears its name. Prints the statuses that they left with,
once all but the LIVING have ended: these go on until they are killed, and their process ids are printed with the others' statuses.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch._dynamo  # which the first optimizer would import, in each child anew
from torch import Tensor, nn
from torch.nn import functional as F

import resmon
from resmon.capture.probes import channel
from resmon.detectors import Account, Detector, Episodes, Window
from resmon.records import Finding, Ints

WIDTH, CLASSES = 32, 4


class Block(nn.Module):
    """x + down(relu(up(norm(x)))); `floor` is what is added to the norm's output before its logarithm, where it is given."""

    def __init__(self, width: int = WIDTH, wide: int = 2) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, wide * width), nn.Linear(wide * width, width)
        self.floor: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.up(self.norm(x)))
        if self.floor is not None:
            hidden = torch.log(hidden + self.floor)
        y: Tensor = x + self.down(hidden)
        return y


class Dropping(Block):
    """A block that loses its branch for a third of the samples in training."""

    def forward(self, x: Tensor) -> Tensor:
        branch = self.down(F.relu(self.up(self.norm(x))))
        if self.training:
            branch = branch * (torch.rand(len(x), 1) < 2 / 3) * 1.5
        y: Tensor = x + branch
        return y


class Narrowing(nn.Module):
    """Halves height and width and doubles the channels, on one side of the addition only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv(F.relu(self.norm(x)))
        return y


def network(wide: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), Block(), Block(wide=wide), Block(), nn.Linear(WIDTH, CLASSES))


def normed(block: Callable[[], nn.Module] = Block) -> nn.Sequential:
    """One whose loss hardly depends on how large its stream is."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), block(), block(), block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))


def unfit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model of the shape mismatch, as `resmon check` is given it."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Narrowing(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)
    )
    return model, (torch.randn(4, 3, 8, 8),)


def greedy() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model that runs out of memory, with a batch that it takes."""
    return network(wide=64), (torch.randn(8, WIDTH),)


class Training:
    """A watched training of a small network on points around four centres, which are near each other."""

    def __init__(self, run: str, folder: str, model: nn.Module | None = None, rate: float = 3e-3, **settings: object) -> None:
        self.model = model or network()
        self.centres = 0.6 * torch.randn(CLASSES, WIDTH)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), rate)
        self.monitor = resmon.watch(self.model, self.optimizer, run=run, directory=folder, **settings)
        self.saved = Path(folder) / f"{run}.pt"

    def batch(self, size: int = 16) -> tuple[Tensor, Tensor]:
        labels = torch.randint(CLASSES, (size,))
        return self.centres[labels] + torch.randn(size, WIDTH), labels

    def step(self, x: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(self.model(x), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.monitor.log(loss=loss)

    def train(self, steps: int = 40) -> None:
        for _ in range(steps):
            self.step(*self.batch())
        self.save(self.saved)

    def save(self, path: Path) -> None:
        torch.save(self.model.state_dict(), path)
        self.monitor.checkpoint(path)


def nonfinite(folder: str) -> None:
    """A logarithm of 0 in the second block, and nobody looks at the loss."""
    training = Training("nonfinite", folder)
    training.train()
    training.model[2].floor = 0.0  # type: ignore[index, union-attr]
    for _ in range(3):
        training.step(*training.batch())
    training.monitor.close()


def out_of_memory(folder: str) -> None:
    """One batch that is a thousand times as long as those before."""
    training = Training("out-of-memory", folder, greedy()[0])
    for _ in range(8):
        training.train(5)
        time.sleep(0.15)  # memory is looked up four times a second
    used = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize:"))
    resource.setrlimit(resource.RLIMIT_AS, ((used << 10) + (128 << 20), resource.RLIM_INFINITY))
    training.step(*training.batch(16_000))


def shape_mismatch(folder: str) -> None:
    """A block without the projection that it needs."""
    model, (x,) = unfit()
    Training("shape-mismatch", folder, model).step(x, torch.zeros(len(x), dtype=torch.long))


def killed(folder: str) -> None:
    """SIGKILL, from outside."""
    training = Training("killed", folder)
    training.train()
    training.step(*training.batch())
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted(folder: str) -> None:
    """SIGTERM, as a scheduler sends it that takes the machine back."""
    training = Training("interrupted", folder)
    training.train()
    os.kill(os.getpid(), signal.SIGTERM)
    training.train()


def failed(folder: str) -> None:
    """A file of the training data that is not there."""
    training = Training("failed", folder)
    training.train()
    shard = Path(folder) / "shard-00007.pt"
    training.step(*torch.load(shard))


def error_budget(folder: str) -> None:
    """One of many, all for the same reason."""
    training = Training("error-budget", folder)
    training.train()
    training.step(*torch.load(Path(folder) / "shard-00012.pt"))


def overfitting(folder: str) -> None:
    """Sixty examples, a third of them labelled at random, learnt by heart."""
    training = Training("overfitting", folder)
    (x, labels), others = training.batch(60), training.batch(200)
    labels[:20] = torch.randint(CLASSES, (20,))
    for evaluation in range(16):
        for _ in range(5):
            training.step(x, labels)
        with torch.no_grad():
            training.monitor.log(val_loss=F.cross_entropy(training.model(others[0]), others[1]))
        training.save(training.saved.with_stem(f"overfitting-{evaluation}"))
    training.monitor.close()


def loss_divergence(folder: str) -> None:
    """A schedule that multiplies the learning rate with forty where it was meant to divide by it."""
    training = Training("loss-divergence", folder)
    training.train(80)
    for group in training.optimizer.param_groups:
        group["lr"] *= 100
    for _ in range(80):
        training.step(*training.batch())
    training.monitor.close()


def exploding_gradients(folder: str) -> None:
    """The last weights of the second block begin a hundred times too large."""
    model = network()
    with torch.no_grad():
        model[2].down.weight *= 100  # type: ignore[union-attr, operator]
    training = Training("exploding-gradients", folder, model)
    training.train(48)  # before the skip, too, has collapsed for long enough
    training.monitor.close()


def vanishing_gradients(folder: str) -> None:
    """A factor for the gradient of a shared trunk, meant for another of two losses, stays on."""
    training = Training("vanishing-gradients", folder)
    training.train(200)
    training.model[3].register_forward_pre_hook(lambda _, inputs: 1e-3 * inputs[0] + (1 - 1e-3) * inputs[0].detach())  # type: ignore[index]
    for _ in range(100):
        training.step(*training.batch())
    training.monitor.close()


def harder(training: Training) -> Training:
    """The centres are nearer to each other: the loss stays well above zero, where gradients tell more."""
    training.centres *= 0.4
    return training


class Clipped(Training):
    """Clips the gradient's norm; `summed` is the loss over the batch, of which what is logged is the mean."""

    summed = False

    def step(self, x: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(self.model(x), labels)
        self.optimizer.zero_grad()
        (loss * len(x) if self.summed else loss).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        self.monitor.log(loss=loss)


def hidden_explosion(folder: str) -> None:
    """The mean over the batch becomes a sum, and clipping hides it."""
    training = Clipped("hidden-explosion", folder)
    harder(training).train(320)
    training.summed = True
    for _ in range(100):
        training.step(*training.batch())
    training.monitor.close()


def rising_learning_rate(folder: str) -> None:
    """A decay whose factor is 1.03 where it should be 0.97."""
    training = Training("rising-learning-rate", folder)
    training.train(200)
    for _ in range(135):
        for group in training.optimizer.param_groups:
            group["lr"] *= 1.03
        training.step(*training.batch())
    training.monitor.close()


def spike_warning(folder: str) -> None:
    """A schedule that goes to 0, and something that lets the last weights of the second block grow from step to step."""
    training = harder(Training("spike-warning", folder, rate=1e-3))
    training.train(420)
    for group in training.optimizer.param_groups:
        group["lr"] = 1e-5
    for _ in range(60):  # and too slowly for the block to have strayed for long enough
        with torch.no_grad():
            training.model[2].down.weight *= 1.0228  # type: ignore[index, union-attr, operator]
        training.step(*training.batch(64))
    training.monitor.close()


def oscillation(folder: str) -> None:
    """The data are no longer shuffled: two classes, then the two others."""
    training = harder(Training("oscillation", folder))
    for _ in range(320):
        training.step(*training.batch(128))
    training.save(training.saved)
    for i in range(140):
        x, labels = training.batch(256)
        half = labels // 2 == i % 2
        training.step(x[half], labels[half])
    training.monitor.close()


def dead_branch(folder: str) -> None:
    """A pruning mask of zeros, meant for another layer, is put on the last weights of the second block before each step."""
    training = Training("dead-branch", folder)
    training.train(160)
    for _ in range(170):
        with torch.no_grad():
            for parameter in training.model[2].down.parameters():  # type: ignore[index, union-attr]
                parameter.zero_()
        training.step(*training.batch())
    training.monitor.close()


def frozen_block(folder: str) -> None:
    """Somebody froze the second block for a comparison and forgot to thaw it."""
    training = Training("frozen-block", folder)
    training.train(160)
    training.model[2].requires_grad_(False)  # type: ignore[index]
    for _ in range(170):
        training.step(*training.batch())
    training.monitor.close()


def collapsed_skip(folder: str) -> None:
    """The last weights of the second block are taken from a model of another scale."""
    training = Training("collapsed-skip", folder, normed())
    training.train(160)
    with torch.no_grad():
        for parameter in training.model[2].down.parameters():  # type: ignore[index, union-attr]
            parameter.mul_(60)
    for _ in range(110):
        training.step(*training.batch())
    training.monitor.close()


def growing_residual(folder: str) -> None:
    """Something multiplies the first weights with 1.02 in each step from the three hundredth on."""
    training = Training("growing-residual", folder, normed())
    training.train(300)
    for _ in range(330):
        training.step(*training.batch())
        with torch.no_grad():
            training.model[0].weight.mul_(1.02)  # type: ignore[index, operator, union-attr]
    training.monitor.close()


def straying_block(folder: str) -> None:
    """A scale of the second block's branch is lost in a change of the code, with which the run is taken up again."""
    training = Training("straying-block", folder, normed())
    training.train(400)
    training.train(20)
    training.model[2].down.register_forward_hook(lambda _module, _inputs, output: 4 * output)  # type: ignore[index, union-attr]
    for _ in range(80):
        training.step(*training.batch())
    training.monitor.close()


def change(folder: str) -> None:
    """The last weights of two of three blocks are halved: too many to stray, too little to be dead."""
    training = Training("change", folder, normed())
    training.train(900)
    training.train(300)
    with torch.no_grad():
        for block in (1, 2):
            training.model[block].down.weight.mul_(0.5)  # type: ignore[index, union-attr, operator]
            training.model[block].down.bias.mul_(0.5)  # type: ignore[index, union-attr, operator]
    for _ in range(40):
        training.step(*training.batch())
    training.monitor.close()


def stochastic_depth(folder: str) -> None:
    """After a validation the model is left in evaluation mode."""
    training = Training("stochastic-depth", folder, normed(Dropping))
    training.train(670)
    training.model.eval()
    for _ in range(110):
        training.step(*training.batch())
    training.monitor.close()


def drifting_inputs(folder: str) -> None:
    """From one shard of the data on, the values are no longer divided by their standard deviation."""
    training = Training("drifting-inputs", folder, normed())
    training.train(500)
    for _ in range(110):
        x, labels = training.batch()
        training.step(4 * x, labels)
    training.monitor.close()


def drift(folder: str) -> None:
    """From one step on the stream between two blocks has one bit a number, as in an experiment that was left switched on."""
    training = Training("drift", folder, normed(), rate=1e-3)
    training.train(620)
    training.model[2].register_forward_hook(  # type: ignore[index]
        lambda _module, _inputs, y: y + (y.sign() * y.std() - y).detach()
    )
    for _ in range(120):
        training.step(*training.batch())
    training.monitor.close()


class NormalisedBlock(nn.Module):
    """x + down(relu(norm(up(x)))), whose norm is a batch norm."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH, momentum=momentum), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(F.relu(self.norm(self.up(x))))
        return y


def batch_norm(folder: str) -> None:
    """A momentum of 0.9, which other libraries call what is torch's 0.1, and batches of 4: statistics of the newest batch alone."""
    blocks = (NormalisedBlock(momentum=0.9) for _ in range(3))
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *blocks, nn.Linear(WIDTH, CLASSES))
    training = Training("batch-norm", folder, model)
    for _ in range(400):
        training.step(*training.batch(4))
    training.save(training.saved)
    training.monitor.close()


def stalled(folder: str) -> None:
    """A data loader that waits for a batch that does not come."""
    training = Training("stalled", folder, stall_after=1.0)
    training.train()
    training.batch = lambda size=16: time.sleep(3600)  # type: ignore[assignment, method-assign, misc]
    training.train()


def agent_gone(folder: str) -> None:
    """It goes on, and nobody follows it: the agent was killed, or there never was one, as here."""
    training = Training("agent-gone", folder)
    while True:
        training.step(*training.batch())
        time.sleep(0.1)


def stale_run(folder: str) -> None:
    """A data loader that waits for ever, in a run that was told not to look for stalls."""
    training = Training("stale-run", folder, stall_after=0)
    training.train()
    time.sleep(3600)


def monitor_errors(folder: str) -> None:
    """A fault of resmon's own, which is put in here: from there on its probes raise."""

    def broken(*_: object) -> float:
        raise RuntimeError("a fault that was put in")

    training = Training("monitor-errors", folder)
    training.train()
    channel._native.arrived = broken
    training.train(20)
    training.monitor.close()


def agent_errors(folder: str) -> None:
    """Nothing is wrong with the run; who cannot follow it is the agent."""
    training = Training("agent-errors", folder)
    training.train()
    training.monitor.close()


def series_budget(folder: str) -> None:
    """Sixty blocks, and room for twenty series each."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *(Block(wide=1) for _ in range(60)), nn.Linear(WIDTH, CLASSES))
    training = Training("series-budget", folder, model, max_series=1200)
    training.train(5)
    training.monitor.close()


def slow_steps(folder: str) -> None:
    """The storage of the training data has become slow: each batch waits for 60 ms."""
    training = Training("slow-steps", folder)
    training.train(300)
    quick = training.batch

    def slow(size: int = 16) -> tuple[Tensor, Tensor]:
        time.sleep(0.06)
        return quick(size)

    training.batch = slow  # type: ignore[method-assign]
    training.train(30)
    training.monitor.close()


def memory_headroom(folder: str) -> None:
    """Losses are kept with their graphs, in a list for a plot, as `losses.append(loss)` does."""
    training = Training("memory-headroom", folder, greedy()[0])
    kept = []
    for _ in range(50):
        x, labels = training.batch()
        kept.append(torch.ones(1 << 18).mul(F.cross_entropy(training.model(x), labels)))
        training.step(x, labels)
        time.sleep(0.01)  # memory is looked up four times a second
    training.save(training.saved)
    training.monitor.close()


class LoudBranch(Detector):
    """A detector of the user's own: branches that give more than 0.3 of their skip."""

    name = "loud_branch"

    def __init__(self, tuned: object = None) -> None:
        super().__init__(tuned)  # type: ignore[arg-type]
        self._episodes = Episodes("loud_branch", "own-finding")

    def window(self, window: Window) -> Iterable[Finding]:
        def account(lead: int, _blocks: Ints) -> Account:
            first = f"The branch of {window.sites[lead].name} is loud since step {window.first_step}"
            return Account("ticket", first, "at most 0.3 of the skip", "more than that", 0.9)

        return self._episodes.take(window, window.median("branch_skip_ratio") > 0.3, account)


def own_finding(folder: str) -> None:
    """Something that only the user's own detector finds wrong."""
    training = Training("own-finding", folder)
    training.train(64)
    training.monitor.close()


# These go on until they are killed.
LIVING = ("stalled", "agent-gone", "stale-run")

FAILURES: dict[str, Callable[[str], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        stalled,
        agent_gone,
        stale_run,
        killed,
        nonfinite,
        out_of_memory,
        shape_mismatch,
        interrupted,
        failed,
        error_budget,
        overfitting,
        loss_divergence,
        exploding_gradients,
        vanishing_gradients,
        hidden_explosion,
        rising_learning_rate,
        spike_warning,
        oscillation,
        dead_branch,
        frozen_block,
        collapsed_skip,
        growing_residual,
        straying_block,
        stochastic_depth,
        change,
        drifting_inputs,
        drift,
        batch_norm,
        monitor_errors,
        agent_errors,
        series_budget,
        slow_steps,
        memory_headroom,
        own_finding,
    )
}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    assert callable(resmon.watch), "imported here and not in each child anew"
    gc.freeze()  # nor gone through by each child when it ends
    statuses = {}
    for name, fail in FAILURES.items():
        child = os.fork()
        if child == 0:
            torch.manual_seed(0)
            fail(folder)  # what it raises ends this process as it would any script
            return
        statuses[name] = child if name in LIVING else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(statuses), flush=True)
    for name in LIVING:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(statuses[name], 0)


if __name__ == "__main__":
    main(sys.argv[1])
