"""Memory that ran out: which exceptions say so, how much they asked for, and what the run was doing.

Memory is scarce when this is asked. So it looks at what is known already and makes nothing large; and where even that fails, what
the exception itself says is still told.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch

from resmon.capture.forensics.failures import place, said
from resmon.capture.host.stack import Whereabouts, whereabouts
from resmon.memory import footprint
from resmon.quantities import size
from resmon.records import Incident, incident_id

if TYPE_CHECKING:
    from resmon.capture.forensics.failures import Scene

# What allocators say of themselves, torch's for the CPU on Linux and Windows, those of accelerators, of their libraries, and C++'s.
_SAYS_SO = re.compile(
    r"can't allocate memory|not enough memory|out of memory|bad_alloc|unable to mmap|Cannot allocate memory"
    r"|(CUBLAS|CUDNN|CUSPARSE|CUSOLVER)_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_UNITS = {"bytes": 1, "byte": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_ASKED = re.compile(r"(?:tried to allocate|unable to allocate|unable to mmap)\s+([\d.]+)\s*([KMGT]?i?B|bytes?)", re.IGNORECASE)
_FREE = re.compile(r"of which ([\d.]+) ([KMGT]?i?B|bytes?) is free", re.IGNORECASE)
_SPLIT = re.compile(r"([\d.]+) ([KMGT]?i?B|bytes?) is reserved by PyTorch but unallocated", re.IGNORECASE)

_DEVICE = re.compile(r"\b(CUDA|HIP|MPS|XPU|CUBLAS_|CUDNN_)")

Phase = Literal["forward pass", "backward pass", "optimizer's step", "evaluation", ""]


def ran_out(error: BaseException) -> bool:
    """Whether this exception says that there was no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _SAYS_SO.search(str(error)) is not None


def out_of_memory(error: BaseException, scene: Scene, where: Whereabouts) -> Incident | None:
    """The incident of an exception that is, or was raised from, one that says that memory ran out."""
    cause: BaseException | None = error
    while cause is not None and not ran_out(cause):
        cause = cause.__cause__
    if cause is None:
        return None
    if cause is not error:
        where = whereabouts(cause, scene.models, scene.sites)
    phase = _phase(cause, scene, where)
    message = str(cause)
    asked, device = _amount(_ASKED, message), _DEVICE.search(str(cause)) is not None or isinstance(cause, torch.OutOfMemoryError)
    of_training = phase in ("forward pass", "backward pass")
    found: dict[str, Any] = {"exception": said(cause), "phase": phase, "asked_bytes": asked}
    told, block, since, before = _other_advice(phase, message, asked), where.block, None, False
    try:
        if scene.footprint is not None:
            known = scene.footprint()
            found |= footprint.evidence(known, "device_" if device else "", asked, _amount(_FREE, message))
            if not of_training:
                found["batch"] = {"samples": None, "fits": None, "by": "unknown: it was no pass of training that failed"}
            told = " ".join(filter(None, (told, footprint.advice(found, of_training))))
            since = found["growth"]["since"] if found["growth"] else None
            if phase == "backward pass" and not block:
                block = known.backward
                before = not block and bool(known.blocks)
    except (MemoryError, RuntimeError) as again:
        found["unknown"] = f"what is known of memory could not be gathered: {said(again)}"
    at = place(where) if where.block or not block else f" in that of block {block}"
    at = " before it came to any block, in that of the head or the loss" if before else at
    amounts = [
        f"{size(found[name])} {verb}"
        for name, verb in (("asked_bytes", "were asked for"), ("free_bytes", "were free"), ("in_use_bytes", "in use"))
        if found.get(name) is not None
    ]
    return Incident(
        id=incident_id("out_of_memory", scene.step),
        kind="out_of_memory",
        time=time.time(),
        step=scene.step,
        summary=f"{'Memory of the device' if device else 'Main memory'} ran out"
        + (f" in the {phase}" if phase else "")
        + (f",{at}" if at else "")
        + (f": {', '.join(amounts)}" if amounts else ""),
        model=where.model,
        block=block,
        module=where.module or "",
        line=where.line,
        since=since,
        advice=told or "Try half of the batch, or checkpoint the blocks that the evidence lists first.",
        runbook="out-of-memory",
        evidence=found,
    )


def _phase(error: BaseException, scene: Scene, where: Whereabouts) -> Phase:
    """What the loop was doing, by the functions of torch on the exception's way."""
    functions = list(_functions(error.__traceback__))
    if any(module.startswith("torch.optim") for module, _ in functions):
        return "optimizer's step"
    if any(module.startswith("torch.autograd") and name == "_engine_run_backward" for module, name in functions):
        return "backward pass"
    if where.module is None:
        return ""
    return "forward pass" if scene.models[where.model].training else "evaluation"


def _functions(traceback: TracebackType | None) -> Iterator[tuple[str, str]]:
    """The module and the name of every function on the way."""
    while traceback is not None:
        frame = traceback.tb_frame
        yield str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
        traceback = traceback.tb_next


def _other_advice(phase: Phase, message: str, asked: float | None) -> str:
    """What the place and the message say already."""
    split = _amount(_SPLIT, message)
    if phase == "optimizer's step":
        return (
            "An optimizer makes its states in its first step (Adam's are twice as large as the parameters), and by default takes "
            "temporary copies of the parameters in every step: foreach=False does without the copies; SGD, 8-bit or sharded states "
            "need less. No smaller batch helps here, unless activations were still held."
        )
    if not phase:
        return "It was not the model that asked for this memory: look at the line first."
    if asked is not None and split is not None and split >= asked:
        return (
            f"{size(split)} lie in the allocator's cache, in pieces that are too small: set "
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."
        )
    return ""


def _amount(pattern: re.Pattern[str], message: str) -> float | None:
    found = pattern.search(message)
    return float(found[1].rstrip(".")) * _UNITS[found[2].lower()] if found else None
