"""The states that random numbers are drawn from: torch's on the CPU and the devices in use, Python's and numpy's.

They are taken at the start of every watched pass. Python and numpy take longer to tell theirs than all the rest of it, so they are
asked only where somebody has drawn numbers since, which their generators' memory shows.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Mapping
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
        return tuple.__new__(cls, (torch.default_generator.get_state(), devices, *_others.now()))  # cls(...) is Python, and slower

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


class _Others:
    """The Mersenne Twisters of Python and numpy, each asked for its state only when its memory is another one.

    CPython keeps the place and then the words right behind the generator's head. Where that is not so, or a program has given
    numpy a generator of another kind, both are asked each time.
    """

    def __init__(self) -> None:
        self._generator: Any = random.getstate.__self__  # type: ignore[attr-defined]
        self._bits: Any = None  # numpy's
        self._python = self._numpy = 0  # addresses of words and place; 0 is not known
        if type(self._generator).__basicsize__ >= object.__basicsize__ + ctypes.sizeof(_Words):
            *words, place = random.getstate()[1]
            there = id(self._generator) + object.__basicsize__
            self._python = there if list(_Words.from_address(there)) == [place, *words] else 0
        self._seen = b"", b"", None
        self._states: tuple[Any, Any] = None, None

    def now(self) -> tuple[Any, Any]:
        """Python's state and numpy's."""
        bits: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if bits is not self._bits:
            self._bits, self._seen = bits, (b"", b"", None)
            self._numpy = bits.ctypes.state_address if type(bits) is np.random.MT19937 else 0
        if not (self._python and self._numpy):
            return random.getstate(), np.random.get_state()
        seen = *_native.drawn(self._python, self._numpy), self._generator.gauss_next
        if seen != self._seen:
            python, numpy = self._states
            if seen[0] != self._seen[0] or seen[2] != self._seen[2]:
                python = random.getstate()
            if seen[1] != self._seen[1]:
                numpy = np.random.get_state()
            self._seen, self._states = seen, (python, numpy)
        return self._states


_others = _Others()
