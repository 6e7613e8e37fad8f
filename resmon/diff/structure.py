"""What differs in structure between two models, told from the sites that their flights hold.

Blocks are paired by name. Where names differ they are paired by their order between neighbours that are paired already, as far as
what they are made of agrees; the rest was added or removed. Of each pair is said what became of it: the order of its activation
and normalisation against its weights (pre-activation, He et al. 2016, and pre-norm, Xiong et al. 2020, normalise what enters the
branch; their post- twins what leaves the sum), its skip, its widths, what scales it, which operations came and went. Pairs of which
the same is said are told together, so that a change that runs through all of a model is one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import takewhile
from typing import Literal, get_args

from resmon.records import ResidualSite

Aspect = Literal["order", "skip", "added", "removed", "renamed", "scaling", "width", "operations", "parameters"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)  # the gravest first
Order = Literal["pre", "post"]

_SHAPE = re.compile(r"\[[^\]]*\]$")
# Names of functions and modules, without digits, underscores and capitals: relu and ReLU are one operation, conv2d and Conv2d too.
_ACTIVATIONS = frozenset(
    """relu leakyrelu prelu rrelu elu selu celu gelu geglu silu swish mish sigmoid hardswish hardsigmoid hardtanh tanh softplus
    softsign glu swiglu quickgelu newgelu quickgeluactivation newgeluactivation gelunew fastgelu pytorchgelutanh""".split()
)
_SCALING = frozenset("mul multiply div truediv layerscale scale neg".split())


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is said of one block or of several."""

    aspect: Aspect
    what: str  # what became of the block, after its name: "went from pre-activation to post-activation order"
    a: tuple[str, ...]  # the blocks' names in A, in order of execution; of one that was added, none
    b: tuple[str, ...]

    @property
    def blocks(self) -> tuple[str, ...]:
        return self.b or self.a


@dataclass(frozen=True, slots=True)
class Structure:
    """All differences, the gravest first, and how many pairs of blocks they were looked for in."""

    differences: tuple[Difference, ...]
    pairs: tuple[tuple[str, str], ...]  # names in A and in B, in order of execution
    operations_known: bool  # in all of both models: else only names, kinds and shapes could be compared


def compare_structure(a: Sequence[ResidualSite], b: Sequence[ResidualSite]) -> Structure:
    """What makes B's blocks other than A's; sites in order of execution, those of several models one after the other."""
    pairs, removed, added = _paired(a, b)
    said: dict[tuple[Aspect, str], list[tuple[ResidualSite, ResidualSite]]] = {}
    for pair in _with_forks(pairs):
        last = any(_name(site) == _name(sites[-1]) for site, sites in zip(pair, (a, b), strict=True))
        for aspect, what in _said(*pair, last=last):
            said.setdefault((aspect, what), []).append(pair)
    differences = [
        Difference(aspect, what, tuple(_name(x) for x, _ in alike), tuple(_name(y) for _, y in alike))
        for (aspect, what), alike in said.items()
    ]
    if removed:
        differences.append(Difference("removed", "is not in B", tuple(map(_name, removed)), ()))
    if added:
        differences.append(Difference("added", "is in B only", (), tuple(map(_name, added))))
    differences.sort(key=lambda difference: (ASPECTS.index(difference.aspect), -len(difference.blocks)))
    known = all(site.operations for site in (*a, *b))
    return Structure(tuple(differences), tuple((_name(x), _name(y)) for x, y in pairs), known)


def order(site: ResidualSite) -> Order | None:
    """Whether a block normalises or activates what enters its branch or what leaves its sum; None where neither or both."""
    branch, following = [_role(word) for word in site.operations], [_role(word) for word in site.following]
    leading = next((role for role in branch if role), "")
    after = "norm" in following or "activation" in following
    if leading in ("norm", "activation"):
        return None if after else "pre"
    trailing = next((role for role in reversed(branch) if role), "")
    return "post" if leading == "weight" and (after or trailing == "norm") else None


