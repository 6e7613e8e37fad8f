"""Where an exception arose, or where a thread is: in which module of a watched model, in which residual block, at which line of the
user's code.
"""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, TracebackType

import torch
from torch import nn

from resmon.capture.host.compiler import plain
from resmon.records import Doing, ResidualSite

LONGEST = 200  # characters of a source line

_OURS = tuple(str(Path(__file__).parents[2] / room) + os.sep for room in ("capture", "monitor"))  # where a training is watched
_NOT_THE_USERS = ("<frozen ", *_OURS, str(Path(torch.__file__).parent) + os.sep)
_PYTHON = sysconfig.get_path("stdlib") + os.sep
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")  # may be inside of it

# What a thread is doing whose innermost call of these modules is one of that module, or of its submodules.
_DOING: Mapping[str, Doing] = {
    "resmon.capture": "resmon",
    "resmon.monitor": "resmon",
    "torch._dynamo": "compile",
    "torch._inductor": "compile",
    "torch.autograd": "backward",
    "torch.distributed.distributed_c10d": "collective",
    "torch.nn.modules.module": "forward",
    "torch.nn.parallel.distributed": "collective",
    "torch.optim": "optimizer",
    "torch.utils.data": "data",
}

# Raises in the loop that a worker of a data loader is gone; by its path, as torch may move what is its own.
_SIGNALS = str(Path(torch.__file__).parent / "utils" / "data" / "_utils" / "signal_handling.py")


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What is not known is empty: of an exception outside of the models, `model`, `module` and `block`."""

    model: str = ""  # key of the model
    module: str | None = None  # path of the innermost module whose code was running; "" is the model itself
    block: str = ""
    line: str = ""  # "file:number: source", the innermost one that is neither torch's nor resmon's nor Python's own


def whereabouts(error: BaseException, models: Mapping[str, nn.Module], sites: Sequence[ResidualSite]) -> Whereabouts:
    """Follow the exception's traceback inwards. What torch raises in a signal handler does not concern the code it came upon."""
    calls = [(code, locals_.get("self"), number) for code, locals_, number in frames(error.__traceback__)]
    if any(code.co_filename == _SIGNALS for code, _, _ in calls):
        return Whereabouts()
    return _follow(calls, models, sites)


def running(thread: int, models: Mapping[str, nn.Module], sites: Sequence[ResidualSite]) -> tuple[Whereabouts, Doing, list[str]]:
    """Where a thread of this process is now, what it is doing there, and its calls but for resmon's, the innermost last.

    Of local variables it looks at none but those of torch's own call of a module: a frame that was asked for them keeps what they
    are now, the user's tensors among it, for as long as it runs.
    """
    stack: list[FrameType] = []
    frame = sys._current_frames().get(thread)
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    doing: Doing = next((found for each in stack if (found := _doing(each))), "")
    stack.reverse()
    calls = ((each.f_code, each.f_locals["self"] if each.f_code is _CALL else None, each.f_lineno) for each in stack)
    said = [
        f"{each.f_code.co_filename}:{each.f_lineno} in {each.f_code.co_name}"
        for each in stack
        if doing == "resmon" or not each.f_code.co_filename.startswith(_OURS)
    ]
    return _follow(calls, models, sites), doing, said


_CALL: CodeType = nn.Module._call_impl.__code__  # a module runs in it, whatever its forward is


def _doing(frame: FrameType) -> Doing:
    name = str(frame.f_globals.get("__name__", ""))
    while name and name not in _DOING:
        name = name.rpartition(".")[0]
    return _DOING[name] if name else ""


def _follow(
    calls: Iterable[tuple[CodeType, object, int]], models: Mapping[str, nn.Module], sites: Sequence[ResidualSite]
) -> Whereabouts:
    """Inwards along the calls: their code, what is `self` in them, and their line."""
    paths = {id(module): (key, plain(path)) for key, model in models.items() for path, module in model.named_modules()}
    found: tuple[str, str] | None = None
    line = ""
    for code, self, number in calls:
        found = paths.get(id(self), found)
        if is_the_users(code.co_filename):
            line = source_line(code.co_filename, number)
    key, path = found or ("", None)
    block = "" if path is None else block_of(sites, key, path) or _like_a_block(models[key], sites, key, path)
    return Whereabouts(key, path, block, line)


def frames(traceback: TracebackType | None) -> Iterator[tuple[CodeType, Mapping[str, object], int]]:
    """The calls that a traceback goes through, inwards: their code, local variables and line."""
    while traceback is not None:
        yield traceback.tb_frame.f_code, traceback.tb_frame.f_locals, traceback.tb_lineno
        traceback = traceback.tb_next


@cache
def is_the_users(file: str) -> bool:
    """Whether the code in it is neither torch's nor ours nor Python's own."""
    is_pythons = file.startswith(_PYTHON) and not any(each in file for each in _PACKAGES)
    return not (is_pythons or file.startswith(_NOT_THE_USERS))


def source_line(file: str, number: int) -> str:
    """A line as people find it again: file, number, and what stands there where that can be read."""
    text = linecache.getline(file, number).strip()[:LONGEST]
    return f"{file}:{number}: {text}" if text else f"{file}:{number}"


def current_line() -> str:
    """The innermost line of the user's code that is running now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_the_users(frame.f_code.co_filename):
            return source_line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


def block_of(sites: Sequence[ResidualSite], model: str, path: str) -> str:
    """The residual site that a module belongs to: whose branch or projection it is part of, else the innermost that holds it.

    Of several in one module it is that of whose parts the smallest module around it holds some, and of no other's.
    """
    mine = [site for site in sites if site.model == model]
    for site in mine:
        if any(_is_in(path, part) for part in (*site.branch, *site.skip) if part):
            return site.name
    holders = [site for site in mine if site.module and _is_in(path, site.module)]
    innermost = max((site.module for site in holders), key=len, default="")
    holders = [site for site in holders if site.module == innermost]
    around = path
    while len(around) > len(innermost):
        beside = [site for site in holders if any(_is_in(part, around) for part in (*site.branch, *site.skip))]
        if beside:
            return beside[0].name
        around = around.rpartition(".")[0]
    return holders[0].name if holders else ""


def _like_a_block(model: nn.Module, sites: Sequence[ResidualSite], key: str, path: str) -> str:
    """The innermost module around `path` of a class that holds a residual add elsewhere: in a failed pass not all were met."""
    modules = {plain(name): module for name, module in model.named_modules()}
    kinds = {type(modules[site.module]) for site in sites if site.model == key and site.module in modules}
    parts = path.split(".")
    around = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in around if type(modules.get(name)) in kinds), "")


def _is_in(path: str, holder: str) -> bool:
    return path == holder or path.startswith(f"{holder}.")
