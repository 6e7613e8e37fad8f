"""The residual sites of a model, found in one forward pass that leaves no trace."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn

from resmon.capture.discovery.dataflow import Trace
from resmon.capture.discovery.survey import Hidden, Names, Survey, hidden, is_watched, tell
from resmon.capture.host.compiler import PAUSE
from resmon.capture.host.placement import class_name
from resmon.capture.host.randomness import kept
from resmon.errors import ConfigurationError, DiscoveryError
from resmon.records import ResidualSite


def discover(
    model: nn.Module, *args: Any, include: str | Sequence[str] = (), exclude: str | Sequence[str] = (), **kwargs: Any
) -> list[ResidualSite]:
    """Find the residual adds of `model` in one forward pass, `model(*args, **kwargs)`, in order of execution.

    The pass runs in the mode that the model is in, with gradients enabled. Buffers, gradients, random state (torch, numpy,
    Python) and hooks are afterwards as before. `include` and `exclude` take module patterns as `watch` does. An empty list
    means that the pass holds no residual add. A UserWarning tells of residual additions that cannot
    be observed, and what to write instead.

    Raises DiscoveryError where the pass fails, with what the forward would have needed, or cannot be seen; ConfigurationError where
    `model` is no nn.Module, or the patterns are none.
    """
    sites, unseen = look(model, args, kwargs, _patterns("include", include), _patterns("exclude", exclude))
    for sentence in tell(unseen, class_name(model)):
        warnings.warn(sentence, stacklevel=2)
    return sites


def look(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[list[ResidualSite], list[Hidden]]:
    """What `discover` finds, and the residual additions that cannot be observed."""
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"discover needs a torch.nn.Module, got {type(model).__name__}. Pass the model itself.")
    if isinstance(model, torch.jit.ScriptModule):
        raise DiscoveryError(
            f"{type(model).__name__} is TorchScript, whose operations cannot be seen. Pass the module it was made of."
        )
    survey = Survey()
    trace = Trace(model, survey)
    PAUSE.hold(trace)
    with _as_before(model), torch.enable_grad(), _looking():
        hook = model.register_forward_pre_hook(lambda _, a, k: trace.begin(a, k), with_kwargs=True)
        try:
            output = model(*args, **kwargs)
            trace.finish(output)
        except Exception as error:
            raise DiscoveryError(_explain(model, args, kwargs, error)) from error
        finally:
            hook.remove()
            trace.finish(None)
            PAUSE.release(trace)
    counting = [sighting for sighting in survey.sightings if sighting.counts]
    sites = [site for site in Names(model).sites(counting) if is_watched(site, include, exclude)]
    return sites, [each for each in hidden(trace.fused) if is_watched(each, include, exclude)]


_LOOKING: set[int] = set()


@contextmanager
def _looking() -> Iterator[None]:
    _LOOKING.add(get_ident())
    try:
        yield
    finally:
        _LOOKING.discard(get_ident())


def is_looking() -> bool:
    """Whether a model is looked at in this thread: its pass is none of a training's."""
    return get_ident() in _LOOKING


def _patterns(name: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """Module patterns as `watch` takes them: one text with commas between, or several."""
    if isinstance(given, str):
        return tuple(part.strip() for part in given.split(",") if part.strip())
    if not isinstance(given, Sequence) or not all(isinstance(each, str) for each in given):
        raise ConfigurationError(f"{name}= takes module patterns, got {given!r}. Pass them as text, such as {name}=('blocks.*',).")
    return tuple(given)


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Puts back the random states and the buffers, tensors that were replaced by others included."""
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with kept():
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _explain(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> str:
    name = type(model).__name__
    given = ", ".join([*(_describe(a) for a in args), *(f"{k}={_describe(v)}" for k, v in kwargs.items())]) or "no inputs"
    message = f"the forward pass of {name} failed with {given}: {type(error).__name__}: {error}."
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return message
    needed = [
        p
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [p.name for p in needed[len(args) :] if p.name not in kwargs]
    if missing:
        message += f" Not given: {', '.join(missing)}."
    example = ", ".join(f"{p.name}={p.name}" if p.kind is p.KEYWORD_ONLY else p.name for p in needed)
    return f"{message} forward takes {signature}; pass what it needs: resmon.discover(model, {example or '...'})."


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    return type(value).__name__
