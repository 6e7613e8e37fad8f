"""What a model of the zoo is: how to build it, what to feed it, and which residual sites it has.

Expectations are written by hand from the model's source and records.ResidualSite, never copied from what discovery prints.
`identity` and `projection` write one expected site. Paths on a branch or skip are given as one string, separated by spaces
and relative to `inside`; "." is the module `inside` itself, a leading "/" makes a path start at the model. How the zoo reads
the rules where they leave room:

- a branch lists every module that owns a parameter read on the way, whatever reads it, once it has one that is read by more
  than elementwise arithmetic (so the scale of a layer scale, of a hand-written RMS norm or of ReZero is listed);
- the order is that of the operations on the way that read them; what is made from parameters alone (a normalised weight, a
  table of position biases, indexed by constants) counts where the operation on the way reads it, as its owner's parameter;
- what is fed to a branch from another input (keys and values of cross-attention, the embedding of a time or a class) is not on
  the way, so its modules are not listed; nor is what the skip tensor itself is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Site = tuple[str, str, tuple[str, ...], tuple[str, ...]]  # name, kind, branch, skip


@dataclass(frozen=True)
class Case:
    """One model of the zoo. `inputs` are the positional arguments of its forward, `keywords` the others."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]] = tuple
    keywords: Callable[[], dict[str, Any]] = field(default=dict)
    sites: tuple[Site, ...] = ()


def paths(inside: str, names: str) -> tuple[str, ...]:
    """The paths that the words of `names` mean inside the module `inside`."""

    def path(word: str) -> str:
        if word.startswith("/"):
            return word[1:]
        if word == ".":
            return inside
        return f"{inside}.{word}" if inside else word

    return tuple(path(word) for word in names.split())


def identity(name: str, branch: str, inside: str = "") -> Site:
    """An expected site whose skip is the tensor itself."""
    return name, "identity", paths(inside, branch), ()


def projection(name: str, branch: str, skip: str, inside: str = "") -> Site:
    """An expected site whose skip is an affine map of the tensor, by the modules `skip` (none: pooling, padding)."""
    return name, "projection", paths(inside, branch), paths(inside, skip)
