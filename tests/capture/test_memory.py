"""Memory figures against what the system says by other ways, and a control group's files made by hand."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from resmon.capture import memory
from resmon.capture.memory import Memory, device_memory, main_memory

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _forget() -> None:
    memory._groups.cache_clear()


def test_what_a_tensor_takes_is_seen() -> None:
    before = main_memory()
    tensor = torch.ones(64 * MIB)  # 256 MiB, touched
    during = main_memory()
    assert before["memory"] is not None and during["memory"] is not None
    assert 250 * MIB < during["memory"] - before["memory"] < 300 * MIB
    del tensor
    after = main_memory()
    assert after["memory"] is not None and after["memory"] < during["memory"] - 200 * MIB
    assert after["memory_peak"] == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.2)
    assert after["memory_free"] is not None and after["memory_free"] > 0


def test_a_control_group_s_limit_counts_where_it_is_nearer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = tmp_path / "cgroup"
    inner = groups / "job" / "step"
    inner.mkdir(parents=True)
    (tmp_path / "self").write_text("0::/job/step\n")
    for folder, limit, used, idle in ((groups / "job", "8000000", "3000000", 500_000), (inner, "max", "2000000", 0)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {idle}\nother 7\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "self")
    monkeypatch.setattr(memory, "_GROUP_FOLDER", groups)
    assert main_memory()["memory_free"] == 8_000_000 - 3_000_000 + 500_000
    memory._groups.cache_clear()
    (inner / "memory.max").write_text("1000000\n")  # less than is used: nothing is free, and not less than that
    assert main_memory()["memory_free"] == 0.0


def test_a_system_that_tells_nothing_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_STATUS", "_MEMINFO", "_GROUPS", "_GROUP_FOLDER"):
        monkeypatch.setattr(memory, name, tmp_path / "nothing")
    assert main_memory() == {"memory": None, "memory_peak": None, "memory_free": None}


def test_figures_are_looked_up_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(memory, "monotonic", lambda: now)
    asked = []

    def devices() -> set[torch.device]:
        asked.append(now)
        return {torch.device("cpu")}

    figures = Memory(devices)
    first = figures.figures()
    now += 0.9 * memory.PERIOD
    assert figures.figures() is first
    now += 0.2 * memory.PERIOD
    assert figures.figures() is not first and asked == [100.0, now]
    assert device_memory({torch.device("cpu")} - {torch.device("cpu")}) == {}
