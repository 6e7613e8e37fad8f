"""Where a step that was not finite came from, as an incident.

A pass of the step is done again (replay.py) and its origin followed (birth.py). How the pass compares with what is left of the
original is how sure that is. Where nothing can be done again the first block and direction that the probes saw stand.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from resmon.capture.discovery.dataflow import leaves
from resmon.capture.forensics import capsule
from resmon.capture.forensics.birth import Event, Holder, Sign, is_in, kinds, position_name
from resmon.capture.forensics.references import Held, Pass, References, given
from resmon.capture.forensics.replay import Repeated, ReplayError, refusal, repeated, same
from resmon.capture.gradients.writes import Writes
from resmon.capture.host.compiler import plain
from resmon.capture.host.placement import local
from resmon.capture.host.process import rank_and_world
from resmon.capture.probes.channel import Channel
from resmon.records import Confidence, Incident, incident_id

REPLAYS = 4  # passes of a model that are done again to find the guilty one
NAMES = 20  # names and rows that the evidence lists; the count beside them is whole
CAPSULES = 4  # of one run


class Watched(Protocol):
    """A model, as far as it concerns this."""

    key: str
    model: nn.Module
    channels: list[Channel]
    compiled: bool
    inlined: bool
    pausing: bool

    def signs(self) -> Sequence[Sign]: ...

    def holders(self) -> Sequence[Holder]: ...


@dataclass(frozen=True, slots=True)
class BrokenStep:
    """A step whose gradients are not finite."""

    number: int
    names: Sequence[str]  # of the parameters whose gradients they are
    parameters: int  # how many there are
    scale: float | Tensor | None  # a gradient scaler's
    updated: bool  # the optimizer has stepped already
    follows_a_finite_one: bool
    writes: Writes


@dataclass(frozen=True, slots=True)
class Traced:
    """What one pass, done again, says."""

    origin: str  # "" where it was finite
    event: Event | None
    confidence: Confidence
    where: str  # what is not finite: an input, a parameter, an output
    rows: Sequence[int]
    evidence: Mapping[str, Any]


class Origin:
    """Finds the origins of a session's broken steps, in what `references` keeps of their passes."""

    def __init__(self, watches: Sequence[Watched], references: References) -> None:
        self._watches = watches
        self._references = references
        self._capsules = 0

    def is_serious(self) -> bool:
        """Whether the forward pass was not finite, which no gradient scaler's search explains."""
        if any(_first_forward(watch.signs()) for watch in self._watches):
            return True
        return any(kinds(held.tensor) for made in self._references.passes for held in made.outputs.values() if held.is_as_it_was)

    def incident(self, broken: BrokenStep) -> tuple[Incident, bytes]:
        """What broke in a step, and what repeats it elsewhere."""
        step, evidence = broken.number, self._seen(broken)
        why = "the optimizer had stepped already, for it computes its gradients itself (closure)" if broken.updated else ""
        found: tuple[Watched, Pass, Traced] | None = None
        if not why:
            why, found = self._replayed(broken)
        if found is None:
            key = next((watch.key for watch in self._watches if watch.channels), self._watches[0].key)
            return unexplained(step, evidence.pop("first_model", key), evidence, why, {}), b""
        evidence.pop("first_model", None)
        watch, made, finding = found
        evidence |= finding.evidence
        if (passes := self._references.count(made.key)) > 1:
            evidence |= {"pass": made.number, "passes": passes}
        incident = _incident(step, watch, finding, evidence)
        return incident, self._capsule(incident, watch, made, finding)

    def _seen(self, broken: BrokenStep) -> dict[str, Any]:
        """What the probes have seen of this step."""
        evidence: dict[str, Any] = {"parameters_nonfinite_count": len(broken.names), "parameters": broken.parameters}
        if len(broken.names) < broken.parameters:  # where all are, their names tell nothing
            evidence["parameters_nonfinite"] = list(broken.names[:NAMES])
        if isinstance(broken.scale, float):
            evidence["loss_scale"] = broken.scale
        if (sign := self.first_sign()) is None:
            return evidence | {"first_block": "", "direction": "parameters"}
        first, direction = sign
        return evidence | {
            "first_block": first.site.name,
            "first_model": first.site.model,
            "direction": direction,
            "nonfinite_forward": first.forward,
            "nonfinite_backward": first.backward,
        }

    def first_sign(self) -> tuple[Sign, str] | None:
        """The first block that was not finite in this step, as far as the probes have seen it, and in which direction."""
        for first, direction in ((_first_forward, "forward"), (_first_backward, "backward")):
            for watch in self._watches:
                if (sign := first(watch.signs())) is not None:
                    return sign, direction
        return None

    def _replayed(self, broken: BrokenStep) -> tuple[str, tuple[Watched, Pass, Traced] | None]:
        """Do passes of this step again. Returns why that told nothing, or what did."""
        why = "no forward pass of this step was kept"
        found: list[tuple[Watched, Pass, Traced]] = []
        for watch in self._watches:
            mine = [made for made in self._references.passes if made.key == watch.key]
            if refused := refusal(watch.model):
                why = refused
                continue
            if watch.inlined:
                why = "the model runs inside a function that was compiled as a whole"
            for made in sorted(mine, key=_suspicion)[:REPLAYS]:
                finding, why_not = self._again(broken, watch, made)
                why = why_not or why
                if finding is not None and finding.origin:
                    found.append((watch, made, finding))
                    break
            else:
                if watch.key in self._references.lost:
                    why = "passes of this step were let go, for they were too many or too large, and those kept were finite"
        if not found:
            return why, None
        # Forward the first model in the order of the passes, backward the last; a model whose inputs or output gradients were
        # not finite got them from another one that was done again, if that one tells more.
        order = {id(made): i for i, made in enumerate(self._references.passes)}

        def rank(each: tuple[Watched, Pass, Traced]) -> tuple[int, int]:
            _, made, finding = each
            group = ("forward", "parameters", "optimizer", "backward", "data", "loss").index(finding.origin)
            place = order[id(made)]
            return (0, place) if group < 3 else (1, -place) if group == 3 else (group, place)

        return "", min(found, key=rank)

    def _again(self, broken: BrokenStep, watch: Watched, made: Pass) -> tuple[Traced | None, str]:
        watch.pausing = True
        try:
            with repeated(made, watch.holders()) as again:
                return self._compared(broken, watch, made, again)
        except ReplayError as error:
            return None, str(error)
        except Exception as error:
            return None, f"doing the pass again failed: {type(error).__name__}: {str(error)[:300]}"
        finally:
            watch.pausing = False

    def _compared(self, broken: BrokenStep, watch: Watched, made: Pass, again: Repeated) -> tuple[Traced | None, str]:
        confidence = self._confidence(made, again)
        if confidence == "not reproduced":
            finite = not any(map(kinds, (*again.outputs.values(), *(again.gradients or {}).values())))
            return None, self._why_finite(made, again) if finite else "done again, the pass came out differently"
        finding = _Finder(broken, made, again, confidence).found()
        return finding, "" if finding.origin else "done again, nothing was found that was born in the pass"

    def _why_finite(self, made: Pass, again: Repeated) -> str:
        """Why a step was not finite whose pass, done again, is."""
        if rank_and_world()[1] > 1 and self.first_sign() is None:
            return "done again, this rank's pass was finite: with another rank's gradients it came"
        if self._references.differentiated:
            return (
                "done again, the pass was finite: the loss takes derivatives of it (torch.autograd.grad with "
                "create_graph=True), which are not computed again. Look there first, at roots and norms near 0"
            )
        as_before = [same(held.tensor, again.outputs[i]) for i, held in made.outputs.items() if i in again.outputs]
        if again.gradients is None and all(as_before):
            return (
                "done again, the pass was finite, and no gradient had come to its outputs: look at what else gave the "
                "parameters their gradients"
            )
        if as_before and all(as_before) and self._references.count(made.key) == 1 and self.first_sign() is None:
            return (
                "done again, the pass was finite, and so was what had come to its outputs: look for a term of the loss that reads "
                "weights itself, such as a penalty on their norm, and for what else writes gradients"
            )
        return (
            "done again, the pass was finite: it depends on what changed since, or on a random state that is not torch's, "
            "Python's or numpy's"
        )

    def _confidence(self, made: Pass, again: Repeated) -> Confidence:
        """How the pass that was done again compares with what is left of the original."""
        exact = False
        compared = True
        for i, held in made.outputs.items():
            if not held.is_as_it_was or i not in again.outputs:
                continue
            if same(held.tensor, again.outputs[i]):
                exact = True
            elif _pattern(held.tensor, again.outputs[i]):
                compared = False
            else:
                return "not reproduced"
        mine = {plain(name): parameter for name, parameter in made.model.named_parameters()}
        if again.gradients is not None:
            bad = {name for name, gradient in again.gradients.items() if kinds(gradient)}
            stepped = {name for name, each in mine.items() if each.grad is not None and kinds(local(each.grad)[0])}
            if not {plain(name) for name in bad} & stepped:
                return "not reproduced"
            alone = self._references.count(made.key) == 1 and rank_and_world()[1] == 1
            owned = {name: mine[plain(name)].grad for name in again.gradients}
            if alone and all(
                gradient is not None and same(gradient, again.gradients[name]) for name, gradient in owned.items() if name in bad
            ):
                exact = True
        elif not any(kinds(tensor) for tensor in again.outputs.values()):
            return "not reproduced"
        return "bit-exact" if exact and compared and not made.compiled else "consistent"

    def _capsule(self, incident: Incident, watch: Watched, made: Pass, finding: Traced) -> bytes:
        """What repeats the failure elsewhere; nothing where the loss is at fault, which is not the model's."""
        event = finding.event
        if event is None or self._capsules >= CAPSULES:
            return b""
        modules = {plain(path): module for path, module in made.model.named_modules()}
        module = modules.get(event.path)
        if module is None:
            return b""
        recorder = capsule.Recorder(event.path, event.call)
        watch.pausing = True
        try:
            with repeated(made, (), recorder):
                if not recorder.there:
                    return b""
                told = {
                    name: getattr(incident, name) for name in ("step", "module", "block", "operation", "line", "origin", "summary")
                }
                data = capsule.packed(recorder, module, told)
        except Exception as error:
            incident.evidence["capsule"] = f"none: {type(error).__name__}: {str(error)[:200]}"
            return b""
        finally:
            watch.pausing = False
        self._capsules += 1
        return data


