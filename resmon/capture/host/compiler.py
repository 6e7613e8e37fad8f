"""How hooks and torch.compile get along.

What is compiled before a hook is there is without it, silently; what is compiled with it runs its traced operations and no Python.
So the code of our hooks is never a frame to compile by itself, only part of one; a pass that is to be traced runs eagerly, as
everything does while a `Pause` lasts; and code that was made too early is forgotten. torch's compiler is not imported for this:
where nobody did, nothing is compiled. (Making an optimizer imports it.)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch._C._dynamo import eval_frame

from resmon.capture.host.requirement import IN_GRAPHS, at_least

OBSERVES = at_least(torch.__version__, IN_GRAPHS)
"""Whether graphs hold anything of ours; with an older torch a compiled model keeps the hooks, which do nothing in there."""

_TELLS_EXPORTS = hasattr(torch.compiler, "is_exporting")  # from 2.7 on


def is_loaded() -> bool:
    """Whether anything can have been compiled in this process."""
    return "torch._dynamo" in sys.modules


def traces() -> bool:
    """Whether this code is being traced into a graph, where its Python runs once and its tensor operations for ever after."""
    return torch.compiler.is_compiling()


def exports() -> bool:
    """Whether the graph that this code is being traced into is one for torch.export; torch 2.6 does not tell."""
    return _TELLS_EXPORTS and torch.compiler.is_exporting()


def is_rehearsed() -> bool:
    """Whether what is computed now stands for tensors whose values nobody computes: under make_fx, and in a FakeTensorMode."""
    return torch._C._len_torch_dispatch_stack() > 0 and any(torch._C._get_dispatch_mode(key) is not None for key in _REHEARSES)


_Mode = torch._C._TorchDispatchModeKey
_REHEARSES = (_Mode.FAKE, _Mode.PROXY, _Mode.FUNCTIONAL)


def freely(act: Callable[..., Any], *arguments: Any) -> Any:
    """In a graph: call `act`, which may change Python objects also where the graph is of a checkpoint.

    A checkpoint's region that changes an object, or the stack of modes, is not compiled at all otherwise. Its recomputation does
    not do it again, which is just what we want.
    """
    if not OBSERVES:
        return act(*arguments)
    return torch._dynamo.utils._disable_side_effect_safety_checks_for_current_subtracer(act, *arguments)


def traces_backward() -> bool:
    """In a graph: whether this is in what the backward pass will do, which torch traces together with the forward."""
    tracing = torch._dynamo.symbolic_convert.InstructionTranslator.current_tx().output.current_tx
    return getattr(tracing, "strict_checks_fn", None) is not None


traces_backward._dynamo_marked_constant = True  # type: ignore[attr-defined] # while a graph is made it is called, not traced


def is_in_region() -> bool:
    """In a graph: whether this is in a nested compile region, which torch does not train where anything is written in it."""
    tracer: Any = torch._dynamo.symbolic_convert.InstructionTranslator.current_tx().output.current_tracer
    while tracer is not None:
        if "invoke_subgraph" in str(tracer.source_target):
            return True
        tracer = tracer.parent
    return False


is_in_region._dynamo_marked_constant = True  # type: ignore[attr-defined]


def compiles_backward() -> bool:
    """In a graph: whether backward passes are compiled, too (compiled autograd), which cannot be done with what ours would add."""
    entered = getattr(sys.modules.get("torch._dynamo.compiled_autograd"), "compiled_autograd_enabled", False)
    return bool(torch._dynamo.config.compiled_autograd or entered)


compiles_backward._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_sure(condition: Any) -> bool:
    """Whether `condition` holds whatever the sizes that a graph leaves open come to.

    Nothing is guarded on: another size would have the graph made anew, and one that only the data tell would break it.
    """
    if not traces():
        return bool(condition)
    known: bool = torch.fx.experimental.symbolic_shapes.statically_known_true(condition)
    return known


def leave_alone(functions: Iterable[Callable[..., Any]], *, within: bool = True) -> None:
    """Have these run as they are where they are called between graphs, and traced where they are called inside of one.

    `within` says whether that goes for what they call, too. An older torch, with which compiled models are not observed, can
    only be told what goes for a function alone.
    """
    if not hasattr(eval_frame, "set_code_exec_strategy"):
        older: Any = eval_frame
        for function in () if within else functions:
            older.skip_code(function.__code__)
        return
    skip, default = eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT
    wholly = eval_frame._FrameExecStrategy(skip, skip)
    strategy = wholly if within else eval_frame._FrameExecStrategy(skip, default)
    for function in functions:
        eval_frame.set_code_exec_strategy(function.__code__, strategy)
    eval_frame.set_code_exec_strategy(traces.__code__, wholly)  # it is what they ask first


def apart(function: Callable[..., None]) -> Callable[..., None]:
    """`function`, for calls between graphs to run as it is, with all that it calls. An older torch takes a wrapper for that.

    Without it torch 2.6 compiles what hears of a module that is still being made, and fails.
    """
    if hasattr(eval_frame, "set_code_exec_strategy"):
        leave_alone((function,))
        return function
    older: Any = eval_frame

    def uncompiled(*args: Any) -> None:
        callback = older.set_eval_frame(None)
        try:
            function(*args)
        finally:
            older.set_eval_frame(callback)

    older.skip_code(uncompiled.__code__)
    return uncompiled


def plain(path: str) -> str:
    """The path of a module or parameter as it is without the wrappers that torch.compile and checkpointing put around modules."""
    return _WRAPPER.sub("", path)


_NAMES = "(?:_orig_mod|_checkpoint_wrapped_module)"
_WRAPPER = re.compile(rf"(?<![^.]){_NAMES}(\.|$)|(?:\.{_NAMES})+$")


def has_compiled_parts(model: nn.Module) -> bool:
    """Whether the model or modules in it were given to torch.compile as such."""
    return any(module._compiled_call_impl is not None or "_orig_mod" in module._modules for module in model.modules())


def serves_several(model: nn.Module, path: str, calls: Mapping[str, int]) -> bool:
    """Whether the module at `path` lies inside one that is compiled by itself and runs several times in a pass.

    Which of its calls a graph is in would be a Python number of ours, and a graph of its own for each.
    """
    parts = path.split(".")
    above = (".".join(parts[:i]) for i in range(1, len(parts)))
    return any(
        calls.get(outer, 0) > 1 and (outer.endswith("_orig_mod") or model.get_submodule(outer)._compiled_call_impl is not None)
        for outer in above
    )


def is_of_graph(frame: FrameType | None) -> bool:
    """Whether `frame` is of a graph that runs as torch calls, as backend="eager" leaves it, and not of the model's own code."""
    if frame is None or not frame.f_code.co_filename.startswith(_GENERATED):
        return False
    while frame is not None and frame.f_globals.get("__name__") != "torch._dynamo.eval_frame":
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_fn"  # the way into a graph; that of a compiled call has another name


