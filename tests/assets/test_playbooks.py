"""Playbooks: every link leads somewhere, every page is reached from one, and every command that they name is there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from resmon.assets.findings import TOLD
from resmon.assets.runs import RUN_ALERTS
from resmon.cli import VERBS

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "runbooks" / "playbooks"
BOOKS = sorted(FOLDER.glob("*.md"))
LINK = re.compile(r"\[[^\]]+\]\(([^)]+)\)")
books = pytest.mark.parametrize("book", BOOKS, ids=lambda path: path.stem)


def links(path: Path) -> set[Path]:
    return {Path(os.path.normpath(path.parent / link.partition("#")[0])) for link in LINK.findall(path.read_text())}


def test_there_is_one_for_each_way_and_one_that_chooses() -> None:
    assert {path.stem for path in BOOKS} == {"decide", "roll-back", "retrain", "carry-on"}
    assert {FOLDER / f"{name}.md" for name in ("roll-back", "retrain", "carry-on")} <= links(FOLDER / "decide.md")


@pytest.mark.parametrize(
    "page", [*BOOKS, *sorted((ROOT / "runbooks").glob("*.md"))], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert all(target.is_file() for target in links(page)), [target for target in links(page) if not target.is_file()]


def test_every_page_and_every_ticket_is_reached_from_the_tree() -> None:
    alerts = {told.runbook for told in TOLD} | {row.page for row in RUN_ALERTS}
    reached = {target.stem for target in links(FOLDER / "decide.md")}
    assert alerts <= reached, sorted(alerts - reached)


def test_the_pages_that_wake_somebody_are_in_one_of_the_three_ways() -> None:
    pages = {told.runbook for told in TOLD if told.severity == "page"} | {row.page for row in RUN_ALERTS if row.severity == "page"}
    reached = {target.stem for book in BOOKS if book.stem != "decide" for target in links(book)}
    assert pages <= reached, sorted(pages - reached)


@books
def test_no_playbook_is_a_dead_end(book: Path) -> None:
    assert (links(book) - {book}) & set(BOOKS)


@books
def test_every_command_is_there_with_its_options(book: Path) -> None:
    verbs = {name for name, _ in VERBS}
    named = re.findall(r"`resmon ([a-z]+)", book.read_text())
    assert named and set(named) <= verbs


def test_severe_alerts_of_every_file_lead_to_a_page_that_a_playbook_knows() -> None:
    """Those of the files that others write, too, where their page is one of the runbooks."""
    reached = {target.stem for book in BOOKS for target in links(book)}
    for file in (ROOT / "alerts").glob("resmon*.yaml"):
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    assert rule["annotations"]["runbook_url"].rpartition("/")[2].removesuffix(".md") in reached, rule["alert"]
