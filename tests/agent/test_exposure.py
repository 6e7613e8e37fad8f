"""What the agent's answers may never hold: a file that it does not serve, and what a run's names or logs would have a browser do.

Both are tried on every route that the application has, whichever those are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.applications import Starlette

from resmon.agent import runtime
from resmon.agent.runtime import Seat
from resmon.agent.server import Server
from resmon.flight import incidents
from resmon.flight.layout import boot_id, claim
from resmon.flight.writer import FlightWriter
from resmon.records import Incident, ScalarRecord
from tests import synthetic
from tests.agent.conftest import wait_for
from tests.agent.serving import Agent, agent

SECRET = "the-secret-beside-the-runs"  # noqa: S105, it is none
MARK = "<img src=x onerror=alert(1)>"
NAME = f"\"/>{MARK}<script>alert(2)</script>&lt;b&gt;'`${{7*7}}{{{{7*7}}}}</title></script><!--"

CLIMBS = [
    f"{step * depth}{target}"
    for step in ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "....//", "%252e%252e%252f", "..%c0%af", "..;/")
    for depth in (1, 2, 4, 9)
    for target in ("secret.txt", "etc/passwd")
]
PLAIN = [
    "/etc/passwd",
    "//etc/passwd",
    "%2fetc%2fpasswd",
    "file:///etc/passwd",
    "%00",
    "secret.txt%00.js",
    "~root",
    ".",
    "..",
    "%ff",
]


@dataclass
class Place:
    served: Agent
    routes: list[str]  # their paths, with parameters in braces
    inside: Path  # a link to the secret, in the run's own folder
    run: str

    def paths(self, name: str) -> Iterator[str]:
        """Every route with that in the place of each parameter, and behind it."""
        for route in self.routes:
            yield re.sub(r"{[^}]*}", lambda _: name, route)
            yield f"{route.partition('{')[0].rstrip('/')}/{name}"

    def ask(self, path: str) -> tuple[int, str, str]:
        """Status, kind and content of the answer to a path that is sent as it stands."""
        answer = self.served.ask(b"GET " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        kind = re.search(rb"(?i)\r\ncontent-type: *([^\r;]*)", head)
        return int(answer.split()[1]), kind[1].decode() if kind else "", body.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """An agent that follows one run, which has markup wherever somebody could have put it."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESMON_RUNTIME_DIR", str(folder / "runtime"))
        seat = Seat.take(runtime.folder(), 1)
        assert seat is not None
        application = Server(folder / "runtime", seat, 1.0, 1000).door.application
        seat.leave()
        assert isinstance(application, Starlette)
        routes = [route.path for route in application.routes]  # type: ignore[attr-defined]
        runs = folder / "runs"
        rank, attempt = claim(runs, NAME, "a", 0)
        about = {"run": NAME, "attempt": attempt, "boot_id": boot_id(), "launch": "a", "started": time.time(), "host": NAME}
        info = synthetic.info(**about, models={"": NAME}, command=(NAME,), working_directory=NAME, targets=(f"{NAME} >= 1",))
        flight = FlightWriter(rank, info, 64 << 20)
        sites = tuple(replace(site, name=f"{NAME}{i}", module=NAME, branch=(NAME,)) for i, site in enumerate(synthetic.sites(3)))
        training = synthetic.Training(sites, start=time.time())
        flight.sites(sites)
        runtime.register(rank)
        for step in range(20):
            flight.step(training.step(forward=[1] if step > 5 else []))
            flight.scalars(ScalarRecord(step, training.now, {NAME: 1.0, "loss": 2.0}))
        incidents.append(
            rank,
            Incident("i", "failed", time.time(), 7, summary=NAME, advice=NAME, block=NAME, evidence={NAME: NAME, "message": NAME}),
        )
    (folder / "secret.txt").write_text(SECRET)
    inside = rank / "link.txt"
    inside.symlink_to(folder / "secret.txt")
    with agent(folder, runtime=folder / "runtime", paced=False) as served:
        made = Place(served, routes, inside, rank.parent.parent.name)
        wait_for(lambda: "onerror" in made.ask("/metrics")[2])
        yield made


def test_no_file_can_be_named_that_is_not_served(place: Place) -> None:
    """Neither by a path nor by a query; not through a link that stands among a run's files either."""
    assert {"/", "/metrics", "/-/healthy", "/-/ready"} <= set(place.routes)
    names = [*CLIMBS, *PLAIN, str(place.inside), f"{quote(place.run)}/attempt-0001/rank-00000/link.txt", place.inside.name]
    asked = 0
    for name in names:
        for path in place.paths(name.replace(" ", "%20")):
            status, _, body = place.ask(path)
            assert status < 500, path
            assert SECRET not in body, path
            assert "root:x:0" not in body, path
            asked += 1
    assert asked >= 2 * len(names) * len(place.routes)


def test_no_query_names_a_file(place: Place) -> None:
    for name in [*CLIMBS[::5], str(place.inside), str(place.inside.parent)]:
        query = "&".join(
            f"{key}={quote(name)}" for key in ("id", "run", "path", "file", "name", "folder", "directory", "block", "match")
        )
        for route in place.routes:
            status, _, body = place.ask(f"{re.sub('{[^}]*}', 'x', route)}?{query}")
            assert status < 500, route
            assert SECRET not in body, route


class Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)


def test_nothing_of_a_run_becomes_markup(place: Place) -> None:
    seen = 0
    names = ["x", quote(place.run), quote(NAME, safe=""), quote(f"{NAME}0", safe="")]
    for name in names:
        query = "&".join(f"{key}={name}" for key in ("id", "run", "block", "match"))
        paths = set(place.paths(name))
        for path in paths | {f"{each}?{query}" for each in paths}:
            status, kind, body = place.ask(path)
            assert status < 500, path
            if kind != "text/html":
                # Sniffing is forbidden, so a browser shows these as they are.
                assert kind in ("text/plain", "application/json", "text/javascript", "text/css", "image/svg+xml"), (path, kind)
                continue
            page = Page()
            page.feed(body)
            assert MARK not in body, path
            assert not [name for name, _ in page.attributes if name.startswith("on")], path
            assert not [value for name, value in page.attributes if name in ("href", "src") and "script:" in (value or "")], path
            assert not any("alert(2)" in script and "\\u003c" not in script for script in page.scripts), path
            seen += 1
    assert seen
