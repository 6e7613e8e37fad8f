"""For all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from resmon.servers.alertmanager import Alertmanager
    from tests.servers.alertmanager.servers import Server

ROOT = Path(__file__).parent.parent

# Processes among which pytest-xdist shares the tests share the cores too. torch, which comes later, reads this when it is imported.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """No test records a run or writes a report into the checkout; it has a folder of its own for that."""

    def written() -> set[Path]:
        return {*ROOT.glob("runs/*"), *ROOT.glob("postmortem-*"), *ROOT.glob("*.safetensors"), *ROOT.glob("*.pt")}

    before = written()
    yield
    assert not written() - before


# What they need is imported where it is asked for: most tests ask for neither.


@pytest.fixture(scope="session")
def alertmanager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that only make silences and alerts of their own there."""
    from tests.servers.alertmanager.servers import running

    with running(tmp_path_factory.mktemp("alertmanager")) as started:
        yield started


@pytest.fixture
def client(alertmanager: Server) -> Iterator[Alertmanager]:
    from resmon.servers.alertmanager import Alertmanager

    with Alertmanager.of([alertmanager.url]) as made:
        yield made
