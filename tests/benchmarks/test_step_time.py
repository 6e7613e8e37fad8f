"""The harness of `make bench`: it runs, its pairs are pairs, its statistics are right. How long anything takes is not asserted."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.nn.functional import cross_entropy

from benchmarks import device, report, run, waits, workloads
from benchmarks.measurement import Measurement, Quartiles, known_median
from benchmarks.observers import Hooks, Observer, Resmon, TensorBoard
from benchmarks.pairs import measure
from benchmarks.processes import background_seconds
from benchmarks.workloads import WORKLOADS, Training

ROW = re.compile(r"\| (?P<training>[^|]*, \d+ sites) \| (?P<observer>\w+) \| (?P<pairs>\d+) \|.*\| (?P<same>yes|no) \|")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.dropout(torch.relu(self.linear(x)), 0.5, self.training)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x)
        return y


def tiny() -> Training:
    torch.manual_seed(1)
    model = Stack()
    batches = [({"x": torch.randn(8, 4)}, torch.randint(4, (8,))) for _ in range(3)]
    return Training(model, torch.optim.SGD(model.parameters(), lr=0.1), batches, cross_entropy)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # observers write into the current folder
    monkeypatch.setenv("RESMON_AGENT", "off")


# -- statistics ------------------------------------------------------------------------------------------------------------


def test_quartiles_are_interpolated_between_the_values() -> None:
    assert Quartiles.of([5, 1, 4, 2, 3]) == Quartiles(2, 3, 4)
    assert Quartiles.of([1, 2, 3, 4]) == Quartiles(1.75, 2.5, 3.25)
    assert Quartiles.of([7]) == Quartiles(7, 7, 7)
    with pytest.raises(ValueError, match="at least one pair"):
        Quartiles.of([])


PAIRS = Measurement("gpt2", "resmon", 2, bare=[1.0, 2.0, 4.0], watched=[1.5, 2.2, 4.0], own=[0.25, 0.05, 0.5], background=0.6)


def test_the_ratio_is_taken_within_each_pair() -> None:
    ratio = PAIRS.ratio
    assert (ratio.lower, ratio.median, ratio.upper) == pytest.approx((1.05, 1.1, 1.3))
    assert replace(PAIRS, bare=[1.0, 2.0, 4.0], watched=[3.0, 2.0, 4.4]).ratio.median == pytest.approx(1.1)  # of medians: 1.5


def test_microseconds_per_site_come_from_the_differences() -> None:
    per_site = PAIRS.per_site  # differences 0.5, 0.2 and 0 s over two sites
    assert (per_site.lower, per_site.median, per_site.upper) == pytest.approx((50_000, 100_000, 175_000))


def test_the_own_account_is_set_against_the_bare_step() -> None:
    assert PAIRS.own_ratio == pytest.approx(1 + 0.25 / 2)
    assert PAIRS.own_per_site == pytest.approx(125_000)
    assert PAIRS.background_per_step == pytest.approx(0.2)
    without = replace(PAIRS, own=[], background=None)
    assert (without.own_ratio, without.own_per_site, without.background_per_step) == (None, None, None)


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        replace(PAIRS, bare=[1.0])


# -- pairs -----------------------------------------------------------------------------------------------------------------


def test_twins_take_turns_in_alternating_order() -> None:
    turns: list[tuple[str, float]] = []
    logged: list[float] = []
    made: list[Training] = []

    def make() -> Training:
        training = tiny()
        name = "bare" if not made else "watched"
        made.append(training)
        return replace(training, loss=lambda output, labels: _noted(name, cross_entropy(output, labels)))

    def _noted(name: str, loss: Tensor) -> Tensor:
        turns.append((name, loss.item()))
        return loss

    class Listener(Observer):
        def log(self, loss: Tensor) -> None:
            logged.append(loss.item())

    done: list[int] = []
    measured = measure(make, Listener, workload="tiny", observer="listener", pairs=4, warm_up=2, progress=done.append)
    assert [name for name, _ in turns] == ["watched", "bare", "bare", "watched"] * 3
    # The same loss within a pair, dropout included, and another one in the next pair.
    losses = [loss for _, loss in turns]
    assert losses[::2] == losses[1::2]
    assert len(set(losses)) == 6
    assert logged == losses[::2]
    assert done == [1, 2, 3, 4, 5, 6]
    assert len(measured.bare) == len(measured.watched) == 4
    assert min(measured.bare + measured.watched) > 0
    assert measured.sites == 2
    assert measured.same_weights


def test_a_slow_machine_gets_fewer_pairs() -> None:
    measured = measure(tiny, Observer, workload="tiny", observer="nothing", pairs=50, warm_up=1, seconds=0)
    assert len(measured.bare) == len(measured.watched) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, workload in WORKLOADS.items() if "cpu" in workload.devices])
def test_every_module_of_a_workload_runs_in_the_first_pass(name: str) -> None:
    """Else resmon would trace more passes than the warm-up covers."""
    training = WORKLOADS[name].make()
    waiting = {path for path, module in training.model.named_modules() if next(module.parameters(recurse=False), None) is not None}
    assert waiting
    for path in tuple(waiting):
        training.model.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: waiting.discard(path))
    arguments, labels = training.batches[0]
    training.loss(training.model(**arguments), labels).backward()
    assert waiting == set()


def test_an_observer_that_changes_the_training_is_told_on() -> None:
    class Meddler(Observer):
        def log(self, loss: Tensor) -> None:
            with torch.no_grad():
                next(self.training.model.parameters()).mul_(1.0001)

    assert not measure(tiny, Meddler, workload="tiny", observer="meddler", pairs=2, warm_up=0).same_weights


def test_resmon_is_measured_with_its_own_account() -> None:
    measured = measure(tiny, Resmon, workload="tiny", observer="resmon", pairs=3, warm_up=2)
    assert len(measured.own) == 3
    assert all(0 < seconds < 60 for seconds in measured.own)
    assert measured.same_weights
    assert measured.sites == 2


def test_hooks_that_do_nothing_are_called_as_often_as_resmons(monkeypatch: pytest.MonkeyPatch) -> None:
    called: Counter[str] = Counter()
    take, take_output = Hooks._take, Hooks._take_output
    monkeypatch.setattr(Hooks, "_take", lambda *given: (called.update(["take"]), take(*given))[1])
    monkeypatch.setattr(Hooks, "_take_output", lambda *given: (called.update(["output"]), take_output(*given))[1])
    measured = measure(tiny, Hooks, workload="tiny", observer="hooks", pairs=3, warm_up=2)
    # Of each of two sites in each of five steps: its skip, its branch, its output, and the output's gradient.
    assert called == {"take": 3 * 2 * 5, "output": 2 * 5}
    assert measured.same_weights and not measured.own


def test_tensorboard_gets_every_gradient_and_every_block_at_every_step() -> None:
    measured = measure(tiny, TensorBoard, workload="tiny", observer="tensorboard", pairs=3, warm_up=2)
    assert measured.same_weights
    assert measured.own == []
    written = EventAccumulator("tensorboard", size_guidance={"histograms": 0}).Reload()
    gradients = {f"gradient/blocks.{i}.linear.{name}" for i in (0, 1) for name in ("weight", "bias")}
    assert set(written.Tags()["histograms"]) == gradients | {"activation/blocks.0", "activation/blocks.1"}
    assert all([event.step for event in written.Histograms(tag)] == [0, 1, 2, 3, 4] for tag in written.Tags()["histograms"])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU time of other processes is read from Linux' /proc")
def test_background_counts_children_and_not_this_process() -> None:
    before = background_seconds([])
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ntime.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        after = background_seconds([])
    finally:
        child.kill()
        child.communicate()
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(0.3, abs=0.09)
    assert background_seconds([]) == pytest.approx(before, abs=0.001)  # the child is gone


# -- the report ------------------------------------------------------------------------------------------------------------

CPU, GPU = report.MARKS["cpu"], report.MARKS["cuda"]
HOW = report.Circumstances("python -m benchmarks.run", "2026-01-31 12:00 UTC", "Some CPU", 2, 2, {"torch": "2.13"}, (0.1, 0.2, 0.3))


def test_a_miss_is_shown_as_a_miss() -> None:
    met = Measurement("gpt2", "resmon", 10, bare=[1.0] * 6, watched=[1.0005] * 6, background=1.5, same_weights=True)
    missed = replace(met, watched=[1.03] * 6)
    other = replace(missed, observer="wandb", background=None, same_weights=False)
    first, second, third = report.markdown([met, missed, other], {"gpt2": "GPT-2"}, {"gpt2": 1.02}, HOW).splitlines()[2:5]
    assert first.split(" | ") == [
        "| GPT-2, 10 sites",
        "resmon",
        "6",
        "1000.0 ms",
        "1.000 (1.000 to 1.000), target 1.02: met",
        "",
        "50 (50 to 50), target 60: met",
        "",
        "250.0 ms",
        "yes |",
    ]
    assert "| 1.030 (1.030 to 1.030), target 1.02: **missed** |" in second
    assert "| 3000 (3000 to 3000), target 60: **missed** |" in second
    assert third == "| GPT-2, 10 sites | wandb | 6 | 1000.0 ms | 1.030 (1.030 to 1.030) |  | 3000 (3000 to 3000) |  |  | no |"


def test_a_ratio_that_rounds_to_the_target_is_still_a_miss() -> None:
    measured = Measurement("gpt2", "resmon", 10, bare=[1.0] * 6, watched=[1.0204] * 6)
    assert "1.020 (1.020 to 1.020), target 1.02: **missed**" in report.markdown([measured], {"gpt2": ""}, {"gpt2": 1.02}, HOW)


@pytest.mark.parametrize(
    ("watched", "own", "said"),
    [
        ([1.01] * 5, [], "target 1.02: not told by these pairs |"),  # too few for any interval
        ([1.0, 1.01, 1.015, 1.03, 1.04, 1.05], [], "target 1.02: not told by these pairs, 1.000 to 1.050 |"),
        ([1.01] * 20 + [1.03] * 5, [], "target 1.02: met |"),
        ([1.01] * 20 + [1.03] * 5, [0.021] * 25, "target 1.02: **missed** |"),
        ([1.01] * 5 + [1.03] * 20, [0.0], "target 1.02: **missed** |"),
    ],
)
def test_what_the_pairs_do_not_tell_is_neither_met_nor_missed(watched: list[float], own: list[float], said: str) -> None:
    measured = Measurement("gpt2", "resmon", 10, bare=[1.0] * len(watched), watched=watched, own=own)
    assert said in report.markdown([measured], {"gpt2": ""}, {"gpt2": 1.02}, HOW)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 400), seed=st.integers(0, 1 << 30))
def test_the_medians_bounds_are_as_sure_as_they_say(count: int, seed: int) -> None:
    """By the distribution of how many of n values are below the true median."""
    values = sorted(np.random.default_rng(seed).normal(size=count).tolist())
    low, high = known_median(values)
    if math.isinf(low):
        assert scipy.stats.binom.cdf(0, count, 0.5) > 0.025
        return
    place = values.index(low)  # that many values lie below it
    assert values.index(high) == count - 1 - place
    assert scipy.stats.binom.cdf(place, count, 0.5) <= 0.025 < scipy.stats.binom.cdf(place + 1, count, 0.5)


def test_the_table_replaces_what_stands_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{CPU.begin}\nold\n{CPU.end}\nafter\n")
    report.put_into(page, "first", CPU)
    report.put_into(page, "second", CPU)
    assert page.read_text() == f"before\n{CPU.begin}\n\nsecond\n\n{CPU.end}\nafter\n"


@pytest.mark.parametrize("text", ["", CPU.begin, f"{CPU.end} {CPU.begin}", f"{CPU.begin}{CPU.begin}{CPU.end}"])
def test_a_page_without_its_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="needs the marks"):
        report.put_into(page, "table", CPU)
    assert page.read_text() == text


def test_the_page_of_the_project_can_take_each_table(tmp_path: Path) -> None:
    """And neither touches the other."""
    page = tmp_path / "README.md"
    page.write_bytes(run.PAGE.read_bytes())
    report.put_into(page, "one table", CPU)
    report.put_into(page, "another table", GPU)
    report.put_into(page, "the one table", CPU)
    text = page.read_text()
    assert text.count(f"{CPU.begin}\n\nthe one table\n\n{CPU.end}") == 1
    assert text.count(f"{GPU.begin}\n\nanother table\n\n{GPU.end}") == 1


def test_on_a_gpu_memory_and_waits_stand_beside() -> None:
    how = replace(HOW, gpu="Some GPU, 80 GiB, CUDA 13.0")
    good = Measurement("xl", "resmon", 10, bare=[1.0], watched=[1.0], memory=[20 << 30, (20 << 30) + (3 << 20)], waits=[5, 5])
    counted = replace(good, waits=[5, 7])
    named = replace(good, places=["resmon/capture/probes/sums.py:7"])
    nothing = replace(counted, observer="nothing", memory=[20 << 30, 19 << 30])
    lines = report.markdown([good, counted, named, nothing], {"xl": "GPT-2-XL"}, {}, how).splitlines()
    assert lines[0].endswith("| same weights | device memory at peak | host waits for the device |")
    assert len({line.count(" | ") for line in lines[:6]}) == 1
    assert lines[2].endswith("| 20.00 GiB, +3.0 MiB (+0.01%) | 5 bare, 5 watched, target 0: met |")
    assert lines[3].endswith("| 5 bare, 7 watched, target 0: **missed** |")
    assert lines[4].endswith("| 5 bare, 5 watched, target 0: **missed** |")
    assert lines[5].endswith("| 20.00 GiB, -1024.0 MiB (-5.00%) | 5 bare, 7 watched |")
    assert "- GPT-2-XL, resmon: resmon/capture/probes/sums.py:7" in lines
    assert "Some GPU, 80 GiB, CUDA 13.0, Some CPU, 2 cores" in lines[-1]


def test_the_results_of_a_gpu_have_a_file_of_their_own() -> None:
    gpu = replace(HOW, gpu="NVIDIA H200 / (SXM), 140 GiB, CUDA 13.0")
    assert report.results_file(Path("results"), HOW) == Path("results/2026-01-31.json")
    assert report.results_file(Path("results"), gpu) == Path("results/2026-01-31-nvidia-h200-sxm.json")


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    measured = replace(PAIRS, memory=[1 << 40, 1], waits=[0, 2], places=["some.py:3"])
    report.write_json(path, [PAIRS, measured], replace(HOW, load=[0.1, 0.2, 0.3]))  # type: ignore[arg-type] # as JSON has it
    assert report.read_json(path) == (replace(HOW, load=[0.1, 0.2, 0.3]), [PAIRS, measured])  # type: ignore[arg-type]


# -- on a GPU: all of it but the device --------------------------------------------------------------------------------------

small_gpt = partial(workloads.gpt2_xl, layers=2, width=32, heads=2, vocabulary=64, batch=2, length=16)
small_resnet = partial(
    workloads.channels_last, partial(workloads.resnet, "bottleneck", (1, 1), stem=8, width=16, images=(4, 3, 32, 32), classes=10)
)


@pytest.mark.parametrize(("make", "sites"), [(small_gpt, 4), (small_resnet, 2)])
def test_the_trainings_for_a_gpu_are_measured(make: Callable[[], Training], sites: int) -> None:
    measured = measure(partial(workloads.half, make), Resmon, workload="small", observer="resmon", pairs=2, warm_up=2)
    assert measured.sites == sites
    assert measured.same_weights
    assert len(measured.own) == 2
    assert (measured.memory, measured.waits, measured.places) == (None, None, [])  # a CPU has none of it


@pytest.mark.parametrize(
    ("name", "parameters", "logits"), [("gpt2-xl", 1_638, (4, 1024, 50257)), ("resnet-50-224", 25, (128, 1000))]
)
def test_a_training_is_made_on_the_device_that_is_asked_for(name: str, parameters: int, logits: tuple[int, ...]) -> None:
    """On the meta device, which has shapes and no memory, GPT-2-XL runs anywhere: in its full size, optimizer and all."""
    with torch.device("meta"):
        training = WORKLOADS[name].make()
    tensors = [*training.model.parameters(), *training.model.buffers()]
    tensors += [t for arguments, labels in training.batches for t in (*arguments.values(), labels)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert training.device.type == "meta"
    assert sum(p.numel() for p in training.model.parameters()) // 1_000_000 == parameters  # GPT-2-XL's 1,558 and the head's 80
    arguments, labels = training.batches[0]
    output = training.model(**arguments)
    assert getattr(output, "logits", output).shape == logits
    training.loss(output, labels).backward()
    assert all(p.grad is not None for p in training.model.parameters())


def test_twins_are_made_where_they_are_measured() -> None:
    with torch.device("meta"):  # whatever is the default: a training there has no weights that could be compared
        assert measure(tiny, Observer, workload="tiny", observer="nothing", pairs=1, warm_up=0, on=device.CPU).same_weights


def test_images_lie_channels_last() -> None:
    training = small_resnet()
    arguments, _ = training.batches[0]
    weight = next(p for p in training.model.parameters() if p.dim() == 4)
    assert arguments["pixel_values"].is_contiguous(memory_format=torch.channels_last)
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_values_taken_by_the_host_are_counted() -> None:
    """With the profiler that counts waits on a GPU, of that which would wait there."""
    x = torch.ones(3)

    def stretch() -> None:
        for _ in range(4):
            x.sum().item()
        float(x[0])
        x.add_(1)

    assert waits.count(stretch, device.CPU) == 5
    assert waits.count(lambda: x.add_(1), device.CPU) == 0


def events(*told: tuple[str, float]) -> list[FunctionEvent]:
    cpu, cuda = torch.profiler.DeviceType.CPU, torch.profiler.DeviceType.CUDA
    stretch = [FunctionEvent(0, waits.RANGE, 1, 100.0, 200.0, device_type=cpu)]
    kernels = [FunctionEvent(0, waits.RANGE, 1, 120.0, 900.0, device_type=cuda)]
    return [FunctionEvent(i, name, 2, at, at + 1, device_type=cpu) for i, (name, at) in enumerate(told)] + stretch + kernels


@pytest.mark.parametrize("call", sorted(waits.CALLS))
def test_each_call_that_waits_counts(call: str) -> None:
    assert waits.counted(events((call, 101), (call, 150), ("cudaLaunchKernel", 160)), waits.CALLS) == 2


@pytest.mark.parametrize("call", ["cudaMemcpyAsync", "cudaEventQuery", "cudaEventRecord", "cudaStreamWaitEvent", "cudaMalloc"])
def test_calls_that_return_at_once_do_not(call: str) -> None:
    assert waits.counted(events((call, 150)), waits.CALLS) == 0


def test_the_profilers_own_waits_lie_outside() -> None:
    assert waits.counted(events(("cudaDeviceSynchronize", 99), ("cudaDeviceSynchronize", 201)), waits.CALLS) == 0


def test_events_without_their_stretch_are_no_zero() -> None:
    with pytest.raises(RuntimeError, match="cannot be counted"):
        waits.counted([], waits.CALLS)


def test_a_wait_that_torch_warns_of_is_named_by_its_line() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally at somewhere.cpp:1.)", stacklevel=1)
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, "/home/someone/venv/torch/optim/adam.py", 7)
    here = next(number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if "at somewhere.cpp" in line)
    assert sorted(waits.named(caught)) == [f"tests/benchmarks/test_step_time.py:{here}", "torch/optim/adam.py:7"]


class Allocator:
    """Counts as torch.cuda does."""

    now = most = 0

    def take(self, count: int) -> None:
        self.now += count
        self.most = max(self.most, self.now)

    def memory_allocated(self) -> int:
        return self.now

    def max_memory_allocated(self) -> int:
        return self.most

    def reset_peak_memory_stats(self) -> None:
        self.most = self.now


def test_memory_is_put_down_to_who_ran() -> None:
    allocator = Allocator()
    allocator.take(1000)  # what libraries took before
    memory = device.Memory(allocator)
    for training, held in enumerate((10, 10)):
        with memory.of(training):
            allocator.take(held)
    for training, kept, passing in ((0, 20, 5), (1, 23, 7), (0, 0, 5), (1, 0, 7)):  # states, and what is let go within a step
        with memory.of(training):
            allocator.take(kept + passing)
            allocator.take(-passing)
    assert memory.peaks == [35, 40]
    memory.forget_peaks()
    with memory.of(0):
        allocator.take(1)
    assert memory.peaks == [31, 0]
    assert device.Memory(None).peaks is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_one_sentence_says_so_and_nothing_is_written() -> None:
    page, results = run.PAGE.read_bytes(), sorted(run.RESULTS.iterdir())
    command = [sys.executable, "-m", "benchmarks.run", "--device", "cuda"]
    ended = subprocess.run(command, cwd=run.ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert re.fullmatch(r"torch \S+ .*: nothing was measured, and nothing written; .* NVIDIA GPU is at hand\.\n", ended.stderr)
    assert (run.PAGE.read_bytes(), sorted(run.RESULTS.iterdir())) == (page, results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_waits_are_seen_by_both_witnesses() -> None:
    x = torch.ones(3, device="cuda")
    assert waits.count(lambda: x.sum().item(), torch.device("cuda")) >= 1
    assert waits.count(lambda: x.add_(1), torch.device("cuda")) == 0
    assert [place.partition(":")[0] for place in waits.places(lambda: x.sum().item())] == ["tests/benchmarks/test_step_time.py"]
    assert waits.places(lambda: x.add_(1)) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [small_gpt, small_resnet, partial(workloads.compiled, small_gpt)])
def test_a_measurement_on_a_gpu_has_memory_and_waits(make: Callable[[], Training]) -> None:
    measured = measure(
        partial(workloads.half, make), Resmon, workload="small", observer="resmon", pairs=2, warm_up=2, on=torch.device("cuda")
    )
    assert measured.memory is not None and min(measured.memory) > 0
    assert measured.waits == [0, 0]
    assert measured.places == []


@pytest.mark.parametrize(
    "argv", [["--only", "nobody"], ["--pairs", "0"], ["--device", "abacus"], ["--resume", "some.json", "--only", "digits"]]
)
def test_arguments_that_make_no_sense_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(argv)
    assert "usage: python -m benchmarks.run" in capsys.readouterr().err


# -- a run that was cut short ------------------------------------------------------------------------------------------------


@pytest.fixture
def cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results of a run that lacks its last row, and a page that may be written."""
    page = tmp_path / "page.md"
    page.write_text(f"{CPU.begin}\nold\n{CPU.end}\n{GPU.begin}\nold\n{GPU.end}\n")
    monkeypatch.setattr(run, "PAGE", page)
    rows = [(w, o) for w, workload in WORKLOADS.items() if "cpu" in workload.devices for o in ("resmon", *workload.beside)]
    rows.remove(("digits", "nothing"))
    path = tmp_path / "earlier.json"
    here = run._circumstances([], "cpu")
    report.write_json(path, [replace(PAIRS, workload=w, observer=o) for w, o in rows], replace(here, date="2026-01-31 12:00 UTC"))
    return path


