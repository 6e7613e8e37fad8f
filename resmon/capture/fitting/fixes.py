"""What would make a misfit fit: layers to change or to add, as code that can be pasted, tried out on the stand-ins first.

Of a sum either side may be wrong, of a layer and what it is given either may. Every change that could mend it is a `Fix`; each is
applied to the model of the rehearsal, and the first after which most of the model fits is the best. Between those that do equally
well the one wins that makes a layer like its siblings, the layers at the same place in the other blocks.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from resmon.capture.discovery import rule
from resmon.capture.discovery.dataflow import Node
from resmon.capture.discovery.survey import _owners
from resmon.capture.fitting.mends import Shape, aligned
from resmon.capture.fitting.rehearsal import Ground, Mismatch, Outcome
from resmon.capture.host.compiler import plain

MOST_TRIED = 8
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as one would write it down: its class and the arguments that are not what they would be anyway.

    `inputs` and `outputs` are the names of the arguments that size its input and output.
    """

    kind: type[nn.Module]
    sizes: tuple[tuple[str, Any], ...]  # written without their names
    options: tuple[tuple[str, Any], ...] = ()
    inputs: str = ""
    outputs: str = ""

    @property
    def code(self) -> str:
        prefix = "nn." if self.kind.__module__.startswith("torch.nn.modules") else ""
        arguments = [_literal(value) for _, value in self.sizes]
        arguments += [f"{name}={_literal(value)}" for name, value in self.options]
        return f"{prefix}{self.kind.__name__}({', '.join(arguments)})"

    @property
    def manner(self) -> tuple[Any, ...]:
        """What it does whatever its sizes are."""
        kept = tuple(each for each in self.sizes if each[0] not in (self.inputs, self.outputs))
        return self.kind, kept, self.options

    def make(self, device: torch.device | str = "cpu") -> nn.Module:
        with torch.device(device):
            return self.kind(*(value for _, value in self.sizes), **dict(self.options))

    def get(self, name: str, default: Any = None) -> Any:
        return dict(self.sizes + self.options).get(name, default)

    def but(self, **changes: Any) -> Layer:
        """With other arguments; one that was left away so far comes behind the others."""
        sizes = tuple((name, changes.pop(name, value)) for name, value in self.sizes)
        options = dict(self.options) | changes
        defaults = _defaults(self.kind)
        order = list(defaults)
        kept = {name: value for name, value in options.items() if value != defaults.get(name)}
        return replace(self, sizes=sizes, options=tuple(sorted(kept.items(), key=lambda item: order.index(item[0]))))


@dataclass(frozen=True, slots=True)
class Fix:
    """Layers to put in the place of those at these paths, or, where `added`, one more of its own on the skip."""

    layers: tuple[tuple[str, Layer], ...]
    added: bool = False
    works: bool = False  # tried out: what did not fit does, and nothing else stopped fitting

    @property
    def code(self) -> str:
        return "; ".join(layer.code if self.added else f"{path} = {layer.code}" for path, layer in self.layers)


def best_fixes(ground: Ground, outcome: Outcome, number: int) -> list[Fix]:
    """Fixes of the `number`-th mismatch of an outcome, the best first."""
    mismatch = outcome.mismatches[number]
    modules = {plain(path): module for path, module in ground.model.named_modules()}
    candidates = list(dict.fromkeys(_candidates(mismatch, modules)))[:MOST_TRIED]
    ranked = []
    for preference, fix in enumerate(candidates):
        left = _left(ground, outcome, number, fix)
        works = left is not None and left < outcome.misfits
        unlike = min(_unlikeness(path, layer, modules) for path, layer in fix.layers)
        ranked.append((left if works and left is not None else outcome.misfits, unlike, preference, replace(fix, works=works)))
    return [fix for *_, fix in sorted(ranked, key=lambda entry: entry[:3])]


def _left(ground: Ground, outcome: Outcome, number: int, fix: Fix) -> int | None:
    """How many misfits are left with a fix; None where it cannot be."""
    before = outcome.taken[:number]
    try:
        if fix.added:
            way = _with_projection(ground, outcome.mismatches[number], fix.layers[0][1])
            return None if way is None else ground.rehearse((*before, way)).misfits - 1
        with _applied(ground, fix):
            # The misfit is gone, and those behind it are mended as before; or it is still there.
            passes = (ground.rehearse(before + outcome.taken[number + 1 :]), ground.rehearse(outcome.taken))
            return min(made.misfits for made in passes)
    except Exception:  # a layer that cannot be made so, such as one of 10 channels in 4 groups
        return None


