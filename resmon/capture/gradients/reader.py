"""The gradients of the watched parameters, read from `.grad`, where they are whole and summed over micro-batches.

They are read just before their optimizer steps or, where clipping is seen, before the clipping, and then not again unless they
were changed after it. What was read in units of a gradient scaler is divided by the scale. Sums of squares are this rank's share of
the truth; in a single process they are the truth itself.

Gradients on an accelerator are read there, as one norm each in float64, and nobody waits for what comes of it (measured.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from resmon.capture import _native
from resmon.capture.gradients.measured import NONE, Groups, Measured, Places, Values
from resmon.capture.host import fetch
from resmon.capture.host.placement import WHOLE, Placement, local, named_parameters
from resmon.capture.probes.accelerator import norms
from resmon.capture.probes.sums import square_sum
from resmon.records import Bools, Floats

SELECTIONS = 64  # that are remembered by the parameters asked for


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Some of the watched parameters, such as one optimizer's, in the order of their places."""

    places: Places
    parameters: tuple[Tensor, ...]
    models: frozenset[str]  # keys of the models that they belong to

    def only(self, chosen: Sequence[int]) -> Selection:
        """Those at some indices of this selection."""
        if not chosen:
            return Selection(NONE, (), self.models)
        return Selection(self.places[list(chosen)], tuple([self.parameters[i] for i in chosen]), self.models)


