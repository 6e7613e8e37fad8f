"""A function of somebody else's, wrapped for as long as anybody listens.

The wrapper is put in place when the first listener comes and taken away when the last one goes. Others may wrap the same function
before or after: where our wrapper lies below another one it cannot be taken away; it then only passes calls on, and goes as soon as
it is on top and called. A call that passes several wrappers of ours is heard once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch

from resmon.capture.host.compiler import leave_alone

Function = Callable[..., Any]
Listener = TypeVar("Listener")
Around = Callable[..., Any]  # (listeners, the function, *its arguments): calls it and gives what it gives


class Interception(Generic[Listener]):
    """Calls of what stands at `places` (owner and attribute, asked for when the first listener comes) go through `around`.

    `alone` is for functions that are never compiled: called between two graphs of a compiled function they are heard, too.
    """

    def __init__(self, places: Callable[[], Iterable[tuple[Any, str]]], around: Around, *, alone: bool = False) -> None:
        self._alone = alone
        self._find = places
        self._around = around
        self._places: tuple[tuple[Any, str], ...] = ()
        self._listeners: tuple[Listener, ...] = ()
        self._originals: WeakKeyDictionary[Function, Function] = WeakKeyDictionary()  # of each wrapper of ours
        self._here = _Here()

    def listen(self, listener: Listener) -> None:
        if not self._listeners:
            self._places = tuple(self._find())
            for owner, name in self._places:
                function = getattr(owner, name)
                if function not in self._originals:
                    setattr(owner, name, self._wrapped(function))
        self._listeners += (listener,)

    def leave(self, listener: Listener) -> None:
        """`listener` hears nothing any more; it need not have listened."""
        self._listeners = tuple(other for other in self._listeners if other is not listener)
        if not self._listeners:
            self._take_away()

    def _take_away(self) -> None:
        for owner, name in self._places:
            function = top = getattr(owner, name)
            while function in self._originals:
                function = self._originals[function]
            if function is not top:
                setattr(owner, name, function)

    def _wrapped(self, original: Function) -> Function:
        def heard(*args: Any, **kwargs: Any) -> Any:
            if self._here.inside:
                return original(*args, **kwargs)
            if not self._listeners:
                self._take_away()
                return original(*args, **kwargs)
            self._here.inside = True
            try:
                return self._around(self._listeners, original, *args, **kwargs)
            finally:
                self._here.inside = False

        # The compiler looks at all that a function has about it, and at nothing but functions where it calls one itself, as it does
        # for a backward pass inside of a graph.
        @wraps(original)
        def intercepted(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(*args, **kwargs)
            return heard(*args, **kwargs)

        if self._alone:
            alone: Any = intercepted
            alone.__code__ = alone.__code__.replace()  # of its own: the others may be compiled
            leave_alone((alone,))
        self._originals[intercepted] = original
        return intercepted


class _Here(threading.local):
    inside = False
