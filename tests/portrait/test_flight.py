"""A flight shows itself in a notebook: whatever became of the run, bounded in size, and harmless whatever it is called."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from IPython.core.interactiveshell import InteractiveShell

import resmon
from resmon.flight import layout
from resmon.page.course import Cells
from resmon.page.figures import shown
from resmon.portrait.facts import _coarser
from resmon.portrait.picture import PLOTLY
from tests import synthetic
from tests.flight.flights import begin, write
from tests.page.runs import HOSTILE, record
from tests.test_architecture import python


class Elements(HTMLParser):
    """The elements and the texts of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def bundle(folder: Path) -> dict[str, str]:
    made, _ = InteractiveShell.instance().display_formatter.format(resmon.load(folder))
    InteractiveShell.clear_instance()
    return {kind: str(text) for kind, text in made.items()}


def test_words_table_and_pictures(tmp_path: Path) -> None:
    folder = record(tmp_path, "digits", steps=300, blocks=6).parents[1]
    made = bundle(folder)
    assert set(made) == {"text/plain", "text/html"}
    assert made["text/plain"].splitlines()[0] == "digits, attempt 1, Net: finished after 300 steps, 6 blocks, loss 0.144"
    page = Elements(made["text/html"])
    assert [tag for tag, _ in page.tags].count("img") == 2
    blocks = resmon.load(folder).blocks().query("step == 299").set_index("block")
    row = made["text/html"].split(">h.3</td>")[1].split("</tr>")[0]
    shown = [float(text) for text in re.findall(r">([\d.e-]+)</td>", row)]
    names = ["skip_rms", "branch_rms", "branch_skip_ratio", "gradient_norm"]
    assert shown == pytest.approx(blocks.loc["h.3", names].astype(float).tolist(), rel=0.01)
    assert all(text in made["text/plain"] for text in ("h.0", "h.5", "branch/skip"))


def test_what_broke_is_told_first_and_marked(tmp_path: Path) -> None:
    made = bundle(record(tmp_path, "digits", steps=120, blocks=6, broken_at=100).parents[1])
    lines = made["text/plain"].splitlines()
    assert "nonfinite after 120 steps" in lines[0]
    assert lines[1].startswith("  nonfinite at step 100: Step 100: sqrt in module h.4")
    assert lines[2].startswith("  straying_block at step 80, ticket, open: The branch of h.4")
    (row,) = (line for line in lines if line.startswith("h.4 "))
    assert row.split() == ["h.4", *["not", "finite"] * 3, row.split()[-1]]
    page = made["text/html"]
    assert "Vermilion is NaN or infinite." in page
    assert "nonfinite, straying_block" in page.split(">h.4</td>")[1].split("</tr>")[0]


def test_what_broke_in_one_model_is_not_marked_in_another(tmp_path: Path) -> None:
    folder = record(tmp_path, "gan", steps=120, broken_at=100, models=("g", "d")).parents[1]
    page = bundle(folder)["text/html"]
    g, d = (page.split(f">{model}:h.4</td>")[1].split("</tr>")[0] for model in "gd")
    assert "straying_block" in d and "straying_block" not in g


def test_names_are_texts_and_nothing_is_a_script(tmp_path: Path) -> None:
    for i, name in enumerate((*HOSTILE, "\x1b[31mred\u202e")):
        folder = record(tmp_path, name, steps=40, names=HOSTILE, blocks=4, broken_at=30 if i else None).parents[1]
        made = bundle(folder)
        page = Elements(made["text/html"])
        tags = {tag for tag, _ in page.tags}
        assert tags <= {"div", "p", "span", "b", "i", "ul", "li", "img", "table", "caption", "thead", "tbody", "tr", "th", "td"}
        assert {key for _, keys in page.tags for key in keys} <= {"style", "alt", "width", "src"}
        assert all(keys["src"].startswith("data:image/svg+xml;base64,") for tag, keys in page.tags if tag == "img")  # type: ignore[union-attr]
        assert HOSTILE[1] in page.texts
        assert "\x1b" not in made["text/plain"]


