"""Exceptions that say that shapes do not fit: in which block, of which operands, where these came from, and what would mend it.

The message names two numbers. For the rest the failed pass is rehearsed on stand-ins, with the arguments that the exception's own
traceback still holds: nothing is kept for this while all goes well. What is proposed has been tried out there. Whether the arguments
are at fault rather than the model is tried out too: the same pass with another batch size, with axes in another order, with a shorter
sequence. Where a pass cannot be rehearsed, what message and traceback say remains.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resmon.capture.compiler import plain
from resmon.capture.dataflow import Node, leaves
from resmon.capture.fakes import DEPENDS_ON_NUMBERS, Fakes
from resmon.capture.fixes import Fix, best_fixes
from resmon.capture.placement import is_distributed, unwrapped
from resmon.capture.rehearsal import Ground, Mismatch, Operand, Outcome
from resmon.capture.stack import Whereabouts, block_of, frames, is_the_users, source_line
from resmon.records import Incident, ResidualSite, incident_id

if TYPE_CHECKING:
    from resmon.capture.failures import Scene

RUNBOOK = "shape-mismatch"
LONGEST = 1000  # characters of an exception's message
SMALL = 256 << 20  # bytes of a model that is copied with its numbers where a pass depends on them

# What torch, and models themselves, say where shapes do not fit.
_SAYS_SO = re.compile(
    r"""must\ match\ the\ (size|existing\ size) | shapes?\ cannot\ be\ multiplied | size\ mismatch | shape\ mismatch
    | to\ have\ \d+\ channels | channels?,\ but\ got | should\ contain\ \d+\ elements | [Gg]iven\ normalized_shape
    | weight\ to\ be\ a\ vector\ of\ size | number\ of\ channels | divisible\ by\ num_groups
    | invalid\ for\ input\ of\ size | is\ not\ compatible\ with\ input\ tensor | cannot\ be\ broadcast | broadcastable
    | [Ss]izes\ of\ tensors\ must\ match | stack\ expects\ each\ tensor | [Tt]ensors\ must\ have\ same\ number\ of\ dimensions
    | mat1\ and\ mat2 | batch1\ tensor | Expected\ size\ for\ first\ two\ dimensions | inconsistent\ tensor\ size
    | expected\ m(at)?1 | doesn't\ match\ the\ broadcast\ shape | Kernel\ size\ can't\ be\ greater | Output\ size\ is\ too\ small
    | output\ size\ .*too\ small | [Ee]xpected\ \dD | [Ee]xpected\ .*\d-?D\ .*(input|tensor) | input\.size\(-1\)\ must\ be\ equal
    | Expected\ input\ batch_size | expecting\ embedding\ dimension | more\ than\ 1\ (value|spatial\ element)
    | (shape|size|dimension|channel|length)s?\b.*\b(match|mismatch|differ|agree|expect|must\ be|should\ be)
    | [Ee]xpected\b.*\b(shape|size|dimension|channel)s?\b.*\b(got|but|found)
    | subscript\ \w+\ has\ size | does\ not\ broadcast\ with | split_with_sizes\ expects
    """,
    re.VERBOSE | re.DOTALL,
)
_OTHER_TROUBLE = re.compile(r"out of memory|can't allocate|dtype|scalar type|same device|storage of size|state_dict")
_INDEX = re.compile(r"index out of range in self|index -?\d+ is out of bounds")


@dataclass(frozen=True, slots=True)
class Cause:
    """What is at fault where it is not the model's widths: one of CAUSES, in words, and what to do."""

    kind: str
    says: str
    do: str


