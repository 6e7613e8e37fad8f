"""The fault bench: a trial of each kind from end to end, what counts as right, the intervals, the page and the notebook."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import resmon
from benchmarks.faults import comparison, healthy, injection, report, slow
from benchmarks.faults.__main__ import main
from benchmarks.faults.architectures import ARCHITECTURES, ROWS, losses
from benchmarks.faults.comparison import Cost
from benchmarks.faults.following import Detecting
from benchmarks.faults.healthy import HEALTHY, Quiet
from benchmarks.faults.kinds import ALL, FEW, KINDS, MANY
from benchmarks.faults.nonfinite import places
from benchmarks.faults.notebook import Notebook, commit
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.report import Proportion
from benchmarks.faults.trial import Injected, NothingBrokenError, Training, Trial, Truth
from benchmarks.report import Circumstances
from resmon.detectors import DETECTORS
from resmon.flight.frames import Flight
from resmon.records import Finding

SPOILS = tuple(name for name, kind in KINDS.items() if kind.names)  # the slow faults
SLOW = {"explosion", "scaler-overflow", "scaler-search", "memory", "sigkill", "hang", *SPOILS}  # long trainings, or processes
HOW = Circumstances("python -m benchmarks.faults", "2026-01-02 03:04 UTC", "a processor", 2, 1, {"torch": "2"}, (0.1, 0.2, 0.3))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in KINDS])
def test_a_trial_of_each_kind(kind: str) -> None:
    assert not missing(kind), "a finding is named that no detector makes"
    outcome = KINDS[kind].trial(kind, 7)
    assert outcome.is_right, outcome
    assert outcome.expected and outcome.said
    again = KINDS[kind].trial(kind, 7)
    assert replace(again, said="", delay=None) == replace(outcome, said="", delay=None)


def missing(kind: str) -> list[str]:
    """The kinds of findings that are true of a slow fault and that no detector makes."""
    return [name for name in KINDS[kind].names if not any(name.startswith(detector.name) for detector in DETECTORS)]


def test_the_table_is_as_large_as_it_is_to_be() -> None:
    many = {"forward-nan", "forward-inf", "backward-nan", "backward-inf", "loss", "data", "weights", "optimizer"}
    assert many == {name for name, kind in KINDS.items() if kind.trials == MANY} and MANY >= 300
    assert all(kind.trials == FEW for name, kind in KINDS.items() if name not in many) and FEW >= 30
    assert len(ARCHITECTURES) >= 8 and len(HEALTHY) >= 20
    assert sum(case.steps for case in HEALTHY.values()) >= 1_000_000


@pytest.mark.parametrize("name", ALL)
def test_the_blocks_of_an_architecture_are_there(name: str) -> None:
    """By hand, but not by guess: every path exists, and faults can be put into each block and outside of them."""
    made = ARCHITECTURES[name]
    modules = dict(made.make().named_modules())
    assert {path for block in made.blocks for path in (*block.modules, *block.projections)} <= set(modules)
    assert all(made.block_of(path) == block.name for block in made.blocks for path in block.projections)
    found = {made.block_of(place.module, place.operation, place.ordinal) for place in places(name, "forward")}
    assert found == {"", *(block.name for block in made.blocks)}


def test_what_is_shared_by_two_blocks_is_told_by_the_order_of_its_adds() -> None:
    gpt2 = ARCHITECTURES["gpt2"]
    assert gpt2.block_of("transformer.h.1", "add", 0) == "transformer.h.1.attn"
    assert gpt2.block_of("transformer.h.1", "add", 1) == "transformer.h.1.mlp"
    assert gpt2.block_of("transformer.h.1", "mul", 0) is None
    assert gpt2.block_of("transformer.ln_f") == "" and gpt2.block_of("transformer.h.0.ln_2") == "transformer.h.0.mlp"


def test_a_fault_breaks_one_call_and_tells_its_line() -> None:
    made = ARCHITECTURES["pre-activation"]
    torch.manual_seed(0)
    model = made.make().train()
    arguments, _ = made.data(torch.Generator().manual_seed(0), ROWS)
    fault = injection.Fault(model, injection.Place("blocks.1", "relu", 1), "forward", math.inf)
    assert bool(model(**arguments).isfinite().all()) and not fault.line
    fault.on = True
    assert not bool(model(**arguments).isfinite().all())
    file, _, number = fault.line.rpartition(":")
    assert "self.bn2(self.conv1(h))" in Path(file).read_text().splitlines()[int(number) - 1]


# -- what counts as right --------------------------------------------------------------------------------------------------

TRUTH = Truth(5, "a fault", "forward", "blocks.1", ("blocks.1.conv", "conv2d"), "model.py:12", (0, 3))
TRUE = {
    "kind": "nonfinite",
    "step": 5,
    "summary": "said",
    "origin": "forward",
    "block": "blocks.1",
    "module": "blocks.1.conv",
    "operation": "conv2d",
    "line": "model.py:12: y = conv2d(x)",
    "evidence": {"rows": [0, 3]},
}


def test_the_truth_is_right() -> None:
    outcome = Trial("forward-nan", 0).judged(TRUTH, [TRUE], "nonfinite")
    assert outcome.is_right and outcome.delay == 0
    assert (outcome.block, outcome.operation, outcome.line, outcome.origin) == (True, True, True, True)


@pytest.mark.parametrize(
    ("wrong", "question"),
    [
        ({"block": "blocks.2"}, "block"),
        ({"block": ""}, "block"),
        ({"module": "blocks.1"}, "operation"),
        ({"operation": "relu"}, "operation"),
        ({"line": "model.py:121: y = conv2d(x)"}, "line"),
        ({"origin": "backward"}, "origin"),
        ({"evidence": {"rows": [0]}}, "origin"),
    ],
)
def test_anything_else_is_wrong(wrong: dict[str, object], question: str) -> None:
    outcome = Trial("forward-nan", 0).judged(TRUTH, [TRUE | wrong], "nonfinite")
    assert outcome.detected and not outcome.is_right and getattr(outcome, question) is False


def test_an_incident_of_another_kind_is_none() -> None:
    outcome = Trial("forward-nan", 0).judged(TRUTH, [TRUE | {"kind": "failed"}], "nonfinite")
    assert not outcome.detected and outcome.block is False and outcome.said == "said"


# -- slow faults -----------------------------------------------------------------------------------------------------------

SAID = (600, "dead_branch", "ticket", "blocks.1", "said")
SPOILT = Truth(500, "a fault", block="blocks.1")


def spoilt(*findings: slow.Said) -> Outcome:
    return slow.judged(Trial("zeroed-branch", 0), SPOILT, ("dead_branch", "drift"), findings)


def test_a_true_finding_detects_a_slow_fault() -> None:
    outcome = spoilt((700, "drift", "page", "blocks.2", "later"), SAID, (90, "overfitting", "ticket", "", "before"))
    assert outcome.is_right and outcome.delay == 100 and outcome.block is True
    assert outcome.said.startswith("too early, 90 ticket overfitting: before; 600 ticket dead_branch: said")


@pytest.mark.parametrize(
    ("findings", "detected", "block"),
    [
        ((), False, False),
        (((600, "frozen_block", "page", "blocks.1", "of another kind"),), False, False),
        (((499, *SAID[1:]),), False, False),
        ((SAID, (499, "overfitting", "page", "", "a page in the healthy stretch")), False, True),
        (((550, "drift", "ticket", "blocks.0", "another block before it"), SAID), True, False),
        (((550, "drift", "ticket", "", "of the whole run"), SAID), True, True),
        (((550, "drift", "ticket", "", "of the whole run"),), True, False),
        (((500, *SAID[1:]),), True, True),
    ],
)
def test_what_is_said_of_a_slow_fault(findings: tuple[slow.Said, ...], detected: bool, block: bool) -> None:
    outcome = spoilt(*findings)
    assert (outcome.detected, outcome.block) == (detected, block) and outcome.is_right == (detected and block)


def recorded(training: Training, injected: Injected, steps: int, folder: Path) -> Flight:
    with resmon.watch(training.model, training.optimizer, run="r", directory=folder, agent="off") as monitor:
        training.run(steps, injected, monitor.log)
    return resmon.load(folder / "r")


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults that begin as soon as can be."""
    monkeypatch.setattr(slow, "HEALTHY", (12, 20))


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize(
    ("make", "architecture"),
    [
        (slow.ZeroedBranch, "pre-activation"),
        (slow.FrozenBlock, "stochastic-depth"),
        (slow.RisingRate, "mlp"),
        (slow.DriftingInputs, "in-place"),
        (slow.DroppedScale, "serial"),
    ],
)
def test_a_training_is_healthy_until_its_fault(make: type[slow.Slow], architecture: str, tmp_path: Path) -> None:
    """To the last bit the one without it; and another from the step on, or from the next where the fault is one of learning."""
    fault = make(Trial(make.__name__, 3, (architecture,)), 0)
    step = fault.truth.step
    assert 12 <= step <= 20 < fault.steps
    sick = recorded(fault.training, fault, step + 30, tmp_path / "sick")
    twin = make(Trial(make.__name__, 3, (architecture,)), 0)  # made now, so that dropout draws the same
    well = recorded(twin.training, Injected(), step + 30, tmp_path / "well")
    assert np.array_equal(slow.losses(sick)[:step], slow.losses(well)[:step])
    assert not np.array_equal(slow.losses(sick)[step : step + 2], slow.losses(well)[step : step + 2])
    for block in fault.training.architecture.blocks:
        ours, theirs = (slow.series(each, "branch_rms", block.name) for each in (sick, well))
        assert np.array_equal(ours[:step], theirs[:step])


