"""What the tests of capture share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.capture import loops


@pytest.fixture(autouse=True)
def nobody_watches_on() -> Iterator[None]:
    """What a test watched through `loops.watch` is not watched any more in the next test."""
    yield
    while loops.watching:
        loops.watching.pop().detach()
