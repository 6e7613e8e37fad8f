"""What can be known of a model before it is trained: whether it fits together, what it will take, and whether it can learn.

`check` makes the model on fake tensors where its factory allows (a model of any size fits a laptop then), rehearses a pass for each
of several batch sizes, follows the gradients back, and looks at the initial weights where the real ones fit into memory. What is
wrong is a `Fault`; what could not be looked at is said, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from resmon.capture.discovery.dataflow import contents
from resmon.capture.discovery.target import Target, imported, made, random_input
from resmon.capture.fitting.fakes import DEPENDS_ON_NUMBERS, Fakes
from resmon.capture.fitting.fixes import best_fixes
from resmon.capture.fitting.initialisation import Weight, suspicious
from resmon.capture.fitting.rehearsal import Ground, Outcome
from resmon.capture.fitting.requisites import Requisites, of_pass
from resmon.capture.fitting.shapes import advice, block_of_mismatch, sentence
from resmon.capture.fitting.trials import batch_of, cause_of, with_batch
from resmon.capture.host.compiler import plain
from resmon.capture.host.memory import main_memory
from resmon.capture.host.randomness import kept
from resmon.errors import ConfigurationError
from resmon.records import ResidualSite

BATCHES = (1, 2, 3)
MOST_MISFITS = 8  # that are told one by one
FAKE = "on fake tensors, without memory for weights"
ON_META = "on the meta device, without memory for weights"
COPIED = "with real weights, checked on fake copies"
REAL = "with real weights, and checked on them"
SHARE_OF_MEMORY = 0.5  # of what is free, for real weights

Kind = Literal["shapes", "batch sizes", "broadcasts", "gradients", "initialisation", "residual additions"]
KINDS: tuple[Kind, ...] = ("shapes", "batch sizes", "residual additions", "broadcasts", "gradients", "initialisation")
Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong (error), probably wrong (warning), or only worth knowing (note)."""

    kind: Kind
    level: Level
    block: str
    module: str
    says: str
    do: str = ""
    fixes: tuple[str, ...] = ()  # code, the best first
    line: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked, on what, and what was found. `skipped` says of a kind of check why it was not made, or not wholly."""

    target: str
    model: str
    made: str  # how the model was made
    batches: tuple[int, ...]  # the given one first
    inputs: tuple[str, ...]
    sites: tuple[ResidualSite, ...]
    requisites: Requisites | None
    faults: tuple[Fault, ...]
    skipped: tuple[tuple[Kind, str], ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong for certain."""
        return not any(fault.level == "error" for fault in self.faults)


def check(target: str, inputs: Sequence[str] = (), batches: Sequence[int] = BATCHES) -> Report:
    """Check the model that `package.module:name` is or makes.

    `inputs` are written as `resmon inspect` takes them; without any the factory's own are used. Random states are afterwards as
    before. Raises ConfigurationError where there is no such model or no input, and what the model's own code raises on being made.
    """
    if any(size < 1 for size in batches):
        raise ConfigurationError(f"a batch of {min(batches)} cannot be; batch sizes begin at 1.")
    with kept():
        return _Check(target, inputs, batches).report()


