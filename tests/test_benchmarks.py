"""The harness of `make bench`: it runs, its pairs are pairs, its statistics are right. How long anything takes is not asserted."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import report, run
from benchmarks.measurement import Measurement, Quartiles
from benchmarks.observers import Observer, Resmon, TensorBoard
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
@pytest.mark.parametrize("name", WORKLOADS)
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

HOW = report.Circumstances("python -m benchmarks.run", "2026-01-31 12:00 UTC", "Some CPU", 2, 2, {"torch": "2.13"}, (0.1, 0.2, 0.3))


def test_a_miss_is_shown_as_a_miss() -> None:
    met = Measurement("gpt2", "resmon", 10, bare=[1.0], watched=[1.0005], background=0.25, same_weights=True)
    missed = replace(met, watched=[1.03])
    other = replace(missed, observer="wandb", background=None, same_weights=False)
    first, second, third = report.markdown([met, missed, other], {"gpt2": "GPT-2"}, {"gpt2": 1.02}, HOW).splitlines()[2:5]
    assert first.split(" | ") == [
        "| GPT-2, 10 sites",
        "resmon",
        "1",
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
    assert third == "| GPT-2, 10 sites | wandb | 1 | 1000.0 ms | 1.030 (1.030 to 1.030) |  | 3000 (3000 to 3000) |  |  | no |"


def test_a_ratio_that_rounds_to_the_target_is_still_a_miss() -> None:
    measured = Measurement("gpt2", "resmon", 10, bare=[1.0], watched=[1.0204])
    assert "1.020 (1.020 to 1.020), target 1.02: **missed**" in report.markdown([measured], {"gpt2": ""}, {"gpt2": 1.02}, HOW)


def test_the_table_replaces_what_stands_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.put_into(page, "first")
    report.put_into(page, "second")
    assert page.read_text() == f"before\n{report.BEGIN}\n\nsecond\n\n{report.END}\nafter\n"


@pytest.mark.parametrize("text", ["", report.BEGIN, f"{report.END} {report.BEGIN}", f"{report.BEGIN}{report.BEGIN}{report.END}"])
def test_a_page_without_its_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="needs the marks"):
        report.put_into(page, "table")
    assert page.read_text() == text


def test_the_page_of_the_project_can_take_the_table() -> None:
    report.around(run.PAGE)


@pytest.mark.parametrize("argv", [["--only", "nobody"], ["--pairs", "0"]])
def test_arguments_that_make_no_sense_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(argv)
    assert "usage: python -m benchmarks.run" in capsys.readouterr().err


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
