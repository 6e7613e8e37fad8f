"""What lies on a way of values, in words: the operations of a branch, of a projection, and of what follows a sum.

A module without modules of its own is one operation, called by its class; anything else by the function's name. Behind it stands
the shape of the first parameter that it reads: `BatchNorm2d[16]`, `relu`, `Conv2d[32,16,3,3]`. So a block tells, long after its
model is gone, whether it normalises before or after its weights, how wide it is inside, and what scales it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from resmon.capture.discovery.dataflow import Node
from resmon.capture.discovery.rule import REARRANGING
from resmon.capture.host.compiler import plain

LONGEST = 32  # operations of a way; a long way between two blocks is no property of either

# They choose among values or arrange them anew, and say little of what a block is.
_ARRANGING = REARRANGING | frozenset("__getitem__ chunk split tensor_split unbind expand expand_as repeat subsample".split())


class Operations:
    """Names the operations of a model's traced passes."""

    def __init__(self, model: nn.Module) -> None:
        self._classes = {
            plain(path): type(module).__name__
            for path, module in model.named_modules()
            if isinstance(module, nn.MultiheadAttention) or not any(True for _ in module.children())
        }
        self._shapes = {
            plain(name): tuple(parameter.shape)
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if not torch.nn.parameter.is_lazy(parameter)
        }

    def of(self, way: Sequence[Node], holder: str, factor: float = 1) -> tuple[str, ...]:
        """Those of the values on `way`, in order of execution. `holder` is the path of the module that holds the add: what runs in
        itself is told function by function. `factor` is what the end of the way is multiplied with by the add.
        """
        found: list[tuple[object, str, str]] = []  # what makes it one operation, its name, its parameter's shape
        for node in way:
            path = plain(node.frame.path) if node.frame else ""
            name = self._classes.get(path, "") if path != holder else ""
            call = (path, node.frame.call) if name and node.frame else node
            shape = self._shape(node)
            if found and found[-1][0] == call:
                found[-1] = (call, found[-1][1], found[-1][2] or shape)
            elif name or node.op not in _ARRANGING:
                found.append((call, name or node.op.rstrip("_") or node.op, shape))
        words = [name + shape for _, name, shape in found]
        if factor != 1:
            words.append(f"×{factor:g}")
        return (*words[: LONGEST - 1], "…") if len(words) > LONGEST else tuple(words)

    def _shape(self, node: Node) -> str:
        for parent in node.parents:
            for name in sorted(parent.parameters) if not parent.live else ():
                if name in self._shapes:
                    return f"[{','.join(map(str, self._shapes[name]))}]"
        return ""
