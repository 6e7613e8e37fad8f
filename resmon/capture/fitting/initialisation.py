"""Initial weights with which a model cannot learn well: not finite, all equal, or far too large for what they sum over.

Zeros at the end of a branch are healthy (a block that begins as the identity), so they are in the last layer of all, and where the
branch goes by that layer, too (an adapter, a gate). What is judged besides is the weights of linear maps and convolutions only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from resmon.capture.discovery.survey import Sighting
from resmon.capture.fitting.fixes import layer_of
from resmon.capture.host.compiler import plain
from resmon.capture.host.stack import block_of
from resmon.records import ResidualSite

# A layer multiplies the standard deviation of what it is given by std x sqrt(fan-in): 1.4 for He's initialisation, 1 for LeCun's,
# 0.58 for torch's own. Ten such layers of gain 10 leave float16's range.
LARGEST_GAIN = 10.0


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter or buffer and what is wrong with its initial value."""

    name: str
    block: str
    level: Literal["error", "warning"]
    says: str
    do: str


def suspicious(
    model: nn.Module, sites: Sequence[ResidualSite], order: Sequence[str], sightings: Sequence[Sighting]
) -> Iterator[Weight]:
    """Weights to look at. `order` is that in which modules ran, of which the last with parameters may begin at zero; `sightings`
    are those of the sites."""
    modules = {plain(path): module for path, module in model.named_modules()}
    last = next((path for path in reversed(order) if path in modules and modules[path]._parameters), "")
    ends = {last}
    for site in sites:
        shaping = [path for path in site.branch if path in modules and _shapes(modules[path])]
        ends.update(shaping[-1:])
    inside = {path: [sighting for sighting in sightings if path in sighting.branch_modules] for path in modules}
    ends |= {path for path, around in inside.items() if around and all(_goes_by(each, path) for each in around)}
    for path, module in modules.items():
        for own, held in ((True, module._parameters), (False, module._buffers)):
            for key, tensor in held.items():
                if tensor is None or torch.nn.parameter.is_lazy(tensor) or not tensor.is_floating_point() or not tensor.numel():
                    continue
                name = f"{path}.{key}" if path else key
                said = _of(module, key, tensor.detach(), own, path in ends)
                if said is not None:
                    level, says, do = said
                    yield Weight(name, block_of(sites, "", path), level, f"{name} {says}", do)


def _goes_by(sighting: Sighting, path: str) -> bool:
    """Whether a branch has a way from the skip to the sum that leaves out what the module at `path` gives."""
    reached = {sighting.residual.shared}
    for node in sighting.residual.branch:
        made_there = any(place.side == "out" and plain(place.frame.path) == path for place in node.places)
        if not made_there and not reached.isdisjoint(node.parents):
            reached.add(node)
    return sighting.branch in reached


def _of(
    module: nn.Module, key: str, tensor: Tensor, own: bool, is_end: bool
) -> tuple[Literal["error", "warning"], str, str] | None:
    if own and not bool(torch.isfinite(tensor).all()):
        bad = f"has {int((~torch.isfinite(tensor)).sum()):,} values of {tensor.numel():,} that are not finite"
        return "error", bad, "See what initialises it: torch.empty is not zeros."
    if not own or key != "weight" or tensor.dim() < 2 or min(tensor.shape[:2]) < 2:
        return None
    if not _shapes(module):
        return None
    low, high = (float(each) for each in torch.aminmax(tensor))
    if low == high == 0:
        if is_end:
            return None
        return (
            "warning",
            "is all zeros, and is not the last layer of a branch",
            "Nothing passes, and what is before it gets no gradient.",
        )
    if low == high:
        return (
            "error",
            f"is {low:g} everywhere, so that all its units are one",
            "Initialise it at random; their gradients are the same for ever.",
        )
    fan_in = math.prod(tensor.shape[1:])
    if isinstance(module, _ConvTransposeNd):
        fan_in = tensor.shape[0] * math.prod(tensor.shape[2:])
    elif not isinstance(module, (nn.Linear, _ConvNd)):  # transformers' Conv1D, [in, out]
        fan_in = tensor.shape[0]
    deviation = float(tensor.double().std())
    gain = deviation * math.sqrt(fan_in)
    if gain > LARGEST_GAIN:
        says = f"has a standard deviation of {deviation:.3g} over {fan_in:,} inputs: it multiplies what it is given by {gain:.3g}"
        return "error", says, f"Usual is {math.sqrt(2 / fan_in):.2g} (nn.init.kaiming_normal_)."
    return None


def _shapes(module: nn.Module) -> bool:
    """Whether it is a linear map or a convolution."""
    layer = layer_of(module)
    return layer is not None and layer.inputs != layer.outputs