def zeroed(name: str, how: str) -> slow.Slow:
    """The first trial whose branch goes in that way."""
    faults = (slow.ZeroedBranch(Trial("zeroed-branch", number, (name,)), 0) for number in itertools.count())
    return next(fault for fault in faults if how in fault.truth.what)


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("name", ALL)
def test_a_zeroed_branch_is_zero(name: str, tmp_path: Path) -> None:
    fault = zeroed(name, " is 0 ")
    step = fault.truth.step
    flown = recorded(fault.training, fault, step + 5, tmp_path)
    for block in fault.training.architecture.blocks:
        branch = slow.series(flown, "branch_rms", block.name)
        assert (branch[step:] == 0).all() == (block.name == fault.truth.block)
        assert np.median(branch[:step]) > 0


@pytest.mark.usefixtures("early")
def test_a_branch_fades_until_it_is_zero(tmp_path: Path) -> None:
    fault = zeroed("llama", "fades")
    step = fault.truth.step
    flown = recorded(fault.training, fault, step + 280, tmp_path)  # at 5 % a step it has faded to a millionth by then
    branch = slow.series(flown, "branch_rms", fault.truth.block or "")
    assert (branch[step : step + 60] > 0).all() and (branch[-5:] == 0).all()
    assert 0.5 < branch[step + 2] / branch[step - 1] < 1.1 and branch[step + 60] < 0.1 * branch[step - 1]


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("number", [2, 3])
def test_a_frozen_block_has_no_gradient(number: int, tmp_path: Path) -> None:
    fault = slow.FrozenBlock(Trial("frozen-block", number, ("gpt2",)), 0)
    step = fault.truth.step
    flown = recorded(fault.training, fault, step + 5, tmp_path)
    for block in fault.training.architecture.blocks:
        gradient = slow.series(flown, "gradient_norm", block.name)
        assert (gradient[:step] > 0).all()
        assert (np.nan_to_num(gradient[step:]) == 0).all() == (block.name == fault.truth.block)