class _Check:
    """One check under way."""

    def __init__(self, target: str, inputs: Sequence[str], batches: Sequence[int]) -> None:
        self.target = target
        self.inputs = inputs
        self.batches = batches
        self.found = imported(target)
        self.faults: list[Fault] = []
        self.skipped: dict[Kind, str] = {}
        self.made = ""
        self.real: Target | None = None  # with real weights

    def report(self) -> Report:
        ground = self._ground()
        given = batch_of(ground)
        described = _describe(ground)
        try:
            outcome, requisites = self._first(ground)
        except DEPENDS_ON_NUMBERS as error:
            other = self._ground_with_numbers(ground.model)
            if other is None:
                why = f"the pass depends on numbers that fake tensors do not have ({_first_line(error)})"
                self.skipped = dict.fromkeys(KINDS, f"{why}, and the real weights do not fit into half of the free memory")
                self._look_at_weights(None, ground.model)
                return self._told(ground, described, (), None, (given,) if given else ())
            ground, self.made = other, REAL
            described = _describe(ground)
            outcome, requisites = self._first(ground)
        if outcome.error is not None and (other := self._ground_with_numbers(ground.model)) is not None:
            # An operation that has no fake, or a fake that asks for more than the operation does.
            tried = self._first(other)
            if tried[0].error is None:
                ground, self.made, (outcome, requisites) = other, REAL, tried
        if outcome.error is not None and not outcome.mismatches and not (self.inputs or ground.args or ground.kwargs):
            raise ConfigurationError(
                f"the forward pass of {type(ground.model).__name__} failed without inputs: {_first_line(outcome.error)}. "
                "Give them: --input with the shape of each, such as -i 8,3,32,32."
            )
        self._misfits(ground, outcome)
        sizes = self._other_batches(ground, outcome, given)
        self._residual_additions(outcome)
        self._broadcasts(outcome)
        if outcome.error is not None:
            self.skipped["gradients"] = "the pass does not come to its end"
        elif outcome.mismatches:
            self.skipped["gradients"] = "some of the ways that they take exist only once the model fits together"
        else:
            self._gradients(ground, outcome)
        self._look_at_weights(outcome, ground.model)
        return self._told(ground, described, outcome.sites, requisites, ((given,) if given else ()) + sizes)

    def _told(
        self,
        ground: Ground,
        described: tuple[str, ...],
        sites: Sequence[ResidualSite],
        requisites: Requisites | None,
        batches: tuple[int, ...],
    ) -> Report:
        order = {level: i for i, level in enumerate(("error", "warning", "note"))}
        return Report(
            target=self.target,
            model=type(ground.model).__name__,
            made=self.made,
            batches=batches,
            inputs=described,
            sites=tuple(sites),
            requisites=requisites,
            faults=tuple(sorted(self.faults, key=lambda fault: (order[fault.level], KINDS.index(fault.kind)))),
            skipped=tuple(self.skipped.items()),
        )

    # -- the model -----------------------------------------------------------------------------------------------------

    def _ground(self) -> Ground:
        """The model on stand-ins where it can be, made with as little memory as its factory allows."""
        fakes = Fakes()
        if callable(self.found) and not isinstance(self.found, nn.Module):
            for how, make in ((FAKE, self._make_fake), (ON_META, self._make_on_meta)):
                # Its construction may take numbers: a drop path's rates, an initialisation that measures.
                with suppress(Exception):
                    target = make(fakes)
                    if not _has_scripts(target[0]):
                        self.made = how
                        return Ground(*target, fakes)
        self.real = self._with_inputs(made(self.target, self.found))
        if not _has_scripts(self.real[0]):
            with suppress(Exception):  # whatever the model's parts raise on being copied
                target = fakes.copies(*self.real)
                self.made = COPIED
                return Ground(*target, fakes)
        self.made = REAL
        return Ground(*self.real)

    def _make_fake(self, fakes: Fakes) -> Target:
        with fakes:
            return self._with_inputs(made(self.target, self.found))

    def _make_on_meta(self, fakes: Fakes) -> Target:
        with torch.device("meta"):
            model, args, kwargs = self._with_inputs(made(self.target, self.found))
        fakes.replace(model)
        with fakes:
            return model, _off_meta(args), _off_meta(kwargs)

    def _with_inputs(self, target: Target) -> Target:
        model, args, kwargs = target
        return model, tuple(map(random_input, self.inputs)) if self.inputs else args, kwargs

    def _ground_with_numbers(self, fake: nn.Module) -> Ground | None:
        real = self._really(fake)
        return None if real is None else Ground(*real)

    def _really(self, fake: nn.Module) -> Target | None:
        """The model with real weights, where that fits into memory."""
        if self.real is None:
            free = main_memory()["memory_free"]
            tensors = [t for t in (*fake.parameters(), *fake.buffers()) if not torch.nn.parameter.is_lazy(t)]
            size = sum(t.numel() * t.element_size() for t in tensors)
            if free is not None and size > SHARE_OF_MEMORY * free:
                return None
            self.real = self._with_inputs(made(self.target, self.found))
        return self.real

    # -- what is looked at ---------------------------------------------------------------------------------------------

    def _first(self, ground: Ground) -> tuple[Outcome, Requisites | None]:
        outcome = ground.explore()
        if outcome.error is not None:
            return outcome, None
        return of_pass(ground, outcome)

    def _misfits(self, ground: Ground, outcome: Outcome) -> None:
        cause = cause_of(ground, outcome)
        if cause is not None and outcome.mismatches:
            self._fault(
                "shapes",
                "error",
                f"{sentence(outcome.mismatches[0], outcome, _block(outcome, 0))}. {cause.says}",
                cause.do,
                outcome,
            )
            return
        guess = next((i for i, mismatch in enumerate(outcome.mismatches) if mismatch.guessed), len(outcome.mismatches))
        certain = outcome.mismatches[: guess + 1]
        for i, mismatch in enumerate(certain[:MOST_MISFITS]):
            fixes = best_fixes(ground, outcome, i)
            block = _block(outcome, i)
            self.faults.append(
                Fault(
                    "shapes",
                    "error",
                    block,
                    mismatch.module,
                    sentence(mismatch, outcome, block),
                    advice(mismatch, fixes),
                    tuple(fix.code for fix in fixes),
                    mismatch.line,
                )
            )
        if len(certain) > MOST_MISFITS:
            self.skipped["shapes"] = f"{len(certain) - MOST_MISFITS} more misfits are not told one by one"
        elif guess < len(outcome.mismatches):
            self.skipped["shapes"] = "what follows the last misfit depends on how it is mended"
        if outcome.error is not None and not certain:
            says = f"{type(outcome.error).__name__}: {_first_line(outcome.error)}"
            do = cause.do if cause else "The pass ends here; what follows could not be checked."
            self.faults.append(
                Fault(
                    "shapes",
                    "error",
                    "",
                    outcome.where.module or "",
                    says + (f". {cause.says}" if cause else ""),
                    do,
                    (),
                    outcome.where.line,
                )
            )

    def _fault(self, kind: Kind, level: Level, says: str, do: str, outcome: Outcome) -> None:
        first = outcome.mismatches[0]
        self.faults.append(Fault(kind, level, _block(outcome, 0), first.module, says, do, (), first.line))

    def _other_batches(self, ground: Ground, outcome: Outcome, given: int | None) -> tuple[int, ...]:
        if given is None or not self.batches:
            if given is None:
                self.skipped["batch sizes"] = "no input has a first dimension"
            return ()
        if not outcome.fits:
            self.skipped["batch sizes"] = "the model does not fit together for the batch that was given"
            return ()
        tried: list[int] = []
        misfits: list[tuple[int, Fault]] = []
        for size in dict.fromkeys(size for size in self.batches if size != given):
            try:
                other = ground.explore(with_batch(ground, size))
            except DEPENDS_ON_NUMBERS:
                continue
            tried.append(size)
            if not other.fits:
                misfits.append((size, self._of_batch(other, size, given)))
        # The same place is told once, with all the sizes that do not fit it.
        for key in dict.fromkeys((fault.level, fault.module) for _, fault in misfits):
            alike = [(size, fault) for size, fault in misfits if (fault.level, fault.module) == key]
            fault = alike[0][1]
            also = f" (nor of {_listed([size for size, _ in alike[1:]])})" if alike[1:] else ""
            self.faults.append(replace(fault, says=fault.says + also))
        return tuple(tried)

    def _of_batch(self, other: Outcome, size: int, given: int) -> Fault:
        if size == 1 and all("more than 1" in each.message for each in other.mismatches) and other.error is None:
            first = other.mismatches[0]
            return Fault(
                "batch sizes",
                "warning",
                _block(other, 0),
                first.module,
                "a batch of 1 cannot be trained on: batch norm has one value for each channel, which has no variance",
                "Leave a last batch of 1 out: DataLoader(..., drop_last=True).",
                (),
                first.line,
            )
        if other.mismatches:
            first = other.mismatches[0]
            return Fault(
                "batch sizes",
                "error",
                _block(other, 0),
                first.module,
                f"fits a batch of {given}, not of {size}: {sentence(first, other, _block(other, 0))}",
                "Take the batch size from the tensor, x.shape[0] or -1, where a reshape or a buffer has a number. "
                "If the first dimension of the inputs is no batch, check with --no-batches.",
                (),
                first.line,
            )
        assert other.error is not None  # noqa: S101, else it would fit
        says = f"fits a batch of {given}, not of {size}: {_first_line(other.error)}"
        return Fault("batch sizes", "error", "", other.where.module or "", says, "See the line.", (), other.where.line)

    def _residual_additions(self, outcome: Outcome) -> None:
        if not outcome.sites and outcome.error is None:
            says = "no residual addition: no sum joins a tensor and what a branch made of it"
            do = "If there should be some, see that the skip is added, and not put in the branch's place."
            self.faults.append(Fault("residual additions", "note", "", "", says, do))

    def _broadcasts(self, outcome: Outcome) -> None:
        for each in outcome.broadcasts:
            whole = tuple(torch.broadcast_shapes(each.skip, each.branch))
            says = f"skip {_size(each.skip)} and branch {_size(each.branch)} are added without an error"
            if whole not in (each.skip, each.branch):
                says += f", but their sum {_size(whole)} has the shape of neither"
                do = "Give both the same shape: squeeze, unsqueeze or keepdim=True."
                self.faults.append(Fault("broadcasts", "error", each.module, each.module, says, do))
                continue
            name, spread = ("branch", each.branch) if whole == each.skip else ("skip", each.skip)
            padded = (1,) * (len(whole) - len(spread)) + spread
            axes = [i for i, (a, b) in enumerate(zip(padded, whole, strict=True)) if a != b]
            says += f": the {name} is spread over axis {_listed(axes)}"
            do = "Well if that is meant, as in a global context; else see what reduces it."
            self.faults.append(Fault("broadcasts", "warning", each.module, each.module, says, do))

    def _gradients(self, ground: Ground, outcome: Outcome) -> None:
        parameters = {plain(name): parameter for name, parameter in ground.model.named_parameters()}
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        outputs = [t for t in contents(outcome.output) if t.requires_grad and (t.is_floating_point() or t.is_complex())]
        if not outputs:
            if trained:
                says = "nothing that the model gives depends on a parameter by a gradient"
                self.faults.append(Fault("gradients", "error", "", "", says, "See where the way is cut: detach, no_grad, argmax."))
            return
        try:
            with ground.inside():
                found = torch.autograd.grad(
                    outputs, list(trained.values()), [torch.ones_like(t) for t in outputs], allow_unused=True
                )
        except Exception as error:
            self.skipped["gradients"] = f"the backward pass could not be rehearsed: {_first_line(error)}"
            return
        without = {name for (name, _), gradient in zip(trained.items(), found, strict=True) if gradient is None}
        ran = {plain(path) for path, count in outcome.trace.calls.items() if count}
        told: set[str] = set()
        for site in outcome.sites:
            own = [name for name in site.parameters if name in parameters]
            lost = [name for name in own if name in without]
            if own and not any(name in trained for name in own):
                says = f"all {len(own)} parameters are frozen (requires_grad=False)"
                self.faults.append(Fault("gradients", "note", site.name, site.module, says))
            elif lost and len(lost) == sum(name in trained for name in own):
                says = f"no gradient reaches the block: none of its {len(lost)} parameters, such as {lost[0]}, has any"
                do = "The way to the output is cut behind it: detach, no_grad, .data, argmax, or an output that is not used."
                # In place of a sum that cannot be made stands one that may leave the branch out.
                if all(mismatch.module != site.module for mismatch in outcome.mismatches):
                    self.faults.append(Fault("gradients", "error", site.name, site.module, says, do))
                told.update(lost)
        rest = sorted(without - told)
        if rest:
            idle = [name for name in rest if name.rpartition(".")[0] not in ran]
            cut = [name for name in rest if name not in idle]
            for names, why in ((idle, "their modules are not called"), (cut, "the way from them to the output is cut")):
                if names:
                    says = f"{len(names)} parameters get no gradient, for {why}: {_some(names)}"
                    do = "Take them out, use them, or say find_unused_parameters=True under DDP."
                    self.faults.append(Fault("gradients", "warning", "", names[0].rpartition(".")[0], says, do))

    def _look_at_weights(self, outcome: Outcome | None, fake: nn.Module) -> None:
        real = self._really(fake)
        if real is None:
            self.skipped["initialisation"] = (
                "the real weights do not fit into half of the free memory, and fake ones have no values"
            )
            return
        sites = outcome.sites if outcome is not None else ()
        order = [plain(path) for path in outcome.trace.calls] if outcome is not None else ()
        sightings = outcome.survey.sightings if outcome is not None else ()
        for weight in suspicious(real[0], sites, order, sightings):
            self.faults.append(_of_weight(weight))


def _has_scripts(model: nn.Module) -> bool:
    """Whether parts of it are TorchScript, whose operations show only in the graph that real tensors leave."""
    scripts = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
    return any(isinstance(part, scripts) for module in model.modules() for part in (module, *vars(module).values()))


def _of_weight(weight: Weight) -> Fault:
    return Fault("initialisation", weight.level, weight.block, weight.name.rpartition(".")[0], weight.says, weight.do)


def _block(outcome: Outcome, i: int) -> str:
    return block_of_mismatch(outcome, outcome.mismatches[i])


def _off_meta(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return torch.empty(tree.shape, dtype=tree.dtype) if tree.device.type == "meta" else tree
    if type(tree) in (tuple, list):
        return type(tree)(map(_off_meta, tree))
    return {key: _off_meta(item) for key, item in tree.items()} if type(tree) is dict else tree


def _describe(ground: Ground) -> tuple[str, ...]:
    def described(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{str(value.dtype).removeprefix('torch.')} {_size(tuple(value.shape))}"
        return type(value).__name__

    return (*map(described, ground.args), *(f"{name}={described(value)}" for name, value in ground.kwargs.items()))


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "of no dimension"


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))


def _some(names: Sequence[str]) -> str:
    return _listed(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
