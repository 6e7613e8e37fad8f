"""An agent over a folder of runs, and a browser that looks at its page."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from resmon.agent import runtime
from resmon.flight.layout import safe_name
from resmon.page.address import identity
from tests.agent.conftest import House
from tests.browser import Page
from tests.ports import free_port
from tests.programs import program


@dataclass
class Place:
    """Where runs are, and the agent's address."""

    house: House
    url: str
    runs: Path

    def address(self, run: str, **query: object) -> str:
        more = "".join(f"&{name}={value}" for name, value in query.items())
        return f"{self.url}/?run={self.id(run)}{more}"

    def id(self, run: str) -> str:
        return identity(self.runs / safe_name(run))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """With an agent that knows the folder."""
    program("chromium")
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESMON_RUNTIME_DIR", str(folder / "runtime"))
        house = House(folder, runtime.folder())
        house.runs.mkdir(mode=0o700)
        port = free_port()
        listen = f"127.0.0.1:{port}"
        house.start(sys.executable, "-m", "resmon", "agent", "--listen", listen, "--linger", "600", "-d", str(house.runs))
        yield Place(house, house.ready(port), house.runs)
        house.stop()


@pytest.fixture(scope="module")
def browser(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    os.environ.pop("DISPLAY", None)
    with Page("about:blank", tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def tab(browser: Page) -> Iterator[Page]:
    """The browser as if it had just been opened; nothing may be complained of in the end."""
    browser.open("about:blank")
    browser.size(1280, 900)
    browser.media(dark=False)
    browser.complaints.clear()
    yield browser
    browser.run("1")  # so that what was said meanwhile has been heard
    assert not browser.complaints
