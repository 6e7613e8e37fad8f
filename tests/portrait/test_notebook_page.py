"""docs/notebook.md: its cells run in a real kernel, and a browser shows what they leave."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import plotly
import pytest

import resmon
from resmon.plots.measures import MEASURES
from resmon.portrait.picture import PLOTLY
from tests.browser import Page
from tests.portrait.notebooks import PAGE, executed, page
from tests.programs import program


def test_the_quantities_are_those_that_there_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = re.search(r"other quantities are those of .*?: (.*?)\. JupyterLab", text, re.DOTALL)
    assert named is not None
    assert {*re.findall(r"`(\w+)`", named[1]), "branch_skip_ratio", "gradient_norm"} == {measure.name for measure in MEASURES}
    assert (PAGE.parent / "notebook.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nbformat.NotebookNode]:
    folder = tmp_path_factory.mktemp("notebook")
    return folder, executed(folder, shorter=10)


@pytest.mark.slow
def test_its_cells_show_the_run(notebook: tuple[Path, nbformat.NotebookNode]) -> None:
    folder, made = notebook
    first, second, third = (cell.outputs[-1].data for cell in made.cells[1:-1])
    assert "running with 40 steps" in first["text/plain"]
    assert "running with 50 steps" in second["text/plain"]
    assert set(first) == {"text/plain", "text/html"} and set(third) == {"text/plain", "text/html", PLOTLY}
    assert all(8_000 < len(each["text/html"]) < 60 << 10 for each in (first, second))
    assert len(json.dumps(third)) < 300_000
    assert resmon.load(folder / "runs" / "cells").outcome == "finished"


@pytest.mark.slow
def test_a_browser_shows_them(notebook: tuple[Path, nbformat.NotebookNode], tmp_path: Path) -> None:
    """As nbconvert writes it, without a script; and plotly's picture by the plotly.js that comes with plotly."""
    program("chromium")
    file = tmp_path / "notebook.html"
    file.write_text(page(notebook[1]), encoding="utf-8")
    with Page(file, tmp_path) as browser:
        browser.until("document.images.length === 5 && [...document.images].every((image) => image.complete)")
        assert browser.run("[...document.images].every((image) => image.naturalWidth === 760 && image.naturalHeight > 200)")
        assert browser.run("document.querySelectorAll('table tbody tr').length") == 18
        script = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").as_uri()
        figure = json.dumps(notebook[1].cells[3].outputs[-1].data[PLOTLY])
        file.write_text(f'<script src="{script}"></script><div id="it"></div><script>Plotly.newPlot("it", {figure})</script>')
        browser.complaints.clear()
        browser.open(file)
        browser.until("document.querySelectorAll('.main-svg').length > 0 && document.querySelectorAll('.hm').length === 1")
        assert browser.run("document.querySelector('.scatterlayer .js-line').getAttribute('d').length") > 50
        x, y = browser.run(
            "(() => { const box = document.querySelector('.hm image').getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + 5]; })()"
        )
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        browser.until("document.querySelector('.hoverlayer').textContent.startsWith('stages.0.0step 2')")
        assert not browser.complaints, browser.complaints
        browser.picture(tmp_path / "plotly.png")