@dataclass(frozen=True, slots=True)
class _Finder:
    """Looks for the origin in a pass that has come out as it did."""

    broken: BrokenStep
    made: Pass
    again: Repeated
    confidence: Confidence

    def found(self) -> Traced:
        made, again, confidence, trace = self.made, self.again, self.confidence, self.again.trace
        outputs = {i: tensor for i, tensor in again.outputs.items() if kinds(tensor)}
        arrived = {i: held.tensor for i, held in made.gradients.items() if i in again.ends}
        bad = {i: gradient for i, gradient in arrived.items() if kinds(gradient)}
        told: dict[str, Any] = {
            "inputs": _finite(held.tensor for _, held in _inputs(made)),
            "weights": _finite(made.model.parameters()),
            "outputs": "finite" if not outputs else "not finite",
            "output_gradients": "not kept" if not arrived else "finite" if not bad else "not finite",
        }
        if made.compiled:
            told["replay"] = "an eager approximation: the compiled model was done again uncompiled"

        def sources(of: Sequence[int]) -> Event | None:
            events = [event for i in of if (event := trace.source(again.outputs[i])) is not None]
            return min(events, key=lambda event: event.order, default=None)

        blamed = [i for i in outputs if i in bad or not arrived]
        if (event := sources(blamed)) is not None:
            return self._of(event, told, _rows(again.outputs[blamed[0]]))
        if bad:
            number, gradient = min(bad.items())
            rows = _rows(gradient)
            told |= {"output": number, **_listed(rows, gradient)}
            return Traced("loss", None, confidence, f"output {number}", rows, told)
        if (found := trace.backward_source()) is not None:
            event, summed = found
            if summed:
                told["summed"] = "the sum of several finite gradients overflowed there"
            if (behind := trace.behind(event)) is not None:
                told["through"] = f"the backward of {event.operation} at {event.line}, which had kept it"
                return self._of(behind, told, ())
            if sources(list(outputs)) is event:  # a loss that the model computes itself: the gradient that came to it is 1
                return self._of(event, told, ())
            return Traced("backward", event, confidence, "", (), told | _in_numbers(event))
        if (event := sources(list(outputs))) is not None:
            return self._of(event, told, _rows(again.outputs[next(iter(outputs))]))
        return Traced("", None, confidence, "", (), told)

    def _of(self, event: Event, told: dict[str, Any], rows: Sequence[int]) -> Traced:
        """A forward pass's origin: an operation, or what was there before it."""
        made, confidence = self.made, self.confidence
        told = told | (_listed(rows, None) if rows else {})
        if event.kind in ("operation", "constant"):
            made_kinds = event.kinds or next((what for _, what in event.read), 0)
            told |= {"made": _words(made_kinds)} | _in_numbers(event)
            return Traced("forward", event, confidence, _words(made_kinds), rows, told)
        if event.kind == "input":
            tensor = next((held.tensor for name, held in _inputs(made) if name == event.name), None)
            rows = _rows(tensor) if tensor is not None else ()
            return Traced("data", event, confidence, event.name, rows, told | _listed(rows, tensor))
        tensors = {plain(name): each for name, each in (*made.model.named_parameters(), *made.model.named_buffers())}
        broken = [name for name, each in tensors.items() if kinds(each)]
        told |= {"tensors_nonfinite": broken[:NAMES], "tensors_nonfinite_count": len(broken)}
        if event.name in tensors:
            told |= _counted(tensors[event.name])
        origin = "parameters"
        if event.kind == "parameter" and self.broken.follows_a_finite_one:
            origin = "optimizer" if self.broken.writes.are_the_optimizers(tensors[event.name], made.model) else origin
        return Traced(origin, event, confidence, event.name, (), told)


