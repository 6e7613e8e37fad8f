"""Memory figures against what the system says by other ways, and a control group's files made by hand."""

from __future__ import annotations

import resource
from math import inf
from pathlib import Path

import pytest
import torch
from torch import nn

from resmon.capture.host import memory
from resmon.capture.host.memory import Memory, device_memory, main_memory
from tests.capture.loops import watch

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


class Looks:
    """When the figures were looked up, by a clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.at: list[float] = []
        monkeypatch.setattr(memory, "monotonic", lambda: self.now)
        self.memory = Memory(self._devices)

    def _devices(self) -> set[torch.device]:
        self.at.append(self.now)
        return {torch.device("cpu")}

    def after(self, seconds: float, size: float = 0.0) -> memory.Figures:
        self.now += seconds
        return self.memory.figures(size)


def test_figures_are_looked_up_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    first = looks.after(0.0)
    assert looks.after(0.9 * memory.PERIOD) is first
    assert looks.after(0.2 * memory.PERIOD) is not first and looks.at == [100.0, looks.now]
    assert device_memory({torch.device("cpu")}) == {}


def test_a_batch_larger_than_every_one_before_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    begun = looks.after(0.0)
    first = looks.after(0.001, 8.0)
    assert first is not begun, "the first batch has shared its figures with what was before it"
    assert looks.after(0.001, 16.0) is first  # soon after
    assert looks.after(0.001, 4.0) is first
    second = looks.after(memory.SOON, 4.0)
    assert second is not first, "the larger batch was forgotten"
    assert looks.after(0.5 * memory.PERIOD, 16.0) is second  # not larger
    assert looks.after(0.01 * memory.PERIOD, 17.0) is not second


def test_batches_that_grow_at_every_step_are_not_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    for size in range(1, 1001):  # a second
        looks.after(0.001, float(size))
    assert 1 / memory.SOON - 3 <= len(looks.at) <= 1 / memory.SOON + 2


def test_a_step_s_peaks_are_told_with_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the loop itself, not by when it is asked: the clock has no part in it."""
    monkeypatch.setattr(memory, "PERIOD", inf)
    monkeypatch.setattr(memory, "SOON", 0.0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = torch.optim.Adam(model.parameters())
    session, _ = watch(model, optimizer)
    for samples, looked in ((4, True), (2, False), (64, True), (64, False), (8, False), (65, True)):
        before = session._memory.figures()
        model(torch.randn(samples, 8)).square().mean().backward()
        optimizer.step()
        assert (session._memory.figures() is not before) == looked