def _with_projection(ground: Ground, mismatch: Mismatch, projection: Layer) -> int | None:
    """The way to go on that a projection on the skip would open; None where what it makes does not fit."""
    side = _skip(mismatch)
    if side is None:
        return None
    skip, branch = mismatch.operands[side], mismatch.operands[1 - side]
    with ground.inside():
        made = projection.make(skip.tensor.device)
        if made(torch.zeros(skip.shape, device=skip.tensor.device)).shape != branch.tensor.shape:
            return None
    return next((i for i, way in enumerate(mismatch.ways) if way.wrong == side), None)


@contextmanager
def _applied(ground: Ground, fix: Fix) -> Iterator[None]:
    paths = {plain(path): path for path, _ in ground.model.named_modules()}
    before = []
    try:
        for path, layer in fix.layers:
            parent, _, name = paths[path].rpartition(".")
            holder = ground.model.get_submodule(parent)
            old = holder._modules[name]
            assert old is not None  # noqa: S101, it has a path
            before.append((holder, name, old))
            own = next(iter(old.parameters()), None)
            with ground.inside():
                made = layer.make("cpu" if own is None else own.device).train(old.training)
            holder._modules[name] = made
        yield
    finally:
        for holder, name, old in before:
            holder._modules[name] = old


# -- what could mend it ------------------------------------------------------------------------------------------------


def _skip(mismatch: Mismatch) -> int | None:
    return None if mismatch.residual is None else 0 if mismatch.residual.skip_is_first else 1


def _candidates(mismatch: Mismatch, modules: dict[str, nn.Module]) -> Iterator[Fix]:
    if len(mismatch.operands) < 2:
        return
    first, second = (operand.shape for operand in mismatch.operands)
    side = _skip(mismatch)
    if side is not None and mismatch.residual is not None:
        residual = mismatch.residual
        skip, branch = (second, first) if side else (first, second)
        of_branch = _owners(rule.parameters(residual.shared, residual.branch))
        of_skip = _owners(rule.parameters(residual.shared, residual.skip))
        on_skip = list(_chain_fixes(of_skip, skip, branch, modules)) if of_skip else []
        if not of_skip:
            on_skip = list(_projections(skip, branch, of_branch, modules))
        on_branch = list(_chain_fixes(of_branch, branch, skip, modules))
        yield from on_skip + on_branch if mismatch.wrong in (side, None) else on_branch + on_skip
        return
    consumer = modules.get(mismatch.module)
    if isinstance(consumer, nn.MultiheadAttention):
        yield from _of_attention(mismatch, consumer, modules)
        return
    layer = None if consumer is None else layer_of(consumer)
    x, other = mismatch.operands
    producers = _producers(x.node)
    if layer is not None and layer.inputs and mismatch.operation in _OF_LAYERS:
        axis = _channel_axis(layer, len(x.shape))
        expected = layer.get(layer.inputs)
        actual = x.shape[axis]
        if isinstance(expected, tuple):
            expected = expected[-1]
        own = [Fix(((mismatch.module, changed),))] if (changed := _sized(layer, actual)) else []
        theirs = list(_chain_fixes(producers, x.shape, _changed(x.shape, axis, expected), modules))
        yield from theirs + own if mismatch.wrong == 0 and len(mismatch.ways) > 1 else own + theirs
        return
    fixes = [
        list(_chain_fixes(_producers(operand.node), operand.shape, wanted, modules))
        for operand, wanted in ((x, aligned(first, second)), (other, aligned(second, first)))
    ]
    yield from fixes[1] + fixes[0] if mismatch.wrong == 1 else fixes[0] + fixes[1]


