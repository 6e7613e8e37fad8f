"""A plugin for pytest: every tensor that a test makes is on a device whose memory the host cannot read (device.cpp).

It stands for a GPU as far as that can be had without one: what takes an address of its memory for one of the host's dies, what
makes the host wait is counted, and autograd has a thread of its own for it. It is registered with torch for the whole process and
for good, so it is for processes of its own (test_far.py). What CUDA alone has is replaced: pinned memory and events where numbers
are fetched, and DLPack where cells get their aliases.
"""

from __future__ import annotations

import ctypes
import os
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from resmon.capture.host import fetch
from resmon.capture.probes import cells

LIBRARY = "FAR_DEVICE"  # the path of device.cpp when it is built, in the environment

# Tests that say themselves where their tensors are, or ask for what this device, or any, does not have; by a part of the name.
NOT_HERE = {
    "complex": "its kernels are of real numbers",
    "sparse": "its kernels are of dense tensors",
    "test_a_fault_inside_a_probe": "what it breaks is done in main memory only",
    "test_a_pass_that_failed_and_is_done_again": "what is on an accelerator is not taken back (docs/limits.md)",
    "test_nonfinite_elements_are_counted[by block]": "there they are counted from the second such step on (docs/limits.md)",
    "test_parameters_that_were_replaced_are_known": "looks at numbers before they are fetched",
    "inductor": "the inductor makes no code for it",
    "sample_is_like": "has NumPy look at its tensors",
    "ShardedGradScaler": "no process group has a backend for it",
    "test_a_search_for_the_scale": "autocast is asked for the CPU",
    "test_the_gap_is_that_of_the_batch": "looks at numbers before they are fetched",
    "test_replicated_and_sharded_buffers": "no process group has a backend for it",
}


@contextmanager
def copying() -> Iterator[None]:
    """What this thread copies meanwhile is on its way behind the host's back."""
    _device.device_copies(True)
    try:
        yield
    finally:
        _device.device_copies(False)


def waits() -> int:
    """How often the host has waited for the device."""
    return int(_device.device_waits())


def _registered() -> torch.device:
    torch.utils.rename_privateuse1_backend("far")
    module: Any = types.ModuleType("torch.far")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.device = lambda device: nullcontext()  # there is one
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    torch._register_device_module("far", module)
    torch.utils.generate_methods_for_privateuse1_backend()
    return torch.device("far:0")


torch.ops.load_library(os.environ[LIBRARY])
_device = ctypes.CDLL(os.environ[LIBRARY])
_device.device_waits.restype = ctypes.c_int64
_device.device_copies.argtypes = [ctypes.c_bool]
FAR = _registered()


def _to_host(numbers: Tensor) -> tuple[Tensor, None]:
    with copying():
        return numbers.cpu(), None


def _to_device(numbers: Tensor, device: torch.device) -> Tensor:
    with copying():
        return numbers.to(device)


def _alias(tensor: Tensor) -> Tensor:
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


_numpy = Tensor.numpy


def _for_a_test(tensor: Tensor, **how: Any) -> Any:
    """Tests make their references with NumPy."""
    return _numpy(_to_host(tensor.detach())[0] if tensor.device == FAR else tensor, **how)


@pytest.fixture(autouse=True)
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fetch, "OBSERVED", (*fetch.OBSERVED, "far"))
    monkeypatch.setattr(fetch, "to_host", _to_host)
    monkeypatch.setattr(fetch, "to_device", _to_device)
    monkeypatch.setattr(cells, "alias", _alias)
    monkeypatch.setattr("resmon.capture.probes.entrance.alias", _alias)
    monkeypatch.setattr(Tensor, "numpy", _for_a_test)
    torch.set_default_device(FAR)
    yield
    torch.set_default_device(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for part, why in NOT_HERE.items():
            if part in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=why))
