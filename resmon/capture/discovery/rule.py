"""The rule that tells a residual add from any other add, by dataflow alone.

Let y = a + b with a and b of one shape.

- Identity: one operand (through casts, reshapes and scaling by a number) is an ancestor of the other, and what lies between
  them reads a parameter otherwise than by elementwise arithmetic. So the sum inside tanh-GELU is none (no parameter), nor is a
  learned interpolation or a Snake activation (only arithmetic). What was added to the same stream before, as query positions are in
  every layer, is no skip.
- Identity, continued: what is added in place into a part of a tensor (`h[:, :k] += f(h)[:, :k]`) is added to that tensor.
- Identity, continued: the operand is itself the result of a residual add in the same call of the same module, and that add's skip
  tensor is the other operand's ancestor. So x + attn(x) + mlp(x) is two adds to one stream.
- Projection: both descend from one tensor on ways that share nothing, one side being affine in it (convolution and linear maps,
  normalisation, pooling, padding, casts, scaling; no activation, no split, chunk or selection) and the other not; the other side
  reads a parameter as above. Rotary embeddings, state-space scans, gates and sums of parallel branches are none. Nor is what enters
  another residual stream on its way to the sum: the outputs that a WaveNet's layers add up beside their stream, a condition (edges
  of a graph, a spectrogram) that is projected anew in each layer, the losses that a mixture's routers hand on. Nor is the
  average of two states of one stream by learned weights.

A side that is multiplied element by element with fresh normal noise is a sample, not a branch (the reparametrisation of a VAE).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from resmon.capture.discovery.dataflow import ADDING, ARITHMETIC, SCALING, Frame, Node
from resmon.records import SiteKind

# The same numbers in another order, layout or precision.
REARRANGING = frozenset(
    """view reshape permute transpose transpose_ swapaxes swapdims movedim moveaxis t T mT flatten unflatten squeeze unsqueeze
    contiguous clone to type type_as float half bfloat16 double view_as reshape_as alias cuda cpu identity requires_grad_""".split()
)
_AFFINE = (
    REARRANGING
    | SCALING
    | ADDING
    | frozenset(
        """linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
        addmm mm bmm matmul __matmul__ __rmatmul__ einsum
        batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm
        mean sum amax max avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d lp_pool1d lp_pool2d
        boolean_dispatch _max_pool1d _max_pool2d _max_pool3d
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
        subsample pad interpolate upsample upsample_nearest upsample_bilinear pixel_shuffle pixel_unshuffle
        dropout dropout_ dropout1d dropout2d dropout3d feature_dropout alpha_dropout expand expand_as
        cat concat concatenate""".split()
    )
)
_PARTS = frozenset("__getitem__ subsample narrow select chunk split tensor_split unbind".split())
# Affine in one operand where the others are constants: products, and the concatenation with zeros that pads.
_OF_ONE = SCALING | frozenset("mm bmm matmul __matmul__ __rmatmul__ einsum cat concat concatenate".split())


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """What the rule found: which operand is the skip, and the values between the tensor that both sides share and the add."""

    kind: SiteKind
    skip_is_first: bool
    shared: Node
    branch: tuple[Node, ...]  # in order of execution
    skip: tuple[Node, ...]  # of the projection; empty for an identity skip


def judge(first: Node, second: Node, frame: Frame, *, marked: bool = False, into: bool = False) -> Residual | None:
    """The verdict on the sum of two values, made in `frame`, `into` the first: None where it is no residual add."""
    if marked:
        return Residual("marked", True, first, between(first, second), ())
    if first is second:
        return None
    for skip, branch in ((first, second), (second, first)):
        identity = _identity(skip, branch, frame)
        if identity:
            return Residual("identity", skip is first, *identity, ())
    for skip, branch in ((first, second), (second, first)):
        projection = _projection(skip, branch, frame)
        if projection:
            return Residual("projection", skip is first, *projection)
    if into and (whole := _whole(first)) is not None and (identity := _identity(whole, second, frame)):
        return Residual("identity", True, *identity, ())
    return None


def _whole(part: Node) -> Node | None:
    """The tensor that `part` was taken out of: what is added into the one is added to the other."""
    while part.op in REARRANGING and len(part.parents) == 1:
        part = part.parents[0]
    return part.parents[0] if part.op in _PARTS and part.parents and part.parents[0].live else None


def parameters(shared: Node, way: tuple[Node, ...]) -> tuple[str, ...]:
    """The names of the parameters that the values on `way`, which begins at `shared`, read, in order of execution."""
    names: dict[str, None] = {}
    for node in way:
        for operand in _read_beside(shared, way, node):
            names.update(dict.fromkeys(sorted(operand.parameters)))
    return tuple(names)


def _read_beside(shared: Node, way: tuple[Node, ...], node: Node) -> list[Node]:
    """The parameters and constants, plain or computed, that `node` on `way` reads."""
    inside = {shared, *way}
    return [parent for parent in node.parents if not parent.live and parent not in inside]


def _identity(skip: Node, branch: Node, frame: Frame) -> tuple[Node, tuple[Node, ...]] | None:
    """The tensor that `skip` carries and the branch begins at, and the way of the branch."""
    origin = skip
    while True:
        way = between(origin, branch)
        if _is_branch(origin, way):
            return None if _is_added_anew(origin, way, branch) or _is_another_stream(origin, way, branch) else (origin, way)
        if origin.op in REARRANGING or origin.op in SCALING or (origin.op in ADDING and len(origin.parents) == 1):
            carried = [p for p in origin.parents if p.live or p.parameters]
            if len(carried) != 1:
                return None
            origin = carried[0]
        elif origin.carries is not None and origin.frame is frame and branch.carries is None:
            origin = origin.carries
        else:
            return None


def _is_added_anew(skip: Node, way: tuple[Node, ...], branch: Node) -> bool:
    """Whether `skip` was added to an earlier state of the stream that `branch` is on, as query positions are in each layer."""
    before = {
        parent for node in way if node.op in ADDING and node.carries is None and skip in node.parents for parent in node.parents
    }
    for state in _earlier(branch) if before else ():
        if state in before or state is skip:
            return state is not skip
    return False


def _is_another_stream(skip: Node, way: tuple[Node, ...], branch: Node) -> bool:
    """Whether `branch` is a state of a stream that did not begin at `skip`, such as the other half of a reversible network."""
    return branch.carries is not None and branch.carries is not skip and branch.carries not in way


def _projection(skip: Node, branch: Node, frame: Frame) -> tuple[Node, tuple[Node, ...], tuple[Node, ...]] | None:
    """The tensor that both sides begin at, where the skip is affine in it, and the ways of branch and skip."""
    for shared in _affine_sources(skip):
        way = between(shared, branch)
        if not way:
            continue
        projection = between(shared, skip)
        # Ways that share a value split behind it, and there they were not a projection and a branch.
        if not _is_affine(shared, projection) or not set(way).isdisjoint(projection):
            return None
        if _is_gate(shared, projection) and not _all_mix(shared, way):
            return None
        if _is_average(shared, projection, branch):
            return None
        if _joins(shared, way) or _is_given_anew(shared, way, frame):
            return None
        if _is_branch(shared, way) and not _is_affine(shared, way):
            return shared, way, projection
    return None


def between(ancestor: Node, descendant: Node) -> tuple[Node, ...]:
    """The values on the ways from `ancestor` (left out) to `descendant`, in order of execution; none where there is no way."""
    if ancestor.order >= descendant.order:
        return ()
    # Backwards from the descendant, no further than the ancestor's own time; then keep what the ancestor reaches.
    seen = {descendant}
    stack = [descendant]
    while stack:
        for parent in _sources(stack.pop()):
            if parent.order >= ancestor.order and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    if ancestor not in seen:
        return ()
    reached = {ancestor}
    for node in sorted(seen, key=lambda n: n.order):
        if any(parent in reached for parent in _sources(node)):
            reached.add(node)
    reached.discard(ancestor)
    return tuple(sorted(reached, key=lambda n: n.order))


def _sources(node: Node) -> tuple[Node, ...]:
    """The parents that `node` continues.

    A sum does not continue what is added to it without depending on the model's input, or just looked up in a table, such as a
    position bias that every layer adds: the next layer's sum with it is no residual add. Of several that do not depend on the input
    it continues the newest.
    """
    if node.op not in ADDING or len(node.parents) < 2:
        return node.parents
    if not node.live:
        return (max(node.parents, key=lambda parent: parent.order),)
    live = tuple(parent for parent in node.parents if parent.live)
    return tuple(parent for parent in live if not parent.looked_up) or live


def _is_branch(shared: Node, way: tuple[Node, ...]) -> bool:
    if any(node.op in SCALING and any(p.noise and p.numel == node.numel for p in _read_beside(shared, way, node)) for node in way):
        return False
    if any(_mixes(shared, way, node) for node in way):
        return True
    # What is multiplied element by element between two Fourier transforms is a convolution.
    return any(n.op.startswith("fft_") for n in way) and any(p.parameters for n in way for p in _read_beside(shared, way, n))


def _is_average(shared: Node, projection: tuple[Node, ...], branch: Node) -> bool:
    """Whether `branch` is a later state of the stream that `shared` is a state of, and both are weighted by learned numbers.

    So are the states of all layers that a DenseFormer or ELMo averages, and the first one that a stream is mixed with again.
    """
    if not all(node.op in SCALING or node.op in ADDING or node.op in REARRANGING for node in projection):
        return False
    state: Node | None = branch
    weighted = False
    while state is not None and (state.op in SCALING or state.op in REARRANGING):
        weighted |= any(p.parameters and not p.live for p in state.parents)
        live = [parent for parent in state.parents if parent.live]
        state = live[0] if len(live) == 1 else None
    return weighted and state is not None and shared in _past(state)


def _past(state: Node) -> set[Node]:
    """All states of the stream that `state` is on, this one included, and of those that were averaged into it."""
    found, stack = {state}, [state]
    while stack:
        now = stack.pop()
        live = [parent for parent in now.parents if parent.live]
        before = [now.carries] if now.carries is not None else live if len(live) == 1 or now.op in ADDING else []
        if now.carries is None and now.op not in _AFFINE:
            continue
        stack += [node for node in before if node not in found]
        found.update(before)
    return found


def _earlier(state: Node) -> Iterator[Node]:
    """The states of the stream that `state` is on, from this one back."""
    now: Node | None = state
    while now is not None:
        yield now
        live = [parent for parent in now.parents if parent.live]
        now = now.carries or (live[0] if len(live) == 1 and now.op in _AFFINE else None)


def _joins(shared: Node, way: tuple[Node, ...]) -> bool:
    """Whether `way` enters a residual stream that did not begin at `shared`."""
    inside = {shared, *way}
    return any(node.carries is not None and node.carries not in inside for node in way)


def _is_given_anew(shared: Node, way: tuple[Node, ...], frame: Frame) -> bool:
    """Whether what is made of `shared` was added to something else already, outside of the module that adds now.

    So is a condition, which every layer projects anew. What a block adds inside of itself, such as an embedding of time, it may.
    """
    inside = {shared, *way}
    for node in way:
        if node.op not in ADDING or node.frame is None or _is_within(node.frame, frame):
            continue
        own = [parent for parent in node.parents if parent in inside]
        if any(p.live and p not in inside for p in node.parents) and any(_is_affine(shared, between(shared, p)) for p in own):
            return True
    return False


def _is_within(frame: Frame, outer: Frame) -> bool:
    """Whether `frame` is `outer` or the call of a module inside of that one's."""
    return frame is outer or not outer.path or frame.path.startswith(outer.path + ".")


