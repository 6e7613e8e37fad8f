"""What the tests of capture share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from resmon.capture import fetch
from tests.capture import loops


@pytest.fixture(autouse=True)
def nobody_watches_on() -> Iterator[None]:
    """What a test watched through `loops.watch` is not watched any more in the next test."""
    yield
    while loops.watching:
        loops.watching.pop().detach()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch, and what reads large tensors, compute in two threads, also where the tests are shared and each process has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Main memory is taken for an accelerator: all is queued there, and its numbers are fetched."""
    monkeypatch.setattr(fetch, "is_here", lambda tensor: False)
