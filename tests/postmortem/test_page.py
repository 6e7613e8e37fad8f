"""The page and the Markdown: what stands in them, and that nobody's name becomes a part of them."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from markdown_it import MarkdownIt

from resmon.cli import main
from resmon.postmortem import markdown, page
from resmon.postmortem.figures import figures
from resmon.postmortem.report import make
from tests.browser import CHROMIUM
from tests.browser import Page as Tab
from tests.postmortem.runs import explosion, incident, record
from tests.terminals import rest

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "[link](http://evil) | `code` **bold** @you #1 \n# heading",
    "<b>h.3</b>{{ 7*7 }}${1+1}%{x}",
)


class Page(HTMLParser):
    """Its elements, the text of its scripts and all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of a run in which every text is somebody's attempt."""
    directory = tmp_path_factory.mktemp("hostile")
    bad = HOSTILE[0]
    broken = incident(
        "nonfinite",
        180,
        block=HOSTILE[2],
        module=HOSTILE[1],
        operation=bad,
        line=bad,
        advice=HOSTILE[1],
        evidence={bad: bad, "blocks": [{"block": bad, "activation_bytes": 5}]},
    )
    folder = record(
        directory, bad, explosion(at=180), names=HOSTILE, outcome="nonfinite", incidents=(broken,), command=(bad,), git_commit=bad
    )
    return page.render(make([folder]))


def test_no_name_becomes_a_part_of_the_page(hostile: str) -> None:
    parsed = Page(hostile)
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "footer",
        "section",
        "div",
        "span",
        "p",
        "h1",
        "h2",
    }
    allowed |= {"h3", "ul", "ol", "li", "dl", "dt", "dd", "table", "tr", "th", "td", "figure", "figcaption", "details", "summary"}
    allowed |= {"code", "strong", "button", "noscript", "script"}
    assert {tag for tag, _ in parsed.elements} <= allowed
    assert not [
        name for _, attributes in parsed.elements for name in attributes if name.startswith("on") or name in ("src", "href")
    ]
    words = " ".join(parsed.words)
    for name in HOSTILE:
        assert " ".join(name.split()) in " ".join(words.split())