def test_a_block_freezes_in_both_ways() -> None:
    said = {slow.FrozenBlock(Trial("frozen-block", number, ("gpt2",)), 0).truth.what.partition(": ")[2] for number in (2, 3)}
    assert said == {"its gradients are 0", "its parameters ask for no gradient"}


@pytest.mark.usefixtures("early")
def test_a_rising_rate_rises_evenly(tmp_path: Path) -> None:
    fault = slow.RisingRate(Trial("rising-rate", 0, ("mlp",)), 0)
    step, tenfold = fault.truth.step, int(fault.truth.what.rpartition(" ")[2])
    flown = recorded(fault.training, fault, step + tenfold, tmp_path)
    rate = flown.steps()["learning_rate"].to_numpy(dtype=float)
    assert (rate[:step] == rate[0]).all() and rate[-1] == pytest.approx(10 * rate[0])
    assert np.diff(np.log(rate[step - 1 :])) == pytest.approx(math.log(10) / tenfold)


@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_inputs_drift_little_by_little_and_stay(name: str) -> None:
    for number in range(6):
        fault = slow.DriftingInputs(Trial("drifting-inputs", number, (name,)), 0)
        arguments, _ = fault.training.batch()
        (key,) = arguments
        x, within = arguments[key], int(fault.truth.what.partition(" and ")[2].partition(" ")[0])

        def far(step: int, fault: slow.Slow = fault, key: str = key, x: torch.Tensor = x) -> float:
            drifted = fault.given(step, {key: x})[key]
            assert drifted.shape == x.shape and drifted.dtype == x.dtype
            return float((drifted - x).abs().double().mean())

        begins = fault.truth.step
        assert far(begins - 1) == 0
        steps = [begins + part * within // 8 for part in (2, 4, 6, 8)]
        found = [far(step) for step in steps]
        assert found[0] > 0 and found == sorted(found) and far(steps[-1] + 500) == pytest.approx(found[-1], rel=0.3)


def test_a_scale_may_be_missing_from_the_start_among_many_blocks() -> None:
    faults = [slow.DroppedScale(Trial("dropped-scale", number, (name,)), 0) for number in range(4) for name in ("mlp", "parallel")]
    starts = [fault for fault in faults if fault.truth.step == 0]
    assert starts and all(len(fault.training.architecture.blocks) == 8 for fault in starts)
    assert len(starts) < len(faults)


def test_a_bad_initialisation_is_loud_from_the_start(tmp_path: Path) -> None:
    faults = [slow.BadInitialisation(Trial("bad-init", number, ("llama",)), 0) for number in range(8)]
    assert {fault.truth.block is None for fault in faults} == {True, False}
    for i, fault in enumerate(faults[:4]):
        flown = recorded(fault.training, fault, 3, tmp_path / f"{i}")
        sound = recorded(Trial("bad-init", i, ("llama",)).training(), Injected(), 3, tmp_path / f"sound {i}")
        for block in fault.training.architecture.blocks:
            ours, theirs = (slow.series(each, "branch_rms", block.name) for each in (flown, sound))
            assert (ours > 5 * theirs).all() == (fault.truth.block in (None, block.name))


@pytest.mark.usefixtures("early")
def test_a_dropped_scale_is_dropped_in_one_block(tmp_path: Path) -> None:
    """In each of its ways; the sites keep their names where a factor is put in."""
    for number, name, what in ((3, "mlp", "layer scale"), (3, "serial", "factor"), (0, "serial", "root"), (0, "resnet", "factor")):
        folder = tmp_path / f"{number} {name}"
        fault = slow.DroppedScale(Trial("dropped-scale", number, (name,)), 0)
        assert f"the {what} of " in fault.truth.what
        step, blocks = fault.truth.step, [block.name for block in fault.training.architecture.blocks]
        sick = recorded(fault.training, fault, step + 1, folder / "sick")
        twin = slow.DroppedScale(Trial("dropped-scale", number, (name,)), 0)
        well = recorded(twin.training, Injected(), step + 1, folder / "well")
        assert [site.name for site in sick.sites] == blocks
        ratios = {
            name: slow.series(sick, "branch_rms", name)[step] / slow.series(well, "branch_rms", name)[step] for name in blocks
        }
        place = blocks.index(fault.truth.block or "")
        assert all(ratios[name] == 1 for name in blocks[:place])
        assert ratios[blocks[place]] > 2 if what != "root" else ratios[blocks[place]] != 1


@pytest.mark.usefixtures("early")
def test_what_comes_to_nothing_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "LASTING", 10)
    draws: list[int] = []

    class Nothing(slow.FrozenBlock):
        def __init__(self, trial: Trial, harder: int) -> None:
            super().__init__(trial, harder)
            draws.append(harder)

        def came(self, trial: Trial, flown: Flight) -> bool:
            return len(draws) > 2 and super().came(trial, flown)

    outcome = slow.trial_of(Nothing, ("frozen_block",), Trial("frozen-block", 0, ("mlp",)))
    assert draws == [0, 1, 2] and outcome.expected.startswith("blocks.")
    monkeypatch.setattr(Nothing, "came", lambda *_: False)
    monkeypatch.setattr(slow, "DRAWS", 2)
    with pytest.raises(NothingBrokenError):
        slow.trial_of(Nothing, (), Trial("frozen-block", 0, ("mlp",)))