def _paired(
    a: Sequence[ResidualSite], b: Sequence[ResidualSite]
) -> tuple[list[tuple[ResidualSite, ResidualSite]], list[ResidualSite], list[ResidualSite]]:
    """The pairs in B's order of execution, what only A has, and what only B has."""
    of_a = {(site.model, site.name): site for site in a}
    of_b = {(site.model, site.name): site for site in b}
    pairs = {key: (of_a[key], site) for key, site in of_b.items() if key in of_a}
    removed, added = [s for k, s in of_a.items() if k not in pairs], [s for k, s in of_b.items() if k not in pairs]
    # What has no namesake is paired by order: by what the blocks are made of, between the pairs that there are.
    anchors = {key: str(key) for key in pairs}
    words = [[anchors.get((site.model, site.name), _made_of(site)) for site in sites] for sites in (a, b)]
    for tag, low, high, low_b, high_b in SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        same = tag == "equal" or (tag == "replace" and high - low == high_b - low_b)
        for x, y in zip(a[low:high], b[low_b:high_b], strict=False) if same else ():
            if x in removed and y in added:
                removed.remove(x)
                added.remove(y)
                pairs[y.model, y.name] = (x, y)
    place = {(site.model, site.name): i for i, site in enumerate(b)}
    return sorted(pairs.values(), key=lambda pair: place[pair[1].model, pair[1].name]), removed, added


def _with_forks(pairs: Sequence[tuple[ResidualSite, ResidualSite]]) -> list[tuple[ResidualSite, ResidualSite]]:
    """The same pairs, where what stands before a projection block's fork is no part of the block before it.

    In a pre-activation network a projection begins behind the block's first normalisation and activation, as the branch does, so
    that these look like something that follows on the block before. Where the other model has them inside of the block they are
    the block's; where both have them between the blocks they tell nothing of the block before.
    """
    found = list(pairs)
    for i in range(1, len(found)):
        before, here = found[i - 1], found[i]
        if any(site.kind != "projection" for site in here) or any(x.model != y.model for x, y in zip(before, here, strict=True)):
            continue
        for side in (0, 1):
            ahead = [word for word in _surplus_of(before[side].following, before[1 - side].following) if _normalises(word)]
            inside = {_canonical(word) for word in _surplus(here[1 - side], here[side])}
            if moved := tuple(word for word in ahead if _canonical(word) in inside):
                rest = _surplus_of(before[side].following, moved)
                before = _with(before, side, following=tuple(rest))
                here = _with(here, side, operations=(*moved, *here[side].operations))
        ends = zip(*(_names(reversed(site.following)) for site in before), strict=False)
        shared = sum(1 for _ in takewhile(lambda words: words[0] == words[1], ends))
        a, b = (replace(site, following=site.following[: len(site.following) - shared]) for site in before)
        found[i - 1], found[i] = (a, b), here
    return found


def _with(pair: tuple[ResidualSite, ResidualSite], side: int, **changes: tuple[str, ...]) -> tuple[ResidualSite, ResidualSite]:
    a, b = pair
    return (replace(a, **changes), b) if side == 0 else (a, replace(b, **changes))  # type: ignore[arg-type] # all are tuples of texts


def _made_of(site: ResidualSite) -> str:
    return repr((site.kind, site.operations or site.shape[1:], site.following))


def _said(a: ResidualSite, b: ResidualSite, last: bool) -> Iterator[tuple[Aspect, str]]:
    if (a.model, a.name) != (b.model, b.name):
        yield "renamed", "is called otherwise in A"
    reordered = _reordered(a, b, last)
    if reordered:
        yield "order", reordered
    if a.kind != b.kind:
        became = {
            "projection": "has a projection on its skip, which was an identity",
            "identity": "has an identity for its skip, which was a projection",
            "marked": "is marked with residual_add in B",
        }
        yield "skip", became[b.kind]
    elif a.skip_operations != b.skip_operations and _names(a.skip_operations) != _names(b.skip_operations):
        yield "skip", f"has {_list(b.skip_operations)} on its skip, where A has {_list(a.skip_operations)}"
    yield from _operations(a, b, bool(reordered), last)


def _reordered(a: ResidualSite, b: ResidualSite, last: bool) -> str:
    """Of the last block it is not known what follows; there it is enough that a branch began with what it no longer begins with."""
    orders = order(a), order(b)
    if last and None in orders and {_leads(a), _leads(b)} == {True, False}:
        orders = ("pre", "post") if _leads(a) else ("post", "pre")
    if None in orders or orders[0] == orders[1]:
        return ""
    kind = "activation" if any(_role(word) == "activation" for s in (a, b) for word in s.following) else ""
    conv = any("conv" in _canonical(word) for word in (*a.operations, *b.operations))
    kind = kind or ("activation" if conv else "norm")
    return f"went from {orders[0]}-{kind} to {orders[1]}-{kind} order"