_GENERATED = "<eval_with_key>"  # the files, as they are called, of torch.fx's code


def is_made(model: nn.Module) -> bool:
    """Whether the forward of some module of `model` has been compiled, as a frame of its own."""
    if not is_loaded():
        return False
    codes = {getattr(getattr(type(module), "forward", None), "__code__", None) for module in model.modules()}
    return any(eval_frame._debug_get_cache_entry_list(code) for code in codes if code is not None)


def is_around() -> bool:
    """Whether this runs inside a function that torch.compile has wrapped, also while a `Pause` has that run eagerly."""
    frame = sys._getframe() if is_loaded() else None
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch._dynamo.eval_frame":
            return True
        frame = frame.f_back
    return False


def is_anything_made() -> bool:
    """Whether any code in this process has been compiled."""
    if not is_loaded():
        return False
    from torch._dynamo.convert_frame import input_codes

    return any(eval_frame._debug_get_cache_entry_list(code) for reference in input_codes.seen if (code := reference()) is not None)


def _stance() -> Any:
    """The compiler's, whoever has set it; one exists where the compiler is loaded."""
    return torch._dynamo.eval_frame._stance


class Pause:
    """While anybody holds it everything runs eagerly that torch.compile has wrapped, hooks and all."""

    def __init__(self) -> None:
        self._holders: set[int] = set()
        self._stance: Any = None

    def hold(self, holder: object) -> None:
        self._holders.add(id(holder))
        if not self and is_loaded():
            self._let_go()  # of one that a stance of the loop's has taken away
            self._stance = torch.compiler.set_stance("force_eager")

    def release(self, holder: object) -> None:
        # Not inside of a pass: a compiled call that found the compiler pausing must find it so when it returns.
        self._holders.discard(id(holder))
        if not self._holders:
            self._let_go()

    def _let_go(self) -> None:
        ours, self._stance = self._stance, None
        if ours is None:
            return
        if ours.stance is _stance():
            ours.__exit__(None, None, None)
        else:  # the loop's own lies upon it, and what that puts back when it ends is to be what was there before ours
            vars(ours.stance).update(vars(ours.prev))

    def __bool__(self) -> bool:
        return self._stance is not None and _stance().stance == "force_eager"