# -- healthy runs ----------------------------------------------------------------------------------------------------------


def test_a_healthy_training_is_seen_whole() -> None:
    told: list[Quiet] = []
    quiet = healthy.train("scaler-zero", 150, told.append)
    assert (quiet.steps, quiet.seen, quiet.done) == (150, 150, True) and told == [quiet]
    assert quiet.skipped > 0 and not quiet.incidents and not quiet.findings


def test_a_sick_training_is_not_called_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    sick = replace(HEALTHY["plain"], optimizer=healthy.sgd(1e4), steps=80)
    monkeypatch.setitem(HEALTHY, "plain", sick)
    quiet = healthy.train("plain")
    assert quiet.incidents and "page" in {finding["severity"] for finding in quiet.findings}


@pytest.mark.parametrize("name", ["zero", "zero-sgd", "scaler-zero"])
def test_a_zero_initialised_branch_learns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an output of exactly zero on."""
    torch.manual_seed(0)
    model = HEALTHY[name].make().train()
    optimizer = HEALTHY[name].optimizer(model.parameters())
    generator = torch.Generator().manual_seed(0)
    outs = [module for path, module in model.named_modules() if path.endswith(".out")]
    assert len(outs) == 2 and not any(bool(parameter.any()) for out in outs for parameter in out.parameters())
    for _ in range(3):
        arguments, target = HEALTHY[name].data(generator, ROWS)
        optimizer.zero_grad()
        losses(model(**arguments), target).mean().backward()
        optimizer.step()
    gradients = [parameter.grad for block in model.get_submodule("blocks").children() for parameter in block.parameters()]
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)


def test_a_finding_that_was_a_page_is_one(tmp_path: Path) -> None:
    detecting = Detecting(tmp_path)
    opened = Finding.opened("x", "page", 5, 0.0, "First", expected="", seen="", confidence=1.0, runbook="x", evidence={})
    detecting._take([opened, replace(opened, state="updated", severity="ticket", step=9)])
    (finding,) = detecting.findings.values()
    short = healthy._short(finding, finding.id in detecting.paged)
    assert (short["severity"], short["opened_step"], short["step"], short["state"]) == ("page", 5, 9, "updated")


# -- the page --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "of"), [(300, 300), (0, 30), (297, 300), (1, 2), (35, 36)])
def test_wilsons_interval(right: int, of: int) -> None:
    """Against the formula of his paper, z being the normal distribution's quantile of 97.5 %."""
    z, p = 1.959963984540054, right / of
    centre, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    low, high = ((centre + sign * half) / (1 + z * z / of) for sign in (-1, 1))
    assert Proportion(right, of).interval == pytest.approx((low, high), abs=1e-9)