def _leads(site: ResidualSite) -> bool:
    return _normalises(next((word for word in site.operations if _role(word)), ""))


def _normalises(word: str) -> bool:
    return _role(word) in ("norm", "activation")


def _operations(a: ResidualSite, b: ResidualSite, reordered: bool, last: bool) -> Iterator[tuple[Aspect, str]]:
    if not a.operations or not b.operations:
        if a.shape[1:] != b.shape[1:]:
            yield "width", f"has the shape {_shape(b.shape[1:])} for each sample, where A has {_shape(a.shape[1:])}"
        return
    gained, lost = _surplus(b, a), _surplus(a, b)
    if reordered and last:  # what went behind the last sum is out of sight
        gained, lost = ([word for word in words if not _normalises(word)] for words in (gained, lost))
    for aspect, chosen in (("scaling", True), ("operations", False)):
        more, less = ([word for word in words if _scales(word) == chosen] for words in (gained, lost))
        parts = [f"gained {_list(more)}"] * bool(more) + [f"lost {_list(less)}"] * bool(less)
        if parts:
            what = ", which scales what the branch adds" if chosen else ""
            yield ("scaling" if aspect == "scaling" else "operations"), " and ".join(parts) + what
    if not gained and not lost:
        if not reordered and _names(a.operations) != _names(b.operations):
            yield "operations", f"has the operations {_list(b.operations)}, where A has {_list(a.operations)}"
        if widths := _widths(a, b):
            yield "width", "; ".join(widths[:3])
        elif not reordered and a.kind == b.kind and len(a.parameters) != len(b.parameters):
            yield "parameters", f"reads {len(b.parameters)} parameters, where A's reads {len(a.parameters)}"


def _widths(a: ResidualSite, b: ResidualSite) -> list[str]:
    """Operations of one name whose parameters have other shapes, the first of A against the first of B and so on."""
    of_a: dict[str, list[str]] = {}
    for word in (*a.operations, *a.following):
        of_a.setdefault(_canonical(word), []).append(word)
    pairs = [(of_a[name].pop(0), word) for word in (*b.operations, *b.following) if of_a.get(name := _canonical(word))]
    shaped = [(x, y) for x, y in pairs if _SHAPE.search(x) and _SHAPE.search(y)]
    return [f"has {y}, where A has {x}" for x, y in shaped if _SHAPE.findall(x) != _SHAPE.findall(y)]


def _surplus(one: ResidualSite, other: ResidualSite) -> list[str]:
    """The operations that one has more of than the other, wherever they stand."""
    return _surplus_of((*one.operations, *one.following), (*other.operations, *other.following))


def _surplus_of(one: Iterable[str], other: Iterable[str]) -> list[str]:
    theirs = _names(other)
    more = []
    for word in one:
        if _canonical(word) in theirs:
            theirs.remove(_canonical(word))
        else:
            more.append(word)
    return more


def _role(word: str) -> str:
    name = _canonical(word)
    if "norm" in name:
        return "norm"
    if name in _ACTIVATIONS or name.endswith("activation"):
        return "activation"
    weights = ("conv", "linear", "attention", "matmul", "addmm", "bmm", "einsum", "lstm", "gru")
    return "weight" if any(part in name for part in weights) or name == "mm" else ""


def _scales(word: str) -> bool:
    return _canonical(word) in _SCALING or word.startswith("×")


def _canonical(word: str) -> str:
    """relu, relu_ and ReLU are one operation, conv2d and Conv2d too."""
    return re.sub(r"\d+d|_", "", _SHAPE.sub("", word).lower())


def _names(words: Iterable[str]) -> list[str]:
    return [_canonical(word) for word in words]


def _name(site: ResidualSite) -> str:
    return f"{site.model}:{site.name}" if site.model else site.name


def _list(words: Sequence[str]) -> str:
    return ", ".join(words) or "nothing"


def _shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes)) or "()"