def diagnose_shapes(error: BaseException, scene: Scene, where: Whereabouts) -> Incident | None:
    """The incident that an exception is, None where it speaks of something else than shapes."""
    if not is_mismatch(error):
        return None
    incident = _plain(error, scene, where)
    key, model = _model_of(error, scene, where)
    if model is None:
        return incident
    if _INDEX.search(str(error)):
        return _of_table(error, incident, model)
    given = arguments(error, model)
    ground = None if given is None else _ground(model, *given)
    if ground is None:
        return incident
    try:
        outcome = ground.explore()
    except DEPENDS_ON_NUMBERS:
        ground = _with_numbers(model, *given) if given else None
        if ground is None:
            return incident
        outcome = ground.explore()
    sites = [site for site in scene.sites if site.model == key]
    return _told(incident, ground, outcome, sites, key, where)


def is_mismatch(error: BaseException) -> bool:
    """Whether an exception says that shapes do not fit."""
    text = str(error)
    if isinstance(error, IndexError):
        return bool(_INDEX.search(text)) or "Dimension out of range" in text
    if not isinstance(error, (RuntimeError, ValueError, AssertionError)) or _OTHER_TROUBLE.search(text):
        return False
    return bool(_SAYS_SO.search(text))


def arguments(error: BaseException, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """What `model` was called with in the pass that raised `error`."""
    for code, held, _ in frames(error.__traceback__):
        if code.co_name in ("_call_impl", "_wrapped_call_impl") and unwrapped(held.get("self")) is model:
            args, kwargs = held.get("args"), held.get("kwargs")
            if isinstance(args, tuple) and isinstance(kwargs, dict):
                return args, kwargs
    return None


def _model_of(error: BaseException, scene: Scene, where: Whereabouts) -> tuple[str, nn.Module | None]:
    if where.module is not None:
        return where.model, scene.models[where.model]
    for key, model in scene.models.items():  # compiled code has no frames of its modules
        if arguments(error, model) is not None:
            return key, model
    return "", None


def _ground(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ground | None:
    if any(is_distributed(parameter) for parameter in model.parameters()):
        return None
    fakes = Fakes()
    try:
        copied, args, kwargs = fakes.copies(model, args, kwargs)
    except Exception:  # whatever the model's parts raise on being copied
        return None
    return Ground(copied, args, kwargs, lambda: fakes)


def _with_numbers(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ground | None:
    size = sum(each.numel() * each.element_size() for each in chain(model.parameters(), model.buffers()))
    if size > SMALL or any(each.device.type != "cpu" for each in model.parameters()):
        return None
    try:
        return Ground(*copy.deepcopy((model, args, kwargs)), _random_state_kept)
    except Exception:  # as above
        return None


@contextmanager
def _random_state_kept() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


# -- what is said ------------------------------------------------------------------------------------------------------


def _plain(error: BaseException, scene: Scene, where: Whereabouts) -> Incident:
    """What message and traceback say."""
    message = " ".join(f"{type(error).__name__}: {_innermost(str(error))}".split())[:LONGEST]
    named = _named_tensors(error)
    inside = f"module {where.module}" if where.module else "the model's own forward"
    place = "" if where.module is None else f" in {inside}" + (f" (block {where.block})" if where.block else "")
    shapes = ", ".join(f"{name} {_size(shape)}" for name, shape in named.items())
    return Incident(
        id=incident_id("shape_mismatch", scene.step),
        kind="shape_mismatch",
        time=time.time(),
        step=scene.step,
        summary=f"shapes do not fit{place or (f' at {where.line}' if where.line else '')}: {shapes or message}",
        model=where.model,
        block=where.block,
        module=where.module or "",
        line=where.line,
        advice="Print the shapes of what the line reads; resmon check finds such before training.",
        runbook=RUNBOOK,
        evidence={"exception": message, "tensors": {name: list(shape) for name, shape in named.items()}},
    )


def _innermost(message: str) -> str:
    """What torch's compiler wraps in a message of its own."""
    found = re.search(r"got (?:RuntimeError|ValueError|IndexError)\((['\"])(.*?)\1\)", message, re.DOTALL)
    return found[2] if found else message


def _named_tensors(error: BaseException) -> dict[str, tuple[int, ...]]:
    """The tensors that the user's innermost line names."""
    held: Mapping[str, object] = {}
    line = ""
    for code, locals_, number in frames(error.__traceback__):
        if is_the_users(code):
            held, line = locals_, source_line(code.co_filename, number)
    return {name: tuple(each.shape) for name, each in held.items() if isinstance(each, Tensor) and re.search(rf"\b{name}\b", line)}


def _told(
    incident: Incident, ground: Ground, outcome: Outcome, sites: Sequence[ResidualSite], key: str, where: Whereabouts
) -> Incident:
    evidence = dict(incident.evidence)
    if sites:
        evidence["traced"] = list(sites[0].shape)
    causes = causes_of(ground, outcome, sites)
    if not outcome.mismatches:
        if outcome.error is None:  # the stand-ins fit: it depends on something else
            return incident
        told = replace(incident, module=outcome.where.module or "", evidence=evidence)
        if causes:
            return _with_cause(told, causes[0])
        return told
    mismatch = outcome.mismatches[0]
    compiled = where.module is None or not where.line
    if not compiled and where.module is not None and plain(where.module) != mismatch.module:
        return incident
    fixes = best_fixes(ground, outcome, 0)
    operands = [_operand(role, operand, outcome) for role, operand in zip(roles(mismatch), mismatch.operands, strict=False)]
    block = block_of_mismatch(outcome, mismatch, sites)
    evidence |= {
        "operands": operands,
        "fixes": [{"code": fix.code, "added": fix.added, "tried": fix.works} for fix in fixes],
        "misfits": [{"module": each.module, "operation": operation(each.operation)} for each in outcome.mismatches],
    }
    told = replace(
        incident,
        summary=sentence(mismatch, outcome, block),
        model=key,
        block=block,
        module=mismatch.module,
        operation=operation(mismatch.operation),
        line=mismatch.line if where.module is None else incident.line,
        advice=advice(mismatch, fixes) or incident.advice,
        evidence=evidence,
    )
    return _with_cause(told, causes[0]) if causes else replace(told, evidence=evidence | {"cause": "model"})


def _with_cause(incident: Incident, cause: Cause) -> Incident:
    return replace(
        incident,
        summary=f"{incident.summary}. {cause.says}",
        advice=cause.do,
        evidence=incident.evidence | {"cause": cause.kind},
    )


def sentence(mismatch: Mismatch, outcome: Outcome, block: str) -> str:
    """What does not fit, where, and where the operands came from."""
    told = [_operand(role, operand, outcome) for role, operand in zip(roles(mismatch), mismatch.operands, strict=False)]
    parts = [f"{each['role']} {_size(each['shape'])}" + (f" ({each['from']})" if each["from"] else "") for each in told]
    inside = f"module {mismatch.module}" if mismatch.module else "the model's own forward"
    if mismatch.residual is not None:
        return f"the residual addition of block {block or inside} does not fit: {' and '.join(parts)}"
    place = inside + (f" (block {block})" if block else "")
    if not parts:
        return f"{operation(mismatch.operation)} does not fit in {place}: {mismatch.message[:LONGEST]}"
    if len(parts) == 1:
        return f"{operation(mismatch.operation)} does not fit in {place}: {parts[0]}, {mismatch.message[:200]}"
    return f"{operation(mismatch.operation)} does not fit in {place}: {' and '.join(parts)}"


def advice(mismatch: Mismatch, fixes: Sequence[Fix]) -> str:
    """What to do: the best fix, and the next best."""
    if not fixes:
        if mismatch.operation in ("view", "reshape"):
            return "Take the sizes from the tensor itself, x.shape, where the reshape has numbers."
        return ""
    best = fixes[0]
    said = f"{'Put a projection on the skip' if best.added else 'Change'}: {best.code}."
    if best.works:
        said += " Tried on stand-ins: then it fits."
    other = next((fix for fix in fixes[1:] if fix.works), None)
    if other is not None:
        said += f" Or {'put a projection on the skip' if other.added else 'change'}: {other.code}."
    return said


def roles(mismatch: Mismatch) -> tuple[str, ...]:
    """What the operands are to their operation."""
    if mismatch.residual is not None:
        return ("skip", "branch") if mismatch.residual.skip_is_first else ("branch", "skip")
    if any(not operand.node.live and operand.node.parameters for operand in mismatch.operands[1:]):
        return ("input", "weight")
    return ("first", "second") if len(mismatch.operands) > 1 else ("input",)


def operation(name: str) -> str:
    """A torch function as torch calls it: `__iadd__` is add_."""
    if not name.startswith("__"):
        return name
    bare = name.strip("_")
    if name.startswith("__i"):
        return f"{bare[1:]}_"
    return bare[1:] if name.startswith("__r") else bare


def _operand(role: str, operand: Operand, outcome: Outcome) -> dict[str, Any]:
    module, said = origin(operand.node, {site.module for site in outcome.sites})
    return {"role": role, "shape": list(operand.shape), "module": module, "from": said}


def origin(node: Node, blocks: set[str]) -> tuple[str, str]:
    """The module whose output a value is, or was computed from, and the same in words."""
    operations: list[str] = []
    for _ in range(64):
        outs = [plain(place.path) for place in node.places if place.side == "out"]
        if outs:
            path = next((path for path in outs if path in blocks), outs[0])
            by = f" after {', '.join(reversed(operations))}" if operations else ""
            return path, f"the output of {path or 'the model'}{by}"
        if not node.live:
            names = ", ".join(sorted(node.parameters)[:2])
            return "", names
        if not node.op:
            by = f" after {', '.join(reversed(operations))}" if operations else ""
            return "", f"the model's input{by}"
        parents = [parent for parent in node.parents if parent.live]
        if len(parents) != 1:
            names = " and ".join(filter(None, (origin(parent, blocks)[0] for parent in parents[:2])))
            return "", f"{operation(node.op)}" + (f" of {names}" if names else "")
        if len(operations) < 4:
            operations.append(operation(node.op))
        node = parents[0]
    return "", ""


def block_of_mismatch(outcome: Outcome, mismatch: Mismatch, known: Sequence[ResidualSite] = ()) -> str:
    """The site's name as it is, or would be, without the misfit."""
    name = outcome.block(mismatch.results)
    if not name:
        return block_of(known or outcome.sites, known[0].model if known else "", mismatch.module)
    found = next(site for site in outcome.sites if site.name == name)
    alike = [site.name for site in known if (site.module, site.branch) == (found.module, found.branch)]
    return name if name in alike or not alike else alike[0]


# -- whether the arguments are at fault --------------------------------------------------------------------------------


def causes_of(ground: Ground, outcome: Outcome, sites: Sequence[ResidualSite] = ()) -> list[Cause]:
    """What about the arguments would have to be different for the model, as it is, to run. Each has been tried."""
    if outcome.fits:
        return []
    for experiment in (_batches, _axes, _lengths, _image_sizes):
        for cause, given in experiment(ground, outcome, sites):
            try:
                if ground.rehearse(None, given).error is None:
                    return [cause]
            except Exception:  # arguments that the model was never meant for
                continue
    return []


Given = tuple[tuple[Any, ...], dict[str, Any]]


def changed(ground: Ground, change: Any) -> Given:
    """The arguments with `change` applied to each tensor."""

    def walk(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return change(tree)
        if type(tree) in (tuple, list):
            return type(tree)(map(walk, tree))
        if isinstance(tree, Mapping):
            return {key: walk(item) for key, item in tree.items()}
        return tree

    with ground.inside():
        return walk(ground.args), walk(ground.kwargs)


def batch_of(ground: Ground) -> int | None:
    """The first dimension of the first tensor."""
    return next((int(t.shape[0]) for _, t in leaves((ground.args, ground.kwargs)) if t.dim()), None)


def with_batch(ground: Ground, size: int) -> Given:
    """The arguments with another batch size: all tensors whose first dimension is the batch's."""
    batch = batch_of(ground)

    def change(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != batch:
            return tensor
        return tensor.detach()[:1].expand(size, *tensor.shape[1:]).clone()

    return changed(ground, change)


def _batches(ground: Ground, outcome: Outcome, sites: Sequence[ResidualSite]) -> Iterator[tuple[Cause, Given]]:
    batch = batch_of(ground)
    if batch is None:
        return
    traced = [site.shape[0] for site in sites[:1] if site.shape]
    asked = [size for each in outcome.mismatches[:1] for size in _numbers(each.arguments[1:])[:1]]
    if any("more than 1" in each.message for each in outcome.mismatches) or "more than 1" in str(outcome.error):
        says = "A batch of one has no variance, and batch norm needs one while it trains"
        yield Cause("batch", says, "Leave the last batch out where it is smaller: DataLoader(..., drop_last=True)."), with_batch(ground, 2)
        return
    for size in dict.fromkeys((*traced, *asked, batch + 1, 1, 2 * batch)):
        if size != batch and 0 < size <= 4096:
            says = f"The same model fits with a batch of {size}, not of {batch}: something in it depends on the batch size"
            do = "Take the batch size from the tensor, x.shape[0] or -1, where a reshape or a buffer has a number."
            if traced and batch < traced[0]:
                says += f"; this batch is smaller than the {traced[0]} of the first, as a data set's last one is"
                do += " Or leave the last batch out: DataLoader(..., drop_last=True)."
            yield Cause("batch", says, do), with_batch(ground, size)


def _axes(ground: Ground, outcome: Outcome, sites: Sequence[ResidualSite]) -> Iterator[tuple[Cause, Given]]:
    floats = [t for _, t in leaves((ground.args, ground.kwargs)) if t.is_floating_point()]
    dims = {t.dim() for t in floats}

    def permuted(dim: int, *order: int) -> Given:
        return changed(ground, lambda t: t.permute(order).contiguous() if t.dim() == dim and t.is_floating_point() else t)

    if 4 in dims:
        says = "The input has its channels last, and the model takes them second"
        yield Cause("channels last", says, "Give it x.permute(0, 3, 1, 2)."), permuted(4, 0, 3, 1, 2)
        says = "The input has its channels second, and the model takes them last"
        yield Cause("channels last", says, "Give it x.permute(0, 2, 3, 1)."), permuted(4, 0, 2, 3, 1)
    if 3 in dims:
        says = "The input's last two axes stand the other way round than the model takes them"
        yield Cause("axes", says, "Give it x.transpose(1, 2)."), permuted(3, 0, 2, 1)
        says = "The input has the batch and the sequence the other way round than the model takes them"
        yield Cause("axes", says, "Give it x.transpose(0, 1)."), permuted(3, 1, 0, 2)
    if floats:
        says = "The input has no batch dimension"
        yield Cause("axes", says, "Give it x.unsqueeze(0)."), changed(ground, lambda t: t[None] if t.is_floating_point() else t)
    if 3 in dims:
        says = "The input has one dimension less than the model takes"
        do = "Give it x.unsqueeze(1) where the channel is missing."
        yield Cause("axes", says, do), changed(ground, lambda t: t[:, None] if t.dim() == 3 else t)


def _lengths(ground: Ground, outcome: Outcome, sites: Sequence[ResidualSite]) -> Iterator[tuple[Cause, Given]]:
    """Sequences shorter, or longer, than what they meet."""
    tensors = [t for _, t in leaves((ground.args, ground.kwargs)) if t.dim() in (2, 3)]
    if not tensors or not outcome.mismatches or (tensors[0].dim() == 2 and tensors[0].is_floating_point()):
        return
    length = tensors[0].shape[1]
    met = outcome.mismatches[0].operands
    if not any(length in operand.shape for operand in met):
        return
    sizes = {size + more for operand in met for size in operand.shape for more in (0, -1)}
    for size in sorted((size for size in sizes if 0 < size <= 2 * length and size != length), key=lambda s: abs(s - length)):
        says = f"The model fits a length of {size}, and this one is {length}"
        do = f"Cut the sequences to {size}, or build the model for {length} (its table of positions has {size})."

        def resized(t: Tensor, size: int = size) -> Tensor:
            if t.dim() < 2 or t.shape[1] != length:
                return t
            return t.new_zeros((t.shape[0], size, *t.shape[2:]))

        yield Cause("length", says, do), changed(ground, resized)


def _image_sizes(ground: Ground, outcome: Outcome, sites: Sequence[ResidualSite]) -> Iterator[tuple[Cause, Given]]:
    images = [t for _, t in leaves((ground.args, ground.kwargs)) if t.dim() == 4]
    if not images:
        return
    size = images[0].shape[-1]
    guesses: list[int] = []
    if outcome.mismatches and len(outcome.mismatches[0].operands) == 2:
        first, second = outcome.mismatches[0].operands
        a, b = first.shape[-1], second.shape[-1]
        guesses = [round(size * (b / a) ** 0.5) + more for more in (0, 1, -1, 2, -2)]
    for guess in dict.fromkeys((*guesses, 28, 32, 64, 96, 128, 224, 256, 384, 8, 16, 512)):
        if 0 < guess != size:
            says = f"The model fits images of {guess}×{guess}, and these are {images[0].shape[-2]}×{size}"
            do = f"Resize the images to {guess}×{guess}, or pool to a fixed size, nn.AdaptiveAvgPool2d, before they are flattened."

            def resized(t: Tensor, guess: int = guess) -> Tensor:
                return t.new_zeros((*t.shape[:2], guess, guess)) if t.dim() == 4 else t

            yield Cause("input size", says, do), changed(ground, resized)


def _of_table(error: BaseException, incident: Incident, model: nn.Module) -> Incident:
    """An index beyond the rows of an embedding."""
    found: tuple[nn.Module | None, Tensor, Tensor] | None = None
    for code, held, _ in frames(error.__traceback__):
        if code.co_name == "embedding" and isinstance(held.get("weight"), Tensor) and isinstance(held.get("input"), Tensor):
            found = None, held["weight"], held["input"]  # type: ignore[assignment]
    if found is None:
        return incident
    _, weight, index = found
    if index.device.type != "cpu" or not index.numel():
        return incident
    path = next((plain(name).rpartition(".")[0] for name, p in model.named_parameters() if p is weight), incident.module)
    low, high, rows = int(index.min()), int(index.max()), weight.shape[0]
    given = arguments(error, model)
    own = given is None or not any(t.dtype == index.dtype and t.numel() and int(t.max()) == high for _, t in leaves(given))
    inside = f"module {path}" + (f" (block {incident.block})" if incident.block else "")
    says = f"the table of {inside} has {rows} rows, and index {high if high >= rows else low} was looked up"
    if own:
        do = f"Positions are counted by the model: cut the sequences to {rows}, or build the model with a larger table."
    else:
        do = f"The index comes from the data: the tokenizer's vocabulary, or the labels, go beyond {rows - 1}."
    return replace(
        incident,
        summary=says,
        module=path,
        operation="embedding",
        advice=do,
        evidence=incident.evidence | {"cause": "length" if own else "index", "rows": rows, "lowest": low, "highest": high},
    )


def _numbers(tree: Any) -> list[int]:
    if isinstance(tree, int) and not isinstance(tree, bool):
        return [tree]
    return [number for item in tree for number in _numbers(item)] if isinstance(tree, (tuple, list, torch.Size)) else []


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "of no dimension"
