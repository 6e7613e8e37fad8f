"""The layers that end branches, whose inputs are looked at for units that are never active.

A hook is on such a layer only during a pass in which it is its site's turn: what is not there costs nothing. Models that
torch.compile has parts of are left alone, for a hook that comes and goes is a new graph each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import get_ident
from time import perf_counter
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from resmon.capture.host import compiler
from resmon.capture.host.hook import Hook
from resmon.capture.probes.channel import Channel
from resmon.capture.probes.positions import Sampling
from resmon.capture.probes.taps import Watcher


@dataclass(frozen=True, slots=True)
class Layer:
    """The last linear map or convolution of a site's branch; `axis` is the dimension of its input that holds units."""

    module: nn.Module
    axis: int
    channel: Channel


def last_layer(modules: Sequence[nn.Module], channel: Channel) -> Layer | None:
    """That of a branch whose modules with parameters are these, in order of execution; None where none has a matrix or kernel."""
    for module in reversed(modules):
        sizes = [parameter.dim() for parameter in module._parameters.values() if parameter is not None]
        if max(sizes, default=0) > 1:
            return Layer(module, 1 if max(sizes) > 2 else -1, channel)
    return None


class Looks:
    """Puts hooks on layers for one pass at a time."""

    def __init__(self, watcher: Watcher, sampling: Sampling) -> None:
        self._watcher = watcher
        self._sampling = sampling
        self._handles: list[RemovableHandle] = []
        self.layers: Sequence[Layer] = ()

    def begin_pass(self) -> None:
        for layer in self.layers:
            if self._sampling.is_turn(layer.channel.turn):
                self._handles.append(layer.module.register_forward_pre_hook(_Look(self._watcher, layer)))

    def end_pass(self) -> None:
        """Also where none has begun."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Look(Hook):
    def __init__(self, watcher: Watcher, layer: Layer) -> None:
        self._watcher = watcher
        self._layer = layer

    def __call__(self, module: nn.Module, args: Any) -> None:
        if compiler.traces() or not self._watcher.active or self._watcher.thread != get_ident():
            return
        if not args or not isinstance(args[0], Tensor):
            return
        started = perf_counter()
        try:
            self._layer.channel.take_units(args[0], self._layer.axis)
        except Exception as error:
            self._watcher.fault(error)
        self._watcher.seconds += perf_counter() - started