def _mixes(shared: Node, way: tuple[Node, ...], node: Node) -> bool:
    """Whether `node` reads a parameter otherwise than by elementwise arithmetic."""
    return node.op not in ARITHMETIC and any(p.parameters for p in _read_beside(shared, way, node))


def _all_mix(shared: Node, way: tuple[Node, ...]) -> bool:
    """Whether there is no way from `shared` to the end of `way` but through something that mixes."""
    unmixed = {shared}
    for node in way:
        if any(parent in unmixed for parent in _sources(node)) and not _mixes(shared, way, node):
            unmixed.add(node)
    return way[-1] not in unmixed


def _is_affine(shared: Node, way: tuple[Node, ...]) -> bool:
    """Whether the end of `way` is affine in its beginning.

    A product or a concatenation is so where everything else that it reads is made of constants and parameters.
    """
    inside = {shared, *way}
    for node in way:
        if node.op not in _AFFINE:
            return False
        if node.op in _OF_ONE and sum(parent in inside or parent.live for parent in node.parents) > 1:
            return False
    return True


def _is_gate(shared: Node, way: tuple[Node, ...]) -> bool:
    """Whether `way` does nothing but scale by a learned vector.

    So does a skip that is scaled channel by channel, and so does the D of a state-space scan, whose input comes to the sum unmixed.
    """
    plain = SCALING | ADDING | REARRANGING
    return all(node.op in plain for node in way) and any(
        p.parameters and p.numel > 1 for node in way for p in _read_beside(shared, way, node)
    )


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
