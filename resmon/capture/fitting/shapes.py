"""Exceptions that say that shapes do not fit: in which block, of which operands, where these came from, and what would mend it.

The message names two numbers. For the rest the failed pass is rehearsed on stand-ins, with the arguments that the exception's own
traceback still holds: nothing is kept for this while all goes well. What is proposed has been tried out there, and so has whether
the arguments are at fault rather than the model. Where a pass cannot be rehearsed, what message and traceback say remains.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from resmon.capture.discovery.dataflow import Node, leaves
from resmon.capture.fitting.fakes import DEPENDS_ON_NUMBERS, Fakes
from resmon.capture.fitting.fixes import Fix, best_fixes
from resmon.capture.fitting.rehearsal import Ground, Mismatch, Operand, Outcome
from resmon.capture.fitting.trials import Cause, cause_of
from resmon.capture.host.compiler import plain
from resmon.capture.host.placement import is_distributed, unwrapped
from resmon.capture.host.stack import Whereabouts, block_of, frames, is_the_users, source_line
from resmon.records import Incident, ResidualSite, incident_id

if TYPE_CHECKING:
    from resmon.capture.forensics.failures import Scene

RUNBOOK = "shape-mismatch"
LONGEST = 1000  # characters of an exception's message
SMALL = 256 << 20  # bytes of a model that is copied with its numbers where a pass depends on them

# What torch says where shapes do not fit.
_SAYS_SO = re.compile(
    r"""must\ match\ the\ (size|existing\ size) | shapes?\ cannot\ be\ multiplied | size\ mismatch | shape\ mismatch
    | to\ have\ \d+\ channels | should\ contain\ \d+\ elements | [Gg]iven\ normalized_shape | weight\ to\ be\ a\ vector\ of\ size
    | divisible\ by\ num_groups | invalid\ for\ input\ of\ size | is\ not\ compatible\ with\ input\ tensor | cannot\ be\ broadcast
    | broadcastable | [Ss]izes\ of\ tensors\ must\ match | stack\ expects\ each\ tensor
    | [Tt]ensors\ must\ have\ same\ number\ of\ dimensions | mat1\ and\ mat2 | batch1\ tensor
    | Expected\ size\ for\ first\ two\ dimensions | inconsistent\ tensor\ size | doesn't\ match\ the\ broadcast\ shape
    | Kernel\ size\ can't\ be\ greater | [Oo]utput\ size\ .*too\ small | [Ee]xpected\ .*\d-?D\ .*(input|tensor)
    | input\.size\(-1\)\ must\ be\ equal | Expected\ input\ batch_size | expecting\ embedding\ dimension
    | more\ than\ 1\ (value|spatial\ element) | subscript\ \w+\ has\ size | does\ not\ broadcast\ with | split_with_sizes\ expects
    """,
    re.VERBOSE | re.DOTALL,
)
# And what models themselves say, in words of their own.
_IN_OTHER_WORDS = re.compile(
    r"""\b(shape|size|dimension|dim|channel|length|width)s?\b.*\b(match|mismatch|differ|agree|expect|expected|must\ be|should\ be)
    | \b(match|[Ee]xpect|[Ee]xpected)\b.*\b(shape|size|dimension|dim|channel|length|width)s?\b""",
    re.VERBOSE | re.DOTALL,
)
_OTHER_TROUBLE = re.compile(r"out of memory|can't allocate|dtype|scalar type|same device|storage of size|state_dict")
_INDEX = re.compile(r"index out of range in self|index -?\d+ is out of bounds")


def diagnose_shapes(error: BaseException, scene: Scene, where: Whereabouts) -> Incident | None:
    """The incident that an exception is, None where it speaks of something else than shapes."""
    if not is_mismatch(error, inside=where.module is not None):
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


def is_mismatch(error: BaseException, inside: bool) -> bool:
    """Whether an exception says that shapes do not fit. `inside` a model's forward more words are taken to mean that."""
    text = _innermost(str(error))
    if isinstance(error, IndexError):
        return bool(_INDEX.search(text)) or "Dimension out of range" in text
    if not isinstance(error, (RuntimeError, ValueError, AssertionError)) or _OTHER_TROUBLE.search(text):
        return False
    return bool(_SAYS_SO.search(text)) or (inside and bool(_IN_OTHER_WORDS.search(text)))


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
    return Ground(copied, args, kwargs, fakes)