class Gradients:
    """Reads the squared gradient norms of the parameters of `models` (by key). A shared parameter counts once."""

    def __init__(self, models: Mapping[str, nn.Module], placement: Placement) -> None:
        self._models = dict(models)
        self._placement = placement
        self._parameters: list[Tensor] = []
        self._index: dict[tuple[str, str], int] = {}  # places by model and name
        self.generation = 0  # rises whenever selections made before are no longer right
        self.outdated = False  # a module of theirs was given another parameter
        self._know()
        self.group(())
        self.group_parameters(())

    def _know(self) -> set[str]:
        """Take the models' parameters as they are now; which models' had other names before, as where weights are pruned."""
        self.outdated = False
        self._holders = {id(module) for model in self._models.values() for module in model.modules()}
        places: dict[int, int] = {}  # by a parameter's id
        parameters: list[Tensor] = []
        owners: list[set[str]] = []  # the models that each belongs to
        index: dict[tuple[str, str], int] = {}  # by model and name
        for key, model in self._models.items():
            for name, parameter in named_parameters(model):
                place = places.setdefault(id(parameter), len(parameters))
                if place == len(parameters):
                    parameters.append(parameter)
                    owners.append(set())
                owners[place].add(key)
                index[key, name] = place
        known = map(id, self._parameters)
        if self.generation and list(places) == list(known) and self._index == index:
            return set()
        renamed = {key for key in self._models if _names(self._index, key) != _names(index, key)}
        self.generation += 1
        self._places, self._parameters, self._owners, self._index = places, parameters, owners, index
        self._selections: dict[tuple[int, ...], Selection] = {}
        self._now = Measured(len(parameters))
        self._shares = [WHOLE] * len(parameters)  # what part of each this rank has
        self._marks: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # what the gradient was when clipping left it
        self.everything = self.selection(parameters)
        return renamed

    def given(self, module: nn.Module) -> None:
        """Some module was given a parameter: one of these, as where weights are loaded in the place of others?"""
        self.outdated |= id(module) in self._holders

    def group(self, groups: Sequence[Sequence[tuple[str, str]]]) -> set[str]:
        """Fix which parameters, by model and name, belong to which site; the models may have got others than they had.

        Returns the models in which some have other names now.
        """
        renamed = self._know()
        self._groups = self._grouped({self._index[name] for name in names if name in self._index} for names in groups)
        return renamed

    def group_parameters(self, groups: Sequence[Sequence[Tensor]]) -> None:
        """Fix which of the watched parameters are in which parameter group."""
        self._parameter_groups = self._grouped(
            {place for each in parameters if (place := self._places.get(id(each))) is not None} for parameters in groups
        )

    def _grouped(self, groups: Iterable[set[int]]) -> Groups:
        members: list[int] = []
        starts: list[int] = []
        for places in groups:
            starts.append(len(members))
            members += sorted(places)
            members.append(len(self._parameters))
        return Groups(np.array(starts, np.intp), np.array(members, np.intp))

    def selection(self, parameters: Iterable[Tensor]) -> Selection:
        """Those of `parameters` that are watched."""
        ids = tuple(map(id, parameters))
        known = self._selections.get(ids)  # a loop clips the same ones at every step
        if known is None:
            found = sorted({place for each in ids if (place := self._places.get(each)) is not None})
            models = frozenset().union(*(self._owners[place] for place in found))
            known = Selection(np.array(found, np.intp), tuple(self._parameters[place] for place in found), models)
            if len(self._selections) == SELECTIONS:
                self._selections.clear()
            self._selections[ids] = known
        return known

    def without(self, selections: Iterable[Selection]) -> Selection:
        """The parameters that are in none of `selections`."""
        taken = set[int]().union(*(selection.places.tolist() for selection in selections))
        return self.everything.only([i for i in range(len(self._parameters)) if i not in taken])

    def reaches(self, key: str, parameters: Iterable[object]) -> bool:
        """Whether some of `parameters` are that model's, or it has none that are trained."""
        places = (self._places.get(id(each)) for each in parameters)
        return any(place is not None and key in self._owners[place] for place in places) or not self._trained(key)

    def covers(self, key: str, parameters: Iterable[Tensor]) -> bool:
        """Whether `parameters` are all of that model's that are trained."""
        given = set(map(id, parameters))
        return all(id(self._parameters[place]) in given for place in self._trained(key))

    def has_stepped(self, key: str) -> bool:
        """Whether an optimizer has come to its step in this step with gradients of that model."""
        return bool(self._now.due[self._trained(key)].any())

    def _trained(self, key: str) -> list[int]:
        return [place for (model, _), place in self._index.items() if model == key and self._parameters[place].requires_grad]

    # -- in a step -----------------------------------------------------------------------------------------------------

    def read(self, selection: Selection) -> None:
        """These are stepped with now, or the step ends: they count, as they are or as they were before clipping."""
        self._take(self._changed(selection) if self._marks else selection)
        self._now.due[selection.places] = True

    def read_undue(self, selection: Selection) -> None:
        """Like `read`, but for those that count already, and for frozen ones, whose gradients nobody clears or steps with."""
        due = self._now.due[selection.places]
        undue = selection.only(np.flatnonzero(~due).tolist()) if due.any() else selection
        trained = [i for i, parameter in enumerate(undue.parameters) if parameter.requires_grad]
        if trained:
            self.read(undue.only(trained) if len(trained) < len(undue.parameters) else undue)

    def suspects(self, selection: Selection, *, wait: bool) -> dict[str, Tensor]:
        """Those of whose gradients the norm just read is not finite, by name; of an accelerator's only if one may `wait` for it."""
        if not selection.parameters:
            return {}
        chosen = [] if self._now.all_finite else np.flatnonzero(~self._now.finite(selection.places)).tolist()
        if not chosen and wait and not fetch.is_here(selection.parameters[0]):
            there = [i for i, parameter in enumerate(selection.parameters) if parameter.grad is not None]
            gradients = [local(selection.parameters[i].grad)[0] for i in there]  # type: ignore[arg-type]
            kept = torch.stack([norm.float() for norm in norms(gradients)]).isfinite().tolist() if gradients else []
            chosen = [i for i, good in zip(there, kept, strict=True) if not good]
        if not chosen:
            return {}
        names = {place: f"{key}.{name}" if key else name for (key, name), place in reversed(self._index.items())}
        return {names[int(selection.places[i])]: selection.parameters[i] for i in chosen}

    def before_clipping(self, selection: Selection) -> None:
        """These are about to be clipped. Where clipping comes after clipping, the first reading stands."""
        self._take(self._changed(selection) if self._marks else selection)

    def after_clipping(self, selection: Selection, coefficient: Tensor | None) -> None:
        """These were multiplied with `coefficient`; None where it is not told, or not one number for all."""
        places = selection.places
        if coefficient is None:
            self._now.do(Measured.became, places, *self._measure(selection)[0])
        else:
            self._now.do(Measured.multiply, places, fetch.held(coefficient))
        self._now.clip(places)
        self.mark(selection)

    def as_clipped(self, selection: Selection) -> Selection:
        """Those of `selection` that were read before clipping and are as it left them."""
        if not self._marks:
            return selection.only(())
        return selection.only(np.flatnonzero(~np.isin(selection.places, self._changed(selection).places)).tolist())

    def unscale(self, selection: Selection, scale: float | Tensor) -> None:
        """What was read of these was in units of `scale`."""
        self._now.do(Measured.divide, selection.places, scale)

    def end_step(self) -> Measured:
        """What was read in this step; the next one begins."""
        measured, self._now = self._now, Measured(len(self._parameters))
        measured.groups, measured.parameter_groups = self._groups, self._parameter_groups
        if self._placement.world > 1:
            measured.reasons = self.reasons(measured.unknown)
            measured.replicas = self._replicas(measured)
            self._placement.step_over()
        self._marks.clear()
        return measured

    def _take(self, selection: Selection) -> None:
        now, rest = self._now, selection
        now.anew(selection.places)
        if self._are_here(selection.parameters) and now.is_settled:
            rest = selection.only(now.read(selection.places, selection.parameters))
        if rest.parameters:
            values, now.present[rest.places] = self._measure(rest)
            now.do(Measured.take, rest.places, *values)
        if self._marks:
            for place in selection.places.tolist():
                self._marks.pop(place, None)

    def _are_here(self, parameters: Sequence[Tensor]) -> bool:
        """Whether plain gradients of these are the whole truth, and can be read without waiting."""
        self._placement.look()
        return self._placement.world == 1 and bool(parameters) and fetch.is_here(parameters[0])

    def _measure(self, selection: Selection) -> tuple[Values, Bools]:
        """This rank's share of the sum of squares of each one's gradient, and which have one."""
        parameters = selection.parameters
        squares, present = np.zeros(len(parameters)), np.zeros(len(parameters), np.bool_)
        others: Iterable[int] = range(len(parameters))
        if self._are_here(parameters):
            others, total = _native.gradients(parameters, np.arange(len(parameters)), squares, present)
            self._now.seen += total
        return self._measure_others(selection, others, squares, present), present

    def _measure_others(self, selection: Selection, others: Iterable[int], squares: Floats, present: Bools) -> Values:
        """Measure the gradients of these indices that are no plain tensors, or count only in part, or are not here."""
        elsewhere: dict[tuple[torch.device, torch.dtype], tuple[list[int], list[Tensor]]] = {}
        factors = np.ones(len(squares))
        for i in others:
            parameter = selection.parameters[i]
            gradient = parameter.grad
            if gradient is None:
                continue
            if self._placement.world > 1 or type(gradient) is not Tensor:
                gradient, share = self._placement.gradient(parameter, gradient)
                factors[i] = share.factor
                place = int(selection.places[i])
                self._shares[place] = share
                if share.reason:
                    self._now.unknown[place] = share.reason
            if gradient.layout is not torch.strided:
                gradient = gradient.detach().coalesce().values()
            if gradient.is_complex():
                gradient = torch.view_as_real(gradient.detach().resolve_conj())
            present[i] = gradient.device.type in fetch.OBSERVED
            if fetch.is_here(gradient):
                squares[i] = square_sum(gradient) * factors[i]
                self._now.seen += squares[i]
            elif present[i]:
                places, tensors = elsewhere.setdefault((gradient.device, gradient.dtype), ([], []))
                places.append(i)
                tensors.append(gradient)
        parts = [(np.array(places), torch.stack(list(norms(tensors)))) for places, tensors in elsewhere.values()]
        return (squares, factors, *(each for part in parts for each in part))

    def mark(self, selection: Selection) -> None:
        """The gradients are now what clipping made of what was read: until they change they are not read again."""
        gradients = [parameter.grad for parameter in selection.parameters]
        there = [gradient for gradient in gradients if gradient is not None]
        places = selection.places.tolist()
        if len(there) < len(gradients):
            places = [place for place, gradient in zip(places, gradients, strict=True) if gradient is not None]
        self._marks.update(zip(places, [(weakref.ref(each), each._version) for each in there], strict=True))

    def _changed(self, selection: Selection) -> Selection:
        """Those that are not as clipping left them, or were never clipped."""
        marks, none = self._marks, (_nothing, -1)
        changed = []
        for i, (place, parameter) in enumerate(zip(selection.places.tolist(), selection.parameters, strict=True)):
            gradient = parameter.grad
            reference, version = marks.get(place, none)
            if gradient is None or reference() is not gradient or gradient._version != version:
                changed.append(i)
        return selection.only(changed)

    # -- what the step was ---------------------------------------------------------------------------------------------

    def _replicas(self, measured: Measured) -> int:
        """How many ranks hold the same gradients as this one, where that is so of all of them alike, else 1."""
        found = {self._shares[place].replicas for place in np.flatnonzero(measured.present)}
        return found.pop() if len(found) == 1 else 1

    def reasons(self, unknown: Mapping[int, str]) -> list[str]:
        """Of each group, which gradient's share cannot be known and why; "" where all can."""
        starts = self._groups.starts
        if why := self._placement.unknown_of_all:  # also where a rank has no part of any
            return [why] * len(starts)
        if not unknown:
            return [""] * len(starts)
        names = {place: name for (_, name), place in reversed(self._index.items())}
        groups = np.split(self._groups.members, starts[1:])
        first = [next((place for place in group.tolist() if place in unknown), None) for group in groups]
        return ["" if place is None else f"{names[place]}: {unknown[place]}" for place in first]


def _names(index: Mapping[tuple[str, str], int], key: str) -> set[str]:
    return {name for model, name in index if model == key}


def _nothing() -> None:
    return None