def _incident(step: int, watch: Watched, finding: Traced, evidence: dict[str, Any]) -> Incident:
    event = finding.event
    block = event.block if event else ""
    if event is not None and not block and finding.origin in ("parameters", "optimizer"):
        block = _block_of(watch.holders(), event.path)
    since = step - 1 if finding.origin == "optimizer" else step
    located = event is not None and finding.origin in ("forward", "backward")
    return Incident(
        id=incident_id("nonfinite", step),
        kind="nonfinite",
        time=time.time(),
        step=step,
        summary=_summary(step, finding, event, block, evidence),
        model=watch.key,
        block=block,
        module=event.path if event else "",
        operation=event.operation if event and located else "",
        line=event.line if event and located else "",
        origin=finding.origin,
        confidence=finding.confidence,
        since=since,
        advice=ADVICE[finding.origin],
        runbook="nonfinite",
        evidence=evidence,
    )


ADVICE: Mapping[str, str] = {
    "forward": "Look at what that operation was given: guard its domain (an epsilon below a root, a logarithm or a division), or "
    "keep what grows there small (a lower learning rate, clipping, a wider dtype). resmon explain CAPSULE repeats it.",
    "backward": "The forward pass was finite: the derivative of that operation is not, at a value that it was given. Add an "
    "epsilon before a root, norm or logarithm; torch.where does not stop NaN on its way back. resmon explain CAPSULE repeats it.",
    "loss": "The model's outputs were finite: look at the loss, its targets and weights in the rows named, at logarithms of 0 and "
    "at means over nothing.",
    "parameters": "The weights were broken before this step: something other than the optimizer wrote them. Go back to the last "
    "checkpoint, and look at what loads, averages or edits weights.",
    "optimizer": "The gradients of the step before were finite and its update was not: look at the learning rate and its schedule, "
    "at the optimizer's eps and state, and at what writes weights through .data after it, which cannot be told from it. Go back to "
    "the last checkpoint.",
    "data": "The batch itself holds NaN or Inf: look at the rows named, and at the normalisation that they went through.",
    "": "Look at the first block named and at what feeds it.",
    "elsewhere": "Look at the other ranks' incidents of this step: the one in which it was born names a block.",
}