def _with_numbers(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ground | None:
    size = sum(each.numel() * each.element_size() for each in chain(model.parameters(), model.buffers()))
    if size > SMALL or any(each.device.type != "cpu" for each in model.parameters()):
        return None
    try:
        return Ground(*copy.deepcopy((model, args, kwargs)))
    except Exception:  # as above
        return None


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
        if is_the_users(code.co_filename):
            held, line = locals_, source_line(code.co_filename, number)
    return {name: tuple(each.shape) for name, each in held.items() if isinstance(each, Tensor) and re.search(rf"\b{name}\b", line)}


def _told(
    incident: Incident, ground: Ground, outcome: Outcome, sites: Sequence[ResidualSite], key: str, where: Whereabouts
) -> Incident:
    evidence = dict(incident.evidence)
    if sites:
        evidence["traced"] = list(sites[0].shape)
    if outcome.fits:  # it depends on something that the rehearsal does not have
        return incident
    cause = cause_of(ground, outcome, usual=sites[0].shape[0] if sites and sites[0].shape else None)
    if not outcome.mismatches:
        told = replace(incident, module=outcome.where.module or "", evidence=evidence)
        return told if cause is None else _with_cause(told, cause)
    mismatch = outcome.mismatches[0]
    if where.module is not None and where.module != mismatch.module:
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
    return replace(told, evidence=evidence | {"cause": "model"}) if cause is None else _with_cause(told, cause)


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
    """A torch function as torch calls it: `__iadd__` is add_, `__invert__` is invert."""
    if not name.startswith("__"):
        return name
    bare = name.strip("_")
    if not hasattr(Tensor, f"__{bare[1:]}__"):
        return bare
    return {"i": f"{bare[1:]}_", "r": bare[1:]}.get(bare[0], bare)


def _operand(role: str, operand: Operand, outcome: Outcome) -> dict[str, Any]:
    module, said = origin(operand.node, {site.module for site in outcome.sites})
    return {"role": role, "shape": list(operand.shape), "module": module, "from": said}


def origin(node: Node, blocks: set[str]) -> tuple[str, str]:
    """The module whose output a value is, or was computed from, and the same in words."""
    module, ops, end = _nearest(node, blocks)
    by = f" after {', '.join(reversed(ops[:4]))}" if ops else ""
    if module is not None:
        return module, f"the output of {module or 'the model'}{by}"
    if not end.live:
        return "", ", ".join(sorted(end.parameters)[:2])
    if not end.op:
        return "", f"the model's input{by}"
    makers = [maker for parent in end.parents if parent.live and (maker := _nearest(parent, blocks)[0])]
    return "", operation(end.op) + (f" of {' and '.join(makers[:2])}" if makers else "") + by


def _nearest(node: Node, blocks: set[str]) -> tuple[str | None, list[str], Node]:
    """Back along the only tensor that each operation read: the first module whose output it was, the operations since, the end."""
    ops: list[str] = []
    while True:
        outs = [plain(place.path) for place in node.places if place.side == "out"]
        if outs:
            return next((path for path in outs if path in blocks), outs[0]), ops, node
        parents = [parent for parent in node.parents if parent.live]
        if not node.live or len(parents) != 1:
            return None, ops, node
        ops.append(operation(node.op))
        node = parents[0]


def block_of_mismatch(outcome: Outcome, mismatch: Mismatch, known: Sequence[ResidualSite] = ()) -> str:
    """The site's name as it is, or would be, without the misfit."""
    name = outcome.block(mismatch.results)
    if not name:
        return block_of(known or outcome.sites, known[0].model if known else "", mismatch.module)
    found = next(site for site in outcome.sites if site.name == name)
    alike = [site.name for site in known if (site.module, site.branch) == (found.module, found.branch)]
    return name if name in alike or not alike else alike[0]


# -- tables ------------------------------------------------------------------------------------------------------------


def _of_table(error: BaseException, incident: Incident, model: nn.Module) -> Incident:
    """An index beyond the rows of an embedding."""
    looked_up: tuple[Tensor, Tensor] | None = None
    for code, held, _ in frames(error.__traceback__):
        weight, index = held.get("weight"), held.get("input")
        if code.co_name == "embedding" and isinstance(weight, Tensor) and isinstance(index, Tensor):
            looked_up = weight, index
    if looked_up is None or looked_up[1].device.type != "cpu" or not looked_up[1].numel():
        return incident
    weight, index = looked_up
    path = next((plain(name).rpartition(".")[0] for name, p in model.named_parameters() if p is weight), incident.module)
    low, high, rows = int(index.min()), int(index.max()), weight.shape[0]
    wrong = high if high >= rows else low
    given = [t for _, t in leaves(arguments(error, model)) if t.dtype == index.dtype and t.numel()]
    from_data = any(int(t.max()) == high and int(t.min()) == low for t in given)
    inside = f"module {path}" + (f" (block {incident.block})" if incident.block else "")
    if from_data:
        do = f"The index comes from the data: the tokenizer's vocabulary, or a class, goes beyond {rows - 1}."
    else:
        do = f"The model counts positions itself: cut the sequences to {rows}, or build the model with a larger table."
    return replace(
        incident,
        summary=f"the table of {inside} has {rows} rows, and index {wrong} was looked up",
        module=path,
        operation="embedding",
        advice=do,
        evidence=incident.evidence | {"cause": "index" if from_data else "length", "rows": rows, "index": wrong},
    )


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "of no dimension"
