"""A forward pass that is rehearsed: traced on stand-ins, going on where shapes do not fit.

Where an operation fails because its operands do not fit each other, the rehearsal notes it as a `Mismatch`, puts operands in their
place that do, and goes on: so the pass comes to its end, all its residual additions have their names, and every later misfit is
found too. Mostly there are two ways to go on, one for each operand that may be the wrong one. `explore` takes the ways after which
the rest of the model fits best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from resmon.capture.discovery import rule
from resmon.capture.discovery.additions import ADDS, operands
from resmon.capture.discovery.dataflow import Frame, Node, Trace, _name, leaves
from resmon.capture.discovery.survey import Names, Survey
from resmon.capture.fitting.fakes import DEPENDS_ON_NUMBERS, Fakes
from resmon.capture.fitting.mends import Shape, Way, blank, swapped, ways_on
from resmon.capture.host.compiler import PAUSE, plain
from resmon.capture.host.stack import Whereabouts, current_line, whereabouts
from resmon.records import ResidualSite

MOST_MISMATCHES = 64  # of one pass, which then ends
MOST_PASSES = 24  # of one exploration
MOST_SECONDS = 20.0  # likewise

_EVERY_MODULES = frozenset(nn.Module().__dict__)  # attributes that all have
_STATES = (Tensor, list, dict, tuple, type(None))  # what a pass may leave in others


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A tensor that an operation was given."""

    tensor: Tensor
    node: Node

    @property
    def shape(self) -> Shape:
        return tuple(self.tensor.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Mismatch:
    """An operation whose operands do not fit each other. `operands` are the two that do not, where that can be told."""

    operation: str
    frame: Frame
    message: str
    error: Exception
    arguments: tuple[Any, ...]
    operands: tuple[Operand, ...]
    ways: tuple[Way, ...]
    chosen: int
    guessed: bool  # it is not known how to mend it, and what comes of it is a guess: what follows may be wrong
    residual: rule.Residual | None  # where it would be a residual addition
    line: str  # of the user's code
    results: list[Node] = field(default_factory=list)  # what came of it when it was mended

    @property
    def module(self) -> str:
        return plain(self.frame.path)

    @property
    def wrong(self) -> int | None:
        """Which operand the chosen way takes to be the wrong one."""
        return self.ways[self.chosen].wrong if self.ways and not self.guessed else None


@dataclass(frozen=True, slots=True, eq=False)
class Broadcast:
    """A residual addition whose operands differ in shape and are spread over each other without an error."""

    frame: Frame
    skip: Shape
    branch: Shape
    residual: rule.Residual

    @property
    def module(self) -> str:
        return plain(self.frame.path)


@dataclass(eq=False)
class Outcome:
    """What a rehearsed pass came to. `error` is what ended it before its end, and `where` that was."""

    mismatches: list[Mismatch]
    broadcasts: list[Broadcast]
    sites: list[ResidualSite]
    survey: Survey
    trace: Rehearsal
    output: Any = None
    error: Exception | None = None
    where: Whereabouts = field(default_factory=Whereabouts)

    @property
    def fits(self) -> bool:
        return not self.mismatches and self.error is None

    def block(self, nodes: Iterable[Node]) -> str:
        """The site whose branch, projection or sum these values are."""
        wanted = set(nodes)
        for site, sighting in zip(self.sites, self.survey.sightings, strict=True):
            if not wanted.isdisjoint((sighting.output, *sighting.residual.branch, *sighting.residual.skip)):
                return site.name
        return ""

    @property
    def taken(self) -> tuple[int, ...]:
        """The ways that were taken, misfit by misfit."""
        return tuple(mismatch.chosen for mismatch in self.mismatches)

    @property
    def misfits(self) -> int:
        guesses = sum(mismatch.guessed for mismatch in self.mismatches)
        return len(self.mismatches) + MOST_MISMATCHES * (guesses + (self.error is not None))


class Rehearsal(Trace):
    """Traces one pass and mends what does not fit, the i-th misfit in the way that `choices` has at i, else in the first.

    With None as choices nothing is mended.
    """

    def __init__(self, model: nn.Module, survey: Survey, choices: Sequence[int] | None = ()) -> None:
        super().__init__(model, survey)
        self.mismatches: list[Mismatch] = []
        self.broadcasts: list[Broadcast] = []
        self._choices = choices
        self._survey = survey

    @property
    def stack(self) -> Sequence[Frame]:
        """The modules whose forward is running, the innermost last."""
        return self._frames

    @property
    def seen(self) -> int:
        """How many residual additions there have been so far."""
        return len(self._survey.sightings)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            result = super().__torch_function__(func, types, args, kwargs)
        except DEPENDS_ON_NUMBERS:
            raise
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            if not self._frames or len(self.mismatches) >= MOST_MISMATCHES:
                raise
            if _is_of_types(error):
                args, kwargs = self._of_one_type(args, kwargs)
                return super().__torch_function__(func, types, args, kwargs)
            if self._choices is None:
                raise
            way = self._way_on(func, args, kwargs, error)
            if way is None:
                raise
            for before, now in way.stand_ins:
                self._nodes[now] = self._node(before)
            if way.result is not None:
                read = [(tensor, self._node(tensor)) for _, tensor in leaves((args, kwargs))]
                for _, tensor in leaves(way.result):
                    self._record(tensor, _name(func), read)
                result = way.result
            else:
                result = super().__torch_function__(func, types, way.args, way.kwargs)
            self.mismatches[-1].results.extend(self._node(tensor) for _, tensor in leaves(result))
            return result
        if func in ADDS and self._frames:
            self._look_for_broadcast(args, kwargs, result)
        return result

    def _way_on(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> Way | None:
        name = _name(func)
        tensors, ways = ways_on(name, args, kwargs)
        if not tensors:
            tensors = [tensor for _, tensor in leaves((args, kwargs))][:2]
        guessed = not ways
        if guessed and tensors and tensors[0].is_floating_point():
            like = blank(tensors[0], tuple(tensors[0].shape))
            ways = [Way(0, args, kwargs, result=(like, None) if name == "multi_head_attention_forward" else like)]
        known = tuple(Operand(tensor, self._node(tensor)) for tensor in tensors)
        i, choices = len(self.mismatches), self._choices or ()
        chosen = choices[i] if i < len(choices) and choices[i] < len(ways) else 0
        residual = None
        frame = self._frames[-1]
        if func in ADDS and len(known) == 2:
            first, second = known
            residual = rule.judge(first.node, second.node, frame)
        message = " ".join(str(error).split())
        self.mismatches.append(
            Mismatch(name, frame, message, error, args, known, tuple(ways), chosen, guessed, residual, current_line())
        )
        return ways[chosen] if ways else None

    def _look_for_broadcast(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        first, second = operands(args, kwargs)
        if not (isinstance(first, Tensor) and isinstance(second, Tensor) and isinstance(result, Tensor)):
            return
        if first.shape == second.shape or not (first.is_floating_point() and second.is_floating_point()):
            return
        if not (first in self._nodes and second in self._nodes) or first is result:
            return
        frame = self._frames[-1]
        one, two = self._node(first), self._node(second)
        if not (one.live and two.live):
            return
        residual = rule.judge(one, two, frame)
        if residual is not None:
            skip, branch = (first, second) if residual.skip_is_first else (second, first)
            self.broadcasts.append(Broadcast(frame, tuple(skip.shape), tuple(branch.shape), residual))

    def _of_one_type(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As autocast would have had it, in which the pass may have run."""
        floats = [tensor for _, tensor in leaves((args, kwargs)) if tensor.is_floating_point()]
        wide = floats[0].dtype if floats else torch.float32
        for tensor in floats:
            wide = torch.promote_types(wide, tensor.dtype)
        swaps = []
        for tensor in floats:
            if tensor.dtype != wide:
                cast = tensor.detach().to(wide)
                self._nodes[cast] = self._node(tensor)
                swaps.append((tensor, cast))
        return swapped(args, swaps), swapped(kwargs, swaps)


class Ground:
    """A model and its arguments on which passes are rehearsed. The model must be nobody else's; `fakes` made both, if any did."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], fakes: Fakes | None = None) -> None:
        self.model = model
        self.args, self.kwargs = args, kwargs
        self._fakes = fakes

    @property
    def is_fake(self) -> bool:
        """Whether a pass takes neither memory nor time worth speaking of."""
        return self._fakes is not None

    def inside(self) -> AbstractContextManager[None]:
        """What passes run in, and what is made for them is made in: with real tensors, random states are as before afterwards."""
        return self._fakes or _random_state_kept()

    def rehearse(
        self,
        choices: Sequence[int] | None = (),
        given: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
        around: Callable[[Rehearsal], AbstractContextManager[Any]] | None = None,
    ) -> Outcome:
        """One pass, of other arguments where some are `given`. Raises what depends on numbers that fakes do not have."""
        args, kwargs = given or (self.args, self.kwargs)
        survey = Survey()
        trace = Rehearsal(self.model, survey, choices)
        made = Outcome(trace.mismatches, trace.broadcasts, [], survey, trace)
        PAUSE.hold(trace)
        with self.inside(), torch.enable_grad(), _left_as_it_was(self.model):
            hook = self.model.register_forward_pre_hook(lambda _, a, k: trace.begin(a, k), with_kwargs=True)
            try:
                with around(trace) if around else nullcontext():
                    made.output = self.model(*args, **kwargs)
                trace.finish(made.output)
            except DEPENDS_ON_NUMBERS:
                raise
            except Exception as error:
                made.error = error
                made.where = whereabouts(error, {"": self.model}, ())
            finally:
                hook.remove()
                trace.finish(None)
                PAUSE.release(trace)
        made.sites = Names(self.model).sites(survey.sightings)
        return made

    def explore(self, given: tuple[tuple[Any, ...], dict[str, Any]] | None = None) -> Outcome:
        """The pass in which, of all ways to go on after each misfit, those were taken after which the rest fits best."""
        started = perf_counter()
        best = self.rehearse(None, given)
        if best.error is None:  # a misfit that the model itself deals with, as one that catches the exception, is none
            return best
        best = self.rehearse((), given)
        passes, i = 2, 0
        while i < len(best.mismatches):
            for other in range(1, len(best.mismatches[i].ways)):
                if passes >= MOST_PASSES or perf_counter() - started > MOST_SECONDS:
                    return best
                tried = self.rehearse((*best.taken[:i], other), given)
                passes += 1
                if tried.misfits < best.misfits:
                    best = tried
            i += 1
        return best


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """What a pass leaves in attributes of modules (a hidden state, a cache) is not there in the next one."""
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    held: list[dict[str, Any]] = [attributes for module in modules for attributes in (module.__dict__, module._buffers)]
    before = [{name: each for name, each in attributes.items() if name not in _EVERY_MODULES} for attributes in held]
    lists = [(each, each.copy()) for kept in before for each in kept.values() if type(each) is list]
    dicts = [(each, each.copy()) for kept in before for each in kept.values() if type(each) is dict]
    try:
        yield
    finally:
        for attributes, kept in zip(held, before, strict=True):
            new = {name: each for name, each in attributes.items() if name not in _EVERY_MODULES and name not in kept}
            for name in (name for name, each in new.items() if isinstance(each, _STATES)):
                del attributes[name]
            attributes.update({name: each for name, each in kept.items() if isinstance(each, _STATES)})
        for a_list, items in lists:
            a_list[:] = items
        for a_dict, entries in dicts:
            a_dict.clear()
            a_dict.update(entries)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def _is_of_types(error: Exception) -> bool:
    text = str(error)
    return "dtype" in text or "same type" in text or "scalar type" in text.lower()