def _of_attention(mismatch: Mismatch, attention: nn.MultiheadAttention, modules: dict[str, nn.Module]) -> Iterator[Fix]:
    path, width = f"{mismatch.module}.out_proj", attention.embed_dim
    last = _known(modules, path)
    if last is not None and (changed := last.but(in_features=width, out_features=width)) != last:
        yield Fix(((path, changed),))
    x = mismatch.operands[0]
    if x.shape[-1] != width:
        yield from _chain_fixes(_producers(x.node), x.shape, (*x.shape[:-1], width), modules)


_OF_LAYERS = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm instance_norm layer_norm rms_norm "
    "group_norm addmm".split()
)


def _changed(shape: Shape, axis: int, size: int) -> Shape:
    made = list(shape)
    made[axis] = size
    return tuple(made)


def _producers(node: Node) -> tuple[str, ...]:
    """The modules that made a value since the residual stream, or a tensor that several read, in order of execution."""
    names: list[str] = []
    while True:
        names[:0] = sorted(name for parent in node.parents if not parent.live for name in parent.parameters)
        live = [parent for parent in node.parents if parent.live]
        if len(live) > 1:  # what is as large is scaled by the others, as in a norm that is written out
            live = [parent for parent in live if parent.numel == node.numel]
        if node.carries is not None or len(live) != 1:
            break
        node = live[0]
    return _owners(names)


def _projections(skip: Shape, branch: Shape, of_branch: Sequence[str], modules: dict[str, nn.Module]) -> Iterator[Fix]:
    """A layer for a skip that has none and needs one."""
    if len(skip) != len(branch):
        return
    last = next((layer for path in reversed(of_branch) if (layer := _known(modules, path)) and layer.outputs), None)
    if last is not None and issubclass(last.kind, (_ConvNd, _BatchNorm, nn.GroupNorm)) and 3 <= len(skip) <= 5:
        yield from _convolutions(skip, branch)
        yield from _linears(skip, branch)
    else:
        yield from _linears(skip, branch)
        if last is None and 3 <= len(skip) <= 5:
            yield from _convolutions(skip, branch)


def _linears(skip: Shape, branch: Shape) -> Iterator[Fix]:
    if skip[:-1] == branch[:-1]:
        sizes = (("in_features", skip[-1]), ("out_features", branch[-1]))
        yield Fix((("", Layer(nn.Linear, sizes, (("bias", False),), "in_features", "out_features")),), added=True)


