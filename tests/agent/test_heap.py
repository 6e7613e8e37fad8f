"""How much an agent holds of what it follows and answers: by Python's own account, which is the same on every machine."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from resmon.agent.roster import Roster
from resmon.detectors import Bank
from resmon.detectors.window import WINDOW
from resmon.exporters.prometheus import OPENMETRICS, TEXT, Prometheus
from resmon.flight.reader import Follower
from resmon.records import BLOCK_COUNTS, BLOCK_VALUES, MAGNITUDE_COLUMNS, StepRecord
from tests import synthetic
from tests.agent.test_roster import Writer
from tests.exporters import views

SITES = 300  # enough that what is held for each of them is most of it


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESMON_RUNTIME_DIR", str(tmp_path / "runtime"))
    (tmp_path / "runtime").mkdir(mode=0o700)
    return tmp_path / "runtime"


def test_a_step_that_waits_for_its_window_is_held_without_its_histograms(runtime: Path, tmp_path: Path) -> None:
    """They are most of a row, and only a window's first and last are looked at; a view of a row would hold all of it."""
    writer = Writer(tmp_path / "runs", sites=SITES)
    for _ in range(2 * WINDOW + 12):
        writer.step()
    follower, bank, sizes = Follower(writer.folder), Bank(), []
    with traced():
        while items := follower.poll(1):
            for record in items:
                if isinstance(record, StepRecord):
                    bank.step(record, follower.columns.sites)
                    sizes.append(tracemalloc.get_traced_memory()[0])
    values, truths, counts, totals = 8 * len(BLOCK_VALUES), len(BLOCK_VALUES), 8 * len(BLOCK_COUNTS), 2 * 8
    each = (sizes[-1] - sizes[-9]) / 8 / SITES
    assert 0.9 * values < each < 1.3 * (values + truths + counts + totals) < 8 * MAGNITUDE_COLUMNS


def test_a_run_that_is_followed_takes_so_much_a_block(runtime: Path, tmp_path: Path) -> None:
    """When all that detectors remember is full; an agent that takes over from a bookmark holds not much more: its text has gone."""
    writer = Writer(tmp_path / "runs", sites=SITES)
    for _ in range(17 * WINDOW):
        writer.step()
    held = []
    for _ in range(2):
        with traced():
            roster = Roster(runtime, "0", 1000.0, max_series=100_000)
            while not roster.poll():
                pass
            held.append(tracemalloc.get_traced_memory()[0] / SITES)
            roster.leave()
    assert held[0] < 31_000
    assert held[1] < 40_000  # with each detector's own account of the blocks, until the first step comes


@pytest.mark.parametrize("kind", [TEXT, OPENMETRICS])
def test_an_exposition_is_written_without_a_second_one_beside_it(kind: str) -> None:
    sites = synthetic.sites(1400)
    training, exporter = synthetic.Training(sites), Prometheus()
    exporter.render(views.agent(views.run(sites, [training.step()])), kind)  # which makes the labels
    view = views.agent(views.run(sites, [training.step()]))
    with traced():
        content, _ = exporter.render(view, kind)
        _, most = tracemalloc.get_traced_memory()
    assert most < 1.4 * len(content)


def test_an_agent_imports_nothing_large_that_it_does_not_need() -> None:
    code = (
        "import sys; import resmon.agent.server\n"
        "print({'pyarrow', 'pandas', 'scipy', 'torch', 'plotly', 'jinja2', 'httpx', 'opentelemetry'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout == "set()\n"