@pytest.mark.slow
def test_it_is_gone_on_with(cut_short: Path) -> None:
    _, before = report.read_json(cut_short)
    run.main(["--resume", str(cut_short), "--pairs", "1"])
    how, measured = report.read_json(cut_short)
    assert how.date == "2026-01-31 12:00 UTC"
    assert measured[:-1] == before
    assert (measured[-1].workload, measured[-1].observer, len(measured[-1].bare)) == ("digits", "nothing", 1)
    page = run.PAGE.read_text()
    assert len(ROW.findall(page)) == len(measured)
    assert page.endswith(f"{GPU.begin}\nold\n{GPU.end}\n")


def test_a_row_that_fails_is_told_and_the_others_are_kept(cut_short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, page = cut_short.read_bytes(), run.PAGE.read_bytes()
    monkeypatch.setattr(sys, "executable", "false")  # the program that fails whatever it is asked
    with pytest.raises(SystemExit, match=r"digits with nothing was not measured: (?s:.*)--resume .*earlier\.json"):
        run.main(["--resume", str(cut_short)])
    assert (cut_short.read_bytes(), run.PAGE.read_bytes()) == (results, page)


def test_it_is_gone_on_with_on_the_same_machine_only(cut_short: Path) -> None:
    how, measured = report.read_json(cut_short)
    report.write_json(cut_short, measured, replace(how, cpu="another"))
    with pytest.raises(SystemExit, match=r"measured elsewhere, .*'another'.* again"):
        run.main(["--resume", str(cut_short)])


@pytest.mark.parametrize("content", ["", "{}", '{"circumstances": {"cpu": 1}, "measurements": []}', None])
def test_results_that_are_none_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "some.json").write_text(content)
    with pytest.raises(SystemExit, match=r"some\.json cannot be gone on with"):
        run.main(["--resume", "some.json"])


# -- the whole -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("observer", ["resmon", "wandb"])
def test_a_measurement_runs_in_a_process_of_its_own(observer: str, capfd: pytest.CaptureFixture[str]) -> None:
    """resmon with a real agent, wandb with its service: both through their front doors, on the network of `make demo`."""
    page = run.PAGE.read_bytes()
    run.main(["--quick", "--only", "digits", "--only", observer])
    row = ROW.search(capfd.readouterr().out)
    assert row is not None
    assert row["training"] == f"{WORKLOADS['digits'].title}, 9 sites"
    assert (row["observer"], row["pairs"], row["same"]) == (observer, "3", "yes")
    assert run.PAGE.read_bytes() == page
    assert list(Path().iterdir()) == []
