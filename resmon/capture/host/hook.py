"""What a hook of ours on somebody's module is: an object, so that a watched model can be pickled and copied.

The copy carries hooks that do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def inert(*_: Any, **__: Any) -> None:
    """What is left of a hook in a copy of a watched model: nothing happens."""


class Hook:
    """A callable that becomes `inert` where it is pickled or copied."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert, ()

    def __deepcopy__(self, memo: Any) -> Callable[..., None]:
        return inert


def _inert() -> Callable[..., None]:
    return inert