class HookGuards:
    """While anybody holds it graphs are guarded on modules having no hooks, too.

    Without that guard, which torch leaves away because it costs some time, the graph of a model that has none serves another
    model of the same class that has some.
    """

    def __init__(self) -> None:
        self._holders: set[int] = set()
        self._skipped = True

    def hold(self, holder: object) -> None:
        if id(holder) in self._holders:
            return
        config: Any = torch._dynamo.config
        if not self._holders:
            self._skipped = config.skip_nnmodule_hook_guards
            config.skip_nnmodule_hook_guards = False
        self._holders.add(id(holder))

    def release(self, holder: object) -> None:
        if id(holder) in self._holders:
            self._holders.discard(id(holder))
            if not self._holders:
                config: Any = torch._dynamo.config
                config.skip_nnmodule_hook_guards = self._skipped


TOO_EARLY = (
    "torch.compile had made code before resmon's hooks were on the model, and that code would not call them. All compiled code of "
    "this process is made again when it is called next; call resmon.watch before the first compiled call to be spared that"
)
ANEW = (
    "a pass took another way through a compiled model than those before, or ran modules that had not run yet, and hooks were put "
    "on anew. All compiled code of this process is made again when it is called next"
)
TOO_OLD = (
    "the blocks of models that are compiled, wholly or in part, are not observed with torch "
    f"{torch.__version__}: that takes {IN_GRAPHS[0]}.{IN_GRAPHS[1]} or newer. Training, and the record of its steps and gradients, "
    "go on; upgrade torch, or train without torch.compile"
)
PAUSE = Pause()
_GUARDS = HookGuards()


class Watched(Protocol):
    """A model, as far as the compiler concerns it."""

    compiled: bool
    outdated: str
    inlined: bool

    def step_over(self) -> str: ...
    @property
    def traced(self) -> bool: ...
    @property
    def wants_pause(self) -> bool: ...


class Compiler:
    """Has the compiler pause, and forget, at the steps' ends when the models of a session need it."""

    def __init__(self, models: Sequence[Watched]) -> None:
        self._models = models
        self._forgot = False

    def attach(self) -> None:
        if is_loaded() and OBSERVES:
            PAUSE.hold(self)
            _GUARDS.hold(self)

    def detach(self) -> None:
        PAUSE.release(self)
        _GUARDS.release(self)

    def step_over(self, *, seen: bool) -> str | None:
        """A step is over, in which a pass was seen or not. Returns what is to be said about it."""
        if not is_loaded():
            return None
        if not OBSERVES:
            return TOO_OLD if any(model.compiled or model.wants_pause for model in self._models) else None
        _GUARDS.hold(self)
        outdated = dict.fromkeys([model.outdated for model in self._models if model.outdated])
        # No hook of ours has run: perhaps because the code that called the model was compiled before they were there.
        unheard = not seen and not PAUSE and not self._forgot and all(model.traced for model in self._models) and is_anything_made()
        news: list[str] = []
        if outdated or unheard:
            torch.compiler.reset()
            self._forgot = True
            news += outdated or (TOO_EARLY,)
        for model in self._models:
            news.append(model.step_over())
            model.outdated, model.inlined = "", False
        if any(model.wants_pause for model in self._models):
            PAUSE.hold(self)
        else:
            PAUSE.release(self)
        return "; ".join(filter(None, news)) or None
