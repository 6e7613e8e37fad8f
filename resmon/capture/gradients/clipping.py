"""Gradient clipping, heard where torch does it.

`clip_grad_norm_` ends in `_clip_grads_with_norm_` however it was imported, and so do the trainers that call it. A
`clip_grads_with_norm_` or `clip_grad_value_` that a script imported by name before it called `watch` is not heard.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from resmon.capture.host.interception import Function, Interception
from resmon.capture.host.placement import local


class Clipped(Protocol):
    """Who hears of clipping."""

    def before_clipping(self, parameters: Sequence[Tensor]) -> None: ...

    def after_clipping(self, coefficient: Tensor | None) -> None:
        """The gradients of the parameters named before were multiplied with `coefficient`, or, None, with what one must measure."""


def _by_norm(
    listeners: Sequence[Clipped],
    original: Function,
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    total_norm: Tensor,
    foreach: bool | None = None,
) -> None:
    parameters = _listed(parameters)
    for listener in listeners:
        listener.before_clipping(parameters)
    original(parameters, max_norm, total_norm, foreach)
    coefficient = None
    norm, share = local(total_norm)
    if share.known:  # else it would have to be gathered first, and resmon asks nothing of other ranks
        with torch.no_grad():  # as torch itself computes it, so that it is the same number in any dtype and stays on its device
            coefficient = torch.clamp(float(max_norm) / (norm + 1e-6), max=1.0)
    for listener in listeners:
        listener.after_clipping(coefficient)


def _by_value(
    listeners: Sequence[Clipped],
    original: Function,
    parameters: Tensor | Iterable[Tensor],
    clip_value: float,
    foreach: bool | None = None,
) -> None:
    parameters = _listed(parameters)
    for listener in listeners:
        listener.before_clipping(parameters)
    original(parameters, clip_value, foreach)
    for listener in listeners:
        listener.after_clipping(None)


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)  # a generator can be read once


def _places(*names: str) -> list[tuple[Any, str]]:
    return [(owner, name) for owner in (nn.utils.clip_grad, nn.utils) for name in names if hasattr(owner, name)]


BY_NORM: Interception[Clipped] = Interception(lambda: _places("_clip_grads_with_norm_", "clip_grads_with_norm_"), _by_norm)
BY_VALUE: Interception[Clipped] = Interception(lambda: _places("clip_grad_value_"), _by_value)
