"""The states that random numbers are drawn from: torch's on the CPU and the devices in use, Python's and numpy's.

They are taken at the start of every watched pass. Python and numpy take longer to tell theirs than all the rest of it, so they are
asked only where somebody has drawn numbers since, which their generators' memory shows.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from resmon.capture import _native

_Words = ctypes.c_uint32 * 625  # of a Mersenne Twister: 624 and the place of the next


class Randomness(NamedTuple):
    """All states at one moment. A normal number that numpy has in reserve may have been taken unseen since the one before; then
    what draws some comes out differently. Where it must not, `kept` asks numpy itself."""

    torch: Tensor
    devices: Mapping[int, Tensor]
    python: Any
    numpy: Any

    @classmethod
    def now(cls) -> Randomness:
        devices = {}
        if torch.cuda.is_initialized():
            devices = {i: torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
        return cls(torch.default_generator.get_state(), devices, _python.now(), _numpy.now())

    def restore(self) -> None:
        torch.set_rng_state(self.torch)
        for device, state in self.devices.items():
            torch.cuda.set_rng_state(state, device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)


@contextmanager
def kept() -> Iterator[None]:
    """What draws numbers in here draws them from states that are put back."""
    randomness, numpy = Randomness.now(), np.random.get_state()
    try:
        yield
    finally:
        randomness.restore()
        np.random.set_state(numpy)


class _Twister:
    """A Mersenne Twister whose state takes its owner long to tell, so that it is asked only when its memory is another one."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self._seen: tuple[bytes, Any] | None = None
        self._state: Any = None

    def state(self, words: int, more: Any = None) -> Any:
        """`words` is the address of its words and place, and `more` what else the state depends on."""
        seen = _native.drawn(words), more
        if seen != self._seen:
            self._seen, self._state = seen, self._ask()
        return self._state


class _Python(_Twister):
    """Python's own generator. CPython keeps the place and then the words right behind the object's head; elsewhere it is asked."""

    def __init__(self) -> None:
        super().__init__(random.getstate)
        self._generator: Any = random.getstate.__self__  # type: ignore[attr-defined]
        self._words = 0
        if type(self._generator).__basicsize__ >= object.__basicsize__ + ctypes.sizeof(_Words):
            *words, place = random.getstate()[1]
            there = id(self._generator) + object.__basicsize__
            self._words = there if list(_Words.from_address(there)) == [place, *words] else 0

    def now(self) -> Any:
        return self.state(self._words, self._generator.gauss_next) if self._words else random.getstate()


class _Numpy(_Twister):
    """numpy's own generator, which a program may have replaced by one of another kind."""

    def __init__(self) -> None:
        super().__init__(np.random.get_state)
        self._generator: Any = None
        self._words = 0

    def now(self) -> Any:
        generator: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if generator is not self._generator:
            is_one = type(generator) is np.random.MT19937
            self._generator, self._seen = generator, None
            self._words = generator.ctypes.state_address if is_one else 0
        return self.state(self._words) if self._words else np.random.get_state()


_python = _Python()
_numpy = _Numpy()