def outcomes() -> list[Outcome]:
    good = [Outcome("loss", i, "mlp", True, 0, block=True, origin=True, said="well") for i in range(298)]
    bad = [
        Outcome("loss", 298, "mlp", False, None, block=False, origin=False, expected="a | b", said="<script>\nnothing"),
        Outcome("loss", 299, "gpt2", True, 3, block=True, origin=False, expected="c", said="forward"),
    ]
    theirs = [Outcome(f"{tool}:loss", 0, "mlp", tool == "debug") for tool in comparison.TOOLS]
    return [*good, *bad, Outcome("sigkill", 0, "mlp", True, 0), *theirs]


def test_the_page_says_what_was_found_and_what_was_missed() -> None:
    quiet = Quiet("plain", 900_000, 900_000, True, 10.0, 2.0, 0.5, 0, [], [])
    ticket = {"kind": "overfitting", "severity": "ticket", "block": "", "opened_step": 5, "summary": "It overfits."}
    costs = [Cost("resmon", "gpt2", 1.01, 0.2, 12), Cost("debug", "gpt2", 1.5, 0.2, 12)]
    page = report.markdown(outcomes(), [quiet, replace(quiet, name="gpt2", findings=[ticket])], costs, HOW)
    row = next(line for line in page.splitlines() if line.startswith("| NaN or Inf in the loss"))
    assert "| 300 | 99.7 % (98.1 to 99.9), 299 of 300 | 0, at most 3 | 99.7 %" in row and row.endswith("| met |")
    assert "met, of 36 trials aimed at" in page
    assert "| `loss` 298 | mlp | not detected | a \\| b | <script> nothing |" in page
    assert "| `loss` 299 | gpt2 | origin | c | forward |" in page
    assert "1,800,000 steps together" in page and "tickets: 1, 0.0056 in 10,000 steps" in page and "ticket: It overfits." in page
    assert "`overfitting` 0 and 1" in page
    assert "no page so far" in page  # two runs are not twenty
    assert "| 1.01 | 12 |" in page and HOW.cpu in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.count("|") - line.count("\\|") >= 3 and line.endswith("|") for line in rows)


