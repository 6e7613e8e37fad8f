"""Memory that really runs out, in processes of their own; and what is said of errors that say so."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from resmon.capture.forensics.diagnoses import diagnose
from resmon.capture.forensics.failures import Scene
from resmon.capture.forensics.out_of_memory import ran_out
from resmon.flight import incidents, layout
from resmon.flight.reader import read_end
from resmon.memory.footprint import Footprint, Trail
from resmon.records import Incident
from tests import forkserver
from tests.capture.loops import watch

ROOT = Path(__file__).parent.parent.parent.parent
MIB = 1 << 20


def starve(directory: Path, where: str, how: str, free: int, *sizes: int) -> subprocess.CompletedProcess[str]:
    command = ["-m", "tests.capture.starved", str(directory), where, how, *map(str, (free, *sizes))]
    return forkserver.run(*command, env=os.environ | {"CI": "true"}, timeout=180)


def told(directory: Path) -> Incident:
    (rank,) = layout.ranks(max(layout.attempts(directory / "starved").values())).values()
    found, skips = incidents.read(rank)
    assert not skips
    end = read_end(rank)
    assert end is not None and end.outcome == "out_of_memory"
    (incident,) = incidents.newest(found)
    assert (incident.kind, incident.runbook) == ("out_of_memory", "out-of-memory")
    return incident


@pytest.mark.parametrize(
    ("where", "how", "module"),
    [
        ("forward", "with", "3.branch.up"),
        pytest.param("forward", "bare", "3.branch.up", marks=pytest.mark.slow),
        pytest.param("backward", "with", "", marks=pytest.mark.slow),
    ],
)
def test_the_block_is_named_and_the_batch_that_is_advised_fits(tmp_path: Path, where: str, how: str, module: str) -> None:
    free, before, much = 300, (500, 1000, 2000, 3000), 20_000
    failed = starve(tmp_path, where, how, free, *before, much)
    assert failed.returncode == 1 and "can't allocate memory" in failed.stderr, failed.stderr
    incident = told(tmp_path)
    assert (incident.block, incident.module, incident.step) == ("3", module, len(before))
    assert incident.summary.startswith(f"Main memory ran out in the {where} pass, in ")
    assert "starved.py" in incident.line
    found = incident.evidence
    assert found["asked_bytes"] > found["free_bytes"] > 0
    # The limit is what was free and in use, but for what is mapped and was never touched.
    assert found["batch"]["samples"] == much
    assert found["batch"]["by"].startswith("least squares")
    blocks = {each["block"]: each for each in found["blocks"]}
    assert next(iter(blocks)) == "3" or where == "backward"
    if where == "forward":
        # The norm's output, the two hidden values (of which relu keeps one) and the stream, with the norm's mean and deviation.
        assert blocks["3"]["activation_bytes"] == pytest.approx(much * 4 * (128 * 2 + 2048) + much * 8, rel=0.01)
        assert blocks["3"]["checkpoint_saves_bytes"] == blocks["3"]["activation_bytes"] - much * 4 * 128
    fits = found["batch"]["fits"]
    assert f"A batch of {fits} samples (of {much}) would have fitted" in incident.advice
    assert [step for step, _, _ in found["memory"]] == list(range(len(before)))
    # It is nearly so, and no timid guess. The limit is on addresses, the advice rests on resident peaks, and freed memory is used
    # again in another order in every process: what is told may be some percent too large.
    assert starve(tmp_path / "again", where, how, free, *before, fits * 3 // 4).stdout == "done\n"
    assert starve(tmp_path / "twice", where, how, free, *before, 2 * fits).returncode == 1


@pytest.mark.slow
def test_a_run_that_never_came_to_the_end_of_a_step(tmp_path: Path) -> None:
    """In the forward pass only what the first blocks keep is known; in the backward pass what all of them do."""
    assert starve(tmp_path / "a", "forward", "with", 300, 20_000).returncode == 1
    incident = told(tmp_path / "a")
    assert (incident.block, incident.step, incident.evidence["batch"]["fits"]) == ("3", 0, None)
    at_most = incident.evidence["batch"]["at_most"]
    assert f"hardly more than {at_most} samples (of 20000)" in incident.advice
    assert starve(tmp_path / "b", "forward", "with", 300, at_most // 2).stdout == "done\n"

    assert starve(tmp_path / "c", "backward", "with", 300, 20_000).returncode == 1
    incident = told(tmp_path / "c")
    assert incident.block == "3"
    assert incident.evidence["batch"]["by"].startswith("activation bytes per sample")


@pytest.mark.slow
def test_the_optimizers_first_step(tmp_path: Path) -> None:
    assert starve(tmp_path, "optimizer", "with", 290, 2).returncode == 1
    incident = told(tmp_path)
    assert incident.summary.startswith("Main memory ran out in the optimizer's step, at ")
    assert "foreach=False" in incident.advice and "batch of" not in incident.advice
    assert incident.evidence["batch"]["fits"] is None


@pytest.mark.slow
def test_evaluation_and_the_loop_itself(tmp_path: Path) -> None:
    assert starve(tmp_path / "a", "evaluation", "with", 200, 100).returncode == 1
    incident = told(tmp_path / "a")
    assert incident.summary.startswith("Main memory ran out in the evaluation, in module ")
    assert incident.evidence["batch"]["fits"] is None
    assert starve(tmp_path / "b", "loop", "bare", 200, 100).returncode == 1
    incident = told(tmp_path / "b")
    assert (incident.block, incident.module) == ("", "")
    assert incident.line.endswith("torch.zeros(1 << 30)")
    assert incident.advice == "It was not the model that asked for this memory: look at the line first."


CUDA = (
    "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which 14.94 MiB is free. Including "
    "non-PyTorch memory, this process has 79.13 GiB memory in use. Of the allocated memory 70.00 GiB is allocated by PyTorch, and "
    "8.25 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


def scene(model: nn.Module, known: Footprint | None = None) -> Scene:
    return Scene({"": model}, (), 7, None if known is None else lambda: known)


def raised(error: BaseException) -> Incident:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001, whichever it is
        return diagnose(caught, scene(nn.Linear(1, 1)))


def test_what_a_device_says_is_understood() -> None:
    gib = 1 << 30
    figures = {"device_memory": 70.0 * gib, "device_memory_free": 9.0 * gib}
    model = nn.Linear(1, 1)
    try:
        raise torch.OutOfMemoryError(CUDA)
    except torch.OutOfMemoryError as error:
        found = diagnose(error, scene(model, Footprint(Trail(), figures)))
    assert found.kind == "out_of_memory"
    assert found.evidence["asked_bytes"] == 1.5 * gib
    assert found.evidence["free_bytes"] == pytest.approx(14.94 * MIB)
    assert found.summary.startswith("Memory of the device ran out, at ")
    assert found.summary.endswith("1.5 GiB were asked for, 14.9 MiB were free, 70 GiB in use")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
        ),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 4000000000 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.13 GB, other allocations: 1.00 MB)"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_errors_that_say_so(error: BaseException) -> None:
    assert ran_out(error)
    assert raised(error).kind == "out_of_memory"


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(28, "No space left"), KeyError("x")]
)
def test_errors_that_do_not(error: BaseException) -> None:
    assert not ran_out(error)
    assert raised(error).kind != "out_of_memory"


def test_an_error_that_was_raised_from_one() -> None:
    try:
        try:
            [0] * (1 << 62)
        except MemoryError as error:
            raise RuntimeError("the step failed") from error
    except RuntimeError as error:
        found = diagnose(error, scene(nn.Linear(1, 1)))
    assert found.kind == "out_of_memory"
    assert found.line.endswith("[0] * (1 << 62)")


def recovers() -> None:
    try:
        [0] * (1 << 62)
    except MemoryError:
        {}["key"]  # type: ignore[index]


def test_one_that_was_handled_is_not_the_cause() -> None:
    with pytest.raises(KeyError) as caught:
        recovers()
    assert diagnose(caught.value, scene(nn.Linear(1, 1))).kind == "failed"


def test_what_cannot_be_gathered_is_left_out() -> None:
    def gather() -> Footprint:
        raise MemoryError

    try:
        [0] * (1 << 62)
    except MemoryError as error:
        found = diagnose(error, Scene({"": nn.Linear(1, 1)}, (), 7, gather))
    assert found.kind == "out_of_memory"
    assert found.evidence["unknown"] == "what is known of memory could not be gathered: MemoryError"


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + torch.tanh(self.linear(x))
        return y


def test_a_thousand_blocks(tmp_path: Path) -> None:
    model = nn.Sequential(*(Wide() for _ in range(1000)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session, sink = watch(model, optimizer)
    _step(model, optimizer)
    try:
        [0] * (1 << 62)
    except MemoryError as error:
        found = session.failed(error)
    assert found is not None and sink.incidents == [found]
    assert len(found.evidence["blocks"]) == 100 and found.evidence["blocks_left_out"] == 900
    assert found.evidence["blocks"][0]["activation_bytes"] == 2 * 4 * 8 * 4


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss = model(torch.randn(4, 8)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
