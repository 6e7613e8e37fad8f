"""docs/flight.md says what is on disk, and its reader reads it without resmon."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import resmon
from resmon.flight import layout, schema
from resmon.flight.bins import LEVELS
from resmon.flight.writer import FIRST_STEPS
from resmon.records import MAGNITUDE_COLUMNS, MAGNITUDE_HIGH, MAGNITUDE_LOW, RUN_VALUES, Incident, RunEnd
from resmon.settings import Settings
from tests import synthetic
from tests.flight.flights import begin, write

PAGE = (Path(__file__).parents[2] / "docs" / "flight.md").read_text()


@pytest.fixture
def flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder, writer = begin(tmp_path / "runs")
    write(writer, synthetic.Training(synthetic.sites(3)), 70)
    writer.incident(Incident("failed-69", "failed", 5.0, 69, "it failed"))
    writer.end(RunEnd("failed", 9.0, 69))
    return folder


def test_the_pages_reader_reads_what_resmon_reads(flight: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    world: dict[str, Any] = {}
    exec(snippet, world)  # noqa: S102 - the page is ours
    blocks = resmon.load("runs/digits").blocks().set_index(["step", "block"])
    assert world["ratios"] == pytest.approx({name: blocks.loc[(69, name), "branch_skip_ratio"] for name in ("h.0", "h.1", "h.2")})


def test_files_are_those_that_the_page_names(flight: Path) -> None:
    block = re.search(r"## Folders\n\n```\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    named = {re.sub(r"\d{12}|\.\.\.", "N", line.split()[0]) for line in block[1].splitlines()}
    there = {re.sub(r"\d{12}", "N", path.name) for path in (*flight.iterdir(), *flight.parent.iterdir()) if path.is_file()}
    there = {re.sub(r"bins-[1-5]", "bins-0", name) for name in there}
    missing = there - {name.replace("scalarbins-0-Narrow", "scalarbins-0-N.arrow") for name in named}
    assert not missing, "on disk, and not on the page"
    for name in (
        layout.LAUNCH,
        layout.FINDINGS,
        layout.INFO,
        layout.LOCK,
        layout.INCIDENTS,
        layout.CHECKPOINTS,
        layout.REACHED,
        layout.SPANS,
        layout.END,
        layout.STOPPED,
        layout.STACK,
    ):
        assert name in named


def test_columns_and_numbers_are_true(flight: Path) -> None:
    with pa.ipc.open_stream(next(flight.glob("steps-*.arrow"))) as stream:
        names = stream.schema.names
        metadata = stream.schema.metadata
    assert {key.decode() for key in metadata} == set(re.findall(r"`(resmon\.(?:format|sites|groups))`", PAGE))
    assert int(metadata[b"resmon.format"]) == schema.FORMAT
    assert f"(`resmon.format`, now {schema.FORMAT})" in PAGE
    table = re.findall(r"^\| (`.*?) \| ", PAGE, re.MULTILINE)
    covered: set[str] = set()
    for row in table:
        quoted = re.findall(r"`([^`]*)`", row)
        if " ... " in row:
            covered |= set(names[names.index(quoted[0]) : names.index(quoted[1]) + 1])
        elif quoted[0].endswith("*"):
            covered |= {name for name in names if name.startswith(quoted[0][:-1])}
        else:
            covered |= set(quoted)
    assert covered == set(names)
    assert (RUN_VALUES[0], RUN_VALUES[-1]) == ("duration", "device_memory_free")
    assert f"{MAGNITUDE_COLUMNS} values a site: up to 2^{MAGNITUDE_LOW}, ... up to 2^{MAGNITUDE_HIGH}" in PAGE
    assert f"first {FIRST_STEPS:,} steps" in PAGE
    base, block = re.search(r"take ([\d.]+) MB and ([\d.]+) MB for each block", PAGE).groups()  # type: ignore[union-attr]
    for sites in (10, 1000):
        told = float(base) + sites * float(block)
        assert told == pytest.approx(FIRST_STEPS * schema.row_format("steps", synthetic.sites(sites)).size / 1e6, rel=0.05)
    assert f"{Settings.model_fields['budget'].default >> 20} MiB" in PAGE
    assert f"bins-{LEVELS - 1} of {64 * 8 ** (LEVELS - 1):,}" in PAGE
