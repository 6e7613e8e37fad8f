"""The state of detectors as JSON, and back.

State is whatever a detector's attributes hold: None, numbers, texts, tuples, lists, sets, dicts, deques, arrays, and objects of
classes that are known to the reader. Each object is written once, after those that it holds, and named by its number; so an
object that two others share is shared again. Reading runs no code: classes are looked up among those that are imported already, and
only in resmon.detectors, resmon.records, resmon.scores and the module of the detector itself. What does not fit raises StateError.
"""

from __future__ import annotations

import base64
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

KNOWN = ("resmon.detectors", "resmon.records", "resmon.scores")
_NOT_STATE = frozenset({"tuned"})  # it is set, not learnt
_TYPES = frozenset("bifu")
_MOST = 1 << 28  # bytes of one array


class StateError(Exception):
    """What was written is no state of this detector, or another version's."""


def as_text(array: np.ndarray[Any, Any]) -> Any:
    """The bytes of an array as JSON has them."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def save(thing: object, bytes_of: Callable[[np.ndarray[Any, Any]], Any] = as_text) -> dict[str, Any]:
    """The attributes of an object, as JSON has it (with NaN and Infinity). `bytes_of` may leave arrays to who writes them."""
    writing = _Writing(type(thing).__module__, bytes_of)
    return {"attributes": {name: writing.value(each) for name, each in _attributes(thing).items()}, "objects": writing.objects}


def restore(thing: object, saved: Mapping[str, Any]) -> None:
    """Set the attributes of a new object of the same class. Raises StateError, and has changed nothing then."""
    try:
        reading = _Reading(type(thing).__module__)
        for each in saved["objects"]:
            reading.objects.append(reading.made(each))
        found = {str(name): reading.value(each) for name, each in saved["attributes"].items()}
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        raise StateError(f"the state of {type(thing).__name__} cannot be read: {error!r:.200}") from error
    expected = _attributes(thing)
    if found.keys() != expected.keys():
        raise StateError(f"the state of {type(thing).__name__} is another version's: it has {', '.join(sorted(found))}")
    for name, each in found.items():
        if not _fits(each, expected[name]):
            raise StateError(f"the state of {type(thing).__name__} is damaged: {name} is {each!r:.80}")
    for name, each in found.items():
        object.__setattr__(thing, name, each)


def _fits(found: Any, new: Any) -> bool:
    """Whether what was read can stand where a new object has `new`: an array or a known object must be of its kind."""
    if isinstance(new, np.ndarray):
        return isinstance(found, np.ndarray) and (found.dtype, found.ndim) == (new.dtype, new.ndim)
    if isinstance(new, list | dict | set | deque) or type(new).__module__.startswith(KNOWN):
        return type(found) is type(new)
    return True


def _attributes(thing: object) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(thing, name):
                found[name] = getattr(thing, name)
    found |= getattr(thing, "__dict__", {})
    return {name: each for name, each in found.items() if name not in _NOT_STATE}


def _is_known(module: str, own: str) -> bool:
    """Whether classes of a module may be held by a detector of the module `own`."""
    return module == own or any(module == known or module.startswith(f"{known}.") for known in KNOWN)


class _Writing:
    def __init__(self, module: str, bytes_of: Callable[[np.ndarray[Any, Any]], Any]) -> None:
        self.objects: list[Any] = []
        self._module = module
        self._bytes_of = bytes_of
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []  # so that no number of an object is given twice

    def value(self, thing: Any) -> Any:
        """A plain value as it is; of an object, its number."""
        if thing is None or (isinstance(thing, bool | int | float | str) and type(thing).__module__ == "builtins"):
            return thing
        if isinstance(thing, np.generic):
            return thing.item()
        number = self._numbers.get(id(thing))
        if number is None:
            self._alive.append(thing)
            written = self._object(thing)
            number = self._numbers[id(thing)] = len(self.objects)
            self.objects.append(written)
        return [number]

    def _object(self, thing: Any) -> dict[str, Any]:
        if isinstance(thing, np.ndarray):
            if thing.dtype.kind not in _TYPES:
                raise TypeError(f"an array of {thing.dtype} is no state")
            return {"array": self._bytes_of(thing), "dtype": thing.dtype.str, "shape": list(thing.shape)}
        if isinstance(thing, deque):
            return {"deque": [self.value(each) for each in thing], "most": thing.maxlen}
        if type(thing) in (list, tuple, set, frozenset):
            items = sorted(thing, key=repr) if isinstance(thing, set | frozenset) else thing
            return {type(thing).__name__: [self.value(each) for each in items]}
        if type(thing) is dict:
            return {"dict": [[self.value(key), self.value(each)] for key, each in thing.items()]}
        kind = type(thing)
        if not _is_known(kind.__module__, self._module) or "<" in kind.__qualname__ or callable(thing):
            raise TypeError(f"{thing!r:.80} is no state")
        fields = {name: self.value(each) for name, each in _attributes(thing).items()}
        return {"object": kind.__qualname__, "of": kind.__module__, "fields": fields}


_MADE: Mapping[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class _Reading:
    def __init__(self, module: str) -> None:
        self.objects: list[Any] = []
        self._module = module

    def value(self, written: Any) -> Any:
        if isinstance(written, list):
            (number,) = written
            if not 0 <= number < len(self.objects):
                raise IndexError(number)
            return self.objects[number]
        if isinstance(written, dict):
            raise TypeError("an object in the place of its number")
        return written

    def made(self, written: Mapping[str, Any]) -> Any:
        if "array" in written:
            return _array(written)
        if "deque" in written:
            return deque(self._all(written["deque"]), written["most"])
        if "dict" in written:
            return {self.value(key): self.value(each) for key, each in written["dict"]}
        if "object" in written:
            kind = self._class(written["of"], written["object"])
            thing: object = object.__new__(kind)
            for name, each in written["fields"].items():
                object.__setattr__(thing, name, self.value(each))
            return thing
        ((name, items),) = written.items()
        return _MADE[name](self._all(items))

    def _all(self, items: Collection[Any]) -> list[Any]:
        return [self.value(each) for each in items]

    def _class(self, module: str, name: str) -> type:
        if not _is_known(module, self._module):
            raise TypeError(f"a class of {module}")
        kind: Any = sys.modules[module]
        for part in name.split("."):
            kind = getattr(kind, part)
        if not isinstance(kind, type) or kind.__module__ != module:
            raise TypeError(f"{name} is no class of {module}")
        return kind


def _array(written: Mapping[str, Any]) -> Any:
    kind = np.dtype(written["dtype"])
    shape = tuple(int(length) for length in written["shape"])
    if kind.kind not in _TYPES or any(length < 0 for length in shape):
        raise ValueError("no such array")
    data = base64.b64decode(written["array"], validate=True)
    if len(data) > _MOST:
        raise ValueError("an array that is too large")
    return np.frombuffer(data, kind).reshape(shape).copy()
