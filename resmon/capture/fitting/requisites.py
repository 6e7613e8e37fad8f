"""What a model will take in memory while it trains, block by block: weights, gradients, optimizer, and what backward needs kept.

Activations are the tensors that autograd saves in a pass, each storage once, without parameters and buffers; what the allocator
rounds up and what kernels take for a moment comes on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resmon.capture.discovery.dataflow import Frame
from resmon.capture.fitting.rehearsal import Ground, Outcome, Rehearsal
from resmon.capture.fitting.trials import batch_of
from resmon.capture.host.compiler import plain

ADAM_STATES = 2  # tensors as large as the parameter: both moments


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes that one block takes; `name` is "" for what is outside of all blocks. A parameter counts for the first that has it."""

    name: str
    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True, slots=True)
class Requisites:
    """The shares of all blocks in order of execution, and last what is outside of them."""

    batch: int | None
    shares: tuple[Share, ...]

    @property
    def whole(self) -> Share:
        sums = (
            sum(getattr(share, name) for share in self.shares) for name in ("parameters", "gradients", "optimizer", "activations")
        )
        return Share("", *sums)


def of_pass(ground: Ground, outcome: Outcome) -> tuple[Outcome, Requisites]:
    """Rehearse the pass once more as it came to this outcome, and count."""
    saved = _Saved(ground)
    outcome = ground.rehearse(outcome.taken or None, around=saved.around)
    return outcome, Requisites(batch_of(ground), tuple(_shares(ground, outcome, saved)))


class _Saved:
    """What autograd saves, and in whose forward."""

    def __init__(self, ground: Ground) -> None:
        tensors = (*ground.model.parameters(), *ground.model.buffers())
        self._known = {t.untyped_storage()._cdata for t in tensors if not torch.nn.parameter.is_lazy(t)}
        self.found: list[tuple[int, tuple[Frame, ...], int]] = []  # bytes, the modules around, and how many sites came before
        self._kept: list[Tensor] = []  # so that no storage is taken for another that lay at the same address

    @contextmanager
    def around(self, trace: Rehearsal) -> Iterator[None]:
        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self._kept.append(tensor.detach())
                self.found.append((storage.nbytes(), tuple(trace.stack), trace.seen))
            return tensor

        def unpack(tensor: Any) -> Any:
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield


def _shares(ground: Ground, outcome: Outcome, saved: _Saved) -> Iterator[Share]:
    activations = dict.fromkeys(["", *(site.name for site in outcome.sites)], 0)
    for size, frames, seen in saved.found:
        activations[_under_way(outcome, frames, seen)] += size
    owner: dict[str, str] = {}
    for site in outcome.sites:
        for name in site.parameters:
            owner.setdefault(name, site.name)
    weights = dict.fromkeys(activations, 0)
    gradients = dict.fromkeys(activations, 0)
    for name, parameter in ground.model.named_parameters():
        size = parameter.numel() * parameter.element_size()
        block = owner.get(plain(name), "")
        weights[block] += size
        gradients[block] += size * parameter.requires_grad
    for name in (*(site.name for site in outcome.sites), ""):
        yield Share(name, weights[name], gradients[name], ADAM_STATES * gradients[name], activations[name])


def _under_way(outcome: Outcome, frames: Sequence[Frame], seen: int) -> str:
    """The block that an operation belongs to which ran inside of these modules when so many sums had been seen."""
    path = plain(frames[-1].path) if frames else ""
    coming = list(zip(outcome.sites, outcome.survey.sightings, strict=True))[seen:]
    for site, _ in coming:
        if path and any(
            part == path or part.startswith(f"{path}.") or path.startswith(f"{part}.")
            for part in (*site.branch, *site.skip)
            if part
        ):
            return site.name
    for site, sighting in coming[:1]:
        if sighting.frame in frames and (sighting.frame.path or seen):
            return site.name
    # Behind a block's sum, as its last activation.
    for site, sighting in reversed(list(zip(outcome.sites, outcome.survey.sightings, strict=True))[:seen]):
        if path and sighting.frame in frames and sighting.frame.path:
            return site.name
    return ""