def _convolutions(skip: Shape, branch: Shape) -> Iterator[Fix]:
    dims = len(skip) - 2
    if skip[0] != branch[0]:
        return
    channels = (("in_channels", skip[1]), ("out_channels", branch[1]))
    strides = [_stride(a, b) for a, b in zip(skip[2:], branch[2:], strict=True)]
    if all(strides):
        layer = Layer(_CONVOLUTIONS[dims], (*channels, ("kernel_size", 1)), (("bias", False),), "in_channels", "out_channels")
        stride = tuple(s for s in strides if s)
        yield Fix((("", layer.but(stride=stride[0] if len(set(stride)) == 1 else stride)),), added=True)
    elif all(b % a == 0 for a, b in zip(skip[2:], branch[2:], strict=True)):
        factors = tuple(b // a for a, b in zip(skip[2:], branch[2:], strict=True))
        factor: Any = factors[0] if len(set(factors)) == 1 else factors
        options = (("stride", factor), ("bias", False))
        yield Fix((("", Layer(_TRANSPOSED[dims], (*channels, ("kernel_size", factor)), options)),), added=True)


def _stride(size: int, wanted: int) -> int | None:
    """The stride with which a kernel of 1 makes `wanted` positions of `size`."""
    return next((s for s in range(1, size + 1) if (size - 1) // s + 1 == wanted), None)


def _chain_fixes(paths: Sequence[str], shape: Shape, wanted: Shape, modules: dict[str, nn.Module]) -> Iterator[Fix]:
    """Changes to modules that run one after the other, after which their end has the wanted shape."""
    if len(shape) != len(wanted) or (len(shape) > 1 and shape[0] != wanted[0]):
        return
    chain = [(path, layer) for path in paths if (layer := _known(modules, path))]
    shaping = [i for i, (_, layer) in enumerate(chain) if layer.inputs != layer.outputs]
    if not shaping:
        return
    last = shaping[-1]
    differing = [i for i, (a, b) in enumerate(zip(shape, wanted, strict=True)) if a != b]
    axis = _channel_axis(chain[last][1], len(shape)) % len(shape)
    made = chain[last][1].get(chain[last][1].outputs)
    if axis not in differing and len(differing) == 1 and shape[differing[0]] == made:
        axis = differing[0]  # turned round behind the layer, as where tokens are mixed
    channels: dict[int, Layer] = {}
    spatial = [i for i in differing if i != axis]
    if axis in differing:
        # A gated unit, or a split into queries, keys and values, leaves a part of what the layer makes.
        parts = made // shape[axis] if made % shape[axis] == 0 else 1
        for i in range(last, len(chain)):
            layer = chain[i][1]
            if i == last or layer.inputs == layer.outputs:
                changed = _sized(layer, wanted[axis] * (parts if i == last else 1), outputs=True)
                if changed is None:
                    return
                channels[i] = changed
    if not spatial:
        if channels:  # else the shape is as it is wanted, and something else is wrong
            yield _fix(chain, channels)
        return
    if axis == len(shape) - 1:
        return
    for i, changed in _respaced(chain, channels, shape, wanted, axis):
        yield _fix(chain, channels | {i: changed})


def _fix(chain: Sequence[tuple[str, Layer]], changed: dict[int, Layer]) -> Fix:
    return Fix(tuple((chain[i][0], changed[i]) for i in sorted(changed)))


def _respaced(
    chain: Sequence[tuple[str, Layer]], channels: dict[int, Layer], shape: Shape, wanted: Shape, axis: int
) -> Iterator[tuple[int, Layer]]:
    """Convolutions with other strides or paddings."""
    convolutions = [i for i, (_, layer) in enumerate(chain) if issubclass(layer.kind, _ConvNd)]
    sizes = list(zip(shape[axis + 1 :], wanted[axis + 1 :], strict=True))
    if all(a >= b for a, b in sizes):
        ratios = [-(-a // b) for a, b in sizes]
        # The stride is where the kernel is large, else in the first.
        for i in sorted(convolutions, key=lambda i: (-max(_tuple(chain[i][1].get("kernel_size", 1), 1)), i)):
            layer = channels.get(i, chain[i][1])
            strides = _tuple(layer.get("stride", 1), len(ratios))
            yield i, layer.but(stride=_one([s * r for s, r in zip(strides, ratios, strict=True)]))
    elif all(a <= b for a, b in sizes):
        ratios = [-(-b // a) for a, b in sizes]
        for i in convolutions:
            layer = channels.get(i, chain[i][1])
            strides = _tuple(layer.get("stride", 1), len(ratios))
            if strides != (1,) * len(strides):
                yield i, layer.but(stride=_one([max(1, s // r) for s, r in zip(strides, ratios, strict=True)]))
    for i in convolutions:
        layer = channels.get(i, chain[i][1])
        kernel = _tuple(layer.get("kernel_size", 1), len(sizes))
        dilation = _tuple(layer.get("dilation", 1), len(sizes))
        same = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
        if not isinstance(layer.get("padding", 0), str) and _tuple(layer.get("padding", 0), len(sizes)) != tuple(same):
            yield i, layer.but(padding=_one(same))


# -- layers as code ----------------------------------------------------------------------------------------------------


def layer_of(module: nn.Module) -> Layer | None:
    """How one would write a module down; None for one whose arguments cannot be told from it."""
    kind: Any = next((each for each in type(module).__mro__ if each.__module__.startswith("torch.nn.modules")), None)
    it: Any = module
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # transformers' own, a linear map
        return Layer(type(module), (("nf", it.nf), ("nx", it.weight.shape[0])), (), "nx", "nf")
    if isinstance(module, nn.Linear):
        layer = Layer(
            nn.Linear, (("in_features", it.in_features), ("out_features", it.out_features)), (), "in_features", "out_features"
        )
        return layer.but(bias=it.bias is not None)
    if isinstance(module, _ConvNd) and kind.__name__ in nn.__dict__:
        sizes = (("in_channels", it.in_channels), ("out_channels", it.out_channels), ("kernel_size", _one(it.kernel_size)))
        layer = Layer(kind, sizes, (), "in_channels", "out_channels")
        options = {name: _one(getattr(it, name)) for name in ("stride", "padding", "dilation")}
        if isinstance(module, _ConvTransposeNd):
            options["output_padding"] = _one(it.output_padding)
        return layer.but(**options, groups=it.groups, bias=it.bias is not None, padding_mode=it.padding_mode)
    if isinstance(module, _BatchNorm):
        layer = Layer(kind, (("num_features", it.num_features),), (), "num_features", "num_features")
        return layer.but(eps=it.eps, momentum=it.momentum, affine=it.affine, track_running_stats=it.track_running_stats)
    if isinstance(module, nn.GroupNorm):
        groups = (("num_groups", it.num_groups), ("num_channels", it.num_channels))
        return Layer(nn.GroupNorm, groups, (), "num_channels", "num_channels").but(eps=it.eps, affine=it.affine)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        shape = it.normalized_shape[0] if len(it.normalized_shape) == 1 else tuple(it.normalized_shape)
        layer = Layer(kind, (("normalized_shape", shape),), (), "normalized_shape", "normalized_shape")
        layer = layer.but(eps=it.eps, elementwise_affine=it.elementwise_affine)
        return layer.but(bias=False) if it.elementwise_affine and getattr(it, "bias", it) is None else layer
    return None


def _known(modules: dict[str, nn.Module], path: str) -> Layer | None:
    module = modules.get(path)
    return None if module is None else layer_of(module)


def _sized(layer: Layer, size: int, outputs: bool = False) -> Layer | None:
    """A layer for an input, or with an output, of another size."""
    if layer.kind is nn.GroupNorm:
        return layer.but(num_channels=size) if size % layer.get("num_groups") == 0 else None
    name = layer.outputs if outputs else layer.inputs
    groups = layer.get("groups", 1)
    if groups > 1:
        if groups == layer.get("in_channels") == layer.get("out_channels"):  # depthwise
            return layer.but(in_channels=size, out_channels=size, groups=size)
        if size % groups:
            return None
    before = layer.get(name)
    if isinstance(before, tuple):
        return layer.but(**{name: (*before[:-1], size)})
    return layer.but(**{name: size})


def _channel_axis(layer: Layer, dims: int) -> int:
    if issubclass(layer.kind, _ConvNd):
        return -1 - int(layer.kind.__name__[-2])
    return 1 - dims if issubclass(layer.kind, (_BatchNorm, nn.GroupNorm)) else -1


def _unlikeness(path: str, layer: Layer, modules: dict[str, nn.Module]) -> int:
    """0 where a layer at the same place in another block is like `layer`, 1 where one is but for its sizes (as its stride is) in
    a block of the same layers, and 2 where none is, or where the one that is there now is as much like them."""
    present = _known(modules, path)
    if present is None:
        return 2
    pattern = re.compile(r"\d+".join(map(re.escape, re.split(r"\d+", path))))
    siblings = {each: known for each in modules if each != path and pattern.fullmatch(each) and (known := _known(modules, each))}
    if layer in siblings.values() and present not in siblings.values():
        return 0
    manners = [each.manner for sibling, each in siblings.items() if _are_alike(*_parting(path, sibling), modules)]
    return 1 if layer.manner in manners and present.manner not in manners else 2


def _parting(path: str, other: str) -> tuple[str, str]:
    """Both as far as they are the same, and the first part in which they differ: the two blocks."""
    parts = path.split("."), other.split(".")
    count = next(i for i, (a, b) in enumerate(zip(*parts, strict=True), 1) if a != b)
    return ".".join(parts[0][:count]), ".".join(parts[1][:count])


def _are_alike(block: str, other: str, modules: dict[str, nn.Module]) -> bool:
    """Whether two blocks have the same kinds of layers at the same places; what is a layer itself is no block."""

    def layers(holder: str) -> dict[str, type[nn.Module]]:
        inside = (path for path in modules if path.startswith(f"{holder}.") or path == holder)
        return {path.removeprefix(holder): layer.kind for path in inside if (layer := _known(modules, path))}

    mine = layers(block)
    return "" not in mine and mine == layers(other)


def _defaults(kind: type[nn.Module]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}


def _one(values: Any) -> Any:
    """A number where all are the same."""
    if isinstance(values, (str, int)):
        return values
    values = tuple(values)
    return values[0] if len(set(values)) == 1 and values else values


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * length


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
