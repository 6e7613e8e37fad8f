"""The pages of docs/: every one is found from its index, every link and picture leads somewhere, every snippet is run by a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Where a link into it may lead, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_has_every_page() -> None:
    named = set(LINK.findall((DOCS / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in PAGES if page.name != "README.md"} <= named


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "deploy" / "README.md"], ids=lambda page: f"{page.parent.name}/{page.name}"
)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        where = (page.parent / path).resolve() if path else page
        assert where.exists(), link
        assert not anchor or anchor in anchors(where), link


def test_every_picture_is_shown_somewhere() -> None:
    shown = {
        (page.parent / link).resolve()  # the checkout's, also where the tests run beside it (.ci/wheel)
        for page in (*PAGES, ROOT / "README.md")
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if link.endswith(".png")
    }
    assert {picture.resolve() for picture in DOCS.glob("*.png")} <= shown


@pytest.mark.parametrize("page", [page for page in PAGES if "```" in page.read_text(encoding="utf-8")], ids=lambda page: page.name)
def test_a_page_with_snippets_has_a_test_that_reads_it(page: Path) -> None:
    tests = [each.read_text(encoding="utf-8") for each in (ROOT / "tests").rglob("*.py") if each != Path(__file__)]
    assert any(f'"docs" / "{page.name}"' in text for text in tests)
