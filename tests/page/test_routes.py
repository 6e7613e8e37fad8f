"""The page's addresses as a client sees them: headers, tags, files, and what is refused."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from resmon.handbook import pages as handbook
from resmon.page.address import identity
from resmon.page.listing import Listing
from resmon.page.routes import HEADERS, Page
from tests.page.runs import record


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    made = Page(Listing(lambda: [tmp_path], list))
    yield made
    made.close()


@pytest.fixture
def client(page: Page, tmp_path: Path) -> TestClient:
    record(tmp_path, "one", 20, 2)
    return TestClient(Starlette(routes=page.routes()))


def one(tmp_path: Path) -> str:
    return f"/api/run?id={identity(tmp_path / 'one')}"


def test_every_answer_has_the_policy(client: TestClient, tmp_path: Path) -> None:
    addresses = (
        "/",
        "/api/runs",
        one(tmp_path),
        "/api/run",
        "/runbooks/nonfinite",
        "/runbooks/none",
        "/static/page.js",
        "/static/none",
    )
    for address in addresses:
        answer = client.get(address)
        assert HEADERS.items() <= dict(answer.headers).items(), address
        assert (answer.status_code == 404) == (address.endswith("none") or address == "/api/run")


def test_nothing_can_be_changed(client: TestClient, tmp_path: Path) -> None:
    for address in ("/", "/api/runs", one(tmp_path), "/postmortem", "/static/page.js"):
        assert client.get(address, headers={"x-http-method-override": "DELETE"}).status_code in (200, 404)
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert client.request(method, address).status_code == 405


def test_what_is_as_before_is_not_sent_again(client: TestClient, tmp_path: Path) -> None:
    for address in ("/api/runs", one(tmp_path), "/static/page.js"):
        first = client.get(address)
        again = client.get(address, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert abs(float(client.get(one(tmp_path)).headers["x-now"]) - time.time()) < 60


def test_plotly_is_the_installed_one_and_is_kept_by_browsers(client: TestClient) -> None:
    from plotly.offline import get_plotlyjs

    html = client.get("/").text
    name = html.partition('src="/static/plotly-')[2].partition('"')[0]
    packed = client.get(f"/static/plotly-{name}")
    assert packed.text == get_plotlyjs() and packed.headers["content-encoding"] == "gzip"
    assert "immutable" in packed.headers["cache-control"]
    plain = client.get(f"/static/plotly-{name}", headers={"accept-encoding": "identity"})
    assert plain.text == packed.text and "content-encoding" not in plain.headers
    assert client.get("/static/plotly-000000000000.js").status_code == 404
    assert len(gzip.compress(plain.content, 6)) < 2_000_000


def test_only_the_pages_own_files_are_files(client: TestClient) -> None:
    for name in (
        "../routes.py",
        "..%2froutes.py",
        "page.html",
        "__init__.py",
        "%2e%2e/routes.py",
        "colours.css%00.js",
        "canvas.py",
    ):
        answer = client.get(f"/static/{name}")
        assert answer.status_code == 404, name
        assert "import" not in answer.text


def test_every_runbook_is_a_page_without_markup_of_its_own(client: TestClient) -> None:
    for name in handbook.names():
        answer = client.get(f"/runbooks/{name}")
        assert answer.status_code == 200
        assert "<h2>Meaning</h2>" in answer.text and "<script" not in answer.text
    assert client.get("/runbooks/playbooks").status_code == 404


def test_it_is_known_when_somebody_looks(page: Page, client: TestClient) -> None:
    """An agent does not leave under their eyes."""
    assert page.looked_at == float("-inf")
    before = time.monotonic()
    client.get("/api/runs")
    assert page.looked_at >= before


def test_no_post_mortem_of_no_run(client: TestClient) -> None:
    answer = client.get("/postmortem?id=../../etc")
    assert answer.status_code == 404 and "no such run" in answer.text
