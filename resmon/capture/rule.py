"""The rule that tells a residual add from any other add, by dataflow alone.

Let y = a + b with a and b of one shape.

- Identity: one operand (through casts, reshapes and scaling by a number) is an ancestor of the other, and what lies between
  them reads a parameter otherwise than by elementwise arithmetic. So the sum inside tanh-GELU is none (no parameter), nor a
  learned interpolation or Snake activation (only arithmetic).
- Identity, continued: the operand is itself the result of a residual add in the same call of the same module, and that add's skip
  tensor is the other operand's ancestor. So x + attn(x) + mlp(x) is two adds to one stream, whichever way it is bracketed.
- Projection: both descend from one tensor, one side being affine in it (convolution and linear maps, normalisation, pooling, padding, casts, scaling; no
  activation, no split, chunk or selection), the other not. The rest of the identity rule's conditions hold for the other side. Rotary embeddings,
  state-space scans, gates and sums of parallel branches are none.

A side that is multiplied with fresh normal noise is a sample, not a branch (the reparametrisation of a VAE).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from resmon.capture.dataflow import Add, Node
from resmon.records import SiteKind

_ARITHMETIC = frozenset(
    """add add_ __add__ __radd__ __iadd__ sub sub_ __sub__ __rsub__ __isub__ rsub mul mul_ __mul__ __rmul__ __imul__ div div_ __truediv__
    __rtruediv__ __itruediv__ true_divide addcmul addcmul_ addcdiv lerp lerp_ pow __pow__ where neg __neg__""".split()
)
_SCALING = frozenset(
    "mul mul_ __mul__ __rmul__ __imul__ multiply div div_ __truediv__ __itruediv__ true_divide divide neg __neg__".split()
)
# The same numbers in another order, layout or precision.
_REARRANGING = frozenset(
    """view reshape permute transpose transpose_ swapaxes swapdims movedim moveaxis t T mT flatten unflatten squeeze unsqueeze contiguous clone
    to type type_as float half bfloat16 double view_as reshape_as alias cuda cpu identity requires_grad_""".split()
)
_AFFINE = (
    _REARRANGING
    | _SCALING
    | frozenset(
        """linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d addmm mm bmm matmul __matmul__ __rmatmul__ einsum
        batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm
        avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean sum lp_pool1d lp_pool2d
        max_pool1d max_pool2d max_pool3d boolean_dispatch _max_pool1d _max_pool2d _max_pool3d adaptive_max_pool1d adaptive_max_pool2d
        pad interpolate upsample upsample_nearest upsample_bilinear pixel_shuffle pixel_unshuffle
        dropout dropout_ dropout1d dropout2d dropout3d feature_dropout alpha_dropout expand expand_as
        add add_ __add__ __radd__ __iadd__ sub sub_ __sub__ __isub__""".split()
    )
)
_PRODUCTS = _SCALING | frozenset("mm bmm matmul __matmul__ __rmatmul__ einsum".split())


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """What the rule found: which operand is the skip, and the values between the tensor that both sides share and the add."""

    kind: SiteKind
    skip_is_first: bool
    branch: tuple[Node, ...]  # in order of execution
    skip: tuple[Node, ...]  # of the projection; empty for an identity skip


def judge(add: Add) -> Residual | None:
    """The verdict on one candidate add: None where it is no residual add."""
    first, second = add.first_node, add.second_node
    if add.marked:
        return Residual("marked", True, _between(first, second), ())
    if first is second or not (first.live or second.live):
        return None
    for skip, branch in ((first, second), (second, first)):
        way = _identity(skip, branch, add)
        if way:
            return Residual("identity", skip is first, way, ())
    for skip, branch in ((first, second), (second, first)):
        ways = _projection(skip, branch)
        if ways:
            return Residual("projection", skip is first, *ways)
    return None


def parameters(nodes: tuple[Node, ...]) -> tuple[str, ...]:
    """The names of the parameters that the values in `nodes` read, in order of execution."""
    inside = set(nodes)
    names: dict[str, None] = {}
    for node in nodes:
        for operand in node.parents:
            if operand not in inside and not operand.live:
                names.update(dict.fromkeys(sorted(operand.parameters)))
    return tuple(names)


def _identity(skip: Node, branch: Node, add: Add) -> tuple[Node, ...]:
    """The way of the branch, where `skip` carries the tensor that it begins at."""
    origin = skip
    while True:
        way = _between(origin, branch)
        if _is_branch(way):
            return way
        if origin.op in _REARRANGING or origin.op in _SCALING:
            scaled = [p for p in origin.parents if not _is_factor(p)]
            if len(scaled) != 1:
                return ()
            origin = scaled[0]
        elif origin.carries is not None and origin.frame is add.frame and branch.carries is None:
            origin = origin.carries
        else:
            return ()


def _projection(skip: Node, branch: Node) -> tuple[tuple[Node, ...], tuple[Node, ...]] | None:
    """The ways of branch and skip, where both begin at one tensor and the skip is affine in it."""
    for shared in _affine_sources(skip):
        way = _between(shared, branch)
        if not way:
            continue
        projection = _between(shared, skip)
        # Ways that share a value split behind it, and there they were not a projection and a branch.
        if not _is_affine(shared, projection) or not set(way).isdisjoint(projection):
            return None
        if _is_branch(way) and not _is_affine(shared, way):
            return way, projection
    return None


def _between(ancestor: Node, descendant: Node) -> tuple[Node, ...]:
    """The values on the ways from `ancestor` (left out) to `descendant`, in order of execution; none where there is no way."""
    if ancestor.order >= descendant.order:
        return ()
    # Backwards from the descendant, no further than the ancestor's own time; then keep what the ancestor reaches.
    seen = {descendant}
    stack = [descendant]
    while stack:
        for parent in stack.pop().parents:
            if parent.order >= ancestor.order and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    if ancestor not in seen:
        return ()
    reached = {ancestor}
    for node in sorted(seen, key=lambda n: n.order):
        if any(parent in reached for parent in node.parents):
            reached.add(node)
    reached.discard(ancestor)
    return tuple(sorted(reached, key=lambda n: n.order))


def _is_branch(between: tuple[Node, ...]) -> bool:
    inside = set(between)
    mixes = False
    for node in between:
        outside = [p for p in node.parents if p not in inside]
        if node.op in _SCALING and any(p.noise for p in outside):
            return False
        mixes = mixes or (node.op not in _ARITHMETIC and any(p.parameters for p in outside if not p.live))
    return mixes


def _is_factor(node: Node) -> bool:
    """A constant, or a learned scalar: multiplying with it is scaling. A learned vector is a gate (the D of a state-space scan)."""
    return not node.live and (node.numel == 1 or not node.parameters)


def _is_affine(beginning: Node, way: tuple[Node, ...]) -> bool:
    """Whether the end of `way` is affine in `beginning`."""
    depends = {beginning, *way}
    for node in way:
        if node.op not in _AFFINE:
            return False
        if node.op in _PRODUCTS and sum(p in depends for p in node.parents) > 1:
            return False
        if node.op in _SCALING and not all(p in depends or p.live or _is_factor(p) for p in node.parents):
            return False
    return True


def _affine_sources(node: Node) -> Iterator[Node]:
    """The values that `node` may be affine in, nearest first."""
    frontier = {node}
    while frontier:
        nearest = max(frontier, key=lambda n: n.order)
        frontier.discard(nearest)
        if nearest is not node:
            yield nearest
        if nearest.op in _AFFINE and nearest.carries is None:
            frontier.update(p for p in nearest.parents if p.live)
