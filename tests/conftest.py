"""For all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """No test records a run or writes a report into the checkout; it has a folder of its own for that."""

    def written() -> set[Path]:
        return {*ROOT.glob("runs/*"), *ROOT.glob("postmortem-*"), *ROOT.glob("*.safetensors"), *ROOT.glob("*.pt")}

    before = written()
    yield
    assert not written() - before