def _in_numbers(event: Event) -> dict[str, Any]:
    """In which numbers it computed, and how large those were that it read."""
    told: dict[str, Any] = {"dtype": event.dtype} if event.dtype else {}
    return told if event.largest is None else told | {"largest_read": event.largest}


def _summary(step: int, finding: Traced, event: Event | None, block: str, evidence: Mapping[str, Any]) -> str:
    made = finding.where
    rows = _rows_said(evidence)
    if finding.origin == "loss":
        return f"Step {step}: the loss made gradients that are not finite of finite outputs, at {made}{rows}."
    if event is None:
        return f"Step {step} was not finite."
    inside = f"module {event.path}" if event.path else "the model's own forward"
    inside += f" (block {block})" if block and block != event.path else ""
    at = f", at {event.line}" if event.line else ""
    if finding.origin == "backward":
        return f"Step {step}: the backward of {event.operation} in {inside} made gradients that are not finite of finite ones{at}."
    if finding.origin == "forward":
        return f"Step {step}: {event.operation} in {inside} made {made} of finite values, in the forward pass{at}."
    if finding.origin == "data":
        return f"Step {step}: the model was given NaN or Inf, in {made}{rows}."
    if finding.origin == "optimizer":
        return f"Step {step}: {made} is not finite since the update of step {step - 1}, whose gradients were finite."
    return f"Step {step}: {event.kind} {made} was not finite before the step."


