"""Faults that do not break a run but spoil it, slowly, in the middle of a training that was well until then, or from its start.

A trial makes sure that the fault comes to something, which is told from the weights, the gradients and the recorded values, never
from a finding; else it draws another one. Then it counts as detected if a finding or an incident of a kind that is true of the
fault (kinds.py says which) was opened at the fault's step or later, and nothing paged before it. The block is right if the first of
these that names any block names the guilty one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

import resmon
from benchmarks.faults import architectures as nets
from benchmarks.faults.architectures import VOCABULARY, Architecture, Arguments, Block
from benchmarks.faults.following import Following
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.trial import DRAWS, RUN, Injected, NothingBrokenError, Training, Trial, Truth, flight, incidents_in
from resmon.flight.frames import Flight
from resmon.records import Floats

HEALTHY = (400, 900)  # steps before a fault
LASTING = 600  # steps with a fault that is there at once
LEVEL = 50  # steps whose median is a level
VISIBLE = 1.5  # times the level, or a so-manieth of it: healthy trainings, too, move by a quarter


class Slow(Injected):
    """A fault in a training of its own, of `steps` steps in all."""

    training: Training
    steps: int

    def came(self, trial: Trial, recorded: Flight) -> bool:
        """Whether it has come to something."""
        raise NotImplementedError


Inject = Callable[[Trial, int], Slow]  # the number says how many draws came to nothing


def trial_of(inject: Inject, names: Sequence[str], trial: Trial) -> Outcome:
    """Train well into the fault, follow the flight as the agent does; `names` are the kinds of findings that are true of it."""
    for draw in range(DRAWS):
        fault = inject(trial, draw)
        with flight() as folder:
            _record(fault.training, fault, fault.steps, folder)
            if not fault.came(trial, resmon.load(folder / RUN)):
                continue
            following = Following(folder / RUN)
            following.close()
            if following.faults:
                raise RuntimeError("; ".join(following.faults))
            found = resmon.load(folder / RUN).findings()
            findings = [(r.opened_step, r.kind, r.severity, r.block, r.summary) for r in found.itertuples()]
            findings += [(i["step"], i["kind"], "page", i["block"], i["summary"]) for i in incidents_in(folder)]
        return judged(trial, fault.truth, names, findings)
    raise NothingBrokenError(f"{trial.kind} {trial.number}: nothing came of {DRAWS} draws")


def _record(training: Training, injected: Injected, steps: int, folder: Path) -> None:
    with resmon.watch(training.model, training.optimizer, run=RUN, directory=folder, agent="off") as monitor:
        training.run(steps, injected, monitor.log)


Said = tuple[int, str, str, str, str]  # step, kind, severity, block, summary


def judged(trial: Trial, truth: Truth, names: Sequence[str], findings: Sequence[Said]) -> Outcome:
    """What was said, against the truth; the alarms of the healthy stretch come first."""
    findings = sorted(findings)
    before = [each for each in findings if each[0] < truth.step]
    true = [each for each in findings if each[0] >= truth.step and each[1] in names]
    said = [
        f"{'too early, ' if step < truth.step else ''}{step} {severity} {kind}: {what}"
        for step, kind, severity, _, what in findings
    ]
    named = next((block for _, _, _, block, _ in true if block), None)
    return trial.outcome(
        bool(true) and not any(severity == "page" for _, _, severity, _, _ in before),
        truth.what,
        "; ".join(said) or "nothing",
        delay=true[0][0] - truth.step if true else None,
        block=None if truth.block is None else named == truth.block,
    )


# -- what is recorded ------------------------------------------------------------------------------------------------------


def series(recorded: Flight, value: str, block: str) -> Floats:
    """A block's value of each step; NaN where there is none."""
    blocks = recorded.blocks()
    mine = blocks[blocks["block"] == block]
    return mine.sort_values("step")[value].to_numpy(dtype=np.float64, na_value=math.nan)


def losses(recorded: Flight) -> Floats:
    return recorded.steps()["loss"].to_numpy(dtype=np.float64, na_value=math.nan)


def _left(values: Floats, step: int, after: slice) -> bool:
    """Whether a level is visibly another than that just before `step`: by half and by more than the steps differ by."""
    old, new = np.log(values[step - 2 * LEVEL : step]), np.log(values[after])
    middle = np.median(old)
    spread = 1.4826 * np.median(np.abs(old - middle))
    return bool(abs(np.median(new) - middle) > max(math.log(VISIBLE), 2 * spread))


