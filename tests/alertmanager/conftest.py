"""One Alertmanager for all tests that only make silences and alerts of their own there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from resmon.alertmanager import Alertmanager
from tests.alertmanager.servers import Server, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("alertmanager")) as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[Alertmanager]:
    with Alertmanager.of([server.url]) as made:
        yield made
