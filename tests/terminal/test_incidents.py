"""The panel of an incident says what is known as people read it, whatever a file may hold."""

from __future__ import annotations

from io import StringIO
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from resmon.records import Incident
from resmon.terminal.incidents import panel


def shown(**evidence: Any) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(panel(Incident("out_of_memory-7", "out_of_memory", 0.0, 7, "Memory ran out.", evidence=evidence)))
    return console.export_text()


def test_memory_is_a_picture() -> None:
    blocks = [{"block": f"layers.{i}", "activation_bytes": (12 - i) << 20} for i in range(12)]
    told = shown(blocks=blocks, memory=[[i, (i + 1) << 30, 3.0] for i in range(12)], asked_bytes=float(3 << 30))
    bars = {line.split()[-2]: line.count("█") for line in told.splitlines() if "layers." in line}
    assert bars == {f"layers.{i}": round((12 - i) / 12 * 20) for i in range(8)}
    assert "12 MiB  layers.0" in told and "and 4 more" in told
    assert "step 0: 1 GiB in use" in told and "step 11: 12 GiB in use" in told and "▁▁▂▃▃▄▅▆▆▇██" in told
    assert "asked" in told and "3 GiB" in told


def test_numbers_are_said_as_people_say_them() -> None:
    told = shown(
        tensors={"x": [32, 64]},
        operands=[{"role": "skip", "shape": [2, 3]}, {"role": "branch", "shape": [2, 4]}],
        seconds=5.394583825,
        resumed_time=86400.0,
        nothing=None,
        empty=[],
        of_all=True,
    )
    assert "x 32×64" in told and "role skip, shape 2×3" in told and "role branch, shape 2×4" in told
    assert "5.395" in told and "1970-01-02 00:00:00 UTC" in told and "of all" in told
    assert "nothing" not in told and "empty" not in told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["blocks", "memory", "tensors", "asked_bytes", "resumed_time", "[red]x", "\x1b[31m"])


@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_a_file_may_hold_anything(evidence: dict[str, Any]) -> None:
    assert "\x1b" not in shown(**evidence)