def test_only_the_scripts_that_the_page_names_may_run(hostile: str) -> None:
    from hashlib import sha256

    parsed = Page(hostile)
    (policy,) = [
        attributes["content"] for tag, attributes in parsed.elements if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    kinds = [attributes.get("type") for tag, attributes in parsed.elements if tag == "script"]
    code = [text for text, kind in zip(parsed.scripts, kinds, strict=True) if kind is None]
    assert len(code) == 2
    for text in code:
        assert f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'" in (policy or "")
    assert "default-src 'none'" in (policy or "") and "unsafe-inline' " not in (policy or "").split("style-src")[0]
    assert hostile.count("plotly.js v") <= 2 and sum(len(text) > 1_000_000 for text in code) == 1


def test_figures_are_what_plotly_takes(tmp_path: Path) -> None:
    """Its Python package knows what plotly.js understands; figures are made without it."""
    folder = record(tmp_path, "broken", explosion(at=180), outcome="nonfinite")
    other = record(tmp_path, "other", explosion(at=9_000))
    made = figures(make([folder, other]))
    assert {"timeline", "ratio", "gradient", "activations", "loss", "training", "step_time", "beside"} <= set(made)
    for figure in made.values():
        go.Figure(figure.plot)  # raises ValueError for what it does not know


def test_no_name_is_markup_to_plotly(hostile: str) -> None:
    """plotly reads tags in texts; in data from files there is none but the line breaks of hovering labels."""
    parsed = Page(hostile)
    kinds = [attributes.get("type") for tag, attributes in parsed.elements if tag == "script"]
    plots = [json.loads(text) for text, kind in zip(parsed.scripts, kinds, strict=True) if kind == "application/json"]
    assert len(plots) >= 6
    ours = re.compile(r"<br>|<extra></extra>|<extra>%\{fullData\.name\}</extra>")

    def texts(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [text for item in inner for text in texts(item)]

    for plot in plots:
        for text in texts(plot):
            assert "<" not in ours.sub("", text), text


def test_the_markdown_is_ours_alone(tmp_path: Path) -> None:
    broken = incident("nonfinite", 180, block=HOSTILE[2], line=HOSTILE[0], advice=HOSTILE[1])
    folder = record(
        tmp_path, HOSTILE[2], explosion(at=180), names=HOSTILE, outcome="nonfinite", incidents=(broken,), command=HOSTILE
    )
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown.render(make([folder])))
    every = [inner for token in tokens for inner in (token, *(token.children or ()))]
    assert not {"html_block", "html_inline", "link_open", "image", "code_inline", "fence", "code_block"} & {
        token.type for token in every
    }
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h1"]
    assert len(headings) == 1
    texts = " ".join("".join(child.content for child in token.children or ()) for token in tokens if token.type == "inline")
    for name in HOSTILE:
        assert " ".join(name.split()) in texts
    rows = [i for i, token in enumerate(tokens) if token.type == "tr_open"]
    assert len(rows) > 20


def test_every_part_is_drawn(tmp_path: Path) -> None:
    blocks = [{"block": f"h.{i}", "activation_bytes": 10**9 * (i + 1), "checkpoint_saves_bytes": 10**8} for i in range(4)]
    broken = incident("out_of_memory", 199, evidence={"blocks": blocks})
    folder = record(tmp_path, story=explosion(at=180), outcome="out_of_memory", incidents=(broken,))
    other = record(tmp_path, "other")
    made = figures(make([folder, other]))
    wanted = {"timeline", "ratio", "gradient", "activations", "loss", "training", "memory", "blocks_memory", "step_time", "beside"}
    assert set(made) == wanted
    for figure in made.values():
        assert figure.caption.endswith(".") and figure.caption[0].isupper()
        assert figure.plot["data"]


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_page_of_next_to_nothing(blocks: int, steps: int, tmp_path: Path) -> None:
    report = make([record(tmp_path, steps=steps, blocks=blocks, outcome="failed")])
    assert "</html>" in page.render(report)
    assert markdown.render(report).startswith("# Post")


def test_a_thousand_blocks_stay_small(tmp_path: Path) -> None:
    report = make([record(tmp_path, steps=60, blocks=1000, outcome="failed", checkpoints=0)])
    assert len(page.render(report)) < 10_000_000
    ratio = figures(report)["ratio"]
    assert ratio.height <= 900
    assert len(ratio.plot["layout"]["yaxis"]["tickvals"]) <= 40


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to draw the page")
def test_a_browser_draws_every_figure_without_a_complaint(hostile: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(hostile, encoding="utf-8")
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=20000",
        "--enable-logging=stderr",
        "--v=0",
    ]
    result = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    drawn = Page(result.stdout)
    places = sum("data-figure" in attributes for _, attributes in drawn.elements)
    assert places >= 6
    assert sum(attributes.get("class") == "main-svg" for tag, attributes in drawn.elements if tag == "svg") >= places
    complaints = [line for line in result.stderr.splitlines() if ":CONSOLE" in line]
    assert not complaints, complaints


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to draw the page")
def test_what_was_filled_in_is_saved(hostile: str, tmp_path: Path) -> None:
    """The button writes a page that holds the text and draws its figures again."""
    file, saved = tmp_path / "page.html", tmp_path / "saved"
    saved.mkdir()
    file.write_text(hostile, encoding="utf-8")
    drawn = "document.readyState == 'complete' && document.querySelectorAll('[data-figure] .main-svg').length > 5"
    with Tab(file, saved) as tab:
        tab.until(drawn)
        tab.run("document.querySelector('td[data-hint]').textContent = 'Ada <b>'")
        tab.run("document.getElementById('save').click()")
        (copy,) = tab.downloaded("*.html")
    assert copy.stat().st_size < len(hostile) + 10_000, "figures are saved once, as data"
    again = tmp_path / "again"
    again.mkdir()
    with Tab(copy, again) as tab:
        tab.until(drawn)
        assert tab.run("document.querySelector('td[data-hint]').textContent") == "Ada <b>"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "runs", story=explosion(at=180), outcome="nonfinite", incidents=(incident("nonfinite", 180),))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["resmon", "postmortem", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert run("digits") == 0
    assert "went non-finite at step 180" in capsys.readouterr().out
    assert (tmp_path / "postmortem-digits-1.html").read_text().startswith("<!doctype html>")
    assert run("digits") == 2
    assert "--force" in capsys.readouterr().err
    assert run("digits", "--force") == 0
    capsys.readouterr()
    assert run("digits", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["trouble_step"] == 180
    assert run("digits", "-f", "markdown", "-o", "note.md") == 0
    assert (tmp_path / "note.md").read_text().startswith("# Post-mortem of digits")
    assert run("digits", "--format", "pdf") == 2
    assert "html, markdown, json" in capsys.readouterr().err
    assert run("digits", "-o", "there/note.html") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert run("nobody") == 2
    assert "there is no run 'nobody'" in capsys.readouterr().err.replace("\n", " ")


def test_progress_is_shown_on_a_terminal(tmp_path: Path) -> None:
    record(tmp_path / "runs", story=explosion(at=180), outcome="nonfinite")
    master, slave = pty.openpty()
    arguments = ["digits", "-d", str(tmp_path / "runs"), "-o", str(tmp_path / "x.html")]
    command, environment = [sys.executable, "-m", "resmon", "postmortem", *arguments], os.environ | {"TERM": "xterm"}
    with subprocess.Popen(command, stdout=slave, stderr=slave, stdin=subprocess.DEVNULL, env=environment) as running:
        os.close(slave)
        shown = rest(master)
    assert running.returncode == 0, shown
    # The line is drawn a dozen times a second; what takes less may be missing.
    assert b"digits: reading the flight" in shown
