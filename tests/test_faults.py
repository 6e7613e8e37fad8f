"""The fault bench: a trial of each kind from end to end, what counts as right, the intervals, the page and the notebook."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.faults import comparison, healthy, injection, report
from benchmarks.faults.__main__ import main
from benchmarks.faults.architectures import ARCHITECTURES, ROWS
from benchmarks.faults.comparison import Cost
from benchmarks.faults.healthy import HEALTHY, Quiet
from benchmarks.faults.kinds import ALL, FEW, KINDS, MANY
from benchmarks.faults.nonfinite import places
from benchmarks.faults.notebook import Notebook, commit
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.report import Proportion
from benchmarks.faults.trial import Trial, Truth
from benchmarks.report import Circumstances

SLOW = {"explosion", "scaler-overflow", "scaler-search", "memory", "sigkill", "hang"}  # long trainings, or processes
HOW = Circumstances("python -m benchmarks.faults", "2026-01-02 03:04 UTC", "a processor", 2, 1, {"torch": "2"}, (0.1, 0.2, 0.3))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in KINDS])
def test_a_trial_of_each_kind(kind: str) -> None:
    outcome = KINDS[kind].trial(kind, 7)
    assert outcome.is_right, outcome
    assert outcome.expected and outcome.said
    again = KINDS[kind].trial(kind, 7)
    assert replace(again, said="", delay=None) == replace(outcome, said="", delay=None)


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
    assert "1,800,000 steps together" in page and "tickets: 1" in page and "ticket: It overfits." in page
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