def test_a_page_on_healthy_runs_misses_the_goal() -> None:
    page = {"kind": "loss_divergence", "severity": "page", "block": "", "opened_step": 5, "summary": "Diverged."}
    quiets = [Quiet(f"run {i}", 60_000, 60_000, True, 1.0, 2.0, 0.5) for i in range(20)]
    assert "20 runs: met" in report.markdown([], quiets, [], HOW)
    assert "20 runs: **missed**" in report.markdown([], [*quiets, replace(quiets[0], name="x", findings=[page])], [], HOW)
    assert "20 runs: **missed**" in report.markdown([], [*quiets, replace(quiets[0], name="x", incidents=["NaN"])], [], HOW)


def test_one_ticket_in_ten_thousand_steps_is_allowed() -> None:
    ticket = {"kind": "drift", "severity": "ticket", "block": "", "opened_step": 5, "summary": "Drifts."}
    quiets = [Quiet(f"run {i}", 60_000, 60_000, True, 1.0, 2.0, 0.5, findings=[ticket] * 6) for i in range(20)]
    page = report.markdown([], quiets, [], HOW)
    assert "20 runs: met; at most 1 ticket in 10,000 steps: met." in page and "tickets: 120, 1 in 10,000 steps" in page
    more = [*quiets[1:], replace(quiets[0], findings=[ticket] * 7)]
    assert "at most 1 ticket in 10,000 steps: **missed**." in report.markdown([], more, [], HOW)


def test_the_page_says_which_sources_were_tried() -> None:
    ours = [replace(each, commit="abc1234" if each.detected else "def5678+") for each in outcomes()]
    quiet = Quiet("plain", 900_000, 900_000, True, 10.0, 2.0, 0.5)
    page = report.markdown(ours, [quiet], [], HOW)
    assert "trials, 301 with abc1234, 2 with def5678+; healthy runs, 1 with a commit that is not known." in page


def test_an_empty_page_is_one() -> None:
    assert "# The fault bench" in report.markdown([], [], [], HOW)


# -- the notebook ----------------------------------------------------------------------------------------------------------


def test_a_bench_that_was_stopped_goes_on(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path)
    for outcome in outcomes():
        notebook.add(outcome)
    quiet = Quiet("plain", 5_000, 5_000, False, 1.0, 2.0, 1.0)
    for each in (quiet, replace(quiet, steps=60_000, done=True), replace(quiet, steps=10_000), replace(quiet, name="gpt2")):
        notebook.add_quiet(each)
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"kind": "loss", "tri')  # where it was stopped
    again = Notebook(tmp_path)
    found = again.outcomes()
    assert sorted(found, key=repr) == sorted(outcomes(), key=repr)
    assert {each.commit for each in found} == {commit()}
    assert [(each.name, each.steps) for each in again.quiets()] == [("gpt2", 5_000), ("plain", 60_000)]
    again.forget("loss")
    assert {outcome.kind for outcome in Notebook(tmp_path).outcomes()} == {"sigkill", "anomaly:loss", "debug:loss"}


def test_one_trial_is_repeated_alone(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--only", "data", "--trial", "3"])
    printed = capsys.readouterr().out
    assert printed.startswith("right\n") and '"trial": 3' in printed


def test_a_trial_needs_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--trial", "3"])
    assert "--only KIND --trial NUMBER" in capsys.readouterr().err


def test_the_other_tools_get_the_same_fault() -> None:
    ours = KINDS["backward-nan"].trial("backward-nan", 2)
    theirs = comparison.trial("anomaly", "backward-nan", 2, ALL)
    assert theirs.architecture == ours.architecture and theirs.detected and theirs.operation is True
    assert theirs.said.rpartition("/")[2] == ours.expected.rpartition("/")[2]  # the line, by its file's name
    assert not comparison.trial("anomaly", "forward-inf", 9, ALL).said.startswith("DebugUnderflowOverflow")
    blind = comparison.trial("debug", "forward-nan", 2, ALL)
    assert blind.kind == "debug:forward-nan" and blind.detected
