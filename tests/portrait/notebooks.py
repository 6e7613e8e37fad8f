"""docs/notebook.md as a real notebook: its cells run in a kernel, what came of it as a page that a browser shows.

`python -m tests.portrait.notebooks` (part of `make picture`) takes the page's picture anew.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbconvert.preprocessors import TagRemovePreprocessor

from tests.browser import Page
from tests.demonstration import BEGINNING

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "notebook.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
WIDTH = 940

# What the page takes as given: a model, an optimizer, and a function that trains so many steps. It is the demonstration's.
SETUP = f"""{BEGINNING}optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

def train(steps):
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.log(loss=loss)
"""


def executed(folder: Path, shorter: int = 1) -> nbformat.NotebookNode:
    """The notebook of the page, run in `folder`; `shorter` divides the steps."""
    made = nbformat.v4.new_notebook()
    setup = nbformat.v4.new_code_cell(SETUP, metadata={"tags": ["setup"]})
    cells = [re.sub(r"train\((\d+)\)", lambda found: f"train({int(found[1]) // shorter})", snippet) for snippet in SNIPPETS]
    closing = nbformat.v4.new_code_cell("monitor.close()", metadata={"tags": ["setup"]})
    made.cells = [setup, *map(nbformat.v4.new_code_cell, cells), closing]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RESMON_AGENT": "off", "CUDA_VISIBLE_DEVICES": ""}
    # Through sockets in a folder, whose path must be short, and not through ports, which others may take meanwhile.
    with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
        manager = KernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/s", connection_file=f"{sockets}/c.json")
        client = NotebookClient(made, km=manager, timeout=240, resources={"metadata": {"path": str(folder)}})
        try:
            client.execute(env=environment)
        finally:
            manager.shutdown_kernel(now=True)
    return made


def page(notebook: nbformat.NotebookNode, cells: int | None = None) -> str:
    """As nbconvert shows it: the page's cells, or the first of them."""
    shown = nbformat.from_dict({**notebook, "cells": notebook.cells[: None if cells is None else cells + 1]})
    exporter = HTMLExporter(mathjax_url="", require_js_url="")
    exporter.register_preprocessor(TagRemovePreprocessor(remove_cell_tags={"setup"}, enabled=True), enabled=True)
    text, _ = exporter.from_notebook_node(shown)
    return str(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / "docs")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resmon-notebook-") as temporary:
        home = Path(temporary)
        file = home / "notebook.html"
        file.write_text(page(executed(home), cells=1), encoding="utf-8")
        with Page(file, home, WIDTH, 600) as browser:
            browser.until("[...document.images].every((image) => image.complete)")
            browser.picture(chosen.into / "notebook.png", whole=True)


if __name__ == "__main__":
    main()