def unexplained(step: int, model: str, probes: Mapping[str, Any], why: str, more: Mapping[str, Any]) -> Incident:
    """What can be said where no pass was done again."""
    block, direction = str(probes.get("first_block", "")), str(probes.get("direction", ""))
    if block:
        said = f"block {block} was the first that was not finite, in the {direction} pass"
    else:
        said = "no block's output or output gradient was NaN or infinite, but gradients of parameters were"
    return Incident(
        id=incident_id("nonfinite", step),
        kind="nonfinite",
        time=time.time(),
        step=step,
        summary=f"Step {step}: {said}. Its origin is not known: {why}.",
        model=model,
        block=block,
        confidence="not reproduced",
        since=step,
        advice=ADVICE["" if block or rank_and_world()[1] == 1 else "elsewhere"],
        runbook="nonfinite",
        evidence={**probes, **more, "replay": why},
    )


def _first_forward(signs: Sequence[Sign]) -> Sign | None:
    return next((sign for sign in signs if sign.forward > 0 or math.isnan(sign.skip)), None)


def _first_backward(signs: Sequence[Sign]) -> Sign | None:
    return next((sign for sign in reversed(signs) if sign.backward > 0), None)


def _suspicion(made: Pass) -> tuple[bool, int]:
    """Sorts the pass that shows it already to the front, and the newest before the others."""
    shown = any(held.is_as_it_was and kinds(held.tensor) for held in (*made.outputs.values(), *made.gradients.values()))
    return not shown, made.number if shown else -made.number


def _inputs(made: Pass) -> Iterator[tuple[str, Held]]:
    """The tensors that a pass was given, by the names that its trace has for them."""
    found = given(made.arguments)
    for position, tensor in leaves(found):
        yield position_name(position), Held(tensor)


def _block_of(holders: Sequence[Holder], path: str) -> str:
    """The block that a module is part of: whose branch or projection it lies on, else the one whose add is made around it."""
    inside = [holder for holder in holders if any(is_in(path, part) for part in holder.inside)]
    if inside:
        return inside[0].block
    around = [holder for holder in holders if holder.path and is_in(path, holder.path)]
    innermost = {holder.block for holder in around if holder.path == max((each.path for each in around), key=len)}
    return innermost.pop() if len(innermost) == 1 else ""


def _pattern(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.isfinite(), b.isfinite())


def _rows(tensor: Tensor) -> list[int]:
    """Along the first dimension, those that hold what is not finite."""
    if not tensor.dim() or tensor.layout is not torch.strided:
        return []
    bad = ~tensor.detach().isfinite()
    return bad.reshape(len(bad), -1).any(1).nonzero().flatten().tolist() if len(bad) else []


def _listed(rows: Sequence[int], tensor: Tensor | None) -> dict[str, Any]:
    told: dict[str, Any] = {"rows": list(rows[:NAMES]), "rows_count": len(rows)}
    return told | _counted(tensor) if tensor is not None else told


def _counted(tensor: Tensor) -> dict[str, Any]:
    return {"elements": tensor.numel(), "nonfinite": int((~tensor.detach().isfinite()).sum())}


def _rows_said(evidence: Mapping[str, Any]) -> str:
    rows, count = evidence.get("rows", []), evidence.get("rows_count", 0)
    if not rows:
        return ""
    shown = ", ".join(map(str, rows[:8])) + (f" and {count - 8} more" if count > 8 else "")
    return f", {'row' if count == 1 else 'rows'} {shown} of the batch"


def _finite(tensors: Any) -> str:
    return "not finite" if any(kinds(tensor) for tensor in tensors) else "finite"


def _words(found: int) -> str:
    names = [name for bit, name in ((1, "NaN"), (2, "Inf"), (4, "-Inf")) if found & bit]
    return " and ".join(names) or "NaN or Inf"