def test_a_deep_network_and_a_long_run_take_bounded_room(tmp_path: Path) -> None:
    folder = record(tmp_path, "deep", steps=600, blocks=150, broken_at=500).parents[1]
    made = bundle(folder)
    assert len(made["text/html"]) < 60 << 10
    assert "126 more blocks" in made["text/html"]
    assert "h.148" in made["text/plain"], "which is in trouble"
    picture = resmon.load(folder).plot()
    assert len(json.dumps(picture._repr_mimebundle_())) < 400_000


def test_a_picture_of_a_quantity(tmp_path: Path) -> None:
    flight = resmon.load(record(tmp_path, "digits", steps=50, blocks=3).parents[1])
    made = flight.plot("gradient_norm")._repr_mimebundle_()
    go.Figure({key: made[PLOTLY][key] for key in ("data", "layout")})
    assert "var(" not in json.dumps(made[PLOTLY], allow_nan=False)
    assert made["text/html"].startswith("<img ")
    assert repr(flight.plot("gradient_norm")) == "Gradient norm, block by block of digits, steps 0 to 49"
    with pytest.raises(resmon.ConfigurationError, match=r"no 'loudness' to draw: there are branch_skip_ratio, gradient_norm"):
        flight.plot("loudness")


def test_what_is_empty_damaged_or_gone_shows_itself_too(tmp_path: Path) -> None:
    rank = record(tmp_path, "begun", steps=0, blocks=0, end=False)
    assert "no step is on file" in bundle(rank.parents[1])["text/plain"]
    rank = record(tmp_path, "damaged", steps=60, blocks=3)
    (segment,) = rank.glob("steps-*.arrow")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    segment.write_bytes(data)
    assert "damaged row" in bundle(rank.parents[1])["text/plain"]
    flight = resmon.load(rank.parents[1])
    segment.write_bytes(b"")
    (rank / layout.INFO).write_text("{")
    assert "no step is on file" in flight._repr_mimebundle_()["text/plain"]
    shutil.rmtree(rank.parents[1])
    assert "cannot be shown" in flight._repr_mimebundle_()["text/plain"]


def test_one_rank_of_several_is_shown_alone(tmp_path: Path) -> None:
    for rank in range(2):
        folder, writer = begin(tmp_path, rank=rank, world_size=2)
        write(writer, synthetic.Training(synthetic.sites(2), seed=rank), 20 + 10 * rank)
    alone = resmon.load(folder)._repr_mimebundle_()["text/plain"]
    assert "1 rank of 2 are shown" in alone
    both = resmon.load(tmp_path / "digits")._repr_mimebundle_()["text/plain"]
    assert "are shown" not in both


def test_showing_takes_neither_pandas_nor_plotly(tmp_path: Path) -> None:
    record(tmp_path, "digits", steps=30, blocks=3)
    code = (
        "import resmon, sys; flight = resmon.load('digits'); flight._repr_mimebundle_(); flight.plot()._repr_mimebundle_()\n"
        "print({'pandas', 'plotly', 'scipy', 'torch', 'IPython'} & set(sys.modules))"
    )
    assert python(code, tmp_path) == "set()\n"


def test_a_spike_is_seen_however_many_steps_a_column_has() -> None:
    level = 1 + 0.01 * np.random.default_rng(0).standard_normal((2, 400))
    high = level.copy()
    high[1, 213] = 1000.0
    mean = level.copy()
    mean[1, 213] = 3.0
    steps = np.arange(400) * 8
    cells = _coarser(Cells(steps, steps + 7, level, mean, high, np.zeros((2, 400), bool)), 50)
    assert cells.first.tolist()[:2] == [0, 64] and cells.last.tolist()[-1] == 3199
    values, _ = shown(cells)
    assert values.shape == (2, 50) and values[1, 213 // 8] == 1000.0
    assert np.delete(values.ravel(), 50 + 213 // 8).max() < 1.1