def _some(trial: Trial) -> tuple[Block, int]:
    """A block and a step."""
    return trial.random.choice(trial.architecture.blocks), trial.random.randint(*HEALTHY)


def _parameters(model: nn.Module, paths: Sequence[str]) -> list[nn.Parameter]:
    return [parameter for path in paths for parameter in model.get_submodule(path).parameters()]


# -- a branch, a block -----------------------------------------------------------------------------------------------------


class ZeroedBranch(Slow):
    """The last weights of a branch are 0 from a step on, as under a mask; or they fade until they are."""

    FADED = 1e-6

    def __init__(self, trial: Trial, _: int) -> None:
        self.training = trial.training()
        block, step = _some(trial)
        self._weights = _parameters(self.training.model, block.ends)
        self._begun: list[Tensor] = []
        self._factor = trial.random.choice((0.0, trial.random.uniform(0.85, 0.95)))
        how = f"fades by {1 - self._factor:.0%} a step" if self._factor else "is 0"
        self.truth = Truth(step, f"the branch of {block.name} {how} from step {step}", block=block.name)
        self.steps = step + LASTING

    def before(self, step: int) -> None:
        if step < self.truth.step:
            return
        self._begun = self._begun or [weight.detach().clone() for weight in self._weights]
        left = self._factor ** (step + 1 - self.truth.step)
        with torch.no_grad():
            for weight, begun in zip(self._weights, self._begun, strict=True):
                weight.copy_(begun * (left if left > self.FADED else 0.0))

    def came(self, trial: Trial, recorded: Flight) -> bool:
        branch = series(recorded, "branch_rms", self.truth.block or "")
        return bool((branch[-LASTING // 2 :] == 0).all() and np.median(branch[self.truth.step - LEVEL : self.truth.step]) > 0)


class FrozenBlock(Slow):
    """No parameter of a block learns from a step on: none asks for a gradient, or what comes to it is 0."""

    def __init__(self, trial: Trial, _: int) -> None:
        self.training = trial.training()
        block, step = _some(trial)
        self._frozen = _parameters(self.training.model, block.modules)
        mine = {id(parameter) for parameter in self._frozen}
        self._others = [parameter for parameter in self.training.model.parameters() if id(parameter) not in mine]
        self._asks = trial.random.random() < 0.5
        how = "its gradients are 0" if self._asks else "its parameters ask for no gradient"
        self.truth = Truth(step, f"{block.name} is frozen from step {step}: {how}", block=block.name)
        self.steps = step + LASTING
        self._learnt = self._stopped = self._goes_on = False

    def before(self, step: int) -> None:
        if step == self.truth.step:
            for parameter in self._frozen:
                if self._asks:
                    parameter.register_hook(torch.zeros_like)
                else:
                    parameter.requires_grad_(False)

    def over(self, step: int) -> None:
        if step == self.truth.step - 1:
            self._learnt = all(_moves(parameter) for parameter in self._frozen)
        if step == self.steps - 1:
            self._stopped = not any(_moves(parameter) for parameter in self._frozen)
            self._goes_on = any(_moves(parameter) for parameter in self._others)

    def came(self, trial: Trial, recorded: Flight) -> bool:
        return self._learnt and self._stopped and self._goes_on


def _moves(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


# -- the course ------------------------------------------------------------------------------------------------------------


class RisingRate(Slow):
    """The learning rate grows by the same factor in each step, tenfold in some hundred, until the loss is worse than it was."""

    def __init__(self, trial: Trial, harder: int) -> None:
        self.training = trial.training()
        step = trial.random.randint(*HEALTHY)
        tenfold = trial.random.randint(120, 350)
        self._rise = 10 ** (1 / tenfold)
        self.truth = Truth(
            step, f"the learning rate is {self._rise - 1:.1%} larger in each step from {step} on, tenfold in {tenfold}"
        )
        self.steps = step + round((3.0 + 0.5 * harder) * tenfold)

    def before(self, step: int) -> None:
        if step >= self.truth.step:
            for group in self.training.optimizer.param_groups:
                group["lr"] *= self._rise

    def came(self, trial: Trial, recorded: Flight) -> bool:
        """What was learnt is lost."""
        found = losses(recorded)
        last = median(found[-LEVEL:])
        return not math.isfinite(last) or last > 2 * median(found[self.truth.step - 2 * LEVEL : self.truth.step])


class DriftingInputs(Slow):
    """Inputs become others within some hundred steps, and stay so; what is to be said of them does not change."""

    def __init__(self, trial: Trial, harder: int) -> None:
        self.training = trial.training()
        step, self._within = trial.random.randint(*HEALTHY), trial.random.randint(150, 450)
        self._far = trial.random.uniform(2.0, 5.0) * (1 + harder)
        self._generator = torch.Generator().manual_seed(trial.number)
        ways = ("shift", "scale", "noise") if trial.architecture.takes_numbers else ("other tokens", "few tokens")
        self._way = trial.random.choice(ways)
        self._first = trial.architecture.blocks[0].name
        how = {
            "shift": f"are {self._far:.1f} larger",
            "scale": f"are {1 + self._far:.1f} times as large",
            "noise": f"have noise of {self._far:.1f}",
            "other tokens": "are other tokens",
            "few tokens": "are a few tokens only",
        }[self._way]
        self.truth = Truth(step, f"the inputs drift from step {step} on, and {self._within} steps later {how}")
        self.steps = step + self._within + LASTING // 2

    def given(self, step: int, arguments: Arguments) -> Arguments:
        part = min(1.0, max(0.0, (step + 1 - self.truth.step) / self._within))
        return {name: self._drifted(value, part) for name, value in arguments.items()} if part else arguments

    def _drifted(self, x: Tensor, part: float) -> Tensor:
        match self._way:
            case "shift":
                return x + part * self._far
            case "scale":
                return x * (1 + part * self._far)
            case "noise":
                return x + part * self._far * torch.randn(x.shape, generator=self._generator)
        others = 3 + (7 * x + 5) % (VOCABULARY - 3) if self._way == "other tokens" else 3 + x % 3
        return torch.where(torch.rand(x.shape, generator=self._generator) < part, others, x)

    def came(self, trial: Trial, recorded: Flight) -> bool:
        """The loss is worse than it was, or what comes to the first block has another size: a normalisation may undo it all."""
        before = self.truth.step - 2 * LEVEL
        found = losses(recorded)
        worse = np.median(found[-LEVEL:]) > VISIBLE * np.median(found[before : self.truth.step])
        return bool(worse) or _left(series(recorded, "skip_rms", self._first), self.truth.step, slice(-LEVEL, None))


# -- what was made wrongly -------------------------------------------------------------------------------------------------


class BadInitialisation(Slow):
    """The last weights of a branch, or of all, begin tens of times too large."""

    COMPARED = 200  # first steps that a sound training is compared in
    LOUD = 8.0  # times the sound one's ratio of branch to skip
    WORSE = 1.1  # times its loss, or
    UNEVEN = 5.0  # times a block's gradient, or a so-manieth of it

    def __init__(self, trial: Trial, harder: int) -> None:
        self.training = trial.training()
        blocks = trial.architecture.blocks
        guilty = list(blocks) if trial.random.random() < 1 / 3 else [trial.random.choice(blocks)]
        factor = 10 ** trial.random.uniform(1.2, 2.0) * 2 ** min(harder, 3)
        for weight in _parameters(self.training.model, [path for block in guilty for path in block.ends]):
            with torch.no_grad():
                if weight.dim() > 1:
                    nn.init.normal_(weight, std=factor * weight[0].numel() ** -0.5)
                else:
                    weight.fill_(factor) if bool(weight.any()) else weight.zero_()
        self._guilty = [block.name for block in guilty]
        one = self._guilty[0] if len(guilty) == 1 else None
        self.truth = Truth(0, f"the last weights of {one or 'all blocks'} begin {factor:.0f} times too large", block=one)
        self.steps = LASTING

    def came(self, trial: Trial, recorded: Flight) -> bool:
        """Louder branches than in a sound training, and a loss that comes down later or gradients that are none of its size."""
        sound = _sound(trial.training(), self.COMPARED)

        def level(flown: Flight, value: str, name: str, steps: int) -> float:
            return float(np.nanmedian(series(flown, value, name)[:steps]))

        def times(value: str, name: str, steps: int) -> float:
            return level(recorded, value, name, steps) / level(sound, value, name, steps)

        # Any: a guilty block makes the stream loud that the next one begins with. Where all are guilty, none differs from the rest:
        # then a branch has to be far louder than its skip, not only than a sound one, which may begin almost at nothing.
        loud = any(
            times("branch_skip_ratio", name, LEVEL) > self.LOUD
            and (self.truth.block or level(recorded, "branch_skip_ratio", name, LEVEL) > self.LOUD)
            for name in self._guilty
        )
        later = np.mean(losses(recorded)[: self.COMPARED]) > self.WORSE * np.mean(losses(sound))
        gradients = [times("gradient_norm", block.name, self.COMPARED) for block in trial.architecture.blocks]
        return loud and bool(later or any(not 1 / self.UNEVEN < each < self.UNEVEN for each in gradients))


def _sound(training: Training, steps: int) -> Flight:
    """The recording of a training without a fault."""
    with flight() as folder:
        _record(training, Injected(), steps, folder)
        return resmon.load(folder / RUN)


class _Multiplied(nn.Module):
    """A layer whose output is multiplied, as the branches are in Granite and, among others, in muP's transformers."""

    def __init__(self, layer: nn.Module, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = layer, factor

    def forward(self, *inputs: Tensor) -> Tensor:
        y: Tensor = self.factor * self.layer(*inputs)
        return y


class DroppedScale(Slow):
    """A factor that belongs there is 1: the root in attention, a block's layer scale, or what all branches are multiplied with.

    Those of a branch may be missing from the start, where many blocks are alike: else nothing tells it from a network that is
    meant so.
    """

    DEEP: Mapping[str, Architecture] = {
        "mlp": replace(
            nets.ARCHITECTURES["mlp"],
            make=lambda: nets.Stack(map(nets.Scaled, nets.orders(8, "pre"))),
            blocks=tuple(nets.own_block(i, "fc2") for i in range(8)),
        ),
        "parallel": replace(
            nets.ARCHITECTURES["parallel"],
            make=lambda: nets.Texts(map(nets.Parallel, nets.orders(8, "pre"))),
            blocks=tuple(nets.own_block(i, "attention.out", "mlp.2") for i in range(8)),
        ),
    }
    LOUDER = 2.0  # times the ratio of any other block, where it misses from the start
    SETTLED = slice(250, 300)  # steps at which that is asked

    def __init__(self, trial: Trial, harder: int) -> None:
        deep = self.DEEP.get(trial.name) if trial.random.random() < 0.5 else None
        self.training = trial.training(deep)
        self._factor = trial.random.uniform(0.1, 0.25 if deep else 0.4) / (1 + harder)
        block = trial.random.choice(self.training.architecture.blocks)
        ways = [(what, drop) for what, drop in self._ways(block) if not (deep and what == "root")]
        what, self._drop = trial.random.choice(ways)
        if what == "factor":
            self._multiply()
        step = 0 if deep else trial.random.randint(*HEALTHY)
        self.truth = Truth(step, f"the {what} of {block.name} is missing from step {step} on", block=block.name)
        self.steps = step + LASTING

    def _ways(self, block: Block) -> Iterator[tuple[str, Callable[[], None]]]:
        """What can be dropped in a block, and how."""
        modules = [each for path in block.modules for each in self.training.model.get_submodule(path).modules()]
        for module in modules:
            for name in ("divisor", "scaling"):
                if isinstance(getattr(module, name, None), float):
                    yield "root", partial(setattr, module, name, 1.0)
        scales = [getattr(module, name, None) for module in modules for name in ("gamma", "layer_scale_parameter")]
        scale = next((each for each in scales if isinstance(each, nn.Parameter)), None)
        if scale is None:
            yield "factor", partial(self._whole, block)
        else:
            yield "layer scale", partial(scale.data.fill_, 1.0)

    def _multiply(self) -> None:
        model = self.training.model
        for block in self.training.architecture.blocks:
            for path in block.ends:
                model.set_submodule(path, _Multiplied(model.get_submodule(path), self._factor))

    def _whole(self, block: Block) -> None:
        for path in block.ends:
            layer = self.training.model.get_submodule(path)
            assert isinstance(layer, _Multiplied)
            layer.factor = 1.0

    def before(self, step: int) -> None:
        if step >= self.truth.step:
            self._drop()  # again and again, so that a layer scale is not learnt anew

    def came(self, trial: Trial, recorded: Flight) -> bool:
        """The branch's share is visibly another at once; from the start, it is beyond all others'."""
        if self.truth.step:
            ratio = series(recorded, "branch_skip_ratio", self.truth.block or "")
            return _left(ratio, self.truth.step, slice(self.truth.step, self.truth.step + LEVEL))
        names = [block.name for block in self.training.architecture.blocks]
        ratios = {name: np.median(series(recorded, "branch_skip_ratio", name)[self.SETTLED]) for name in names}
        mine = ratios.pop(self.truth.block or "")
        return bool(mine > self.LOUDER * max(ratios.values()))
